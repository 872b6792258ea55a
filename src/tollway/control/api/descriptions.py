"""The OpenAPI description of the REST API: what FastAPI derives from the routes, with the meaning of every field, errors and security.

A field that its schema describes keeps that description. The other ones are described here by name, because most names mean the same
everywhere; `SPECIAL` holds those that do not. A test requires a description for every field.
"""

from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI

from tollway.control.api.routes import ApiRoute, invitee, joiner, node, public


@dataclass(frozen=True, slots=True)
class FieldText:
    """The meaning of a field, with its unit and range, and an example of its value (None for a field that refers to another schema)."""

    text: str
    example: object = None


_AT = "in Unix seconds (UTC)"
_MONEY = "as an exact decimal string in the currency of the organization"
_PICO = "as a whole number of 10^-12 units of the currency, in a string"
_ORGANIZATION = "org_0198c5f2a3b47c11a0b1c2d3e4f50617"
_PROJECT = "proj_0198c5f2a3b47c11a0b1c2d3e4f50617"
_NODE = "node_0198c5f2a3b47c11a0b1c2d3e4f50617"
_KEY = "key_0198c5f2a3b47c11a0b1c2d3e4f50617"
_REQUEST = "req_0198c5f2a3b47c11a0b1c2d3e4f50617"
_DEPLOYMENT = "dep_0198c5f2a3b47c11a0b1c2d3e4f50617"
_BOOK = "book_0198c5f2a3b47c11a0b1c2d3e4f50617"
_AUDIT = "audit_0198c5f2a3b47c11a0b1c2d3e4f50617"
_USER = "user_0198c5f2a3b47c11a0b1c2d3e4f50617"
_HASH = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"

