"""Score decision rules on noise: how often they keep nothing, how much they find, what it costs.

A *noise source* is an endless time line of ln(cost), one item for each run: four models, or traces
of real programs (`load_trace`). A `Machine` runs both arms on ONE time line, in the order in which
they run, so drift and bursts hit rules as they do in life.

A *scheme* opens campaigns; a campaign judges one candidate after the other by performing runs.
`ComparisonScheme` makes one of the rule of another tool, in the design which that tool has;
`ProtocolScheme` of a factory such as `aiopt.verdict.protocol`; and anything with the same two
methods can be scored:

    >>> from aiopt.comparisons import COMPARISONS
    >>> scheme = ComparisonScheme(COMPARISONS["mean-of-n"])
    >>> simulated = simulate(scheme, QUIET, Exactly(0.0), candidates=1000, seed=7)
    >>> 0.45 < sum(trial.decided.keep for trial in simulated.trials) / 1000 < 0.55
    True

`score` puts ten figures together (`FIGURES`), each with the bar that a rule should reach. Effects
and claims are natural logs of cost ratios, positive for "better", as in `aiopt.stats`.
"""

import csv
import math
import multiprocessing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate, chain
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import fmean
from typing import Any, Literal, Protocol
from zlib import crc32

import numpy as np
from attrs import field, frozen

from aiopt import codec
from aiopt.comparisons import ComparisonRule
from aiopt.events import VerdictReached
from aiopt.rules import NeedsMore, vary
from aiopt.stats import Floats, PairStage, coin, mad_sd
from aiopt.verdict import decide

__all__ = [
    "BIMODAL",
    "CLOUD",
    "FIGURES",
    "MODELS",
    "QUIET",
    "TYPICAL",
    "AtSmallest",
    "Campaign",
    "ComparisonScheme",
    "Decided",
    "Exactly",
    "Gains",
    "Layout",
    "Machine",
    "Mixed",
    "Model",
    "Noise",
    "ProtocolScheme",
    "Replayed",
    "Row",
    "Sampler",
    "Scheme",
    "Simulated",
    "Sources",
    "Trace",
    "Trial",
    "load_trace",
    "score",
    "simulate",
    "sources_in",
]

# ---- noise ----

_CHUNK = 256


class Noise(Protocol):
    """A source of noise."""

    @property
    def name(self) -> str: ...

    def chunks(self, rng: np.random.Generator) -> Iterator[Floats]:
        """A new time line: ln(cost) of one run after the other without end, some at a time."""
        ...


@frozen
class Model:
    """A synthetic noise source."""

    name: str
    law: Callable[[np.random.Generator], Iterator[Floats]]

    def chunks(self, rng: np.random.Generator) -> Iterator[Floats]:
        """See `Noise.chunks`."""
        return self.law(rng)


def _normal(rng: np.random.Generator, sd: float) -> Floats:
    return rng.normal(0.0, sd, _CHUNK)


def _spikes(rng: np.random.Generator, share: float, mean: float) -> Floats:
    """Mostly 0; in a share of the runs an exponential delay."""
    return np.where(rng.random(_CHUNK) < share, rng.exponential(mean, _CHUNK), 0.0)


def _autoregressive(rng: np.random.Generator, phi: float, sd: float) -> Iterator[Floats]:
    """AR(1) with this stationary standard deviation, from its stationary law on."""
    last = rng.normal(0.0, sd)
    while True:
        shocks = _normal(rng, sd * math.sqrt(1 - phi**2)).tolist()
        values = list(accumulate(shocks, lambda x, shock: phi * x + shock, initial=last))[1:]
        last = values[-1]
        yield np.array(values)


def _quiet(rng: np.random.Generator) -> Iterator[Floats]:
    while True:
        yield _normal(rng, 0.005) + _spikes(rng, 0.01, 0.05)


def _typical(rng: np.random.Generator) -> Iterator[Floats]:
    slope = rng.normal(0.0, 1e-4)
    correlated, time = _autoregressive(rng, 0.5, 0.012), np.arange(_CHUNK)
    while True:
        uncorrelated = _normal(rng, 0.009) + _spikes(rng, 0.02, 0.15)
        yield next(correlated) + slope * time + uncorrelated
        time += _CHUNK


