"""Hours of usage as Parquet, each with a manifest that says which file counts.

    <directory>/hour=2026-11-30T16/usage-<digest>.parquet
    <directory>/hour=2026-11-30T16/manifest.json
    <directory>/start.json                                 until the first hour is written

The file is durable before the manifest names it, and the manifest is replaced as a whole: whoever reads the file of the manifest reads a
whole hour, also while it is replaced. The file before stays until the next run, for whoever has read
the manifest and not the file yet. pyarrow writes the files; it is an extra (`pip install tollway[parquet]`) of 165 MB.
"""

import hashlib
import importlib
import os
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from tollway.domain.billing_classes import BillingClass
from tollway.storage.record_archive import make_directory
from tollway.storage.usage_hours import COLUMNS, FLAGS, INSTANTS, TEXTS

MANIFEST = "manifest.json"
START = "start.json"
FORMAT = "%Y-%m-%dT%H"
VERSION = 1
"""Version of the columns. A new column keeps it."""

CHUNK_BYTES = 1 << 20


class HourManifest(msgspec.Struct, frozen=True, kw_only=True):
    """The manifest of an hour. `hour`: its start, RFC 3339. `amount_pico`: what its events cost, by currency, as decimal strings."""

    version: int
    hour: str
    file: str
    bytes: int
    sha256: str
    rows: int
    amount_pico: Mapping[str, str]
    written_at: str


class UsageFiles:
    """The directory of hours. Raises ParquetMissing when it is made without pyarrow."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        try:
            self._arrow: Any = importlib.import_module("pyarrow")
            self._parquet: Any = importlib.import_module("pyarrow.parquet")
        except ImportError:
            raise ParquetMissing("pyarrow is not installed: pip install tollway[parquet]") from None

    def list_hours(self) -> list[int]:
        """Return the starts of the hours that have a manifest, in UTC microseconds, in order."""
        names = [path.parent.name.removeprefix("hour=") for path in self._directory.glob(f"hour=*/{MANIFEST}")]
        return sorted(int(datetime.strptime(name, FORMAT).replace(tzinfo=UTC).timestamp()) * 1_000_000 for name in names)

    def find_start(self) -> int | None:
        """Return the start of the first hour that was to be written, in UTC microseconds, while it is not written."""
        path = self._directory.joinpath(START)
        return msgspec.json.decode(path.read_bytes(), type=int) * 1_000_000 if path.exists() else None

    def put_start(self, hour_at: int) -> None:
        """Store which hour is to be written first. Raises OSError."""
        make_directory(self._directory)
        _replace(self._directory.joinpath(START), msgspec.json.encode(hour_at // 1_000_000))

    def remove_start(self) -> None:
        """Forget which hour is to be written first. Raises OSError."""
        self._directory.joinpath(START).unlink(missing_ok=True)

    def find_manifest(self, hour_at: int) -> HourManifest | None:
        """Return the manifest of an hour."""
        path = self._path(hour_at).joinpath(MANIFEST)
        return msgspec.json.decode(path.read_bytes(), type=HourManifest) if path.exists() else None

    def write(self, hour_at: int, parts: Iterable[Sequence[Mapping[str, Any]]], now: int) -> HourManifest:
        """Write the file of an hour, or replace it, and return its manifest. Files that neither this manifest nor the one before names are
        removed. Raises OSError."""
        directory = self._path(hour_at)
        before = self.find_manifest(hour_at)
        make_directory(directory)
        unfinished = directory.joinpath(f"{os.getpid()}.unfinished")
        rows, amounts = self._write_rows(unfinished, parts)
        digest, size = _digest(unfinished)
        name = f"usage-{digest[:16]}.parquet"
        unfinished.replace(directory.joinpath(name))
        manifest = HourManifest(
            version=VERSION,
            hour=datetime.fromtimestamp(hour_at // 1_000_000, UTC).isoformat().replace("+00:00", "Z"),
            file=name,
            bytes=size,
            sha256=digest,
            rows=rows,
            amount_pico={currency: str(amount) for currency, amount in sorted(amounts.items())},
            written_at=datetime.fromtimestamp(now // 1_000_000, UTC).isoformat().replace("+00:00", "Z"),
        )
        _replace(directory.joinpath(MANIFEST), msgspec.json.format(msgspec.json.encode(manifest)))
        _remove_others(directory, {MANIFEST, name} if before is None else {MANIFEST, name, before.file})
        return manifest

    def remove_others(self, hour_at: int, manifest: HourManifest) -> None:
        """Remove what the manifest of an hour does not name: the file before, and what a process left that was killed. Raises OSError."""
        _remove_others(self._path(hour_at), {MANIFEST, manifest.file})

    def _write_rows(self, path: Path, parts: Iterable[Sequence[Mapping[str, Any]]]) -> tuple[int, Counter[str]]:
        rows, amounts = 0, Counter[str]()
        schema = self._schema()
        with self._parquet.ParquetWriter(path, schema, compression="zstd") as writer:
            for part in parts:
                writer.write_batch(self._arrow.RecordBatch.from_pylist(part, schema=schema))
                rows += len(part)
                for row in part:
                    amounts[row["currency"]] += sum(row[f"{each}_pico"] or 0 for each in BillingClass)
        return rows, amounts

    def _schema(self) -> Any:
        arrow = self._arrow
        kinds = dict.fromkeys(TEXTS, arrow.string()) | dict.fromkeys(FLAGS, arrow.bool_())
        kinds |= dict.fromkeys(INSTANTS, arrow.timestamp("us", tz="UTC"))
        return arrow.schema([(name, kinds.get(name, arrow.int64())) for name in COLUMNS])

    def _path(self, hour_at: int) -> Path:
        return self._directory.joinpath(f"hour={datetime.fromtimestamp(hour_at // 1_000_000, UTC).strftime(FORMAT)}")


class ParquetMissing(Exception):
    """The package pyarrow is not installed."""


def _remove_others(directory: Path, kept: Collection[str]) -> None:
    for path in directory.iterdir():
        if path.name not in kept:
            path.unlink(missing_ok=True)


def _digest(path: Path) -> tuple[str, int]:
    """Return the SHA-256 and the size of a file, and make it durable."""
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
            size += len(chunk)
        os.fsync(file.fileno())
    return digest.hexdigest(), size


def _replace(path: Path, content: bytes) -> None:
    """Replace a file as a whole, durably, and with it the names in its directory."""
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.unfinished")
    with unfinished.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)
    descriptor = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
