"""Neutral rebuilds of a compiled target: a C program whose cost depends on its layout.

The cost is printed, not timed, so no verdict here depends on noise: `cost` is the work times
1 + bias[variant][layout], where the variant is a constant of the source that changes nothing else.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from statistics import stdev
from typing import Any

import anyio
import numpy as np
import pytest
from anyio import to_thread

from aiopt.calibration import calibration_of
from aiopt.campaign import Unfit, open_campaign
from aiopt.errors import ConfigError
from aiopt.events import (
    CalibrationFailed,
    Event,
    GateFailed,
    LayoutBuilt,
    PairPurpose,
    PairScheduled,
    Recorded,
    RunMeasured,
    StageFinished,
    StageStarted,
)
from aiopt.export import export
from aiopt.log import Log
from aiopt.measure import IncumbentFailed
from aiopt.pairs import pairs_of
from aiopt.replay import CampaignState, ExperimentState, fold
from aiopt.reproduce import reproduce
from aiopt.rules import NeedsMore, RuleParams, params_from
from aiopt.settings import Environment, Settings, rule_params
from aiopt.skeleton import files_of
from aiopt.target import parse_target
from aiopt.verdict import Judge, next_pair
from aiopt.verify import verify
from tests.factories import make
from tests.toy import TARGET as TOY

pytestmark = pytest.mark.anyio

compiled = pytest.mark.skipif(
    shutil.which("cc") is None, reason="needs a C compiler (apt-get install gcc)"
)

REBUILDS = 6
SD = 0.02
BIAS = np.random.default_rng(833).normal(0, SD, (8, REBUILDS + 1))
"""By variant and layout, 0 being the plain build. By this seed the plain builds of three neutral
variants of five are lucky enough to pass the screen; variant 1 is so by hand.
"""
BIAS[1, 0] = BIAS[0, 0] - 0.04
LUCKY, GAIN, SPLIT = 1, 6, 7

MAIN = """\
#include <stdio.h>
#include "bias.h"
#include "work.h"
int main(void) {
    printf("cost=%.9f\\n", WORK * (1 + bias[VARIANT][PAD]));
    puts("answer=42");
    return 0;
}
"""

TARGET = """
name = "compiled"
[source]
path = "src"
[scope]
editable = ["work.h", "notes.txt"]
[artifact]
paths = ["/program"]
[stages.build]
run = ["./build.sh"]
timeout = 60
[stages.test]
run = "./program | grep -q '^answer=42$'"
timeout = 10
[stages.workload]
run = "./program"
timeout = 10
[metrics.cost]
role = "primary"
[metrics.answer]
kind = "digest"
[workloads.main]
[layout]
variable = "LAYOUT"
rebuilds = 6
pairs = 3
"""

BUILD = """\
#!/bin/sh
set -eu
cc -DPAD="$LAYOUT" -o program main.c
"""


def work(variant: int, amount: int = 100) -> str:
    return f"#define WORK {amount}\n#define VARIANT {variant}\n"


def patch(variant: int, amount: int = 100, base: str = work(0)) -> str:
    new = work(variant, amount)
    lines = [f"-{line}" for line in base.splitlines()] + [f"+{line}" for line in new.splitlines()]
    return "--- a/work.h\n+++ b/work.h\n@@ -1,2 +1,2 @@\n" + "\n".join(lines) + "\n"


NEUTRAL = {f"0{variant}-neutral": patch(variant) for variant in range(1, GAIN)}
POOL = {**NEUTRAL, "06-gain": patch(GAIN, 90)}


def write_target(
    folder: Path, patches: Mapping[str, str], text: str = TARGET, build: str = BUILD
) -> Path:
    (folder / "src").mkdir(parents=True)
    (folder / "patches").mkdir()
    rows = ", ".join("{" + ", ".join(f"{x:.9f}" for x in row) + "}" for row in BIAS)
    bias = f"static const double bias[{len(BIAS)}][{REBUILDS + 1}] = {{{rows}}};\n"
    files = {"main.c": MAIN, "bias.h": bias, "work.h": work(0), "notes.txt": "plain\n"}
    for name, content in files.items():
        (folder / "src" / name).write_text(content)
    for name, content in patches.items():
        (folder / "patches" / f"{name}.patch").write_text(content)
    (folder / "target.toml").write_text(text)
    (folder / "build.sh").write_text(build)
    (folder / "build.sh").chmod(0o755)
    return folder


def settings(**layout: Any) -> Settings:
    """Few pairs, and a measuring lock of this test's own."""
    lock = str(Path(__file__).parent)
    options: dict[str, Any] = {
        "ncal": 10,
        "audit_pairs": 6,
        "ablation_pairs": 6,
        "void": {"psi": 0.0, "steal": 0.0, "throttle": False},
    }
    if layout:
        options["layout"] = layout
    return Settings(
        rule_options=options,
        environments={"local": Environment(backend="local", options={"lock_path": lock})},
    )


