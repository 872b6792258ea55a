"""Renders docs/attacks.md: which attack on the data plane is tried by which test: `python scripts/attacks_page.py`.

A test carries the number of its row in its name (`test_24_duplicate_keys`), or as the beginning of a key of the table that it is
parametrised with (`"06-17-digits"`). What is not tested here cannot be listed, and what is listed is tested; a test holds the page in
step.
"""

import ast
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "attacks.md"

ROWS = {
    1: ("both framings in one request (CL.TE, TE.CL)", "400, nothing after it is read"),
    2: ("two lengths, equal or not; lists, signs, underscores, hexadecimal, none", "400, closed"),
    4: ("a transfer coding other than exactly `chunked`; twice; on HTTP/1.0", "400, closed"),
    5: ("folded lines, bare CR or LF, NUL, a space before the colon or the first header", "400, closed"),
    6: ("chunk sizes with signs, prefixes, 17 digits; line ends in extensions; data without its end", "400, closed"),
    8: ("trailers that name a credential, a length or a tenant", "without effect"),
    9: ("no Host, two, or one that is no host; a host that is not served", "400; 421"),
    10: ("absolute form of another host, upgrades, CONNECT, TRACE, other methods and versions", "400 or 405, never 101"),
    12: ("heads and bodies that trickle", "408 at the bound, closed"),
    13: ("a reader that stops reading", "its engine paused, memory bounded, hung up on at the bound"),
    14: ("idle, pipelined and too many connections", "bounded; 503 beyond; the others unaffected"),
    16: ("forged forwarding headers; twins with underscores", "ignored; 400"),
    17: ("ids, traces and sampling decisions of the client's", "our own id; only a whole trace goes on, with its sampling flag"),
    18: ("line ends, control characters, `${jndi:` in whatever is logged or echoed", "never in a header, a log line or an answer"),
    20: ("a body beyond the bound, announced or not; without a key; sent on after the refusal", "413 or 401 while it comes, closed"),
    21: ("other media types, charsets and codings", "415"),
    22: ("BOM, UTF-16, invalid UTF-8, lone surrogates, depth", "400 `invalid_json`"),
    24: ("duplicate keys, escaped, nested, in tools", "400 `duplicate_key`"),
    25: ("dot segments, encoded slashes, backslashes, NUL and bad UTF-8 in the target", "400; else 404"),
    26: ("NaN, infinities, 1e400, 5,000 digits", "400"),
    28: ("counts that are negative, zero, huge, boolean, text or fractions", "400"),
    29: ("fields that change identity, destination, order or cache; the same inside metadata", "400; never forwarded"),
    30: ("names that only look like a model", "404, as for one that is not allowed"),
    32: (
        "links in messages and system prompts to metadata, loopback, private networks, clusters, in every spelling; parts in shapes that no"
        " API defines",
        "400 before an engine receives it; names only under public top-level domains",
    ),
    33: ("links by other schemes, and addresses of IPv6 that hide private ones of IPv4", "400; names that resolve inward are the egress'"),
    34: (
        "`data:` URLs and other base64: too much of it, thousands of frames, a few bytes that unfold to gigabytes of pixels, tensors",
        "400 or 413 before an engine hears of it; bounds and types are settings",
    ),
    36: ("no key, a malformed one, one of 100 KB, too many headers", "401, 431 or 400 without a look-up"),
    37: (
        "unknown keys by the million; what time tells of a key that was",
        "401 alike in body, lines of code and time ([R17](reliability.md#r17-timing-of-refusals)); 429 per address",
    ),
    38: ("SQL, JSON, LDAP, spaces, other schemes in the credential", "401"),
    40: ("a key by another header or by a subprotocol; two credentials", "no difference; 400 if they differ"),
    41: ("a revoked key", "401 from the change on; what runs ends within a second"),
    42: (
        "two rotations of a key at once, a rotation of an expired key, a grace beyond the old expiry, a rotation while requests run",
        "one 200, the others 409; 409; the grace ends with the old expiry; no request fails, with either secret",
    ),
    44: ("a key of the other plane", "403"),
    45: ("a test key at deployments that are not for tests", "503, as for a model without a deployment"),
    46: (
        "access tokens that are forged: no algorithm, another one, the public key as a secret, a key of the client's own, demands in the"
        " header, changed or duplicated claims",
        "401 `invalid_token`",
    ),
    48: (
        "access tokens that are not for here: expired, not valid yet, without an end, too long-lived, of another issuer, audience, type or"
        " organization, with claims that no rule matches",
        "401 `invalid_token`",
    ),
    49: (
        "tokens in exchange for a secret, an assertion or a provider that is somebody else's, unknown, revoked or used before",
        "401 `invalid_client` or 400 `invalid_grant`, alike for foreign and unknown ones",
    ),
    50: (
        "codes of devices that are guessed, sent as a link or redeemed twice; refresh tokens that were copied;"
        " returns from identity providers that are used twice, changed, of another browser, flow, issuer or connection",
        "five tries; a link approves nothing; the whole login ends; nobody is signed in",
    ),
    52: (
        "ids of another organization in paths, bodies and the header, for every operation that takes one",
        "404, byte for byte as for ids that never were; nothing is changed",
    ),
    53: (
        "fields in bodies that say who one is, what one owns or may do, beside those of the operation",
        "400 `unknown_parameter` with the field; nothing is changed",
    ),
    54: (
        "keys, service accounts, roles and people with more than their maker has, over any chain of them",
        "403 `grant_exceeds_grantor`",
    ),
    56: ("a neighbour's prefix cache; keys of an engine's media cache", "a salt for each organization; 400"),
    57: ("labels of metrics by model, path and user", "names of the catalog only"),
    58: ("the last of a budget, asked for by several gateways at once", "together at most the limit"),
    60: ("leaving at any moment; usage omitted, negated, inflated, taken back", "its engine aborted; billed within what can be true"),
    83: (
        "invented names of end users, one for each request, to fill memory or to escape the limit of each end user",
        "10,000 of an organization are counted one by one, the rest together; only keyed hashes are kept",
    ),
    62: (
        "the server of shared limits killed, frozen, full, flushed or read-only, to be served without limits",
        "each gateway's share of the limit, within the deadline; exact again without a restart",
    ),
    64: ("an engine that redirects, switches, floods, compresses, mis-frames, or is somebody else", "502, nothing relayed"),
    65: ("an engine that never ends, falls silent, or talks on after the end", "an error event at the bound; never a silent end"),
    66: ("an engine's event fields, split lines, errors with our credential in them", "only the dialect's fields; never its text"),
    67: ("requests that fail at every engine, to take engines from neighbours", "no engine is ejected; 400 where its words say why"),
    68: ("an engine that answers unasked, or twice", "its connections are closed and used once each for a time; alarm"),
    79: (
        "a deployment's name that resolves to a cloud's metadata address, at once or later",
        "the connection is closed before a request or a credential is sent; 502",
    ),
    69: ("reports of more input than the request holds, or of one absurd total", "held to what can be true; named as an anomaly"),
    70: ("a byte after an answered request of control, and then silence", "closed at the bound, after a refusal too"),
    71: (
        "slow bodies, idle streams and many requests at control, with one key or many of an organization",
        "no place while a body is awaited; 429 above the share and the rate of an organization, an operator's key or a gateway; three"
        " requests of an organization are worked on at once, one while others ask; health and revocations wait for nobody",
    ),
    72: (
        "connections that are held open and idle until no descriptor is left",
        "connections bounded below the limit on open files; idle ones make way; no engine is blamed, records are shipped",
    ),
    73: (
        "uploads and answers that are broken off, to leave megabytes behind each",
        "everything of a connection is freed at its end, without the garbage collector",
    ),
    74: (
        "unfinished bodies and unread answers, as many as can be opened",
        "budgets per key, upstream and process: 413, 429 or 503 before a body is read; one unread answer per connection",
    ),
    76: (
        "bodies of hundreds of thousands of keys, and chunks of one byte or with long extensions",
        "400 `invalid_value` before they are parsed; 413 once the framing exceeds 64 KiB and a quarter of the body; 400 from control above "
        "2,048 chunks and one for each 64 bytes",
    ),
    77: ("clients of control that ask on and read nothing", "disconnected at the bound"),
    78: (
        "large bodies that take tens of milliseconds to read",
        "read by another process, in whose queue organizations take turns; others do not wait; one that fails or hangs is replaced",
    ),
    75: ("large bodies that come to nothing, again and again", "charged to the request rate by their head; 429 before the next is read"),
    80: (
        "a gateway that speaks in the name of another, or of one that does not exist: records, watermarks, acknowledgements, registration; "
        "requests that would open an epoch without a record",
        "403 `node_mismatch`, alarm, count; nothing is stored, and nothing waits for it",
    ),
    81: (
        "a gateway whose records mix the project or key of one organization with another, or date requests to 1970 or to the future",
        "quarantined with the reason, billed to nobody; a run dated so is refused with an alarm and listed, and kept by its gateway, which "
        "ships the others; it is ingested when the clocks agree or an operator accepts it",
    ),
    82: (
        "another user of the machine who reads copies of the snapshot, logs, archives or the database",
        "every file 0600, every directory 0700, repaired at each start; secrets that everyone could read end it",
    ),
    85: (
        "more requests of one organization for a model than its engines can take",
        "wait in a bounded queue that is fair between organizations; 429 or 503 at once beyond it; the others are served in their turn",
    ),
    86: (
        "one session, or prompts that look alike, in all requests, to gather them at one deployment",
        "charged with the whole prompt above a quarter of a deployment's share, so the others are chosen as soon as it has more to do",
    ),
    87: (
        "a tenant that creates projects, accounts, keys, budgets, raises and limits without end, many at once, or creates and ends them",
        "403 `quota_exceeded` beyond the quota, on both databases; what was ended counts for a day; other organizations unaffected",
    ),
    88: (
        "an idempotency key that is sent with another body or by another tenant, whose stored answer is altered, that comes without end, or"
        " whose sender leaves while its answer is stored, to get it free of charge later",
        "409, or a request of its own; an altered answer is never given nor asked again; 429 beyond the organization's share; billed once",
    ),
    89: (
        "an admin of roles, people, groups or keys who gives themselves more by one of them, or names a role as one that may less",
        "403 `grant_exceeds_grantor`, also to take something from somebody who holds more; 400 or 409 for such a role",
    ),
    90: (
        "the token of an invitation that is presented twice, at once, too late or elsewhere; an address that is two, or looks like another",
        "one person joins; 401 or 404 for the others; 400 for the address; the token is in one message and stored as a digest",
    ),
    139: (
        "handshakes of realtime sessions from scripts of other origins, without a key, with two, for models that are not allowed",
        "403, 401, 400 or 404 before the upgrade; no engine hears of it, and the key is not repeated",
    ),
    140: (
        "messages and frames of realtime sessions: no JSON, another model, links inwards, tools of servers, binary, endless, unmasked",
        "an event `error` and nothing passed on; 1002, 1003 or 1009 for what is no message",
    ),
    141: (
        "realtime sessions that are held open with a key that was revoked, or beyond limits, or that are not read",
        "3000 within a second; an error for each message; both ends are read no further, and the session ends after `write_stall_seconds`,"
        " when idle or too old",
    ),
    94: (
        "many connections of one organization to control that ask on without a pause",
        "its share and its turns are taken before its key is looked up, its refusals are spaced out, and health needs no worker thread",
    ),
    93: (
        "an engine that repeats an answer, or answers with that of another request",
        "noticed while its first connections rest, or by the request's id where it repeats ours; 502, alarm, connections used once each",
    ),
    92: (
        "thousands of fields that the model's policy drops, to be compared with each other",
        "each is looked up once",
    ),
    91: (
        "a person or a key that lost what it had, and goes on by a request that is still sent, or by the secret before a rotation",
        "401 or 403 from the next request on, and for one whose body took more than a second; no secret outlives its key",
    ),
    95: (
        "more requests than one gateway process has CPU time or memory for, with valid keys or without",
        "503 `overloaded` with `retry-after` for an eighth of new requests more each half second, up to seven eighths, before a key is"
        " checked; requests under way and health are served",
    ),
    99: (
        "issuers whose keys are at private, loopback or metadata addresses, by name, number or redirect; key sets of any size or kind",
        "400; each connected address is examined before a byte is sent",
    ),
    100: (
        "SQL in a transaction of one organization that reads or changes rows of another, or tables of the platform, on PostgreSQL",
        "no row, or permission denied; control does not start as a role that row security does not hold",
    ),
    101: (
        "a request, a part of a body or broken bytes that arrive after an answer and before the next pipelined request has its turn",
        "answered in its own turn: nothing overtakes, nothing is dropped",
    ),
    102: (
        "large bodies and answers, one after the other, whose memory the C library would keep for later ones",
        "returned to the operating system once they are over",
    ),
    104: (
        "a request of a project that may be served in certain regions only, or of a key that may use certain models only: while those fail,"
        " are full or have no deployment, and a fallback of the model is elsewhere or not allowed",
        "served there or not at all; 403 where no deployment is there; a fallback that is not allowed is never asked",
    ),
    108: (
        "invented names of end users, one for each request, to fill the accounts of budgets or to begin an end user's budget anew",
        "5,000 have an account at a gateway, 100,000 of a budget at control; one that gave way is recalled;"
        " further names are refused to organizations that have their part",
    ),
    110: (
        "signing in as somebody with more permissions: a link for them, a reset, their sessions, a provider of one's own",
        "403 `grant_exceeds_grantor`",
    ),
    111: ("session fixation: a session planted in the browser of somebody who then signs in", "a new secret; the planted session ends"),
    112: ("cookie tossing: a second cookie of the same name from another host of the domain", "`__Host-`; two are none"),
    113: ("a form or a program of another site that uses the session of a browser", "403 `csrf_failed`; the REST API takes no cookie"),
    114: ("open redirect: a sign-in that leads to another site", "to the account page"),
    115: ("the token of a directory used for anything but SCIM, or for another organization", "403; 404 as for ids that never were"),
    116: (
        "a person whom the directory deactivated: with their keys, sessions, keys that they made, an invitation or a link",
        "401, 404, 409 `conflict`",
    ),
    117: (
        "client certificates that sign themselves, of an authority of the same name, expired, of servers, deactivated;"
        " of another organization",
        "401 `invalid_client_certificate`; at the handshake an alert",
    ),
    118: (
        "a forged `client-cert` or `x-forwarded-client-cert`; somebody else's certificate in a name of one's own",
        "ignored but from trusted proxies; 401 `invalid_api_key` for a header with more than one certificate",
    ),
    122: (
        "forms that two parsers may read differently: preambles, padded or missing boundaries, bare line feeds, endless headers,"
        " headers and fields that stand twice, files that contain a boundary",
        "400 `invalid_form` or `duplicate_key`; the engine gets a form of ours, with a boundary that the client could not know",
    ),
    123: (
        "an engine that breaks off sound, so that a client could take it for whole",
        "the connection is reset, the sound is not billed; sound without a length or chunks is never whole",
    ),
    124: (
        "ids of files of another project or organization; stored files that were altered, shortened or moved to another tenant's place",
        "404 as for one that does not exist; 503 `files_unavailable` for what cannot be opened, and no byte of it",
    ),
    126: (
        "ids of stored responses of others: read, continued, deleted, cancelled; floods of requests for them",
        "as an id that never was, byte for byte; 503 beyond an organization's share",
    ),
    103: (
        "bodies of up to 64 KiB that are never finished, without a key, on as many connections as there are",
        "who sends one is checked after a second, as for a large one: 401, closed; those of keys count in their budget for buffered bytes",
    ),
    106: (
        "conversations of up to a megabyte that are stored or continued, to hold up the event loop or to fill memory by short requests",
        "read and made whole by the processes for large bodies; they count in the key's budget for buffered bytes; of a stored one only the"
        " items of the page that is asked for are read",
    ),
    107: (
        "many connections or slow bodies at control of somebody who has no key: pages, tokens, paths that are not there, invented keys",
        "unauthenticated clients share by their address, as the keys of an organization do; others wait for none of them",
    ),
    128: (
        "batches whose lines take long to check, many in one file",
        "checked for a millisecond at a time, half of the time at most; large ones by the processes for large bodies",
    ),
    129: (
        "long messages of realtime sessions that take tens of milliseconds to read",
        "an event `error` before they are parsed: at most 4,000 keys, 10,000 arrays and objects, 50,000 values",
    ),
    109: (
        "a grant of credit, a close or a delivery of records that is repeated, to have credit twice or to burn it twice",
        "each transaction of credit has an id that derives from its cause, and what a period burns replaces what was there",
    ),
    119: (
        "a report of leaked keys that is not signed, whose signature is of another body, or that names a key which nobody published",
        "401 `invalid_signature`, and nothing of it is read",
    ),
    120: (
        "reports of leaked keys without end, of nonsense, or of far too many secrets; names of signing keys that are invented",
        "400 or 429; keys are fetched every 30 seconds at most; of a secret one learns only whether it is one",
    ),
    121: (
        "a key, the credential of an upstream, a password, a prompt in whatever field, address, header or form takes it, while engines fail"
        " and repeat it",
        "in no log, error, metric, trace, audit record, table, file, page of the console, webhook or record of a sink but those for it",
    ),
    127: (
        "requests that differ from a cached one of another tenant in nothing, or in type alone; floods of answers to cache",
        "never an answer of another project; an organization displaces its own answers only",
    ),
    136: (
        "batches whose lines name forbidden models, endpoints or fields, stream, repeat an id, or are no JSON",
        "the batch is `failed` with an error for each line, before anything is sent or billed",
    ),
    137: (
        "ids of batches of another project; batches that were moved to another tenant's place; keys for some endpoints alone",
        "404 as for one that does not exist; 503 `files_unavailable`; 403 `insufficient_scope`",
    ),
    157: (
        "an invoice that is issued twice, by several at once, or while control is killed, to have one number twice or to leave one out",
        "the transaction that issues it takes its number: all of it is there, or a draft without a number",
    ),
    158: ("drafts, and invoices of another organization, in a list, by id or as a file", "404 as for one that does not exist"),
    159: (
        "a bank statement that is imported twice, in whole or in part, to be credited twice",
        "statements and entries are known by what the bank calls them: the second time changes nothing",
    ),
    149: (
        "a bank statement with thousands of nested elements, of namespaces, or of transactions beside elements that nobody reads",
        "refused with the reason; an entry is looked through once, not for each of its transactions",
    ),
    165: (
        "events that claim to come from Stripe: not signed, signed by others, old, changed, or sent again",
        "401 unless Stripe signed all of it within five minutes; each payment is recorded once",
    ),
    160: (
        "an issued invoice that is edited in the database, with a digest that fits",
        "a trigger refuses it; past that, `tollway verify` computes it again from the events of its period",
    ),
    162: (
        "a webhook to a private address: as a number, in an IPv6 form, by a name, or by a name that resolves to another address later",
        "400 with the field at creation; at each attempt all addresses are checked and the connection is made to a checked one",
    ),
    156: (
        "a host that an organization names (a webhook, an export, an identity provider) and that answers `100 Continue`, headers, "
        "trailers or chunks of one byte without end, or a body of a terabyte",
        "left after 64 KiB of framing, or at the bound of the document; a little is read in each turn of the loop; no more than the status "
        "where nothing else is wanted",
    ),
    163: ("webhook endpoints that answer slowly", "each attempt ends after 10 s, and those of other organizations do not wait for them"),
    180: (
        "an organization that asks for what serving it costs, or for the margin on it",
        "403; costs and margins stand in no answer to an organization, and row security hides their tables",
    ),
    161: (
        "contracts and bills of another organization; a contract that begins in a closed month; a charge that is edited in an export",
        "404 as for one that does not exist; 400; the verifier computes the charge again from the records",
    ),
    138: ("a batch that goes on after its key was revoked", "what runs is interrupted, nothing more is sent, the batch is `failed`"),
    155: (
        "bodies that are not what an API takes: of another type, broken, empty, doubled, compressed, deep; at every API",
        "400 or 415 in the API's own shape; no engine is asked",
    ),
    154: (
        "ids of responses in the background of others: read, deleted, cancelled, listed as batches",
        "as an id that never was, byte for byte; the response goes on",
    ),
    105: (
        "requests and answers of megabytes that a guardrail checks, as many at once as there are connections",
        "their copies count in the key's budget for buffered bytes: 413 or 429 before anything is copied",
    ),
    130: (
        "realtime messages in frames of one byte or none, pings and short messages without a pause",
        "1009 above 1,024 frames of a message; 200 frames of a client are read in a second, and 500 at once; the rest waits unread",
    ),
    131: (
        "an engine whose answer ends in endless trailers or extensions of chunks, or that begins responses of a realtime session endlessly",
        "at most 64 KiB are read that bring no part of a body; 64 responses of a session; then the connection is closed, and each is ended",
    ),
    132: (
        "an operator's key that may change deployments and does not know their credentials, and gives one another address",
        "400 unless the credential of the new host is named with it, or none",
    ),
    134: (
        "many large answers or bodies at once, each as fast as it goes, so that each turn of the event loop is long",
        "read in turns: in each turn of the loop a part of one of them",
    ),
    133: (
        "an engine that claims images that are not there, or shows more output of a realtime response than one can have, and reports none",
        "an image is billed that the answer has; output up to what the response may have",
    ),
    142: (
        "an operator who signs in, as a member of groups of both origins, to approve what they asked for",
        "one origin, the first, also for the keys that they make",
    ),
    143: (
        "a record of the audit trail that is changed as if something had been erased in it",
        "refused by the database; found by `tollway audit verify`",
    ),
    144: (
        "links to addresses that look public: hosts of clouds' metadata outside the private networks, ranges of IPv4 and IPv6 that are"
        " reserved, unassigned or lead inwards",
        "400 before an engine receives it",
    ),
    145: (
        "links and servers where the checks of links do not look: texts in place of media objects, tools that an engine would run",
        "400 `invalid_value`",
    ),
    146: (
        "fields of engines whose members do what the fields themselves may not: arguments of the function that renders a template, which"
        " pad a prompt or make the engine fail; expressions and grammars beyond their bounds in `structured_outputs`",
        "400 `invalid_value`",
    ),
    150: (
        "gRPC: no key, messages that are none, tensors whose bytes disagree with their shapes, shared memory, sequences, too much metadata,"
        " compressed messages, methods that administer an engine",
        "a status that names the fault, before an engine hears of it",
    ),
    151: ("gRPC: calls that are cancelled, or whose deadline passes", "the engine's call is cancelled, and the record says so"),
    152: ("gRPC: streams that are held open idle, or with a key that was revoked", "ended within about a second, or when idle too long"),
    153: ("gRPC: more calls than the port takes, or than limits allow", "RESOURCE_EXHAUSTED, with the time to come back"),
    166: ("the console: scripts, markup, Markdown and template syntax in names that pages show", "shown as text; no script of others runs"),
    167: ("the console: forms of another site, without the session's token or origin; pages in a frame", "403; frames are forbidden"),
    147: (
        "links that sign an operator in: used twice, after their time, after another one, after the end of their key, made without a key",
        "401 with one text; 409 for whoever has a session; the link is in no log",
    ),
    148: ("actions of the console that cannot be undone, without the name that is asked for", "400, and nothing is changed"),
    168: ("the console: names that begin like a formula, in files for spreadsheets", "an apostrophe stands before them"),
    173: (
        "the playground: a project without the permission to make keys in it, a project of another organization, a form without the token",
        "403 or 404, before a gateway is asked",
    ),
    169: ("the console: cookies that another site set, return addresses that lead elsewhere", "known values count; paths of this site"),
    191: (
        "a large body that an engine answers before it has read it, so that the next request on its connection waits behind it",
        "the connection is closed where the body was refused, or the gateway's kernel still holds a part; the next request has another",
    ),
    192: (
        "thousands of connections that are opened and closed, so that later ones wait in the kernel's queue for as many turns of the loop",
        "up to 64 are accepted in each turn",
    ),
    181: (
        "identity providers of an organization whose name servers do not answer, so that each look-up keeps a thread of control",
        "names that organizations chose have threads of their own: four for each organization, 128 in all",
    ),
}  # fmt: skip
"""Attacks that are tried, and what they get. The rows between are the control plane's, or need what is not served yet."""


