"""The simulation: noise as it is described, one time line for both arms, and figures that tell
apart what must be told apart.
"""

import doctest
import json
import math
import multiprocessing
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from attrs import define, evolve, field, frozen

from aiopt import simulate as module
from aiopt.comparisons import COMPARISONS
from aiopt.events import Event, VerdictReached
from aiopt.rules import RuleParams
from aiopt.simulate import (
    BIMODAL,
    CLOUD,
    FIGURES,
    MODELS,
    QUIET,
    TYPICAL,
    AtSmallest,
    Campaign,
    ComparisonScheme,
    Decided,
    Exactly,
    Layout,
    Machine,
    Mixed,
    Model,
    Noise,
    ProtocolScheme,
    Row,
    Sampler,
    Scheme,
    Sources,
    Trace,
    load_trace,
    score,
    simulate,
    sources_in,
)
from aiopt.stats import Floats
from aiopt.verdict import decide, protocol
from tests.benchmarks import verdicts

TRACES = Path(__file__).parent / "data/noise"
ONE_PERCENT = -math.log(0.99)


def line(noise: Noise, items: int, seed: int = 0) -> Floats:
    """The beginning of a time line."""
    chunks = noise.chunks(np.random.default_rng(seed))
    return np.fromiter(islice(chain.from_iterable(chunks), items), np.float64, items)


def autocovariance(x: Floats, lag: int) -> float:
    x = x - x.mean()
    return float(x[: x.size - lag] @ x[lag:]) / (x.size - lag)


def _silence(rng: np.random.Generator) -> Iterator[Floats]:
    while True:
        yield np.zeros(7)


def _rising(rng: np.random.Generator) -> Iterator[Floats]:
    for start in range(0, 10**9, 10):
        yield np.arange(start, start + 10) / 100


def _falling(rng: np.random.Generator) -> Iterator[Floats]:
    for chunk in _rising(rng):
        yield -chunk


SILENCE, RISING, FALLING = Model("silence", _silence), Model("up", _rising), Model("down", _falling)


@frozen
class Fixed:
    """A scheme that decides without looking: a control."""

    keep: bool
    claim: float = 0.03

    def open(self, run: Sampler, seed: int, params: Mapping[str, float]) -> Campaign:
        return self

    smallest_effect = 0.05

    def judge(self, run_a: Sampler, run_b: Sampler) -> Decided:
        run_a(), run_b()
        return Decided(self.keep, 2, self.claim if self.keep else None, self.keep)

    def adopt(self) -> None: ...

    def replay(self) -> None: ...


