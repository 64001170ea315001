"""The answer from columns is that of the fold, whatever is in the log."""

import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st

from aiopt import api, quick_rescore
from aiopt.batch_rescoring import BatchRescored, Source, rescore_columns
from aiopt.codec import encode
from aiopt.columnar import NEEDED, Gathering, Unprojectable
from aiopt.errors import ConfigError, LogError
from aiopt.events import (
    ArtifactBuilt,
    CampaignStarted,
    Event,
    ExperimentFinished,
    ExperimentStarted,
    GateFailed,
    GatePassed,
    IncumbentChanged,
    LevelCharged,
    PairVoided,
    PatchRef,
    Recorded,
    RunMeasured,
    VerdictReached,
)
from aiopt.fitness import Fitness
from aiopt.ids import candidate_id
from aiopt.log import Log
from aiopt.replay import fold
from aiopt.rescoring import Rescored, rescore
from tests.benchmarks import large_log
from tests.factories import make
from tests.test_replay import BASE, Items, recorded

Coin = random.Random

ONE_METRIC: dict[str, Any] = {
    "metrics": {
        "cpu": {"role": "primary", "margin": 0.02},
        "rss": {"role": "guard", "margin": 0.03},
        "extra": {"direction": "higher"},
    },
    "workloads": {"mixed": {}},
    "ncal": 10,
    "ncal_guard": 6,
    "boot": 50,
}
MANY: dict[str, Any] = {
    **ONE_METRIC,
    "metrics": {
        "cpu": {"role": "primary"},
        "ops": {"role": "primary", "direction": "higher"},
        "rss": {"role": "guard", "margin": 0.03},
        "extra": {"limit": 6.0},
        "answer": {"kind": "digest"},
    },
    "workloads": {"mixed": {}, "other": {}, "guarded": {"guard": True}},
    "alpha2": 0.05,
}
COMPOSITE: dict[str, Any] = {
    **ONE_METRIC,
    "metrics": {**ONE_METRIC["metrics"], "extra": {"direction": "higher", "limit": 4.0}},
    "weights": {"cpu": 0.7, "rss": 0.3},
    "alpha2": 0.05,
    "planned": 5,
    "mei": 0.02,
}
WEIGHTS: tuple[dict[str, float] | None, ...] = (
    None,
    {"cpu": 1.0},
    {"rss": 0.3, "cpu": 0.7},
    {"extra": 0.1, "cpu": 0.2},
    {"cpu": 1.0, "extra": -2.0},
)


def genome_of(candidate: str) -> tuple[PatchRef, ...]:
    """The same candidate has the same patches, however often it is measured."""
    return (PatchRef(name=f"p{candidate}", digest=candidate.zfill(64)),)


