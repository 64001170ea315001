"""Whole campaigns on a toy target, with real builds, real runs and a real log."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest
from attrs import evolve

from aiopt.backends.local import LocalWorkspace
from aiopt.campaign import BaselineFailed, Campaign, open_campaign
from aiopt.errors import ConcurrentWriteError, ConfigError, SessionLost
from aiopt.events import (
    CampaignFinished,
    CampaignInterrupted,
    CampaignResumed,
    ExperimentFinished,
    MetricUnreadable,
    PairScheduled,
    PairVoided,
    Recorded,
    RunMeasured,
    StageStarted,
    VerdictReached,
)
from aiopt.ids import short_name
from aiopt.log import Log
from aiopt.measure import IncumbentFailed
from aiopt.protocols import Command, Completed, Patch, Sink
from aiopt.replay import CampaignState, fold
from aiopt.rescoring import rescore
from aiopt.settings import Budget, Environment, Settings
from aiopt.verify import verify
from tests.toy import EXPECTED, POOL, TARGET, cost, replace_line, write_target

pytestmark = pytest.mark.anyio


ANY_MACHINE = {"steal": 0.0, "psi": 0.0, "throttle": False}
"""Void rules that void nothing: what is measured here does not depend on the machine."""


def quick(**changes: Any) -> Settings:
    """Few pairs, and a measuring lock of this test run's own."""
    lock = str(Path(__file__).parent)
    return Settings(
        rule="signed-rank",
        rule_options={
            "pairs": 7,
            "audit_pairs": 7,
            "ablation_pairs": 0,
            "warmup": 0,
            "void": ANY_MACHINE,
        },
        environments={"local": Environment(backend="local", options={"lock_path": lock})},
        **changes,
    )


QUICK = quick()


def outcomes(state: CampaignState) -> dict[str, str]:
    """Patch name to verdict or reason of rejection."""
    found: dict[str, str] = {}
    for proposal in state.proposals.values():
        name = proposal.proposed.genome[-1].name
        if proposal.rejected is not None:
            found[name] = proposal.rejected.reason
        else:
            experiment = state.experiments[proposal.experiment or ""]
            verdict = experiment.verdict
            found[name] = verdict.kind if verdict else str(experiment.outcome)
    return found


async def finish(
    target: Path, results: Path, settings: Settings | None = QUICK, resume: str | None = None
) -> CampaignState:
    async with open_campaign(target, results, settings, resume=resume) as campaign:
        await campaign.run()
        return campaign.state


def read(results: Path) -> list[Recorded]:
    with Log.open(results / "toy" / "events.db", readonly=True) as log:
        return list(log.read())


def sound(results: Path) -> None:
    """The log is whole, its fold is what a fresh reader gets, and nothing is left beside it."""
    home = results / "toy"
    assert verify(home / "events.db", home / "blobs").problems == ()
    left = {path.name for path in (home / ".work").iterdir()}
    assert left <= {"source.git", "index"}


async def test_each_patch_of_a_pool_gets_what_it_deserves(tmp_path: Path) -> None:
    target = write_target(tmp_path / "target", POOL)
    state = await finish(target, tmp_path / "results")
    assert outcomes(state) == EXPECTED
    assert state.finished == "the proposer has no more"
    assert [p.name for p in state.incumbent_genome] == ["01-win", "13-second-win"]
    (audit,) = state.of_purpose("audit")
    assert audit.audit is not None
    effects = {(e.metric, e.workload): e.effect for e in audit.audit.effects}
    assert effects["cost", "main"] == pytest.approx(0.5108, abs=1e-3)  # 100 to 60
    assert effects["size", "main"] == 0
    assert fold(read(tmp_path / "results")).campaigns[state.stream] == state
    sound(tmp_path / "results")


async def test_nothing_is_added_to_an_experiment_that_is_finished(tmp_path: Path) -> None:
    """The runs of an incumbent belong to the experiment that they are measured for."""
    target = write_target(tmp_path / "target", {"01": cost(80), "02": cost(60, 80)})
    await finish(target, tmp_path / "results")
    finished = set()
    for recorded in read(tmp_path / "results"):
        assert recorded.stream not in finished
        if isinstance(recorded.event, ExperimentFinished):
            finished.add(recorded.stream)
    assert len(finished) == 4  # baseline, two candidates, audit


