"""Files of tenants: what is known of one, and for how long it is kept."""

from enum import StrEnum
from typing import Any, Final

import msgspec


class FilePurpose(StrEnum):
    """Uses of a file, in OpenAI's words."""

    BATCH = "batch"  # lines of a batch
    USER_DATA = "user_data"  # whatever the client wants to keep
    BATCH_OUTPUT = "batch_output"  # answers and errors of a batch, written by gateways alone


UPLOADED: Final = (FilePurpose.BATCH, FilePurpose.USER_DATA)
"""Purposes of files that clients send."""


EXPIRY_SECONDS_MIN: Final = 3_600
EXPIRY_SECONDS_MAX: Final = 2_592_000
"""Shortest and longest lifetime that a client can ask for, as OpenAI has them."""

FILENAME_CHARACTERS_MAX: Final = 255


class FileOwner(msgspec.Struct, frozen=True):
    """The project that a file belongs to. No other project sees it."""

    organization_id: str
    project_id: str


class StoredFile(msgspec.Struct, frozen=True, array_like=True):
    """A file without its content. `size`: of the content in bytes. Times are UTC in seconds; the file is gone from `expires_at` on."""

    id: str
    filename: str
    purpose: FilePurpose
    size: int
    created_at: int
    expires_at: int

    def describe(self) -> dict[str, Any]:
        """Return the file in OpenAI's shape."""
        return {
            "id": self.id,
            "object": "file",
            "bytes": self.size,
            "created_at": self.created_at,
            "expires_at": self.expires_at,
            "filename": self.filename,
            "purpose": self.purpose,
            "status": "processed",
            "status_details": None,
        }