class TestModels:
    """A million items of each, so what is compared has small standard errors."""

    N = 1 << 20

    def test_quiet(self) -> None:
        """Normal noise and rare delays, nothing correlated."""
        x = line(QUIET, self.N)
        assert x.mean() == pytest.approx(0.01 * 0.05, abs=3e-5)
        assert x.var() == pytest.approx(0.005**2 + 0.01 * 2 * 0.05**2 - 0.0005**2, rel=0.05)
        assert abs(autocovariance(x, 1)) < 3e-7
        assert np.median(np.abs(x)) == pytest.approx(0.6745 * 0.005, rel=0.03)

    def test_typical(self) -> None:
        """A drift of its own for each line; without it an AR(1), white noise and delays."""
        slopes, residuals = [], []
        for seed in range(100):
            x = line(TYPICAL, 8192, seed)
            slope, start = np.polyfit(np.arange(x.size), x, 1)
            slopes.append(slope)
            residuals.append(x - slope * np.arange(x.size) - start)
        assert np.std(slopes) == pytest.approx(1e-4, rel=0.2)
        assert abs(np.mean(slopes)) < 3e-5
        delays = 0.02 * 2 * 0.15**2 - 0.003**2
        variance = np.mean([autocovariance(x, 0) for x in residuals])
        assert variance == pytest.approx(0.012**2 + 0.009**2 + delays, rel=0.02)
        for lag in (1, 2, 3):
            found = np.mean([autocovariance(x, lag) for x in residuals])
            assert found == pytest.approx(0.012**2 * 0.5**lag, abs=5e-6)

    def test_bimodal(self) -> None:
        """Two states, equally often, left with 5 % per run."""
        x = line(BIMODAL, self.N)
        assert x.mean() == pytest.approx(0.03, abs=0.0005)
        assert x.var() == pytest.approx(0.03**2 + 0.01**2, rel=0.01)
        for lag in (1, 2, 10):
            assert autocovariance(x, lag) == pytest.approx(0.03**2 * 0.9**lag, rel=0.05)
        assert np.mean(np.abs(x - 0.03) < 0.01) < 0.03

    def test_cloud(self) -> None:
        """An AR(1), delays, and a wave with a period of 300."""
        x = line(CLOUD, self.N)
        delays = 0.05 * 2 * 0.30**2 - 0.015**2
        assert x.mean() == pytest.approx(0.015, abs=0.001)
        assert x.var() == pytest.approx(0.04**2 + delays + 0.03**2 / 2, rel=0.02)
        for lag in (1, 5, 150, 300):
            wave = 0.03**2 / 2 * math.cos(2 * math.pi * lag / 300)
            expected = 0.04**2 * 0.8**lag + wave
            assert autocovariance(x, lag) == pytest.approx(expected, abs=6e-5)

    @pytest.mark.parametrize("noise", [TYPICAL, BIMODAL, CLOUD], ids=lambda noise: noise.name)
    def test_chunks_join(self, noise: Noise) -> None:
        """The end of a chunk is correlated with the beginning of the next as with its own."""
        ends = np.array([line(noise, 258, seed)[254:] for seed in range(4000)])
        within = np.cov(ends[:, 0], ends[:, 1])[0, 1]
        between = np.cov(ends[:, 1], ends[:, 2])[0, 1]
        size = ends.var()
        assert between > 0
        assert abs(between - within) < 0.1 * size

    @pytest.mark.parametrize("noise", MODELS, ids=lambda noise: noise.name)
    def test_lines_differ(self, noise: Noise) -> None:
        """A seed is a line, another is another."""
        assert (line(noise, 1000, 1) == line(noise, 1000, 1)).all()
        assert (line(noise, 1000, 1) != line(noise, 1000, 2)).any()


