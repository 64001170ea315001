"""Causal profiling with coz: what the whole program would gain if one line were faster.

For programs in C, C++ and Rust with progress points (coz.h), built with `-g -gdwarf-4
-gno-variable-location-views -fno-omit-frame-pointer`, and linked dynamically.
"""

from collections.abc import Sequence
from typing import BinaryIO

from attrs import frozen

from aiopt.events import Scalar
from aiopt.protocols import (
    Command,
    Failed,
    Inconclusive,
    Measured,
    NotAvailable,
    ProfileResult,
    Workspace,
)

from ._coz_launch import gathered, launched
from ._coz_lines import Line, lines_of, short_names
from ._coz_records import Profile, Program
from ._reading import folded
from ._trial import missing

__all__ = ["Coz"]

_FIX = "apt-get install coz-profiler gcc libc6-dev; sysctl kernel.perf_event_paranoid=2"
_FLAGS = "-g -gdwarf-4 -gno-variable-location-views -fno-omit-frame-pointer"
_REBUILD = f"build with CFLAGS='{_FLAGS}' (the same in CXXFLAGS)"
_PROBLEMS = {
    "dwarf-5": (
        "its debug information is DWARF 5, on which coz 0.2.2 aborts, so it ran without coz",
        _REBUILD,
    ),
    "compressed": (
        "its debug information is compressed, which coz 0.2.2 cannot read, so it ran without coz",
        "build and link with -gz=none",
    ),
    "location-views": (
        "coz 0.2.2 cannot read the variable location views in its debug information",
        _REBUILD,
    ),
    "no-debug-info": ("it has no debug information", f"{_REBUILD}, and do not strip it"),
    "static": (
        "it is linked statically, and coz has to be loaded with it",
        "link it without -static",
    ),
}

# A program with a progress point that runs for two experiments, of which the last does not count.
_TRIAL = r"""
cc -g -gdwarf-4 -gno-variable-location-views -fno-omit-frame-pointer -x c - -o "$0" -ldl <<'END'
#define _GNU_SOURCE
#include <dlfcn.h>
#include <time.h>
int main(void) {
    struct counter { unsigned long count, backoff; } *(*get)(int, const char *), *counter = 0;
    *(void **)&get = dlsym(RTLD_DEFAULT, "_coz_get_counter");
    if (get) counter = get(1, "round");
    struct timespec begun, now;
    clock_gettime(CLOCK_MONOTONIC, &begun);
    do {
        for (volatile int i = 0; i < 100000; i++) ;
        if (counter) __atomic_add_fetch(&counter->count, 1, __ATOMIC_RELAXED);
        clock_gettime(CLOCK_MONOTONIC, &now);
    } while (now.tv_sec - begun.tv_sec + (now.tv_nsec - begun.tv_nsec) / 1e9 < 1.2);
    return 0;
}
END
[ $? = 0 ] || exit 1
"$0" 2>"$0.said" && exit
code=$?
tail -n 3 "$0.said" >&2
exit $code
"""


