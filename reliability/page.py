"""Turns the kept lines into docs/reliability.md. Pure: lines in, text out.

For each figure and case the newest line is shown, and with it what all the lines that are kept come to, so that a run that failed is
not forgotten by running again.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from reliability.records import Line


@dataclass(frozen=True, slots=True)
class Figure:
    """Description of a figure: what is done, what must hold, what it says nothing about, and how to take it."""

    title: str
    test: str
    rule: str
    left_out: str
    command: str


FIGURES: Mapping[str, Figure] = {
    "R1": Figure(
        "Usage lost or doubled across crashes",
        "An open loop of 100 requests/s: chat completions, completions, embeddings, responses and messages, four of five of them "
        "streams, some slow, some abandoned, some retried elsewhere; beside it edits of pictures, speech, transcripts, realtime "
        "sessions, calls and streams by gRPC, a batch, uploads of files and responses in the background. "
        "Every 1 to 5 s one process gets SIGKILL: the gateway, the control process, the supervisor above both or, on PostgreSQL, the "
        "postmaster. Each is started again 0 to 2 s later (gateway and control by the supervisor, at once). Before half of the "
        "kills everything works again; the others strike whatever there is, starts and recoveries among them. Beside it an "
        "administrator makes and revokes keys. The engine keeps a truth log of its own, in memory where the platform has the disk.",
        "Every request that the engine heard of has exactly one event, and no other request costs anything. What a client saw "
        "complete is billed as completed, with the tokens, seconds, characters or images of the truth log, class by class; responses of "
        "a session, whose ids no bill has, are compared by what they used. What ended otherwise is billed at "
        "least what was delivered and at most what was generated. `tollway verify` finds nothing. Every acknowledged key exists "
        "and works, every revoked one does not. Each line of the batch and each response in the background is answered and billed "
        "once; each file that was acknowledged is there. Nobody is told a 5xx but `draining` and, on a busy machine, "
        "`overloaded` or `model_overloaded`; nothing hangs; control answers 200 or 503. All is collected within 60 s.",
        "Responses of sessions that were cut, one by one: their bills are held in sum to what was delivered and to what was generated. "
        "SIGKILL is not a power cut: what the kernel holds survives. One machine: no network between the parts fails. How soon "
        "things are back is shown and not checked: the machine does other things beside.",
        "python -m reliability R1 --kills 100 --database postgres --seed 1",
    ),
    "R2": Figure(
        "Simulated histories",
        "The gateway's meter, spool, recovery and shipper and the real collector on SQLite, in virtual time, on a simulated disk and "
        "network, from one seed each: kills at every disk call, power cuts that drop or tear what was not synced, flipped bits, full "
        "and failing disks, requests and answers lost, doubled and late, two senders, recoveries killed in the middle; a hard budget with "
        "its leases, or credit that begins and expires, and limits whose store is slow, cut off or emptied.",
        "Every admitted request has exactly one event, billed between what was delivered and what was generated; no success is shown "
        "before its record is durable; watermarks are dense, postings sum to zero, balances follow; recovering twice changes nothing; "
        "nothing is spent beyond the budget or admitted beyond the limits, and nothing stays held; "
        "`verify` finds nothing. Damage that no crash explains stops its epoch and is reported.",
        "The relay and its sockets, PostgreSQL, and whatever the simulated disk does not know of real ones.",
        "python -m reliability R2 --seeds 2000 --seed 0",
    ),
    "R4": Figure(
        "Overload",
        "An engine with a fixed number of slots and a short queue is offered three times what it can serve, then half of it.",
        "At least 90 % of the capacity is served. What is refused is refused with 429 or 503 and `retry-after`, all but a hundredth of it "
        "within 50 ms; nothing else goes wrong. Every request that was served has its bill, none that was refused costs anything. "
        "Afterwards everything is served again, and from 10 s on answers begin within 1.5 times their p99 at capacity.",
        "More than the gateway itself can do: load, engine and gateway share two cores here, so that one could not tell whose "
        "limit it is. [performance.md](performance.md) says what a request costs.",
        "python -m reliability R4 --seconds 60",
    ),
    "R5": Figure(
        "Noisy neighbour",
        "Two organizations have the same limit on requests per minute. B sends half of it, first alone, then beside A, which sends "
        "ten times its limit on connections of their own and holds 1,000 more open that say nothing.",
        "Everything of B is served. Its p99 of the time to the head of an answer beside A is at most 1.2 times what it is alone. A is "
        "answered 200 or 429 with `retry-after`, and is served no more than its limit and one burst.",
        "Engines that are full (R4); several gateways. Load, engine and gateway share two cores, so the factor also has what the "
        "clients of A take from those of B, and whatever else the machine does.",
        "python -m reliability R5 --seconds 60",
    ),
    "R6": Figure(
        "Limit accuracy with several gateways",
        "Four gateways, each a process and a node of its own, share their counters in one server. Clients send three times what a limit "
        "of a project admits, over all gateways in a random order: a limit on requests, then one on output tokens. Then a race in which "
        "the server is frozen after a third of the requests. The deadline of a decision is 2 s, because the machine is shared.",
        "With the server nothing is admitted beyond the limit and its refill, and at least 99 % of it. With the server frozen at most one "
        "more limit is admitted (docs/limits.md), and nothing is answered but 200 and 429.",
        "Windows of a minute, whose refill depends on the machine's speed; servers on other hosts; clusters.",
        "python -m reliability R6 --limit 500",
    ),
    "R7": Figure(
        "Budget accuracy",
        "Four gateways, each a process and a node of its own, spend one hard budget of an organization, or its prepaid credit, at once: "
        "whole answers and streams in turn, from 500 clients that ask on after refusals. Their limits are counted in one server. Meanwhile "
        "gateways get SIGKILL and start again. At the end each gateway is stopped, so that it hands in everything and its leases end.",
        "Nothing is spent beyond the budget by the events that control rated, and at least 99 % of it is spent.",
        "Control or the database killed in the middle, gateways on other hosts.",
        "python -m reliability R7 --races 10 (in a bounded time: --clients 100 --seconds 300)",
    ),
    "R8": Figure(
        "Faults survived",
        "A table of faults, each with the tests that inject it. The tests are run; a fault is survived if all of its tests pass.",
        "Each test says the status and the error that a client gets, what is billed, and that all goes on by itself afterwards.",
        "The faults that are named as not tried.",
        "python -m reliability R8",
    ),
    "R9": Figure(
        "Bad inputs tried",
        "Bent bytes and bodies, made from good ones and from all that once broke something, through every parser and through sockets. "
        "Then the inputs that are known to cost most: CPU of a whole gateway, and of control, against that of the client, each as in R18, "
        "and memory of each reader against the bytes of its input.",
        "No 5xx, no crash, no hang, no error that is not JSON in the API's shape, no more answers than requests; what is let "
        "through is what was validated. No line of costs is above 100 times. Where an engine sends the bytes, its CPU counts with the "
        "client's.",
        "CPU of the readers of what engines send, which is shown beside, as measured without a gateway around them. "
        "`make fuzz` searches on from there, guided by coverage, for as long as it is let. The CPU in lines of its "
        "runs (`atheris`) is that of a reader alone, without the connections of a client and the bounds of a gateway.",
        "python -m reliability R9",
    ),
    "R10": Figure(
        "Drain and rollout",
        "Forty requests a second, a third of them streams that take longer than a hand-over, and connections that are kept and "
        "used again, while the gateway is replaced (SIGHUP) over and over.",
        "No request fails, no connection is refused or reset, every stream ends with its `[DONE]`, every request has its bill.",
        "Gateways behind a load balancer (R26); a rollout from one version to another, with a migration.",
        "python -m reliability R10 --rollouts 100",
    ),
    "R11": Figure(
        "Control plane gone",
        "Control is killed and stays away. In the middle of that the gateway is killed as well and starts alone, from its copy "
        "of the snapshot. Then control comes back.",
        "Every request succeeds but those that the death of the gateway struck. Afterwards each has its bill, once, and "
        "`tollway verify` finds nothing.",
        "Revocations while control is away are tests of their own (`tests/system/test_outage.py`).",
        "python -m reliability R11 --seconds 60",
    ),
    "R12": Figure(
        "Soak",
        "A cluster as in R24 is used without a break: both gateways with chat completions, completions, embeddings, responses and "
        "messages, most of them streams, some abandoned, and an administrator makes and revokes keys. Every 5 s resident memory, "
        "descriptors, threads and tasks of the event loop of each gateway and control process are read; before and after, the bytes of "
        "spools, archive and database.",
        "After the first third, in which caches and the space for objects that wait for the garbage collector fill, nothing grows. "
        "Memory: with 95 % confidence the slope (Theil-Sen) is not above 1 MiB/h, or what it adds in the last two thirds is below 1 MiB, "
        "the unit in which Python takes memory. The median of the last third is above that of the third before it by at most 8 "
        "descriptors, 2 threads and 2 tasks. Every request has its bill, and `tollway verify` finds nothing. Spool, archive and database "
        "keep what they are sent: how much is shown, for 1,000 requests.",
        "Leaks that show only after hours: a run of 600 s sees slopes from 9 MiB/h on, one of 2,700 s from 2 MiB/h on; the interval is "
        "shown. Whether what grows is kept objects, free memory between them, or memory of C libraries: resident memory is their sum "
        "(`tests/control/test_memory.py` counts objects).",
        "python -m reliability R12 --seconds 7200 --per-second 4",
    ),
    "R22": Figure(
        "Revocation",
        "Keys are revoked one after the other, while each gateway is asked with the key every few milliseconds and, at one of five "
        "revocations, a stream of the key is open at each. With one gateway and with four; once as usual, and once through a proxy that "
        "ends every stream of changes, so that gateways poll. The time runs from the sending of the revocation to the first refusal.",
        "At 99 % of the gateways the key is refused within 1 s, and within 5 s where streams of changes are cut; open streams end within "
        "5 s, by an error. Once control has answered and named no gateway, none takes the key.",
        "Gateways on other hosts; control under load; a gateway that is frozen (`tests/system/test_outage.py`).",
        "python -m reliability R22 --revocations 100",
    ),
    "R23": Figure(
        "Batches across crashes",
        "Batches of up to 50,000 lines are submitted to a platform of one gateway and one control process. Every 3 to 8 s the gateway (two "
        "of three times) or the control process gets SIGKILL, and is started again by the supervisor. The engine repeats what each line "
        "asks, and keeps a truth log. With `--bucket` the files are in a bucket of a server that speaks S3.",
        "Each line stands in the output once, with its own answer, and the request that answered it is billed; no other request costs "
        "anything. Every bill is right by the truth log, and `tollway verify` finds nothing.",
        "Several gateways at one directory (`tests/gateway/test_batches.py` has two owners in turn), a power cut, a full disk.",
        "python -m reliability R23 --lines 100000 --kills 50 --database postgres",
    ),
    "R14": Figure(
        "Restore",
        "A database is backed up while it is used (SQLite: its backup API; PostgreSQL: pg_dump). Usage goes on and a key is "
        "made; then the database is lost and the backup put in its place. Once the archive brings it up to date (`tollway "
        "replay`); once archive and database are both as old as the backup, and the gateway hands in again what its spool "
        "keeps.",
        "A digest over every event, rollup and balance is that of before the loss, every request has its bill, `tollway verify` "
        "agrees, and the gateway takes the restored snapshot: it no longer knows the key that the backup does not.",
        "Changes of tenants, keys and prices that are younger than the backup: those are lost. The loss of all three, database, "
        "archive and spool, at once.",
        "python -m reliability R14 --times 5 --database postgres",
    ),
    "R16": Figure(
        "Reconciliation",
        "The data of R1: the usage API by model, the costs API by line item and whole, the balances and every ledger entry are "
        "held against the events' bills, which are held against the engine's truth log.",
        "Equal to the pico. Every transaction sums to zero, and so do all accounts together.",
        "Invoices: those are in R27.",
        "python -m reliability R1",
    ),
    "R17": Figure(
        "Timing of refusals",
        "A real gateway is asked with keys that never were, that were revoked, that expired, and that are written wrongly (a checksum that "
        "does not fit), eight of each, over four kept connections on loopback. Each round asks once with every kind, in an order of its "
        "own. The times of any two kinds are compared (two-sample Kolmogorov-Smirnov, asymptotic), and those of two sets of keys that "
        "never were, as a control.",
        "All answers are 401 and of one length, and no distance is larger than one distribution makes it in one of a thousand runs "
        "(alpha = 0.001 over all comparisons together, Bonferroni).",
        "Differences below the delay that would be noticed, which is stated: it was added to one sample until the test saw it. An attacker "
        "with more patience sees smaller ones, and a network in between hides larger ones. What a revoked key did before.",
        "python -m reliability R17 --rounds 5000",
    ),
    "R18": Figure(
        "Attacks on memory, CPU and the time of others",
        "A real gateway is attacked with raw sockets, one attack after the other: unfinished and aborted uploads, abandoned answers, "
        "bodies that cost much to read, chunk framing, connections, keys that do not exist, pipelined requests, frames of realtime "
        "sessions. `/livez` is asked every tenth of a second meanwhile. Then control is attacked, with keys and without: slow bodies, "
        "followed streams, connections that are held, requests without a pause; an operator reads, revokes and asks `/livez` meanwhile.",
        "The gateway, with its readers of large bodies, uses at most 100 times the CPU of the attacker, with that of the engine "
        "where it sends the bytes. Three seconds after an attack "
        "it has at most 64 MiB more memory than before. Every honest request is answered, those to control within 5 seconds. On a quiet "
        "machine (`--quiet`) the median of each call to control is at most 1.5 times what it is alone.",
        "The attacker's CPU includes the kernel's work of sending, but not that of a network. Waits are shown and not checked: the machine "
        "does other things beside.",
        "python -m reliability R18",
    ),
    "R20": Figure(
        "Honest tenants beside a hostile one",
        "Two honest organizations are served alone, then beside a third one whose processes attack without a pause, in all the ways of R18 "
        "at once: unfinished and aborted uploads, abandoned answers, held connections, slow bodies, chunk framing, unknown keys, bodies "
        "that cost much to read. Then they are served beside neutral processes, one for each hostile one and of the same low priority, "
        "that take the same CPU, in computing and in the kernel, and ask the gateway nothing.",
        "Every honest request is served, with a p99 of the time to the head of the answer of at most 1.5 times that beside the neutral "
        "processes (`p99 factor`). A minute after the attack the gateway, with its readers of large bodies, has at most 10 % more memory "
        "and 16 descriptors more than before.",
        "The ratio to the p99 alone (`p99 factor raw`) is shown and not checked: the hostile programs run on the machine of the gateway, "
        "and what they compute delays whoever wakes up beside them. CPU of the gateway and of its readers of bodies stays in both ratios.",
        "python -m reliability R20 --seconds 120",
    ),
    "R21": Figure(
        "Faults of a fleet",
        "A model has four deployments of one tier, each at an engine of its own, all of them processes. One after the other, the first "
        "deployment resets, closes, hangs, drips, is slow, answers each request with 429, 503 or 500, or breaks off before its first "
        "token; then its engine is killed, frozen and drained in the middle. Every second request is a stream; where the engine "
        "is silent, the model hedges after a second.",
        "Every request is answered but those that had begun at an engine that was then killed or frozen. No deployment that is well is "
        "ejected. Each request has one bill, which the truth logs of the four engines confirm, whatever was tried before.",
        "Faults of two deployments at once: `tests/gateway/test_fleet_faults.py` has them with engines in the process of the test.",
        "python -m reliability R21 --requests 24",
    ),
    "R24": Figure(
        "Faults of a cluster",
        "A cluster of processes: PostgreSQL, Redis, two control processes behind HAProxy, two gateways, two engines. One after the other, "
        "a part is killed, frozen, slowed, filled, cut off or given a wrong clock, while both gateways are sent chat completions, "
        "completions, embeddings, responses and messages, most of them streams, and an administrator makes and revokes keys. Packets are "
        "lost, reset and cut off by nftables in a network namespace of the run's own, clocks step by a library before the C library, "
        "system calls fail by strace, disks are file systems of a bounded size.",
        "Requests and operations are answered as the row says: requests fail only at a gateway that is itself struck, or where an engine "
        "had begun to answer. Within 5 s after the end of the fault both gateways serve and the REST API takes a change, and nobody helps. "
        "Each request has one bill that the truth logs of the engines confirm. At the end every acknowledged key works, every revoked one "
        "is refused, and `tollway verify` finds nothing.",
        "A clock that is wrong by more than 15 minutes: records are then set aside for an operator. Hosts: all processes share one kernel. "
        "Two faults at once, but for the rows that name them.",
        'python -m reliability R24 (a part: --only "network: ")',
    ),
    "R25": Figure(
        "Upgrade and rollback",
        "A cluster as in R24 of the version before, installed from its commit with its own lock, is used without a break. The database is "
        "migrated, then control and gateways are replaced by the new version, one process after the other; the gateways are taken back and "
        "a control process of the version before is started over the new schema; then all are upgraded again.",
        "No stream breaks and no request fails but one that is sent to a gateway which is being replaced at that moment. Operations "
        "succeed or are answered 503 while a control process is replaced. Control of the version before runs over the new schema if the "
        "database says that it may, and ends with the reason otherwise. Each request has one bill, and `tollway verify` finds nothing.",
        "Load balancers before gateways (R26); a change of PostgreSQL's version.",
        "python -m reliability R25",
    ),
    "R26": Figure(
        "Rollout of two gateways behind a proxy",
        "Two gateways, each a process and a node of its own, stand behind nginx, HAProxy or Envoy with the file of `deploy/proxies`. "
        "Twenty requests a second go to the proxy, a third of them streams of a second or two, and four connections are kept and used "
        "again. Meanwhile each gateway in turn gets SIGTERM, answers 503 at `/readyz`, drains, ends, and is started again at its "
        "directory; the next one follows 3 s after it is ready.",
        "No request fails, whether its client waits for a whole answer or a stream, and none on a kept connection. Each gateway ends with "
        "exit code 0. Each request has one bill, and `tollway verify` finds nothing.",
        "Hosts: all processes share one kernel. A gateway that dies instead of being drained (R1, R24). A new version (R25).",
        "python -m reliability R26 --proxy nginx --rounds 25 (haproxy, envoy)",
    ),
    "R27": Figure(
        "A year of billing",
        "Fifty organizations in six time zones and three currencies, from one seed and in virtual time, by the code of the control plane: "
        "the collector, the jobs that close months, draft, issue, top up and dun, and the operations of operators. Prices, terms and plans "
        "change; requests are corrected, arrive late, twice, or after their loss was declared; credit is burned, voided and expires; "
        "drafts are made again and voided, invoices cancelled and credited; payments are partial, too high, late, returned or never made. "
        "Requests end at the bounds of months and while clocks are changed.",
        "At the end the books are computed again from what was sent and paid, from prices that are kept beside, and from exports and "
        "documents. Each account of the ledger is equal to the last digit; nothing of a closed month is unbilled; receivables are what is "
        "open less the balances. Each request is in one export; each document is replayed from its export by the stand-alone verifier; "
        "numbers have no gaps; taxes are those of the parties; what is overdue was dunned or is held; `tollway verify` finds nothing. The "
        "digest of all documents and balances is the same for a seed on each database.",
        "What contracts come to and which grants burn is computed again by the stand-alone verifier, which has no code of the control "
        "plane, and not a third time. Connectors, mail, and the REST API: the operations behind it are called.",
        "python -m reliability R27 --seed 1 --database postgres",
    ),
    "R19": Figure(
        "Answers of other tenants",
        "Twelve tenants send chat completions, messages, transcriptions (forms with a file) and rankings through one gateway to an engine "
        "that misbehaves as each request asks: right answers in every framing, "
        "answers before the request was read, refusals, broken answers, bytes that nothing asked for. Every second request asks for a "
        "right answer and shares the connections with the others. Some clients leave in the middle, send several requests at once or large "
        "bodies. Each request has a marker, which its answer contains.",
        "No client receives the marker of another request. Every request for a right answer gets it, unless its engine sends bytes that "
        "nothing asked for or says that it is busy; one whose first attempt fails may be refused while the retries of the gateway are "
        "spent. No client waits 60 s for the next part of an answer.",
        "The wait before a busy engine, which R4 tries: as many requests are sent at a time as come. An engine that answers a request "
        "with the answer to another one, inside the right framing: nobody but the engine can tell.",
        "python -m reliability R19 --requests 50000",
    ),
}

ELSEWHERE: Mapping[str, str] = {
    "R2": "Simulated histories (virtual time, network and disk)",
    "R3": "Load held: [performance.md](performance.md) says what a request and a chunk cost",
    "R5": "Noisy neighbour",
    "R13": "Cross-tenant attempts",
    "R15": "Client conformance over versions",
}
"""Figures without a line of ours yet. A line of one of them is shown all the same."""

CASES_MAX = 4
"""Most cases of a figure that get a table each; more of them are rows of one."""

INTRODUCTION = """\
# Reliability

