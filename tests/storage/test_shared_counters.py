"""The scripts of shared counters, on real servers: exactly the arithmetic of the domain, all levels or none, leases that end."""

import copy
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.storage.counter_servers import CounterServer, counter_server, find_servers
from tollway.domain.limits import BY_NAME, DIMENSIONS, LevelLimits, LimitLevel, Limits, Quantity
from tollway.domain.shared_limits import EMPTY, CounterState, PreparedLimits, SharedCounter, drain
from tollway.storage.shared_counters import Script, make_scripts, parse_url, prepare
from tollway.wire.resp import Reply, ReplyError, ReplyReader, encode_command

LEASE_US = 600_000_000
"""Long, because the server lets the leases expire by its own clock, which runs on while a busy machine holds a test up."""
START_US = 1_795_000_000_000_000
ORGANIZATION = "org_"
RESERVE, SETTLE = make_scripts("local now = tonumber(ARGV[#ARGV])\n")
QUANTITIES = list(Quantity)
MEDIA = (Quantity.IMAGES, Quantity.AUDIO_SECONDS)


def complete(tokens: Sequence[int]) -> tuple[int, ...]:
    """Return the units of a request: one request, its tokens (all, input, output), then images and seconds, 0 where they are left out."""
    return (1, *tokens, *[0] * (len(QUANTITIES) - 1 - len(tokens)))


class Scripts:
    """A connection to a server that runs the scripts at instants of the test's choice."""

    def __init__(self, server: CounterServer) -> None:
        self._socket = socket.create_connection(("127.0.0.1", server.port), timeout=30)
        self._reader = ReplyReader()

    def close(self) -> None:
        self._socket.close()

    def command(self, *parts: bytes) -> Reply:
        self._socket.sendall(encode_command(parts))
        while not (replies := self._reader.feed(self._socket.recv(65536))):
            pass
        return replies[0]

    def run(self, script: Script, prepared: PreparedLimits, owner: str, now_us: int, *rest: bytes, previous: str = "") -> tuple[int, ...]:
        keys = prepared.keys
        arguments = [owner.encode(), b"%d" % LEASE_US, previous.encode(), prepared.shape, *rest, b"%d" % now_us]
        reply = self.command(b"EVAL", script.text, b"%d" % len(keys), *keys, *arguments)
        assert isinstance(reply, bytes), reply
        return msgspec.msgpack.decode(reply, type=tuple[int, ...])

    def reserve(self, prepared: PreparedLimits, owner: str, now_us: int, *tokens: int, mode: bytes = b"") -> tuple[int, ...]:
        return self.run(RESERVE, prepared, owner, now_us, msgspec.msgpack.encode(complete(tokens)), mode)

    def settle(self, prepared: PreparedLimits, owner: str, now_us: int, *moves: int, previous: str = "") -> tuple[int, ...]:
        return self.run(SETTLE, prepared, owner, now_us, msgspec.msgpack.encode(moves), previous=previous)


@pytest.fixture(scope="module", params=["redis", "valkey"])
def server(request: pytest.FixtureRequest) -> Iterator[CounterServer]:
    if request.param not in find_servers():
        pytest.skip(f"{request.param} is not installed")
    with counter_server(request.param) as running:
        yield running


@pytest.fixture
def scripts(server: CounterServer) -> Iterator[Scripts]:
    connection = Scripts(server)
    connection.command(b"FLUSHALL")
    yield connection
    connection.close()


def level(id: str, **sizes: int) -> LevelLimits:
    return LevelLimits(LimitLevel.PROJECT, id, Limits(**sizes))


# ---- The same arithmetic ----------------------------------------------------------------------------------------------


@dataclass
class Cell:
    """One counter of the model."""

    state: CounterState = EMPTY
    at_us: int = START_US
    held: dict[str, int] = field(default_factory=dict)


