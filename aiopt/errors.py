"""Every exception that aiopt raises on purpose.

    AiOptError                  printed without a traceback, exit code 1
      ConfigError               target.toml, aiopt.toml or arguments; all problems at once; exit
      code 2
      PluginError
        UnknownPluginError      nothing by that name: says what there is and what to install
        PluginLoadError         found, but it does not import or does not fit its protocol
      LogError
        ConcurrentWriteError    somebody else wrote what we were about to write, or holds the lease
        UnknownEventError       an event type or schema version that this aiopt does not know
        CorruptLogError         bytes that contradict each other: chain, gaps, blobs, truncation
        LogVersionError         a log format that is newer than this aiopt
        LogFullError            no room to write: the log is as it was before
      BackendError
        BackendUnavailable      the environment cannot be used at all
        SessionLost             it was usable and went away
        CommandTimeout          a command ran into its timeout (also a TimeoutError)
      PatchError
        PatchDoesNotApply
        PatchOutOfScope         touches what the target does not offer for editing, or escapes the
        tree
      PrerequisiteError         a missing tool or permission, with the command that fixes it

Failed builds, failed tests and crashed workloads are events, not exceptions.
"""

from collections.abc import Iterable

__all__ = [
    "AiOptError",
    "BackendError",
    "BackendUnavailable",
    "CommandTimeout",
    "ConcurrentWriteError",
    "ConfigError",
    "CorruptLogError",
    "LogError",
    "LogFullError",
    "LogVersionError",
    "PatchDoesNotApply",
    "PatchError",
    "PatchOutOfScope",
    "PluginError",
    "PluginLoadError",
    "PrerequisiteError",
    "SessionLost",
    "UnknownEventError",
    "UnknownPluginError",
]


class AiOptError(Exception):
    """Base of all: what was expected, what was found, where, and what to do next."""

    exit_code = 1


class ConfigError(AiOptError):
    """A configuration with problems, each `(path, problem)`, all of them at once."""

    exit_code = 2

    def __init__(self, where: str, problems: Iterable[tuple[str, str]]) -> None:
        self.where = where
        self.problems = tuple(problems)
        count = len(self.problems)
        lines = [f"{where}: {count} problem{'s' if count != 1 else ''}"]
        lines += [
            f"  {path}: {problem}" if path else f"  {problem}" for path, problem in self.problems
        ]
        super().__init__("\n".join(lines))


class PluginError(AiOptError):
    """A plug-in could not be used."""


class UnknownPluginError(PluginError):
    """No plug-in has this name."""

    exit_code = 2


class PluginLoadError(PluginError):
    """The plug-in is there, but it cannot be imported or does not fit its protocol."""


class LogError(AiOptError):
    """The event log refused, or contradicts itself."""


class ConcurrentWriteError(LogError):
    """Another process holds the lease, or has written this (stream, version) already."""


class UnknownEventError(LogError):
    """An event type, or a schema version of one, that this aiopt does not know."""


class CorruptLogError(LogError):
    """The log or an artifact is not what was once written."""


class LogVersionError(LogError):
    """The log was written in a newer format."""


class LogFullError(LogError):
    """There was no room to write; everything committed before is intact."""


class BackendError(AiOptError):
    """The machinery that runs commands broke; a non-zero exit code is not an error of this kind."""


class BackendUnavailable(BackendError):
    """The environment cannot be used."""


class SessionLost(BackendError):
    """The connection to a workspace, or the workspace itself, went away."""


class CommandTimeout(BackendError, TimeoutError):
    """A command ran longer than it may; everything it had started has been killed."""

    def __init__(self, argv: Iterable[str], timeout: float, stdout_tail: str = "") -> None:
        self.argv = tuple(argv)
        self.timeout = timeout
        self.stdout_tail = stdout_tail
        super().__init__(f"{' '.join(self.argv)}: still running after {timeout:g} s; killed")


class PatchError(AiOptError):
    """A patch cannot be used."""


class PatchDoesNotApply(PatchError):
    """git could not apply the patch to this tree."""

    place = 0
    """Where it stands among the patches that were being applied, from 0."""


class PatchOutOfScope(PatchError):
    """The patch touches files that the target does not offer for editing."""


class PrerequisiteError(AiOptError):
    """Something that the machine lacks, and the command that provides it."""

    def __init__(self, missing: str, fix: str) -> None:
        self.missing = missing
        self.fix = fix
        super().__init__(f"{missing}; to fix it: {fix}")
