"""Reconciliation: what the ledger says that engines did, against what the engines counted themselves, by hour.

Theory of operation. An engine's counters only grow, from 0 at its start. Between two readings lies what it did, whoever asked for it; a
reading below the one before it means that the engine was started anew, and then all that it shows is what it did since (as Prometheus'
`increase` has it; what it did between the last reading and its end is lost). A start is not seen if the engine did more since than in all
its life before, within one interval: what is then lost is what it does in a minute. Readings tile time: an hour is covered if they do so
from its first microsecond to its last. Where two readings stand on both sides of an hour's edge, what lies between them is shared out in
proportion to time; readings are taken at the edge, so that is next to nothing, unless one was missed: then the hour is an estimate.

The ledger's side are the tokens that requests used (not those that were billed) by the deployment that served them: input in the hour of
the first token, because that is when a prompt has been computed; output in the hour of the end.

What can be compared is a *line*: deployments at one address share its counters, and a deployment that moved from one address to another
within the hour binds both. Lines of one model (or of models that share an address) make a row. Pure: no clock, no I/O.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum

from tollway.domain.billing_classes import Direction, Quantities
from tollway.domain.usage import Final, Outcome

HOUR_US = 3_600_000_000

SPAN_HOURS_MAX = 48
"""Readings further apart than this say nothing about single hours any more: observation begins anew."""

RESETS_MAX = 3
"""Starts of an engine in one hour that are believed. More look like several engines that answer in turn behind one address, and then
neither their sum nor their differences mean anything."""

UNKNOWN_DEPLOYMENT = ""
"""Deployment of requests whose gateway died: their record does not say which engine served them."""


# ---- The engine's side ------------------------------------------------------------------------------------------------


class PromptCount(StrEnum):
    """Count of the prompt of a request for several choices in an engine's counter."""

    ONCE = "once"
    PER_CHOICE = "per_choice"  # each choice runs as a request of its own
    PER_CHOICE_AND_ONCE = "per_choice_and_once"  # as before, after a request that only fills the prefix cache


@dataclass(frozen=True, slots=True)
class Reading:
    """An engine's counters at an instant: tokens since its start."""

    at: int
    prompt_tokens: int
    output_tokens: int


@dataclass(frozen=True, slots=True)
class Increment:
    """Work of an engine between two readings, as far as it falls into the hour that begins at `start_at`. `covered_us`: how much of
    the hour lies between the two. `resets`: 1 if the engine was started anew there. `is_estimated`: the share of this hour is a guess."""

    start_at: int
    prompt_tokens: int
    output_tokens: int
    covered_us: int
    resets: int = 0
    is_estimated: bool = False


def hour_of(at: int) -> int:
    """The start of the hour (UTC) that an instant falls into."""
    return at - at % HOUR_US


def split(before: Reading, after: Reading, gap_us: int) -> list[Increment]:
    """Return the work between two readings of an engine, by hour. Nothing if `after` is not the later one, or if they are too far apart.

    `gap_us`: readings further apart than this that stand in different hours make estimates.
    """
    span_us = after.at - before.at
    if span_us <= 0 or span_us > SPAN_HOURS_MAX * HOUR_US:
        return []
    is_reset = after.prompt_tokens < before.prompt_tokens or after.output_tokens < before.output_tokens
    prompt = after.prompt_tokens - (0 if is_reset else before.prompt_tokens)
    output = after.output_tokens - (0 if is_reset else before.output_tokens)
    is_estimated = span_us > gap_us and hour_of(before.at) != hour_of(after.at - 1)
    increments, at, told_prompt, told_output = [], before.at, 0, 0
    while at < after.at:
        start_at = hour_of(at)
        end = min(start_at + HOUR_US, after.at)
        until_prompt, until_output = prompt * (end - before.at) // span_us, output * (end - before.at) // span_us
        is_last = end == after.at
        increments.append(
            Increment(start_at, until_prompt - told_prompt, until_output - told_output, end - at, int(is_reset and is_last), is_estimated)
        )
        at, told_prompt, told_output = end, until_prompt, until_output
    return increments


@dataclass(frozen=True, slots=True)
class EngineHour:
    """Readings of the engine at an address in one hour. `counts_cached`: whether its prompt counter has what came from its prefix
    cache, too; `prompt_count`: how often it has the prompt of several choices. `samples`, `failures`: readings that worked and that did
    not."""

    start_at: int
    address: str
    prompt_tokens: int
    output_tokens: int
    counts_cached: bool
    covered_us: int
    is_estimated: bool
    resets: int
    samples: int
    failures: int
    prompt_count: PromptCount = PromptCount.ONCE