class Model:
    """A model of the scripts in Python integers."""

    def __init__(self, levels: list[LevelLimits]) -> None:
        self.levels = levels
        self.cells: dict[tuple[str, str], Cell] = {}
        self.leases: dict[str, int] = {}

    def counters(self) -> list[tuple[SharedCounter, Cell]]:
        found = []
        for owner in self.levels:
            for dimension in DIMENSIONS:
                size = owner.limits.get(dimension)
                if size is not None:
                    cell = self.cells.setdefault((owner.id, dimension.name), Cell())
                    found.append((SharedCounter(owner, dimension, size), cell))
        return found

    def advance(self, owner: str, now_us: int) -> list[tuple[SharedCounter, Cell]]:
        """Drain everything to this instant and end the leases that are over."""
        for counter, cell in self.counters():
            if counter.window_us:
                cell.state = drain(cell.state, now_us - cell.at_us, counter.size, counter.window_us)
            cell.at_us = now_us
            for holder in [holder for holder in cell.held if holder != owner and self.leases.get(holder, 0) <= now_us]:
                units = cell.held.pop(holder)
                if counter.window_us:
                    cell.state = cell.state._replace(units=cell.state.units + units)
        return self.counters()

    def reserve(self, owner: str, now_us: int, tokens: tuple[int, ...]) -> tuple[int, ...]:
        units = complete(tokens)
        is_known = self.leases.get(owner, 0) > now_us
        before = copy.deepcopy(self.cells)
        counters = self.advance(owner, now_us)
        fits = [
            cell.state.units + (cell.state.fraction > 0) + sum(cell.held.values()) + units[QUANTITIES.index(counter.dimension.quantity)]
            <= counter.size
            or (counter.dimension.quantity in MEDIA and not units[QUANTITIES.index(counter.dimension.quantity)])
            for counter, cell in counters
        ]
        if all(fits):
            for counter, cell in counters:
                wanted = units[QUANTITIES.index(counter.dimension.quantity)]
                if counter.window_us and counter.dimension.quantity is Quantity.REQUESTS:
                    cell.state = cell.state._replace(units=cell.state.units + 1)
                else:
                    cell.held[owner] = cell.held.get(owner, 0) + wanted
            self.renew(owner, now_us)
        states = [number for _, cell in counters for number in (cell.state.units, cell.state.fraction, sum(cell.held.values()))]
        if not all(fits):
            self.cells = before  # a refusal writes nothing, not even that leases have ended
        return (int(all(fits)), int(is_known), *states)

    def settle(self, owner: str, now_us: int, moves: list[int]) -> tuple[int, ...]:
        is_known = self.leases.get(owner, 0) > now_us
        counters = self.advance(owner, now_us)
        by_level = {counter.owner.id: any(owner in cell.held for other, cell in counters if other.owner.id == counter.owner.id)
                    for counter, _ in counters}  # fmt: skip
        for number, (counter, cell) in enumerate(counters):
            released, charged = moves[2 * number : 2 * number + 2]
            if released > 0 and not by_level[counter.owner.id]:
                charged = max(charged - released, 0)
            else:
                left = cell.held.pop(owner, 0) - released
                if left > 0:
                    cell.held[owner] = left
            if counter.window_us:
                cell.state = cell.state._replace(units=cell.state.units + charged)
        self.renew(owner, now_us)
        return 0, int(is_known)

    def renew(self, owner: str, now_us: int) -> None:
        if self.leases.get(owner, 0) <= now_us + LEASE_US * 3 // 4:
            self.leases[owner] = now_us + LEASE_US


SIZES = st.one_of(st.integers(1, 30), st.integers(1, 10**6))


@st.composite
def list_levels(draw: st.DrawFn) -> list[LevelLimits]:
    return [
        level(f"proj_{number}", **draw(st.dictionaries(st.sampled_from(sorted(BY_NAME)), SIZES, min_size=1, max_size=4)))
        for number in range(draw(st.integers(1, 3)))
    ]


SEPARATORS = st.text("ab:{}/\x00é", max_size=8)


OWNERS = st.lists(st.tuples(SEPARATORS, SEPARATORS), min_size=1, max_size=4)


@given(OWNERS, OWNERS)
def test_keys_of_two_organizations_never_meet_whatever_their_ids_and_models_hold(
    of_one: list[tuple[str, str]], of_other: list[tuple[str, str]]
) -> None:
    """Not even an owner or a model with the other organization's id and all separators in it reaches the keys of that one."""

    def list_keys(own: str, other: str, owners: list[tuple[str, str]]) -> tuple[bytes, ...]:
        levels = [
            LevelLimits(LimitLevel.END_USER, f"{id}}}:{{{other}}}:{id}", Limits(requests_per_minute=1), f"{{{other}}}{model}")
            for id, model in owners
        ]
        keys = prepare(own, levels).keys
        assert all(key.startswith(b"tollway:{%s}:" % own.encode()) for key in keys) and len(keys) == 1 + len(owners)
        return keys

    one, other = (ORGANIZATION + digit * 32 for digit in "01")
    assert not set(list_keys(one, other, of_one)) & set(list_keys(other, one, of_other))


