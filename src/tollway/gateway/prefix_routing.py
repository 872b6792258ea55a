"""Selection of one of several deployments that serve a model equally well: the policy "home and cost".

The cost of a deployment for a request is the number of prompt tokens that it must compute before the first token of the answer: those that
wait there already, and those of this prompt that its prefix cache does not hold. Candidates are the *home* of the prompt's prefix, the
*owner* (the deployment to which this gateway last sent the longest known prefix of it), and OTHERS_MAX at random; the cheapest one is
chosen.

The home is found by rendezvous hashing, so all gateways agree on it without talking, and a deployment that leaves moves only its own
prefixes. The prefix by which it is found, the *anchor*, is the shortest one that carries less than a quarter of a deployment's share of the
model's traffic: a system prompt that everybody sends must not gather everybody at one deployment.

A prefix is known by checksums at BOUNDARIES. Beyond the first KiB only the last WINDOW_BYTES before each boundary are looked at, so a long
prompt costs no more than a short one. Two prompts that differ only where nothing is looked at, and shift nothing, count as one prefix: the
guess about a cache is wrong then and the prompt is computed, nothing else.

A client could make its prompts look alike, or name one session for all of them, to gather them at one deployment as if they cost nothing
there. So a prefix or session that carries more than its part of the traffic is charged with the whole prompt.

The load of a deployment is what was sent there and waits for the begin of its answer, times the number of gateways, because the others send
as much; corrected by what the engine itself reports (`gateway.upstreams.load_reports`).

Where the events of an engine are followed (`gateway.held_prefixes`), what it says that it holds takes the place of that estimate.

Pure: randomness is the order of the arguments. What is remembered is bounded: the prefixes of two generations of TABLE_MAX, and the counts
of two windows of traffic.
"""

from math import exp
from typing import Final
from zlib import crc32

BOUNDARIES: Final = tuple(1024 << doubling for doubling in range(9))
"""Lengths in bytes at which prefixes are compared, 1 KiB to 256 KiB."""
WINDOW_BYTES: Final = 128
TABLE_MAX: Final = 32_768
"""Prefixes after which a new generation of what is remembered begins; there are two. An entry is about 100 bytes."""
TRAFFIC_WINDOW: Final = 4_096
"""Requests in which the traffic of prefixes is counted; two windows are looked at."""
ANCHOR_SHARE: Final = 4
"""Part of the share of one deployment that one anchor may carry of the traffic: a quarter."""
ANCHOR_REQUESTS_MIN: Final = 8
"""Requests that a prefix may always have: shares of less traffic say nothing."""
HOME_HOLD: Final = 0.5
"""Part of a prompt that its home is taken to hold. It is more than homes hold on the average, because what is sent to a home is held there
for the next request; with 0.7 prompts wait longer for little more hits, above all those that share nothing (`python -m bench.routing`)."""
FOLLOWED_HOME_HOLD: Final = 0.4
"""The same where the engine says what it holds: what counts is only what the next requests will find there."""
OTHERS_MAX: Final = 8
"""Deployments weighed beside home and owner. In a larger group they are a random sample, so that many gateways do not all see the same one
as the cheapest."""
CHARGE_TOKENS_MIN: Final = 16.0
"""Tokens that each request is charged with at least: a block of an engine's prefix cache."""

HOLDERS_MAX: Final = 8
"""Deployments that hold a prefix by their own word and are weighed one by one. Where more hold it, those of the sample are looked at."""
UNCONFIRMED_MAX: Final = 256
"""Tagged requests sent to an engine without any event from it, after which its events count as stopped. Prompts that are held entirely
cause none, so some requests without are normal."""

REPORT_SECONDS: Final = 1.0
"""Time in which a report of an engine loses all but a third of its weight: about what a prompt waits at a busy engine."""
MEAN_PART: Final = 1 / 64
"""Part by which the mean charge of a request follows each one."""

CANDIDATE_KINDS = ("home", "owner", "other", "holder")
"""Reasons for which a deployment is a candidate; a holder has the prefix by its engine's own word."""
_HOME: Final = 0
_OWNER: Final = 1
_OTHER: Final = 2
_HOLDER: Final = 3