class TestTraces:
    def test_blocks(self) -> None:
        """Blocks are pieces of the trace in its order, wrapped around at its end."""
        trace = Trace("counting", np.arange(50.0))
        blocks = list(islice(trace.chunks(np.random.default_rng(0)), 4000))
        assert all((np.diff(block) % 50 == 1).all() for block in blocks)
        assert any((np.diff(block) < 0).any() for block in blocks)
        starts = np.bincount([int(block[0]) for block in blocks], minlength=50)
        assert starts.min() > 40
        assert starts.max() < 130

    def test_block_lengths(self) -> None:
        """Geometric with mean 80, bounded to 8 and 400."""
        trace = Trace("any", np.zeros(10))
        lengths = [block.size for block in islice(trace.chunks(np.random.default_rng(0)), 20000)]
        assert min(lengths) == 8
        assert max(lengths) == 400
        k = np.arange(1, 5000)
        law = (1 - 1 / 80) ** (k - 1) / 80
        assert np.mean(lengths) == pytest.approx(float(law @ np.clip(k, 8, 400)), rel=0.02)
        assert np.median(lengths) == pytest.approx(math.log(0.5) / math.log(1 - 1 / 80), rel=0.05)

    @pytest.mark.parametrize(
        ("file", "metric", "pair_noise"),
        [
            ("c_loop", "wall", 0.14),
            ("c_loop", "cpu", 0.009),
            ("c_chase", "wall", 0.16),
            ("c_chase", "cpu", 0.105),
            ("c_threads", "wall", 0.37),
            ("c_threads", "cpu", 0.16),
            ("py_json", "wall", 0.28),
            ("py_json", "cpu", 0.11),
            ("sqlite_insert", "wall", 0.24),
            ("sqlite_insert", "cpu", 0.11),
        ],
    )
    def test_ours(self, file: str, metric: Literal["wall", "cpu"], pair_noise: float) -> None:
        """The traces that are here have the noise that their description says."""
        trace = load_trace(TRACES / f"{file}__shared.csv", metric)
        assert trace.name == f"{file} {metric}"
        assert trace.log_costs.size == 300
        assert abs(np.median(trace.log_costs)) < 1e-12
        assert trace.pair_noise == pytest.approx(pair_noise, rel=0.06)
        text = (TRACES / "README.md").read_text()
        assert f"`{file}__shared.csv`" in text
        assert f"{100 * pair_noise:.3g} %" in text

    def test_bootstrap(self) -> None:
        """The bootstrap keeps what the trace has: its noise, from item to item."""
        trace = load_trace(TRACES / "c_loop__shared.csv")
        again = Trace("again", line(trace, 50_000))
        assert again.pair_noise == pytest.approx(trace.pair_noise, rel=0.1)

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("", "expected rows with wall_s, for wall"),
            ("wall_s\n", "expected rows with wall_s, for wall"),
            ("seconds\n1\n", "expected rows with wall_s, for wall"),
            ("wall_s\n1\n0\n", "row 2: wall must be positive, found 0"),
            ("wall_s\nnan\n", "row 1: wall must be positive, found nan"),
        ],
    )
    def test_not_a_trace(self, text: str, message: str, tmp_path: Path) -> None:
        """What is wrong with a file is said."""
        (tmp_path / "x.csv").write_text(text)
        with pytest.raises(ValueError, match=message):
            load_trace(tmp_path / "x.csv", "wall")

    def test_sources(self, tmp_path: Path) -> None:
        """One of our traces can be measured on, four are overloaded."""
        sources = sources_in(TRACES)
        assert [noise.name for noise in sources.measurable] == [
            "quiet",
            "typical",
            "bimodal",
            "cloud",
            "c_loop cpu",
        ]
        assert [noise.name for noise in sources.overloaded] == [
            "c_chase cpu",
            "c_threads cpu",
            "py_json cpu",
            "sqlite_insert cpu",
        ]
        assert sources_in(tmp_path) == Sources()


class TestMachine:
    def test_one_line(self) -> None:
        """Each run takes the next item, whichever arm it is of."""
        machine = Machine(RISING, np.random.default_rng(0))
        a, b = machine.arm(), machine.arm(1.0)
        logs = [math.log(run()) for run in (a, b, b, a, a, a, b, a, b, b, a, b)]
        gains = [0, 1, 1, 0, 0, 0, 1, 0, 1, 1, 0, 1]
        assert logs == pytest.approx([i / 100 - gain for i, gain in enumerate(gains)])
        assert machine.runs == 12

    def test_order_matters(self) -> None:
        """On a machine that gets slower whoever runs later loses, and the other way round."""
        blocks = ComparisonScheme(COMPARISONS["mean-of-n"])
        pairs = ComparisonScheme(evolve(COMPARISONS["mean-of-n"], design="pairs"))

        def kept(scheme: Scheme, noise: Noise) -> int:
            done = simulate(scheme, noise, Exactly(0), candidates=200, seed=1)
            return sum(trial.decided.keep for trial in done.trials)

        assert kept(blocks, RISING) == 0
        assert kept(blocks, FALLING) == 200
        assert 70 < kept(pairs, RISING) < 130
        assert 70 < kept(pairs, FALLING) < 130