class Writer:
    """Makes up the events of a campaign."""

    def __init__(self, coin: Coin, campaign: str, rule: dict[str, Any], first: int) -> None:
        self.coin, self.campaign, self.rule = coin, campaign, rule
        self.items: Items = [
            (campaign, make(CampaignStarted, base_commit=BASE, rule="two-stage", rule_params=rule))
        ]
        self.next = first
        self.charged = 0
        self.digits = coin.choice([3, 3, 4, 12])
        self.noise = coin.choice([0.0, 0.002, 0.01, 0.05])
        self.candidates = [candidate_id(BASE, ())]
        self.calibrations = [""]

    def stream(self) -> str:
        self.next += 1
        return f"exp-{self.next:04d}~1"

    def start(self, purpose: str, candidate: str, incumbent: str) -> str:
        stream = self.stream()
        genome = genome_of(candidate)
        begun = make(
            ExperimentStarted,
            campaign=self.campaign,
            number=self.next,
            purpose=purpose,
            candidate=candidate,
            incumbent=incumbent,
            genome=genome if purpose == "candidate" else (),
        )
        self.items.append((stream, begun))
        return stream

    def add(self, stream: str, *events: Event) -> None:
        self.items += [(stream, event) for event in events]

    def calibrate(self) -> None:
        stream = self.start("calibration", self.candidates[0], self.candidates[0])
        short = self.coin.random() < 0.1
        for workload in self.rule["workloads"]:
            for index in range(10 - short * self.coin.randrange(3)):
                self.pair(stream, "calibration", workload, index, 0.0, unusual=0.02)
        if self.coin.random() < 0.05:
            self.add(stream, GateFailed(gate="test", detail="exit 1"))
        if self.coin.random() < 0.9:
            self.add(stream, ExperimentFinished(outcome="measured"))
        self.calibrations.append(stream)

    def pair(
        self,
        stream: str,
        purpose: str,
        workload: str,
        index: int,
        gain: float,
        *,
        attempt: int = 0,
        unusual: float = 0.01,
        missing: str = "",
    ) -> None:
        arms = ["A", "B"]
        self.coin.shuffle(arms)
        if self.coin.random() < unusual:
            del arms[0]
        if self.coin.random() < unusual:
            arms.append(arms[0])
        for arm in arms:
            self.add(stream, self.run(purpose, workload, index, attempt, arm, gain, missing))
        if self.coin.random() < 0.03:
            pair = {"purpose": purpose, "workload": workload, "index": index, "attempt": attempt}
            self.add(stream, make(PairVoided, **pair))
            if self.coin.random() < 0.8 and attempt < 2:
                self.pair(
                    stream,
                    purpose,
                    workload,
                    index,
                    gain,
                    attempt=attempt + 1,
                    unusual=unusual,
                    missing=missing,
                )

    def run(
        self,
        purpose: str,
        workload: str,
        index: int,
        attempt: int,
        arm: str,
        gain: float,
        missing: str,
    ) -> RunMeasured:
        metrics: dict[str, tuple[float, ...]] = {}
        for name, base in (("cpu", 12.0), ("rss", 300.0), ("ops", 70.0), ("extra", 5.0)):
            if name == missing and arm == "B" and self.coin.random() < 0.5:
                continue
            better = gain if arm == "B" and name != "rss" else 0.0
            sign = 1 if name in ("ops", "extra") else -1
            value = base * 2.718281828 ** (sign * better + self.coin.gauss(0, self.noise))
            samples = [float(f"{value:.{self.digits}g}")]
            while self.coin.random() < 0.02:
                samples.append(samples[0] * self.coin.choice([1.0, 1.5]))
            metrics[name] = tuple(samples)
        if self.coin.random() < 0.002:
            metrics["cpu"] = self.coin.choice([(), (0.0,), (-1.0,)])
        answer = "43" if self.coin.random() < 0.002 else "42"
        return make(
            RunMeasured,
            purpose=purpose,
            workload=workload,
            index=index,
            attempt=attempt,
            arm=arm,
            metrics=metrics,
            texts={"answer": answer} if "answer" in self.rule["metrics"] else {},
        )

    def candidate(self) -> None:
        coin = self.coin
        incumbent = coin.choice(self.candidates[-2:])
        candidate = f"{coin.randrange(40):012d}" if coin.random() < 0.3 else f"{self.next:012x}"
        stream = self.start("candidate", candidate, incumbent)
        gate = coin.random()
        if gate < 0.05:
            self.add(stream, GateFailed(gate="build", detail="exit 2"))
        elif gate < 0.1:
            self.add(stream, make(ArtifactBuilt, digest="1", incumbent_digest="1"))
        else:
            self.add(stream, GatePassed(gate="test"))
        if coin.random() < 0.8:
            self.charged += 1
            calibration = coin.choice(self.calibrations[-2:])
            charge = make(LevelCharged, ordinal=self.charged, calibration=calibration)
            self.add(stream, charge)
        if gate >= 0.1:
            self.measure(stream)
        if coin.random() < 0.95:
            kinds = ("keep", "discard_no_effect", "discard_regression", "inconclusive", "invalid")
            kind = coin.choices(kinds, (3, 5, 2, 1, 1))[0]
            if kind == "keep":
                self.candidates.append(candidate)
                genome = genome_of(candidate)
                changed = make(IncumbentChanged, candidate=candidate, genome=genome)
                self.items.append((self.campaign, changed))
            self.add(stream, make(VerdictReached, kind=kind, reason=f"why {self.next}"))
        self.add(stream, ExperimentFinished(outcome="judged"))

    def measure(self, stream: str) -> None:
        coin = self.coin
        gain = coin.choice([0.0, 0.0, 0.0, 0.03, 0.1, 0.3, -0.01, -0.05, -0.3])
        missing = coin.choice(["", "", "", "", "extra", "cpu", "rss"])
        size = coin.choice([0, 1, 3, 4, 6, 9, 14, 25, 40])
        for workload in self.rule["workloads"]:
            for index in range(max(0, size - coin.choice([0, 0, 1]))):
                self.pair(stream, "screen", workload, index, gain, missing=missing)
        confirm = coin.choice([0, 0, 7, 20, 40, 80]) if gain > 0 else coin.choice([0, 0, 0, 0, 10])
        for workload in self.rule["workloads"]:
            for index in range(confirm):
                self.pair(stream, "confirm", workload, index, gain, missing=missing)
            for index in range(coin.choice([0, 0, 20]) if confirm else 0):
                self.pair(stream, "guard", workload, index, gain, missing=missing)


