"""Address ranges: what is a range, which addresses lie in it, and which ranges lie in others."""

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tollway.domain.networks import contains, parse_address, parse_network


@pytest.mark.parametrize(
    ("text", "network"),
    [
        ("192.0.2.0/24", "192.0.2.0/24"),
        ("192.0.2.1", "192.0.2.1/32"),
        ("2001:db8::1", "2001:db8::1/128"),
        ("::ffff:192.0.2.0/120", "192.0.2.0/24"),
        ("::ffff:0:0/96", "0.0.0.0/0"),
    ],
)
def test_range_is_read_and_a_mapped_one_is_of_ipv4(text: str, network: str) -> None:
    assert str(parse_network(text)) == network


@pytest.mark.parametrize(
    "text", ["", "192.0.2.1/24", "192.0.2.0/33", "0300.0.2.1", "192.0.2", "fe80::1%eth0", "example.com", "10.0.0.0/-1"]
)
def test_text_that_is_not_a_range_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        parse_network(text)


@given(st.ip_addresses(v=4), st.integers(0, 32))
def test_ipv4_address_and_its_mapped_form_lie_in_the_same_ranges(address: ipaddress.IPv4Address, prefix: int) -> None:
    network = parse_network(str(ipaddress.ip_network((int(address) >> (32 - prefix) << (32 - prefix), prefix))))
    for text in (str(address), f"::ffff:{address}", f"[::ffff:{address}]:443", f"{address}:443"):
        assert contains([network], text)
    assert not contains([parse_network("::/0")], str(address))
    assert not contains([parse_network("::/0")], f"::ffff:{address}")


def test_address_that_is_not_known_lies_in_no_range() -> None:
    assert not contains([parse_network("0.0.0.0/0"), parse_network("::/0")], "")
    assert parse_address("unix:/run/x") is None
