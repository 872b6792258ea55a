"""Counters of limits that several gateways share, in Redis (7.0 or later) or Valkey.

Theory of operation. One script decides a request at all levels: it reads the counters, drains them, compares, and writes all or none. The
arithmetic is that of `domain.shared_limits`, exact in the 53-bit integers of Lua. The only clock is the server's, so the clocks of gateways
do not matter. All keys of an organization carry its id as their hash tag, so that a script finds them on one node of a cluster:

    tollway:{org_1}:leases            owner -> end of its lease, in microseconds
    tollway:{org_1}:proj_1:model      r: dimension -> units, fraction, instant; h: owner -> dimension -> units held

A key that stands as a new one would is deleted. Every key expires when it would be empty, but not within a minute; and after a day
where something is held.

One connection carries the calls of all requests, one after the other, and their replies come in the same order. A call that is not
answered within the deadline is reported as unanswered; STRIKES_MAX of them in a row, an error or a lost connection open the circuit: the
store is unavailable, all open calls are reported, and the connection is closed. From then on `run`, a background task, tries to connect
every PROBE_SECONDS. A connection is used once a script that writes was answered within the deadline.
"""

import asyncio
import hashlib
import ssl
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple
from urllib.parse import urlsplit

import msgspec

from tollway.domain.limits import LevelLimits, Quantity
from tollway.domain.shared_limits import CounterState, PreparedLimits, SharedCounter, StoreAnswer, list_counters, list_states
from tollway.wire.resp import Reply, ReplyError, ReplyReader, encode_arguments, encode_command

GRACE_SECONDS = 0.001
"""Part of the deadline that is kept for replies which have arrived but were not read yet, because the loop was busy."""

STRIKES_MAX = 3
"""Calls in a row that may go unanswered. One alone is a pause of the server or of this process."""

PROBE_SECONDS = 0.5
"""Pause between two attempts to use a server that failed."""

SETTLE_WAIT_SECONDS = 0.001
"""Longest time for which the end of a request waits for another call, to go to the server with it: a write costs a gateway more than all
else of a call."""

CONNECT_SECONDS = 1.0
"""Deadline of a connection with its handshake."""

CALLS_MAX = 10_000
"""Calls that wait for replies. More than a server answers within the deadline of any of them."""

LEASE_SECONDS = 10.0
"""A gateway that did not call for so long no longer holds anything. Gateways renew their leases every two seconds."""

_PREFIX = "tollway"

_QUANTITIES = list(Quantity)

_CLOCK = """
local clock = redis.call('TIME')
local now = clock[1] * 1000000 + clock[2]
"""