def made_up(coin: Coin, candidates: int = 25) -> list[Recorded]:
    """A log of one campaign or two, which no rule has looked at."""
    items: Items = []
    for number in range(coin.choice([1, 2])):
        rule = coin.choice([ONE_METRIC, MANY, COMPOSITE])
        writer = Writer(coin, f"cmp-{number:04d}~1", rule, 100 * number)
        if coin.random() < 0.95:
            writer.calibrate()
        for _ in range(candidates):
            if coin.random() < 0.04:
                writer.calibrate()
            writer.candidate()
        items += writer.items
    return recorded(items)


def source_of(log: list[Recorded]) -> Source:
    gathering = Gathering()
    for each in log:
        name, _, payload = encode(each.event)
        if name in NEEDED:
            gathering.add(each.seq, each.stream, name, payload)
    return Source(
        gathering.columns(),
        lambda stream: [each.event for each in log if each.stream == stream],
        lambda seq: log[seq - 1].event,
    )


@given(st.integers(0, 2**32))
@settings(max_examples=40)
def test_the_answer_is_that_of_the_fold(seed: int) -> None:
    """With ties, voided pairs and pairs that were cut off, missing metrics, several workloads,
    primaries and campaigns, several samples, limits, and chains of what was kept.
    """
    log = made_up(random.Random(seed))
    state, source = fold(log), source_of(log)
    for stream, campaign in state.campaigns.items():
        for weights in WEIGHTS:
            expected = rescore(campaign, weights=weights)
            found = rescore_columns(source, stream, weights=weights)
            assert found.whole() == expected
            assert len(found) == len(expected.decisions)
            flips = found.decided(found.flips.tolist())
            assert flips == expected.flips
            unknown = [d for d in expected.decisions if d.needs_more and not d.flipped]
            assert found.decided(found.open.tolist()) == tuple(unknown)
            strangers = [d.experiment for d in expected.decisions if not d.same_premise]
            assert [found.stream(row) for row in found.strangers.tolist()] == strangers


def test_what_is_made_up_has_everything_in_it() -> None:
    """Else the test above says less than it seems to."""
    kinds: set[str] = set()
    exact = ranked = missing = confirmed = 0
    for seed in range(12):
        log = made_up(random.Random(seed))
        source = source_of(log)
        for stream in source.columns.campaigns:
            found = rescore_columns(source, stream, weights={"cpu": 0.5, "extra": 0.5})
            whole = found.whole()
            exact += int(found.decisions.exact.sum())
            ranked += len(whole.ranking)
            kinds |= {decision.replayed for decision in whole.decisions}
            missing += sum(bool(each.step.missing) for each in whole.ranking)
            confirmed += sum(each.step.stage == "confirm" for each in whole.ranking)
    assert kinds == {
        *("keep", "discard_regression", "discard_no_effect", "inconclusive"),
        *("no_change", "invalid", "needs_more"),
    }
    assert 20 < exact < ranked
    assert missing > 20
    assert confirmed > 20


# ---- a longer log, as the rule writes it ----


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("log") / "events.db"
    large_log.write(path, 4_000, campaigns=2, seed=7)
    return path


def quick(log: Path, weights: Mapping[str, float] | None = None) -> BatchRescored:
    found = quick_rescore.quick_rescore(log, choose=lambda streams: streams[0], weights=weights)
    assert found is not None
    return found


@pytest.fixture
def however_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quick_rescore, "LEAST", 0)