async def finish(
    target: Path, results: Path, how: Settings | None = None, resume: str | None = None
) -> CampaignState:
    how = settings() if how is None and resume is None else how
    async with open_campaign(target, results, how, resume=resume, wait=30) as campaign:
        await campaign.run()
        return campaign.state


def read(results: Path) -> list[Recorded]:
    with Log.open(results / "compiled" / "events.db", readonly=True) as log:
        return list(log.read())


def outcomes(state: CampaignState) -> dict[str, str]:
    return {e.started.genome[-1].name: _kind(e) for e in state.of_purpose("candidate")}


def _kind(experiment: ExperimentState) -> str:
    return experiment.verdict.kind if experiment.verdict else str(experiment.outcome)


def stages_entered(state: CampaignState) -> dict[str, str]:
    return {
        e.started.genome[-1].name: e.verdict.stage
        for e in state.of_purpose("candidate")
        if e.verdict is not None
    }


def sound(results: Path) -> None:
    """The log is whole, every decision in it follows from it, and nothing is left beside it."""
    home = results / "compiled"
    assert verify(home / "events.db", home / "blobs").problems == ()
    assert reproduce(fold(read(results))).contradictions == ()
    assert {path.name for path in (home / ".work").iterdir()} <= {"source.git", "index"}


# ---- what it is for ----


@compiled
@pytest.mark.slow
async def test_a_lucky_layout_is_not_kept_and_a_gain_is(tmp_path: Path) -> None:
    target = write_target(tmp_path / "target", POOL)
    state = await finish(target, tmp_path / "results")
    found, entered = outcomes(state), stages_entered(state)
    assert found.pop("06-gain") == "keep"
    screened = {name for name in found if entered[name] == "confirm"}
    assert screened == {"01-neutral", "02-neutral", "04-neutral"}
    assert "keep" not in found.values()
    _of_layouts_as_scheduled(state)
    sound(tmp_path / "results")


_COMPARED: tuple[PairPurpose, ...] = ("calibration", "layout", "screen", "confirm", "audit")


def _of_layouts_as_scheduled(state: CampaignState) -> None:
    """Every run is of the layout that its pair names: the program's own cost says which."""
    checked: Counter[str] = Counter()
    variants = {state.baseline: (0, 100)}
    for e in state.of_purpose("candidate"):
        number = int(e.started.genome[-1].name[:2])
        variants[e.started.candidate] = (number, 90 if number == GAIN else 100)
    for e in state.experiments.values():
        layouts = {
            (p.purpose, p.workload, p.index): p.layout
            for p in e.facts
            if isinstance(p, PairScheduled)
        }
        for purpose in _COMPARED:
            for pair in pairs_of(e.facts, purpose, "main"):
                layout = layouts[purpose, "main", pair.a.index]
                assert (layout > 0) == (purpose in ("layout", "confirm", "audit"))
                arms = {
                    "A": (e.started.incumbent, 0 if purpose == "layout" else layout),
                    "B": (e.started.candidate, layout),
                }
                for run in (pair.a, pair.b):
                    candidate, of_layout = arms[run.arm]
                    variant, amount = variants[candidate]
                    expected = amount * (1 + BIAS[variant, of_layout])
                    assert run.metrics["cost"][0] == pytest.approx(expected, abs=1e-6)
                checked[purpose] += 1
    assert all(checked[purpose] for purpose in ("layout", "confirm", "audit")), checked