@settings(max_examples=80)
@given(list_levels(), st.data())
def test_scripts_decide_as_the_model_does_at_every_instant(scripts_module: Scripts, levels: list[LevelLimits], data: st.DataObject) -> None:
    scripts, model, now = scripts_module, Model(levels), START_US
    scripts.command(b"FLUSHALL")
    prepared = prepare("org_1", levels)
    for _ in range(data.draw(st.integers(1, 12))):
        now += data.draw(st.one_of(st.integers(0, 100), st.integers(0, 2 * 86_400_000_000)))
        owner = data.draw(st.sampled_from(["a", "b"]))
        if data.draw(st.booleans()):
            tokens = tuple(data.draw(st.one_of(st.integers(0, 20), st.integers(0, 10**6))) for _ in range(5))
            assert scripts.reserve(prepared, owner, now, *tokens) == model.reserve(owner, now, tokens)
        else:
            count = len(prepared.counters)
            moves = data.draw(st.lists(st.integers(0, 10**6), min_size=2 * count, max_size=2 * count))
            assert scripts.settle(prepared, owner, now, *moves) == model.settle(owner, now, moves)


@pytest.fixture(scope="module")
def scripts_module(server: CounterServer) -> Iterator[Scripts]:
    connection = Scripts(server)
    yield connection
    connection.close()


@given(st.data())
def test_largest_limits_are_drained_without_rounding(scripts_module: Scripts, data: st.DataObject) -> None:
    dimension = data.draw(st.sampled_from([each for each in DIMENSIONS if each.window_ns]))
    size = data.draw(st.integers(1, dimension.size_max))
    levels = [level("proj_1", **{dimension.name: size})]
    prepared, counter = prepare("org_1", levels), SharedCounter(levels[0], dimension, size)
    scripts_module.command(b"FLUSHALL")
    state, now = CounterState(data.draw(st.integers(0, size)), 0, 0), START_US
    scripts_module.settle(prepared, "a", now, 0, state.units)
    for _ in range(3):
        pause = data.draw(st.integers(0, counter.window_us))
        now += pause
        state = drain(state, pause, size, counter.window_us)
        scripts_module.settle(prepared, "a", now, 0, 0)  # writes what was drained
        assert scripts_module.reserve(prepared, "a", now, 0, 0, 0, mode=b"read")[2:] == state


# ---- What is kept ------------------------------------------------------------------------------------------------------


def test_images_and_seconds_are_held_and_only_requests_with_them_are_refused(scripts: Scripts) -> None:
    prepared = prepare("org_1", [level("proj_1", images_per_minute=5, audio_seconds_per_day=60)])
    assert scripts.reserve(prepared, "a", START_US, 9, 9, 0, 4, 50) == (1, 0, 0, 0, 4, 0, 0, 50)
    assert scripts.settle(prepared, "a", START_US, 4, 7, 50, 90) == (0, 1)
    assert scripts.reserve(prepared, "a", START_US, 9, 9, 0, 1, 0)[0] == scripts.reserve(prepared, "a", START_US, 9, 9, 0, 0, 1)[0] == 0
    assert scripts.reserve(prepared, "a", START_US, 9, 9, 0)[0] == 1, "both are overdrawn, and it has neither"


def test_refusal_at_one_level_changes_no_level(scripts: Scripts) -> None:
    prepared = prepare("org_1", [level("proj_1", requests_per_minute=5), level("org_1", requests_per_minute=1)])
    assert scripts.reserve(prepared, "a", START_US, 0, 0, 0)[0] == 1
    refused = scripts.reserve(prepared, "a", START_US, 0, 0, 0)
    assert refused[0] == 0 and refused[2:] == (1, 0, 0, 1, 0, 0)


