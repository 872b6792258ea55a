"""Renders docs/errors.md, every error code with its meaning and its remedy: `python scripts/errors_page.py`.

Codes, statuses, types and messages are those of the kinds of faults that the program has; a test holds the page in step and finds a code
without an explanation here.
"""

import importlib
from collections.abc import Iterator, Mapping
from pathlib import Path

from tollway.domain.faults import FaultKind

PAGE = Path(__file__).parent.parent / "docs" / "errors.md"

SOURCE = Path(__file__).parent.parent / "src" / "tollway"

OPENING = """# Errors

Made by `make docs` from the faults of the program and the texts of `scripts/errors_page.py`; change them there.

An error of an OpenAI path, and of the REST API of control, is
`{"error": {"message": "…", "type": "…", "param": null, "code": "…"}}`; an error of `/v1/messages` has Anthropic's shape, with the type that
Anthropic has for its status. Programs decide by `code`; a message may change, and often names what is wrong more exactly than the one shown
here. `param` names the field at fault.

- Every answer has `x-request-id`; quote it. A request that was refused costs nothing ([outcomes.md](outcomes.md)).
- `retry-after` and `retry-after-ms` say when to come back: on every 503, and on 429 where waiting helps. Official SDKs obey them. Other
  4xx fail again until the request, the key or the account changes.
- Once the answer of a stream has begun, an error comes as its last event, and the stream has no `[DONE]`. What was delivered until then is
  billed.
"""