@compiled
@pytest.mark.parametrize(
    ("layout", "mei", "kept"),
    [
        ({}, 0.03, False),
        ({"rotate": 0}, 0.03, True),  # the control: without rotation the accident is kept
        ({"rotate": 0, "floor": 0.05}, 0.06, False),
    ],
    ids=["rotation", "neither", "floor"],
)
async def test_what_becomes_of_a_lucky_layout(
    tmp_path: Path, layout: dict[str, Any], mei: float, kept: bool
) -> None:
    target = write_target(tmp_path / "target", {"01": patch(LUCKY)})
    how = settings(**layout)
    how = Settings(
        rule_options={**how.rule_options, "mei": mei},
        environments=how.environments,
    )
    state = await finish(target, tmp_path / "results", how)
    assert (outcomes(state)["01"] == "keep") == kept
    sound(tmp_path / "results")


@compiled
async def test_the_calibration_finds_how_much_layouts_differ(tmp_path: Path) -> None:
    target = write_target(tmp_path / "target", {"02": patch(2)})
    state = await finish(target, tmp_path / "results")
    (calibration,) = state.of_purpose("calibration")
    (measured,) = [e for e in calibration.calibration if e.role == "primary"]
    assert measured.layout_sd == pytest.approx(stdev(np.log1p(BIAS[0, 1:])), rel=0.02)
    assert measured.layout_sd == pytest.approx(SD, rel=0.5)
    assert any("rotating over 6 of them leaves" in text for text in measured.warnings)
    built = [e for e in calibration.facts if isinstance(e, LayoutBuilt)]
    assert [e.layout for e in built] == list(range(1, REBUILDS + 1))
    assert len({e.digest for e in built}) == REBUILDS
    assert {e.candidate for e in built} == {state.baseline}


# ---- how it is done ----


@compiled
@pytest.mark.slow
async def test_rebuilds_are_made_when_they_are_needed_and_once(tmp_path: Path) -> None:
    """The calibration makes the incumbent's, the first confirmed pair the candidate's; a
    candidate that the screen ends has none, and a new incumbent keeps those that it has.
    """
    pool = {
        "01-screened": patch(3),
        "02-gain": patch(GAIN, 90),
        "03-gain": patch(SPLIT, 80, work(GAIN, 90)),
    }
    target = write_target(tmp_path / "target", pool)
    state = await finish(target, tmp_path / "results")
    assert outcomes(state) == {
        "01-screened": "discard_no_effect",
        "02-gain": "keep",
        "03-gain": "keep",
    }
    names = {e.started.candidate: e.started.genome[-1].name for e in state.of_purpose("candidate")}
    built: Counter[str] = Counter()
    where: dict[str, set[str]] = {}
    for recorded in read(tmp_path / "results"):
        if isinstance(recorded.event, LayoutBuilt):
            name = names.get(recorded.event.candidate, recorded.event.candidate)
            built[name] += 1
            stream = recorded.stream
            purpose = (
                state.experiments[stream].started.purpose
                if stream in state.experiments
                else "campaign"
            )
            where.setdefault(name, set()).add(purpose)
    assert "01-screened" not in built
    assert (built["03-gain"], where["03-gain"]) == (REBUILDS, {"candidate"})
    # Those that were closed with an incumbent are made anew: of the baseline for the audit, of the
    # first gain for the ablation, where it is what is left without the second.
    assert (built["02-gain"], where["02-gain"]) == (2 * REBUILDS, {"candidate", "ablation"})
    assert built[state.baseline] == 2 * REBUILDS
    assert where[state.baseline] == {"calibration", "campaign"}
    events = [recorded.event for recorded in read(tmp_path / "results")]
    runs = Counter(e.run for e in events if isinstance(e, StageStarted) and e.stage == "build")
    assert runs["layout:3"] >= 4
    tested = [e for e in events if isinstance(e, StageStarted) and e.stage == "test"]
    assert not [e.run for e in tested if e.run]  # the same source passed it
    # One patch cannot be taken out: the second one changes the same lines.
    ablations = [e.ablation for e in state.of_purpose("ablation")]
    assert [a.separable for a in ablations if a is not None] == [False, True]
    assert any(
        e.layout for e in state.of_purpose("ablation")[1].facts if isinstance(e, PairScheduled)
    )
    sound(tmp_path / "results")