FIELDS: Mapping[str, FieldText] = {
    "accept_warnings": FieldText("Publish although the check of the draft has warnings.", False),
    "account_id": FieldText("The account of the ledger.", "acct_usage"),
    "acked_version": FieldText("The latest snapshot version that the gateway has applied, 0 or more.", 42),
    "actor": FieldText("The id of the operator key that asked for it.", _KEY),
    "addresses": FieldText("Addresses of the engines that were compared together.", ["http://10.0.0.5:8000"]),
    "adjustment_id": FieldText("The correction that the transaction books; null for usage.", "adj_0198c5f2a3b47c11a0b1c2d3e4f50617"),
    "adjustments": FieldText("Corrections that were booked, in the order of booking or as their number.", None),
    "adjustments_digest": FieldText("SHA-256 over the corrections of the period, in hexadecimal.", _HASH),
    "admin_api_key": FieldText("The first admin key of the organization, with its secret."),
    "admitted_at": FieldText(f"When the gateway admitted the request, {_AT}.", 1790000000),
    "amount": FieldText(f"An amount of money {_MONEY}; negative for a credit.", "0.001234"),
    "amount_pico": FieldText(f"The same amount {_PICO}.", "1234000000"),
    "amounts": FieldText(f"Amounts by billing class, each {_MONEY}; null until the period is closed.", {"input": "1.50", "output": "4.20"}),
    "anomalous": FieldText("Requests whose engine reported usage that was not believed, 0 or more.", 0),
    "anomaly": FieldText("The kind of usage report that was not believed.", "usage_inflated"),
    "api_key": FieldText("The first key of the service account, with its secret; null if none was asked for."),
    "api_key_id": FieldText("The API key of the request.", _KEY),
    "approver": FieldText("The id of the operator key that approved or rejected it; null if nobody has yet.", _KEY),
    "archived_at": FieldText(f"When it was archived, {_AT}; null while it is active.", 1790000000),
    "attempts": FieldText("Engines that were asked, 1 or more.", 1),
    "base_url": FieldText("Address of the engine without the path of the API, 8 to 2048 characters.", "http://10.0.0.5:8000"),
    "behind": FieldText("Snapshot versions that the gateway has not applied yet, 0 or more.", 0),
    "billing_class": FieldText("The class that is counted and priced.", "input"),
    "billing_period": FieldText("The billing period in which the request is booked."),
    "binds": FieldText("Whether, of all levels that limit the same thing, this limit has the least left.", True),
    "book_id": FieldText("The price book, up to 64 characters.", _BOOK),
    "booked_at": FieldText(f"When the transaction was booked, {_AT}.", 1790000000),
    "budget_id": FieldText("The budget.", "bud_0198c5f2a3b47c11a0b1c2d3e4f50617"),
    "cache_isolation": FieldText("How the prefix caches of organizations are kept apart at this engine.", "engine"),
    "cause": FieldText("Whether usage or a correction caused the transaction.", "usage"),
    "changed_at": FieldText(f"When the balance changed last, {_AT}.", 1790000000),
    "charged_until": FieldText(
        f"From when on no gateway charges this price any more, reached or not, {_AT}; null while none has followed it.",
        1793577600,
    ),
    "closed_at": FieldText(f"When it was closed, {_AT}; null while it is open.", 1790000000),
    "closed_by": FieldText("The operator key that closed the period, or `automatic`; null until closing begins.", "automatic"),
    "code": FieldText("What the check found, as a word for programs.", "price_drop"),
    "contracts": FieldText(f"What contracts add to the period, {_MONEY}; null until it is closed.", "500"),
    "corrections": FieldText(f"The sum of the corrections that are booked in the period, {_MONEY}; null until it is closed.", "-0.25"),
    "cost": FieldText("The amount of the request, with its currency.", {"value": "0.001234", "currency": "eur"}),
    "counted_by": FieldText("Where the use was read: `store`, `gateways` (their latest reports), or null if neither could be.", "gateways"),
    "covered_seconds": FieldText("Seconds of the hour that lie between readings of the engine, 0 to 3600.", 3600),
    "create_service_account_only": FieldText("Create the service account without a key.", False),
    "created_at": FieldText(f"When it was created, {_AT}.", 1790000000),
    "created_by": FieldText("The id of the key with which it was made; null for keys of the settings.", _KEY),
    "credential": FieldText("Bearer token for the engine, 1 to 4096 characters; never shown again. Null removes it.", "s3cret"),
    "currency": FieldText("ISO 4217 code of the currency; fixed when the resource is created.", "EUR"),
    "data": FieldText("The items, in the order that was asked for."),
    "decided_at": FieldText(f"When it was approved or rejected, {_AT}; null while it waits.", 1790000000),
    "declared_at": FieldText(f"When it was declared, {_AT}.", 1790000000),
    "default": FieldText("Whether organizations of the currency without terms of their own pay by this book.", False),
    "deleted": FieldText("Always true.", True),
    "deployment_id": FieldText("The deployment that served the request; null if that is not known.", _DEPLOYMENT),
    "deployments": FieldText("The deployments at these addresses.", [_DEPLOYMENT]),
    "dimension": FieldText("What is limited.", "tokens_per_minute"),
    "discount_bp": FieldText("Discount on the book in basis points (1/100 of a percent), 0 to 10000.", 500),
    "draft_id": FieldText("The draft that was checked.", "draft_0198c5f2a3b47c11a0b1c2d3e4f50617"),
    "drift": FieldText(
        "Tokens counted by the engine beyond the ledger, any whole number; negative if the ledger has more; null if not comparable.", 0
    ),
    "drift_percent": FieldText("The drift in percent of the engine's count, any number; null if not comparable.", 0.0),
    "drift_percent_max": FieldText("Tolerated drift in percent, 0 or more.", 0.1),
    "drift_tokens_max": FieldText("Tolerated drift in tokens, 0 or more.", 1000),
    "duration_ms": FieldText("Milliseconds from admission to the end of the answer, 0 or more.", 840.5),
    "end_time": FieldText(f"The end, exclusive, {_AT}.", 1792540800),
    "ended_at": FieldText(f"When the request ended, {_AT}.", 1790000001),
    "endpoint": FieldText("The endpoint that was called.", "chat/completions"),
    "endpoints": FieldText("Endpoints at which the model is served.", ["chat/completions"]),
    "engine": FieldText("The kind of inference engine.", "vllm"),
    "engines": FieldText("The engines of the row, one by one."),
    "entries": FieldText("The lines of the transaction, which add up to zero."),
    "epoch": FieldText("The run of the gateway: it grows with each start, 1 or more; null if none applies.", 1790000000000),
    "error": FieldText("The error code of the request; null if it succeeded.", "upstream_cut"),
    "event_hash": FieldText("SHA-256 of the usage event, in hexadecimal: a leaf of the period's Merkle tree.", _HASH),
    "events": FieldText("Number of usage events, 0 or more; null until it is known.", 1204),
    "everybody": FieldText("Include organizations of the currency that pay by other books.", False),
    "expires_at": FieldText(f"When the key stops being valid, exclusive, {_AT}; null if it does not expire.", 1821536000),
    "expires_in_seconds": FieldText("Lifetime of the key in seconds, 1 to 3162240000; null or absent for no expiry.", 2592000),
    "failures": FieldText("Readings of the engine that failed in the hour, 0 or more.", 0),
    "findings": FieldText("What the check of the draft found."),
    "first_id": FieldText("The id of the first item; null for an empty list.", _KEY),
    "first_seen_at": FieldText(f"When the gateway was first seen, {_AT}; null if it never connected.", 1790000000),
    "followed_at": FieldText(f"When another price or other terms became valid instead, {_AT}; null if none has followed.", 1793491200),
    "grace_seconds": FieldText("Time for which the secret before stays valid, 0 to 2592000 (for a node 604800).", 3600),
    "first_seq": FieldText("The first record of the batch that caused the transaction, 1 or more; null for a correction.", 1),
    "first_token_ms": FieldText("Milliseconds from admission to the first token, 0 or more; null if there was none.", 120.3),
    "from": FieldText(f"The start, inclusive, {_AT}; null for the last full calendar month.", 1788220800),
    "from_book_id": FieldText("The book whose prices the draft begins with; null for an empty draft.", _BOOK),
    "frozen_at": FieldText(f"When the period was frozen, {_AT}; null until closing begins.", 1790000000),
    "has_credential": FieldText("Whether a credential is stored for the engine.", True),
    "has_uncollected_secret": FieldText("Whether the schedule made the present secret and nobody has collected it yet.", False),
    "has_more": FieldText("Whether more items follow.", False),
    "holds_by": FieldText(f"From when on no gateway acts by what was before, not even one that cannot reach control, {_AT}.", 1790899200),
    "holds_from": FieldText(
        f"From when on every gateway that was alive acts by it, {_AT}; null while some have not confirmed.", 1790812800
    ),
    "id": FieldText("The id of the resource.", _KEY),
    "incomplete": FieldText("Requests without a complete usage report, 0 or more.", 0),
    "input_cached_tokens": FieldText("Input tokens that came from the prefix cache, 0 or more.", 0),
    "input_tokens": FieldText("Input tokens that are billed, 0 or more.", 120),
    "key_lifetime_seconds_max": FieldText("Longest time until a new key expires, 1 or more; null for no bound.", 7776000),
    "kind": FieldText("The kind of the resource.", "credit"),
    "known_until": FieldText(f"Until when the records of the run are known to be complete, {_AT}; null if never.", 1790000000),
    "last_id": FieldText("The id of the last item: the `after` of the next page; null for an empty list.", _KEY),
    "last_seq": FieldText("The last record of the batch that caused the transaction, 1 or more; null for a correction.", 64),
    "last_used_at": FieldText(f"The latest use, to half a minute, {_AT}; null if there was none, or it is not recorded.", 1790000000),
    "late": FieldText("Whether the request ended in an earlier period that was closed already.", False),
    "leaf": FieldText("The bytes that are hashed for the event, in Base64.", "eyJpZCI6InJlcSJ9"),
    "leaf_index": FieldText("Position of the event among the leaves, 0 or more.", 7),
    "ledger": FieldText("Tokens that the ledger has, 0 or more.", 1204000),
    "limits": FieldText("Limits of the key; what is null is not limited by it."),
    "lines": FieldText("Prices by model and service tier, at most 2000."),
    "list": FieldText("The price list that the organization pays by.", _BOOK),
    "lost": FieldText("Declaration that the missing records are lost; null if there is none."),
    "max_images_per_1_minute": FieldText("Images per minute, 1 or more; null for no limit.", 50),
    "max_requests_per_1_day": FieldText("Requests per day, 1 or more; null for no limit.", 100000),
    "max_requests_per_1_minute": FieldText("Requests per minute, 1 or more; null for no limit.", 600),
    "max_tokens_per_1_minute": FieldText("Tokens per minute, 1 or more; null for no limit.", 1000000),
    "merkle_root": FieldText("Root of the Merkle tree over the events of the period, in hexadecimal; null until it is closed.", _HASH),
    "message": FieldText("The finding in a sentence.", "Records are missing."),
    "model": FieldText("Name of the model, up to 128 of A-Z a-z 0-9 . _ : / @ -.", "llama-3.1-8b"),
    "models": FieldText("Names of models, at most 1000; null for all that the project may use.", ["llama-3.1-8b"]),
    "name": FieldText("A name for people, 1 to 256 printable characters.", "Production"),
    "needs_approval": FieldText("Whether a second person has to approve the correction.", False),
    "net_cost": FieldText("The amount of the request after its corrections, with the currency.", {"value": "0.00", "currency": "eur"}),
    "next_page": FieldText("The `page` of the next request; null at the end.", "1790003600"),
    "next_seq": FieldText("The record of the run that is expected next, 1 or more.", 65),
    "node_id": FieldText("The gateway, up to 64 characters.", _NODE),
    "object": FieldText("The type of the object.", "list"),
    "organization_id": FieldText("The organization; null if it does not belong to one.", _ORGANIZATION),
    "outcome": FieldText("How the request ended.", "completed"),
    "outcome_policy": FieldText("Version of the policy that decides what an outcome bills, 1 or more.", 1),
    "output_reasoning_tokens": FieldText("Output tokens for reasoning, 0 or more.", 0),
    "output_tokens": FieldText("Output tokens that are billed, 0 or more.", 34),
    "origin": FieldText("The key of the settings from which the key descends: `first` or `second`.", "first"),
    "context_length": FieldText("Most tokens of one prompt, 1 to 2147483647; null if nothing is stated.", 131072),
    "hedge_after_ms": FieldText(
        "Milliseconds after which a request whose answer has not begun is sent to a second deployment too, 1 to 600000; null for never.",
        900,
    ),
    "hedge_percent": FieldText("Share of the requests that are hedged at most, 1 to 50 %.", 5),
    "latency_goal_ms": FieldText(
        "Time to the first token within which the cheapest deployments serve, 1 to 600000 ms; null if costs do not count.", 2000
    ),
    "priorities": FieldText("Whether the engine schedules by priority, so that it is told that of the service tier.", False),
    "relative_cost": FieldText("Cost of the same work beside that at the model's other deployments, 1 to 1000000; null if unknown.", 3),
    "grpc_port": FieldText(
        "Port at which an engine of the Open Inference Protocol serves gRPC; null for the one after that of `base_url`.", 8001
    ),
    "output_tokens_max": FieldText("Most output tokens of one request, 1 to 2147483647; null for the engine's own bound.", 4096),
    "owner": FieldText("The owner."),
    "owner_project_access": FieldText("Always `active`.", "active"),
    "path": FieldText("Hashes from the leaf to the root, in hexadecimal.", [_HASH]),
    "pending_nodes": FieldText("Gateways that were alive and have not confirmed the change within a second.", []),
    "period_id": FieldText("The billing period.", "period_0198c5f2a3b47c11a0b1c2d3e4f50617"),
    "period_start_time": FieldText(f"Start of the billing period in which it is booked, {_AT}; null if it is not booked.", 1788220800),
    "plan_id": FieldText("The plan.", "plan_0198c5f2a3b47c11a0b1c2d3e4f50617"),
    "pooling": FieldText("Whether connections to the engine are kept and used again.", True),
    "price": FieldText("When gateways could charge the price of the request."),
    "price_id": FieldText("The price version.", "price_0198c5f2a3b47c11a0b1c2d3e4f50617"),
    "price_per_million": FieldText("Price of 1,000,000 units as a decimal string in the currency of the organization.", "0.15"),
    "price_version": FieldText("The price version that the request was rated with.", "price_0198c5f2a3b47c11a0b1c2d3e4f50617"),
    "project_id": FieldText("The project.", _PROJECT),
    "prompt": FieldText("The comparison of input tokens."),
    "publishable": FieldText("Whether the draft can be published as it is.", True),
    "published": FieldText("Whether gateways serve the model.", True),
    "quantities": FieldText("Quantities by billing class, each 0 or more; null if they do not change.", {"input": 120, "output": 34}),
    "quantity": FieldText("The quantity that is billed, 0 or more.", 120),
    "reason": FieldText("The reason in words, 1 to 1024 printable characters.", "The engine counted twice."),
    "received": FieldText("Limits in the report, 0 or more.", 12),
    "records_after": FieldText("Records of the run that arrived after the declaration, 0 or more.", 0),
    "redacted_value": FieldText("The part of the key that may be shown.", "tw_live_1A2b3C4d...wxyz"),
    "refused_because": FieldText("What is wrong with the start of the run; null if it was not refused.", "future"),
    "fallbacks": FieldText("Models that serve in its place while it cannot, in their order, at most 4.", ["llama-3.1-8b"]),
    "region": FieldText("Where the engine is, 1 to 64 of a-z 0-9 -; null if it is not said.", "eu-central-1"),
    "remaining": FieldText("Units that would be admitted now, 0 or more; null if the use is not known.", 98750),
    "remove": FieldText("Lines to remove from the draft, at most 2000."),
    "report": FieldText(
        "Each run of a gateway and how far its records have arrived; null until closing begins.",
        {"epochs": []},
    ),
    "residency": FieldText("Regions of deployments that may serve the project, 1 to 64 of them; null for any.", ["eu-central-1"]),
    "request_id": FieldText("The request, as in its `x-request-id`, up to 64 characters.", _REQUEST),
    "requests": FieldText("Requests, with those that explain a drift."),
    "reserved": FieldText("Units that requests under way hold, or how many run, 0 or more; null if the use is not known.", 1250),
    "reset_seconds": FieldText(
        "Seconds until nothing is used if nothing else arrives, 0 or more; null for concurrent requests or unknown use.", 0.75
    ),
    "requested_at": FieldText(f"When it was asked for, {_AT}.", 1790000000),
    "resets": FieldText("Starts of the engine in the hour, 0 or more.", 0),
    "response_cache_seconds": FieldText(
        "How long an answer can be given again to the same request that asks for it, 0 (never) to 604800 seconds.", 3600
    ),
    "guardrail": FieldText(
        "Whether the gateways' guardrail checks requests and answers: off, open (what cannot be checked passes) or closed (is refused).",
        "closed",
    ),
    "guardrail_stages": FieldText("The part that the guardrail checks: request, response or both.", "both"),
    "response_retention_seconds": FieldText(
        "How long responses are stored whose requests ask for it, in seconds, 1 to 31622400; null stores none.", 2592000
    ),
    "results": FieldText("The results of the interval, one for each group.", []),
    "retried": FieldText("Requests for which more than one engine was asked, 0 or more.", 0),
    "retry_started": FieldText("Whether a request may be sent to another engine after the first one has received it.", True),
    "role": FieldText("The role of the owner.", "member"),
    "next_rotation_at": FieldText(f"From when on the key is due for its scheduled rotation, {_AT}; null without a schedule.", 1797776000),
    "interval_seconds": FieldText("Time from one scheduled rotation to the next, 3600 to 34560000.", 7776000),
    "rotation_schedule": FieldText("Schedule of the rotation; null for none. The shorter interval of key and organization counts."),
    "rotated_at": FieldText(f"When the key was rotated, {_AT}.", 1790000000),
    "rotation": FieldText("The latest rotation of the key; null if it was never rotated."),
    "safe_to_retire": FieldText("Whether the new secret is in use and this one was not used for an hour.", False),
    "seen_at": FieldText(f"When the gateway was last seen, {_AT}; null if it never connected.", 1790000000),
    "secret_uses": FieldText(
        "The latest uses of secrets of keys, 500 at most.", [{"key_id": _KEY, "digest": "9f86d081884c7d65", "used_at": 1790000000000000}]
    ),
    "service_account": FieldText("The service account that owns the key; null if none does."),
    "service_end_time": FieldText(f"End of the period in which the service was used, exclusive, {_AT}.", 1790812800),
    "service_start_time": FieldText(f"Start of the period in which the service was used, {_AT}.", 1788220800),
    "service_tier": FieldText("The service tier of the request or price.", "standard"),
    "severity": FieldText("Whether the finding prevents publication (`error`) or has to be accepted (`warning`).", "warning"),
    "share_cache": FieldText("Whether organizations share the prefix cache of the model's engines.", False),
    "snapshot_age_seconds_max": FieldText(
        "For how long, in seconds, a gateway without control may price by what it knew, 1 or more.", 86400
    ),
    "start_time": FieldText(f"The start, inclusive, {_AT}.", 1789948800),
    "state": FieldText("The state of the resource.", "open"),
    "status": FieldText("The status of the resource: `active` or `archived`.", "active"),
    "stream": FieldText("Whether the answer was a stream.", True),
    "tags": FieldText("Labels, 16 at most: names of A-Z a-z 0-9 . _ / -, texts of at most 256 characters.", {"team": "search"}),
    "test": FieldText("Whether the deployment serves requests of test keys, which are not billed, and no others.", False),
    "ticked_at": FieldText(f"Instant of the latest sign in the records that the gateway runs, {_AT}; null if there is none.", 1790000000),
    "tier": FieldText("Order of deployments, 0 to 1000: a higher tier is used when the lower ones cannot serve.", 0),
    "time_zone": FieldText("IANA name of the time zone whose months are billing periods.", "Europe/Berlin"),
    "to": FieldText(f"The end, exclusive, {_AT}; null for now.", 1790812800),
    "total": FieldText(f"The sum of the period, corrections included, {_MONEY}; so far, until it is closed.", "5.45"),
    "total_pico": FieldText(f"The same sum {_PICO}; so far, until it is closed.", "5450000000000"),
    "translated_endpoints": FieldText(
        "Endpoints that the engine has not got, which are translated to chat completions: `messages`, `responses`.", ["responses"]
    ),
    "tree_size": FieldText("Number of leaves of the tree, 1 or more.", 1204),
    "type": FieldText("The type of the key or of its owner.", "live"),
    "unattributed_tokens": FieldText("Tokens of requests whose engine is not known, 0 or more.", 0),
    "unbilled_reason": FieldText(
        "Why the request bills nothing: `test_key`, `endpoint` (it generates nothing) or `outcome`; null if it is billed.", "test_key"
    ),
    "unit_price_pico": FieldText(f"Price of one unit {_PICO}.", "150000"),
    "unknown_parameters": FieldText("What happens to request fields that no engine of the model declares.", "refuse"),
    "upstream_model": FieldText("Name of the model at the engine, 1 to 256 printable characters.", "meta-llama/Llama-3.1-8B-Instruct"),
    "usage": FieldText("Quantities by billing class, each 0 or more.", {"input": 120, "output": 34}),
    "usage_source": FieldText("Where the quantities come from.", "engine"),
    "user": FieldText("Always null: keys belong to projects.", None),
    "uses": FieldText("Limits of which something is used, at most 1000."),
    "valid_from": FieldText(f"From when on it is valid, {_AT}; null for now.", 1790812800),
    "value": FieldText("The secret of the key, shown this once.", "tw_live_1A2b3C4d..."),
    "version": FieldText("A version, which grows with each change, 0 or more.", 42),
    "watermark_digest": FieldText("SHA-256 over the positions of all gateways at the freeze, in hexadecimal; null before.", _HASH),
    "workload_identity_federation_rule_id": FieldText("The federation rule.", "fedrule_0198c5f2a3b47c11a0b1c2d3e4f50617"),
    "workload_identity_provider_id": FieldText("The identity provider.", "idp_0198c5f2a3b47c11a0b1c2d3e4f50617"),
    "weight": FieldText("Share of requests among deployments of one tier, 0 to 1000000; 0 takes the deployment out.", 1),
    "write_off_requested_by": FieldText("The key that asked first to write the record off; null if none has.", _KEY),
    "obstacle": FieldText("The reason why the record cannot be rated today; null if it can.", "price_unknown"),
    "payload": FieldText("The record as the gateway wrote it, as text.", "{}"),
    "period_hash": FieldText("SHA-256 over the whole statement of the closed period, in hexadecimal; null before it is closed.", _HASH),
    "received_at": FieldText(f"When control received the record, {_AT}.", 1790000060),
    "resolution_reason": FieldText("The reason that the operator gave; null while the record is open.", "The price was restored."),
    "resolved_at": FieldText(f"When the record was rated or written off, {_AT}; null while it is open.", 1790003600),
    "seq": FieldText("The number of the record in its run, 1 or more.", 65),
    "served_at": FieldText(f"When the request ended, {_AT}; null if the record cannot be read.", 1790000000),
}

