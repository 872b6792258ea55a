"""Build hook: puts native code into the wheel where TOLLWAY_NATIVE=1 asks for it (`make wheel`). Without it the wheel is pure Python, and
installing from source needs no compiler."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class NativeBuildHook(BuildHookInterface):  # type: ignore[type-arg]
    """Compiles the package beside a copy of its source and adds the shared libraries."""

    _scratch: tempfile.TemporaryDirectory[str] | None = None

    def dependencies(self) -> list[str]:
        """Packages that the build needs beside hatchling."""
        return ["mypy>=2.4", "setuptools>=80"] if _is_wanted() else []

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Build, and declare the wheel to be of this interpreter and machine."""
        if version == "editable" or not _is_wanted():
            return
        sys.path.insert(0, str(Path(self.root) / "scripts"))
        import native

        self._scratch = tempfile.TemporaryDirectory(prefix="tollway-wheel-")
        directory = Path(self._scratch.name) / "built"
        for library in native.build(directory):
            build_data["force_include"][str(directory / library)] = str(library)
        build_data["pure_python"] = False
        build_data["infer_tag"] = True

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Remove the copy."""
        if self._scratch is not None:
            self._scratch.cleanup()


def _is_wanted() -> bool:
    return os.environ.get("TOLLWAY_NATIVE") == "1"
