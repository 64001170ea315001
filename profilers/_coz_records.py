"""The records of coz profiles: tab separated text (0.2.2, BCOZ) and JSON Lines (0.2.4 and later).

All are read line by line, for a file may hold runs of several. Times are nanoseconds. Before the
profiles there may be lines of ours, see `_coz_launch`.
"""

from collections import Counter
from collections.abc import Mapping
from typing import Any, BinaryIO

import orjson
from attrs import define, field, frozen

from ._coz_launch import END
from ._reading import Lines

__all__ = ["Experiment", "Profile", "Program", "Visits"]

MAX_EXPERIMENTS = 100_000
"""About 14 hours of profiling; what is beyond is counted and passed over."""

MAX_NAMES = 20_000
MAX_NAME = 4096
MAX_POINTS = 64
"""Progress points of one experiment."""

MAX_PROGRAMS = 100

END_TO_END = "end-to-end"
"""Name of the point that coz adds in its end-to-end mode."""

Fields = Mapping[str, Any]


@frozen
class Visits:
    """What one experiment says of one progress point."""

    count: int
    """Visits of a throughput point, arrivals at a latency point."""
    cost: float
    """What is divided by the count: nanoseconds. Of a latency point (Little's law: W = L / rate)
    the duration times the number in flight."""


@define
class Experiment:
    line: str
    percent: int
    """Virtual speed-up of the line, in percent of its time."""
    duration: int
    """Nanoseconds without the delays that coz inserted."""
    selected_samples: int
    """Of one millisecond each, of CPU time; of BCOZ also of time off the CPU."""
    delay: int = 0
    """What BCOZ inserted, in nanoseconds; may be below zero."""
    points: dict[tuple[str, bool], Visits] = field(factory=dict)
    """By name, and whether it is a latency point."""

    @property
    def usable(self) -> bool:
        # Inserted delays that exceed the wall time wrap below zero, or were clamped to zero.
        return 0 < self.duration < 1 << 63

    @property
    def of_coz_itself(self) -> bool:
        return "/coz.h:" in self.line


@frozen
class Program:
    """An executable that ran, and why coz could not read it, if so."""

    path: str
    problem: str = ""


@define
class _Segment:
    """One run of the program."""

    experiments: list[Experiment] = field(factory=list)
    runtime: int | None = None
    samples: dict[str, int] = field(factory=dict)
    ended: bool = False