SPECIAL: Mapping[str, FieldText] = {
    "ModelPermissionsOut.mode": FieldText("Whether the models are the only ones, or the ones that may not be used.", "deny_list"),
    "ModelPermissionsOut.model_ids": FieldText("Names of models, in order.", ["llama-70b"]),
    "ModelPermissionsWrite.mode": FieldText("Whether the models are the only ones, or the ones that may not be used.", "deny_list"),
    "ModelPermissionsWrite.model_ids": FieldText("Names of models, published or not, at most 1000.", ["llama-70b"]),
    "ServiceTiersOut.default": FieldText("The tier of requests that ask for none, where the model is offered in it.", "standard"),
    "ServiceTiersOut.enabled_tiers": FieldText("Tiers beside the standard one; `all` includes later ones.", ["flex"]),
    "ServiceTiersWrite.default": FieldText("The tier of requests that ask for none: `standard` or `fast`.", "standard"),
    "ServiceTiersWrite.enabled_tiers": FieldText("Tiers beside the standard one: `flex`, `fast`; or `all`, with later ones.", ["flex"]),
    "ActorKeyOut.type": FieldText("Always `user`, for OpenAI's clients.", "user"),
    "ActorOut.api_key": FieldText("The key with which the actor identified itself."),
    "ActorOut.type": FieldText("Always `api_key`.", "api_key"),
    "AuditLogOut.actor": FieldText("Who caused the event."),
    "AuditLogOut.effective_at": FieldText(f"When it was recorded, {_AT}.", 1790000000),
    "AuditLogOut.id": FieldText("The id of the record.", _AUDIT),
    "AuditLogOut.project": FieldText("The project that it concerns; null for none."),
    "AuditLogOut.record": FieldText("The record as it is chained."),
    "AuditLogOut.type": FieldText("The type of the event.", "api_key.created"),
    "AuditProjectOut.id": FieldText("The id of the project.", _PROJECT),
    "AuditRecordOut.actor_kind": FieldText("The kind of the actor.", "admin_key"),
    "AuditRecordOut.address": FieldText("The address that the request came from; empty for a job or a command.", "192.0.2.7"),
    "AuditRecordOut.changes": FieldText("The resources that changed, 50 at most."),
    "AuditRecordOut.hash": FieldText("SHA-256 over the record and the hash of the one before, in hexadecimal.", _HASH),
    "AuditRecordOut.omitted": FieldText("Resources that changed and are not listed, 0 or more.", 0),
    "AuditRecordOut.operation": FieldText("The operation of the API, the job or the command.", "create_project_key"),
    "AuditRecordOut.request_id": FieldText("The request, as in its `x-request-id`; empty for a job or a command.", _REQUEST),
    "AuditRecordOut.sequence": FieldText("The place of the record in its chain, 1 or more.", 42),
    "AuditRecordOut.target_id": FieldText("The id of the resource that it concerns; empty for none.", _KEY),
    "AuditRecordOut.target_kind": FieldText("The kind of the resource that it concerns; empty for none.", "api_key"),
    "PepperOut.invites": FieldText("Invitations that can be accepted and need it, 0 or more.", 0),
    "PepperOut.is_current": FieldText("Whether new keys are digested under it.", True),
    "PepperOut.is_known": FieldText("Whether this control process has it.", True),
    "PepperOut.join_tokens": FieldText("Join tokens that can be used and need it, 0 or more.", 0),
    "PepperOut.key_ids": FieldText("Ids of the first 100 of these keys.", [_KEY]),
    "PepperOut.keys": FieldText("Live keys with a secret that needs it, 0 or more.", 12),
    "PepperOut.version": FieldText("The version of the pepper, 1 or more.", 2),
    "ResourceChangeOut.after": FieldText("The fields that changed, as they are now.", {"name": "search"}),
    "ResourceChangeOut.before": FieldText("The fields that changed, as they were.", {"name": "find"}),
    "ResourceChangeOut.kind": FieldText("The kind of the resource.", "api_key"),
    "KeyCreate.endpoints": FieldText("Endpoints that the key may call; null for all.", ["chat/completions"]),
    "KeyCreate.addresses": FieldText(
        "Address ranges from which the key may be used, 1 to 100; null for any.", ["192.0.2.0/24", "2001:db8::/32"]
    ),
    "KeyCreate.output_tokens_max": FieldText(
        "Most output tokens of one sequence, 1 to 2147483647; null for the bound of the model alone.", 4096
    ),
    "KeyUpdate.name": FieldText("A name for people, 1 to 256 printable characters; null leaves it.", "Production"),
    "KeyUpdate.scopes": FieldText("An empty list takes the bound on endpoints away.", []),
    "KeyUpdate.endpoints": FieldText("Endpoints that the key may call; null for all.", ["chat/completions"]),
    "KeyUpdate.addresses": FieldText("Address ranges from which the key may be used, 1 to 100; null for any.", ["192.0.2.0/24"]),
    "KeyUpdate.output_tokens_max": FieldText(
        "Most output tokens of one sequence, 1 to 2147483647; null for the bound of the model alone.", 4096
    ),
    "KeyUpdated.endpoints": FieldText("Endpoints that the key may call; null for all.", ["chat/completions"]),
    "KeyUpdated.addresses": FieldText("Address ranges from which the key may be used, 1 to 100; null for any.", ["192.0.2.0/24"]),
    "KeyUpdated.output_tokens_max": FieldText(
        "Most output tokens of one sequence, 1 to 2147483647; null for the bound of the model alone.", 4096
    ),
    "ServiceAccountUpdate.role": FieldText("The role in the project: `member` or `owner`; null leaves it.", "member"),
    "ServiceAccountKeyCreate.scopes": FieldText("Null or an empty list: bound a key by its `endpoints`.", []),
    "KeyOut.endpoints": FieldText("Endpoints that the key may call; null for all.", ["chat/completions"]),
    "KeyOut.addresses": FieldText(
        "Address ranges from which the key may be used, 1 to 100; null for any.", ["192.0.2.0/24", "2001:db8::/32"]
    ),
    "KeyOut.output_tokens_max": FieldText(
        "Most output tokens of one sequence, 1 to 2147483647; null for the bound of the model alone.", 4096
    ),
    "KeyCreated.endpoints": FieldText("Endpoints that the key may call; null for all.", ["chat/completions"]),
    "KeyCreated.addresses": FieldText(
        "Address ranges from which the key may be used, 1 to 100; null for any.", ["192.0.2.0/24", "2001:db8::/32"]
    ),
    "KeyCreated.output_tokens_max": FieldText(
        "Most output tokens of one sequence, 1 to 2147483647; null for the bound of the model alone.", 4096
    ),
    "KeyRotated.endpoints": FieldText("Endpoints that the key may call; null for all.", ["chat/completions"]),
    "KeyRotated.addresses": FieldText(
        "Address ranges from which the key may be used, 1 to 100; null for any.", ["192.0.2.0/24", "2001:db8::/32"]
    ),
    "KeyRotated.output_tokens_max": FieldText(
        "Most output tokens of one sequence, 1 to 2147483647; null for the bound of the model alone.", 4096
    ),
    "KeyRetired.endpoints": FieldText("Endpoints that the key may call; null for all.", ["chat/completions"]),
    "KeyRetired.addresses": FieldText(
        "Address ranges from which the key may be used, 1 to 100; null for any.", ["192.0.2.0/24", "2001:db8::/32"]
    ),
    "KeyRetired.output_tokens_max": FieldText(
        "Most output tokens of one sequence, 1 to 2147483647; null for the bound of the model alone.", 4096
    ),
    "BindingLimitOut.level": FieldText("The kind of what is limited.", "project"),
    "BindingLimitOut.id": FieldText("The id of what is limited.", _PROJECT),
    "BindingLimitOut.model": FieldText("The model that is limited; null for all models together.", "llama-70b"),
    "BindingLimitOut.limit": FieldText("The size of the limit, 1 or more.", 100000),
    "BindingLimitOut.used": FieldText("Units that were used and have not been refilled, 0 or more; null if the use is not known.", 1000),
    "BindingLimitsList.gateways": FieldText(
        "Gateways whose reports were added up, 0 or more; null where a store counts or nothing is known.", 1
    ),
    "LimitUseIn.subject_id": FieldText("The key, service account, project or organization.", _PROJECT),
    "LimitUseIn.model": FieldText("The model that is limited; empty for all models together.", "llama-70b"),
    "LimitUseIn.used": FieldText("Units that were used and have not been refilled.", 1000),
    "LimitUseIn.held": FieldText("Units that requests under way hold, or how many run.", 1250),
    "PreviousSecretOut.expires_at": FieldText(f"The end of its grace, exclusive, {_AT}.", 1790086400),
    "RotationOut.previous": FieldText("The secret before, while it is valid; null afterwards."),
    "SecretUseIn.key_id": FieldText("The key.", _KEY),
    "SecretUseIn.digest": FieldText("The first 8 bytes of the digest of the secret, in hexadecimal.", "9f86d081884c7d65"),
    "SecretUseIn.used_at": FieldText("When it was used, in microseconds since 1970 (UTC).", 1790000000000000),
    "AckOut.gateways": FieldText("Gateways that control heard of in the last 15 seconds, this one included, 1 or more.", 2),
    "PeriodCostOut.line_item": FieldText("The billing class, or `adjustments`; null if grouped by model.", "output"),
    "QuarantinedRecordOut.approver": FieldText("The key of the second person who agreed to write it off; null if none had to.", _KEY),
    "QuarantinedRecordDetailOut.approver": FieldText("The key of the second person who agreed to write it off; null if none had to.", _KEY),
    "AdminKeyCreate.role": FieldText("Name or id of the role; null for that of the key with which it is made.", "viewer"),
    "AdminKeyCreate.project_id": FieldText("The project in which the role is held; null for the whole organization.", _PROJECT),
    "AdminKeyCreate.user_id": FieldText("The person whose key it is and whose roles it has; null for a key of the organization.", _USER),
    "AdminKeyOut.role": FieldText("The role of the key; null for a person's, which has the roles of the person.", "owner"),
    "AdminKeyOut.project_id": FieldText("The project in which the role is held; null for the whole organization.", _PROJECT),
    "AdminKeyCreated.role": FieldText("The role of the key; null for a person's, which has the roles of the person.", "owner"),
    "AdminKeyCreated.project_id": FieldText("The project in which the role is held; null for the whole organization.", _PROJECT),
    "AdminKeyOwner.role": FieldText("The role of the key; `user` for a person's, which has the roles of the person.", "owner"),
    "OperatorKeyCreate.role": FieldText("What the key may do: `operator` everything, `auditor` only read.", "auditor"),
    "OperatorKeyOut.role": FieldText("What the key may do: `operator` everything, `auditor` only read.", "operator"),
    "OperatorKeyCreated.role": FieldText("What the key may do: `operator` everything, `auditor` only read.", "operator"),
    "AdminKeyOwner.created_at": FieldText("Always null: see the person.", None),
    "AdminKeyOwner.id": FieldText("The person whose key it is; null for a key of the organization.", _USER),
    "AdminKeyOwner.name": FieldText("Always null: see the person.", None),
    "BalanceOut.kind": FieldText("The kind of the account.", "revenue"),
    "BalanceOut.owner": FieldText("The organization or the platform, whose account it is.", _ORGANIZATION),
    "TokenComparisonOut.engine": FieldText("Tokens that the engine counted, 0 or more; null if it was not observed.", 1204000),
    "JoinIn.key": FieldText("The key that the gateway made for itself.", "tw_node_1A2b3C4d..."),
    "JoinTokenCreate.lifetime_seconds": FieldText("Time for which the token can be used, 60 to 86400.", 3600),
    "JoinTokenOut.expires_at": FieldText(f"When the token stops being valid, exclusive, {_AT}.", 1790003600),
    "JoinTokenCreated.expires_at": FieldText(f"When the token stops being valid, exclusive, {_AT}.", 1790003600),
    "PriceLineOut.output": FieldText("The price of 1,000,000 output tokens."),
    "ReconciliationLineOut.output": FieldText("The comparison of output tokens."),
    "NodeCreate.id": FieldText("Id of a node that this database does not have any more; null for a new one.", _NODE),
    "NodeCreated.key": FieldText("The first key of the node, with its secret."),
    "LostOut.approver": FieldText("The key of the second person who approved the declaration.", _KEY),
    "NodeRevoked.unfinished_epochs": FieldText("Epochs whose last record has not arrived, by number.", [1790000000000000]),
    "PeriodReportOut.adjustments": FieldText("Number of corrections booked in the period, 0 or more; null until closing begins.", 2),
    "QuantitiesWrite.request": FieldText("Requests that are billed, 0 or more.", 1),
    "RowOut.output": FieldText("The comparison of output tokens."),
    "RowOut.models": FieldText("Models that share the engines.", ["llama-3.1-8b"]),
    "UsageOut.requests": FieldText("Requests, 0 or more.", 310),
}