@frozen(kw_only=True)
class Coz:
    """Slows everything else down to see what speeding up one line would bring.

    About 2 experiments a second: a minute for a few lines. On a busy machine it sees nothing. A
    good progress point is visited 20 to 2000 times a second. All processes below the command are
    profiled whose executable has progress points, also where a script starts them.

    Scalars, each for a line and a progress point; ratios are shares of the program's time:
    `experiments[line,point]`; `slope`, what a line that takes no time saves, by the best linear
    fit, with an interval; `delta[line,point,PERCENT]`, the curve of what is saved if the line is
    faster by so much, with intervals; `p`, of a randomisation test; `max_speedup`, biased upwards;
    `area` and `impact`, mean savings; `saturation`, the smallest speed-up with 90 % of the saving;
    `phase_factor`, how much of the run the line's phase takes; `work_per_visit`, milliseconds of
    CPU time in the line for each visit. Of a latency point `latency_slope` and so on. Where only
    the number of experiments is given, they were too few. `cpu_share` is the share of the time
    that the program's threads could run and did.

    Several runs are pooled: all experiments of a line count alike, whatever run they are of.
    """

    coz: str = "coz"
    runs: int = 3
    """How many runs of the workload are pooled."""
    source_scope: tuple[str, ...] = ()
    """Patterns of source files to look at, with `%` as wildcard; fewer lines, surer answers."""
    binary_scope: tuple[str, ...] = ()
    """Patterns of executables and libraries, instead of the program itself (`MAIN`)."""
    fixed_line: str = ""
    """`file:line` that gets all experiments."""
    program: str = ""
    """Pattern of the path of the executable, with `*` as wildcard, if not the one that has progress
    points in it: for those whose progress points are in a library."""
    least_cpu_share: float = 0.9
    """Of the time that the program's threads could run, how much they must have run: else the
    machine was too busy, or the program has more threads than there are CPUs."""
    seed: int = 20150
    """Of the bootstrap and of the shuffles."""
    replicates: int = 2000
    shuffles: int = 2000
    top: int = 20
    """How many lines become scalars and findings."""

    async def probe(self, workspace: Workspace) -> NotAvailable | None:
        program = ("sh", "-c", _TRIAL, "{run}/probe.program")
        return await missing(_Trial(Coz(coz=self.coz)), workspace, program, _FIX)

    def wrap(self, command: Command, output: str) -> Command:
        return launched(command, self.coz, self._options(), self.program, output)

    def finish(self, output: str) -> Command:
        """See `aiopt.protocols.Finishing`."""
        return gathered(output)

    def parse(self, profiles: Sequence[BinaryIO]) -> ProfileResult:
        profile = _read(profiles)
        if not profile.experiments:
            return _nothing(profile)
        share = profile.cpu_share
        if share is not None and share < self.least_cpu_share:
            return Inconclusive(
                reason=f"host busy: the program ran in {share:.0%} of the time that its threads "
                f"could run ({self.least_cpu_share:.0%} needed); free the machine, or start fewer "
                "threads than it has CPUs"
            )
        name = short_names({*(each.line for each in profile.experiments), *profile.samples})
        lines = lines_of(
            profile,
            name,
            self._meaning,
            seed=self.seed,
            replicates=self.replicates,
            shuffles=self.shuffles,
        )
        if all(each.kind == "inconclusive" for each in lines):
            return Inconclusive(reason=_why(lines))
        told = lines[: self.top]
        scalars = self._whole(profile)
        for each in told:
            scalars |= each.scalars()
        notes = [*_notes(profile), self._how()]
        if len(lines) > len(told):
            notes.append(f"{len(lines) - len(told)} more lines are left out")
        return Measured(
            scalars=scalars,
            stacks=folded({name[each].replace(";", ":"): n for each, n in profile.samples.items()}),
            findings=tuple(each.finding() for each in told[:30]),
            notes=tuple(notes),
        )

    def _whole(self, profile: Profile) -> dict[str, Scalar]:
        """Scalars of no single line."""
        share = profile.cpu_share
        return {} if share is None else {"cpu_share": Scalar(value=share, unit="ratio")}

    def _options(self) -> tuple[str, ...]:
        """Of `coz run`."""
        scopes = [each for scope in self.source_scope for each in ("--source-scope", scope)]
        scopes += [each for scope in self.binary_scope for each in ("--binary-scope", scope)]
        return (*scopes, *(("--fixed-line", self.fixed_line) if self.fixed_line else ()))

    def _meaning(self, line: str) -> str:
        """What the name of a line stands for, where that is no place in the code."""
        return ""

    def _how(self) -> str:
        return (
            f"intervals by {self.replicates} bootstrap replicates, p by {self.shuffles} shuffles, "
            f"seed {self.seed}"
        )


@frozen
class _Trial:
    """Whether a short run has an experiment at all; see `_trial.Recorder`."""

    profiler: Coz

    def wrap(self, command: Command, output: str) -> Command:
        return self.profiler.wrap(command, output)

    def finish(self, output: str) -> Command:
        return self.profiler.finish(output)

    def parse(self, profiles: Sequence[BinaryIO]) -> ProfileResult:
        profile = _read(profiles)
        return Measured(scalars={}) if profile.experiments else _nothing(profile)