class TestGains:
    def draw(self, gains: module.Gains, smallest: float | None = None) -> Floats:
        return np.array(gains(np.random.default_rng(0), 20_000, smallest))

    def test_exactly(self) -> None:
        """A share of the cost, as a natural log."""
        assert self.draw(Exactly(0.03)) == pytest.approx(-math.log(0.97))
        assert set(self.draw(Exactly(0))) == {0.0}

    def test_layout(self) -> None:
        """Normal around nothing."""
        gains = self.draw(Layout(0.018))
        assert abs(gains.mean()) < 5e-4
        assert gains.std() == pytest.approx(0.018, rel=0.03)

    def test_at_smallest(self) -> None:
        """What the campaign says."""
        assert set(self.draw(AtSmallest(), 0.07)) == {0.07}
        assert set(self.draw(AtSmallest())) == {0.0}

    def test_mixed(self) -> None:
        """The mixture, and its ranges."""
        gains = self.draw(Mixed())
        better, worse = gains[gains > 0], gains[gains < 0]
        assert (gains == 0).mean() == pytest.approx(0.65, abs=0.015)
        assert worse.size / gains.size == pytest.approx(0.23, abs=0.015)
        assert better.size / gains.size == pytest.approx(0.12, abs=0.015)
        saved = -np.expm1(-better)
        assert (saved.min(), saved.mean(), saved.max()) == pytest.approx(
            (0.01, 0.045, 0.08), abs=0.001
        )
        lost = np.expm1(-worse)
        assert (lost.min(), lost.mean(), lost.max()) == pytest.approx(
            (0.01, 0.055, 0.10), abs=0.001
        )


class Ran:
    """Which arms ran, in order."""

    def __init__(self) -> None:
        self.order = ""

    def arm(self, name: str, cost: float = 1.0) -> Sampler:
        def run() -> float:
            self.order += name
            return cost

        return run


class TestComparisonScheme:
    def test_stored(self) -> None:
        """One score is stored before the first candidate, and only a candidate that is adopted
        replaces it.
        """
        scheme = ComparisonScheme(COMPARISONS["single-run"])
        alone = simulate(scheme, FALLING, Exactly(0), candidates=5, seed=0)
        claims = [trial.decided.estimate for trial in alone.trials]
        assert claims == pytest.approx([0.01, 0.02, 0.03, 0.04, 0.05])
        adopted = simulate(scheme, FALLING, Exactly(0), candidates=5, seed=0, adopting=True)
        claims = [trial.decided.estimate for trial in adopted.trials]
        assert claims == pytest.approx([0.01] * 5)
        assert (adopted.advance, adopted.runs) == (1, 6)

    def test_stored_score_stays(self) -> None:
        """What is not kept leaves the score alone, and the incumbent is not run again."""
        ran = Ran()
        campaign = ComparisonScheme(COMPARISONS["single-run"]).open(ran.arm("a", 10.0), 0, {})
        assert not campaign.judge(ran.arm("a"), ran.arm("b", 11.0)).keep
        assert not campaign.judge(ran.arm("a"), ran.arm("b", 10.5)).keep
        kept = campaign.judge(ran.arm("a"), ran.arm("b", 9.0))
        assert (kept.keep, kept.runs) == (True, 1)
        assert kept.estimate == pytest.approx(math.log(10 / 9))
        assert ran.order == "abbb"

    def test_blocks(self) -> None:
        """All runs of the incumbent, then all of the candidate; every time anew."""
        ran = Ran()
        campaign = ComparisonScheme(COMPARISONS["no-overlap"]).open(ran.arm("never"), 0, {})
        for _ in range(2):
            decided = campaign.judge(ran.arm("a", 2.0), ran.arm("b", 1.0))
            assert (decided.keep, decided.runs) == (True, 6)
            assert decided.estimate == pytest.approx(math.log(2))
        assert ran.order == "aaabbb" * 2
        assert campaign.replay() is None
        assert campaign.smallest_effect is None

    def test_pairs(self) -> None:
        """One of each in turn, in an order by coin that the seed decides."""
        rule = evolve(COMPARISONS["benchstat"], design="pairs")

        def order(seed: int) -> str:
            ran = Ran()
            campaign = ComparisonScheme(rule).open(ran.arm("never"), seed, {})
            for _ in range(2):
                assert campaign.judge(ran.arm("a"), ran.arm("b")) == Decided(False, 20)
            return ran.order

        found = [order(seed) for seed in (1, 1, 2)]
        assert found[0] == found[1] != found[2]
        for one in found:
            pairs = [one[i : i + 2] for i in range(0, 40, 2)]
            assert set(pairs) == {"ab", "ba"}
            assert pairs[:10] != pairs[10:]

    def test_same_values_same_decision(self) -> None:
        """A comparison is a function of the costs: on the same ones it decides the same."""
        rng = np.random.default_rng(0)
        for rule in COMPARISONS.values():
            a, b = np.exp(rng.normal(0, 0.1, (2, rule.runs))).tolist()
            assert rule.judge(a, b) == rule.judge(list(a), list(b))