PARAMETERS: Mapping[str, FieldText] = {
    "entity_id": FieldText("The legal entity.", "entity_0198c5f2a3b47c11a0b1c2d3e4f50617"),
    "format": FieldText("The form: `json`, `ubl`, `cii` or `pdf`.", "pdf"),
    "entry_id": FieldText("The credit of a bank statement.", "4e07408562bedb8b60ce05c1decfe3ad16b72230"),
    "debit_file_id": FieldText("The file of direct debits.", "ddfile_0198c5f2a3b47c11a0b1c2d3e4f50617"),
    "transfer_file_id": FieldText("The file of credit transfers.", "ctfile_0198c5f2a3b47c11a0b1c2d3e4f50617"),
    "payment_id": FieldText("The payment.", "pay_0198c5f2a3b47c11a0b1c2d3e4f50617"),
    "invoice_id": FieldText("The invoice or credit note.", "inv_0198c5f2a3b47c11a0b1c2d3e4f50617"),
    "contract_id": FieldText("The contract.", "contract_0198c5f2a3b47c11a0b1c2d3e4f50617"),
    "after_sequence": FieldText("Only records with a greater sequence number, the oldest first.", 41),
    "before": FieldText("Return the items just newer than this id.", _AUDIT),
    "effective_at[gt]": FieldText(f"Only events after this instant, {_AT}.", 1790000000),
    "effective_at[gte]": FieldText(f"Only events at or after this instant, {_AT}.", 1790000000),
    "effective_at[lt]": FieldText(f"Only events before this instant, {_AT}.", 1790086400),
    "effective_at[lte]": FieldText(f"Only events at or before this instant, {_AT}.", 1790086400),
    "event_types": FieldText("Only events of these types (repeatable).", ["api_key.created"]),
    "actor_ids": FieldText("Only events of these credentials (repeatable).", [_KEY]),
    "actor_emails": FieldText("Only events of people with these addresses (repeatable); no actor has one.", ["ada@example.com"]),
    "resource_ids": FieldText("Only events that concern these resources (repeatable).", [_PROJECT]),
    "tenant_only": FieldText("Accepted for OpenAI's clients; every event concerns the organization.", False),
    "after": FieldText("Return items that follow this id.", _KEY),
    "limit": FieldText("Most items or intervals to return.", 20),
    "order": FieldText("By time of creation, oldest first (`asc`) or latest first (`desc`).", "asc"),
    "include_archived": FieldText("Return archived resources too.", False),
    "include_closed": FieldText("Return published and discarded drafts too.", False),
    "only_lost": FieldText("Return only runs that were declared lost.", False),
    "grant_id": FieldText("The grant of credit.", "grant_0198c5f2a3b47c11a0b1c2d3e4f50617"),
    "key_id": FieldText("The key.", _KEY),
    "service_account_id": FieldText("The service account.", "svcacct_0198c5f2a3b47c11a0b1c2d3e4f50617"),
    "alert_id": FieldText("The spend alert.", "bud_0198c5f2a3b47c11a0b1c2d3e4f50617"),
    "rate_limit_id": FieldText("The rate limit, by the name of its model.", "rl-llama-3.1-8b"),
    "bucket_width": FieldText("Width of an interval.", "1d"),
    "group_by": FieldText("Group by this field (repeatable).", ["project_id"]),
    "project_ids": FieldText("Only these projects (repeatable).", [_PROJECT]),
    "api_key_ids": FieldText("Only these keys (repeatable).", [_KEY]),
    "models": FieldText("Only these models (repeatable).", ["llama-3.1-8b"]),
    "request_endpoints": FieldText("Only requests at these endpoints (repeatable).", ["chat/completions"]),
    "outcomes": FieldText("Only requests that ended so (repeatable).", ["completed"]),
    "line_items": FieldText("Only these billing classes (repeatable).", ["output"]),
    "page": FieldText("The `next_page` of the answer before.", "1790003600"),
    "test": FieldText("Return the usage of test keys, which is not billed, instead of that of live keys.", False),
    "owner": FieldText("Only accounts of this owner.", _ORGANIZATION),
    "kind": FieldText("Only this kind.", "usage_inflated"),
    "first_seq": FieldText("The first record of the batch, 1 or more.", 1),
    "since": FieldText("Return changes after this version, 0 or more.", 42),
    "lost_request_id": FieldText("The request to declare records lost.", "lost_0198c5f2a3b47c11a0b1c2d3e4f50617"),
    "token_id": FieldText("The join token.", "join_0198c5f2a3b47c11a0b1c2d3e4f50617"),
    "follow": FieldText("Keep the connection open and send changes as they happen.", False),
    "seq": FieldText("The number of the record in its run, 1 or more.", 65),
    "reason": FieldText("Only records quarantined for this reason.", "price_unknown"),
    "state": FieldText("Only those in this state.", "open"),
    "user_ids": FieldText("Taken, and without effect.", [_USER]),
    "sizes": FieldText("Taken, and without effect.", ["1024x1024"]),
    "sources": FieldText("Taken, and without effect.", ["image.generation"]),
    "context_levels": FieldText("Taken, and without effect.", ["medium"]),
    "vector_store_ids": FieldText("Taken, and without effect.", ["vs_1"]),
    "batch": FieldText("Taken, and without effect.", False),
    "connection_id": FieldText("The identity provider.", "conn_0198c5f2a3b47c11a0b1c2d3e4f50617"),
    "webhook_endpoint_id": FieldText("The webhook endpoint.", "hook_0198c5f2a3b47c11a0b1c2d3e4f50617"),
    "telemetry_export_id": FieldText("The telemetry export.", "telexp_0198c5f2a3b47c11a0b1c2d3e4f50617"),
    "event_type": FieldText("The type of events.", "invoice.issued"),
    "types": FieldText("Only events of these types.", ["invoice.issued"]),
    "certificate_id": FieldText("The certificate.", "cert_0198c5f2a3b47c11a0b1c2d3e4f50617"),
    "certificate_rule_id": FieldText("The rule of the certificate.", "certrule_0198c5f2a3b47c11a0b1c2d3e4f50617"),
    "include": FieldText("`content`: show the certificate itself.", ["content"]),
    "erasure_id": FieldText("The erasure.", "erase_0198c5f2a3b47c11a0b1c2d3e4f50617"),
    "operator_id": FieldText("The operator.", "operator_0198c5f2a3b47c11a0b1c2d3e4f50617"),
    "session_id": FieldText("The session.", "sess_0198c5f2a3b47c11a0b1c2d3e4f50617"),
    "user_id": FieldText("The person.", _USER),
    "group_id": FieldText("The group.", "group_0198c5f2a3b47c11a0b1c2d3e4f50617"),
    "role_id": FieldText("The role.", "role_viewer"),
    "invite_id": FieldText("The invitation.", "invite_0198c5f2a3b47c11a0b1c2d3e4f50617"),
    "emails": FieldText("Only people with these addresses (repeatable).", ["ada@example.com"]),
    "group_type": FieldText("The type of the group: every group is a `group`.", "group"),
    "permission": FieldText("The permission, as docs/access.md lists them.", "api_keys.write"),
    "subject_id": FieldText("An admin key, a person, an API key or a service account; the key presented if left out.", _USER),
}

