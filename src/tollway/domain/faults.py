"""Faults: everything that can go wrong with a request, as data. One table; decided where understood, rendered at the edge.

Each kind has a stable `code`, the HTTP `status`, whom to `blame` (drives alerting and bills), whether the gateway may `retry` it at
another upstream, and the `message` that the caller reads. `detail` on a Fault is for operators and never leaves the platform.
The shape on the wire is OpenAI's (`wire/errors.py`) or Anthropic's, chosen by the API that was called.
"""

from enum import StrEnum

import msgspec


class Blame(StrEnum):
    """Party that must act."""

    CLIENT = "client"  # the program that calls: its bytes or parameters are wrong
    TENANT = "tenant"  # the account: keys, limits, budgets
    UPSTREAM = "upstream"  # an engine
    PLATFORM = "platform"  # Tollway itself


class Retry(StrEnum):
    """Permission to try another upstream. After the first byte to the client there is none, whatever stands here."""

    NEVER = "never"
    SAFE = "safe"  # no engine began the work
    STARTED = "started"  # an engine may have begun it: only if the model's `retry_started` allows it


class FaultKind(msgspec.Struct, frozen=True, kw_only=True):
    """One row of the table. `type` is OpenAI's error type; `close`: the connection cannot be trusted any more and is closed."""

    code: str
    status: int
    blame: Blame
    message: str
    type: str = "invalid_request_error"
    retry: Retry = Retry.NEVER
    close: bool = False


class Fault(Exception):
    """A fault of one kind. `param`: the field at fault. `message`: replaces the kind's text where a name helps (never input echoed
    unchecked). `retry_after_seconds`: when to come back, sent as `retry-after`. `headers`: further header lines for the answer. `detail`:
    for operators' logs only."""

    def __init__(
        self,
        kind: FaultKind,
        *,
        param: str | None = None,
        message: str | None = None,
        retry_after_seconds: float | None = None,
        headers: bytes = b"",
        detail: str = "",
    ) -> None:
        super().__init__(kind.code)
        self.kind = kind
        self.param = param
        self.message = message or kind.message
        self.retry_after_seconds = retry_after_seconds
        self.headers = headers
        self.detail = detail

    def forget_frames(self) -> None:
        """Release the frames that the fault was raised through. Call it where a caught fault is kept: its frames refer to it then, and
        the cycle would keep whatever they hold, such as a body, until the garbage collector runs."""
        self.__traceback__ = self.__context__ = None


_C, _T, _U, _P = Blame.CLIENT, Blame.TENANT, Blame.UPSTREAM, Blame.PLATFORM
_SERVER, _UPSTREAM = "server_error", "upstream_error"


def _client(code: str, status: int, message: str, *, close: bool = False) -> FaultKind:
    return FaultKind(code=code, status=status, blame=_C, message=message, close=close)


# Bytes and framing. After these the connection is closed: what follows on it cannot be known to be a request.
MALFORMED_HTTP = _client("malformed_http", 400, "The request is not valid HTTP/1.1.", close=True)
TARGET_INVALID = _client("invalid_target", 400, "The request target is not valid.", close=True)
METHOD_UNSUPPORTED = _client("method_not_allowed", 405, "The method is not allowed for this URL.")
EXPECTATION_UNSUPPORTED = _client("expectation_failed", 417, "Only `Expect: 100-continue` is supported.", close=True)
HEAD_TOO_LARGE = _client("headers_too_large", 431, "The request line and headers are too large or too many.", close=True)
TARGET_TOO_LONG = _client("uri_too_long", 414, "The request target is too long.", close=True)
BODY_TOO_LARGE = _client("body_too_large", 413, "The request body is too large.", close=True)
REQUEST_TIMEOUT = _client("request_timeout", 408, "The request did not arrive in time.", close=True)
MEDIA_TYPE_UNSUPPORTED = _client("unsupported_media_type", 415, "The body must be JSON in UTF-8 (`content-type: application/json`).")
BINARY_TENSORS_UNSUPPORTED = _client(
    "unsupported_media_type", 415, "Binary tensors are taken by the gRPC port alone; send their data as JSON here (`binary_data=False`)."
)
FORM_EXPECTED = _client("unsupported_media_type", 415, "The body must be a form (`content-type: multipart/form-data; boundary=...`).")
CONTENT_CODING_UNSUPPORTED = _client("unsupported_content_encoding", 415, "Compressed request bodies are not accepted.")
WEBSOCKET_EXPECTED = _client("websocket_expected", 426, "This URL is for WebSocket connections (RFC 6455, version 13).", close=True)
ORIGIN_REFUSED = _client("origin_not_allowed", 403, "Scripts of this origin may not connect.", close=True)
HOST_UNKNOWN = _client("misdirected_request", 421, "This host is not served here.")
ROUTE_UNKNOWN = _client("not_found", 404, "There is nothing at this URL.")

