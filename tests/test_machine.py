"""What runs on the machine of a workspace needs nothing but Python there."""

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from aiopt.backends import machine

FOLDER = Path(machine.__file__).parent
MODULES = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem != "__init__")


@pytest.mark.parametrize("module", MODULES)
def test_module_imports_by_itself(module: str, tmp_path: Path) -> None:
    """In another place, under another name, without any installed package."""
    shutil.copytree(FOLDER, tmp_path / "elsewhere")
    script = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import elsewhere.{module}"
    done = subprocess.run([sys.executable, "-I", "-S", "-c", script], capture_output=True)
    assert done.returncode == 0, done.stderr.decode()


@pytest.mark.parametrize("module", MODULES)
def test_module_is_written_in_old_python(module: str) -> None:
    """That of 3.9, which machines of five years ago have."""
    ast.parse((FOLDER / f"{module}.py").read_text(encoding="utf-8"), feature_version=(3, 9))