@compiled
async def test_each_layout_is_warmed_up_with_the_sides_that_it_compares(tmp_path: Path) -> None:
    target = write_target(tmp_path / "target", {"02-gain": patch(GAIN, 90)})
    state = await finish(target, tmp_path / "results")
    for experiment in state.experiments.values():
        seen: set[int] = set()
        for event in experiment.facts:
            if isinstance(event, PairScheduled):
                assert event.purpose == "warmup" or event.layout in seen
                seen.add(event.layout)
    (calibration,) = state.of_purpose("calibration")
    warm = {
        (event.arm, round(event.metrics["cost"][0], 6))
        for event in calibration.facts
        if isinstance(event, RunMeasured) and event.purpose == "warmup"
    }
    plain = round(100 * (1 + float(BIAS[0, 0])), 6)
    assert {cost for arm, cost in warm if arm == "A"} == {plain}
    assert len({cost for arm, cost in warm if arm == "B"}) == 1 + REBUILDS


@compiled
async def test_a_candidate_that_cannot_be_rebuilt_is_invalid(tmp_path: Path) -> None:
    build = BUILD + f'if [ "$LAYOUT" = 3 ]; then ! grep -q "VARIANT {LUCKY}" work.h; fi\n'
    target = write_target(
        tmp_path / "target", {"01": patch(LUCKY), "06": patch(GAIN, 90)}, build=build
    )
    state = await finish(target, tmp_path / "results")
    assert outcomes(state) == {"01": "invalid", "06": "keep"}
    experiment = state.of_purpose("candidate")[0]
    (gate,) = [e for e in experiment.facts if isinstance(e, GateFailed)]
    assert gate.gate == "build"
    assert gate.detail.startswith("in layout 3: exit 1")
    assert experiment.verdict is not None
    assert experiment.verdict.reason.startswith("build: in layout 3")
    sound(tmp_path / "results")


@compiled
async def test_an_incumbent_that_cannot_be_rebuilt_ends_the_work(tmp_path: Path) -> None:
    build = BUILD + 'test "$LAYOUT" != 4 || rm program\n'
    target = write_target(tmp_path / "target", NEUTRAL, build=build)
    with pytest.raises(IncumbentFailed, match="cannot be built in layout 4: it left no file"):
        await finish(target, tmp_path / "results")
    (gate,) = [r.event for r in read(tmp_path / "results") if isinstance(r.event, GateFailed)]
    assert gate.gate == "build"


@compiled
async def test_a_build_that_ignores_the_variable_is_found_out_at_once(tmp_path: Path) -> None:
    target = write_target(tmp_path / "target", NEUTRAL, build=BUILD.replace("$LAYOUT", "0"))
    with pytest.raises(Unfit, match=r"\(layout\): all 6 rebuilds are the same program"):
        await finish(target, tmp_path / "results")
    events = [recorded.event for recorded in read(tmp_path / "results")]
    assert not [e for e in events if isinstance(e, PairScheduled) and e.purpose != "check"]
    (failed,) = [e for e in events if isinstance(e, CalibrationFailed)]
    assert failed.cause == "layout"
    assert reproduce(fold(read(tmp_path / "results"))).contradictions == ()
    stream = next(r.stream for r in read(tmp_path / "results"))
    with pytest.raises(Unfit):
        await finish(target, tmp_path / "results", resume=stream)


@compiled
async def test_the_same_program_is_no_change_whatever_the_rebuilds(tmp_path: Path) -> None:
    notes = "--- a/notes.txt\n+++ b/notes.txt\n@@ -1 +1 @@\n-plain\n+other\n"
    target = write_target(tmp_path / "target", {"01": notes})
    state = await finish(target, tmp_path / "results")
    assert outcomes(state) == {"01": "no_change"}


# ---- killed ----

_LIFE = """
import os, signal, sys, threading
import anyio
from pathlib import Path
from aiopt.campaign import open_campaign
from tests.test_layout import settings

target, results, what, delay = sys.argv[1:]
left = [1]

def observer(recorded):
    event = recorded.event
    text = f"{type(event).__name__} {recorded.stream.split('~')[0]} {event}"
    kind, stream, inside = what.split("|")
    if kind == type(event).__name__ and recorded.stream.startswith(stream) and inside in text:
        left[0] -= 1
        if left[0] == 0:
            if float(delay):
                threading.Timer(float(delay), os.kill, (os.getpid(), signal.SIGKILL)).start()
            else:
                os.kill(os.getpid(), signal.SIGKILL)

async def main():
    how = settings(rotate=3, pairs=2)
    async with open_campaign(Path(target), Path(results), how, observer=observer) as campaign:
        await campaign.run()

anyio.run(main)
"""

