"""`python scripts/native.py DIRECTORY [--leaves] [--unoptimized]`: build the package with native code in DIRECTORY, beside a copy of its
source.

The native extension (`_native.c`) is compiled, and the modules of HOT by mypyc unless `--leaves` is given. `--unoptimized` takes a third of
the time and is for tests. The result is run with `PYTHONPATH=DIRECTORY`; the source stays as it is, so that no compiled module can hide a
later change to it. It needs a C compiler and the packages of the `build` group. `hatch_build.py` puts the same files into wheels.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
from pathlib import Path

SOURCE = Path(__file__).resolve().parent.parent / "src" / "tollway"

HOT = [
    "domain/ids.py",
    "domain/request_records.py",
    "domain/shared_limits.py",
    "gateway/authenticate.py",
    "gateway/authorize.py",
    "gateway/blame.py",
    "gateway/counters.py",
    "gateway/memory_counters.py",
    "gateway/deadlines.py",
    "gateway/dialects/engine_json.py",
    "gateway/dialects/engine_usage.py",
    "gateway/dialects/openai_answers.py",
    "gateway/dialects/openai_stream.py",
    "gateway/directory.py",
    "gateway/driver.py",
    "gateway/edge/client_connection.py",
    "gateway/edge/edge.py",
    "gateway/limit.py",
    "gateway/meter.py",
    "gateway/observe.py",
    "gateway/pipeline.py",
    "gateway/plane.py",
    "gateway/principal.py",
    "gateway/relay.py",
    "gateway/request.py",
    "gateway/request_traces.py",
    "gateway/route.py",
    "gateway/tracing.py",
    "gateway/held_prefixes.py",
    "gateway/prefix_routing.py",
    "gateway/shared_counters.py",
    "gateway/upstreams/connection.py",
    "gateway/upstreams/health.py",
    "gateway/upstreams/upstream.py",
    "link/spool.py",
    "storage/shared_counters.py",
    "telemetry.py",
    "wire/bodies.py",
    "wire/http.py",
    "wire/progress_slots.py",
    "wire/resp.py",
    "wire/segments.py",
    "wire/sse.py",
]
"""The modules that a request runs through, without gaps: each crossing between compiled and interpreted classes costs what compiling
gains. Modules whose msgspec structs have defaults that are read from JSON or omitted in it must stay out: compiled, they are fields
without a default. A coroutine that waits inside `except` or `__aexit__` must run below `gateway/isolation.py`, which stays out as well."""


def build(directory: Path, *, leaves_only: bool = False, is_optimized: bool = True) -> list[Path]:
    """Copy the package to `directory` and compile it there. Return the shared libraries, relative to `directory`.

    `is_optimized`: False for the quickest build, which behaves alike.

    Raises SystemExit if the compiler fails.
    """
    from setuptools import Extension, setup

    shutil.rmtree(directory, ignore_errors=True)
    shutil.copytree(SOURCE, directory / "tollway", ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    level = "3" if is_optimized else "0"
    before = Path.cwd()
    os.chdir(directory)
    try:
        flags = [f"-O{level}", "-Wall", "-Wextra", "-Wno-missing-field-initializers", "-Wno-unused-parameter", "-Wno-cast-function-type"]
        extensions = [Extension("tollway._native", ["tollway/_native.c"], extra_compile_args=flags)]
        with tempfile.TemporaryDirectory(prefix="tollway-native-") as scratch:
            if not leaves_only:
                from mypyc.build import mypycify

                modules = [f"tollway/{name}" for name in HOT]
                options = ["--config-file", str(SOURCE.parent.parent / "pyproject.toml")]
                extensions += mypycify([*options, *modules], opt_level=level, target_dir=str(Path(scratch) / "c"))
            setup(
                name="tollway",
                packages=[],
                ext_modules=extensions,
                script_args=["-q", "build_ext", "--inplace", "--build-temp", scratch, "--build-lib", scratch],
            )
    finally:
        os.chdir(before)
    return sorted(path.relative_to(directory) for path in directory.rglob("*.so"))


def main() -> None:
    """Build as the arguments say."""
    parser = argparse.ArgumentParser(description="Build the package with native code, beside a copy of its source.")
    parser.add_argument("directory", type=Path, help="where the copy is put; what lies there is removed")
    parser.add_argument("--leaves", action="store_true", help="build the native extension only, and no module by mypyc")
    parser.add_argument("--unoptimized", action="store_true", help="build as quickly as possible, for tests")
    arguments = parser.parse_args()
    build(arguments.directory.resolve(), leaves_only=arguments.leaves, is_optimized=not arguments.unoptimized)


if __name__ == "__main__":
    main()
