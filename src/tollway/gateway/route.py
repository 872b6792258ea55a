"""Phase 4: choose the upstreams of a request, in the order in which they are tried: lower tiers first, by weight within a tier, and
those that are doubtful or down last (`upstreams.health`). Of equally good ones those that are full come last, whatever their tier: what
does not fit into a tier goes to the next before it waits.
Among equals of one tier that have one weight the first one is chosen by its load and by what its prefix cache holds
(`gateway.prefix_routing`). Different weights are shares of the traffic, a canary's for example, and are kept; a conversation stays in one.

Where fewer than half of a model's upstreams are good, doubt is ignored: if a busy moment failed at most of them, the others would get the
load of all, and fail next. Those that are down stay last.
"""

import re
from collections.abc import Callable
from typing import NamedTuple
from zlib import crc32

from tollway.domain.catalog import RELATIVE_COST_MAX, Endpoint, is_resident
from tollway.domain.faults import REGION_UNSERVED, UPSTREAM_NONE, Fault
from tollway.gateway.held_prefixes import format_tag
from tollway.gateway.latency_goals import TRIAL_REQUESTS, list_cheapest
from tollway.gateway.prefix_routing import BOUNDARIES, CANDIDATE_KINDS, HOME_HOLD, Charge, find_home_by_weight, hash_prefixes
from tollway.gateway.request import Call
from tollway.gateway.upstreams.health import Reliability
from tollway.gateway.upstreams.upstream import Upstream, Upstreams

CANDIDATES_MAX = 4
"""Most upstreams tried for one request; more would only delay the error that the client gets in the end."""

COST_UNKNOWN = RELATIVE_COST_MAX + 1
"""Cost of a deployment that states none: more than any other."""

PROMPT_SEARCH_BYTES = 512
"""First bytes of a body in which the begin of the prompt is looked for; where it is not found, the body counts from its begin."""
_PROMPT_FIELDS: dict[Endpoint, tuple[bytes, ...]] = {
    Endpoint.CHAT_COMPLETIONS: (b'"messages"',),
    Endpoint.COMPLETIONS: (b'"prompt"',),
    Endpoint.MESSAGES: (b'"system"', b'"messages"'),
    Endpoint.RESPONSES: (b'"instructions"', b'"input"'),
}
"""The fields that become the prompt, of endpoints at which engines keep prefixes."""
_CACHE_KEY = re.compile(rb'"prompt_cache_key"\s*:\s*"([^"\\]{1,256})"')
SESSION_BYTES_MAX = 256
CACHE_KEY_BYTES_MAX = 512
"""Bytes of a large body's `prompt_cache_key` that are looked at, its name and white space included."""


class _Rank(NamedTuple):
    """The rank of an upstream: the least is tried first. `place`: by chance and weight; `number`: of the upstream among those known."""

    reliability: Reliability
    is_full: bool
    tier: int
    is_spared: bool
    place: float
    number: int