What was broken on purpose, how often, and what it cost.
Made by `make docs` from `reliability/results/`; `make reliability ARGS="R1 --kills 20"` takes a figure on your machine.

How to read it. *n* trials had so many *failures*; none in *n* means that, with 95 % confidence, fewer than 3/*n* of all
trials fail (the rule of three). It is a bound on what we have not seen, for this kind of trial, on this machine, and says
nothing about other kinds. The newest run of each figure is shown, and beside it what all kept runs come to."""


def render(lines: Sequence[Line]) -> str:
    """The page. `lines` in order of time."""
    parts = [INTRODUCTION]
    by_case: dict[tuple[str, str], list[Line]] = {}
    for line in lines:
        by_case.setdefault((line.figure, line.case), []).append(line)
    cases = sorted(by_case, key=lambda case: (int(case[0][1:]), case[1]))
    head = ["figure", "", "n", "failures", "fails less often than", "all runs kept"]
    rows = [_summary(by_case[case]) for case in cases]
    parts.append(_markdown(head, rows) if rows else "No results are kept yet.")
    for name in dict.fromkeys(figure for figure, _ in cases):
        of_figure = [by_case[case][-1] for case in cases if case[0] == name]
        parts.append(_section(name, of_figure))
    missing = [*((name, figure.title) for name, figure in FIGURES.items()), *ELSEWHERE.items()]
    missing = sorted((each for each in missing if not any(each[0] == figure for figure, _ in cases)), key=lambda each: int(each[0][1:]))
    if missing:
        parts.append("## Not taken yet\n\n" + _markdown(["figure", "what it would say"], [[name, title] for name, title in missing]))
    parts.append(NOT_COVERED)
    return "\n\n".join(parts) + "\n"


def _title(name: str) -> str:
    return FIGURES[name].title if name in FIGURES else ELSEWHERE.get(name, "")


def _summary(lines: Sequence[Line]) -> list[str]:
    line = lines[-1]
    runs = f"{len(lines)} runs: {sum(each.failures for each in lines):,} of {sum(each.n for each in lines):,} {line.of}"
    failures = f"{line.failures:,}" if not line.failures else f"**{line.failures:,}**"
    name = f"[{line.figure}](#{_anchor(line.figure)}) {_title(line.figure).partition(':')[0]}"
    return [name, line.case, f"{line.n:,} {line.of}", failures, _share(line.bound95), runs if len(lines) > 1 else ""]


def _anchor(name: str) -> str:
    words = f"{name} {_title(name)}".lower()
    return "".join(character for character in words if character.isalnum() or character in " -_").replace(" ", "-")


def _share(bound: float | None) -> str:
    if bound is None:
        return "–"
    return f"{bound:.2g} of them" if bound >= 0.01 else f"1 in {1 / bound:,.0f}"


def _section(name: str, lines: Sequence[Line]) -> str:
    figure = FIGURES.get(name)
    parts = [f"## {name} {_title(name)}"]
    if figure:
        parts += [
            f"**Test.** {figure.test}",
            f"**Must hold.** {figure.rule}",
            f"**Not covered.** {figure.left_out}",
            f"`{figure.command}`",
        ]
    if len(lines) > CASES_MAX:
        return "\n\n".join([*parts, _cases(lines)])
    for line in lines:
        rows = [["tried", f"{line.n:,} {line.of}" + "".join(f", {count:,} {what}" for what, count in line.also.items())]]
        rows.append(["failures", str(line.failures)])
        if not line.failures:
            bounds = [(line.n, line.of), *((count, what) for what, count in line.also.items())]
            rows.append(["95 % bound", "; ".join(f"{_share(min(1.0, 3 / count))} ({what})" for count, what in bounds if count)])
        rows += [[key.replace("_", " "), _text(value)] for key, value in line.detail.items() if not isinstance(value, list)]
        seed = "" if line.seed is None else f", seed {line.seed}"
        rows.append(["run", f"{line.started_at}, {line.wall_s:,.0f} s, commit {line.commit}{seed}"])
        rows.append(["machine", line.machine])
        title = f"{line.case}:\n\n" if line.case else ""
        parts.append(title + _markdown(["", "value"], rows))
        for key, value in line.detail.items():
            if isinstance(value, list) and value:
                parts.append(f"{key.replace('_', ' ').capitalize()}:\n\n" + "\n".join(f"- {_text(each)}" for each in value))
    return "\n\n".join(parts)


def _cases(lines: Sequence[Line]) -> str:
    """Many cases of one figure, a row each."""
    rows = [
        [line.case, f"{line.n:,}", str(line.failures), _share(line.bound95), _text(line.detail), f"{line.started_at}, commit {line.commit}"]
        for line in lines
    ]
    return _markdown(["", f"n {lines[0].of}", "failures", "fails less often than", "detail", "run"], rows)


def _text(value: object) -> str:
    if isinstance(value, dict):
        return (
            ", ".join(f"{key}: {_text(each)}" if isinstance(each, dict) else f"{key} {_text(each)}" for key, each in value.items())
            or "none"
        )
    return f"{value:,}" if isinstance(value, int) else str(value)


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


NOT_COVERED = """\
## Not covered by any of these

Real loss of power (what the kernel had not written is never lost here), real partitions between hosts, faults of the kernel, engines
on real GPUs, the outages of an operator's providers, and Kubernetes itself."""
