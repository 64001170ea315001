"""The probe of a profiler: record, finish and parse a short program, for real."""

from collections.abc import Sequence
from io import BytesIO
from typing import BinaryIO, Protocol

from attrs import define, evolve, field

from aiopt.errors import CommandTimeout
from aiopt.protocols import (
    Command,
    Finishing,
    Measured,
    NotAvailable,
    OutputStream,
    ProfileResult,
    Workspace,
)

__all__ = ["Recorder", "asked", "missing", "trial"]


class Recorder(Protocol):
    """A profiler, as `trial` runs it."""

    def wrap(self, command: Command, output: str) -> Command: ...
    def parse(self, profiles: Sequence[BinaryIO]) -> ProfileResult: ...


@define
class _Heard:
    """What a short command prints, up to a bound."""

    texts: dict[OutputStream, bytearray] = field(
        factory=lambda: {"stdout": bytearray(), "stderr": bytearray()}
    )

    def write(self, stream: OutputStream, data: bytes) -> None:
        self.texts[stream] += data[: (4 << 20) - len(self.texts[stream])]

    @property
    def said(self) -> str:
        """The stderr, in one line."""
        return " ".join(self.texts["stderr"].decode(errors="replace").split())[:300]


async def trial(
    profiler: Recorder, workspace: Workspace, program: str | tuple[str, ...], fix: str
) -> ProfileResult | NotAvailable:
    """What the profiler says of a short shell script or command that it really profiles there.

    `fix` is the command that would install its tool.
    """
    output = "{run}/probe"
    argv = ("sh", "-c", program) if isinstance(program, str) else program
    command = Command(argv=argv, timeout=20.0, label="recording", env={"LC_ALL": "C"})
    steps = [profiler.wrap(command, output)]
    if isinstance(profiler, Finishing):
        finish = profiler.finish(output)
        steps.append(evolve(finish, timeout=20.0, label="reading what was recorded"))
    steps.append(evolve(command, argv=("cat", output), label="fetching it"))
    profile = ""
    for step in steps:
        told = await asked(workspace, step, fix)
        if isinstance(told, NotAvailable):
            return told
        profile = told
    return profiler.parse([BytesIO(profile.encode(errors="surrogateescape"))])


async def missing(
    profiler: Recorder, workspace: Workspace, program: str | tuple[str, ...], fix: str
) -> NotAvailable | None:
    """What keeps the profiler from working there; None if its trial measured something."""
    result = await trial(profiler, workspace, program, fix)
    match result:
        case Measured():
            return None
        case NotAvailable():
            return evolve(result, fix=result.fix or fix)
        case _:
            return NotAvailable(reason=f"of a small program: {result.reason}", fix=fix)


async def asked(workspace: Workspace, command: Command, fix: str) -> str | NotAvailable:
    """What the command prints; or why there is no such command (`fix` installs it), or it fails."""
    heard = _Heard()
    try:
        done = await workspace.run(command, heard)
    except CommandTimeout:
        return NotAvailable(reason=f"{command.label} did not end within {command.timeout:g} s")
    if done.exit_code == 127:
        return NotAvailable(reason=heard.said or f"{command.argv[0]} is not installed", fix=fix)
    if not done.ok:
        how = f"exit {done.exit_code}" if done.signal is None else f"signal {done.signal}"
        said = f": {heard.said}" if heard.said else ""
        return NotAvailable(reason=f"{command.label}: {how}{said}", fix=_trouble(heard.said))
    return heard.texts["stdout"].decode(errors="surrogateescape")


def _trouble(said: str) -> str:
    """The command that most likely helps, by what perf printed."""
    lowered = said.lower()
    if "paranoid" in lowered or "permi" in lowered or "not permitted" in lowered:
        return "sysctl kernel.perf_event_paranoid=2 (in a container: --cap-add PERFMON)"
    return ""