_COMMON = """
local owner, lease, previous = ARGV[1], tonumber(ARGV[2]), ARGV[3]
local shape = cmsgpack.unpack(ARGV[4])
local text = redis.call('GET', KEYS[1])
local leases = text and cmsgpack.unpack(text) or {}
local is_known = (leases[owner] or 0) > now

local function drain(rate, size, window)
  local elapsed = now - rate[3]
  rate[3] = now
  if elapsed <= 0 or (rate[1] == 0 and rate[2] == 0) then return end
  local windows = math.floor(elapsed / window)
  elapsed = elapsed - windows * window
  local whole, rest = 0, 0
  -- elapsed * size / window, by long multiplication with 14 bits at a time: no product reaches 2^53
  for _, limb in ipairs({math.floor(size / 268435456), math.floor(size / 16384) % 16384, size % 16384}) do
    local product = rest * 16384 + elapsed * limb
    local part = math.floor(product / window)
    whole, rest = whole * 16384 + part, product - part * window
  end
  local units, fraction = rate[1] - windows * size - whole, rate[2] - rest
  if fraction < 0 then units, fraction = units - 1, fraction + window end
  if units < 0 then units, fraction = 0, 0 end
  rate[1], rate[2] = units, fraction
end

local function read(key, counters)
  local text = redis.call('GET', key)
  local state = text and cmsgpack.unpack(text) or {r = {}, h = {}}
  for _, counter in ipairs(counters) do
    local name, _, window, size = unpack(counter)
    if window > 0 then
      local rate = state.r[name]
      if rate then drain(rate, size, window) else state.r[name] = {0, 0, now} end
    end
  end
  state.h[previous] = nil
  for holder, held in pairs(state.h) do
    if holder ~= owner and (leases[holder] or 0) <= now then
      for _, counter in ipairs(counters) do
        local name, window = counter[1], counter[3]
        if window > 0 then state.r[name][1] = state.r[name][1] + (held[name] or 0) end
      end
      state.h[holder] = nil
    end
  end
  return state
end

local function write(key, state, counters)
  local expires = next(state.h) and 86400000000 or 0
  for _, counter in ipairs(counters) do
    local name, _, window, size = unpack(counter)
    local rate = state.r[name]
    if window > 0 and (rate[1] > 0 or rate[2] > 0) then expires = math.max(expires, (rate[1] + 1) * window / size) end
  end
  if expires == 0 then
    redis.call('DEL', key)
  else
    redis.call('SET', key, cmsgpack.pack(state), 'PX', string.format('%.0f', math.ceil(math.max(expires, 60000000) / 1000)))
  end
end

local function renew()
  if (leases[owner] or 0) > now + lease * 0.75 then return end
  for holder, ends in pairs(leases) do
    if ends <= now then leases[holder] = nil end
  end
  leases[previous] = nil
  leases[owner] = now + lease
  redis.call('SET', KEYS[1], cmsgpack.pack(leases), 'PX', string.format('%.0f', math.ceil(lease / 1000)))
end

local function count_held(state, name)
  local units = 0
  for _, held in pairs(state.h) do units = units + (held[name] or 0) end
  return units
end
"""

_RESERVE = """
local units = cmsgpack.unpack(ARGV[5])
local is_admitted, states = ARGV[6] ~= 'read', {}
for level, counters in ipairs(shape) do
  local state = read(KEYS[level + 1], counters)
  states[level] = state
  for _, counter in ipairs(counters) do
    local name, quantity, window, size = unpack(counter)
    local taken = count_held(state, name) + units[quantity]
    if window > 0 then
      local rate = state.r[name]
      taken = taken + rate[1] + (rate[2] > 0 and 1 or 0)
    end
    -- a request without images or sound (quantities 5 and 6) is not refused where a limit on them is overdrawn
    if taken > size and (units[quantity] > 0 or quantity < 5) then is_admitted = false end
  end
end
local answer = {is_admitted and 1 or 0, is_known and 1 or 0}
for level, counters in ipairs(shape) do
  local state = states[level]
  if is_admitted then
    local held = state.h[owner] or {}
    for _, counter in ipairs(counters) do
      local name, quantity, window = unpack(counter)
      if window > 0 and quantity == 1 then
        state.r[name][1] = state.r[name][1] + 1
      else
        held[name] = (held[name] or 0) + units[quantity]
      end
    end
    if next(held) then state.h[owner] = held end
    write(KEYS[level + 1], state, counters)
  end
  for _, counter in ipairs(counters) do
    local name = counter[1]
    local rate = state.r[name] or {0, 0}
    answer[#answer + 1] = rate[1]
    answer[#answer + 1] = rate[2]
    answer[#answer + 1] = count_held(state, name)
  end
end
if is_admitted then renew() end
return cmsgpack.pack(answer)
"""

_SETTLE = """
local moves, at = cmsgpack.unpack(ARGV[5]), 1
for level, counters in ipairs(shape) do
  local state = read(KEYS[level + 1], counters)
  local held = state.h[owner]
  local is_missing = held == nil
  held = held or {}
  for _, counter in ipairs(counters) do
    local name, _, window = unpack(counter)
    local released, charged = moves[at], moves[at + 1]
    at = at + 2
    if released > 0 and is_missing then
      charged = math.max(charged - released, 0)
    else
      local left = (held[name] or 0) - released
      held[name] = left > 0 and left or nil
    end
    if window > 0 then state.r[name][1] = state.r[name][1] + charged end
  end
  state.h[owner] = next(held) and held or nil
  write(KEYS[level + 1], state, counters)
end
renew()
return cmsgpack.pack({0, is_known and 1 or 0})
"""


