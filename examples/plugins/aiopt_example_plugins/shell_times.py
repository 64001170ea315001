"""A profiler: how much of the CPU time was spent in the program, how much in the kernel.

    profilers = ["shell-times"]         in target.toml, with `aiopt run --mode full`

A profiler is a probe, a wrapper around the command that is profiled, and a pure parser of what the
wrapper wrote. It is given a run of its own, whose timing is never used.
"""

import re
from collections.abc import Sequence
from typing import BinaryIO

from attrs import evolve, frozen

from aiopt import protocols as p
from aiopt.events import Scalar

# A service is ended by TERM: the shell passes it on, and still lives to write what was used.
_WRAPPER = """
"$@" &
trap 'kill -TERM $! 2>/dev/null' TERM
wait $!; code=$?
wait $! 2>/dev/null
times >"$0"
exit $code
"""
_LINE = re.compile(rb"(\d+)m(\d+\.?\d*)s (\d+)m(\d+\.?\d*)s")


class _Nowhere:
    def write(self, stream: p.OutputStream, data: bytes) -> None:
        pass


@frozen(kw_only=True)
class ShellTimes:
    least_seconds: float = 0.01
    """Below this, the clock of the shell is too coarse to say anything."""

    async def probe(self, workspace: p.Workspace) -> p.NotAvailable | None:
        done = await workspace.run(p.Command(argv=("sh", "-c", "times"), timeout=5), _Nowhere())
        return None if done.ok else p.NotAvailable(reason="sh has no times", fix="install dash")

    def wrap(self, command: p.Command, output: str) -> p.Command:
        return evolve(command, argv=("sh", "-c", _WRAPPER, output, *command.argv))

    def parse(self, profiles: Sequence[BinaryIO]) -> p.ProfileResult:
        user = system = 0.0
        for profile in profiles:
            text = profile.read(1000)  # never a whole file: its size is not known
            lines = _LINE.findall(text)
            if len(lines) != 2:  # the shell itself, then its children
                return p.Failed(reason=f"expected two lines of times, found {text[:80]!r}")
            numbers = [float(number) for number in lines[1]]
            user += numbers[0] * 60 + numbers[1]
            system += numbers[2] * 60 + numbers[3]
        if user + system < self.least_seconds or not profiles:
            return p.Inconclusive(reason=f"less than {self.least_seconds:g} s of CPU time")
        share = Scalar(value=system / (user + system), unit="ratio")
        return p.Measured(scalars={"user": Scalar(value=user, unit="s"), "system_share": share})
