"""The contracts that plug-ins fulfil, and the values that pass through them.

This module and `aiopt.testing` are what third parties may lean on; everything else may change
between releases. A plug-in is an attrs class that the core finds by entry point (`aiopt.backends`,
`aiopt.profilers`, `aiopt.strategies`, `aiopt.proposers`) and builds from the options table of the
same name: its fields are its options.

Protocol members are read-only properties, so that frozen classes fulfil them.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, ClassVar, Literal, Protocol, runtime_checkable

from anyio.abc import ByteStream
from attrs import field, frozen

from aiopt.events import Claim, Finding, Operator, PatchRef, ProcessRef, Scalar

if TYPE_CHECKING:
    from numpy.random import Generator

    from aiopt.replay import CampaignState

__all__ = [
    "Backend",
    "Command",
    "Completed",
    "Failed",
    "Finishing",
    "Inconclusive",
    "Measured",
    "NotAvailable",
    "Patch",
    "ProfileResult",
    "Profiler",
    "Proposal",
    "ProposalRequest",
    "Proposer",
    "Querying",
    "Repeating",
    "Selection",
    "Service",
    "Sink",
    "Strategy",
    "Usage",
    "Versioned",
    "Workspace",
    "WorkspaceSpec",
]

# ---- commands ----

OutputStream = Literal["stdout", "stderr"]


@frozen(kw_only=True)
class Command:
    """Something to run in a workspace.

    `argv` may use the placeholders `{source}`, `{harness}` and `{run}`; the workspace puts its own
    folders in. `env` is all that the command sees beside the whitelist of the backend. `timeout`
    is in seconds.
    """

    argv: tuple[str, ...]
    env: Mapping[str, str] = field(factory=dict)
    cwd: str = "{source}"
    stdin: bytes = b""
    timeout: float = 60.0
    label: str = ""
    """What the command is for; shown in progress and process markers."""
    job: str = ""
    """A name of `Workspace.new_job`, under which a later controller can come back to it."""


@frozen(kw_only=True)
class Usage:
    """What a command and everything under it used."""

    wall_seconds: float
    cpu_seconds: float
    peak_rss_bytes: int
    """Of the largest single process."""
    involuntary_switches: int = 0
    major_faults: int = 0


@frozen(kw_only=True)
class Completed:
    """How a command ended. A non-zero exit is a value, not an exception."""

    exit_code: int | None
    """None if a signal ended it."""
    signal: int | None
    usage: Usage
    dropped_bytes: int = 0
    """Output beyond the cap, which the sink never saw."""
    strays_killed: int = 0
    """Processes that outlived the main one and were killed."""

    @property
    def ok(self) -> bool:
        return self.exit_code == 0


class Sink(Protocol):
    """Where output goes while a command runs. Called often, so it must be quick."""

    def write(self, stream: OutputStream, data: bytes) -> None: ...


class Service(Protocol):
    """A command that lives while the workload runs."""

    @property
    def pid(self) -> int:
        """Its main process, on the machine of the workspace."""
        ...

    def exited(self) -> bool:
        """Whether it has ended without being asked to."""
        ...

    async def stop(self, grace: float = 5.0) -> Completed:
        """TERM, after `grace` seconds KILL, then everything that it left. Idempotent."""
        ...


# ---- backends ----


@frozen(kw_only=True)
class WorkspaceSpec:
    """What a workspace is for.

    `tree` (the candidate's source) and `harness` (the target's own files) are folders on the
    controller's machine. A backend on the same machine may use them in place, another one copies
    them over. `writable` are folders beyond the workspace that stages may write to: shared build
    caches that the target declares.
    """

    name: str
    tree: Path
    harness: Path
    scratch: Path
    """Where a local workspace keeps its run folders; inside the results folder."""
    marker: str
    """Put into the environment of every process as AIOPT_JOB, so that remains can be recognised."""
    writable: tuple[str, ...] = ()
    pass_env: tuple[str, ...] = ()
    """Names of further environment variables that stages may see."""
    lease_fd: int | None = None
    stages_lock: Path | None = None


@runtime_checkable
class Workspace(Protocol):
    """A place on some machine where one candidate is built and run. It knows nothing of events."""

    @property
    def supervisor(self) -> ProcessRef | None:
        """The process under which the next command will run, if this backend has one."""
        ...

    def new_job(self) -> str:
        """A name for a command that nothing else has; empty if nobody can come back to one here."""
        ...

    async def adopt(self, job: str, command: Command, sink: Sink) -> Completed | None:
        """How a command ends that an earlier controller started under this name.

        All its output passes once more. None if there is no such command: it never began, or what
        it ran in is not there any more.

        Raises:
            CommandTimeout, SessionLost: as `run`.
        """
        ...

    def keep_tree(self) -> None:
        """Say that a later controller may want the source as it is; else a copy of it goes."""
        ...

    async def new_run(self, label: str) -> None:
        """Begin with an empty run folder (`{run}`), writable, gone with the workspace."""
        ...

    async def run(self, command: Command, sink: Sink) -> Completed:
        """Run to completion.

        A missing executable is a `Completed` with exit code 127.

        Raises:
            CommandTimeout: it ran longer than `command.timeout`; everything it started is gone.
            SessionLost: the machinery went away; whether it ran on is unknown.
        """
        ...

    async def start(self, command: Command, sink: Sink) -> Service:
        """Start something that lives until `Service.stop` or the end of the workspace.

        Raises:
            SessionLost: the machinery went away.
        """
        ...

    async def put(self, local: Path, remote: str) -> None:
        """Copy a file or folder there. `remote` may use the placeholders of `Command`."""
        ...

    async def get(self, remote: str, local: Path) -> None:
        """Copy a file or folder back.

        Raises:
            FileNotFoundError: nothing is there.
        """
        ...

    async def digest(self, patterns: Sequence[str], folder: str = "{source}") -> tuple[str, int]:
        """One sha256 over the files of a folder that match gitignore-style patterns, and how many
        they are.
        """
        ...

    async def free_port(self) -> int:
        """A TCP port on which nothing listens there right now."""
        ...

    async def connect(self, port: int) -> ByteStream:
        """A connection to a port on that machine's loopback.

        Raises:
            OSError: nothing listens.
        """
        ...

    async def covariates(self) -> Mapping[str, float]:
        """The machine right now: load1, steal_jiffies, psi_cpu_some_avg10 and the like, cheaply."""
        ...


@runtime_checkable
class Backend(Protocol):
    """A way to reach a machine."""

    def session(self, marker: str) -> "AbstractAsyncContextManager[Backend]":
        """The backend itself, connected for one controller, whose processes carry `marker`.

        Everything else may be asked outside of a session too; it then takes as long as a new
        connection does. Of one marker there is one session at a time: a new one takes over what an
        earlier controller left, which `kill_remains` ends.

        Raises:
            BackendUnavailable: the environment cannot be used, and why.
        """
        ...

    def open(self, spec: WorkspaceSpec) -> AbstractAsyncContextManager[Workspace]:
        """A workspace; when it is left, nothing that ran in it is alive.

        Raises:
            BackendUnavailable: the environment cannot be used, and why.
        """
        ...

    async def observe(self) -> Mapping[str, Any]:
        """What the machine is: kernel, CPU, governor, load, tool versions."""
        ...

    def building(self) -> AbstractAsyncContextManager[None]:
        """Held while something other than a measurement runs; many may hold it."""
        ...

    def measuring(self) -> AbstractAsyncContextManager[None]:
        """Held while a pair is measured; nobody else there builds or measures meanwhile."""
        ...

    async def kill_remains(
        self, marker: str, supervisors: Sequence[ProcessRef], spared: Sequence[str] = ()
    ) -> int:
        """Kill what a dead controller left, but for jobs that are to be adopted.

        Returns how many processes that were.
        """
        ...


# ---- profilers ----


@frozen(kw_only=True)
class Measured:
    """A profile that carries a statement."""

    status: ClassVar[Literal["measured"]] = "measured"
    scalars: Mapping[str, Scalar]
    stacks: str = ""
    """Folded: `frame;frame;frame count`, root first, one a line, most first."""
    stacks_unit: str = "samples"
    findings: tuple[Finding, ...] = ()
    """What a person should read first, most important first; at most some dozens."""
    notes: tuple[str, ...] = ()
    """What limits the evidence: lines that were not understood, experiments that were rejected."""


@frozen(kw_only=True)
class Inconclusive:
    """The profiler ran, but the data carry no statement."""

    status: ClassVar[Literal["inconclusive"]] = "inconclusive"
    reason: str


@frozen(kw_only=True)
class NotAvailable:
    """The profiler cannot run here; `fix` is the command that would change that."""

    status: ClassVar[Literal["not_available"]] = "not_available"
    reason: str
    fix: str = ""


@frozen(kw_only=True)
class Failed:
    """The profiler ran and broke."""

    status: ClassVar[Literal["failed"]] = "failed"
    reason: str


ProfileResult = Measured | Inconclusive | NotAvailable | Failed


@runtime_checkable
class Profiler(Protocol):
    """One profiler: a probe, a wrapper around the profiled command, and a pure parser.

    It may be `Finishing`, `Querying` or `Repeating` besides.
    """

    async def probe(self, workspace: Workspace) -> NotAvailable | None:
        """None if it works there. Tries the real thing, in a second or two."""
        ...

    def wrap(self, command: Command, output: str) -> Command:
        """The command to run instead; the profile goes to `output`, a path in an empty folder.

        It may be a service, whose whole process group is sent TERM when it is to end: the command
        must end what it profiles, write its profile and then end, with the exit code of what it
        profiles if it can.
        """
        ...

    def parse(self, profiles: Sequence[BinaryIO]) -> ProfileResult:
        """What the profiles of one or more runs say together.

        Depends on their bytes alone. An exit code proves nothing, so what is in them decides.
        Whatever they hold, the answer is a value, in memory that does not grow with the longest
        line.
        """
        ...


@runtime_checkable
class Finishing(Protocol):
    """A profiler whose tool leaves something that another command has to make readable."""

    def finish(self, output: str) -> Command:
        """What to run when all that was profiled has ended; afterwards `parse` can read `output`.

        It may use paths that begin with `output`: what `wrap` left there.
        """
        ...


@runtime_checkable
class Querying(Protocol):
    """A profiler that asks the profiled service itself."""

    def query(self, output: str, env: Mapping[str, str]) -> Command:
        """What to run when the workload is over and the service is still there; it writes `output`.

        `env` is what the workload saw: SERVICE_HOST, SERVICE_PORT, WORKLOAD, …
        """
        ...


@runtime_checkable
class Repeating(Protocol):
    """A profiler that needs several runs for one statement; `parse` gets a file for each."""

    @property
    def runs(self) -> int:
        """How many, at least 1."""
        ...


@runtime_checkable
class Versioned(Protocol):
    """A profiler whose tool has a version, which is logged with what it found."""

    def version(self) -> Command:
        """A command whose first line is it, on stdout or stderr."""
        ...


# ---- strategies and proposers ----


@frozen(kw_only=True)
class Selection:
    """What a strategy wants next: a new change on top of a genome, or a genome of known patches."""

    parents: tuple[str, ...]
    """Ids of the candidates that it builds on."""
    genome: tuple[PatchRef, ...]
    """With `propose` and `rewrite` what the proposer's patch is to build on, else the candidate."""
    operator: Operator = "propose"
    replaces: PatchRef | None = None
    """With `rewrite`: the patch whose idea is wanted in another form, one that goes with `genome`.
    """
    parts: Mapping[str, tuple[int, ...]] = field(factory=dict)
    """By digest the hunks that are left of patches in `genome` of which not all are wanted."""