class Load:
    """Load of one engine. `queued_tokens`: estimate of the prompt tokens that wait there. `point`: in [0, 1), of the engine's address,
    the same at every gateway. Deployments at one address, such as the adapters of a model and their base, have one load.

    What this gateway sent, times the number of gateways, is an estimate that follows each request and sees only a part of the traffic. What
    the engine reports sees everything and is old. So a report sets the difference between both, and that is kept while it fades away
    (`fade`), because what it was due to is computed or answered before long.

    `is_followed`: the engine says which prefixes it holds. `unconfirmed`: requests sent there since it last said something of its cache.
    """

    __slots__ = ("_correction", "_mean_tokens", "_requests", "_sent_tokens", "is_followed", "point", "queued_tokens", "unconfirmed")

    def __init__(self, address: str) -> None:
        self.point = (crc32(address.encode()) << 21 | crc32(address.encode(), 1) >> 11) * 2.0**-53
        self.queued_tokens = 0.0
        self._sent_tokens = 0.0
        self._requests = 0
        self._mean_tokens = 0.0
        self._correction = 0.0
        self.is_followed = False
        self.unconfirmed = 0

    def send(self, tokens: float) -> None:
        """Add `tokens` of a request of this gateway that was sent, and of all that the other gateways are taken to send beside it."""
        self._requests += 1
        self._mean_tokens += (tokens - self._mean_tokens) * MEAN_PART
        sent = self._sent_tokens = self._sent_tokens + tokens
        queued = sent + self._correction
        self.queued_tokens = queued if queued > 0.0 else 0.0

    def begin_answer(self, tokens: float) -> None:
        """Subtract `tokens` that were sent and need no more waiting for."""
        self._requests -= 1
        sent = self._sent_tokens - tokens
        if sent < 0.0 or not self._requests:
            sent = 0.0
        self._sent_tokens = sent
        queued = sent + self._correction
        self.queued_tokens = queued if queued > 0.0 else 0.0

    def report_tokens(self, tokens: float) -> None:
        """The engine reports that so many prompt tokens wait there."""
        self._correct(tokens)

    def report_requests(self, requests: float, gateways: int) -> None:
        """The engine reports that so many requests wait there. Those of the other `gateways` count with the mean of what this one sent."""
        others = requests - self._requests
        self._correct((self._sent_tokens + (others * self._mean_tokens if others > 0.0 else 0.0)) / gateways)

    def _correct(self, queued: float) -> None:
        self._correction = queued - self._sent_tokens
        self.queued_tokens = queued

    def fade(self, seconds: float) -> None:
        """Forget a part of the last report, after so many seconds."""
        correction = self._correction
        if correction:
            correction = self._correction = 0.0 if abs(correction) < 1.0 else correction * exp(-seconds / REPORT_SECONDS)
            queued = self._sent_tokens + correction
            self.queued_tokens = queued if queued > 0.0 else 0.0


class Charge:
    """The load that a request is to the deployment that it is sent to, until its answer begins. `chosen`: the deployment for which
    `uncached_tokens` were estimated; any other one is charged with all `tokens`. `gateways`: how many send as much. `ahead_tokens`: prompt
    tokens that the deployment is taken to compute before the first token, the request's own included."""

    __slots__ = ("_charged", "_charged_tokens", "ahead_tokens", "chosen", "gateways", "tokens", "uncached_tokens")

    def __init__(self, chosen: Load, tokens: float, uncached_tokens: float, gateways: int) -> None:
        self.chosen = chosen
        self.tokens = tokens
        self.uncached_tokens = uncached_tokens
        self.gateways = gateways
        self.ahead_tokens = 0.0
        self._charged: Load | None = None
        self._charged_tokens = 0.0

    def begin(self, load: Load) -> None:
        """The request is sent to the deployment of this load. Short prompts count as CHARGE_TOKENS_MIN, or nothing would spread them."""
        tokens = self.uncached_tokens if load is self.chosen else self.tokens
        self._charged = load
        self.ahead_tokens = load.queued_tokens + tokens
        self._charged_tokens = max(tokens, CHARGE_TOKENS_MIN) * self.gateways
        load.send(self._charged_tokens)

    def release(self) -> None:
        """Its answer began, or the attempt ended. Doing so twice changes nothing."""
        load, self._charged = self._charged, None
        if load is not None:
            load.begin_answer(self._charged_tokens)


