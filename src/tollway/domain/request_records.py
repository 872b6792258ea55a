"""Parts of the records of each request that a gateway computes: the bytes of its ADMIT, and the cost of its FINAL.

The module is compiled where the gateway's hot modules are; `domain.usage`, whose structs have defaults in JSON, is not.
"""

from collections.abc import Sequence
from typing import Final

import msgspec

from tollway.domain.billing_classes import UnitPrices
from tollway.domain.usage import BILLS, OUTCOME_POLICIES, Admit, Ended, encode
from tollway.domain.usage import Final as FinalRecord

_POLICIES: Final = OUTCOME_POLICIES
_BILLS: Final = BILLS

# A gateway encodes two records per request, so it puts them together from parts that are encoded already: what all ADMITs of a key for
# a model have in common, and the ADMIT inside its FINAL. The bytes are those of `encode`; the tests hold them against each other.


def encode_terms(admit: Admit) -> bytes:
    """Return what an ADMIT says behind its id and its instant: the same for all with these terms."""
    return encode(admit)[len(encode_admit(admit.request_id, admit.admitted_at, b"")) :]


def add_choices(terms: bytes, choices: int) -> bytes:
    """Return `terms` (`encode_terms`, of requests that ask for one output and name no budgets) as those of a request that asks for several
    outputs for each prompt."""
    return b'%b,"choices":%d}' % (terms[:-1], choices)


def add_budgets(terms: bytes, budgets: Sequence[str]) -> bytes:
    """Return `terms` (`encode_terms`, of requests that name no budgets) as those of requests that are counted in these (at least one)."""
    return b'%b,"budgets":%b}' % (terms[:-1], msgspec.json.encode(budgets))


def encode_admit(request_id: str, admitted_at: int, terms: bytes) -> bytes:
    """The ADMIT of a request with these `terms` (`encode_terms`). `request_id`: one of ours, in which JSON escapes nothing."""
    return f'{{"record":"admit","request_id":"{request_id}","admitted_at":{admitted_at},'.encode() + terms


def find_cost(policy_version: int, endpoint: str, final: FinalRecord | Ended, unit_prices: UnitPrices) -> int:
    """Return what a FINAL costs, in pico-currency: `billed_by(...).times(unit_prices).total`, without the values between."""
    if endpoint in _POLICIES[policy_version].unbilled_endpoints:
        return 0
    used = final.used
    is_delivered = used.output > 0 or used.output_tokens > 0  # a property costs a call
    tokens, request = _BILLS[policy_version, is_delivered][final.outcome]
    return used.cost(unit_prices, request) if tokens else request * unit_prices.request