def _bimodal(rng: np.random.Generator) -> Iterator[Floats]:
    state = rng.integers(2)
    while True:
        states = (state + np.cumsum(rng.random(_CHUNK) < 0.05)) % 2
        state = states[-1]
        yield 0.06 * states + _normal(rng, 0.01)


def _cloud(rng: np.random.Generator) -> Iterator[Floats]:
    phase = rng.uniform(0.0, 2 * math.pi)
    correlated, time = _autoregressive(rng, 0.8, 0.04), np.arange(_CHUNK)
    while True:
        wave = 0.03 * np.sin(2 * math.pi * time / 300 + phase)
        yield next(correlated) + wave + _spikes(rng, 0.05, 0.30)
        time += _CHUNK


QUIET = Model("quiet", _quiet)
"""Normal, sd 0.5 %, and 1 % of the runs late by 5 % in the mean."""
TYPICAL = Model("typical", _typical)
"""Correlated (phi 0.5, sd 1.2 %) and uncorrelated (0.9 %) noise, a linear drift whose slope per run
has an sd of 1e-4, and 2 % of the runs late by 15 % in the mean."""
BIMODAL = Model("bimodal", _bimodal)
"""Two states 6 % apart, left with a probability of 5 % per run, and normal noise of 1 %."""
CLOUD = Model("cloud", _cloud)
"""Strongly correlated noise (phi 0.8, sd 4 %), a wave of 3 % over 300 runs, and 5 % of the runs
late by 30 % in the mean."""
MODELS: tuple[Noise, ...] = (QUIET, TYPICAL, BIMODAL, CLOUD)


_BLOCK_MEAN, _BLOCK_LEAST, _BLOCK_MOST = 80, 8, 400


@frozen
class Trace:
    """What a real program did: time lines by the stationary block bootstrap.

    Blocks start anywhere, their lengths are geometric with mean 80 within 8 to 400, and they wrap
    around at the end (Politis and Romano 1994).
    """

    name: str
    log_costs: Floats = field(eq=False, repr=False)
    """ln(cost) in the order of the runs, without its median."""

    def chunks(self, rng: np.random.Generator) -> Iterator[Floats]:
        """See `Noise.chunks`. A chunk is a block."""
        while True:
            start = int(rng.integers(self.log_costs.size))
            length = min(max(int(rng.geometric(1 / _BLOCK_MEAN)), _BLOCK_LEAST), _BLOCK_MOST)
            yield np.take(self.log_costs, np.arange(start, start + length), mode="wrap")

    @property
    def pair_noise(self) -> float:
        """The robust standard deviation that a pair of neighbouring runs feels."""
        return mad_sd(np.diff(self.log_costs))


TraceMetric = Literal["wall", "cpu"]
_COLUMNS: Mapping[TraceMetric, Sequence[str]] = {
    "wall": ("wall_s",),
    "cpu": ("utime_s", "stime_s"),
}


def load_trace(path: Path, metric: TraceMetric = "cpu") -> Trace:
    """The trace in a CSV file with one row for each run, such as those in tests/data/noise.

    Args:
        path: has the columns wall_s, or utime_s and stime_s, in seconds; others do not matter.
        metric: "cpu" is the sum of user and system time.

    Raises:
        OSError: the file cannot be read.
        ValueError: no rows, columns that are missing, or a cost that is not positive.
    """
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    columns = _COLUMNS[metric]
    if not rows or any(rows[0].get(column) is None for column in columns):
        msg = f"{path}: expected rows with {' and '.join(columns)}, for {metric}"
        raise ValueError(msg)
    costs = np.array([sum(float(row[column]) for column in columns) for row in rows])
    if not (costs > 0).all():
        at = int(np.flatnonzero(~(costs > 0))[0])
        msg = f"{path}: row {at + 1}: {metric} must be positive, found {costs[at]:g}"
        raise ValueError(msg)
    logs = np.log(costs)
    return Trace(f"{path.stem.partition('__')[0]} {metric}", logs - np.median(logs))