async def test_the_coin_is_logged_before_the_first_run_of_its_pair(tmp_path: Path) -> None:
    target = write_target(tmp_path / "target", {"01": cost(80)})
    await finish(target, tmp_path / "results")
    scheduled = {}
    for recorded in read(tmp_path / "results"):
        event = recorded.event
        if isinstance(event, PairScheduled):
            scheduled[recorded.stream, event.purpose, event.workload, event.index] = event.order
        elif isinstance(event, RunMeasured) and event.purpose != "check":
            order = scheduled[recorded.stream, event.purpose, event.workload, event.index]
            assert order[event.position - 1] == event.arm
    assert len(set(scheduled.values())) == 2


async def test_a_metric_that_is_not_printed_is_an_event_that_names_the_log(tmp_path: Path) -> None:
    target = write_target(tmp_path / "target", {"11-silent": POOL["11-silent"]})
    await finish(target, tmp_path / "results")
    (event,) = [
        r.event for r in read(tmp_path / "results") if isinstance(r.event, MetricUnreadable)
    ]
    assert event.metric == "size"
    assert event.found == "not printed"
    assert event.log is not None


class Stop(Exception):
    """Ends a campaign from within its observer, as an error there or a kill would."""


def after(count: int, kind: type[object]) -> Callable[[Recorded], None]:
    """Stops at the n-th event of a kind."""
    left = [count]

    def observer(recorded: Recorded) -> None:
        if isinstance(recorded.event, kind):
            left[0] -= 1
            if left[0] == 0:
                raise Stop

    return observer


@pytest.mark.parametrize(
    ("count", "kind"),
    [
        (1, PairScheduled),
        (5, RunMeasured),
        (1, VerdictReached),
        (9, StageStarted),
        (30, RunMeasured),
    ],
)
async def test_a_campaign_that_was_cut_off_ends_like_one_that_was_not(
    tmp_path: Path, count: int, kind: type[object]
) -> None:
    pool = {name: POOL[name] for name in ("01-win", "05-syntax", "13-second-win")}
    target = write_target(tmp_path / "target", pool)
    results = tmp_path / "results"
    with pytest.raises(Stop):
        async with open_campaign(target, results, QUICK, observer=after(count, kind)) as campaign:
            await campaign.run()
    state = await finish(target, results, None, resume=campaign.state.stream)
    whole = await finish(target, tmp_path / "undisturbed")
    assert outcomes(state) == outcomes(whole)
    assert state.incumbent == whole.incumbent
    assert state.resumes == 1
    assert fold(read(results)).campaigns[state.stream] == state
    runs = [
        (short_name(r.stream), e.purpose, e.workload, e.index, e.arm)
        for r in read(results)
        if isinstance(e := r.event, RunMeasured) and e.purpose != "check"
    ]
    voids = [r.event for r in read(results) if isinstance(r.event, PairVoided)]
    assert len(runs) - len(set(runs)) <= len(voids) <= 1
    sound(results)


async def test_cancelling_tears_down_and_is_logged(tmp_path: Path) -> None:
    text = TARGET.replace('run = "sh main.sh"\ntimeout = 10', 'run = "sh main.sh; sleep 5"')
    target = write_target(tmp_path / "target", {"01-win": POOL["01-win"]}, text)
    with anyio.move_on_after(2.5) as scope:
        await finish(target, tmp_path / "results")
    assert scope.cancelled_caught
    (last,) = read(tmp_path / "results")[-1:]
    assert isinstance(last.event, CampaignInterrupted)
    assert last.event.reason == "stopped by the user"


async def test_candidates_are_built_ahead_and_built_again_on_a_new_incumbent(
    tmp_path: Path,
) -> None:
    pool = {
        "01-syntax": POOL["05-syntax"],
        "02-win": cost(80),
        "03-wrong": POOL["06-wrong"],
        "04-comment": POOL["04-comment"],
        "05-win": cost(60, 80),
    }
    target = write_target(tmp_path / "target", pool)
    settings = quick(jobs=2)
    state = await finish(target, tmp_path / "results", settings)
    assert {o for e in state.experiments.values() if (o := e.outcome)} >= {"superseded", "judged"}
    assert [p.name for p in state.incumbent_genome] == ["02-win", "05-win"]
    assert outcomes(state)["04-comment"] == "discard_no_effect"
    assert fold(read(tmp_path / "results")).campaigns[state.stream] == state
    sound(tmp_path / "results")