class Measured(NamedTuple):
    """An attack whose cost is not CPU, the rows that it belongs to, what it did once, and what it does now."""

    attack: str
    rows: str
    once: str
    now: str


MEASURED = (
    Measured(
        "a body that its engine answers early, then requests of another organization",
        "191",
        "one waited 45 s (1.5 MB) or 40 s (20 MB)",
        "1.8 s and 4.3 s at most in 20 requests, as others at that load; none on the connection of the body",
    ),
    Measured(
        "an engine that repeats each answer 0 to 10 ms later",
        "68, 93",
        "296 of 6,000 requests got another organization's answer",
        "0 of 6,600; a third got 502, with one alarm, and each connection was used once",
    ),
    Measured(
        "an engine that sends 408 on an idle connection and closes it",
        "68",
        "the next client's 400",
        "300 of 300 requests answered 200",
    ),
    Measured(
        "another address of a deployment without the credential for it, in four spellings",
        "132",
        "the new host got the credential",
        "400 each; the new host got nothing",
    ),
    Measured(
        "one gateway's key: in the name of another gateway, and acknowledgements of 196 that are none",
        "80",
        "a revocation waited for all of them",
        "403 each; a revocation took 0.2 s and waited for none",
    ),
    Measured(
        "the same key: runs of 1970 and 2076, records that mix organizations or invent prices, models and instants",
        "81",
        "billed to the organization that is named",
        "403; 7 of 7 records quarantined, none billed",
    ),
    Measured(
        "2,147,483,647 prompt tokens for two letters",
        "69",
        "billed",
        "4,158 billed, which a request of that length can have",
    ),
    Measured("files that another user may read", "82", "copies of the snapshot, logs", "none of 34"),
)