# ---- a protocol by hand ----


@frozen
class HandVerdict:
    keep: bool
    effect: float
    stage: str


@define
class HandStepper:
    """Asks for these orders, and keeps what costs less in the mean."""

    orders: list[str]
    told: list[tuple[float, float]] = field(factory=list)

    def next_pair(self) -> str | None:
        return self.orders[len(self.told)] if len(self.told) < len(self.orders) else None

    def tell(self, a: float, b: float) -> None:
        self.told.append((a, b))

    @property
    def verdict(self) -> HandVerdict:
        effect = sum(math.log(a / b) for a, b in self.told) / len(self.told)
        return HandVerdict(effect > 0, effect, "confirm" if effect > 0.1 else "screen")


class HandCampaign:
    made: list["HandCampaign"] = []  # noqa: RUF012

    def __init__(self, params: dict[str, Any], seed: int) -> None:
        self.params, self.seed, self.plan = params, seed, {"mei_eff": 0.07}
        self.steppers: list[HandStepper] = []
        self.made.append(self)

    def calibration(self) -> HandStepper:
        return HandStepper(["AB"] * 3)

    def candidate(self) -> HandStepper:
        self.steppers.append(HandStepper(["AB", "BA", "BA"]))
        return self.steppers[-1]


class TestProtocolScheme:
    def test_drives(self) -> None:
        """Runs in the order that is asked for, tells in the order of the arms."""
        scheme = ProtocolScheme(HandCampaign, {"mei": 0.02, "cap": 30})
        done = simulate(
            scheme, RISING, Exactly(0), candidates=2, seed=0, params={"mei": 0.05, "delta0": 0.02}
        )
        campaign = HandCampaign.made[-1]
        assert campaign.params == {"mei": 0.05, "delta0": 0.02, "cap": 30}
        assert (done.advance, done.runs, done.smallest_effect) == (6, 6 + 12, 0.07)
        logs = [[(math.log(a), math.log(b)) for a, b in s.told] for s in campaign.steppers]
        expected = [[(6, 7), (9, 8), (11, 10)], [(12, 13), (15, 14), (17, 16)]]
        assert logs == [[pytest.approx((a / 100, b / 100)) for a, b in e] for e in expected]

    @pytest.mark.parametrize(
        ("share", "keep", "screened"),
        [(0.2, True, True), (0.05, True, False), (-0.1, False, False)],
    )
    def test_decided(self, share: float, keep: bool, screened: bool) -> None:
        """The verdict's effect is what is claimed, if it is kept."""
        scheme = ProtocolScheme(HandCampaign)
        (trial,) = simulate(scheme, SILENCE, Exactly(share), candidates=1, seed=0).trials
        decided = trial.decided
        assert (decided.keep, decided.runs, decided.screened) == (keep, 6, screened)
        assert decided.estimate == (pytest.approx(-math.log1p(-share)) if keep else None)
        assert trial.replayed is None

    def test_without_records(self) -> None:
        """A protocol that records nothing cannot be replayed."""
        done = simulate(
            ProtocolScheme(HandCampaign), SILENCE, Exactly(0), candidates=1, seed=0, replaying=True
        )
        assert done.trials[0].replayed is None