@define
class Profile:
    """What all runs together hold."""

    experiments: list[Experiment] = field(factory=list)
    rejected: Counter[tuple[str, int]] = field(factory=Counter)
    """Experiments with an impossible duration, by line and percent."""
    dropped: int = 0
    """Last experiments of runs that ended normally."""
    samples: Counter[str] = field(factory=Counter)
    """By line, of all runs."""
    runtime: int = 0
    """Nanoseconds, of the runs that ended normally."""
    samples_in_runtime: Counter[str] = field(factory=Counter)
    runs: int = 0
    ended: int = 0
    ignored: int = 0
    """Lines that were not understood."""
    beyond: int = 0
    """Experiments beyond `MAX_EXPERIMENTS`."""
    read: int = 0
    """Lines of any kind, without those of ours."""
    programs: dict[Program, None] = field(factory=dict)
    """That have progress points, in order."""
    others: dict[Program, None] = field(factory=dict)
    launched: bool = False
    """Whether there are lines of ours."""
    ran: int = 0
    """Nanoseconds that the profiled processes had a CPU, of all threads."""
    waited: int = 0
    """Nanoseconds that they waited for one."""
    _names: dict[str, str] = field(factory=dict)
    _segment: _Segment | None = None
    _current: Experiment | None = None
    _held: int = 0

    @property
    def cpu_share(self) -> float | None:
        """Of the time that the threads could run, how much of it they did."""
        return self.ran / (self.ran + self.waited) if self.ran else None

    def add(self, file: BinaryIO) -> None:
        """Read one file; repeated runs may have been appended to it."""
        lines = Lines(file)
        previous, too_long = None, 0
        for line in lines:
            if previous is not None:
                self._line(previous)
            if lines.too_long > too_long:
                # The points that follow belong to something that is not known.
                too_long, self._current = lines.too_long, None
            previous = line
        # A last line without its newline may be cut in the middle of a number.
        if previous is not None:
            if lines.complete or lines.too_long > too_long:
                self._line(previous)
            else:
                self.read += 1
                self.ignored += 1
        self.ignored += lines.too_long
        self.read += lines.too_long
        self._finish()

    def _line(self, line: str) -> None:
        if not line.strip():
            return
        kind, fields = _fields(line)
        if kind.startswith("aiopt-"):
            self.ignored += not self._beside(kind, fields)
            return
        self.read += 1
        if kind == "startup":
            self._finish()
            self._segment = _Segment()
            return
        segment = self._segment = self._segment or _Segment()
        if kind == "experiment":
            understood = self._experiment(segment, fields)
        elif kind in ("throughput-point", "progress-point", "latency-point"):
            understood = self._point(fields, latency=kind == "latency-point")
        elif kind in ("runtime", "shutdown"):
            # Counts are cumulative: a block in mid-run is superseded by the next one.
            segment.samples, segment.ended = {}, True
            # The time of a shutdown is that of the clock.
            segment.runtime = _whole(fields.get("time")) if kind == "runtime" else None
            self._current = None
            understood = kind == "shutdown" or segment.runtime is not None
        elif kind == "samples":
            understood = self._samples(segment, fields)
        else:
            understood = False
        self.ignored += not understood

    def _beside(self, kind: str, fields: Fields) -> bool:
        """A line of ours."""
        self.launched = True
        if kind == END:
            self._finish()
            return True
        if kind == "aiopt-load":
            ran, waited = _whole(fields.get("ran")), _whole(fields.get("waited"))
            self.ran += ran or 0
            self.waited += waited or 0
            return ran is not None and waited is not None
        path, problem = self._name(fields.get("path")), fields.get("problem")
        if path is None or not isinstance(problem, str) or len(problem) > MAX_NAME:
            return False
        found = self.programs if kind == "aiopt-program" else self.others
        if len(found) < MAX_PROGRAMS:
            found[Program(path, problem)] = None
        return True

    def _experiment(self, segment: _Segment, fields: Fields) -> bool:
        # Whatever it holds, what follows does not belong to the experiment before it, and a
        # runtime record before it was one in mid-run, which counts from a wrong start.
        self._current, segment.runtime, segment.ended = None, None, False
        line = self._name(fields.get("selected"))
        percent, duration = _percent(fields.get("speedup")), _whole(fields.get("duration"))
        if line is None or percent is None or duration is None:
            return False
        if self._held >= MAX_EXPERIMENTS:
            self.beyond += 1
            return True
        self._held += 1
        selected = _whole(fields.get("selected-samples")) or 0
        delay = _signed(fields.get("delay")) or 0
        self._current = Experiment(line, percent, duration, selected, delay)
        segment.experiments.append(self._current)
        return True

    def _point(self, fields: Fields, *, latency: bool) -> bool:
        name = self._name(fields.get("name"))
        count = _whole(fields.get("arrivals" if latency else "delta"))
        in_flight = _whole(fields.get("difference")) if latency else 1
        if name is None or count is None or in_flight is None:
            return False
        experiment = self._current
        if experiment is None:
            return True
        # Twice the same point: the record of the second one's experiment was lost.
        if (name, latency) in experiment.points or len(experiment.points) >= MAX_POINTS:
            self._current = None
            return False
        cost = float(in_flight) * experiment.duration
        experiment.points[name, latency] = Visits(count, cost)
        return True

    def _samples(self, segment: _Segment, fields: Fields) -> bool:
        location, count = self._name(fields.get("location")), _whole(fields.get("count"))
        if location is None or count is None:
            return False
        segment.samples[location] = count
        return True

    def _name(self, value: object) -> str | None:
        if not isinstance(value, str) or not 0 < len(value) <= MAX_NAME:
            return None
        if value not in self._names and len(self._names) >= MAX_NAMES:
            return None
        return self._names.setdefault(value, value)

    def _finish(self) -> None:
        """Take over what the run holds that is now over."""
        segment, self._segment, self._current = self._segment, None, None
        if segment is None:
            return
        self.runs += 1
        self.ended += segment.ended
        experiments = segment.experiments
        if experiments and segment.ended and (END_TO_END, False) not in experiments[-1].points:
            # coz sleeps for all of its length even if the program ends meanwhile, so the last
            # experiment has up to half of its visits.
            experiments = experiments[:-1]
            self.dropped += 1
        for experiment in experiments:
            if experiment.of_coz_itself:
                continue
            if experiment.usable:
                self.experiments.append(experiment)
            else:
                self.rejected[experiment.line, experiment.percent] += 1
        self.samples.update(segment.samples)
        if segment.runtime:
            self.runtime += segment.runtime
            self.samples_in_runtime.update(segment.samples)


def _fields(line: str) -> tuple[str, Fields]:
    """Type and fields of a record, spelled with `-`; an empty type if it is not one."""
    if line.startswith("{"):
        try:
            record = orjson.loads(line)
        except orjson.JSONDecodeError:
            return "", {}
        kind = record.get("type")
        if not isinstance(kind, str):
            return "", {}
        return kind.replace("_", "-"), {key.replace("_", "-"): record[key] for key in record}
    kind, *columns = line.split("\t")
    pairs = (column.partition("=") for column in columns)
    return kind.replace("_", "-"), {key.replace("_", "-"): value for key, _, value in pairs}


def _whole(value: object) -> int | None:
    """An unsigned number of up to 64 bits."""
    if isinstance(value, str):
        if not (value.isascii() and value.isdigit() and len(value) <= 20):
            return None
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 64:
        return None
    return value


def _signed(value: object) -> int | None:
    if isinstance(value, str) and value.startswith("-"):
        size = _whole(value[1:])
        return None if size is None else -size
    return _whole(value)


def _percent(value: object) -> int | None:
    """A speed-up of 0 to 1, as whole percent, so that equal ones are equal."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    try:
        share = float(value)
    except (ValueError, OverflowError):
        return None
    return round(100 * share) if 0 <= share <= 1 else None