class Machine:
    """Performs runs, each with the next item of one time line, whichever arm it is of."""

    def __init__(self, noise: Noise, rng: np.random.Generator) -> None:
        self._line = chain.from_iterable(chunk.tolist() for chunk in noise.chunks(rng))
        self.runs = 0
        """So far, of all arms."""

    def arm(self, gain: float = 0.0) -> "Sampler":
        """What runs a program that is better than the original one by this gain (natural log)."""

        def run() -> float:
            self.runs += 1
            return math.exp(next(self._line) - gain)

        return run


# ---- schemes ----

Sampler = Callable[[], float]
"""Performs one run and returns its cost."""


@frozen
class Decided:
    """What became of one candidate."""

    keep: bool
    runs: int
    """Of both arms together."""
    estimate: float | None = None
    """What is claimed (natural log) if it is kept."""
    screened: bool | None = None
    """Whether it passed a first stage; None if the rule has only one."""


@frozen
class Replayed:
    """One decision, taken again from what was recorded."""

    equal: bool
    """Byte for byte."""
    failed: int
    """Times that other parameters gave neither a verdict nor the number of pairs it needs."""


class Campaign(Protocol):
    """Judges candidates, one after the other."""

    @property
    def smallest_effect(self) -> float | None:
        """What it says that it can prove on this machine (natural log); None if it does not say."""
        ...

    def judge(self, run_a: Sampler, run_b: Sampler) -> Decided:
        """Keep candidate b in place of incumbent a? Makes as many runs as it likes."""
        ...

    def adopt(self) -> None:
        """The candidate that was judged last is the incumbent from now on."""
        ...

    def replay(self) -> Replayed | None:
        """The last decision again, from its records; None if nothing is recorded."""
        ...


class Scheme(Protocol):
    """A way to decide, and to make the runs for it."""

    def open(self, run: Sampler, seed: int, params: Mapping[str, float]) -> Campaign:
        """A new campaign, after what it measures of the incumbent in advance.

        `params` are what a figure asks for (`delta0`, `mei`: natural logs); a scheme without such
        parameters ignores them.
        """
        ...


@frozen
class ComparisonScheme:
    """The rule of another tool in its own design."""

    rule: ComparisonRule

    def open(self, run: Sampler, seed: int, params: Mapping[str, float]) -> Campaign:
        """See `Scheme.open`. Only a "stored" design measures anything in advance."""
        return _ComparisonCampaign(self.rule, run, seed)


class _ComparisonCampaign:
    smallest_effect = None

    def __init__(self, rule: ComparisonRule, run: Sampler, seed: int) -> None:
        self._rule, self._seed, self._number = rule, seed, 0
        self._stored = self._last = [run() for _ in range(rule.runs * (rule.design == "stored"))]

    def judge(self, run_a: Sampler, run_b: Sampler) -> Decided:
        self._number += 1
        a, b = self._measure(run_a, run_b)
        self._last = b
        found = self._rule.judge(a, b)
        runs = self._rule.runs * (1 if self._rule.design == "stored" else 2)
        return Decided(found.keep, runs, found.effect if found.keep else None)

    def _measure(self, run_a: Sampler, run_b: Sampler) -> tuple[list[float], list[float]]:
        each = range(self._rule.runs)
        if self._rule.design == "stored":
            return self._stored, [run_b() for _ in each]
        if self._rule.design == "blocks":
            return [run_a() for _ in each], [run_b() for _ in each]
        orders = [coin(self._seed, self._number, PairStage.SCREEN, index) for index in each]
        pairs = [_run_pair(order, run_a, run_b) for order in orders]
        return [a for a, _ in pairs], [b for _, b in pairs]

    def adopt(self) -> None:
        """Its score is the one that the next candidates have to beat."""
        self._stored = self._last

    def replay(self) -> None:
        return None


def _run_pair(order: str, run_a: Sampler, run_b: Sampler) -> tuple[float, float]:
    if order == "AB":
        a = run_a()
        return a, run_b()
    b = run_b()
    return run_a(), b