async def test_one_patch_at_a_time(tmp_path: Path) -> None:
    """What an agent does: each patch builds on what was kept before."""
    target = write_target(tmp_path / "target")
    results, settings = tmp_path / "results", quick(proposer="try")

    async def judge(campaign: Campaign, text: str) -> str:
        proposal = await campaign.judge(Patch(name="mine", text=text.encode(), hypothesis="why"))
        return outcomes(campaign.state)["mine"] if proposal.status == "judged" else proposal.status

    async with open_campaign(target, results, settings) as campaign:
        assert await judge(campaign, cost(80)) == "keep"
        stream = campaign.state.stream
    async with open_campaign(target, results, resume=stream) as campaign:
        assert await judge(campaign, cost(90, 80)) == "discard_regression"
        assert await judge(campaign, "no patch") == "rejected"
        assert await judge(campaign, cost(50, 80)) == "keep"
        assert campaign.state.proposals[1].proposed.hypothesis == "why"
        assert campaign.state.finished is None
    assert os.listdir(results / "toy" / ".work" / "trees") == [campaign.state.incumbent]


async def test_a_try_that_was_cut_off_and_repeated_is_one_try(tmp_path: Path) -> None:
    target = write_target(tmp_path / "target")
    results, settings = tmp_path / "results", quick(proposer="try")
    patch = Patch(name="mine", text=cost(80).encode())
    with pytest.raises(Stop):
        async with open_campaign(
            target, results, settings, observer=after(3, PairScheduled)
        ) as campaign:
            await campaign.judge(patch)
    stream = campaign.state.stream
    async with open_campaign(target, results, resume=stream) as campaign:
        proposal = await campaign.judge(patch)
        assert (proposal.number, proposal.status) == (1, "judged")
        assert outcomes(campaign.state) == {"mine": "keep"}


async def test_locks_of_killed_git_commands_are_in_nobodys_way(tmp_path: Path) -> None:
    target = write_target(tmp_path / "target", {"01": cost(80)})
    with pytest.raises(Stop):
        async with open_campaign(
            target, tmp_path / "results", QUICK, observer=after(1, PairScheduled)
        ) as campaign:
            await campaign.run()
    work = tmp_path / "results" / "toy" / ".work"
    for index in [*(work / "index").iterdir(), work / "source.git" / "HEAD"]:
        index.with_name(index.name + ".lock").touch()
    state = await finish(target, tmp_path / "results", None, resume=campaign.state.stream)
    assert outcomes(state) == {"01": "keep"}


async def test_an_equal_tree_is_not_measured_twice(tmp_path: Path) -> None:
    target = write_target(tmp_path / "target")
    settings = quick(proposer="try")
    async with open_campaign(target, tmp_path / "results", settings) as campaign:
        first = await campaign.judge(Patch(name="a", text=POOL["04-comment"].encode()))
        other = "diff --git a/main.sh b/main.sh\n" + POOL["04-comment"]
        again = await campaign.judge(Patch(name="b", text=other.encode()))
        assert again.rejected is not None
        assert (again.rejected.reason, again.rejected.duplicate_of) == (
            "duplicate",
            first.experiment,
        )
        undone = cost(100, 100)
        empty = await campaign.judge(Patch(name="c", text=undone.encode()))
        assert empty.rejected is not None
        assert empty.rejected.reason in ("empty", "does_not_apply")


async def test_budgets_end_a_campaign(tmp_path: Path) -> None:
    target = write_target(tmp_path / "target", POOL)
    settings = quick(budget=Budget(candidates=1))
    state = await finish(target, tmp_path / "results", settings)
    assert state.finished == "the budget of 1 candidates is spent"
    settings = quick(budget=Budget(minutes=0.0001))
    state = await finish(target, tmp_path / "results", settings)
    assert state.finished == "the budget of 0.0001 minutes is spent"
    assert len(state.proposals) == 0


@pytest.mark.parametrize(
    ("change", "gate"),
    [
        (("main.sh", "if\n"), "build"),
        (("main.sh", "echo answer=1\n"), "test"),
        (("main.sh", "echo answer=42\necho size=3\n"), "metrics"),
    ],
)
async def test_a_baseline_that_fails_ends_it_with_the_stage(
    tmp_path: Path, change: tuple[str, str], gate: str
) -> None:
    target = write_target(tmp_path / "target", POOL)
    (target / "src" / change[0]).write_text(change[1])
    with pytest.raises(BaselineFailed, match=f"fails in {gate}"):
        await finish(target, tmp_path / "results")
    events = [recorded.event for recorded in read(tmp_path / "results")]
    assert isinstance(events[-1], CampaignInterrupted)