def route(call: Call, upstreams: Upstreams, now: float, random: Callable[[], float]) -> list[Upstream]:
    """Return the upstreams to try for this call, best first; if the first one is full, nothing as good has a place.

    Raises Fault no_upstream if no deployment of the model takes requests, region_not_served if none is where the project allows.

    `random`: uniform in [0, 1). Within a tier the order is a weighted shuffle (Efraimidis and Spirakis 2006): the probability of being
    first is the share of the weight. One that came back lately is spared by chance, more rarely as time passes.
    """
    caller = call.caller
    known = upstreams.of(call.model.id, test=caller.is_test)
    if caller.residency is not None:
        known = list_resident(known, caller.residency)
    if len(known) == 1 and known[0].deployment.weight > 0:
        return [known[0]]
    if known and _are_equal(known, now):
        turn = int(random() * len(known))
        group = known[turn:] + known[:turn]
        if call.model.latency_goal_ms is None:
            group.insert(0, group.pop(_select(call, group, upstreams)))
        else:
            cheapest = _list_cheapest(call, group, random)
            group.insert(0, group.pop(cheapest[_select(call, [group[index] for index in cheapest], upstreams)]))
        return group[:CANDIDATES_MAX]
    endpoint = call.request.endpoint
    ranked: list[_Rank] = []
    good = 0
    for number, upstream in enumerate(known):
        deployment, health = upstream.deployment, upstream.health
        if deployment.weight > 0:
            reliability = health.reliability(endpoint, now)
            if reliability is Reliability.GOOD:
                good += 1
            share = health.share(now)
            is_spared = share < 1.0 and random() >= share
            place = -(random() ** (1.0 / deployment.weight))
            ranked.append(_Rank(reliability, upstream.running >= upstream.limit, deployment.tier, is_spared, place, number))
    if not ranked:
        raise Fault(UPSTREAM_NONE, retry_after_seconds=5)
    if 2 * good < len(ranked):
        ranked = [rank._replace(reliability=Reliability.GOOD) if rank.reliability is Reliability.DOUBTFUL else rank for rank in ranked]
    ranked.sort()
    first = ranked[0]
    if not first.is_full:
        best = first[:4]  # all that ranks before the place
        group = [known[rank.number] for rank in ranked if rank[:4] == best]
        if len(group) > 1:
            cheapest = list(range(len(group))) if call.model.latency_goal_ms is None else _list_cheapest(call, group, random)
            group = [group[index] for index in cheapest]
            has_shares = len({upstream.deployment.weight for upstream in group}) > 1
            ranked.insert(0, ranked.pop(cheapest[_find_share(call, group, upstreams) if has_shares else _select(call, group, upstreams)]))
    candidates = [known[rank.number] for rank in ranked[:CANDIDATES_MAX]]
    if not first.is_full:
        candidates[0].health.begin_trial(endpoint, now)
    return candidates


def list_resident(known: list[Upstream], residency: frozenset[str]) -> list[Upstream]:
    """Return the deployments that may serve a project which is restricted to these regions. Raises Fault region_not_served if there is
    none of a model that others may use."""
    resident = [upstream for upstream in known if is_resident(upstream.deployment, residency)]
    if known and not resident:
        raise Fault(REGION_UNSERVED, detail="no deployment in the residency of the project")
    return resident


def explain(
    model: str,
    endpoint: Endpoint,
    prompt_tokens: int,
    upstreams: Upstreams,
    now: float,
    *,
    test: bool,
    residency: frozenset[str] | None = None,
) -> list[dict[str, object]]:
    """Return what decides between the deployments of a model for a prompt of this length, in the order in which they would be tried. Those
    of one `rank` are chosen by cost where their weights are equal, else by their shares. Raises Fault region_not_served if none is in a
    region of `residency`.

    `cost` is in prompt tokens: `home` for a prompt whose home this deployment is, `other` for any other prompt. Nothing is changed by it.
    """
    known = upstreams.of(model, test=test)
    if residency is not None:
        known = list_resident(known, residency)
    serving = [upstream for upstream in known if upstream.deployment.weight > 0]
    grades = {upstream: upstream.health.reliability(endpoint, now) for upstream in serving}
    ignores_doubt = 2 * sum(grade is Reliability.GOOD for grade in grades.values()) < len(serving)
    ranks: dict[Upstream, tuple[int, bool, int]] = {}
    for upstream, grade in grades.items():
        counts = Reliability.GOOD if ignores_doubt and grade is Reliability.DOUBTFUL else grade
        ranks[upstream] = (counts, upstream.running >= upstream.limit, upstream.deployment.tier)
    order = sorted(set(ranks.values()))
    rows: list[dict[str, object]] = []
    for upstream in sorted(known, key=lambda each: (each not in ranks, ranks.get(each), each.load.queued_tokens)):
        deployment, queued = upstream.deployment, upstream.load.queued_tokens
        rows.append(
            {
                "deployment": deployment.id,
                "rank": order.index(ranks[upstream]) + 1 if upstream in ranks else None,
                "reliability": grades[upstream].name.lower() if upstream in grades else "drained",
                "region": deployment.region,
                "tier": deployment.tier,
                "weight": deployment.weight,
                "share": upstream.health.share(now),
                "running": upstream.running,
                "limit": upstream.limit,
                "queued_tokens": round(queued),
                "cache_followed": upstream.load.is_followed,
                "cost": {"home": round(queued + prompt_tokens * (1.0 - HOME_HOLD)), "other": round(queued + prompt_tokens)},
                "chosen": dict(zip(CANDIDATE_KINDS, upstream.chosen, strict=True)),
                "relative_cost": deployment.relative_cost,
                "first_token_seconds": round(upstream.first_token_times.expect(queued + prompt_tokens), 3),
            }
        )
    return rows