def hash_prefixes(body: bytes, start: int, salt: int) -> list[int]:
    """Return a checksum of the prefix of a prompt at each of BOUNDARIES that it reaches; the prompt begins at `start`.

    `salt`: separates prompts whose prefixes no engine shares, 32 bits.
    """
    length = len(body) - start
    prefixes: list[int] = []
    checksum = salt
    begin = start
    for boundary in BOUNDARIES:
        if boundary > length:
            break
        end = start + boundary
        checksum = crc32(body[begin:end], checksum)
        prefixes.append(checksum)
        begin = end + boundary - WINDOW_BYTES
    return prefixes


def find_idlest_and_home(anchor: int, group: list[Load]) -> tuple[int, int]:
    """Return the index of the shortest queue among the first OTHERS_MAX of a group, and that of an anchor's home. One loop finds both,
    because each request among equal deployments pays for it.

    The home is found by rendezvous hashing (Thaler and Ravishankar 1998), the same at every gateway. The multiples of an anchor by
    different points, modulo 1, are spread independently of each other (Weyl 1916), so each deployment has the greatest of them equally
    often.
    """
    key = float(anchor + 1)
    idlest = home = 0
    least = group[0].queued_tokens
    highest = -1.0
    for index, load in enumerate(group):
        if load.queued_tokens < least and index < OTHERS_MAX:
            least = load.queued_tokens
            idlest = index
        score = key * load.point % 1.0
        if score > highest:
            highest = score
            home = index
    return idlest, home


def find_home_by_weight(anchor: int, group: list[Load], weights: list[int]) -> int:
    """Return the index of an anchor's home where deployments have shares: weighted rendezvous hashing, the same at every gateway. A change
    of one weight moves only the anchors that the changed share gains or loses.

    `weights`: positive. A uniform number to the power of 1/weight is the greatest one with a probability of the weight's share (Efraimidis
    and Spirakis 2006).
    """
    key = float(anchor + 1)
    scores = [(key * load.point % 1.0) ** (1.0 / weight) for load, weight in zip(group, weights, strict=True)]
    return scores.index(max(scores))


class HeldPrefixes:
    """Engines by the prefixes that they hold by their own word, of all engines that are followed. A prefix is the checksum of
    `hash_prefixes` with the key of its model, so that the adapters of one engine differ."""

    __slots__ = ("_holders",)

    def __init__(self) -> None:
        self._holders: dict[int, dict[Load, None]] = {}

    def find(self, prefix: int) -> "dict[Load, None] | None":
        """Return the engines that hold a prefix; None if there is none."""
        return self._holders.get(prefix)

    def add(self, prefix: int, load: Load) -> None:
        """An engine holds a prefix now."""
        self._holders.setdefault(prefix, {})[load] = None

    def remove(self, prefix: int, load: Load) -> None:
        """An engine holds a prefix no more."""
        holders = self._holders.get(prefix)
        if holders is not None:
            holders.pop(load, None)
            if not holders:
                del self._holders[prefix]

    def __len__(self) -> int:
        return len(self._holders)