# Bodies and parameters.
JSON_INVALID = _client("invalid_json", 400, "The request body is not valid JSON.")
FORM_INVALID = _client("invalid_form", 400, "The form in the request body cannot be read.")
KEY_DUPLICATED = _client("duplicate_key", 400, "Duplicate key in request body.")
PARAMETER_INVALID = _client("invalid_value", 400, "A parameter has an invalid value.")
PARAMETER_MISSING = _client("missing_required_parameter", 400, "A required parameter is missing.")
LINK_INVALID = _client("invalid_image_url", 400, "A URL in the messages is not one that may be fetched.")
MEDIA_INVALID = _client("invalid_media", 400, "An image, sound, film or file in the request is not one that is accepted.")
MEDIA_TOO_LARGE = _client("media_too_large", 413, "The images, sounds, films and files in the request are too large.")
PARAMETER_UNKNOWN = _client("unknown_parameter", 400, "Unrecognized request parameter.")

# Guardrails.
CONTENT_DENIED = _client("content_policy_violation", 400, "The content policy does not allow this request or its answer.")
CONTENT_TOO_LONG_TO_CHECK = _client("content_too_long_to_check", 413, "The request is longer than the content policy can check.")
GUARDRAIL_UNAVAILABLE = FaultKind(
    code="guardrail_unavailable", status=503, blame=_P, message="The content policy cannot be applied right now.", type=_SERVER
)

# Identity and permission. Unknown, revoked and expired keys answer alike.
CREDENTIALS_AMBIGUOUS = _client("ambiguous_credentials", 400, "Send exactly one credential.")
KEY_INVALID = FaultKind(code="invalid_api_key", status=401, blame=_T, message="Incorrect API key provided.")
TOKEN_INVALID = FaultKind(code="invalid_token", status=401, blame=_T, message="The access token is not valid.")
CERTIFICATE_INVALID = FaultKind(
    code="invalid_client_certificate", status=401, blame=_T,
    message="The client certificate is not accepted: an active certificate of the organization that the request names must have issued it,"
    " it must be valid now, and a rule must match it.",
)  # fmt: skip
SCOPE_INSUFFICIENT = FaultKind(
    code="insufficient_scope", status=403, blame=_T, message="This key may not do this.", type="insufficient_permissions"
)
ADDRESS_REFUSED = FaultKind(
    code="address_not_allowed", status=403, blame=_T, message="This key may not be used from this address.", type="insufficient_permissions"
)
AUTHENTICATIONS_EXCEEDED = FaultKind(
    code="too_many_failed_authentications", status=429, blame=_T, type="requests",
    message="Incorrect API key provided. Too many authentications from your address have failed.",
)  # fmt: skip
SESSION_MISSING = FaultKind(code="session_missing", status=401, blame=_T, message="Sign in first.")
SIGN_IN_REFUSED = FaultKind(code="sign_in_refused", status=401, blame=_T, message="The address, the password or the code is not right.")
FORM_REFUSED = FaultKind(
    code="csrf_failed", status=403, blame=_T, message="The form was not sent from a page of this site. Open the page again.",
    type="insufficient_permissions",
)  # fmt: skip
SIGN_INS_EXCEEDED = FaultKind(
    code="too_many_sign_ins", status=429, blame=_T, message="Too many attempts to sign in. Try again in 15 minutes.", type="requests"
)
PROVIDER_UNAVAILABLE = FaultKind(
    code="identity_provider_unavailable", status=502, blame=_T, message="The identity provider cannot be reached. Try again later.",
    type="upstream_error",
)  # fmt: skip
WEBHOOK_UNREACHABLE = FaultKind(
    code="webhook_unreachable", status=502, blame=_T, message="The webhook endpoint did not answer.", type="upstream_error"
)
MODEL_UNKNOWN = FaultKind(code="model_not_found", status=404, blame=_T, message="The model does not exist or you do not have access to it.")
ENDPOINT_UNSUPPORTED = _client("endpoint_not_supported", 400, "This model cannot be used with this endpoint.")

# Stored responses.
RESPONSE_UNKNOWN = _client("response_not_found", 404, "No response with this id is stored.")
PREVIOUS_RESPONSE_UNKNOWN = _client("previous_response_not_found", 400, "No response with this id is stored.")
RESPONSE_NOT_CANCELLABLE = _client("response_not_cancellable", 400, "Only a response in the background can be cancelled.")