@runtime_checkable
class Strategy(Protocol):
    """Chooses what to build on. The log is its memory: there is no `tell`."""

    def ask(self, state: "CampaignState", rng: "Generator", count: int) -> Sequence[Selection]:
        """Up to `count` selections; depends on its arguments alone. Empty: nothing left to do."""
        ...


@frozen(kw_only=True)
class Patch:
    """A change as a proposer hands it over: a unified diff against the tree of the parent."""

    name: str
    text: bytes
    hypothesis: str = ""
    claims: tuple[Claim, ...] = ()
    """Functions that it is to make cheaper, each in a metric; else those in the text's preamble."""


@frozen(kw_only=True)
class Proposal:
    """One answer of a proposer. `cost` is free-form (tokens, money) and is logged."""

    patch: Patch
    cost: Mapping[str, Any] = field(factory=dict)


@frozen(kw_only=True)
class ProposalRequest:
    """What a proposer gets to work with."""

    selection: Selection
    state: "CampaignState"
    target_folder: Path
    tree: Path | None
    """The parent's source, to read; None when it has not been checked out."""
    hints: str
    evidence: str
    """What profilers found in the parent, short enough for a prompt; empty if none has run."""
    read_blob: Any
    """digest -> bytes: patches, stage logs and profiles that the state refers to."""


@runtime_checkable
class Proposer(Protocol):
    """Makes patches."""

    async def propose(self, request: ProposalRequest) -> Proposal | None:
        """One proposal for this selection, or None when there is none left.

        With the operator `rewrite` it is another form of `selection.replaces`.
        """
        ...