SECURITY_SCHEMES: Mapping[str, Mapping[str, str]] = {
    name: {"type": "http", "scheme": "bearer", "description": text}
    for name, text in {
        "adminKey": "An admin key of the organization (tw_admin_...), the access token of a login (tw_user_...),"
        " or what operators present (`operatorKey`) with the header `OpenAI-Organization`.",
        "operatorKey": "A key of an operator (tw_platform_...), or the access token of an operator's login (tw_operator_...).",
        "nodeKey": "The key of a gateway (tw_node_...).",
        "inviteToken": "The token of an invitation, as it came by mail (tw_invite_...).",
        "joinToken": "A token with which one gateway registers itself (tw_join_...).",
    }.items()
}

_SCHEME_BY_ACCESS = {
    "organization": "adminKey",
    "platform": "operatorKey",
    node.name: "nodeKey",
    joiner.name: "joinToken",
    invitee.name: "inviteToken",
}

ERROR_TEXTS: Mapping[int, str] = {
    400: "The request is not valid; `param` names the field.",
    401: "The key is missing, unknown, revoked or expired.",
    403: "The key may not call this operation.",
    404: "The resource does not exist, or belongs to another organization.",
    408: "The body did not arrive in time.",
    409: "The state of the resource does not allow this, or the `Idempotency-Key` was used before.",
    413: "The body is too large.",
    415: "The body is not JSON in UTF-8, or is compressed.",
    429: "Too many requests of this key are under way; retry after `retry-after`, or `retry-after-ms` to the millisecond.",
    500: "A defect of the platform; report the `x-request-id`.",
    503: "The database or the control plane is not available right now; retry after `retry-after`.",
}

