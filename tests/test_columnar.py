"""Columns say of runs and experiments what the events say."""

import math
from collections.abc import Sequence
from statistics import median
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiopt.codec import encode
from aiopt.columnar import (
    CHUNK,
    OUTCOMES,
    PAIR_PURPOSES,
    PURPOSES,
    RUN,
    TEXTS,
    VERDICTS,
    Columns,
    Gathering,
    Names,
    Unprojectable,
    joined,
)
from aiopt.events import (
    ArtifactBuilt,
    CampaignStarted,
    Event,
    ExperimentFinished,
    ExperimentStarted,
    GateFailed,
    LevelCharged,
    MachineUnfit,
    PairVoided,
    RunMeasured,
    VerdictReached,
)
from tests.factories import make

Items = Sequence[tuple[str, Event]]

CAMPAIGN, CALIBRATION, CANDIDATE = "cmp-0001~1", "exp-0001~1", "exp-0002~1"

BEGIN: list[tuple[str, Event]] = [
    (CAMPAIGN, make(CampaignStarted)),
    (CALIBRATION, make(ExperimentStarted, campaign=CAMPAIGN, purpose="calibration", genome=())),
    (CANDIDATE, make(ExperimentStarted, campaign=CAMPAIGN, purpose="candidate", candidate="b")),
]


def add(gathering: Gathering, items: Items, first: int = 1) -> None:
    for seq, (stream, event) in enumerate(items, first):
        name, _, payload = encode(event)
        gathering.add(seq, stream, name, payload)
        gathering.last_seq = seq


def gathered(items: Items) -> Columns:
    gathering = Gathering()
    add(gathering, items)
    return gathering.columns()


def same(one: Columns, other: Columns) -> bool:
    """Whether both say the same, however their runs are cut into chunks."""
    return (
        one.last_seq == other.last_seq
        and set(one.metrics) == set(other.metrics)
        and all(np.array_equal(one[name], other[name], equal_nan=True) for name in one.metrics)
        and all(np.array_equal(one.run(name), other.run(name)) for name in RUN)
        and one.workloads == other.workloads
        and (one.campaigns, one.began) == (other.campaigns, other.began)
        and one.candidates == other.candidates
        and bool(np.array_equal(one.experiments, other.experiments))
        and {name: [*one.texts[name]] for name in TEXTS}
        == {name: [*other.texts[name]] for name in TEXTS}
        and np.array_equal(one.voids, other.voids)
    )


samples = st.lists(st.floats(0.001, 1e6), max_size=3).map(tuple)
runs = st.builds(
    make,
    st.just(RunMeasured),
    purpose=st.sampled_from(PAIR_PURPOSES),
    workload=st.sampled_from(["mixed", "other"]),
    index=st.integers(0, 50),
    attempt=st.integers(0, 3),
    arm=st.sampled_from("AB"),
    position=st.sampled_from([1, 2]),
    metrics=st.dictionaries(st.sampled_from("abc"), samples, max_size=3),
    texts=st.dictionaries(st.sampled_from("xy"), st.sampled_from(["1", "2"]), max_size=2),
)
logs = st.lists(st.tuples(st.sampled_from([CALIBRATION, CANDIDATE]), runs), max_size=8)


@given(logs)
@settings(max_examples=60)
def test_every_run_is_a_row(drawn: list[tuple[str, RunMeasured]]) -> None:
    columns = gathered([*BEGIN, *drawn])
    assert len(columns) == len(drawn)
    for row, (stream, run) in enumerate(drawn):
        assert columns.texts["stream"][columns["experiment"][row]] == stream
        assert columns.workloads[columns["workload"][row]] == run.workload
        assert PAIR_PURPOSES[columns["purpose"][row]] == run.purpose
        assert "AB"[columns["arm"][row]] == run.arm
        numbers = {name: int(columns[name][row]) for name in ("index", "attempt", "position")}
        assert numbers == {name: getattr(run, name) for name in numbers}
        assert columns["several"][row] == any(len(v) != 1 for v in run.metrics.values())
        for name in columns.metrics:
            values = run.metrics.get(name, ())
            found = columns[name][row]
            assert found == median(values) if values else math.isnan(found)
        for other, (_, that) in enumerate(drawn):
            alike = columns["answers"][row] == columns["answers"][other]
            assert alike == (run.texts == that.texts)