KILLS = {
    "building a rebuild of the incumbent": ("StageStarted|exp-0002|layout:2", "0.1"),
    "between two rebuilds of the incumbent": ("LayoutBuilt|exp-0002|layout=2", "0"),
    "comparing rebuilds": ("RunMeasured|exp-0002|purpose='layout'", "0"),
    "building a rebuild of a candidate": ("StageStarted|exp-0003|layout:2", "0.1"),
    "between two rebuilds of a candidate": ("LayoutBuilt|exp-0003|layout=2", "0"),
    "in a rotated pair": ("RunMeasured|exp-0003|purpose='confirm'", "0"),
    "building for the audit": ("StageStarted|cmp|layout:2", "0.1"),
}


@compiled
@pytest.mark.slow
@pytest.mark.parametrize("moment", KILLS)
async def test_a_kill_loses_nothing(tmp_path: Path, moment: str) -> None:
    pool = {"01-lucky": patch(LUCKY), "06-gain": patch(GAIN, 90)}
    build = BUILD + 'test "$LAYOUT" != 2 || sleep 0.2\n'
    target, results = write_target(tmp_path / "target", pool, build=build), tmp_path / "results"
    what, delay = KILLS[moment]
    argv = [sys.executable, "-c", _LIFE, str(target), str(results), what, delay]
    died = await anyio.run_process(argv, cwd=Path(__file__).parents[1], check=False)
    assert died.returncode == -signal.SIGKILL, died.stderr.decode()
    before = read(results)
    state = await finish(target, results, resume=before[0].stream)
    assert outcomes(state) == {"01-lucky": "discard_no_effect", "06-gain": "keep"}
    assert state.finished is not None
    assert fold(read(results)).campaigns[state.stream] == state
    _of_layouts_as_scheduled(state)
    sound(results)
    events = [recorded.event for recorded in read(results)]
    assert [r.event for r in before] == events[: len(before)]
    # Rebuilds that were whole are found, and not made again.
    done = sum(isinstance(r.event, LayoutBuilt) for r in before)
    again = [e for e in events[len(before) :] if isinstance(e, StageStarted) and e.run]
    again = [e for e in again if e.stage == "build"]
    ended = [e for e in events if isinstance(e, StageFinished) and e.run.startswith("layout:")]
    assert {e.outcome for e in ended} == {"ok"}
    whole = 4 * 3  # of the baseline twice: the audit needs them anew
    cut = sum(isinstance(r.event, StageStarted) and r.event.run[:6] == "layout" for r in before)
    assert len(again) <= whole - done + (cut - done)


# ---- target.toml and parameters ----


def problems_of(layout: str, text: str = TOY) -> dict[str, str]:
    with pytest.raises(ConfigError) as caught:
        parse_target(f"{text}\n[layout]\n{layout}")
    return dict(caught.value.problems)


def test_the_table_of_a_target() -> None:
    target = parse_target(f"{TOY}\n[layout]\nvariable = 'LAYOUT'\nrebuilds = 12")
    params = params_from(rule_params(target, Settings()))
    assert (params.layout.rotate, params.layout.pairs, params.layout.floor) == (12, 5, 0)
    assert (target.build_env(0), target.build_env(3)) == ({"LAYOUT": "0"}, {"LAYOUT": "3"})
    assert parse_target(TOY).build_env(0) == {}
    floor = parse_target(f"{TOY}\n[layout]\nfloor = 0.018")
    params = params_from(rule_params(floor, Settings()))
    assert (params.layout.rotate, params.layout.floor) == (0, 0.018)
    assert floor.build_env(0) == {}
    params = params_from(rule_params(parse_target(TOY), Settings()))
    assert params.layout.rotate == params.layout.floor == 0