# Limits.
REQUESTS_EXCEEDED = FaultKind(code="rate_limit_exceeded", status=429, blame=_T, message="Rate limit reached for requests.", type="requests")
TOKENS_EXCEEDED = FaultKind(code="rate_limit_exceeded", status=429, blame=_T, message="Rate limit reached for tokens.", type="tokens")
ADMINISTRATION_RATE_LIMITED = FaultKind(
    code="rate_limit_exceeded",
    status=429,
    blame=_T,
    message="This organization has sent too many requests of administration. Try again later.",
    type="requests",
)
SESSIONS_EXCEEDED = FaultKind(
    code="rate_limit_exceeded", status=429, blame=_T, message="Too many realtime sessions of this organization at once.", type="requests"
)
CONCURRENCY_EXCEEDED = FaultKind(code="rate_limit_exceeded", status=429, blame=_T, message="Too many concurrent requests.", type="requests")
RENDERING_BUSY = FaultKind(
    code="rate_limit_exceeded", status=429, blame=_P, message="Too many documents are being set as PDF. Try again later.", type="requests"
)
NAMES_BUSY = FaultKind(
    code="rate_limit_exceeded",
    status=429,
    blame=_P,
    message="Too many names are being resolved. Try again later.",
    type="requests",
)
UPLOADS_EXCEEDED = FaultKind(
    code="rate_limit_exceeded", status=429, blame=_T, message="Too many large requests of this key at once.", type="requests"
)

SHARE_EXCEEDED = FaultKind(
    code="rate_limit_exceeded", status=429, blame=_T, type="requests",
    message="The model is busy, and your organization has its share of the requests that wait for it.",
)  # fmt: skip

# Budgets.
BUDGET_EXCEEDED = FaultKind(
    code="insufficient_quota", status=429, blame=_T, message="You exceeded your current quota.", type="insufficient_quota"
)
BUDGET_THROTTLED = FaultKind(
    code="rate_limit_exceeded", status=429, blame=_T, message="A budget is spent, and lets few requests pass.", type="requests"
)
BUDGET_UNAVAILABLE = FaultKind(
    code="budget_unavailable", status=503, blame=_P, type=_SERVER,
    message="What the budget of this request allows cannot be found out right now.",
)  # fmt: skip
COST_EXCEEDED = _client("max_cost_exceeded", 400, "The request may cost more than it allows.")

# Upstreams.
DEADLINE_EXCEEDED = FaultKind(
    code="deadline_exceeded", status=504, blame=_T, message="The time that the request allows itself has passed.", type=_SERVER
)
MODEL_OVERLOADED = FaultKind(code="model_overloaded", status=503, blame=_P, message="All servers of this model are busy.", type=_SERVER)
UPSTREAM_NONE = FaultKind(code="no_upstream", status=503, blame=_U, message="No upstream is available for this model.", type=_SERVER)
REGION_UNSERVED = FaultKind(
    code="region_not_served", status=403, blame=_T, type="permission_error",
    message="No deployment of this model is in a region that this project allows.",
)  # fmt: skip
UPSTREAM_CONNECT = FaultKind(
    code="upstream_unreachable", status=502, blame=_U, message="The model server could not be reached.", type=_UPSTREAM, retry=Retry.SAFE
)
UPSTREAM_STALE = FaultKind(
    code="upstream_stale", status=502, blame=_U, message="The model server closed the connection.", type=_UPSTREAM, retry=Retry.SAFE
)
UPSTREAM_RATE_LIMITED = FaultKind(
    code="upstream_rate_limited", status=503, blame=_U, message="The model server is overloaded.", type=_SERVER, retry=Retry.SAFE
)
UPSTREAM_REFUSED = FaultKind(
    code="upstream_error", status=503, blame=_U, message="The model server refused the request.", type=_SERVER, retry=Retry.SAFE
)
UPSTREAM_FAILED = FaultKind(
    code="upstream_error", status=502, blame=_U, message="The model server failed.", type=_UPSTREAM, retry=Retry.STARTED
)
UPSTREAM_CUT = FaultKind(
    code="upstream_cut", status=502, blame=_U, message="The model server broke off its answer.", type=_UPSTREAM, retry=Retry.STARTED
)
UPSTREAM_INVALID = FaultKind(
    code="upstream_invalid", status=502, blame=_U, message="The model server sent an invalid answer.", type=_UPSTREAM, retry=Retry.STARTED
)
UPSTREAM_TIMEOUT_CONNECT = FaultKind(
    code="upstream_connect_timeout", status=504, blame=_U, message="The model server could not be reached in time.", type=_UPSTREAM,
    retry=Retry.SAFE,
)  # fmt: skip
UPSTREAM_TIMEOUT_FIRST = FaultKind(
    code="upstream_timeout", status=504, blame=_U, message="The model server did not begin to answer in time.", type=_UPSTREAM,
    retry=Retry.STARTED,
)  # fmt: skip
UPSTREAM_TIMEOUT_IDLE = FaultKind(code="upstream_timeout", status=504, blame=_U, message="The model server fell silent.", type=_UPSTREAM)
UPSTREAM_TIMEOUT_TOTAL = FaultKind(
    code="upstream_timeout", status=504, blame=_U, message="The request took longer than allowed.", type=_UPSTREAM
)
UPSTREAM_MISCONFIGURED = FaultKind(
    code="upstream_error", status=502, blame=_P, message="The model server cannot serve this request.", type=_UPSTREAM, retry=Retry.SAFE
)
ANSWER_TOO_LARGE = FaultKind(
    code="answer_too_large", status=502, blame=_P, message="The answer is larger than the gateway relays.", type=_SERVER
)
UPSTREAM_REQUEST_INVALID = FaultKind(code="invalid_request", status=400, blame=_C, message="The model server did not accept the request.")
CONTEXT_EXCEEDED = _client("context_length_exceeded", 400, "The request is longer than the model's context.")
SUMMARY_CUT = _client("summary_incomplete", 400, "The summary of the conversation does not fit in what the model may still write.")

