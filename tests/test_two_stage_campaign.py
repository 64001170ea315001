"""Whole campaigns under the rule `two-stage`, on a toy target with a real log."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import anyio
import pytest
from attrs import evolve

from aiopt import calibrating
from aiopt.backends.local import LocalWorkspace
from aiopt.budget import ledger
from aiopt.campaign import Unfit, open_campaign
from aiopt.codec import encode
from aiopt.errors import SessionLost
from aiopt.events import (
    AblationMeasured,
    CalibrationFailed,
    CalibrationMeasured,
    CampaignFinished,
    ExperimentStarted,
    LevelCharged,
    LookTaken,
    MachineUnfit,
    MeasuringPaused,
    PairScheduled,
    PairVoided,
    Recorded,
    RunMeasured,
    VerdictReached,
)
from aiopt.log import Log
from aiopt.pairs import pairs_by_purpose
from aiopt.protocols import Command, Completed, Sink
from aiopt.replay import CampaignState, ExperimentState, fold
from aiopt.reproduce import reproduce
from aiopt.settings import Environment, Settings
from aiopt.verdict import decide
from aiopt.verify import verify
from tests.toy import MAIN, POOL, cost, replace_line, write_target

pytestmark = pytest.mark.anyio

ANY_MACHINE = {"steal": 0.0, "psi": 0.0, "throttle": False}
FEW = {"ncal": 10, "ncal_guard": 6, "audit_pairs": 6, "ablation_pairs": 6, "warmup": 1}


def settings(**rule: Any) -> Settings:
    lock = str(Path(__file__).parent)
    return Settings(
        rule_options={"void": ANY_MACHINE, **FEW, **rule},
        environments={"local": Environment(backend="local", options={"lock_path": lock})},
    )


async def finish(
    target: Path, results: Path, given: Settings | None = None, resume: str | None = None
) -> CampaignState:
    async with open_campaign(target, results, given or settings(), resume=resume) as campaign:
        await campaign.run()
        return campaign.state


def read(results: Path) -> list[Recorded]:
    with Log.open(results / "toy" / "events.db", readonly=True) as log:
        return list(log.read())


def verdicts(state: CampaignState) -> Mapping[str, str]:
    return {
        e.started.genome[-1].name: e.verdict.kind
        for e in state.of_purpose("candidate")
        if e.verdict is not None
    }


POOL_OF_FIVE = {
    "01-win": cost(80),
    "02-comment": replace_line("main.sh", "# the program", "# the same program"),
    "03-larger": replace_line("size.txt", "10", "20"),
    "04-worse": cost(90, 80),
    "05-second-win": cost(60, 80),
}


async def test_a_campaign_calibrates_screens_confirms_audits_and_ablates(tmp_path: Path) -> None:
    target = write_target(tmp_path / "target", POOL_OF_FIVE)
    state = await finish(target, tmp_path / "results")
    assert verdicts(state) == {
        "01-win": "keep",
        "02-comment": "discard_no_effect",
        "03-larger": "discard_regression",
        "04-worse": "discard_regression",
        "05-second-win": "keep",
    }
    recorded = read(tmp_path / "results")
    events = [r.event for r in recorded]
    kinds = [type(event) for event in events]

    # the calibration is there once, and before any candidate
    (calibration,) = state.of_purpose("calibration")
    first_screen = next(
        i for i, e in enumerate(events) if isinstance(e, PairScheduled) and e.purpose == "screen"
    )
    assert kinds.index(CalibrationMeasured) < first_screen
    assert {(c.metric, c.workload, c.role) for c in calibration.calibration} == {
        ("cost", "main", "primary"),
        ("cost", "other", "guard"),
        ("size", "main", "guard"),
    }

    # each candidate is charged before its first pair, in turn
    charged = [r for r in recorded if isinstance(r.event, LevelCharged)]
    assert [charge.ordinal for charge in state.charged] == [1, 2, 3, 4, 5]
    for charge in charged:
        pairs = [
            r.seq
            for r in recorded
            if r.stream == charge.stream and isinstance(r.event, PairScheduled)
        ]
        assert charge.seq < min(pairs)
    assert ledger(state.params, state.charged).spent == pytest.approx(5 * 0.0005)

    # both stages were looked at, and pairs to warm up were discarded
    kept = next(e for e in state.of_purpose("candidate") if e.verdict and e.verdict.kind == "keep")
    assert [look.action for look in kept.looks if look.purpose == "confirm"] == ["pass"]
    warm = [e for e in kept.facts if isinstance(e, PairScheduled) and e.purpose == "warmup"]
    assert [pair.workload for pair in warm] == ["main", "other"]

    # the result: the audit, and what each kept patch contributes
    (audit,) = state.of_purpose("audit")
    assert audit.audit is not None
    found = {(e.metric, e.workload): e for e in audit.audit.effects}
    assert found["cost", "main"].effect == pytest.approx(0.5108, abs=1e-3)  # 100 to 60
    ablations = [e.ablation for e in state.of_purpose("ablation") if e.ablation is not None]
    assert [(a.separable, a.supported) for a in ablations] == [(False, None), (True, True)]

    # nothing is hidden: live state, log and decisions agree
    assert fold(recorded).campaigns[state.stream] == state
    assert reproduce(fold(recorded)).contradictions == ()
    home = tmp_path / "results" / "toy"
    assert verify(home / "events.db", home / "blobs").problems == ()
    assert {path.name for path in (home / ".work").iterdir()} <= {"source.git", "index"}


async def test_every_verdict_is_reproduced_byte_for_byte_from_what_was_logged(
    tmp_path: Path,
) -> None:
    target = write_target(tmp_path / "target", POOL)
    await finish(target, tmp_path / "results")
    (campaign,) = fold(read(tmp_path / "results")).campaigns.values()
    reached = [e for e in campaign.experiments.values() if e.verdict is not None]
    assert len(reached) > 8
    for experiment in reached:
        again = decide(campaign.started.rule, campaign.params, campaign.evidence(experiment))
        assert isinstance(again, VerdictReached)
        assert experiment.verdict is not None
        assert encode(again) == encode(experiment.verdict)


class Stop(Exception):
    """Ends a campaign from within its observer, as a kill would."""


def stop_at(wanted: Callable[[Recorded], bool]) -> Callable[[Recorded], None]:
    def observer(recorded: Recorded) -> None:
        if wanted(recorded):
            raise Stop

    return observer


def second_run(purpose: str, index: int) -> Callable[[Recorded], bool]:
    """The end of one pair of the first candidate under the main workload."""

    def wanted(recorded: Recorded) -> bool:
        event = recorded.event
        return isinstance(event, RunMeasured) and (
            event.purpose,
            event.workload,
            event.index,
            event.position,
        ) == (purpose, "main", index, 2)

    return wanted


POOL_TO_CUT = {
    "01-comment": POOL_OF_FIVE["02-comment"],
    "02-win": POOL_OF_FIVE["01-win"],
    "03-smaller": replace_line("size.txt", "10", "9") + cost(60, 80),
}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> CampaignState:
    folder = tmp_path_factory.mktemp("undisturbed")
    return anyio.run(finish, write_target(folder / "target", POOL_TO_CUT), folder / "results")


@pytest.mark.parametrize(
    "moment",
    [
        second_run("calibration", 4),
        second_run("calibration", 9),
        second_run("screen", 3),  # the first look, which ends the second candidate
        second_run("screen", 5),  # that which the win passes
        second_run("confirm", 7),
        second_run("audit", 2),
        second_run("ablation", 2),
        lambda recorded: isinstance(recorded.event, LevelCharged),
        lambda recorded: isinstance(recorded.event, LookTaken),
        lambda recorded: isinstance(recorded.event, CalibrationMeasured),
        lambda recorded: isinstance(recorded.event, AblationMeasured),
    ],
)
async def test_a_campaign_that_was_cut_off_ends_like_one_that_was_not(
    tmp_path: Path, undisturbed: CampaignState, moment: Callable[[Recorded], bool]
) -> None:
    """Each look is logged once, each candidate is charged once, and no pair counts twice, also if
    the controller dies between the last pair and the look that it decides.
    """
    target, results = write_target(tmp_path / "target", POOL_TO_CUT), tmp_path / "results"
    with pytest.raises(Stop):
        async with open_campaign(target, results, settings(), observer=stop_at(moment)) as campaign:
            await campaign.run()
    state = await finish(target, results, resume=campaign.state.stream)
    whole = undisturbed
    assert verdicts(state) == verdicts(whole)
    assert state.incumbent == whole.incumbent
    for ours, theirs in zip(state.experiments.values(), whole.experiments.values(), strict=True):
        assert ours.started.purpose == theirs.started.purpose
        assert ours.looks == theirs.looks
        assert valid_pairs(ours) == valid_pairs(theirs)
        assert ours.calibration == theirs.calibration
    assert [c.ordinal for c in state.charged] == [c.ordinal for c in whole.charged] == [1, 2, 3]
    assert reproduce(fold(read(results))).contradictions == ()


def valid_pairs(experiment: ExperimentState) -> Mapping[tuple[str, str], list[int]]:
    return {
        key: [pair.a.index for pair in pairs]
        for key, pairs in pairs_by_purpose(experiment.facts).items()
        if key[0] != "warmup"
    }


NOISY = MAIN.replace(
    'echo "cost=$(cat cost.txt)"',
    'n=$(cat "$STATE" 2>/dev/null || echo 0); echo $((n + 1)) > "$STATE"\n'
    'echo "cost=$(awk -v c="$(cat cost.txt)" -v n="$n" -f "$TARGET_DIR/noise.awk")"',
)


def noisy_target(folder: Path, awk: str, patches: Mapping[str, str]) -> Path:
    """A target whose cost is a function of how many runs there were before (`n`)."""
    state = folder.parent / "state"
    state.mkdir()
    write_target(folder, patches)
    text = (folder / "target.toml").read_text()
    text = f'writable = ["{state}"]\nenvironment = {{ STATE = "{state}/n" }}\n{text}'
    (folder / "target.toml").write_text(text)
    (folder / "noise.awk").write_text(awk)
    (folder / "src" / "main.sh").write_text(NOISY)
    return folder


COMMENTS = {
    f"{number:02}-comment": replace_line("main.sh", "# the program", f"# the program {number}")
    for number in range(1, 8)
}


async def test_the_noise_is_calibrated_anew_when_it_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Quiet while it is calibrated, ten times as noisy afterwards."""
    awk = (
        "BEGIN { srand(n + 7); s = n < 40 ? 0.01 : 0.1; "
        'printf "%.6f", c * exp(s * (rand() - 0.5)) }'
    )
    monkeypatch.setattr("aiopt.calibration.REFRESH_PAIRS", 8)
    monkeypatch.setattr(calibrating, "REFRESH_PAIRS", 8)
    target = noisy_target(tmp_path / "target", awk, COMMENTS)
    state = await finish(target, tmp_path / "results", settings(warmup=0))
    calibrations = state.of_purpose("calibration")
    assert len(calibrations) >= 2
    assert all(e.outcome == "measured" for e in calibrations)
    quiet, noisy = (
        next(c.sd_pair for c in e.calibration if c.role == "primary") for e in calibrations[:2]
    )
    assert noisy > 3 * quiet
    used = [charge.calibration for charge in state.charged]
    assert used[0] == calibrations[0].stream
    assert used[-1] == calibrations[-1].stream
    pairs = {
        e.stream: [p.order for p in e.facts if isinstance(p, PairScheduled)] for e in calibrations
    }
    assert len({tuple(orders) for orders in pairs.values()}) == len(calibrations)  # other coins
    assert reproduce(fold(read(tmp_path / "results"))).contradictions == ()