@dataclass(frozen=True, slots=True)
class Member:
    """A deployment that had this address at some time in the hour."""

    start_at: int
    address: str
    deployment_id: str
    model: str


# ---- The ledger's side ------------------------------------------------------------------------------------------------

UsageKey = tuple[int, str, str]
"""Start of the hour, deployment (UNKNOWN_DEPLOYMENT if nobody knows), model."""


@dataclass(slots=True)
class EngineUsage:
    """Usage by requests in one hour: requests that ended, those of them that did not complete and those that more than one attempt
    was made for (both cost an engine tokens that no bill shows), those whose usage report was not believed, and tokens.

    `repeated_input`, `repeated_cached_input`: input and cached input of requests for several choices, once for each choice but the first.
    `forked_input`: input of these requests, cached input included, once. See `PromptCount`.
    """

    requests: int = 0
    incomplete: int = 0
    retried: int = 0
    anomalous: int = 0
    input: int = 0
    cached_input: int = 0
    output: int = 0
    repeated_input: int = 0
    repeated_cached_input: int = 0
    forked_input: int = 0

    def add_input(self, used: Quantities, choices: int) -> None:
        """Add the input of requests that each asked for so many choices of every prompt."""
        cached = used.cached_input
        computed = used.sum_of(Direction.INPUT) - cached
        self.input += computed
        self.cached_input += cached
        if choices > 1:
            self.repeated_input += computed * (choices - 1)
            self.repeated_cached_input += cached * (choices - 1)
            self.forked_input += computed + cached

    def count_prompt(self, prompt_count: "PromptCount", *, counts_cached: bool) -> int:
        """Return the tokens that an engine's prompt counter shows for these requests, if it counts so."""
        counted = self.input + (self.cached_input if counts_cached else 0)
        if prompt_count is PromptCount.ONCE:
            return counted
        counted += self.repeated_input + (self.repeated_cached_input if counts_cached else 0)
        return counted + (self.forked_input if prompt_count is PromptCount.PER_CHOICE_AND_ONCE else 0)

    def add(self, other: "EngineUsage") -> None:
        """Add the sums of other requests."""
        self.requests += other.requests
        self.incomplete += other.incomplete
        self.retried += other.retried
        self.anomalous += other.anomalous
        self.input += other.input
        self.cached_input += other.cached_input
        self.output += other.output
        self.repeated_input += other.repeated_input
        self.repeated_cached_input += other.repeated_cached_input
        self.forked_input += other.forked_input


def sum_usage(finals: Iterable[Final]) -> dict[UsageKey, EngineUsage]:
    """Return what these requests used, by hour, deployment and model. Those that no engine heard of and that used nothing are left out."""
    sums: dict[UsageKey, EngineUsage] = {}
    for final in finals:
        used = final.used
        deployment_id, model, ended_at = final.deployment_id or UNKNOWN_DEPLOYMENT, final.admit.model, final.ended_at
        if not deployment_id and not used.bits:
            continue
        key = (ended_at - ended_at % HOUR_US, deployment_id, model)
        found = sums.get(key)
        if found is None:
            found = sums[key] = EngineUsage()
        found.requests += 1
        found.incomplete += final.outcome is not Outcome.COMPLETED
        found.retried += final.attempts > 1
        found.anomalous += final.anomaly is not None
        found.output += used.sum_of(Direction.OUTPUT)
        first_at = final.first_token_at
        if first_at is not None and first_at < key[0]:
            early = (first_at - first_at % HOUR_US, deployment_id, model)
            found = sums.get(early)
            if found is None:
                found = sums[early] = EngineUsage()
        found.add_input(used, final.admit.choices)
    return sums


# ---- The comparison ---------------------------------------------------------------------------------------------------


class HourState(StrEnum):
    """Verdict on an hour, best first."""

    OK = "ok"
    OPEN = "open"  # not over, or not long enough for all its records to have arrived
    NOT_OBSERVED = "not_observed"  # an engine that serves it was not read, or has no counters
    PARTIAL = "partial"  # not read all the time, or the engine was started anew: the difference proves nothing
    DRIFT = "drift"


_SEVERITY = {state: rank for rank, state in enumerate(HourState)}


@dataclass(frozen=True, slots=True)
class Tolerance:
    """Allowed difference between ledger and engine: `tokens`, or `percent` of what the engine counted, whichever is more. Requests that run
    across the edge of an hour, those that were cut short, and whoever else uses the engine make small differences."""

    percent: float = 0.1
    tokens: int = 1_000

    def of(self, engine_tokens: int) -> int:
        """Tokens that may be amiss beside so many."""
        return max(self.tokens, int(engine_tokens * self.percent / 100))