class TestOurs:
    def replayed(self) -> list[module.Replayed | None]:
        done = simulate(
            ProtocolScheme(protocol), QUIET, Mixed(), candidates=6, seed=3, replaying=True
        )
        return [trial.replayed for trial in done.trials]

    def test_replay(self) -> None:
        """Our protocol decides the same from its events, and never fails under other parameters."""
        assert self.replayed() == [module.Replayed(equal=True, failed=0)] * 6

    def test_other_decision(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Anything that is decided otherwise is found."""

        def other(rule: str, params: RuleParams, events: Sequence[Event]) -> VerdictReached:
            verdict = decide(rule, params, events)
            assert isinstance(verdict, VerdictReached)
            return evolve(verdict, reason="other")

        monkeypatch.setattr(module, "decide", other)
        monkeypatch.setattr(module, "_OTHER_PARAMS", ())
        assert self.replayed() == [module.Replayed(equal=False, failed=0)] * 6

    def test_no_decision(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """What is neither a verdict nor a number of pairs is a failure."""
        monkeypatch.setattr(module, "decide", lambda rule, params, events: None)
        monkeypatch.setattr(module, "_OTHER_PARAMS", [{"mei": 0.02}, {"mei": 0.1}])
        assert self.replayed() == [module.Replayed(equal=False, failed=2)] * 6

    def test_raising(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """So is what raises, here for parameters that make no sense."""
        monkeypatch.setattr(module, "_OTHER_PARAMS", [{"mei": 0.001}, {"mei": 0.1}])
        assert self.replayed() == [module.Replayed(equal=True, failed=1)] * 6


class TestSimulate:
    def test_reproducible(self) -> None:
        """The same seed gives the same, another seed something else."""
        scheme = ComparisonScheme(COMPARISONS["benchstat"])

        def run(seed: int | Sequence[int]) -> module.Simulated:
            return simulate(scheme, CLOUD, Mixed(), candidates=30, seed=seed, adopting=True)

        assert run(1) == run(1) != run(2)
        assert run([1, 2]) == run([1, 2]) != run([2, 1])

    def test_every_scheme_meets_the_same(self) -> None:
        """The gains do not depend on the scheme."""
        found = [
            [t.gain for t in simulate(scheme, CLOUD, Mixed(), candidates=50, seed=1).trials]
            for scheme in (Fixed(True), ComparisonScheme(COMPARISONS["benchstat"]))
        ]
        assert found[0] == found[1]

    def test_adopting(self) -> None:
        """What is kept is what the next one is compared with."""
        scheme = ComparisonScheme(COMPARISONS["mean-of-n"])
        for adopting in (False, True):
            done = simulate(scheme, SILENCE, Exactly(0.01), candidates=4, seed=0, adopting=adopting)
            claims = [trial.decided.estimate for trial in done.trials]
            assert claims == pytest.approx([ONE_PERCENT] * 4)

    def test_counts(self) -> None:
        """A scheme that says another number of runs than it made is refused."""

        class Miscounting(Fixed):
            def judge(self, run_a: Sampler, run_b: Sampler) -> Decided:
                return evolve(super().judge(run_a, run_b), runs=3)

        with pytest.raises(ValueError, match="says 3 runs, it made 2"):
            simulate(Miscounting(True), QUIET, Exactly(0), candidates=1, seed=0)

    def test_example(self) -> None:
        """The example of the module's description runs."""
        assert doctest.testmod(module, extraglobs=vars(module)) == (0, 4)


# ---- figures ----


def by_what(rows: Sequence[Row]) -> dict[tuple[str, str], Row]:
    return {(row.figure, row.what): row for row in rows}


@pytest.fixture(scope="module")
def sources() -> Sources:
    return sources_in(TRACES)


class TestScore:
    def test_always(self, sources: Sources) -> None:
        """What keeps everything fails wherever keeping is wrong, and only there."""
        rows = score(Fixed(True), sources=sources, scale=0.01)
        found = {(row.figure, row.what): row.reached for row in rows}
        assert {key for key, reached in found.items() if reached is False} == {
            ("H1", "kept"),
            ("H1", "kept, worst source"),
            ("H1", "passed the screen, worst source"),
            ("H2", "kept by a campaign"),
            ("H7", "kept though not better"),
            ("H7", "gained of what there was"),
            ("H7", "claims off the truth"),
            ("H8", "kept of what changes nothing, worst source"),
            ("H9", "kept, worst source"),
        }
        values = {key: row.value for key, row in by_what(rows).items()}
        assert (
            values["H1", "kept"] == values["H3", "kept"] == values["H4", "kept, worst source"] == 1
        )
        assert values["H2", "kept by a campaign"] == 200
        assert values["H7", "kept though not better"] == pytest.approx(176, abs=8)
        assert values["H7", "runs of a campaign"] == 400
        assert values["H6", "claims off the truth, worst source"] == pytest.approx(0.0151, abs=1e-4)

    def test_never(self, sources: Sources) -> None:
        """What keeps nothing fails wherever something is to be found, and claims nothing."""
        rows = score(Fixed(False), sources=sources, scale=0.01)
        found = {(row.figure, row.what): row.reached for row in rows}
        assert {key for key, reached in found.items() if reached is False} == {
            ("H3", "kept"),
            ("H3", "kept, worst source"),
            ("H4", "kept, worst source"),
            ("H7", "gained of what there was"),
            ("H8", "campaigns that find what they promise"),
            ("H9", "kept of 5 %, worst source"),
        }
        assert {key for key, reached in found.items() if reached is None} == {
            ("H6", "claims off the truth, worst source"),
            ("H7", "claims off the truth"),
            ("H10", "other than before"),
            ("H10", "failed under others"),
        }

    def test_every_figure(self, sources: Sources) -> None:
        """Each figure has rows, in order; without overloaded sources H8 says nothing."""
        rows = score(Fixed(True), sources=sources, scale=0.01)
        assert list(dict.fromkeys(row.figure for row in rows)) == list(FIGURES)
        short = score(Fixed(True), scale=0.01)
        assert set(FIGURES) - {row.figure for row in short} == {"H8"}
        assert {source for row in short for source in row.by_source} == {m.name for m in MODELS}

    def test_without_noise(self) -> None:
        """Where nothing is random even one run finds all there is, and claims the truth."""
        rows = score(
            ComparisonScheme(COMPARISONS["single-run"]),
            sources=Sources(models=(SILENCE,), overloaded=(SILENCE,)),
            scale=0.02,
        )
        values = {key: row.value for key, row in by_what(rows).items()}
        assert values["H1", "kept"] == values["H2", "kept by a campaign"] == 0
        assert values["H3", "kept"] == values["H4", "kept, worst source"] == 1
        assert values["H7", "gained of what there was"] == pytest.approx(1)
        assert values["H7", "kept though not better"] == 0
        assert values["H7", "claims off the truth"] == pytest.approx(0, abs=1e-9)
        assert values["H7", "runs of a campaign"] == 201
        assert values["H8", "campaigns that find what they promise"] is None
        assert values["H9", "kept, worst source"] == pytest.approx(0.5, abs=0.25)

    def test_chosen_figures(self) -> None:
        """A figure is the same alone as among others."""
        scheme = ComparisonScheme(COMPARISONS["mean-of-n"])
        alone = score(scheme, figures=["H4"], scale=0.05)
        among = score(scheme, figures=["H2", "H4"], scale=0.05)
        assert alone == [row for row in among if row.figure == "H4"]
        assert {row.figure for row in alone} == {"H4"}

    def test_known_rule(self) -> None:
        """The mean of three against three keeps half of what changes nothing."""
        rows = score(ComparisonScheme(COMPARISONS["mean-of-n"]), figures=["H1"], scale=0.1)
        kept, worst, screened = rows
        assert kept.value == pytest.approx(0.5, abs=0.04)
        assert list(kept.by_source) == ["quiet", "typical", "bimodal", "cloud"]
        assert worst.value == max(kept.by_source.values())
        assert screened.value is screened.reached is None

    def test_jobs(self, sources: Sources) -> None:
        """The number of processes changes nothing but the time; progress is told."""
        scheme = ComparisonScheme(COMPARISONS["benchstat"])
        told: list[tuple[int, int]] = []

        def run(jobs: int) -> list[Row]:
            return score(
                scheme,
                sources=sources,
                figures=["H4", "H8"],
                scale=0.1,
                seed=5,
                jobs=jobs,
                progress=lambda done, of: told.append((done, of)),
            )

        one, two = run(1), run(2)
        assert one == two
        assert told[: len(told) // 2] == told[len(told) // 2 :]
        assert told[-1] == (len(told) // 2, len(told) // 2)
        assert one != score(scheme, sources=sources, figures=["H4", "H8"], scale=0.1, seed=6)

    def test_work(self) -> None:
        """What a process does: its campaigns, one after the other, each sent as it ends."""
        receiver, sender = multiprocessing.Pipe(duplex=False)
        tasks = module._tasks(Fixed(True), ["5 %"], Sources(models=(QUIET,)), 0.1, 0)
        module._work(tasks, sender)
        assert [receiver.recv() for _ in tasks] == [task.run() for task in tasks]

    def test_failing_process(self, capfd: pytest.CaptureFixture[str]) -> None:
        """A process that fails says why, and is not waited for."""
        scheme = ProtocolScheme(math.hypot)  # type: ignore[arg-type]
        with pytest.raises(RuntimeError, match="ended before its work was done"):
            score(scheme, figures=["H4"], scale=0.05, jobs=2)
        assert "TypeError" in capfd.readouterr().err

    def test_unknown_figure(self) -> None:
        """There are ten figures."""
        with pytest.raises(ValueError, match="no figure H0, H11; there are H1, H2"):
            score(Fixed(True), figures=["H0", "H1", "H11"])


class TestTable:
    @pytest.fixture
    def table(self, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
        def run(*arguments: str) -> tuple[int, str]:
            code = verdicts.main([*arguments, "--jobs", "1"])
            return code, capsys.readouterr().out

        return run

    def test_quick(self, table: Callable[..., tuple[int, str]]) -> None:
        """Rules side by side, with the bar; a quick table judges nothing."""
        code, text = table("--quick", "--only", "H4", "--rules", "two-stage,mean-of-n")
        assert code == 0
        assert "two-stage" in text
        assert "mean-of-n" in text
        assert ">= 0.97" in text
        assert "met" not in text.split()

    def test_json(self, table: Callable[..., tuple[int, str]]) -> None:
        """One object on stdout."""
        code, text = table("--quick", "--json", "--only", "H4", "--rules", "single-run,benchstat")
        report = json.loads(text)
        assert code == 0
        assert report["quick"] is True
        assert list(report["rules"]) == ["single-run", "benchstat"]
        (row,) = report["rules"]["benchstat"]
        assert row["figure"] == "H4"
        assert row["at_least"] == 0.97
        assert row["reached"] in (True, False)
        assert set(row["by_source"]) == {noise.name for noise in sources_in(TRACES).measurable}

    @pytest.mark.parametrize(("keep", "code"), [(True, 0), (False, 1)])
    def test_misses(
        self,
        keep: bool,
        code: int,
        table: Callable[..., tuple[int, str]],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """A bar that ours misses is an error in a full table."""
        monkeypatch.setitem(verdicts.SCHEMES, verdicts.OURS, Fixed(keep))
        found, text = table("--only", "H4", "--rules", "two-stage")
        assert found == code
        assert ("met" in text.split()) == keep
        assert ("missed" in text.split()) == (not keep)
        assert table("--quick", "--only", "H4", "--rules", "two-stage")[0] == 0

    @pytest.mark.parametrize("wrong", [("--rules", "other"), ("--only", "H11")])
    def test_usage(self, wrong: tuple[str, str], table: Callable[..., tuple[int, str]]) -> None:
        """Unknown rules and figures are wrong usage."""
        with pytest.raises(SystemExit, match="2"):
            table(*wrong)