OPENING = """# Attacks on the data plane

Made by `make docs` from `scripts/attacks_page.py` and the names of the tests; change it there.

What a client or an engine may try, what it gets, and the tests that try it. Beside these, `tests/wire` and `tests/gateway/test_flood.py`
bend the same inputs at random on every run, and `make fuzz` searches every parser guided by coverage.

| row | attack | what it gets | tests |
|--:|---|---|---|
"""

CLOSING = """
## Waits and what ends them

Each wait of a listener for its client has a deadline. Settings are those of `gateway.edge`; the control plane's are constants
(`serve/http_protocol.py`, `control/api/app.py`).

| wait for | gateway, public | gateway, internal | control: REST API and link |
|---|---|---|---|
| a PROXY header, a TLS handshake | `opening_seconds` each | | |
| the first or next request | `keep_alive_seconds` | `head_seconds` | 15 s for the first, then 75 s |
| the rest of a head | `head_seconds` | `head_seconds` | 15 s |
| the rest of a body | `body_rate_min` after `body_grace_seconds`, `body_seconds` in all | none is read | 30 s |
| an answer | the timeouts of `gateway.relay` | none: it is there | 10 minutes for a followed stream |
| a client to read | `write_stall_seconds`; for a whole answer, for each tenth of what is left | `write_stall_seconds` | 30 s |
| a refused client to stop sending | `linger_seconds` | `linger_seconds` | closed at once |
| TLS to close | `opening_seconds` | | |
| a place | 503 above `connections_max` | closed above `internal_connections_max` | closed above 4,096 |

Connections that have been idle longest are closed before another one is refused (row 72). What one API key can hold of the memory for
large bodies is bounded by `gateway.buffers` (rows 74 and 75). Who sends a smaller one is checked once it has been awaited for a second
(row 103). A body above 64 KiB is read by another process (row 78), whose rules are
the gateway's own. The gateway keeps it in the pieces in which it arrived and never joins them, so that other requests wait for less than
1 ms whatever its size. Where no reader process runs it reads the body itself, and a request that a fallback model takes is edited in
one step. A conversation that is stored or continued is read and made whole by such a process from 16 KiB on, however short the request
(row 106). A body that is translated for an engine is translated once. A body of up to 64 KiB is read in one step of up to 6 ms
(`python -m bench.pauses` measures both). What each
attack costs the attacker, the gateway and others is measured in [R18](reliability.md#r18-attacks-on-memory-cpu-and-the-time-of-others).

## Attacks whose cost is not CPU

Tried with raw sockets against a running platform with two organizations (2026-11-30, 2 cores that others used: load 20). *Once* is what
the same attack did before its row.

MEASURED

## Prefix caches that organizations share (row 56)

An engine keeps the prompts that it computed, and answers a prompt with the same beginning faster and with `cached_tokens` above zero.
Whoever sends a guessed beginning learns so whether somebody sent it before. Engines separate organizations by a salt in the request
(`cache_salt`) at some endpoints only:

| engine | separated by its own salt | shared unless the operator decides |
|---|---|---|
| vLLM, the simulator | all endpoints | |
| SGLang | chat completions, completions, responses | messages |
| TensorRT-LLM (1.1 and later) | chat completions, completions, messages | responses |
| Dynamo, llama.cpp, other servers of OpenAI's API | | chat completions, completions, messages, responses |

An endpoint that is translated to chat completions (docs/apis.md) is separated as these are: messages of TensorRT-LLM always, others where
`translated_endpoints` of a deployment names them. `cache_isolation` of a deployment decides, unless its model has `share_cache: true`:

- `engine` (default): the engine's salt where it has one. Elsewhere the cache is shared, and `tollway apply` and
  `tollway models deploy` warn of it.
- `prompt`: where the engine has no salt, the organization's salt becomes the first bytes of the system prompt (32 characters and a line
  end, about 20 tokens, which the model reads and the client pays). Completions have no system prompt: their cache stays shared.
- `dedicated`: the deployment serves one organization; list its model only in that organization's projects.
- `accepted`: the operator accepts that organizations share the cache.
"""