@frozen
class ProtocolScheme:
    """A protocol that asks for one pair after the other, such as `aiopt.verdict.protocol`.

    Its campaigns have `calibration()`, `candidate()` and `plan` (with `mei_eff` after the
    calibration); the two give steppers with `next_pair() -> "AB" | "BA" | None`, `tell(a, b)` and
    `verdict` (`keep`, `effect`, `stage`). If these also have `events` and `outcome`, and campaigns
    have `rule_params`, decisions can be replayed.
    """

    factory: Callable[[dict[str, Any], int], Any]
    params: Mapping[str, Any] = field(factory=dict)

    def open(self, run: Sampler, seed: int, params: Mapping[str, float]) -> Campaign:
        """See `Scheme.open`. What a figure asks for comes before the scheme's own parameters."""
        return _ProtocolCampaign(self.factory({**self.params, **params}, seed), run)


class _ProtocolCampaign:
    def __init__(self, campaign: Any, run: Sampler) -> None:
        self._campaign = campaign
        _drive(campaign.calibration(), run, run)
        self._last: Any = None

    @property
    def smallest_effect(self) -> float | None:
        effect: float = self._campaign.plan["mei_eff"]
        return effect

    def judge(self, run_a: Sampler, run_b: Sampler) -> Decided:
        self._last = stepper = self._campaign.candidate()
        runs = _drive(stepper, run_a, run_b)
        verdict = stepper.verdict
        effect = verdict.effect if verdict.keep else None
        return Decided(verdict.keep, runs, effect, verdict.stage == "confirm")

    def adopt(self) -> None:
        """The incumbent runs in every pair, so there is nothing to remember."""

    def replay(self) -> Replayed | None:
        if getattr(self._last, "events", None) is None:
            return None
        return _replayed(self._campaign.rule_params, self._last.events, self._last.outcome)


def _drive(stepper: Any, run_a: Sampler, run_b: Sampler) -> int:
    """Give a stepper the pairs that it asks for; the number of runs."""
    runs = 0
    while (order := stepper.next_pair()) is not None:
        stepper.tell(*_run_pair(order, run_a, run_b))
        runs += 2
    return runs


_OTHER_PARAMS: Sequence[Mapping[str, float]] = (
    {"alpha1": 0.005},
    {"alpha1": 0.1},
    {"delta0": 0.0},
    {"delta0": 0.015},
    {"mei": 0.02},
    {"mei": 0.1},
    {"alpha1": 0.05, "delta0": 0.01, "mei": 0.04},
)


def _replayed(params: Any, events: Sequence[Any], outcome: VerdictReached) -> Replayed:
    again = decide(outcome.rule, params, events)
    equal = isinstance(again, VerdictReached) and codec.encode(again) == codec.encode(outcome)
    failed = 0
    for changes in _OTHER_PARAMS:
        try:
            found = decide(outcome.rule, vary(params, **changes), events)
        except Exception:  # whatever it is, it is what is counted
            failed += 1
        else:
            failed += not isinstance(found, (VerdictReached, NeedsMore))
    return Replayed(equal, failed)


# ---- campaigns ----


class Gains(Protocol):
    """How much better the candidates of a campaign are."""

    def __call__(
        self, rng: np.random.Generator, count: int, smallest: float | None
    ) -> Sequence[float]:
        """One true gain (natural log) for each; `smallest` is what the campaign says it can
        prove.
        """
        ...


@frozen
class Exactly:
    """All are better by the same share of the cost: 0.03 is 3 % less."""

    share: float

    def __call__(
        self, rng: np.random.Generator, count: int, smallest: float | None
    ) -> Sequence[float]:
        """See `Gains`."""
        return [-math.log1p(-self.share)] * count


@frozen
class Layout:
    """None is better, but each has been laid out in memory by chance: normal with this sd."""

    sd: float

    def __call__(
        self, rng: np.random.Generator, count: int, smallest: float | None
    ) -> Sequence[float]:
        """See `Gains`."""
        return [float(gain) for gain in rng.normal(0.0, self.sd, count)]


@frozen
class AtSmallest:
    """All are better by just what the campaign says it can prove; by nothing if it says nothing."""

    def __call__(
        self, rng: np.random.Generator, count: int, smallest: float | None
    ) -> Sequence[float]:
        """See `Gains`."""
        return [smallest or 0.0] * count