def _are_equal(known: list[Upstream], now: float) -> bool:
    """Return whether these deployments differ in nothing that ranks them, which is the common case: no order has to be computed."""
    first = known[0].deployment
    tier, weight = first.tier, first.weight
    if weight <= 0:
        return False
    for upstream in known:
        if now < upstream.health.steady_at or upstream.running >= upstream.limit:
            return False
        deployment = upstream.deployment
        if deployment.tier != tier or deployment.weight != weight:
            return False
    return True


def _list_cheapest(call: Call, group: list[Upstream], random: Callable[[], float]) -> list[int]:
    """Return the indices of the deployments of `group` that the latency goal of the model leaves, in their order."""
    costs = [upstream.deployment.relative_cost or COST_UNKNOWN for upstream in group]
    tokens = max(group[0].estimate_input(call.request.body_bytes), 1)
    expected = [upstream.first_token_times.expect(upstream.load.queued_tokens + tokens) for upstream in group]
    is_trial = random() * TRIAL_REQUESTS < 1.0
    return list_cheapest(costs, expected, (call.model.latency_goal_ms or 0) / 1000, is_trial=is_trial)


def _find_share(call: Call, group: list[Upstream], upstreams: Upstreams) -> int:
    """Return the index of the deployment of `group` in whose share of the traffic a request falls. Those of one conversation or session
    fall into one share, at every gateway; others by chance, which the order of `group` is."""
    _, session, prefixes = _find_prefixes(call)
    anchor = upstreams.find_selector(call.model.id, test=call.caller.is_test).find_anchor(prefixes, session, len(group))
    if not anchor:
        return 0
    return find_home_by_weight(anchor, [upstream.load for upstream in group], [upstream.deployment.weight for upstream in group])


def _select(call: Call, group: list[Upstream], upstreams: Upstreams) -> int:
    """Return the index of the deployment of `group` to which a request goes, and set its charge. `group`: in random order."""
    start, session, prefixes = _find_prefixes(call)
    prompt_bytes = call.request.body_bytes - start
    tokens = float(max(group[0].estimate_input(prompt_bytes), 1))
    loads = [upstream.load for upstream in group]
    selector = upstreams.find_selector(call.model.id, test=call.caller.is_test)
    index, uncached, kind = selector.choose(loads, prefixes, session, prompt_bytes, tokens)
    group[index].chosen[kind] += 1
    if upstreams.held is not None and prefixes:
        call.request.cache_tag = format_tag(prefixes, selector.key)
        loads[index].unconfirmed += 1
    call.charge = Charge(loads[index], tokens, uncached, upstreams.gateways)
    return index


def _find_prefixes(call: Call) -> tuple[int, int, list[int]]:
    """Return where the prompt begins in a request's body, the checksum of the session that it names (0 for none), and those of its prefixes
    if it names none."""
    request = call.request
    body = request.body if request.upload is None else request.read_prefix(PROMPT_SEARCH_BYTES + BOUNDARIES[-1])
    salt = 0 if call.model.share_cache else crc32(call.grant.cache_salt)
    fields = _PROMPT_FIELDS.get(request.endpoint)
    start, session = 0, 0
    prefixes: list[int] = []
    if fields is not None:
        for field in fields:
            start = body.find(field, 0, PROMPT_SEARCH_BYTES)
            if start >= 0:
                break
        start = max(start, 0)
        session = _find_session(call, salt)
        if not session:
            prefixes = hash_prefixes(body, start, salt)
    return start, session, prefixes


def _find_session(call: Call, salt: int) -> int:
    """Return a checksum of the session that a request names in `x-session-id` or `prompt_cache_key`, 0 for none. The salt makes it one of
    the organization's own, so nobody can name another one's."""
    session = call.request.headers.get(b"x-session-id")
    if session is None:
        if "prompt_cache_key" not in call.names:
            return 0
        is_large = call.request.upload is not None
        found = _CACHE_KEY.search(call.read_member("prompt_cache_key", CACHE_KEY_BYTES_MAX) if is_large else call.request.body)
        if found is None:
            return 0
        session = found.group(1)
    return crc32(session[:SESSION_BYTES_MAX], salt) or 1