@dataclass(frozen=True, slots=True)
class TokenComparison:
    """Tokens by the ledger and by the engine (None: not observed)."""

    ledger: int
    engine: int | None

    @property
    def drift(self) -> int | None:
        """Return what the engine counted more than the ledger (less: below zero)."""
        return None if self.engine is None else self.engine - self.ledger

    @property
    def drift_percent(self) -> float | None:
        """The same in percent of what the engine counted; None if that was nothing."""
        return None if not self.engine or self.drift is None else round(100 * self.drift / self.engine, 4)


@dataclass(frozen=True, slots=True)
class ComparisonLine:
    """Deployments and the addresses whose counters they share, in one hour."""

    start_at: int
    models: tuple[str, ...]
    deployment_ids: tuple[str, ...]
    addresses: tuple[str, ...]
    usage: EngineUsage
    prompt: TokenComparison
    output: TokenComparison
    state: HourState
    covered_us: int = 0
    resets: int = 0
    failures: int = 0


@dataclass(frozen=True, slots=True)
class Row:
    """A model (or models that share an engine) in one hour: its lines together, with what no line can be charged with. `unattributed`:
    tokens of requests whose engine nobody knows."""

    start_at: int
    models: tuple[str, ...]
    usage: EngineUsage
    prompt: TokenComparison
    output: TokenComparison
    state: HourState
    lines: tuple[ComparisonLine, ...]
    unattributed: int


@dataclass(slots=True)
class _Groups:
    """Names bound together, step by step (union-find)."""

    parents: dict[str, str] = field(default_factory=dict)

    def find(self, name: str) -> str:
        root = name
        while (parent := self.parents.setdefault(root, root)) != root:
            root = parent
        while self.parents[name] != root:
            self.parents[name], name = root, self.parents[name]
        return root

    def bind(self, name: str, other: str) -> None:
        roots = sorted((self.find(name), self.find(other)))
        self.parents[roots[1]] = roots[0]

    def groups(self) -> list[list[str]]:
        found: dict[str, list[str]] = {}
        for name in sorted(self.parents):
            found.setdefault(self.find(name), []).append(name)
        return list(found.values())


def compare(
    hours: Iterable[EngineHour],
    members: Iterable[Member],
    usage: Mapping[UsageKey, EngineUsage],
    tolerance: Tolerance,
    settled_before: int,
) -> list[Row]:
    """Every hour and model that either side knows of, ordered by hour and model. `settled_before`: hours that end later are open."""
    by_hour: dict[int, _Hour] = {}
    for hour in hours:
        by_hour.setdefault(hour.start_at, _Hour()).engines[hour.address] = hour
    for member in members:
        by_hour.setdefault(member.start_at, _Hour()).members.append(member)
    for (start_at, deployment_id, model), sums in usage.items():
        by_hour.setdefault(start_at, _Hour()).usage[deployment_id, model] = sums
    return [
        row
        for start_at in sorted(by_hour)
        for row in _rows_of(start_at, by_hour[start_at], tolerance, is_open=start_at + HOUR_US > settled_before)
    ]


@dataclass(slots=True)
class _Hour:
    engines: dict[str, EngineHour] = field(default_factory=dict)
    members: list[Member] = field(default_factory=list)
    usage: dict[tuple[str, str], EngineUsage] = field(default_factory=dict)


def _rows_of(start_at: int, hour: _Hour, tolerance: Tolerance, *, is_open: bool) -> list[Row]:
    lines = _lines_of(start_at, hour)
    lost = {model: sums for (deployment_id, model), sums in hour.usage.items() if deployment_id == UNKNOWN_DEPLOYMENT}
    together = _Groups()
    for names in [line.models for line in lines] + [(model,) for model in lost]:
        for name in names:
            together.bind(names[0], name)
    of_root: dict[str, list[ComparisonLine]] = {}
    for line in lines:
        of_root.setdefault(together.find(line.models[0]), []).append(line)
    return [
        _row_of(
            start_at,
            tuple(models),
            of_root.get(together.find(models[0]), []),
            [lost[model] for model in models if model in lost],
            tolerance,
            is_open,
        )
        for models in together.groups()
    ]


def _lines_of(start_at: int, hour: _Hour) -> list[ComparisonLine]:
    """Return lines without their final state, which needs the row: it is OK, NOT_OBSERVED or PARTIAL for what the readings alone say."""
    bound, model_of, used = _Groups(), {}, {}
    for member in hour.members:
        bound.bind(f"a {member.address}", f"d {member.deployment_id}")
        model_of[member.deployment_id] = member.model
    for (deployment_id, model), sums in hour.usage.items():
        if deployment_id != UNKNOWN_DEPLOYMENT:
            bound.find(f"d {deployment_id}")
            model_of[deployment_id] = model
            used[deployment_id] = sums
    lines = []
    for group in bound.groups():
        addresses = [name[2:] for name in group if name[0] == "a"]
        deployment_ids = [name[2:] for name in group if name[0] == "d"]
        usage = EngineUsage()
        for deployment_id in deployment_ids:
            usage.add(used.get(deployment_id, NO_USAGE))
        models = tuple(sorted({model_of[deployment_id] for deployment_id in deployment_ids}))
        engines = [hour.engines[address] for address in addresses if address in hour.engines]
        lines.append(_line_of(start_at, models, tuple(deployment_ids), tuple(addresses), usage, engines))
    return lines


