"""Hours of usage and closed billing periods as Parquet, each with a manifest that says which file counts.

    <directory>/hour=2026-11-30T16/usage-<digest>.parquet
    <directory>/hour=2026-11-30T16/manifest.json
    <directory>/start.json                                 until the first hour is written
    <directory>/period=period_<id>/usage-<digest>.parquet
    <directory>/period=period_<id>/manifest.json
    <directory>/periods.json                               up to which close periods are written

The file is durable before the manifest names it, and the manifest is replaced as a whole: whoever reads the file of the manifest reads a
whole hour, also while it is replaced. The file before stays until the next run, for whoever has read
the manifest and not the file yet. pyarrow writes the files; it is an extra (`pip install tollway[parquet]`) of 165 MB.
"""

import hashlib
import importlib
import os
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from tollway.domain.billing_classes import BillingClass
from tollway.domain.periods import Period
from tollway.storage.record_archive import make_directory
from tollway.storage.usage_hours import COLUMNS, FLAGS, INSTANTS, TEXTS

MANIFEST = "manifest.json"
START = "start.json"
POSITION = "periods.json"
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


class PeriodManifest(msgspec.Struct, frozen=True, kw_only=True):
    """The manifest of a closed period, with what its close recorded. `start`, `end`: RFC 3339. `amount_pico`: what its events cost, by
    billing class, as decimal strings. `merkle_root`, `period_hash`: in hexadecimal, as on its invoice."""

    version: int
    period_id: str
    organization_id: str
    start: str
    end: str
    time_zone: str
    currency: str
    file: str
    bytes: int
    sha256: str
    rows: int
    amount_pico: Mapping[str, str]
    merkle_root: str
    period_hash: str
    written_at: str


Amounts = Mapping[tuple[str, str], int]
"""Amounts by currency and billing class, in pico-currency."""


class WrittenRows(NamedTuple):
    """A file of rows that nothing names yet, with their number and their amounts."""

    path: Path
    sha256: str
    bytes: int
    rows: int
    amounts: Amounts


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
        written = self._write_rows(directory, parts)
        amounts = Counter[str]()
        for (currency, _), pico in written.amounts.items():
            amounts[currency] += pico
        manifest = HourManifest(
            version=VERSION,
            hour=_format(hour_at),
            file=_name(written),
            bytes=written.bytes,
            sha256=written.sha256,
            rows=written.rows,
            amount_pico={currency: str(amount) for currency, amount in sorted(amounts.items())},
            written_at=_format(now),
        )
        _publish(written, manifest)
        _remove_others(directory, {MANIFEST, manifest.file} if before is None else {MANIFEST, manifest.file, before.file})
        return manifest

    def find_position(self) -> int | None:
        """Return up to which instant of their close periods are written, in UTC microseconds; None before the first run."""
        path = self._directory.joinpath(POSITION)
        return msgspec.json.decode(path.read_bytes(), type=int) if path.exists() else None

    def put_position(self, closed_at: int) -> None:
        """Store up to which instant of their close periods are written. Raises OSError."""
        make_directory(self._directory)
        _replace(self._directory.joinpath(POSITION), msgspec.json.encode(closed_at))

    def find_period_manifest(self, period_id: str) -> PeriodManifest | None:
        """Return the manifest of a period."""
        path = self._directory.joinpath(f"period={period_id}", MANIFEST)
        return msgspec.json.decode(path.read_bytes(), type=PeriodManifest) if path.exists() else None

    def write_period(
        self, period: Period, parts: Iterable[Sequence[Mapping[str, Any]]], check: Callable[[WrittenRows], None], now: int
    ) -> PeriodManifest:
        """Write the file of a closed period and return its manifest. `check` raises for rows that are not those of the period: then nothing
        names the file. Raises OSError."""
        assert period.closed is not None, "only a closed period is written"
        directory = self._directory.joinpath(f"period={period.id}")
        written = self._write_rows(directory, parts)
        check(written)
        manifest = PeriodManifest(
            version=VERSION,
            period_id=period.id,
            organization_id=period.organization_id,
            start=_format(period.start_at),
            end=_format(period.end_at),
            time_zone=period.time_zone,
            currency=period.currency,
            file=_name(written),
            bytes=written.bytes,
            sha256=written.sha256,
            rows=written.rows,
            amount_pico={billing_class: str(pico) for (_, billing_class), pico in sorted(written.amounts.items()) if pico},
            merkle_root=period.closed.merkle_root.hex(),
            period_hash="" if period.closed.period_hash is None else period.closed.period_hash.hex(),
            written_at=_format(now),
        )
        _publish(written, manifest)
        _remove_others(directory, {MANIFEST, manifest.file})
        return manifest

    def remove_others(self, hour_at: int, manifest: HourManifest) -> None:
        """Remove what the manifest of an hour does not name: the file before, and what a process left that was killed. Raises OSError."""
        _remove_others(self._path(hour_at), {MANIFEST, manifest.file})

    def _write_rows(self, directory: Path, parts: Iterable[Sequence[Mapping[str, Any]]]) -> WrittenRows:
        make_directory(directory)
        path = directory.joinpath(f"{os.getpid()}.unfinished")
        rows, amounts = 0, Counter[tuple[str, str]]()
        schema = self._schema()
        with self._parquet.ParquetWriter(path, schema, compression="zstd") as writer:
            for part in parts:
                writer.write_batch(self._arrow.RecordBatch.from_pylist(part, schema=schema))
                rows += len(part)
                for row in part:
                    for each in BillingClass:
                        amounts[row["currency"], str(each)] += row[f"{each}_pico"] or 0
        return WrittenRows(path, *_digest(path), rows, amounts)

    def _schema(self) -> Any:
        arrow = self._arrow
        kinds = dict.fromkeys(TEXTS, arrow.string()) | dict.fromkeys(FLAGS, arrow.bool_())
        kinds |= dict.fromkeys(INSTANTS, arrow.timestamp("us", tz="UTC"))
        return arrow.schema([(name, kinds.get(name, arrow.int64())) for name in COLUMNS])

    def _path(self, hour_at: int) -> Path:
        return self._directory.joinpath(f"hour={datetime.fromtimestamp(hour_at // 1_000_000, UTC).strftime(FORMAT)}")


class ParquetMissing(Exception):
    """The package pyarrow is not installed."""


def _format(at: int) -> str:
    return datetime.fromtimestamp(at // 1_000_000, UTC).isoformat().replace("+00:00", "Z")


def _name(written: WrittenRows) -> str:
    return f"usage-{written.sha256[:16]}.parquet"


def _publish(written: WrittenRows, manifest: HourManifest | PeriodManifest) -> None:
    """Give a file the name that its manifest says, then write the manifest."""
    written.path.replace(written.path.with_name(manifest.file))
    _replace(written.path.with_name(MANIFEST), msgspec.json.format(msgspec.json.encode(manifest)))


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
