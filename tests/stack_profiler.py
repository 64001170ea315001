"""A profiler for the toy target: the stacks follow from the files that patches change."""

from collections.abc import Sequence
from typing import BinaryIO

from attrs import evolve, frozen

from aiopt.events import Finding, Scalar
from aiopt.protocols import Command, Inconclusive, Measured, NotAvailable, ProfileResult, Workspace

# The metric is cost * scale / 100. `hot` takes 100 samples for each unit of cost; what scale takes
# away, it takes from the rest.
_SCRIPT = """
hot=$((100 * $(cat cost))); all=$((2 * $(cat cost) * $(cat scale)))
echo "main;hot $hot" >"$0"; echo "main;rest $((all - hot))" >>"$0"
exec "$@"
"""


@frozen(kw_only=True)
class StackProfiler:
    """See the script."""

    async def probe(self, workspace: Workspace) -> NotAvailable | None:
        return None

    def wrap(self, command: Command, output: str) -> Command:
        return evolve(command, argv=("sh", "-c", _SCRIPT, output, *command.argv))

    def version(self) -> Command:
        return Command(argv=("echo", "stack profiler 7"))

    def parse(self, profiles: Sequence[BinaryIO]) -> ProfileResult:
        stacks = b"".join(profile.read() for profile in profiles).decode()
        if not stacks:
            return Inconclusive(reason="nothing was written")
        hot, rest = (float(line.split()[1]) for line in stacks.splitlines())
        share = Scalar(value=hot / (hot + rest), unit="ratio")
        return Measured(
            scalars={"self_share[hot]": share},
            stacks=stacks,
            findings=(Finding(where="hot", what="on-CPU", scalar=share),),
        )