@dataclass(frozen=True, slots=True)
class Script:
    """A script and the name under which the server keeps it."""

    text: bytes
    digest: bytes


def make_scripts(clock: str = _CLOCK) -> tuple[Script, Script]:
    """Return the scripts that reserve and settle. `clock`: Lua that sets `now`, in microseconds."""
    texts = [(clock + _COMMON + body).encode() for body in (_RESERVE, _SETTLE)]
    reserve, settle = (Script(text, hashlib.sha1(text, usedforsecurity=False).hexdigest().encode()) for text in texts)
    return reserve, settle


RESERVE, SETTLE = make_scripts()


class _CounterShape(NamedTuple):
    """A counter as a script receives it, as an array: `quantity` counts from 1, as arrays do in Lua."""

    dimension: str
    quantity: int
    window_us: int
    size: int


class PreparedCalls(PreparedLimits):
    """Limits in the form of the scripts, with the first parts of their calls in the name of `owner`, encoded: they are the same for each
    request. Empty until the first call."""

    __slots__ = ("owner", "reserve_start", "settle_start")

    def __init__(self, counters: tuple[SharedCounter, ...], keys: tuple[bytes, ...], shape: bytes) -> None:
        super().__init__(counters, keys, shape)
        self.owner = ""
        self.reserve_start = self.settle_start = b""


def prepare(organization_id: str, limits: Sequence[LevelLimits]) -> PreparedCalls:
    """Return the limits of one organization in the form of the scripts."""
    counters: list[SharedCounter] = []
    keys = [_name_leases(organization_id)]
    shape: list[list[_CounterShape]] = []
    for owner in limits:
        of_level = list_counters([owner])
        if of_level:
            keys.append(f"{_PREFIX}:{{{organization_id}}}:{owner.id}:{owner.model}".encode())
            shape.append(
                [
                    _CounterShape(each.dimension.name, _QUANTITIES.index(each.dimension.quantity) + 1, each.window_us, each.size)
                    for each in of_level
                ]
            )
            counters += of_level
    return PreparedCalls(tuple(counters), tuple(keys), msgspec.msgpack.encode(shape))


def _name_leases(organization_id: str) -> bytes:
    return f"{_PREFIX}:{{{organization_id}}}:leases".encode()


_read_answer = msgspec.msgpack.Decoder(tuple[int, ...]).decode
_write_numbers = msgspec.msgpack.Encoder().encode


def _decode_answer(reply: bytes) -> StoreAnswer:
    """Return the answer of a script. Raises ValueError if it is none."""
    numbers = _read_answer(reply)
    return StoreAnswer(numbers[0] == 1, numbers[1] == 1, numbers[2:])


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreOptions:
    """Address of the server, and how long it may take. `url`: redis:// or rediss:// (TLS), host, port and database number, with a user name
    if one is needed. `decision_seconds`: deadline of a decision. `lease_seconds`: see LEASE_SECONDS."""

    url: str
    password: str | None = field(default=None, repr=False)
    decision_seconds: float = 0.005
    lease_seconds: float = LEASE_SECONDS


@dataclass(frozen=True, slots=True)
class _Address:
    host: str
    port: int
    database: int
    user: str
    is_encrypted: bool


def parse_url(url: str) -> _Address:
    """Return the parts of a server's URL. Raises ValueError with a text for operators; the password does not belong into it."""
    parts = urlsplit(url)
    if parts.scheme not in ("redis", "rediss") or not parts.hostname or parts.query or parts.fragment:
        raise ValueError("expected redis://host:port/database, or rediss:// for TLS")
    if parts.password:
        raise ValueError("the password must not stand in the URL")
    database = parts.path.strip("/") or "0"
    if not (database.isascii() and database.isdigit()):
        raise ValueError("the path of the URL must be the number of a database")
    return _Address(parts.hostname, parts.port or 6379, int(database), parts.username or "", parts.scheme == "rediss")