async def test_a_machine_on_which_the_order_matters_is_unfit(tmp_path: Path) -> None:
    """The first run of each pair is the slower one: nothing is judged, and it is said why."""
    awk = 'BEGIN { srand(n); printf "%.6f", c * (n % 2 ? 1.2 : 1.0) * (1 + rand() / 1000) }'
    target = noisy_target(tmp_path / "target", awk, {"01-win": cost(80)})
    given = settings(ncal=20, warmup=0)
    with pytest.raises(Unfit, match="order_effect"):
        await finish(target, tmp_path / "results", given)
    events = [r.event for r in read(tmp_path / "results")]
    (failed,) = [e for e in events if isinstance(e, CalibrationFailed)]
    assert failed.cause == "order_effect"
    assert not [e for e in events if isinstance(e, LevelCharged | VerdictReached)]
    assert reproduce(fold(read(tmp_path / "results"))).contradictions == ()


async def test_a_machine_that_stays_busy_is_waited_for_and_then_unfit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Calm while it is calibrated, under pressure ever after."""
    from aiopt.backends.machine import host

    real, calls = host.covariates, [0]

    def pressed() -> Mapping[str, float]:
        calls[0] += 1
        return {**real(), "psi_cpu_some_avg10": 0.0 if calls[0] < 80 else 90.0}

    monkeypatch.setattr(host, "covariates", pressed)
    target = write_target(tmp_path / "target", COMMENTS)
    void = {"psi": 20.0, "steal": 0.0, "throttle": False, "pause": 0.001}
    with pytest.raises(Unfit, match="unfit"):
        await finish(target, tmp_path / "results", settings(void=void, warmup=0))
    events = [r.event for r in read(tmp_path / "results")]
    pauses = [e.seconds for e in events if isinstance(e, MeasuringPaused)]
    assert pauses == [0.001 * 2**n for n in range(6)]
    (unfit,) = [e for e in events if isinstance(e, MachineUnfit)]
    assert unfit.voided == 6
    voids = [e for e in events if isinstance(e, PairVoided)]
    assert {e.rule for e in voids} == {"psi"}
    scheduled = {
        (e.workload, e.index, e.attempt): e.order
        for e in events
        if isinstance(e, PairScheduled) and e.purpose == "screen"
    }
    for e in voids:
        again = scheduled.get((e.workload, e.index, e.attempt + 1))
        assert again in (None, scheduled[e.workload, e.index, e.attempt])


async def test_what_was_built_ahead_and_never_screened_costs_nothing(tmp_path: Path) -> None:
    """Only the candidates whose screen began are charged, also if an incumbent came between."""
    pool = {
        "01-win": cost(80),
        "02-comment": POOL_OF_FIVE["02-comment"],
        "03-second-win": cost(60, 80),
    }
    given = evolve(settings(ablation_pairs=0), jobs=2)
    state = await finish(write_target(tmp_path / "target", pool), tmp_path / "results", given)
    assert [patch.name for patch in state.incumbent_genome] == ["01-win", "03-second-win"]
    candidates = state.of_purpose("candidate")
    superseded = [e for e in candidates if e.outcome == "superseded"]
    assert superseded
    screened = {e.stream for e in candidates if any(_is_screen(fact) for fact in e.facts)}
    assert {e.stream for e in candidates if e.charged is not None} == screened
    assert not screened & {e.stream for e in superseded}
    assert [charge.ordinal for charge in state.charged] == list(range(1, len(screened) + 1))
    assert len(state.of_purpose("calibration")) == 1
    assert reproduce(fold(read(tmp_path / "results"))).contradictions == ()


def _is_screen(fact: object) -> bool:
    return isinstance(fact, PairScheduled) and fact.purpose == "screen"


async def test_a_candidate_whose_session_is_lost_is_charged_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, lost = LocalWorkspace.run, [0]

    async def run(self: LocalWorkspace, command: Command, sink: Sink) -> Completed:
        if command.label == "workload":
            lost[0] += 1
            if lost[0] in (50, 60):  # in the screen and after it
                raise SessionLost("the link is down")
        return await real(self, command, sink)

    monkeypatch.setattr(LocalWorkspace, "run", run)
    target = write_target(tmp_path / "target", {"01-win": cost(80)})
    state = await finish(target, tmp_path / "results", settings(warmup=0))
    (candidate,) = state.of_purpose("candidate")
    assert verdicts(state) == {"01-win": "keep"}
    assert [charge.ordinal for charge in state.charged] == [1]
    voids = [fact for fact in candidate.facts if isinstance(fact, PairVoided)]
    assert [void.reason for void in voids] == ["interrupted"] * 2
    looks = [(look.purpose, look.pairs) for look in candidate.looks]
    assert len(looks) == len(set(looks))
    assert reproduce(fold(read(tmp_path / "results"))).contradictions == ()


async def test_audits_come_every_so_many_keeps_and_at_the_end(tmp_path: Path) -> None:
    wins = {
        f"{n:02}-win": replace_line("cost.txt", str(100 - 10 * (n - 1)), str(100 - 10 * n))
        for n in (1, 2, 3)
    }
    target = write_target(tmp_path / "target", wins)
    state = await finish(target, tmp_path / "results", settings(audit_every=2, ablation_pairs=0))
    assert len(state.kept) == 3
    audits = [(len(e.started.genome), e.outcome) for e in state.of_purpose("audit")]
    assert audits == [(2, "measured"), (3, "measured")]
    coins = [
        tuple(p.order for p in e.facts if isinstance(p, PairScheduled) and p.purpose == "audit")
        for e in state.of_purpose("audit")
    ]
    assert coins[0] != coins[1]
    assert not state.of_purpose("ablation")


async def test_a_kept_patch_that_no_longer_contributes_is_flagged(tmp_path: Path) -> None:
    """The second win overwrites what the first one did; the third is independent."""
    program = 'echo "cost=$(sort -n *.cost | head -n 1)"'
    first = "--- /dev/null\n+++ b/first.cost\n@@ -0,0 +1 @@\n+80\n"
    second = "--- /dev/null\n+++ b/second.cost\n@@ -0,0 +1 @@\n+60\n"
    target = write_target(tmp_path / "target", {"01-first": first, "02-second": second})
    text = (target / "target.toml").read_text().replace('"*.txt", "*.sh"]', '"*.cost", "*.sh"]')
    (target / "target.toml").write_text(text)
    (target / "src" / "main.sh").write_text(MAIN.replace('echo "cost=$(cat cost.txt)"', program))
    (target / "src" / "base.cost").write_text("100\n")
    state = await finish(target, tmp_path / "results")
    assert [patch.name for patch in state.incumbent_genome] == ["01-first", "02-second"]
    names = {patch.digest: patch.name for patch in state.incumbent_genome}
    flags = {
        names[e.ablation.without]: (e.ablation.separable, e.ablation.supported)
        for e in state.of_purpose("ablation")
        if e.ablation is not None
    }
    assert flags == {"01-first": (True, False), "02-second": (True, True)}
    effects = [
        effect.effect
        for r in read(tmp_path / "results")
        if isinstance(r.event, AblationMeasured)
        for effect in r.event.effects
        if effect.metric == "cost"
    ]
    assert effects == [0.0, pytest.approx(0.2877, abs=1e-3)]  # 80 to 60


async def test_a_patch_that_another_one_needs_cannot_be_taken_out(tmp_path: Path) -> None:
    """Without the first one the second still applies, and fails the tests."""
    needed = cost(80) + "--- /dev/null\n+++ b/answer.txt\n@@ -0,0 +1 @@\n+42\n"
    needing = """--- a/main.sh