def render() -> str:
    """The page. Raises ValueError for a row without a test, or a test without a row."""
    tests = find_tests((ROOT / "tests").rglob("test_*.py"))
    if tests.keys() != ROWS.keys():
        raise ValueError(f"rows without a test: {sorted(ROWS.keys() - tests.keys())}; without a row: {sorted(tests.keys() - ROWS.keys())}")
    rows = "".join(
        f"| {row} | {attack} | {answer} | {'<br>'.join(_line(file, names) for file, names in sorted(tests[row].items()))} |\n"
        for row, (attack, answer) in ROWS.items()
    )
    measured = "".join(f"| {' | '.join(each)} |\n" for each in MEASURED)
    return OPENING + rows + CLOSING.replace("MEASURED\n", f"| attack | row | once | now |\n|---|---|---|---|\n{measured}")


def _line(file: str, names: list[str]) -> str:
    return f"[{Path(file).stem}](../{file}): {', '.join(names)}"


def find_tests(files: Iterator[Path]) -> Mapping[int, Mapping[str, list[str]]]:
    """For each row, the names of its tests by file; a table's cases are counted."""
    found: dict[int, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for path in sorted(files):
        module = ast.parse(path.read_text())
        tables = {name: cases for node in module.body for name, cases in _tables(node)}
        file = str(path.relative_to(ROOT))
        for test in (node for node in ast.walk(module) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)):
            if match := re.match(r"test_(1\d\d|\d\d)_", test.name):
                found[int(match[1])][file].append(f"`{test.name.removeprefix('test_')}`")
            names = {node.id for decorator in test.decorator_list for node in ast.walk(decorator) if isinstance(node, ast.Name)}
            for row, count in (case for name in names & tables.keys() for case in tables[name].items()):
                found[row][file].append(f"`{test.name.removeprefix('test_')}` ({count})")
    return found


def _tables(node: ast.stmt) -> Iterator[tuple[str, dict[int, int]]]:
    """A table of cases at the top of a module: its name, and how many of its keys begin with each row."""
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    value = node.value if isinstance(node, ast.Assign | ast.AnnAssign) else None
    if isinstance(value, ast.Dict) and targets and isinstance(targets[0], ast.Name):
        cases: dict[int, int] = defaultdict(int)
        for key in value.keys:
            if isinstance(key, ast.Constant) and (match := re.match(r"(1\d\d|\d\d)-", str(key.value))):
                cases[int(match[1])] += 1
        yield targets[0].id, cases


if __name__ == "__main__":
    PAGE.write_text(render())
