"""The native extension, compiled for the tests that hold it against its twins in Python."""

import importlib.machinery
import importlib.util
import shutil
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

import pytest

import tollway

SOURCE = Path(tollway.__file__).parent / "_native.c"


@pytest.fixture(scope="session")
def native(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The extension, compiled for this run."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    library = tmp_path_factory.mktemp("native") / "_native.so"
    command = [compiler, "-O1", "-Wall", "-Wextra", "-Werror", "-Wno-missing-field-initializers", "-Wno-unused-parameter"]
    command += ["-Wno-cast-function-type", "-shared", "-fPIC", f"-I{sysconfig.get_path('include')}", "-o", str(library), str(SOURCE)]
    subprocess.run(command, check=True)
    loader = importlib.machinery.ExtensionFileLoader("tollway._native", str(library))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader("tollway._native", loader))  # type: ignore[arg-type]
    loader.exec_module(module)
    return module
