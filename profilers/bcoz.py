"""Causal profiling of waiting, too: BCOZ, which is coz with the samples of a patched Linux 5.3.7.

Written against the source of s3yonsei/blocked_samples at e056e8260890 (Ahn, Han, Kwon and Jeong,
Identifying On-/Off-CPU Bottlenecks Together with Blocked Samples, OSDI 2024); it was never run,
because it needs that kernel. Its records are those of coz 0.2.2.
"""

from attrs import evolve, field, frozen, validators

from aiopt.events import Scalar
from aiopt.protocols import NotAvailable, Workspace

from ._coz_records import Profile
from .bperf import Bperf
from .coz import Coz

__all__ = ["BCoz"]

_FIX = (
    "sysctl kernel.perf_event_paranoid=1 (it samples the kernel, too), and build bcoz of "
    "https://github.com/s3yonsei/blocked_samples"
)

_SCOPES = {
    "": "",
    "on_cpu": "o",
    "off_cpu": "a",
    "io": "i",
    "lock": "l",
    "scheduling": "s",
    "blocked": "b",
}

_MEANING = {
    "ON_CPU": "all that runs on a CPU",
    "OFF_CPU": "all that does not run on a CPU",
    "IO": "all waiting for block I/O",
    "LOCK": "all waiting for locks and other threads",
    "SCHEDULING": "all waiting for a CPU",
    "BLOCKED": "all other waiting",
}


@frozen(kw_only=True)
class BCoz(Coz):
    """What speeding up one line would bring, with the time that it waits, or one class of waiting.

    Options and scalars are those of `Coz`; a line is a class where `blocked_scope` is set: ON_CPU,
    OFF_CPU, IO, LOCK, SCHEDULING (ready, without a CPU) or BLOCKED. About 20 experiments a second.
    `delay_share` is how much of the experiments' time were delays that BCOZ inserted.

    Where the delays exceed the time that has passed, BCOZ writes a duration of 0; these experiments
    are left out and counted. At its end the program prints a line on its stdout that is not its
    own: `Overhead breakdown. Startup: …`.
    """

    coz: str = "bcoz"
    bperf: str = "bperf"
    """Its perf, which tells whether the kernel has the samples."""
    blocked_scope: str = field(default="", validator=validators.in_(_SCOPES))
    """Class to speed up instead of single lines: on_cpu, off_cpu, io, lock, scheduling, blocked."""

    async def probe(self, workspace: Workspace) -> NotAvailable | None:
        # On any other kernel BCOZ does what coz does, without a word.
        missing = await Bperf(bperf=self.bperf).probe(workspace)
        if missing is not None:
            reason = f"bcoz sees waiting only where bperf does: {missing.reason}"
            return evolve(missing, reason=reason)
        missing = await super().probe(workspace)
        return missing and evolve(missing, fix=_FIX)

    def _whole(self, profile: Profile) -> dict[str, Scalar]:
        delays = sum(each.delay for each in profile.experiments)
        # A duration is what is left without the delays.
        total = delays + sum(each.duration for each in profile.experiments)
        share = {"delay_share": Scalar(value=delays / total, unit="ratio")} if total > 0 else {}
        return super()._whole(profile) | share

    def _options(self) -> tuple[str, ...]:
        scope = _SCOPES[self.blocked_scope]
        return (*super()._options(), *(("--blocked-scope", scope) if scope else ()))

    def _meaning(self, line: str) -> str:
        return _MEANING.get(line.partition("(")[0], "")
