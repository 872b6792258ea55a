"""The content of requests on its way to the log of their project, where that wants one.

The recorder of the answer (`answer_recorder`) hands over the answer, and the content is given to the log when the request has ended. What
becomes of it there changes nothing for the request: a log that is full or cannot be reached loses content, and says how much.
"""

from collections.abc import Sequence

from tollway.domain.answers import StoredAnswer
from tollway.domain.content_logs import ANSWER_BYTES_MAX, REQUEST_BYTES_MAX, Content, ContentRecord
from tollway.gateway.answer_recorder import AnswerRecorder
from tollway.gateway.buffers import LARGE_BYTES, BufferHold, Buffers
from tollway.gateway.ports import ClaimedAnswer, Client, ContentLog
from tollway.gateway.request import Call


class LoggedAnswer:
    """The place of an answer in the log (`ports.ClaimedAnswer`), and beside it the one where the answer is stored for other reasons."""

    def __init__(
        self, log: ContentLog, record: ContentRecord, pieces: Sequence[bytes], buffer: BufferHold, stored: ClaimedAnswer | None
    ) -> None:
        """`pieces`: of the body. `buffer`: holds what is logged of a long one, as far as its budget suffices. `stored`: the other place;
        None for most requests."""
        self.answer: StoredAnswer | None = None
        self._log = log
        self._record = record
        self._buffer = buffer
        self._stored = stored
        self._size = sum(map(len, pieces))
        self._request = pieces[0] if len(pieces) == 1 and self._size <= LARGE_BYTES else self._copy(pieces)
        self._kept: StoredAnswer | None = None

    def _copy(self, pieces: Sequence[bytes]) -> bytes:
        """Return the first bytes of a body; none if the budget for buffered bytes does not suffice."""
        if self._buffer.grow_to(min(self._size, REQUEST_BYTES_MAX)) is not None:
            return b""
        head = bytearray()
        for piece in pieces:
            head += piece[: REQUEST_BYTES_MAX - len(head)]
        return bytes(head)

    def keep(self, answer: StoredAnswer | None) -> None:
        """Note an answer, and store it where that is wanted as well. Raises as that does."""
        if self._stored is not None:
            self._stored.keep(answer)
        self._kept = answer

    def release(self) -> None:
        """Give the content to the log: the request has ended."""
        if self._stored is not None:
            self._stored.release()
        body = None if self._kept is None or len(self._kept.body) > ANSWER_BYTES_MAX else self._kept.body
        is_cut = len(self._request) < self._size
        self._log.add(self._record, Content(request=self._request, is_request_cut=is_cut, answer=body))
        self._buffer.release()

    def clean_up(self) -> None:
        """Remove what an unanswered request left on the disk."""
        if self._stored is not None:
            self._stored.clean_up()


def log_content(
    log: ContentLog, call: Call, client: Client, recorder: AnswerRecorder | None, pieces: Sequence[bytes], buffers: Buffers
) -> AnswerRecorder:
    """Return the recorder of a call whose content is logged: the one that it has, or a new one. `pieces`: of the body that the client
    sent."""
    caller, request = call.caller, call.request
    record = ContentRecord(
        id=request.id,
        organization_id=caller.organization.id,
        project_id=caller.project.id,
        key_id=caller.principal.id,
        endpoint=request.endpoint,
        model=call.model.id,
        created_at=request.received_at,
    )
    account = buffers.find_key(caller.principal.id)
    place = LoggedAnswer(log, record, pieces, BufferHold(buffers, account), None if recorder is None else recorder.claimed)
    if recorder is None:
        return AnswerRecorder(client, place, ANSWER_BYTES_MAX, BufferHold(buffers, account))
    recorder.claimed = place
    return recorder