def test_lease_that_ends_frees_concurrency_and_charges_what_was_held(scripts: Scripts) -> None:
    prepared = prepare("org_1", [level("proj_1", concurrent_requests=1, tokens_per_day=1000)])
    assert scripts.reserve(prepared, "dead", START_US, 300, 0, 0)[0] == 1
    assert scripts.reserve(prepared, "b", START_US + LEASE_US - 1, 1, 0, 0)[0] == 0
    after = scripts.reserve(prepared, "b", START_US + LEASE_US, 1, 0, 0)
    assert after[0] == 1 and after[2:] == (300, 0, 1, 0, 0, 1)


def test_settlement_after_the_lease_charges_only_what_exceeds_the_hold(scripts: Scripts) -> None:
    prepared = prepare("org_1", [level("proj_1", tokens_per_day=1000)])
    scripts.reserve(prepared, "slow", START_US, 300, 0, 0)
    later = START_US + LEASE_US
    scripts.reserve(prepared, "b", later, 0, 0, 0)
    scripts.settle(prepared, "slow", later, 300, 340)
    assert scripts.reserve(prepared, "b", later, 0, 0, 0, mode=b"read")[2:] == (340, 0, 0)


def test_successor_takes_over_holds_without_a_charge(scripts: Scripts) -> None:
    prepared = prepare("org_1", [level("proj_1", concurrent_requests=9, tokens_per_day=1000)])
    scripts.reserve(prepared, "one", START_US, 300, 0, 0)
    later = START_US + 2 * LEASE_US
    scripts.settle(prepared, "two", later, -300, 20, -1, 0, previous="one")
    assert scripts.reserve(prepared, "b", later, 0, 0, 0, mode=b"read")[2:] == (20, 0, 300, 0, 0, 1)


def test_limit_that_changes_keeps_the_units_that_were_used(scripts: Scripts) -> None:
    scripts.settle(prepare("org_1", [level("proj_1", tokens_per_minute=100)]), "a", START_US, 0, 70)
    larger = prepare("org_1", [level("proj_1", tokens_per_minute=1_000_000_000)])
    assert scripts.reserve(larger, "a", START_US, 0, 0, 0, mode=b"read")[2:] == (70, 0, 0)


def test_idle_counter_is_not_stored(scripts: Scripts) -> None:
    prepared = prepare("org_1", [level("proj_1", concurrent_requests=1)])
    scripts.reserve(prepared, "a", START_US, 0, 0, 0)
    assert scripts.command(b"EXISTS", prepared.keys[1]) == 1
    scripts.settle(prepared, "a", START_US, 1, 0)
    assert scripts.command(b"EXISTS", prepared.keys[1]) == 0


def test_every_stored_key_expires(scripts: Scripts) -> None:
    prepared = prepare("org_1", [level("proj_1", requests_per_minute=60, concurrent_requests=3), level("org_1", tokens_per_minute=60)])
    scripts.reserve(prepared, "a", START_US, 10, 0, 0)
    lifetimes = [scripts.command(b"PTTL", key) for key in prepared.keys]
    assert all(isinstance(each, int) and each > 0 for each in lifetimes)


def test_keys_of_an_organization_share_one_slot_of_a_cluster(scripts: Scripts) -> None:
    prepared = prepare("org_1", [level("proj_1", requests_per_minute=1), level("key_1", requests_per_minute=1)])
    tags = {key[key.index(b"{") + 1 : key.index(b"}")] for key in prepared.keys}
    assert tags == {b"org_1"} and len(set(prepared.keys)) == 3


def test_script_error_is_a_reply_error(scripts: Scripts) -> None:
    prepared = prepare("org_1", [level("proj_1", requests_per_minute=1)])
    scripts.command(b"SET", prepared.keys[1], b"\xc1")
    keys = prepared.keys
    reply = scripts.command(b"EVAL", RESERVE.text, b"%d" % len(keys), *keys, b"a", b"1", b"", prepared.shape, b"0", b"0", b"0", b"", b"1")
    assert isinstance(reply, ReplyError)


@pytest.mark.parametrize(
    "url", ["http://a", "redis://", "redis://:secret@a", "redis://a/b", "redis://a?x=1", "redis://a:99999"], ids=lambda url: str(url)
)
def test_url_that_cannot_be_used_is_refused(url: str) -> None:
    with pytest.raises(ValueError):
        parse_url(url)
