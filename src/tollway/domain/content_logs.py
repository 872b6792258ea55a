"""Logged content: what a request of a project said and what it was answered, where the project wants that."""

from typing import Final

import msgspec

from tollway.domain.catalog import Endpoint

REQUEST_BYTES_MAX: Final = 256 * 1024
"""Most bytes of the body of a request that are logged; the rest is left out."""

ANSWER_BYTES_MAX: Final = 256 * 1024
"""Longest answer that is logged. Of a longer one nothing is."""


class Content(msgspec.Struct, frozen=True, kw_only=True):
    """The content of a request, as it is sealed. `request`: the body as the client sent it, its first REQUEST_BYTES_MAX bytes;
    `is_request_cut`: whether it was longer. `answer`: the body of the answer, or the events of a stream; None if it broke off, was refused,
    or is longer than ANSWER_BYTES_MAX."""

    request: bytes
    is_request_cut: bool
    answer: bytes | None


class ContentRecord(msgspec.Struct, frozen=True, kw_only=True):
    """Facts about logged content that are known without opening it. `id`: of the request. `created_at`: when it was received, UTC
    microseconds."""

    id: str
    organization_id: str
    project_id: str
    key_id: str
    endpoint: Endpoint
    model: str
    created_at: int


def name_content(organization_id: str, project_id: str, id: str) -> str:
    """Return what the content of a request is sealed for."""
    return f"content:{organization_id}:{project_id}:{id}"


def name_response(organization_id: str, project_id: str, id: str) -> str:
    """Return what a stored response is sealed for."""
    return f"response:{organization_id}:{project_id}:{id}"