+++ b/main.sh
@@ -2,3 +2,3 @@
-echo "cost=$(cat cost.txt)"
+echo "cost=$(($(cat cost.txt) * 3 / 4))"
 echo "size=$(cat size.txt)"
-echo answer=42
+echo answer=$(cat answer.txt)
"""
    target = write_target(tmp_path / "target", {"01-needed": needed, "02-needing": needing})
    state = await finish(target, tmp_path / "results")
    assert verdicts(state) == {"01-needed": "keep", "02-needing": "keep"}
    first, second = (e.ablation for e in state.of_purpose("ablation"))
    assert first is not None
    assert (first.separable, first.supported, first.effects) == (False, None, ())
    assert first.detail.startswith("test: exit 1")
    assert second is not None
    assert (second.separable, second.supported) == (True, True)
    assert all(e.outcome == "measured" for e in state.of_purpose("ablation"))
    assert reproduce(fold(read(tmp_path / "results"))).contradictions == ()


async def test_an_audit_on_demand_leaves_a_finished_campaign_finished(tmp_path: Path) -> None:
    target = write_target(tmp_path / "target", {"01-win": cost(80)})
    state = await finish(target, tmp_path / "results")
    async with open_campaign(target, tmp_path / "results", resume=state.stream) as campaign:
        await campaign.audit(anew=True)
        assert len(campaign.state.of_purpose("audit")) == 2
    recorded = read(tmp_path / "results")
    assert fold(recorded).campaigns[state.stream].finished == state.finished
    assert sum(isinstance(r.event, CampaignFinished) for r in recorded) == 2
    runs = [r.event for r in recorded if isinstance(r.event, RunMeasured)]
    assert {run.purpose for run in runs} >= {"audit", "calibration", "screen", "confirm", "guard"}
    started = [r.event.purpose for r in recorded if isinstance(r.event, ExperimentStarted)]
    assert started.count("calibration") == 1
    assert not [r for r in recorded if isinstance(r.event, LookTaken) and r.event.pairs == 0]