@frozen
class Mixed:
    """What proposers send: 65 % change nothing, 23 % are 1 to 10 % worse, 12 % 1 to 8 % better."""

    neutral: float = 0.65
    worse: float = 0.23

    def __call__(
        self, rng: np.random.Generator, count: int, smallest: float | None
    ) -> Sequence[float]:
        """See `Gains`. Each is drawn for itself, sizes are uniform shares of the cost."""
        kind = rng.random(count)
        worse = -np.log1p(rng.uniform(0.01, 0.10, count))
        better = -np.log1p(-rng.uniform(0.01, 0.08, count))
        gains = np.where(kind < self.neutral + self.worse, worse, better)
        return [float(gain) for gain in np.where(kind < self.neutral, 0.0, gains)]


@frozen
class Trial:
    """A candidate as it is, and what was decided."""

    gain: float
    """By how much it is truly better than the incumbent that it was compared with."""
    decided: Decided
    replayed: Replayed | None = None


@frozen
class Simulated:
    """One campaign on one noise source."""

    source: str
    advance: int
    """Runs that were made before the first candidate."""
    smallest_effect: float | None
    trials: tuple[Trial, ...]

    @property
    def runs(self) -> int:
        return self.advance + sum(trial.decided.runs for trial in self.trials)


def simulate(
    scheme: Scheme,
    noise: Noise,
    gains: Gains,
    *,
    candidates: int,
    seed: int | Sequence[int],
    params: Mapping[str, float] | None = None,
    adopting: bool = False,
    replaying: bool = False,
) -> Simulated:
    """One campaign on a new machine. Reproducible: the same arguments give the same.

    Args:
        scheme: opens the campaign.
        noise: of the machine.
        gains: of the candidates.
        candidates: how many.
        seed: of the noise, of the gains and of the campaign's own coin, each for itself.
        params: given to the scheme.
        adopting: what is kept becomes the incumbent. Otherwise each candidate is compared with the
            original.
        replaying: take each decision again from its records.

    Raises:
        ValueError: the scheme made another number of runs than it says.
    """
    for_noise, for_gains, for_scheme = np.random.SeedSequence(seed).spawn(3)
    machine = Machine(noise, np.random.default_rng(for_noise))
    campaign = scheme.open(machine.arm(), int(for_scheme.generate_state(1)[0]), params or {})
    advance, reached, trials = machine.runs, 0.0, []
    rng = np.random.default_rng(for_gains)
    for gain in gains(rng, candidates, campaign.smallest_effect):
        before = machine.runs
        decided = campaign.judge(machine.arm(reached), machine.arm(reached + gain))
        if decided.runs != machine.runs - before:
            msg = f"the scheme says {decided.runs} runs, it made {machine.runs - before}"
            raise ValueError(msg)
        trials.append(Trial(gain, decided, campaign.replay() if replaying else None))
        if adopting and decided.keep:
            campaign.adopt()
            reached += gain
    return Simulated(noise.name, advance, campaign.smallest_effect, tuple(trials))


# ---- figures ----


@frozen
class Sources:
    """What rules are scored on."""

    models: tuple[Noise, ...] = MODELS
    traces: tuple[Noise, ...] = ()
    """On which an effect of 3 % can be measured."""
    overloaded: tuple[Noise, ...] = ()
    """On which it cannot."""

    @property
    def measurable(self) -> tuple[Noise, ...]:
        return self.models + self.traces


def sources_in(folder: Path) -> Sources:
    """The models, and the CPU times in a folder of traces, told apart by a pair noise of 10 %.

    Raises as `load_trace` does.
    """
    traces = [load_trace(path) for path in sorted(folder.glob("*.csv"))]
    return Sources(
        traces=tuple(trace for trace in traces if trace.pair_noise < 0.1),
        overloaded=tuple(trace for trace in traces if trace.pair_noise >= 0.1),
    )


Where = Literal["models", "measurable", "overloaded"]


@frozen(kw_only=True)
class _Cell:
    """Campaigns of one kind, which one or two figures look at."""

    on: Where
    gains: Gains
    campaigns: int
    """On each source."""
    size: int = 40
    """Candidates of each: not too many, since all share the luck of one calibration."""
    params: Mapping[str, float] = field(factory=dict)
    adopting: bool = False
    replaying: bool = False