class Selector:
    """Memory of one gateway for the prompts of a model, and the choice by it. `key`: of the model, 32 bits, by which `held` knows its
    prefixes. `held`: None where no engine is followed."""

    __slots__ = ("_counted", "_counted_before", "_counts", "_counts_before", "_owners", "_owners_before", "held", "key")

    def __init__(self, key: int = 0, held: HeldPrefixes | None = None) -> None:
        self.key = key
        self.held = held
        self._owners: dict[int, Load] = {}
        self._owners_before: dict[int, Load] = {}
        self._counts: dict[int, int] = {}
        self._counts_before: dict[int, int] = {}
        self._counted = self._counted_before = 0

    def choose(self, group: list[Load], prefixes: list[int], session: int, prompt_bytes: int, tokens: float) -> tuple[int, float, int]:
        """Return the index of the deployment with the lowest cost for a prompt, the tokens of the prompt that it is charged with, and the
        index of the reason in CANDIDATE_KINDS. The deployment is remembered as the owner of the prompt's prefixes.

        `group`: usable deployments, at least one, in random order. `prefixes`: of `hash_prefixes`. `session`: checksum of the session that
        the client named, which takes the place of the prefixes; 0 for none. `tokens`: about how many the prompt has.
        """
        if session:
            prefixes = [session]
        elif not prefixes:
            return find_idlest_and_home(0, group[:OTHERS_MAX])[0], tokens, _OTHER
        level = self._count(prefixes, len(group))
        is_hot = level < 0
        chosen, home = find_idlest_and_home(prefixes[level], group)
        best, uncached = group[chosen].queued_tokens + tokens, tokens
        owners = self._owners
        told = self.held
        owner, held = -1, 0.0
        for known_level in range(len(prefixes) - 1, -1, -1):
            prefix = prefixes[known_level]
            known = owners.get(prefix) or self._owners_before.get(prefix)
            if known is not None:
                if (told is None or not known.is_followed) and known in group:
                    owner = group.index(known)
                    held = HOME_HOLD if session else BOUNDARIES[known_level] / prompt_bytes
                break
        kind = _OTHER
        load = group[home]
        hold = HOME_HOLD if told is None or not load.is_followed else FOLLOWED_HOME_HOLD
        left = tokens * (1.0 - (held if owner == home and held > hold else hold))
        cost = load.queued_tokens + left
        if cost < best:
            best, chosen, uncached, kind = cost, home, left, _HOME
        if owner >= 0 and owner != home:
            load = group[owner]
            left = tokens * (1.0 - held)
            cost = load.queued_tokens + left
            if cost < best:
                best, chosen, uncached, kind = cost, owner, left, _OWNER
        if told is not None and not session:
            holder, part = self._find_holder(told, group, prefixes, prompt_bytes, tokens, best)
            if holder >= 0:
                chosen, uncached, kind = holder, tokens * (1.0 - part), _HOLDER
        load = group[chosen]
        for prefix in prefixes:
            owners[prefix] = load
        if len(owners) > TABLE_MAX:
            self._owners_before, self._owners = owners, {}
        return chosen, tokens if is_hot else uncached, kind

    def _find_holder(
        self, held: HeldPrefixes, group: list[Load], prefixes: list[int], prompt_bytes: int, tokens: float, best: float
    ) -> tuple[int, float]:
        """Return the index of the deployment whose cost is lowest and below `best`, of those that hold a prefix by their own word, and the
        part of the prompt that it holds; -1 if there is none."""
        found, found_part = -1, 0.0
        for level in range(len(prefixes) - 1, -1, -1):
            holders = held.find(prefixes[level] ^ self.key)
            if holders is None:
                continue
            part = BOUNDARIES[level] / prompt_bytes
            left = tokens * (1.0 - part)
            for load in list(holders) if len(holders) <= HOLDERS_MAX else group[:OTHERS_MAX]:
                if load in holders and load in group and load.unconfirmed <= UNCONFIRMED_MAX and load.queued_tokens + left < best:
                    best, found, found_part = load.queued_tokens + left, group.index(load), part
        return found, found_part

    def find_anchor(self, prefixes: list[int], session: int, deployments: int) -> int:
        """Count a prompt and return its anchor: its session, or the shortest of its prefixes that carries little enough traffic. 0 if it
        has none, so that nobody can gather the traffic in one share."""
        if session:
            prefixes = [session]
        level = self._count(prefixes, deployments)
        return prefixes[level] if level >= 0 else 0

    def _count(self, prefixes: list[int], deployments: int) -> int:
        """Count a prompt. Return the level of the shortest of its prefixes that carries little enough traffic, -1 if each carries more."""
        if self._counted >= TRAFFIC_WINDOW:
            self._counts_before, self._counts = self._counts, {}
            self._counted_before, self._counted = self._counted, 0
        self._counted += 1
        most = (self._counted + self._counted_before) // (ANCHOR_SHARE * deployments)
        if most < ANCHOR_REQUESTS_MIN:
            most = ANCHOR_REQUESTS_MIN
        counts, before = self._counts, self._counts_before
        found = -1
        for level, prefix in enumerate(prefixes):
            count = counts.get(prefix, 0) + 1
            counts[prefix] = count
            if found < 0 and count + before.get(prefix, 0) <= most:
                found = level
        return found