class _Call:
    """A command that waits for its reply. `on_answer`: receives what a script answered, or None if there is no answer in time; then a late
    one as well. `on_reply`: receives the reply itself. A call without either waits for the reply all the same, because replies come in the
    order of their calls."""

    __slots__ = ("command", "is_overdue", "is_repeated", "on_answer", "on_reply", "sent_at")

    def __init__(self, command: bytes, sent_at: float, on_answer: "OnAnswer | None" = None, on_reply: "OnReply | None" = None) -> None:
        self.command = command
        self.sent_at = sent_at
        self.on_answer = on_answer
        self.on_reply = on_reply
        self.is_overdue = False
        self.is_repeated = False


OnAnswer = Callable[[StoreAnswer | None], None]
OnReply = Callable[[Reply], None]


class _Connection(asyncio.Protocol):
    """One connection: commands out, each reply to the call that it belongs to. `on_reply` is called with each call and its reply, and the
    time of the loop; `on_lost` once, with the reason."""

    def __init__(
        self, on_reply: "Callable[[_Connection, _Call, Reply, float], None]", on_lost: "Callable[[_Connection, str], None]"
    ) -> None:
        self.calls: deque[_Call] = deque()
        self.loop = asyncio.get_running_loop()
        self.transport: asyncio.Transport | None = None
        self._reader = ReplyReader()
        self._on_reply = on_reply
        self._on_lost = on_lost
        self._held: list[bytes] = []
        self._flush_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]

    def connection_lost(self, error: Exception | None) -> None:
        self.transport = None
        self._on_lost(self, "the connection was closed")

    def data_received(self, data: bytes) -> None:
        try:
            replies = self._reader.feed(data)
        except ValueError as error:
            self.abort()
            self._on_lost(self, f"the server sent {error}")
            return
        now = self.loop.time()
        calls = self.calls
        for reply in replies:
            if not calls:
                self.abort()
                self._on_lost(self, "the server sent a reply to nothing")
                return
            self._on_reply(self, calls.popleft(), reply, now)

    def send(self, call: _Call) -> None:
        """Send the command of a call, after those that wait for it."""
        self.calls.append(call)
        if self.transport is not None:
            command = call.command
            if self._held:
                self._held.append(command)
                command = b"".join(self._held)
                self._held.clear()
            self.transport.write(command)

    def send_later(self, call: _Call) -> None:
        """Send the command of a call with the next one, or after SETTLE_WAIT_SECONDS."""
        self.calls.append(call)
        self._held.append(call.command)
        if self._flush_timer is None:
            self._flush_timer = self.loop.call_later(SETTLE_WAIT_SECONDS, self._flush)

    def _flush(self) -> None:
        self._flush_timer = None
        self.flush()

    def flush(self) -> None:
        """Send what waits for another command."""
        if self._held and self.transport is not None:
            self.transport.write(b"".join(self._held))
        self._held.clear()

    def abort(self) -> None:
        """Close the connection at once; what is open gets no reply."""
        if self._flush_timer is not None:
            self._flush_timer.cancel()
            self._flush_timer = None
        self._held.clear()
        if self.transport is not None:
            self.transport.abort()
        self.calls.clear()


class StoreMetrics:
    """Counts of one store. `refused`: calls that were not sent because too many waited."""

    def __init__(self) -> None:
        self.unanswered = 0
        self.failures = 0
        self.refused = 0
        self.seconds_max = 0.0