_LAYOUT_PARAMS = {"delta0": 0.02, "mei": 0.05}
_CELLS: Mapping[str, _Cell] = {
    "nothing": _Cell(on="models", gains=Exactly(0), campaigns=125, params={"delta0": 0.0}),
    "null": _Cell(on="measurable", gains=Exactly(0), campaigns=5, size=200, adopting=True),
    "3 %": _Cell(on="measurable", gains=Exactly(0.03), campaigns=100, size=10),
    "5 %": _Cell(on="measurable", gains=Exactly(0.05), campaigns=100, size=10),
    "mixed": _Cell(on="measurable", gains=Mixed(), campaigns=5, size=200, adopting=True),
    "overloaded": _Cell(on="overloaded", gains=Exactly(0), campaigns=4, size=25),
    "smallest": _Cell(on="overloaded", gains=AtSmallest(), campaigns=40),
    "layout": _Cell(on="measurable", gains=Layout(0.018), campaigns=38, params=_LAYOUT_PARAMS),
    "layout 5 %": _Cell(
        on="measurable", gains=Exactly(0.05), campaigns=100, size=10, params=_LAYOUT_PARAMS
    ),
    "replay": _Cell(on="measurable", gains=Mixed(), campaigns=2, size=20, replaying=True),
}


Unit = Literal["share", "runs", "keeps", "decisions"]


@frozen(kw_only=True)
class Row:
    """One quantity of a figure, beside its bar."""

    figure: str
    what: str
    value: float | None
    """None if the scheme has no such thing, or kept nothing that it could be computed from."""
    at_most: float | None = None
    """The bar, if less is better."""
    at_least: float | None = None
    """The bar, if more is."""
    unit: Unit
    by_source: Mapping[str, float] = field(factory=dict)

    @property
    def reached(self) -> bool | None:
        """Whether the bar is; None if there is no value."""
        if self.value is None:
            return None
        if self.at_most is not None:
            return self.value <= self.at_most
        return self.at_least is not None and self.value >= self.at_least


def _trials(campaigns: Iterable[Simulated]) -> list[Trial]:
    return [trial for campaign in campaigns for trial in campaign.trials]


def _kept(campaigns: Sequence[Simulated]) -> float:
    return fmean(trial.decided.keep for trial in _trials(campaigns))


def _screened(campaigns: Sequence[Simulated]) -> float | None:
    passed = [trial.decided.screened for trial in _trials(campaigns)]
    return None if None in passed else fmean(map(bool, passed))


def _runs(campaigns: Sequence[Simulated]) -> float:
    return fmean(trial.decided.runs for trial in _trials(campaigns))


def _claim_error(campaigns: Sequence[Simulated]) -> float | None:
    """By what share of the truth all claims together are wrong."""
    kept = [trial for trial in _trials(campaigns) if trial.decided.keep]
    truth = math.fsum(trial.gain for trial in kept)
    claimed = math.fsum(trial.decided.estimate or 0.0 for trial in kept)
    return abs(claimed / truth - 1) if truth else None


def _found(campaigns: Sequence[Simulated]) -> float | None:
    """What was gained in truth, losses that were kept included, of all that was there to gain."""
    trials = _trials(campaigns)
    possible = math.fsum(max(0.0, trial.gain) for trial in trials)
    gained = math.fsum(trial.gain for trial in trials if trial.decided.keep)
    return gained / possible if possible else None


def _false_keeps(campaigns: Sequence[Simulated]) -> float:
    """Candidates that are not better and were kept, for each campaign."""
    kept = [trial for trial in _trials(campaigns) if trial.decided.keep and trial.gain <= 0]
    return len(kept) / len(campaigns)


def _campaign_runs(campaigns: Sequence[Simulated]) -> float:
    """What was measured in advance included."""
    return fmean(campaign.runs for campaign in campaigns)


def _proving(campaigns: Sequence[Simulated]) -> float | None:
    """The share of campaigns that keep four of five candidates as good as they promised to find."""
    if any(campaign.smallest_effect is None for campaign in campaigns):
        return None
    return fmean(_kept([campaign]) >= 0.8 for campaign in campaigns)