@given(logs, st.integers(0, 11))
@settings(max_examples=40)
def test_gathering_in_parts_is_gathering_at_once(
    drawn: list[tuple[str, RunMeasured]], cut: int
) -> None:
    items = [*BEGIN, *drawn]
    gathering = Gathering()
    add(gathering, items[:cut])
    gathering.columns()
    add(gathering, items[cut:], len(items[:cut]) + 1)
    assert same(gathering.columns(), gathered(items))


def run(**changes: Any) -> RunMeasured:
    return make(RunMeasured, **{"metrics": {"a": (1.0,)}, "texts": {}, **changes})


def test_chunks_become_full_and_stay_as_they_are() -> None:
    gathering = Gathering()
    add(gathering, BEGIN)
    add(gathering, [(CANDIDATE, run(index=n)) for n in range(CHUNK - 1)], 10)
    gathering.settle()
    assert not gathering.sealed
    add(gathering, [(CANDIDATE, run(index=CHUNK - 1, metrics={"b": (2.0,)}))], CHUNK + 10)
    (full,) = gathering.sealed
    assert len(full) == CHUNK
    assert full.metrics == ("a", "b")
    add(gathering, [(CANDIDATE, run(index=CHUNK))], CHUNK + 11)
    columns = gathering.columns()
    assert columns.chunks[0] is full
    assert columns["index"].tolist() == list(range(CHUNK + 1))
    assert columns["b"][CHUNK - 1] == 2.0
    assert np.isnan(columns["b"][CHUNK])


def test_the_weighted_sum_of_every_run() -> None:
    metrics = {"a": (1.0,), "b": (10.0, 30.0)}
    columns = gathered([*BEGIN, (CANDIDATE, run(metrics=metrics)), (CANDIDATE, run())])
    assert columns.weighted({"b": 0.5, "a": 2.0})[0] == 12.0
    assert columns.weighted({"a": 2.0, "b": 0.5})[0] == 12.0
    assert np.isnan(columns.weighted({"b": 0.5})[1])
    assert columns.weighted({"a": 2.0})[1] == 2.0


def test_a_run_without_metrics() -> None:
    gathering = Gathering()
    add(gathering, [*BEGIN, (CANDIDATE, run(metrics={}))])
    gathering.settle()
    add(gathering, [(CANDIDATE, run(metrics={}))], 5)
    columns = gathering.columns()
    assert (len(columns), columns.metrics) == (2, ())


def test_no_runs_at_all() -> None:
    columns = gathered([])
    assert len(columns) == len(columns["experiment"]) == len(columns.voided()) == 0
    with pytest.raises(KeyError, match="there are experiment"):
        columns["cost"]


def test_what_a_pair_is_voided_by() -> None:
    pair: dict[str, Any] = {"purpose": "screen", "workload": "mixed", "index": 3, "attempt": 1}
    items: Items = [
        (CANDIDATE, run(**pair, arm="A")),
        (CANDIDATE, run(**{**pair, "attempt": 2})),
        (CALIBRATION, run(**pair)),
        (CANDIDATE, run(**pair, arm="B")),
    ]
    assert not gathered([*BEGIN, *items]).voided().any()
    voided = gathered([*BEGIN, *items, (CANDIDATE, make(PairVoided, **pair))])
    assert voided.voided().tolist() == [True, False, False, True]