_RETRY_HEADERS = {
    "retry-after": {"description": "Seconds after which to try again, 1 or more.", "schema": {"type": "integer", "examples": [1]}},
    "retry-after-ms": {"description": "The same in milliseconds, 1 or more.", "schema": {"type": "integer", "examples": [250]}},
}

_IDEMPOTENCY_KEY = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "description": "1 to 255 visible ASCII characters. For 24 hours, what was carried out is answered alike, not done again.",
    "schema": {"type": "string"},
    "example": "8e03978e-40d5-43e8-bc93-6894a57f9324",
}

_ERROR = {
    "type": "object",
    "title": "Error",
    "description": "An error in the shape of OpenAI's API.",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "description": "The error.",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string", "description": "The error in a sentence.", "examples": ["The key is not valid."]},
                "type": {"type": "string", "description": "The class of the error.", "examples": ["invalid_request_error"]},
                "param": {"type": ["string", "null"], "description": "The field at fault, if one is.", "examples": ["name"]},
                "code": {"type": ["string", "null"], "description": "The error for programs.", "examples": ["invalid_api_key"]},
            },
        }
    },
}


def describe(app: FastAPI) -> dict[str, Any]:
    """Return the OpenAPI 3.1 description of `app`, as a copy that the caller may change."""
    document: dict[str, Any] = deepcopy(app.openapi())
    components = document.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    for name in ("HTTPValidationError", "ValidationError"):  # of the framework; our 400 takes its place
        schemas.pop(name, None)
    schemas["Error"] = _ERROR
    components["securitySchemes"] = dict(SECURITY_SCHEMES)
    for name, schema in schemas.items():
        for field, described in schema.get("properties", {}).items():
            _complete(described, SPECIAL.get(f"{name.rpartition('__')[2]}.{field}") or FIELDS.get(field))
    routes = [route for route in app.routes if isinstance(route, ApiRoute)]
    by_operation = {(route.path_format, method.lower()): route for route in routes for method in route.methods or ()}
    for path, method, operation in _list_operations(document):
        route = by_operation[path, method]
        for parameter in operation.get("parameters", ()):
            _complete(parameter, PARAMETERS.get(parameter["name"]) or FIELDS.get(parameter["name"]))
        if method == "post" and route.access.permission is not None:
            operation.setdefault("parameters", []).append(deepcopy(_IDEMPOTENCY_KEY))
        scheme = _SCHEME_BY_ACCESS.get(route.access.name)
        # The names in a requirement are roles "required for the execution" (OpenAPI 3.1, Security Requirement Object): permissions here.
        needed = [] if route.access.permission is None else [str(route.access.permission)]
        operation["security"] = [] if scheme is None else [{scheme: needed}]
        operation["responses"].pop("422", None)
        for status in _list_errors(route, method, operation):
            if str(status) not in operation["responses"]:  # else the route declares a shape of its own
                content = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
                operation["responses"][str(status)] = {"description": ERROR_TEXTS[status], "content": content}
        for name in operation["responses"].keys() & {"429", "503"}:
            operation["responses"][name]["headers"] = deepcopy(_RETRY_HEADERS)
    return document