async def test_a_changed_target_is_not_resumed(tmp_path: Path) -> None:
    target = write_target(tmp_path / "target", POOL)
    results = tmp_path / "results"
    with pytest.raises(Stop):
        async with open_campaign(
            target, results, QUICK, observer=after(1, PairScheduled)
        ) as campaign:
            await campaign.run()
    stream = campaign.state.stream
    (target / "target.toml").write_text(TARGET + "\n[harness]\nexclude = []\n")
    with pytest.raises(ConfigError, match="changed since the campaign began"):
        await finish(target, results, None, resume=stream)
    (target / "target.toml").write_text(TARGET)
    shutil.rmtree(results / "toy" / ".work")
    (target / "src" / "cost.txt").write_text("99\n")
    with pytest.raises(ConfigError, match="the campaign began with"):
        await finish(target, results, None, resume=stream)
    (target / "src" / "cost.txt").write_text("100\n")
    state = await finish(target, results, None, resume=stream)
    assert outcomes(state) == EXPECTED


async def test_two_controllers_never_share_a_log(tmp_path: Path) -> None:
    target = write_target(tmp_path / "target", POOL)
    async with open_campaign(target, tmp_path / "results", QUICK):
        with pytest.raises(ConcurrentWriteError, match=str(os.getpid())):
            async with open_campaign(target, tmp_path / "results", QUICK):
                pass


def lose_sessions(
    monkeypatch: pytest.MonkeyPatch, label: str, which: Callable[[int], bool]
) -> None:
    """Let the machinery fail at some of the commands with this label."""
    real, count = LocalWorkspace.run, [0]

    async def run(self: LocalWorkspace, command: Command, sink: Sink) -> Completed:
        if command.label == label:
            count[0] += 1
            if which(count[0]):
                raise SessionLost("the link is down")
        return await real(self, command, sink)

    monkeypatch.setattr(LocalWorkspace, "run", run)


async def test_a_pair_whose_session_was_lost_is_void_and_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lose_sessions(monkeypatch, "workload", lambda nth: nth == 6)
    target = write_target(tmp_path / "target", {"01": cost(80)})
    state = await finish(target, tmp_path / "results")
    assert outcomes(state) == {"01": "keep"}
    (void,) = [r.event for r in read(tmp_path / "results") if isinstance(r.event, PairVoided)]
    assert void.reason == "interrupted"
    sound(tmp_path / "results")