def test_all_problems_of_the_table_at_once() -> None:
    found = problems_of("variable = '1X'\nfloor = -1.0\nrebuilds = 1\npairs = 1")
    assert found == {
        "layout": "give exactly one of variable, floor; found both",
        "layout.floor": "-1: a natural log above 0, such as 0.018",
        "layout.rebuilds": "1: at least 2",
        "layout.pairs": "1: at least 2",
        "layout.variable": "'1X': the name of an environment variable",
    }
    assert problems_of("") == {"layout": "give exactly one of variable, floor; found neither"}
    built = '[stages.build]\nrun = "sh -n main.sh"\ntimeout = 10\n'
    assert problems_of("variable = 'X'", TOY.replace(built, "")) == {
        "layout.variable": "needs a build stage, which is what turns it into a layout"
    }
    for name in ("HOME", "LC_ALL", "WORKLOAD", "RUN_DIR", "SERVICE_PORT"):
        assert "means something else" in problems_of(f"variable = '{name}'")["layout.variable"]
    for text in (
        TOY.replace('name = "toy"', 'name = "toy"\npass_env = ["X"]'),
        TOY.replace('name = "toy"', 'name = "toy"\nenvironment = { X = "1" }'),
        TOY.replace(built, f'{built}env = {{ X = "1" }}\n'),
    ):
        assert "is set by" in problems_of("variable = 'X'", text)["layout.variable"]


def test_settings_win_over_the_target() -> None:
    target = parse_target(f"{TOY}\n[layout]\nvariable = 'LAYOUT'")

    def layout(**options: Any) -> tuple[int, int, float]:
        found = params_from(rule_params(target, Settings(rule_options=options))).layout
        return found.rotate, found.pairs, found.floor

    assert layout() == (6, 5, 0)
    assert layout(layout={"rotate": 0, "floor": 0.01}) == (0, 5, 0.01)
    assert layout(layout={"rotate": 12}) == (12, 5, 0)
    with pytest.raises(ConfigError, match="layout"):
        layout(layout=3)
    with pytest.raises(ConfigError, match="unknown rotat"):
        layout(layout={"rotat": 3})
    plain = parse_target(TOY)
    with pytest.raises(ConfigError, match=r"layout.rotate: needs a \[layout\] variable"):
        rule_params(plain, Settings(rule_options={"layout": {"rotate": 6}}))
    high = parse_target(f"{TOY}\n[layout]\nfloor = 0.04")
    with pytest.raises(ConfigError, match=r"above the layout floor 0.04"):
        params_from(rule_params(high, Settings()))


def test_the_skeleton_explains_it() -> None:
    """The commented tables of a new target are right as they stand."""
    text, _ = files_of("mine")["target.toml"]
    tables = re.findall(r"^# \[layout\]\n(?:# \w+ = .*\n)+", text, re.MULTILINE)
    assert len(tables) == 2
    for table in tables:
        uncommented = re.sub("^# ", "", table, flags=re.MULTILINE)
        assert parse_target(text.replace(table, uncommented)).layout is not None


# ---- schedule and calibration ----


def params(**layout: Any) -> RuleParams:
    return params_from(
        {
            "metrics": {"cost": {"role": "primary"}},
            "workloads": {"main": {}},
            "ncal": 10,
            "layout": {"rotate": 6, "pairs": 2, **layout},
        }
    )


@pytest.mark.parametrize("purpose", ["confirm", "guard", "audit", "ablation"])
def test_every_round_has_each_layout_once(purpose: PairPurpose) -> None:
    of = [next_pair(params(), purpose, "main", i, seed=1, number=2).layout for i in range(60)]
    rounds = [of[i : i + 6] for i in range(0, 60, 6)]
    assert all(sorted(each) == [1, 2, 3, 4, 5, 6] for each in rounds)
    assert len({tuple(each) for each in rounds}) > 5
    again = next_pair(params(), purpose, "main", 7, seed=1, number=2, attempt=3)
    assert again.layout == of[7]


def test_screen_and_calibration_are_of_the_plain_build() -> None:
    purposes: tuple[PairPurpose, ...] = ("screen", "calibration")
    for purpose in purposes:
        assert not any(
            next_pair(params(), purpose, "main", i, seed=1, number=2).layout for i in range(20)
        )
    assert next_pair(params(rotate=0), "confirm", "main", 3, seed=1, number=2).layout == 0


def calibrated(bias: Mapping[int, float], digests: Mapping[int, str]) -> list[Event]:
    """The events of a calibration without noise, of a plain build without bias."""
    events: list[Event] = [
        LayoutBuilt(candidate="c", layout=layout, digest=digest)
        for layout, digest in digests.items()
    ]
    judge = Judge(calibration_of, params(), seed=1, number=0, events=events)
    while (pair := judge.next_pair()) is not None:
        judge.tell(pair)
        for arm in pair.order:
            of = pair.layout if arm == "B" else 0
            run = make(
                RunMeasured,
                purpose=pair.purpose,
                workload="main",
                index=pair.index,
                attempt=pair.attempt,
                arm=arm,
                position=1 + pair.order.index(arm),
                metrics={"cost": (100 * (1 + bias.get(of, 0.0)),)},
            )
            judge.tell(run)
    return list(judge.events)