# The platform.
OVERLOADED = FaultKind(code="overloaded", status=503, blame=_P, message="The gateway is at capacity.", type=_SERVER)
DRAINING = FaultKind(code="draining", status=503, blame=_P, message="The gateway is restarting.", type=_SERVER)
SPOOL_UNAVAILABLE = FaultKind(
    code="metering_unavailable", status=503, blame=_P, message="The request cannot be metered right now.", type=_SERVER
)
RESPONSES_UNAVAILABLE = FaultKind(
    code="stored_responses_unavailable", status=503, blame=_P, message="Stored responses cannot be read right now.", type=_SERVER
)
FILES_UNAVAILABLE = FaultKind(
    code="files_unavailable", status=503, blame=_P, message="Files cannot be stored or read right now.", type=_SERVER
)
SNAPSHOT_MISSING = FaultKind(code="not_ready", status=503, blame=_P, message="The gateway is starting.", type=_SERVER)
SNAPSHOT_OUTDATED = FaultKind(
    code="snapshot_outdated",
    status=503,
    blame=_P,
    message="The gateway has not reached its control plane for too long to know the current prices and keys.",
    type=_SERVER,
)
INTERNAL = FaultKind(code="internal_error", status=500, blame=_P, message="Internal error.", type=_SERVER)

# Administration.
GRANT_EXCEEDS_GRANTOR = FaultKind(
    code="grant_exceeds_grantor", status=403, blame=_T, message="A key cannot grant more than the key with which it is made.",
    type="insufficient_permissions",
)  # fmt: skip
QUOTA_EXCEEDED = FaultKind(  # 403 and not 429, which clients repeat: it stays so until something is ended
    code="quota_exceeded", status=403, blame=_T, message="The organization has as many of these as it may have.", type="quota_exceeded"
)
UNSUPPORTED = _client("unsupported", 400, "This resource of the API is not supported.")
REQUEST_INVALID = _client("invalid_value", 400, "The request is not valid.")
RESOURCE_UNKNOWN = _client("not_found", 404, "There is no such resource.")
NAME_TAKEN = _client("conflict", 409, "Something with this name or in this state exists already.")
STATE_CONFLICT = _client("conflict", 409, "The state of the resource does not allow this.")
IDEMPOTENCY_KEY_REUSED = _client("idempotency_key_reused", 409, "This Idempotency-Key was used with another body.")
IDEMPOTENCY_UNANSWERED = _client(
    "idempotency_unanswered",
    409,
    "A request with this Idempotency-Key was carried out or is at work, and its answer is not stored; look at the resource.",
)
IDEMPOTENCY_IN_PROGRESS = _client("idempotency_in_progress", 409, "A request with this Idempotency-Key is at work.")
IDEMPOTENCY_ANSWERS_EXCEEDED = FaultKind(
    code="rate_limit_exceeded", status=429, blame=_T, type="requests",
    message="Your organization has stored as many answers to requests with an Idempotency-Key as it may.",
)  # fmt: skip
PRICE_MISSING = _client("price_missing", 400, "A model cannot be published without a price that is valid now.")
PRICE_INVALID = _client("invalid_price", 400, "The price is not valid.")
PRICE_DOUBTFUL = _client("doubtful_price", 409, "The check of the draft has warnings; publish it with `accept_warnings` if they are meant.")
PERIOD_BLOCKED = FaultKind(code="period_blocked", status=409, blame=_P, message="Records are missing.")
KEY_ENCRYPTION_UNAVAILABLE = FaultKind(
    code="key_encryption_unavailable",
    status=503,
    blame=_P,
    message="The service that holds the keys of this installation cannot be reached right now.",
    type=_SERVER,
)
DATABASE_UNAVAILABLE = FaultKind(
    code="database_unavailable", status=503, blame=_P, message="The database cannot be reached right now.", type=_SERVER
)