@pytest.mark.slow
@pytest.mark.usefixtures("however_short")
def test_the_difference_of_two_weightings_is_that_of_the_fold(log: Path) -> None:
    ours: list[dict[str, str]] = []
    theirs: list[dict[str, str]] = []
    state = api.load_state(log)
    campaign = next(iter(state.campaigns.values()))
    for weights in ({"cpu_seconds": 1.0}, {"p99_us": 0.6, "rss_mb": 0.4}):
        found, expected = quick(log, weights), rescore(campaign, weights=weights)
        assert found.whole() == expected
        for each, result in ((ours, found.whole()), (theirs, expected)):
            each.append({d.experiment: d.replayed for d in result.decisions})
    changed = [{e for e in a if a[e] != b[e]} for a, b in (ours, theirs)]
    assert changed[0] == changed[1]
    assert len(changed[0]) > 20


@pytest.mark.usefixtures("however_short")
def test_the_top_is_the_top_of_the_whole(log: Path) -> None:
    found = quick(log)
    whole = found.whole()
    assert found.ranked(found.order[:3].tolist()) == whole.ranking[:3]
    assert whole.flips == ()
    assert whole.parts_at is None
    assert not whole.post_hoc
    assert found.reasons(found.unmeasured[:2].tolist()) == whole.unranked[:2]


