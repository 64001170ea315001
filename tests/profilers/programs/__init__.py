"""Programs of which is known what profilers have to find in them, and how to run them under one."""

import re
import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NoReturn

import anyio
import pytest
from attrs import define, field

from aiopt.backends.local import LocalBackend
from aiopt.protocols import (
    Command,
    Finishing,
    NotAvailable,
    OutputStream,
    Profiler,
    ProfileResult,
    Workspace,
    WorkspaceSpec,
)

__all__ = ["Printed", "compiled", "opened", "profiled", "skip_without"]

_FLAGS = ("-O2", "-g", "-gdwarf-4", "-gno-variable-location-views", "-fno-omit-frame-pointer")


_INSTALLABLE = re.compile(
    r"not installed|not found|cannot execute|No module|cannot be preloaded|No such file"
)


@define
class Printed:
    """What a command prints."""

    texts: dict[OutputStream, str] = field(factory=lambda: {"stdout": "", "stderr": ""})

    def write(self, stream: OutputStream, data: bytes) -> None:
        self.texts[stream] += data.decode(errors="replace")

    def numbers(self) -> dict[str, float]:
        """Of the lines `key=number`."""
        pairs = (line.split("=") for line in self.texts["stdout"].splitlines() if "=" in line)
        return {key: float(value) for key, value in pairs}


def compiled(name: str, folder: Path, *flags: str) -> str:
    """The path of a program of this folder, compiled; `flags` come after the usual ones."""
    if shutil.which("gcc") is None:
        pytest.skip("needs gcc: apt-get install gcc")
    program = folder / name
    source = Path(__file__).with_name(f"{name}.c")
    command = ["gcc", *_FLAGS, "-pthread", str(source), "-o", str(program), *flags]
    subprocess.run(command, check=True)
    return str(program)


@asynccontextmanager
async def opened(root: Path, *capabilities: str) -> AsyncIterator[Workspace]:
    """A workspace of the local backend under `root`, with a run folder."""
    for name in ("source", "harness", "scratch"):
        (root / name).mkdir()
    backend = LocalBackend(lock_path=str(root), capabilities=capabilities)
    spec = WorkspaceSpec(
        name="test",
        tree=root / "source",
        harness=root / "harness",
        scratch=root / "scratch",
        marker=f"profiled-{root.name}",
    )
    async with backend.open(spec) as workspace:
        await workspace.new_run("test")
        yield workspace


def skip_without(missing: NotAvailable) -> NoReturn:
    """Skip a test. A tool that is not installed is "needed"; what a machine refuses to do, no
    installation can change.
    """
    what = "needs a tool" if _INSTALLABLE.search(missing.reason) else "the machine refuses"
    pytest.skip(f"{what}: {missing.reason}; {missing.fix}")


async def profiled(
    profiler: Profiler, workspace: Workspace, *argv: str
) -> tuple[ProfileResult, Printed]:
    """What a profiler says of a program that ran under it, and what that printed.

    Skips the test if the profiler is not available.
    """
    missing = await profiler.probe(workspace)
    if missing is not None:
        skip_without(missing)
    output, printed, content = "{run}/out", Printed(), Printed()
    done = await workspace.run(profiler.wrap(Command(argv=argv), output), printed)
    assert done.ok, (done, printed)
    if isinstance(profiler, Finishing):
        done = await workspace.run(profiler.finish(output), content)
        assert done.ok, (done, content)
    with TemporaryDirectory() as folder:
        copy = Path(folder, "profile")
        await workspace.get(output, copy)
        return profiler.parse([BytesIO(await anyio.Path(copy).read_bytes())]), printed