class RedisCounters:
    """The store in one Redis or Valkey server: `gateway.ports.CounterStore`. Use it from one event loop, with `run` as a background task.

    `recover` is called when the server can be used again, before requests use it: it passes what is held to the store. `alarm` is called
    when the store becomes unavailable, and when it is available again.
    """

    def __init__(self, options: StoreOptions, *, recover: Callable[[], None], alarm: Callable[[str, dict[str, object]], None]) -> None:
        """Raises ValueError if the URL is not valid."""
        self.metrics = StoreMetrics()
        self._options = options
        self._address = parse_url(options.url)
        self._tls = ssl.create_default_context() if self._address.is_encrypted else None
        self._recover = recover
        self._alarm = alarm
        self._connection: _Connection | None = None
        self._is_available = False
        self._lost = asyncio.Event()
        self._strikes = 0
        self._timer: asyncio.TimerHandle | None = None
        self._lease = b"%d" % int(options.lease_seconds * 1_000_000)
        self._reason = ""

    @property
    def is_available(self) -> bool:
        """Return whether the circuit is closed."""
        return self._is_available

    def prepare(self, organization_id: str, limits: Sequence[LevelLimits]) -> PreparedLimits:
        """Return these limits of one organization in the form of the scripts."""
        return prepare(organization_id, limits)

    # ---- Calls -------------------------------------------------------------------------------------------------------

    def reserve(self, prepared: PreparedLimits, owner: str, units: tuple[int, ...], done: OnAnswer) -> None:
        """Admit a request at all levels, or change nothing."""
        assert isinstance(prepared, PreparedCalls)
        if prepared.owner != owner:
            self._prepare_calls(prepared, owner)
        encoded = _write_numbers(units)
        self._call(b"%b$%d\r\n%b\r\n$0\r\n\r\n" % (prepared.reserve_start, len(encoded), encoded), done)

    def read(self, prepared: PreparedLimits, done: OnAnswer) -> None:
        """Return the states of counters, as a refusal."""
        self._call(self._encode(RESERVE, prepared.keys, "", "", prepared.shape, [_NO_UNITS, b"read"]), done)

    def settle(self, prepared: PreparedLimits, owner: str, moves: Sequence[int], previous: str = "") -> None:
        """Change what an owner holds, and charge units."""
        assert isinstance(prepared, PreparedCalls)
        encoded = _write_numbers(moves)
        if previous:
            self._call(self._encode(SETTLE, prepared.keys, owner, previous, prepared.shape, [encoded]), None)
            return
        if prepared.owner != owner:
            self._prepare_calls(prepared, owner)
        self._call(b"%b$%d\r\n%b\r\n" % (prepared.settle_start, len(encoded), encoded), None, may_wait=True)

    def renew(self, organization_id: str, owner: str, done: Callable[[bool], None]) -> None:
        """Renew the lease of an owner in an organization."""

        def receive(answer: StoreAnswer | None) -> None:
            if answer is not None:
                done(answer.is_lease_known)

        self._call(self._encode(SETTLE, (_name_leases(organization_id),), owner, "", _NO_SHAPE, [_NO_MOVES]), receive)

    def _prepare_calls(self, prepared: PreparedCalls, owner: str) -> None:
        """Encode what the calls for these limits in the name of `owner` have in common."""
        prepared.owner = owner
        prepared.reserve_start = self._encode_start(RESERVE, prepared.keys, owner, "", prepared.shape, 2)
        prepared.settle_start = self._encode_start(SETTLE, prepared.keys, owner, "", prepared.shape, 1)

    def _encode_start(self, script: Script, keys: tuple[bytes, ...], owner: str, previous: str, shape: bytes, rest: int) -> bytes:
        """Return a call of a script up to its last `rest` arguments."""
        parts = [b"EVALSHA", script.digest, b"%d" % len(keys), *keys, owner.encode(), self._lease, previous.encode(), shape]
        return b"*%d\r\n%b" % (len(parts) + rest, encode_arguments(parts))

    def _encode(self, script: Script, keys: tuple[bytes, ...], owner: str, previous: str, shape: bytes, rest: Sequence[bytes]) -> bytes:
        """Return a call of a script."""
        return self._encode_start(script, keys, owner, previous, shape, len(rest)) + encode_arguments(rest)

    def _call(self, command: bytes, on_answer: OnAnswer | None, *, may_wait: bool = False) -> None:
        connection = self._connection
        if connection is None or len(connection.calls) >= CALLS_MAX:
            self.metrics.refused += 1
            if on_answer is not None:
                on_answer(None)
            return
        call = _Call(command, connection.loop.time(), on_answer)
        if may_wait:
            connection.send_later(call)
        else:
            connection.send(call)
        if self._timer is None:
            self._arm()

    def _receive(self, connection: _Connection, call: _Call, reply: Reply, now: float) -> None:
        """Take the reply to a call."""
        if call.on_reply is not None:
            call.on_reply(reply)
            return
        if isinstance(reply, bytes):
            seconds = now - call.sent_at
            if seconds > self.metrics.seconds_max:
                self.metrics.seconds_max = seconds
            if not call.is_overdue:
                self._strikes = 0
            if call.on_answer is not None:
                call.on_answer(_decode_answer(reply))
        elif isinstance(reply, ReplyError) and reply.code == "NOSCRIPT" and not call.is_repeated:
            if self._connection is connection:
                self._load_scripts(connection)
                call.is_repeated = True
                connection.send(call)
        else:
            if isinstance(reply, ReplyError):
                self.metrics.failures += 1
                self._open_circuit(f"the server answered {reply.code}")
            if call.on_answer is not None:
                call.on_answer(None)

    # ---- Deadlines ---------------------------------------------------------------------------------------------------

    def _arm(self) -> None:
        """Set the timer for the first call that is not overdue yet."""
        self._timer = None
        connection = self._connection
        if connection is None:
            return
        for call in connection.calls:
            if not call.is_overdue:
                due_at = call.sent_at + self._options.decision_seconds - GRACE_SECONDS
                self._timer = asyncio.get_running_loop().call_at(due_at, self._grant_grace)
                return

    def _grant_grace(self) -> None:
        """Let the loop read once more what has arrived before calls are overdue."""
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(GRACE_SECONDS, self._expire, loop.time() - self._options.decision_seconds + GRACE_SECONDS)

    def _expire(self, sent_before: float) -> None:
        connection = self._connection
        overdue = [] if connection is None else [call for call in connection.calls if not call.is_overdue and call.sent_at <= sent_before]
        for call in overdue:
            call.is_overdue = True
        self._arm()
        for call in overdue:
            self.metrics.unanswered += 1
            self._strikes += 1
            if call.on_answer is not None:
                call.on_answer(None)
        if self._strikes >= STRIKES_MAX:
            self._open_circuit("the server did not answer in time")

    # ---- The circuit -------------------------------------------------------------------------------------------------

    def _open_circuit(self, reason: str) -> None:
        """Give up the connection. Every open call is reported as unanswered."""
        connection, self._connection = self._connection, None
        if connection is None:
            return
        self._reason = reason
        calls = [call for call in connection.calls if not call.is_overdue]
        connection.abort()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._is_available = False
        self._lost.set()
        for call in calls:
            if call.on_answer is not None:
                call.on_answer(None)

    def _lose(self, connection: _Connection, reason: str) -> None:
        if connection is self._connection:
            self._open_circuit(reason)

    async def run(self) -> None:
        """Keep a connection that can be used, until cancelled."""
        unavailable_since: float | None = None
        try:
            while True:
                self._lost.clear()
                reason = await self.connect()
                if not reason:
                    if unavailable_since is not None:
                        seconds = round(time.monotonic() - unavailable_since, 3)
                        self._alarm("limits_store_available", {"seconds": seconds})
                        unavailable_since = None
                    await self._lost.wait()
                    reason = self._reason
                if unavailable_since is None:
                    unavailable_since = time.monotonic()
                    self._alarm("limits_store_unavailable", {"reason": reason})
                await asyncio.sleep(PROBE_SECONDS)
        finally:
            self.disconnect("the gateway stops")

    async def probe(self) -> str:
        """Connect once, as a gateway does, and end the connection. Return why the server cannot be used, or an empty text."""
        reason = await self.connect()
        self.disconnect("only asked whether it can be used")
        return reason

    def disconnect(self, reason: str) -> None:
        """End the connection; every open call is reported as unanswered."""
        if self._connection is not None:
            self._connection.flush()
        self._open_circuit(reason)

    async def connect(self) -> str:
        """Connect and prove that the server can be used. Return why not, or an empty text."""
        address = self._address
        loop = asyncio.get_running_loop()
        connection: _Connection | None = None
        probe = self._encode(SETTLE, (_name_leases("probe"),), "probe", "", _NO_SHAPE, [_NO_MOVES])
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                _, connection = await loop.create_connection(self._make_connection, address.host, address.port, ssl=self._tls)
                for command in [*self._list_greetings(), probe]:  # the first run of a script takes longer than the others
                    reply = await self._exchange(connection, command)
                    if isinstance(reply, ReplyError):
                        connection.abort()
                        return f"the server answered {reply.code}"
            self._strikes = 0
            async with asyncio.timeout(self._options.decision_seconds):
                reply = await self._exchange(connection, probe)
        except (TimeoutError, OSError) as error:
            if connection is not None:
                connection.abort()
            return "the server did not answer in time" if isinstance(error, TimeoutError) else f"{type(error).__name__}"
        if not isinstance(reply, bytes):
            connection.abort()
            return f"the server answered {reply.code}" if isinstance(reply, ReplyError) else "the connection was closed"
        self._connection = connection
        self._recover()
        self._is_available = self._connection is connection
        return ""

    def _make_connection(self) -> _Connection:
        return _Connection(self._receive, self._lose)

    def _list_greetings(self) -> list[bytes]:
        address, commands = self._address, []
        if self._options.password is not None:
            user = [address.user.encode()] if address.user else []
            commands.append(encode_command([b"AUTH", *user, self._options.password.encode()]))
        if address.database:
            commands.append(encode_command([b"SELECT", b"%d" % address.database]))
        return commands + [encode_command([b"SCRIPT", b"LOAD", script.text]) for script in (RESERVE, SETTLE)]

    def _load_scripts(self, connection: _Connection) -> None:
        for script in (RESERVE, SETTLE):
            call = _Call(encode_command([b"SCRIPT", b"LOAD", script.text]), connection.loop.time(), on_reply=lambda _: None)
            call.is_overdue = True  # it does not count against the server
            connection.send(call)

    async def _exchange(self, connection: _Connection, command: bytes) -> Reply:
        """Return the reply to a command of the handshake."""
        future: asyncio.Future[Reply] = connection.loop.create_future()

        def receive(reply: Reply) -> None:
            if not future.done():
                future.set_result(reply)

        connection.send(_Call(command, connection.loop.time(), on_reply=receive))
        return await future


def read_states(options: StoreOptions, organization_id: str, limits: Sequence[LevelLimits]) -> tuple[CounterState, ...] | None:
    """Return the states of these limits' counters, over a connection of its own; None if the server cannot be used. Blocks for at most
    CONNECT_SECONDS and the deadlines of two decisions. Raises ValueError if the URL is not valid."""

    async def read() -> tuple[CounterState, ...] | None:
        store = RedisCounters(options, recover=lambda: None, alarm=lambda _event, _fields: None)
        if await store.connect():
            return None
        answered: asyncio.Future[StoreAnswer | None] = asyncio.get_running_loop().create_future()
        store.read(prepare(organization_id, limits), answered.set_result)
        answer = await answered
        store.disconnect("the counters were read")
        return None if answer is None else tuple(list_states(answer.numbers))

    return asyncio.run(read())


_NO_SHAPE = msgspec.msgpack.encode([])
_NO_MOVES = msgspec.msgpack.encode([])
_NO_UNITS = msgspec.msgpack.encode([0] * len(_QUANTITIES))