def warnings(events: list[Event]) -> str:
    outcome = calibration_of(params(), events)
    assert isinstance(outcome, tuple)
    return "; ".join(outcome[0].warnings)


def test_rebuilds_that_are_the_same_program_are_told_of() -> None:
    different = {layout: f"digest {layout}" for layout in range(1, 7)}
    assert "same program" not in warnings(calibrated({}, different))
    assert "same program" not in warnings(calibrated({}, {}))  # no artifact is declared
    some = {**different, 5: "digest 2", 6: "digest 1"}
    text = warnings(calibrated({}, some))
    assert "the rebuilds 1, 6 are the same program: there are 4 layouts" in text
    assert "the rebuilds 2, 5 are the same program: there are 4 layouts" in text
    failed = calibration_of(params(), calibrated({}, dict.fromkeys(range(1, 7), "one")))
    assert isinstance(failed, CalibrationFailed)
    assert failed.cause == "layout"


def test_an_unlucky_plain_build_is_a_warning() -> None:
    """All rebuilds are faster, so neutral ones pass the screen; the confirmation sees to that."""
    better = dict.fromkeys(range(1, 7), -0.05)
    assert "neutral rebuilds pass the screen" in warnings(calibrated(better, {}))
    assert "pass the screen" not in warnings(calibrated({1: 0.01, 2: -0.01}, {}))


@compiled
async def test_a_second_calibration_has_pairs_of_its_own(tmp_path: Path) -> None:
    """It is not told of those of the first, which it is to replace."""
    target = write_target(tmp_path / "target", {"03": patch(3)})
    state = await finish(target, tmp_path / "results")
    (first,) = state.of_purpose("calibration")
    other = ExperimentState(stream="later", started=first.started)
    state.experiments["later"] = other
    assert state.evidence(other) == []
    needed = calibration_of(state.params, state.evidence(other))
    assert isinstance(needed, NeedsMore)
    assert state.calibration_of(other) is None


# ---- the export ----


@compiled
async def test_the_export_makes_the_plain_build_or_any_rebuild(tmp_path: Path) -> None:
    target = write_target(tmp_path / "target", {"06-gain": patch(GAIN, 90)})
    state = await finish(target, tmp_path / "results")
    log = tmp_path / "results" / "compiled" / "events.db"
    out = tmp_path / "out"
    exported = await to_thread.run_sync(lambda: export(log, out, target=target))
    by_purpose = {
        e.started.purpose: folder
        for e, folder in zip(state.experiments.values(), exported.folders, strict=True)
    }
    folder = by_purpose["candidate"]
    readme, log_text = (folder / "README.md").read_text(), (folder / "metrics.log").read_text()
    assert "`LAYOUT=1 ./build.sh`" in readme
    assert "both arms alike" in readme
    assert "arm B alone" in (by_purpose["calibration"] / "README.md").read_text()
    assert "LAYOUT" not in (by_purpose["baseline"] / "README.md").read_text()
    pair = r"^# pair (\S+) main \d+(?: attempt \d+)? order [AB]+ layout (\d)$"
    marked = re.findall(pair, log_text, re.MULTILINE)
    assert {purpose for purpose, _ in marked} == {"confirm", "warmup"}
    assert {layout for _, layout in marked} == set("123456")

    def cost(**env: str) -> float:
        for script in ("build.sh", "deploy.sh"):
            done = subprocess.run(
                [folder / script],
                env={"PATH": os.environ["PATH"], **env},
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, done.stderr
        text = subprocess.run([folder / "workload.sh"], capture_output=True, text=True, check=True)
        found = re.search(r"cost=(\S+)", text.stdout)
        assert found is not None
        return float(found[1])

    for env, layout in (({}, 0), ({"LAYOUT": "3"}, 3)):
        found = await to_thread.run_sync(lambda: cost(**env))  # noqa: B023
        assert found == pytest.approx(90 * (1 + BIAS[GAIN, layout]), abs=1e-6)