async def test_a_candidate_that_always_loses_its_session_is_invalid(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lose_sessions(monkeypatch, "test", lambda nth: 2 <= nth <= 4)
    target = write_target(tmp_path / "target", {"01": cost(80), "02": cost(90)})
    state = await finish(target, tmp_path / "results")
    assert outcomes(state) == {"01": "invalid", "02": "keep"}
    (verdict,) = [e.verdict for e in state.experiments.values() if e.started.number == 1]
    assert verdict is not None
    assert verdict.reason == "session: the link is down"


async def test_an_incumbent_that_fails_ends_the_campaign(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three times in a row in one pair; what was measured stays and it can be resumed."""
    text = TARGET.replace('run = "sh main.sh"\n', 'run = "test ! -e ../../broken && sh main.sh"\n')
    target = write_target(tmp_path / "target", {"01": cost(80)}, text)
    results = tmp_path / "results"

    def spoil(recorded: Recorded) -> None:
        if isinstance(recorded.event, PairScheduled):
            (results / "toy" / ".work" / "broken").touch()

    with pytest.raises(IncumbentFailed, match="failed 3 times"):
        async with open_campaign(
            target, results, QUICK, observer=lambda r: spoil(r) if arm_a_first(r) else None
        ) as campaign:
            await campaign.run()
    stream = campaign.state.stream
    (results / "toy" / ".work" / "broken").unlink()
    state = await finish(target, results, None, resume=stream)
    assert outcomes(state) == {"01": "keep"}


def arm_a_first(recorded: Recorded) -> bool:
    """Only there the incumbent's failure comes before the candidate's, which would be invalid."""
    return isinstance(recorded.event, PairScheduled) and recorded.event.order == "AB"


async def test_code_under_test_cannot_reach_the_harness_or_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOME_API_KEY", "secret")
    spy = 'test -z "$SOME_API_KEY" \\&\\& echo x > "$TARGET_DIR/target.toml"'
    patch = replace_line("main.sh", "# the program", spy.replace("\\", ""))
    target = write_target(tmp_path / "target", {"01-spy": patch, "02-win": cost(80)})
    before = (target / "target.toml").read_bytes()
    state = await finish(target, tmp_path / "results")
    assert (target / "target.toml").read_bytes() == before
    assert outcomes(state)["02-win"] == "keep"


async def test_a_script_can_fetch_the_source(tmp_path: Path) -> None:
    text = TARGET.replace('path = "src"', 'script = ["./fetch.sh"]')
    target = write_target(tmp_path / "target", {"01-win": POOL["01-win"]}, text)
    shutil.move(target / "src", tmp_path / "elsewhere")
    fetch = target / "fetch.sh"
    fetch.write_text(f"#!/bin/sh\ncp -r {tmp_path}/elsewhere/. .\n")
    fetch.chmod(0o755)
    state = await finish(target, tmp_path / "results")
    assert outcomes(state) == {"01-win": "keep"}
    fetch.write_text("#!/bin/sh\necho no network >&2; exit 3\n")
    with pytest.raises(ConfigError, match="exit 3: no network"):
        await finish(target, tmp_path / "other-results")


async def test_a_git_revision_is_a_source(tmp_path: Path) -> None:
    upstream = write_target(tmp_path / "upstream") / "src"
    for argv in (
        ["init", "-q"],
        ["add", "."],
        ["-c", "user.name=x", "-c", "user.email=x", "commit", "-qm", "first"],
        ["tag", "v1"],
    ):
        await anyio.run_process(["git", *argv], cwd=upstream)
    text = TARGET.replace('path = "src"', f'git = "file://{upstream}"\nrevision = "v1"')
    target = write_target(tmp_path / "target", {"01-win": POOL["01-win"]}, text)
    state = await finish(target, tmp_path / "results")
    assert outcomes(state) == {"01-win": "keep"}
    gone = write_target(tmp_path / "gone", {}, text.replace("v1", "v2"))
    with pytest.raises(ConfigError, match="v2"):
        await finish(gone, tmp_path / "gone-results")


async def test_other_weights_over_the_same_log(tmp_path: Path) -> None:
    """A gain in one metric is none in another, and what was not run is said to be missing."""
    trade = cost(50) + replace_line("size.txt", "10", "14")
    target = write_target(tmp_path / "target", {"01-trade": trade, "02-win": cost(90)})
    state = await finish(target, tmp_path / "results")
    assert outcomes(state) == {"01-trade": "discard_regression", "02-win": "keep"}
    same = rescore(state)
    assert same.flips == ()
    assert same.parts_at is None
    assert [ranked.patch for ranked in same.ranking] == ["01-trade", "02-win"]
    small = rescore(state, weights={"size": 1.0})
    assert [decision.patch for decision in small.flips] == ["02-win"]
    assert small.parts_at == small.flips[0].seq
    more = rescore(state, params=evolve(state.params, pairs=20))
    assert [decision.replayed for decision in more.decisions] == [
        "discard_regression",  # its size was beyond its margin for sure, after five pairs
        "needs_more",
    ]


async def test_resuming_twice_is_logged_twice(tmp_path: Path) -> None:
    target = write_target(tmp_path / "target", {"01-win": POOL["01-win"]})
    results = tmp_path / "results"
    with pytest.raises(Stop):
        async with open_campaign(
            target, results, QUICK, observer=after(1, PairScheduled)
        ) as campaign:
            await campaign.run()
    stream = campaign.state.stream
    with pytest.raises(Stop):
        async with open_campaign(
            target, results, resume=stream, observer=after(3, RunMeasured)
        ) as campaign:
            await campaign.run()
    state = await finish(target, results, None, resume=stream)
    kinds = [type(recorded.event) for recorded in read(results)]
    assert kinds.count(CampaignResumed) == 2
    assert kinds.count(CampaignFinished) == 1
    assert outcomes(state) == {"01-win": "keep"}