def _list_operations(document: Mapping[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            yield path, method, operation


def _list_errors(route: ApiRoute, method: str, operation: Mapping[str, Any]) -> list[int]:
    """List the statuses with which the operation may fail."""
    statuses = {400, 500, 503}
    if route.access is not public:
        statuses |= {401, 403, 429}
    if "{" in route.path_format or route.access.name in ("organization", "platform"):  # headers, queries and bodies name things too
        statuses.add(404)
    if method != "get":
        statuses.add(409)
    if "requestBody" in operation or method in {"post", "put"}:
        statuses |= {408, 413, 415}
    return sorted(statuses)


def _complete(described: dict[str, Any], text: FieldText | None) -> None:
    """Add description and example to a field or parameter that its declaration does not describe. What describes the type of a field that
    may also be null stands in a member of `anyOf`: readers look for it at the field."""
    for member in described.get("anyOf", ()):
        for name in ("description", "examples"):
            if name in member:
                described.setdefault(name, member.pop(name))
    if text is None:
        return
    described.setdefault("description", text.text)
    if text.example is not None and "examples" not in described and "$ref" not in described and "const" not in described:
        if "in" in described:  # a parameter has one example, a schema a list of them
            described.setdefault("example", text.example)
        else:
            described["examples"] = [text.example]