SECTIONS: Mapping[str, Mapping[str, tuple[str, str]]] = {
    "The connection and the form of a request": {
        "malformed_http": (
            "The bytes are not HTTP/1.1, or could be read in two ways. The connection is closed.",
            "Use an HTTP library; look for a proxy in between that changes headers.",
        ),
        "invalid_target": ("The path has dot segments, encoded slashes or bytes that no path has.", "Send the path as it is documented."),
        "method_not_allowed": ("The path exists, with other methods.", "Use one of the methods that `allow` of the answer names."),
        "expectation_failed": ("The header `expect` asks for something that is not offered.", "Send no `expect`, or `100-continue`."),
        "headers_too_large": (
            "The request line and the headers together are too large, or too many (`gateway.edge`).",
            "Send fewer or smaller headers; cookies and tracing baggage of other services are the usual reason.",
        ),
        "uri_too_long": ("The path and its query are too long.", "Send values in the body."),
        "body_too_large": (
            "The body is larger than the bound of the path, or than the memory for bodies ever allows one key.",
            "Send less; the operator's bounds are `gateway.edge` and `gateway.buffers` ([settings.md](settings.md)).",
        ),
        "request_timeout": ("The head or the body did not arrive in time.", "Send the request without pauses."),
        "unsupported_media_type": ("`content-type` is not JSON in UTF-8.", "Send `content-type: application/json`."),
        "unsupported_content_encoding": ("The body is compressed.", "Send it without `content-encoding`."),
        "misdirected_request": (
            "The host of the request is not one that is served here.",
            "Use the address that you were given; operators list hosts in `gateway.edge`.",
        ),
        "websocket_expected": (
            "The path is for WebSocket connections, and the request does not ask for one in version 13 (RFC 6455).",
            "Use a client of the realtime API, with the scheme `ws` or `wss`.",
        ),
        "origin_not_allowed": (
            "A script in a browser asked for a session, from an origin that is not listed.",
            "Operators list origins in `gateway.cors.origins`.",
        ),
        "not_found": (
            "Nothing is at this path, or there is no resource with this id. A resource of another organization looks the same.",
            "Check the path (OpenAI's SDKs want a base URL that ends in `/v1`, Anthropic's one that does not) and the id.",
        ),
        "invalid_json": ("The body is not one JSON object in UTF-8, or has a number that JSON has not.", "Send valid JSON."),
        "invalid_form": (
            "The body is not a form in the shape that clients write (docs/apis.md), or is written so that two readers could see two forms.",
            "Send it as OpenAI's clients do.",
        ),
        "duplicate_key": ("An object of the body has a key twice, so that two readers could see two requests.", "Send each key once."),
        "invalid_value": ("A value has the wrong type or is out of its range; `param` names it.", "Change it as the message says."),
        "missing_required_parameter": ("A field that the API needs is missing; `param` names it.", "Add it."),
        "unknown_parameter": (
            "Neither the API nor an engine of the model has this field, or it could change identity, destination or price.",
            "Leave it out. Operators may drop or forward unknown fields of a model (`unknown_parameters`).",
        ),
        "invalid_image_url": (
            "A link in the messages leads to a private network, or is not one that an engine may fetch.",
            "Send the picture as a data URL, or a public `https` link.",
        ),
        "invalid_media": (
            "A picture, sound, film or file has a type or a form that is not accepted.",
            "Convert it; the message says what.",
        ),
        "media_too_large": (
            "Media in the messages have too many bytes, pixels or frames (`gateway.media`).",
            "Send smaller or fewer ones.",
        ),
    },
    "Keys and permissions": {
        "ambiguous_credentials": (
            "Two headers hold different keys.",
            "Send one key: `authorization: Bearer`, `x-api-key` or `api-key`. Look for a second one in the environment of the program.",
        ),
        "invalid_api_key": (
            "The key is missing, unknown, revoked or expired; the answer is the same, so that nobody learns which.",
            "Check the key, and whether it is for this address (`tollway keys list` shows state and expiry).",
        ),
        "invalid_token": (
            "The access token is refused; the message says why: it has expired, its issuer or audience is not trusted, its signature does"
            " not match, no rule of the identity provider matches its claims, or the key that it stands for was revoked.",
            "Ask for another token; see docs/identity.md for what a token must say.",
        ),
        "invalid_client_certificate": (
            "The client certificate is expired, was not issued by an active certificate of the organization that `openai-organization`"
            " names, or no rule matches it. The answer is the same for each.",
            "See docs/certificates.md; `tollway certificates list` shows what is active.",
        ),
        "session_missing": ("The page is for people who signed in, and the session has ended.", "Sign in again."),
        "sign_in_refused": (
            "The address, the password, the code or the link is not right. The answer is the same for an unknown address.",
            "Name the organization if you are in several; ask an owner for a link (`tollway users link`).",
        ),
        "csrf_failed": (
            "A form was not sent from a page of this site, or from a page of another session.",
            "Open the page again. Behind a proxy, `control.public_url` is the address that people use.",
        ),
        "identity_provider_unavailable": (
            "The identity provider of the organization did not answer, or its metadata name another issuer or a private address.",
            "Try again; the log of control has the reason. An issuer in a private network must be in `control.private_issuers`.",
        ),
        "too_many_sign_ins": (
            "Too many passwords or codes were tried for one account, or were wrong from one network address.",
            "Wait 15 minutes. A one-time link, the identity provider and sessions that exist are not concerned. If the address in the"
            " audit trail is that of a proxy, name it in `control.trusted_proxies`.",
        ),
        "insufficient_scope": (
            "The key is of another kind than the path needs, or is not allowed to call it.",
            "Use an API key for inference, an admin key for the organization, a platform key for operators.",
        ),
        "address_not_allowed": ("The key may be used from other addresses only.", "Send from one of its address ranges, or widen them."),
        "too_many_failed_authentications": (
            "Too many wrong keys came from your address.",
            "Stop sending the wrong key, and come back after `retry-after`. A right key is served meanwhile.",
        ),
        "response_not_found": (
            "The project has no stored response of this id, or its time is over.",
            "Ask with a key of the project that made it; `response_retention_seconds` of the organization says for how long it is stored.",
        ),
        "previous_response_not_found": (
            "`previous_response_id` names no stored response of the project.",
            "Send the whole conversation as `input`, or continue a response that was made with `store: true`.",
        ),
        "response_not_cancellable": (
            "The response was made while its client waited: it has ended, and there is nothing to cancel.",
            "Close the connection of a request to end it.",
        ),
        "content_policy_violation": (
            "The guardrail of the model denied the request, or its answer ([guardrails.md](guardrails.md)). The message may say why.",
            "Change the content; the same request is denied again.",
        ),
        "content_too_long_to_check": (
            "The request is longer than the guardrail of the model checks (`gateway.guardrail.document_bytes_max`).",
            "Send less, or ask the operator to raise the bound.",
        ),
        "guardrail_unavailable": (
            "The guardrail of the model did not check in time, and nothing passes without it.",
            "Come back later. Operators look at `tollway_guardrail_verdicts_total` and `gateway.guardrail`.",
        ),
        "model_not_found": (
            "There is no such model, or the key, its project or its price list does not offer it.",
            "`GET /v1/models` lists what the key may use. Operators: a model needs a price in the organization's currency.",
        ),
        "endpoint_not_supported": (
            "The model is not offered at this API, or its engines have not got it.",
            "Use an API of the model (`endpoints` of `GET /v1/models`).",
        ),
        "unsupported": (
            "The resource is one of OpenAI's admin API that has no counterpart here, such as certificates.",
            "Do without it; its list is always empty.",
        ),
        "grant_exceeds_grantor": ("A new key would be allowed more, or live longer, than the key that makes it.", "Ask for less."),
    },
    "Limits, quotas and budgets": {
        "rate_limit_exceeded": (
            "A limit on requests, tokens or concurrency is used up, or a spent budget throttles requests; the message names what binds.",
            "Come back after `retry-after`. `GET /v1/limits` shows each limit and what is left ([limits.md](limits.md)). A request larger"
            " than the limit itself has no `retry-after`: make it smaller.",
        ),
        "insufficient_quota": (
            "A hard budget has too little left for the most that the request can cost; the message has budget and shortfall.",
            "Wait for the next window, lower `max_tokens`, or have the budget raised ([budgets.md](budgets.md)).",
        ),
        "max_cost_exceeded": (
            "The request may cost more than its own `x-max-cost` allows.",
            "Raise that header or lower `max_tokens`; `POST /v1/quote` says what it may cost.",
        ),
        "budget_unavailable": (
            "The gateway has spent its share of a hard budget and cannot reach control for more.",
            "Come back after `retry-after`. Operators: see why the gateway does not reach control.",
        ),
        "quota_exceeded": (
            "The organization has as many of these resources as it may have, or has made as many today.",
            "Archive or revoke some; operators raise `control.quotas`.",
        ),
    },
    "Models and their engines": {
        "invalid_request": ("The engine refused the request as wrong; its text, made safe, is the message.", "Change it as the text says."),
        "context_length_exceeded": (
            "Prompt and output together are longer than the model's context.",
            "Shorten the prompt or lower `max_tokens`.",
        ),
        "summary_incomplete": (
            "A conversation was to be compacted, and its summary was cut at the bound on the output or the end of the model's context. What"
            " the model wrote is billed.",
            "Compact a shorter part of the conversation, or let the key or the model allow more output.",
        ),
        "model_overloaded": (
            "All deployments of the model are full, and waiting would take too long.",
            "Come back after `retry-after`. Operators: add deployments, or see `gateway.queue`.",
        ),
        "no_upstream": (
            "No deployment of the model can be used now: all are down, drained or of the wrong mode for the key.",
            "Come back after `retry-after`. Operators: `tollway models deployments`, and the log lines of upstreams.",
        ),
        "region_not_served": (
            "The project may only be served in certain regions, and no deployment of the model is in one of them.",
            "Ask for another model. Operators: `tollway models deployments` shows regions; a deployment without one serves no restricted"
            " project. `tollway projects residency` changes what the project allows.",
        ),
        "upstream_unreachable": ("The connection to the engine failed.", "Try again. Operators: is the engine up, is its address right?"),
        "upstream_stale": ("The engine closed a kept connection as the request was sent.", "Try again."),
        "upstream_connect_timeout": ("The engine did not accept the connection in time.", "Try again later."),
        "upstream_rate_limited": ("The engine answered 429.", "Come back after `retry-after`."),
        "upstream_error": (
            "The engine failed, refused the work, or cannot serve the model or the path.",
            "Try again. Operators: the log line of the request has what the engine said; `upstream_misconfigured` needs a change of the"
            " deployment.",
        ),
        "upstream_cut": ("The engine broke its answer off.", "Try again; what a stream had delivered is billed."),
        "upstream_invalid": ("What the engine answered is not an answer of this API.", "Try again. Operators: is the engine's kind right?"),
        "deadline_exceeded": (
            "The time passed that the client gave the request (`x-request-timeout`, or the timeout that its SDK sends).",
            "Allow more time, ask for less output, or stream. What an engine had reported until then is billed, as if the client had left.",
        ),
        "upstream_timeout": (
            "The engine did not begin in time, fell silent, or the whole request took too long (`gateway.relay`).",
            "Ask for less output, or stream. Operators: the deadlines are settings.",
        ),
        "answer_too_large": (
            "The answer, or one event of it, is larger than the gateway relays.",
            "Ask for less at once. Operators: the bounds are in `gateway.relay`.",
        ),
    },
    "The platform": {
        "overloaded": ("The gateway or control is at capacity.", "Come back after `retry-after`."),
        "draining": ("The gateway is being replaced.", "Try again at once on a new connection."),
        "metering_unavailable": (
            "The request could not be recorded durably, so it was not served.",
            "Come back after `retry-after`. Operators: is the disk of the spool full or failing? `tollway doctor` says.",
        ),
        "files_unavailable": (
            "The store of files fails, its disk is nearly full, or a file was altered or sealed under another key.",
            "Try again; tell the operator if it lasts.",
        ),
        "not_ready": (
            "The gateway has no snapshot of keys and models yet.",
            "Come back after `retry-after`. Operators: does it reach control?",
        ),
        "stored_responses_unavailable": (
            "A stored response cannot be read or deleted, because the gateway does not reach control or its database.",
            "Come back after `retry-after`, or send the whole conversation as `input`.",
        ),
        "snapshot_outdated": (
            "The gateway has not reached control for longer than `gateway.snapshot_age_seconds_max`.",
            "Operators: restore the connection to control; the gateway serves again by itself.",
        ),
        "internal_error": ("A defect of Tollway.", "Quote `x-request-id` to the operator; the log line of the request has the details."),
        "key_encryption_unavailable": (
            "Vault or KMS, which unwraps the data key of the organization, is away. Inference goes on, and so does what seals nothing.",
            "Come back after `retry-after`.",
        ),
        "database_unavailable": ("Control cannot reach its database. Inference goes on.", "Come back after `retry-after`."),
    },
    "Administration": {
        "conflict": (
            "Something of this name exists, or the state of the resource does not allow the change; the message says which.",
            "Read the resource again, and decide by its state.",
        ),
        "idempotency_in_progress": (
            "A request with the same `Idempotency-Key` is being served.",
            "Ask again with the same key after `retry-after`; its answer is kept for you.",
        ),
        "idempotency_key_reused": ("The `Idempotency-Key` came before with another body.", "Use a new key for another request."),
        "idempotency_unanswered": (
            "A request with this `Idempotency-Key` was carried out or is at work, and its answer is not stored.",
            "Look whether the resource is there before you send the request with a new key.",
        ),
        "price_missing": ("A model without a price that is valid now cannot be published.", "`tollway models price`, then publish."),
        "invalid_price": (
            "Prices are never retroactive and follow each other; the message says what is wrong.",
            "Change the instant or tier.",
        ),
        "doubtful_price": (
            "The check of a draft of prices has warnings, such as a change by more than a factor of ten.",
            "Correct the draft, or publish it with `--accept-warnings` ([prices.md](prices.md)).",
        ),
        "webhook_unreachable": (
            "A test event did not reach the webhook endpoint: its name, its address, its certificate or the receiver failed.",
            "The message says which; see which addresses are allowed in [events.md](events.md#addresses).",
        ),
        "invalid_signature": (
            "A report of leaked keys or an event of Stripe has no signature, one that its sender did not make, or an old one.",
            "Nothing, if nobody of yours sent it: it was not read ([keys.md](keys.md#leaked-keys)).",
        ),
        "reporter_keys_unavailable": (
            "Control cannot fetch the keys with which reports of leaked keys are signed.",
            "Let control reach `control.leaked_keys.github_keys_url`; the reporter sends its report again.",
        ),
        "period_blocked": (
            "A billing period cannot be closed, because records may be missing or wait in quarantine.",
            "`tollway periods blockers PERIOD` lists each reason; [money.md](money.md) has the remedies.",
        ),
    },
    "Between gateways and control": {
        "node_mismatch": (
            "A gateway acts for another node than its key is for.",
            "Give each gateway a node of its own (`tollway nodes create`); see who uses the key of this one.",
        ),
        "epoch_refused": (
            "A gateway states a run that began in the future or before its node existed.",
            "Set the clock of the gateway right. What it recorded is kept and is sent again.",
        ),
        "records_refused": (
            "The records do not continue those that arrived; an alarm says why, and nothing was ingested.",
            "Inspect the spool of that gateway (`tollway spool inspect`).",
        ),
        "snapshot_needed": ("Changes that old are not kept.", "Nothing: the gateway reads the whole snapshot by itself."),
        "archive_unavailable": (
            "Control cannot write its archive.",
            "Free or mend the disk; gateways send their records again by themselves.",
        ),
    },
    "Directories (SCIM)": {
        "invalid_filter": ("The filter of a list does not follow RFC 7644, section 3.4.2.2.", "Correct it; `invalidFilter` in the answer."),
        "invalid_path": ("The path of a change names no attribute.", "Use a path of `/scim/v2/Schemas`."),
        "no_target": ("A change names a value that is not there, or nothing at all.", "Read the resource again."),
        "immutable_attribute": ("The change concerns an attribute that never changes, or removes a required one.", "Leave it out."),
        "too_many": (
            "The groups of a list have too many members for one answer or filter.",
            "Ask for fewer groups at once (`count`), or without members (`excludedAttributes=members`); `tooMany` in the answer.",
        ),
        "invalid_patch": ("The body of a PATCH is not a PatchOp.", "Send `schemas` and `Operations` (RFC 7644, section 3.5.2)."),
        "uniqueness": ("Somebody else has the name or the address, or another group has the name.", "Find and use that resource."),
        "precondition_failed": ("`if-match` names another version than the present one.", "Read the resource again, and decide anew."),
    },
}
"""By section and code: its meaning, and what to do."""


