"""The probe of a profiler: record, finish and parse a short program, for real."""

from collections.abc import Sequence
from io import BytesIO
from typing import BinaryIO, Protocol

from attrs import define, evolve, field

from aiopt.errors import CommandTimeout
from aiopt.protocols import Command, Finishing, NotAvailable, OutputStream, ProfileResult, Workspace

__all__ = ["Recorder", "trial"]


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
    output, heard = "{run}/probe", _Heard()
    argv = ("sh", "-c", program) if isinstance(program, str) else program
    command = Command(argv=argv, timeout=20.0, label="probe", env={"LC_ALL": "C"})
    steps = [("recording", profiler.wrap(command, output))]
    if isinstance(profiler, Finishing):
        finish = evolve(profiler.finish(output), timeout=20.0)
        steps.append(("reading what was recorded", finish))
    steps.append(("fetching it", evolve(command, argv=("cat", output))))
    for name, step in steps:
        heard = _Heard()
        try:
            done = await workspace.run(step, heard)
        except CommandTimeout:
            return NotAvailable(reason=f"{name} did not end within {step.timeout:g} s")
        if done.exit_code == 127:
            return NotAvailable(reason=heard.said or f"{step.argv[0]} is not there", fix=fix)
        if not done.ok:
            how = f"exit {done.exit_code}" if done.signal is None else f"signal {done.signal}"
            return NotAvailable(reason=f"{name}: {how}: {heard.said}", fix=_trouble(heard.said))
    return profiler.parse([BytesIO(bytes(heard.texts["stdout"]))])


def _trouble(said: str) -> str:
    """The command that most likely helps, by what perf printed."""
    lowered = said.lower()
    if "paranoid" in lowered or "permi" in lowered or "not permitted" in lowered:
        return "sysctl kernel.perf_event_paranoid=2 (in a container: --cap-add PERFMON)"
    return ""
