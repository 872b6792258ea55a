"""The Merkle tree is that of RFC 6962: its published vectors, and a proof for every leaf and for nothing else."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.link import samples
from tests.merkle_paths import root_from
from tollway.domain.prices import amounts, rate
from tollway.domain.proofs import EMPTY, encode_leaf, find_path, find_root, hash_leaf, hash_node, leaf_of
from tollway.domain.usage import UsageEvent, billed, content_hash, encode

# The leaves and roots that the reference implementations of RFC 6962 test with (certificate-transparency, merkletree).
LEAVES = [
    bytes.fromhex(text) for text in ("", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f")
]
ROOTS = {
    0: "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    1: "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    2: "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    3: "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    4: "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    5: "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    6: "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    7: "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    8: "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
}


def split_root(leaves: list[bytes]) -> bytes:
    """The definition of RFC 6962 section 2.1, word for word."""
    if not leaves:
        return hashlib.sha256().digest()
    if len(leaves) == 1:
        return hash_leaf(leaves[0])
    half = 1
    while half * 2 < len(leaves):
        half *= 2
    return hash_node(split_root(leaves[:half]), split_root(leaves[half:]))


@pytest.mark.parametrize("size", ROOTS)
def test_roots_are_the_published_ones(size: int) -> None:
    assert find_root([hash_leaf(leaf) for leaf in LEAVES[:size]]).hex() == ROOTS[size]
    assert EMPTY.hex() == ROOTS[0]


def test_paths_are_the_published_ones() -> None:
    hashes = [hash_leaf(leaf) for leaf in LEAVES]
    assert [node.hex() for node in find_path(5, hashes)] == [
        "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
        "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    ]


@given(st.lists(st.binary(max_size=4), max_size=70))
def test_the_tree_splits_at_the_largest_power_of_two(leaves: list[bytes]) -> None:
    assert find_root([hash_leaf(leaf) for leaf in leaves]) == split_root(leaves)


@given(st.lists(st.binary(max_size=4), min_size=1, max_size=70), st.sampled_from([1, 2, 4, 16, 64]))
def test_blocks_of_a_power_of_two_have_the_root_of_the_whole_and_make_its_paths(leaves: list[bytes], block: int) -> None:
    hashes = [hash_leaf(leaf) for leaf in leaves]
    blocks = [find_root(hashes[at : at + block]) for at in range(0, len(hashes), block)]
    assert find_root(blocks) == find_root(hashes)
    for index in range(len(hashes)):
        number, inside = divmod(index, block)
        joined = find_path(inside, hashes[number * block : (number + 1) * block]) + find_path(number, blocks)
        assert joined == find_path(index, hashes)


@given(st.lists(st.binary(max_size=4), min_size=1, max_size=40, unique=True), st.data())
def test_every_leaf_has_a_proof_and_no_other_has(leaves: list[bytes], data: st.DataObject) -> None:
    hashes = [hash_leaf(leaf) for leaf in leaves]
    root, index = find_root(hashes), data.draw(st.integers(0, len(leaves) - 1))
    path = find_path(index, hashes)
    assert root_from(hashes[index], index, len(leaves), path) == root
    other = data.draw(st.integers(0, len(leaves)))
    if other != index:
        assert root_from(hashes[index], other, len(leaves), path) != root
    assert root_from(hash_leaf(b"never there"), index, len(leaves), path) != root
    assert root_from(hashes[index], index, len(leaves), [*path, root]) is None
    if path:
        assert root_from(hashes[index], index, len(leaves), path[:-1]) is None
        flipped = [*path[:-1], bytes([path[-1][0] ^ 1]) + path[-1][1:]]
        assert root_from(hashes[index], index, len(leaves), flipped) != root


def test_a_leaf_says_what_the_receipt_says() -> None:
    final = samples.final(samples.admit(1))
    event = UsageEvent(
        node_id=samples.NODE,
        epoch=1,
        seq=2,
        final=final,
        content_hash=content_hash(encode(final)),
        amounts=amounts(billed(final), samples.PRICE.unit_prices),
        period_at=0,
    )
    leaf = leaf_of(event, rate(billed(final), samples.PRICE.unit_prices), "EUR")
    assert encode_leaf(leaf) == (
        b'{"event_id":"req_00000000000000000000000000000001","content_hash":"' + event.content_hash.hex().encode() + b'",'
        b'"organization_id":"org_11111111111111111111111111111111","project_id":"proj_11111111111111111111111111111111",'
        b'"key_id":"key_11111111111111111111111111111111","model":"echo","service_tier":"standard","admitted_at":1790000000001000,"ended_at":1790000000251000,'
        b'"outcome":"completed","outcome_policy":1,"price_version":"price_11111111111111111111111111111111","currency":"EUR","lines":['
        b'{"billing_class":"input","quantity":100,"unit_price_pico":"270000","amount_pico":"27000000"},'
        b'{"billing_class":"cached_input","quantity":20,"unit_price_pico":"27000","amount_pico":"540000"},'
        b'{"billing_class":"output","quantity":30,"unit_price_pico":"1100000","amount_pico":"33000000"},'
        b'{"billing_class":"reasoning","quantity":4,"unit_price_pico":"1100000","amount_pico":"4400000"},'
        b'{"billing_class":"request","quantity":1,"unit_price_pico":"5","amount_pico":"5"}],"amount_pico":"64940005"}'
    )