def list_kinds() -> Iterator[FaultKind]:
    """Yield every kind of fault, from each module that speaks of kinds."""
    for path in sorted(SOURCE.rglob("*.py")):
        if "FaultKind" in path.read_text():
            module = importlib.import_module(".".join(path.relative_to(SOURCE.parent).with_suffix("").parts))
            yield from (value for value in vars(module).values() if isinstance(value, FaultKind))


def find_differences() -> str:
    """Return in words which codes have no explanation, and which explained ones do not exist; nothing if there is neither."""
    codes = {kind.code for kind in list_kinds()}
    explained = {code for section in SECTIONS.values() for code in section}
    words = [f"add code {code} to scripts/errors_page.py" for code in sorted(codes - explained)]
    words += [f"code {code} of scripts/errors_page.py does not exist" for code in sorted(explained - codes)]
    return "; ".join(words)


def render() -> str:
    """Return the page. Raises SystemExit where `find_differences` finds any."""
    if differences := find_differences():
        raise SystemExit(differences)
    kinds: dict[str, list[FaultKind]] = {}
    for kind in dict.fromkeys(list_kinds()):
        kinds.setdefault(kind.code, []).append(kind)
    parts = [OPENING]
    for title, codes in SECTIONS.items():
        parts.append(f"## {title}\n")
        for code, (meaning, remedy) in codes.items():
            shown = "".join(f"- {kind.status} `{kind.type}`: {kind.message}\n" for kind in kinds[code])
            parts.append(f"### `{code}`\n\n{shown}\n{meaning}\n\n**Remedy:** {remedy}\n")
    return "\n".join(parts)


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
    print(f"==> {PAGE}")