def _read(profiles: Sequence[BinaryIO]) -> Profile:
    profile = Profile()
    for file in profiles:
        profile.add(file)
    return profile


def _nothing(profile: Profile) -> ProfileResult:
    """Why there are no experiments."""
    broken = [each for each in profile.programs if each.problem in _PROBLEMS]
    if broken and not profile.samples:
        why, fix = _PROBLEMS[broken[0].problem]
        return NotAvailable(reason=f"{broken[0].path}: {why}", fix=fix)
    if not profile.read and profile.launched and not profile.programs:
        seen = f" ({_listed(profile.others)})" if profile.others else ""
        return NotAvailable(
            reason=f"no program was started that has a progress point{seen}",
            fix='write COZ_PROGRESS_NAMED("name") of coz.h where a unit of work is done',
        )
    if not profile.read and profile.programs:
        return Failed(reason=f"coz wrote nothing of {_listed(profile.programs)}: did it crash?")
    if not profile.read:
        return Failed(
            reason="no coz profile was written: the program crashed, is linked statically, "
            "or did not start"
        )
    if not profile.runs or profile.ignored >= profile.read:
        return Failed(reason=f"no coz profile: none of {profile.read} lines was understood")
    return Inconclusive(reason=f"no experiments: {_cause(profile)}")


def _listed(programs: Sequence[Program] | dict[Program, None]) -> str:
    names = list(dict.fromkeys(each.path.rpartition("/")[2] for each in programs))
    return ", ".join(names[:8]) + (", …" if len(names) > 8 else "")


def _cause(profile: Profile) -> str:
    """Why there are probably no experiments."""
    if profile.rejected:
        return "all had a duration that is impossible (the inserted delays exceed the wall time)"
    if profile.dropped:
        return "the program ended during its first one; let it run for longer"
    if not profile.ended:
        return "the program did not end normally"
    if not profile.samples:
        return f"no sample in the source scope; build with {_FLAGS} and do not strip"
    return (
        "no progress point was reached; coz from 0.2.4 on also says nothing if one of them is "
        "visited fewer than 5 times in an experiment, as in its end-to-end mode"
    )


def _why(lines: Sequence[Line]) -> str:
    """Why no line says anything."""
    if not lines:
        return "no experiment has a progress point"
    if all(not each.curve.baseline for each in lines):
        return (
            "no experiment without a speed-up to compare with, as with a fixed speed-up or "
            "end-to-end; run without these"
        )
    wide = [each for each in lines if not each.curve.too_few]
    if not wide:
        best = max(lines, key=lambda each: each.curve.baseline + each.curve.others)
        return f"too few experiments ({best.line}: {best.curve.too_few}); let it run for longer"
    best = wide[0]
    interval = "without an interval"
    if best.curve.low is not None and best.curve.high is not None:
        interval = f"[{best.curve.low:.2f}, {best.curve.high:.2f}]"
    return (
        f"all intervals are too wide ({best.line}: {best.curve.slope:.2f} {interval}); run longer, "
        "restrict the source scope, or free the machine"
    )


def _notes(profile: Profile) -> list[str]:
    notes = []
    if profile.rejected:
        listed = sorted(profile.rejected.items())
        name = short_names(line for (line, _), _ in listed)
        where = ", ".join(f"{name[line]} at {at} %: {n}" for (line, at), n in listed[:10])
        more = ", …" if len(listed) > 10 else ""
        count = sum(profile.rejected.values())
        notes.append(f"{count} experiments rejected for their duration ({where}{more})")
    if profile.dropped:
        notes.append(f"{profile.dropped} experiments dropped that the end of a run cut short")
    if profile.beyond:
        notes.append(f"{profile.beyond} experiments beyond the limit were not read")
    if profile.ignored:
        notes.append(f"{profile.ignored} lines were not understood")
    for each in profile.programs:
        if each.problem in _PROBLEMS:
            notes.append(f"{each.path}: {_PROBLEMS[each.problem][0]}")
    if profile.cpu_share is None:
        notes.append("how busy the machine was is not in this profile")
    return notes