def test_what_is_known_of_an_experiment() -> None:
    charge = make(LevelCharged, calibration=CALIBRATION, ordinal=4)
    items: Items = [
        *BEGIN,
        (CALIBRATION, make(ExperimentFinished, outcome="measured")),
        (CANDIDATE, make(ArtifactBuilt, digest="1", incumbent_digest="2")),
        (CANDIDATE, make(ArtifactBuilt, digest="1", incumbent_digest="1")),
        (CANDIDATE, make(GateFailed)),
        (CANDIDATE, charge),
        (CANDIDATE, make(LevelCharged, calibration="", ordinal=5)),
        (CANDIDATE, make(VerdictReached, kind="invalid", reason="why")),
    ]
    columns = gathered(items)
    calibration, candidate = columns.experiments
    assert PURPOSES[calibration["purpose"]] == "calibration"
    assert OUTCOMES[calibration["outcome"]] == "measured"
    assert (calibration["calibration"], candidate["outcome"]) == (-1, -1)
    assert columns.candidates[candidate["candidate"]] == "b"
    assert (candidate["gate"], candidate["ordinal"], candidate["calibration"]) == (2, 4, -2)
    assert VERDICTS[candidate["verdict"]] == "invalid"
    assert candidate["verdict_seq"] == len(items)
    assert columns.texts["reason"] == ["", "why"]
    assert columns.texts["patch"] == ["baseline", "some name"]
    charged = gathered([*BEGIN, (CANDIDATE, make(GateFailed)), (CANDIDATE, charge)])
    assert charged.experiments[1]["calibration"] == 0
    assert charged.experiments[1]["gate"] == 1
    again = gathered([*items, (CANDIDATE, make(VerdictReached, kind="keep"))])
    assert again.texts["reason"] == ["", ""]


def test_a_calibration_of_another_campaign_is_none() -> None:
    items: Items = [
        *BEGIN,
        ("cmp-0002~1", make(CampaignStarted)),
        ("exp-0003~1", make(ExperimentStarted, campaign="cmp-0002~1")),
        ("exp-0003~1", make(LevelCharged, calibration=CALIBRATION)),
    ]
    columns = gathered(items)
    assert columns.experiments[2]["calibration"] == -2
    assert (columns.campaigns, columns.began) == ((CAMPAIGN, "cmp-0002~1"), (1, 4))


def test_what_no_fold_looks_at_is_left_out() -> None:
    items: Items = [("exp-0009~1", run()), (CAMPAIGN, make(GateFailed)), *BEGIN]
    assert len(gathered([*items, ("exp-0009~1", make(VerdictReached))])) == 0


UNUSUAL: dict[str, tuple[str, Event]] = {
    "a campaign twice": BEGIN[0],
    "an experiment twice": BEGIN[1],
    "an experiment in no campaign": ("exp-0007~1", make(ExperimentStarted, campaign="none")),
    "an experiment under a campaign's name": (
        CAMPAIGN,
        make(ExperimentStarted, campaign=CAMPAIGN),
    ),
    "a campaign under an experiment's name": (CANDIDATE, make(CampaignStarted)),
    "charged with what is not there": (CANDIDATE, make(LevelCharged, calibration="exp-0099~1")),
    "an unknown event": (CAMPAIGN, make(MachineUnfit)),
}


@pytest.mark.parametrize("item", UNUSUAL.values(), ids=UNUSUAL)
def test_what_is_unusual_is_refused(item: tuple[str, Event]) -> None:
    with pytest.raises(Unprojectable):
        gathered([*BEGIN, item])


@pytest.mark.parametrize(
    ("name", "payload"),
    [
        ("RunMeasured", "{}"),
        ("RunMeasured", "no JSON"),
        ("VerdictReached", '{"kind": "perhaps", "reason": ""}'),
        ("RunMeasured", encode(run())[2].replace('"mixed"', "[]")),
    ],
)
def test_payloads_that_are_no_events_are_refused(name: str, payload: str) -> None:
    gathering = Gathering()
    add(gathering, BEGIN)
    with pytest.raises(Unprojectable):
        gathering.add(9, CANDIDATE, name, payload)


def test_a_number_that_is_too_large_is_refused() -> None:
    with pytest.raises(Unprojectable, match="index"):
        gathered([*BEGIN, (CANDIDATE, run(index=2**40))])


def test_joining_keeps_both() -> None:
    one = gathered([*BEGIN, (CANDIDATE, run())]).chunks[0]
    two = gathered([*BEGIN, (CANDIDATE, run(metrics={"b": (2.0,)}))]).chunks[0]
    assert joined(None, one) is one
    both = joined(one, two)
    assert both.metrics == ("a", "b")
    assert np.array_equal(both.values, [[1.0, np.nan], [np.nan, 2.0]], equal_nan=True)


def test_names_keep_their_places() -> None:
    names = Names(["x", "y"])
    assert [names.place("y"), names.place("z"), names.known("x"), names.known("w")] == [
        1,
        2,
        0,
        None,
    ]
    assert names.texts == ["x", "y", "z"]