def _unequal(campaigns: Sequence[Simulated]) -> float | None:
    replayed = [trial.replayed for trial in _trials(campaigns)]
    return None if None in replayed else sum(not each.equal for each in replayed if each)


def _failed(campaigns: Sequence[Simulated]) -> float | None:
    replayed = [trial.replayed for trial in _trials(campaigns)]
    return None if None in replayed else sum(each.failed for each in replayed if each)


@frozen
class _Quantity:
    """What a row is computed from."""

    figure: str
    what: str
    cell: str
    of: Callable[[Sequence[Simulated]], float | None]
    over: Callable[[Sequence[float]], float] | None
    """What the values of the sources become: their mean, or the worst. None: all campaigns count
    alike, whatever their source."""
    unit: Unit = field(default="share", kw_only=True)
    at_most: float | None = field(default=None, kw_only=True)
    at_least: float | None = field(default=None, kw_only=True)

    def row(self, campaigns: Sequence[Simulated]) -> Row:
        sources: dict[str, list[Simulated]] = {}
        for campaign in campaigns:
            sources.setdefault(campaign.source, []).append(campaign)
        values = {source: self.of(some) for source, some in sources.items()}
        known = {source: value for source, value in values.items() if value is not None}
        value = None
        if self.over is None:
            value = self.of(campaigns)
        elif len(known) == len(values):
            value = self.over(list(known.values()))
        return Row(
            figure=self.figure,
            what=self.what,
            value=value,
            at_most=self.at_most,
            at_least=self.at_least,
            unit=self.unit,
            by_source=known,
        )


FIGURES: Mapping[str, str] = {
    "H1": "candidates that change nothing, at delta0 = 0",
    "H2": "null campaigns of 200 candidates",
    "H3": "power at 3 %",
    "H4": "power at 5 %",
    "H5": "runs for a candidate that changes nothing",
    "H6": "what is claimed at a true 3 %",
    "H7": "mixed campaigns of 200 candidates",
    "H8": "overloaded machines",
    "H9": "accidents of layout, sd 1.8 %, at delta0 = 0.02 and mei = 0.05",
    "H10": "decisions taken again from their records",
}
"""What `score` can find out, by id."""

_QUANTITIES = (
    _Quantity("H1", "kept", "nothing", _kept, fmean, at_most=5e-4),
    _Quantity("H1", "kept, worst source", "nothing", _kept, max, at_most=1e-3),
    _Quantity("H1", "passed the screen, worst source", "nothing", _screened, max, at_most=0.02),
    _Quantity("H2", "kept by a campaign", "null", _false_keeps, None, at_most=0.1, unit="keeps"),
    _Quantity("H3", "kept", "3 %", _kept, fmean, at_least=0.93),
    _Quantity("H3", "kept, worst source", "3 %", _kept, min, at_least=0.87),
    _Quantity("H3", "runs", "3 %", _runs, fmean, at_most=70, unit="runs"),
    _Quantity("H3", "runs, worst source", "3 %", _runs, max, at_most=120, unit="runs"),
    _Quantity("H4", "kept, worst source", "5 %", _kept, min, at_least=0.97),
    _Quantity("H5", "runs", "null", _runs, fmean, at_most=12, unit="runs"),
    _Quantity("H5", "runs, worst source", "null", _runs, max, at_most=20, unit="runs"),
    _Quantity("H6", "claims off the truth, worst source", "3 %", _claim_error, max, at_most=0.05),
    _Quantity(
        "H7", "kept though not better", "mixed", _false_keeps, None, at_most=0.1, unit="keeps"
    ),
    _Quantity("H7", "gained of what there was", "mixed", _found, None, at_least=0.93),
    _Quantity("H7", "claims off the truth", "mixed", _claim_error, None, at_most=0.03),
    _Quantity("H7", "runs of a campaign", "mixed", _campaign_runs, None, at_most=3500, unit="runs"),
    _Quantity(
        "H8", "kept of what changes nothing, worst source", "overloaded", _kept, max, at_most=0
    ),
    _Quantity(
        "H8",
        "campaigns that find what they promise",
        "smallest",
        _proving,
        None,
        at_least=0.8,
    ),
    _Quantity("H9", "kept, worst source", "layout", _kept, max, at_most=0.03),
    _Quantity("H9", "kept of 5 %, worst source", "layout 5 %", _kept, min, at_least=0.85),
    _Quantity("H10", "other than before", "replay", _unequal, sum, at_most=0, unit="decisions"),
    _Quantity("H10", "failed under others", "replay", _failed, sum, at_most=0, unit="decisions"),
)