def test_rescore_takes_the_quick_way_where_it_can(
    log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = api.rescore(log, weights={"p99_us": 1.0})
    monkeypatch.setattr(quick_rescore, "LEAST", 0)
    asked: list[Rescored] = []
    whole = BatchRescored.whole

    def watched(self: BatchRescored) -> Rescored:
        asked.append(whole(self))
        return asked[-1]

    monkeypatch.setattr(BatchRescored, "whole", watched)
    assert api.rescore(log, weights={"p99_us": 1.0}) == slow
    assert asked == [slow]
    api.rescore(log, fitness="seed-causal")
    api.rescore(log, changes={"mei": 0.04})
    api.rescore(log, rule="signed-rank")
    assert len(asked) == 1


@pytest.mark.usefixtures("however_short")
def test_errors_are_those_of_the_fold(log: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such metric"):
        api.rescore(log, weights={"speed": 1.0})
    with pytest.raises(ConfigError, match="is not there; there are cmp-0001"):
        api.rescore(log, campaign="cmp-0009")
    with pytest.raises(ConfigError, match="not measured in this campaign"):
        api.rescore(log, weights={"perf:self_share": 1.0})
    with pytest.raises(LogError, match="no log here"):
        api.rescore(tmp_path / "none.db")
    with Log.open(tmp_path / "empty.db"):
        pass
    with pytest.raises(ConfigError, match="no campaign in this log"):
        api.rescore(tmp_path / "empty.db")


def test_columns_for_a_notebook(log: Path, tmp_path: Path) -> None:
    columns = api.columns(log)
    assert len(columns) == len(columns["cpu_seconds"]) >= 4_000
    with pytest.raises(LogError, match="no log here"):
        api.columns(tmp_path / "none.db")
    with Log.open(tmp_path / "odd.db") as odd:
        odd.append([("cmp-0001~1", make(CampaignStarted))] * 2)
    with pytest.raises(LogError, match="cannot be read by columns"):
        api.columns(tmp_path / "odd.db")


# ---- what only the fold can judge ----


def begun(rule: dict[str, Any] = ONE_METRIC, name: str = "two-stage") -> Writer:
    writer = Writer(random.Random(1), "cmp-0001~1", rule, 0)
    stream, event = writer.items[0]
    assert isinstance(event, CampaignStarted)
    writer.items[0] = (stream, evolve(event, rule=name))
    writer.noise, writer.digits = 0.01, 12
    return writer


def calibrated() -> Writer:
    writer = begun()
    stream = writer.start("calibration", "base", "base")
    for index in range(10):
        writer.pair(stream, "calibration", "mixed", index, 0.0, unusual=0.0)
    writer.add(stream, ExperimentFinished(outcome="measured"))
    return writer


def judged(writer: Writer, *events: Event) -> str:
    stream = writer.start("candidate", "one", candidate_id(BASE, ()))
    writer.add(stream, *events, make(VerdictReached, kind="discard_no_effect"))
    return stream


def answer(writer: Writer) -> Rescored:
    log = recorded(writer.items)
    found = rescore_columns(source_of(log), writer.campaign)
    (campaign,) = fold(log).campaigns.values()
    assert found.whole() == rescore(campaign)
    return found.whole()


def test_another_rule_is_left_to_the_fold() -> None:
    writer = begun(name="signed-rank")
    judged(writer)
    with pytest.raises(Unprojectable, match="two-stage"):
        answer(writer)


def test_no_decision_yet() -> None:
    with pytest.raises(Unprojectable, match="no decision"):
        answer(calibrated())


def test_a_metric_that_is_called_like_the_composite() -> None:
    metrics = {**ONE_METRIC["metrics"], "composite": {}}
    writer = begun({**ONE_METRIC, "metrics": metrics})
    judged(writer)
    with pytest.raises(Unprojectable, match="composite"):
        answer(writer)


STRANGE: dict[str, Callable[[Writer, str], None]] = {
    "a candidate with a calibration's pairs": lambda writer, candidate: writer.pair(
        candidate, "calibration", "mixed", 0, 0.0
    ),
    "a candidate that voids a calibration's pair": lambda writer, candidate: writer.add(
        candidate, make(PairVoided, purpose="calibration")
    ),
    "a calibration with a candidate's pairs": lambda writer, candidate: writer.pair(
        "exp-0001~1", "screen", "mixed", 0, 0.0
    ),
    "a calibration that was charged": lambda writer, candidate: writer.add(
        "exp-0001~1", make(LevelCharged, calibration="")
    ),
    "a number below zero": lambda writer, candidate: writer.pair(
        candidate, "screen", "mixed", -1, 0.0
    ),
}


@pytest.mark.parametrize("change", STRANGE.values(), ids=STRANGE)
def test_what_is_strange_is_left_to_the_fold(change: Callable[[Writer, str], None]) -> None:
    writer = calibrated()
    candidate = judged(writer)
    answer(writer)
    change(writer, candidate)
    with pytest.raises(Unprojectable):
        answer(writer)


def test_no_objective_has_a_value_in_the_calibration() -> None:
    writer = begun()
    stream = writer.start("calibration", "base", "base")
    for index in range(10):
        writer.pair(stream, "calibration", "mixed", index, 0.0, unusual=0.0)
    last, event = writer.items[-1]
    assert isinstance(event, RunMeasured)
    writer.items[-1] = (last, evolve(event, metrics={"rss": (1.0,)}))
    writer.add(stream, ExperimentFinished(outcome="measured"))
    judged(writer)
    assert [d.replayed for d in answer(writer).decisions] == ["inconclusive"]


def test_runs_of_a_workload_that_is_no_part_of_the_rule() -> None:
    writer = calibrated()
    candidate = judged(writer)
    writer.pair(candidate, "screen", "elsewhere", 0, 0.1, unusual=0.0)
    result = answer(writer)
    assert result.unranked == ((candidate, "no complete pair"),)


def test_a_confirmation_without_a_valid_pair_leaves_no_fitness() -> None:
    writer = calibrated()
    candidate = judged(writer)
    for index in range(4):
        writer.pair(candidate, "screen", "mixed", index, 0.0, unusual=0.0)
    assert isinstance(answer(writer).ranking[0].step, Fitness)
    writer.add(candidate, writer.run("confirm", "mixed", 0, 0, "A", 0.0, ""))
    assert answer(writer).unranked == ((candidate, "no complete pair"),)


def test_a_metric_that_no_run_has() -> None:
    """Neither its limit nor its weight says anything, and the ranking tells of that."""
    writer = begun({**COMPOSITE, "weights": {"cpu": 0.7, "extra": 0.3}})
    stream = writer.start("calibration", "base", "base")
    for index in range(10):
        writer.pair(stream, "calibration", "mixed", index, 0.0, unusual=0.0)
    writer.add(stream, ExperimentFinished(outcome="measured"))
    candidate = judged(writer)
    for index in range(4):
        writer.pair(candidate, "screen", "mixed", index, 0.2, unusual=0.0)
    writer.items = [(stream, _without_extra(event)) for stream, event in writer.items]
    log, weights = recorded(writer.items), {"cpu": 0.7, "extra": 0.3}
    found = rescore_columns(source_of(log), writer.campaign, weights=weights).whole()
    (campaign,) = fold(log).campaigns.values()
    assert found == rescore(campaign, weights=weights)
    assert (found.compared_by, found.lacking) == (("cpu",), {"extra": 1})


def _without_extra(event: Event) -> Event:
    if not isinstance(event, RunMeasured):
        return event
    return evolve(event, metrics={n: v for n, v in event.metrics.items() if n != "extra"})
