"""Causal profiling with coz: what the whole program would gain if one line were faster.

For programs in C, C++ and Rust with progress points (coz.h), built with `-g -gdwarf-4
-gno-variable-location-views -fno-omit-frame-pointer`, and linked dynamically.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import BinaryIO

from attrs import define, evolve, frozen

from aiopt.errors import CommandTimeout
from aiopt.events import Finding, Scalar
from aiopt.protocols import (
    Command,
    Failed,
    Inconclusive,
    Measured,
    NotAvailable,
    OutputStream,
    ProfileResult,
    Workspace,
)

from ._coz_curve import Class, Curve, curve, discoveries
from ._coz_records import Profile
from ._reading import folded

__all__ = ["Coz"]

_FIX = "apt-get install coz-profiler; sysctl kernel.perf_event_paranoid=2"
_FLAGS = "-g -gdwarf-4 -gno-variable-location-views"
_WARN_PHASE = 0.7
_ORDER: tuple[Class, ...] = ("opportunity", "contention", "negligible", "inconclusive")


@define
class _Tail:
    """The end of what the probe prints."""

    text: bytes = b""

    def write(self, stream: OutputStream, data: bytes) -> None:
        self.text = (self.text + data)[-10_000:]


@frozen(kw_only=True)
class _Line:
    """A line of code seen from one progress point."""

    line: str
    point: str
    latency: bool
    curve: Curve
    phase: float | None
    kind: Class

    @property
    def rank(self) -> tuple[int, float, str, str]:
        return _ORDER.index(self.kind), -abs(self.curve.slope or 0.0), self.line, self.point

    @property
    def slope(self) -> Scalar:
        found = self.curve
        return Scalar(value=found.slope or 0.0, unit="ratio", low=found.low, high=found.high)

    def scalars(self) -> dict[str, Scalar]:
        """By name; of a line without a slope there is nothing but the count."""
        prefix = "latency_" if self.latency else ""
        where = f"[{self.line},{self.point}]"
        found = self.curve
        count = float(found.baseline + found.others)
        scalars = {f"{prefix}experiments{where}": Scalar(value=count, unit="experiments")}
        if found.slope is None:
            return scalars
        scalars[f"{prefix}slope{where}"] = self.slope
        numbers: dict[str, float | None] = {
            "area": found.area,
            "impact": found.impact,
            "max_speedup": found.max_speedup,
            "saturation": found.saturation,
            "phase_factor": self.phase,
        }
        if not found.too_few:
            numbers["p"] = min(found.p_better, found.p_worse)
        for name, value in numbers.items():
            if value is not None:
                scalars[f"{prefix}{name}{where}"] = Scalar(value=value, unit="ratio")
        return scalars

    def finding(self) -> Finding:
        found = self.curve
        parts = [f"{'latency' if self.latency else 'throughput'} of {self.point}"]
        if found.too_few:
            parts.append(f"too few: {found.too_few}")
        else:
            if self.kind == "inconclusive":
                parts.append("too wide")
            parts.append(f"p = {min(found.p_better, found.p_worse):.4f}")
            parts.append(f"at most {found.max_speedup:.1%} seen (biased upwards)")
        if self.kind == "opportunity" and found.saturation is not None:
            parts.append(f"90 % of it at a speed-up of {found.saturation:.0%}")
        if self.phase is not None:
            warning = ", so the whole run gains less" if self.phase < _WARN_PHASE else ""
            parts.append(f"phase factor {self.phase:.2f}{warning}")
        return Finding(where=self.line, what=self.kind, scalar=self.slope, detail="; ".join(parts))


@frozen(kw_only=True)
class Coz:
    """Slows everything else down to see what speeding up one line would bring.

    About 2 experiments a second: a minute for a few lines. On a busy machine it sees nothing. A
    good progress point is visited 20 to 2000 times a second.
    """

    coz: str = "coz"
    source_scope: tuple[str, ...] = ()
    """Patterns of source files to look at, with `%` as wildcard; fewer lines, surer answers."""
    binary_scope: tuple[str, ...] = ()
    """Patterns of executables and libraries, beside the program itself."""
    seed: int = 20150
    """Of the bootstrap and of the shuffles."""
    replicates: int = 2000
    shuffles: int = 2000
    top: int = 20
    """How many lines become scalars and findings."""

    async def probe(self, workspace: Workspace) -> NotAvailable | None:
        command = Command(argv=("true",), timeout=20.0, label="probe coz")
        bare, tail = Coz(coz=self.coz), _Tail()
        try:
            completed = await workspace.run(bare.wrap(command, "/dev/null"), tail)
        except CommandTimeout:
            return NotAvailable(reason="coz did not end on `true` within 20 s")
        # `true` has no debug information, which is an error from coz 0.2.5 on.
        if completed.ok or b"Debug information was not found" in tail.text:
            return None
        return NotAvailable(reason=f"coz of `true`: exit {completed.exit_code}", fix=_FIX)

    def wrap(self, command: Command, output: str) -> Command:
        scopes = [each for scope in self.source_scope for each in ("--source-scope", scope)]
        scopes += [each for scope in self.binary_scope for each in ("--binary-scope", scope)]
        prefix = (self.coz, "run", "-o", output, *scopes, "---")
        return evolve(command, argv=(*prefix, *command.argv))

    def parse(self, profiles: Sequence[BinaryIO]) -> ProfileResult:
        profile = Profile()
        for file in profiles:
            profile.add(file)
        if not profile.read:
            return Failed(
                reason="no coz profile was written: the program crashed, is linked statically, "
                "or did not start"
            )
        if not profile.runs or profile.ignored >= profile.read:
            return Failed(reason=f"no coz profile: none of {profile.read} lines was understood")
        if not profile.experiments:
            return Inconclusive(reason=f"no experiments: {_cause(profile)}")
        name = _names({*(each.line for each in profile.experiments), *profile.samples})
        lines = self._lines(profile, name)
        if all(each.kind == "inconclusive" for each in lines):
            return Inconclusive(reason=_why(lines))
        told = lines[: self.top]
        scalars: dict[str, Scalar] = {}
        for each in told:
            scalars |= each.scalars()
        notes = [*_notes(profile), self._how()]
        if len(lines) > len(told):
            notes.append(f"{len(lines) - len(told)} more lines are left out")
        return Measured(
            scalars=scalars,
            stacks=folded({name[each].replace(";", ":"): n for each, n in profile.samples.items()}),
            findings=tuple(each.finding() for each in told),
            notes=tuple(notes),
        )

    def _how(self) -> str:
        return (
            f"intervals by {self.replicates} bootstrap replicates, p by {self.shuffles} shuffles, "
            f"seed {self.seed}; how busy the machine was is not in a coz profile"
        )

    def _lines(self, profile: Profile, name: Mapping[str, str]) -> list[_Line]:
        """What every line and progress point says, most important first."""
        visits: dict[tuple[str, str, bool], list[tuple[int, float, int]]] = {}
        for each in profile.experiments:
            for (point, latency), seen in each.points.items():
                row = (each.percent, seen.cost, seen.count)
                visits.setdefault((each.line, point, latency), []).append(row)
        chance = {"seed": self.seed, "replicates": self.replicates, "shuffles": self.shuffles}
        curves = {key: curve(rows, **chance) for key, rows in visits.items()}
        level = discoveries(list(curves.values()))
        phases = _phases(profile)
        lines = [
            _Line(
                line=name[line],
                point=point,
                latency=latency,
                curve=found,
                phase=phases.get(line),
                kind=found.classify(level),
            )
            for (line, point, latency), found in curves.items()
        ]
        return sorted(lines, key=lambda each: each.rank)


def _phases(profile: Profile) -> dict[str, float]:
    """By line: how much of the run its phase takes, at most 1, as far as samples tell.

    Its samples per time of the whole run, over those in its experiments without a speed-up.
    """
    selected: dict[str, tuple[int, int]] = {}
    for each in profile.experiments:
        if each.percent == 0:
            samples, duration = selected.get(each.line, (0, 0))
            selected[each.line] = samples + each.selected_samples, duration + each.duration
    factors = {}
    for line, (samples, duration) in selected.items():
        overall = profile.samples_in_runtime.get(line, 0)
        if samples and overall and profile.runtime:
            factors[line] = min(1.0, (overall / profile.runtime) / (samples / duration))
    return factors


def _names(lines: Iterable[str]) -> dict[str, str]:
    """Short names, `file:line`; the whole path where two files have the same name."""
    files: dict[str, set[str]] = {}
    for line in (lines := list(lines)):
        path = line.rpartition(":")[0]
        files.setdefault(path.rpartition("/")[2], set()).add(path)
    return {
        line: line.rpartition("/")[2]
        if len(files[line.rpartition(":")[0].rpartition("/")[2]]) == 1
        else line
        for line in lines
    }


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


def _why(lines: Sequence[_Line]) -> str:
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
        name = _names(line for (line, _), _ in listed)
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
    return notes