@frozen
class _Task:
    """One campaign to simulate, wherever that is done."""

    scheme: Scheme
    cell: str
    noise: Noise
    seed: tuple[int, ...]

    def run(self) -> Simulated:
        cell = _CELLS[self.cell]
        return simulate(
            self.scheme,
            self.noise,
            cell.gains,
            candidates=cell.size,
            seed=self.seed,
            params=cell.params,
            adopting=cell.adopting,
            replaying=cell.replaying,
        )


def _tasks(
    scheme: Scheme, cells: Iterable[str], sources: Sources, scale: float, seed: int
) -> list[_Task]:
    """All campaigns. The noise of each depends on the seed and on what it is for, and on nothing
    else: every scheme meets the same.
    """
    return [
        _Task(scheme, name, noise, (seed, crc32(name.encode()), crc32(noise.name.encode()), number))
        for name in cells
        for noise in getattr(sources, _CELLS[name].on)
        for number in range(max(1, round(scale * _CELLS[name].campaigns)))
    ]


def score(
    scheme: Scheme,
    *,
    sources: Sources | None = None,
    figures: Iterable[str] = tuple(FIGURES),
    scale: float = 1.0,
    seed: int = 0,
    jobs: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> list[Row]:
    """The figures of a scheme, each quantity beside its bar.

    Args:
        scheme: the way to decide.
        sources: of noise; if not given, the four models, and then nothing is said of overloaded
            machines.
        figures: ids of those that are wanted.
        scale: of the number of campaigns. Bars are meant for 1; with less, chance decides.
        seed: other seeds are other campaigns. The same one gives the same figures, whatever the
            number of jobs.
        jobs: processes; with more than one, scheme and sources must be picklable, and the calling
            program's main module importable.
        progress: told after each campaign how many are done, and of how many.

    Raises:
        ValueError: an unknown figure.
        RuntimeError: one of several processes failed.
    """
    wanted = list(figures)
    unknown = [figure for figure in wanted if figure not in FIGURES]
    if unknown:
        msg = f"no figure {', '.join(unknown)}; there are {', '.join(FIGURES)}"
        raise ValueError(msg)
    quantities = [quantity for quantity in _QUANTITIES if quantity.figure in wanted]
    cells = dict.fromkeys(quantity.cell for quantity in quantities)
    tasks = _tasks(scheme, cells, sources or Sources(), scale, seed)
    found: dict[str, list[Simulated]] = {}
    for done, (task, simulated) in enumerate(zip(tasks, _all(tasks, jobs), strict=True), 1):
        found.setdefault(task.cell, []).append(simulated)
        if progress is not None:
            progress(done, len(tasks))
    return [quantity.row(found[quantity.cell]) for quantity in quantities if quantity.cell in found]


def _all(tasks: Sequence[_Task], jobs: int) -> Iterator[Simulated]:
    """The campaigns in the order of the tasks, which the processes take in turn."""
    if jobs == 1:
        yield from map(_Task.run, tasks)
        return
    # Spawned, since a fork of a process with threads may never end; and with nothing but pipes,
    # since the semaphores of a pool have names that others may tidy up.
    context = multiprocessing.get_context("spawn")
    workers = []
    try:
        for index in range(jobs):
            receiver, sender = context.Pipe(duplex=False)
            process = context.Process(target=_work, args=(tasks[index::jobs], sender), daemon=True)
            process.start()
            sender.close()
            workers.append((process, receiver))
        for number in range(len(tasks)):
            yield workers[number % jobs][1].recv()
    except EOFError:
        msg = "a process ended before its work was done; it should have said why on stderr"
        raise RuntimeError(msg) from None
    finally:
        for process, _ in workers:
            process.terminate()
            process.join()


def _work(tasks: Sequence[_Task], results: Connection) -> None:
    for task in tasks:
        results.send(task.run())