NO_USAGE = EngineUsage()


def _line_of(
    start_at: int,
    models: tuple[str, ...],
    deployment_ids: tuple[str, ...],
    addresses: tuple[str, ...],
    usage: EngineUsage,
    engines: list[EngineHour],
) -> ComparisonLine:
    observed = bool(engines) and len(engines) == len(addresses) and all(engine.covered_us for engine in engines)
    counts_cached = all(engine.counts_cached for engine in engines)
    prompt_count = engines[0].prompt_count if engines else PromptCount.ONCE
    is_whole = all(not engine.is_estimated and engine.resets <= RESETS_MAX for engine in engines)
    # An address that a deployment moved to or away from is observed for its part of the hour only.
    is_whole = is_whole and (len(engines) > 1 or all(engine.covered_us >= HOUR_US for engine in engines))
    return ComparisonLine(
        start_at=start_at,
        models=models,
        deployment_ids=deployment_ids,
        addresses=addresses,
        usage=usage,
        prompt=TokenComparison(
            usage.count_prompt(prompt_count, counts_cached=counts_cached),
            sum(each.prompt_tokens for each in engines) if observed else None,
        ),
        output=TokenComparison(usage.output, sum(engine.output_tokens for engine in engines) if observed else None),
        state=HourState.NOT_OBSERVED if not observed else HourState.OK if is_whole else HourState.PARTIAL,
        covered_us=min((engine.covered_us for engine in engines), default=0) if observed else 0,
        resets=sum(engine.resets for engine in engines),
        failures=sum(engine.failures for engine in engines),
    )


def _row_of(
    start_at: int, models: tuple[str, ...], lines: list[ComparisonLine], lost: Sequence[EngineUsage], tolerance: Tolerance, is_open: bool
) -> Row:
    usage, extra = EngineUsage(), EngineUsage()
    for sums in lost:
        extra.add(sums)
    for line in lines:
        usage.add(line.usage)
    usage.add(extra)
    unattributed = extra.input + extra.cached_input + extra.output
    classified = tuple(_classify(line, tolerance, unattributed, is_open) for line in lines)
    prompt = _sum([line.prompt for line in classified], extra.input + extra.cached_input)
    output = _sum([line.output for line in classified], extra.output)
    state = max(
        (line.state for line in classified), key=_SEVERITY.__getitem__, default=HourState.OPEN if is_open else HourState.NOT_OBSERVED
    )
    if state is HourState.OK and any(_is_off(comparison, tolerance, len(classified)) for comparison in (prompt, output)):
        state = HourState.DRIFT
    return Row(start_at, models, usage, prompt, output, state, classified, unattributed)


def _sum(sides: Sequence[TokenComparison], more: int) -> TokenComparison:
    """Comparisons as one, with `more` tokens in the ledger; not observed if any of them was not."""
    engines = [side.engine for side in sides if side.engine is not None]
    return TokenComparison(sum(side.ledger for side in sides) + more, sum(engines) if sides and len(engines) == len(sides) else None)


def _is_off(comparison: TokenComparison, tolerance: Tolerance, lines: int = 1, grace: int = 0) -> bool:
    """Return whether the two sides are further apart than may be. Each line may have its own small difference."""
    engine, drift = comparison.engine, comparison.drift
    if engine is None or drift is None:
        return False
    return abs(drift) > max(tolerance.of(engine), tolerance.tokens * lines) + grace


def _classify(line: ComparisonLine, tolerance: Tolerance, grace: int, is_open: bool) -> ComparisonLine:
    """The line with its final state. `grace`: tokens of this model's requests that may be this line's, or not."""
    state = line.state
    if is_open:
        state = HourState.OPEN
    elif state is HourState.OK:
        off = [comparison for comparison in (line.prompt, line.output) if _is_off(comparison, tolerance, grace=grace)]
        # What an engine did between the last reading and its end is lost, so after a start it may show less than the ledger.
        if any(line.resets == 0 or (comparison.drift or 0) > 0 for comparison in off):
            state = HourState.DRIFT
        elif off:
            state = HourState.PARTIAL
    return replace(line, state=state)
