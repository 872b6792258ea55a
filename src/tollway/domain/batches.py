"""Batches: requests that are served within a day at the batch price. What is known of one, and what its states mean.

A response in the background is kept and run as a batch of one line, at the price of its own service tier."""

from enum import IntEnum, StrEnum
from typing import Any, Final

import msgspec

from tollway.domain.catalog import Endpoint
from tollway.domain.files import FileOwner
from tollway.domain.ids import RESPONSE

WINDOW_SECONDS: Final = 86_400
"""Time in which the lines of a batch are served."""
SHOWN_SECONDS: Final = 30 * 86_400
"""Time after its submission for which a batch is shown."""
ERRORS_MAX: Final = 100
"""Most errors of a batch that are kept; a file with more of them is refused all the same."""
BATCH_BYTES_MAX: Final = 200_000_000
"""Most bytes of the lines of a batch."""
LINE_BODY_BYTES_MAX: Final = 4 * 1024 * 1024
"""Most bytes of the body of one line."""
CUSTOM_ID_CHARACTERS_MAX: Final = 512

BATCH_ENDPOINTS: Final = {
    f"/v1/{endpoint}": endpoint
    for endpoint in (Endpoint.CHAT_COMPLETIONS, Endpoint.COMPLETIONS, Endpoint.EMBEDDINGS, Endpoint.RESPONSES, Endpoint.MESSAGES)
}
"""Endpoints of lines, by their paths."""


class BatchStatus(StrEnum):
    """States of a batch, in OpenAI's words."""

    VALIDATING = "validating"
    IN_PROGRESS = "in_progress"
    FINALIZING = "finalizing"
    COMPLETED = "completed"
    FAILED = "failed"
    EXPIRED = "expired"
    CANCELLING = "cancelling"
    CANCELLED = "cancelled"


ENDED: Final = frozenset({BatchStatus.COMPLETED, BatchStatus.FAILED, BatchStatus.EXPIRED, BatchStatus.CANCELLED})
"""States that a batch does not leave."""


class LineResult(IntEnum):
    """Ends of a line, as its journal numbers them."""

    COMPLETED = 0
    ERRORED = 1
    CANCELLED = 2
    EXPIRED = 3


class BatchError(msgspec.Struct, frozen=True):
    """A reason for which a batch failed. `line`: from 1; None where it is not one line's."""

    code: str
    message: str
    param: str | None = None
    line: int | None = None


class LineCounts(msgspec.Struct, frozen=True, array_like=True):
    """Lines of a batch by their end."""

    completed: int = 0
    errored: int = 0
    cancelled: int = 0
    expired: int = 0

    @property
    def ended(self) -> int:
        """Return how many lines have ended."""
        return self.completed + self.errored + self.cancelled + self.expired


class Batch(msgspec.Struct, frozen=True, kw_only=True):
    """A batch without its lines. Times are UTC in seconds; None for what has not happened.

    `snapshot_version`: of a snapshot that has its key. `key_id`, `address`: of the key that submitted it, and of its client. `headers`:
    those of the submission that go to engines. `input_file_id`: empty where the lines came with the submission. `output_file_id`,
    `error_file_id`: of the files that are written at the end, chosen at submission; empty for a response. `output_seconds`: for which those
    are kept. `total`: lines; 0 before they were read. `outcome`: the state that it ends in, once it is known. `counts`: of its lines, once
    it ended. `model`, `previous_response_id`: what a response in the background shows of its request."""

    id: str
    owner: FileOwner
    key_id: str
    address: str
    endpoint: Endpoint
    created_at: int
    output_file_id: str
    error_file_id: str
    output_seconds: int
    snapshot_version: int = 0
    input_file_id: str = ""
    headers: dict[str, str] = {}
    metadata: dict[str, str] | None = None
    status: BatchStatus = BatchStatus.VALIDATING
    outcome: BatchStatus | None = None
    total: int = 0
    counts: LineCounts = LineCounts()
    errors: tuple[BatchError, ...] = ()
    in_progress_at: int | None = None
    finalizing_at: int | None = None
    cancelling_at: int | None = None
    ended_at: int | None = None
    model: str = ""
    previous_response_id: str | None = None

    @property
    def is_response(self) -> bool:
        """Return whether this is a response in the background."""
        return self.id.startswith(f"{RESPONSE}_")

    @property
    def has_files(self) -> bool:
        """Return whether its lines come from a file and its answers go to files."""
        return bool(self.input_file_id)

    @property
    def expires_at(self) -> int:
        """Return the instant at which lines that were not sent expire."""
        return self.created_at + WINDOW_SECONDS

    @property
    def has_ended(self) -> bool:
        """Return whether the batch is in its last state."""
        return self.status in ENDED

    def describe(self) -> dict[str, Any]:
        """Return the batch in OpenAI's shape."""

        def ended(status: BatchStatus) -> int | None:
            return self.ended_at if self.status is status else None

        counts, errors = self.counts, [msgspec.to_builtins(error) for error in self.errors]
        return {
            "id": self.id,
            "object": "batch",
            "endpoint": f"/v1/{self.endpoint}",
            "errors": {"object": "list", "data": errors} if errors else None,
            "input_file_id": self.input_file_id,
            "completion_window": "24h",
            "status": self.status,
            "output_file_id": self.output_file_id if self.has_ended and counts.completed else None,
            "error_file_id": self.error_file_id if self.has_ended and counts.ended > counts.completed else None,
            "created_at": self.created_at,
            "in_progress_at": self.in_progress_at,
            "expires_at": self.expires_at,
            "finalizing_at": self.finalizing_at,
            "completed_at": ended(BatchStatus.COMPLETED),
            "failed_at": ended(BatchStatus.FAILED),
            "expired_at": ended(BatchStatus.EXPIRED),
            "cancelling_at": self.cancelling_at,
            "cancelled_at": ended(BatchStatus.CANCELLED),
            "request_counts": {"total": self.total, "completed": counts.completed, "failed": counts.ended - counts.completed},
            "metadata": self.metadata,
        }


class BatchEnd(msgspec.Struct, frozen=True, kw_only=True):
    """A batch that has ended, as a gateway reports it to control. `ended_at`: UTC seconds. `succeeded`, `failed`: lines that were answered
    with 200, and all others."""

    id: str
    organization_id: str
    project_id: str
    status: BatchStatus
    ended_at: int
    succeeded: int
    failed: int

    @classmethod
    def of(cls, batch: Batch) -> "BatchEnd":
        """Return the end of a batch. Raises ValueError for one that has not ended."""
        if batch.ended_at is None:
            raise ValueError(f"{batch.id} has not ended")
        return cls(
            id=batch.id,
            organization_id=batch.owner.organization_id,
            project_id=batch.owner.project_id,
            status=batch.status,
            ended_at=batch.ended_at,
            succeeded=batch.counts.completed,
            failed=batch.counts.ended - batch.counts.completed,
        )


ENDS_REPORTED_MAX: Final = 100
"""Batches of one report to control."""
