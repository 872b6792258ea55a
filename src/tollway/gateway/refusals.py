"""Answers to faults: the status, the headers (`retry-after` among them) and the body in the shape of the API."""

from tollway.domain import faults
from tollway.domain.faults import Fault
from tollway.gateway.dialects.table import DIALECTS
from tollway.gateway.ports import Client
from tollway.gateway.request import Request
from tollway.wire.retry_after import retry_header_lines

_HEADERS = b"content-type: application/json\r\ncache-control: no-store\r\n"


def refuse(request: Request, client: Client, fault: Fault, limit_headers: bytes = b"") -> None:
    """Tell the client of a fault: as a response if nothing was sent yet, else as the last event of its stream. `limit_headers`: of the
    permit, if the request had one."""
    if client.gone:
        return
    dialect = DIALECTS[request.endpoint]
    if client.committed and request.sends_media:
        client.break_off()
    elif client.committed:
        client.end_stream(dialect.render_error_event(fault, request.id))
    else:
        headers = _HEADERS + dialect.identify(request.id) + limit_headers + fault_headers(fault)
        client.answer(fault.kind.status, headers, dialect.render_error(fault, request.id))


def fault_headers(fault: Fault) -> bytes:
    """Return the header lines that a fault adds to its answer: the authentication scheme, its own, and when to try again."""
    if fault.kind is faults.KEY_INVALID:
        return b"www-authenticate: Bearer\r\n"
    return fault.headers + retry_header_lines(fault)
