"""`aiopt profile`, and what evidence does in a campaign: digests, claims and flags."""

import json
import shutil
from collections.abc import Callable, Iterable
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

import pytest

import aiopt
from aiopt import plugins
from aiopt.events import EvidenceCaptured, PairScheduled, Recorded, StageStarted
from aiopt.log import Log
from tests.cli.conftest import Maker, diff, invoke


@pytest.fixture
def stacks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The profiler `stacks`, as if a package had brought it."""
    real: Callable[..., Iterable[EntryPoint]] = entry_points

    def with_ours(**selection: Any) -> list[EntryPoint]:
        found: list[EntryPoint] = [*real(**selection)]
        if selection.get("group") == "aiopt.profilers":
            value = "tests.stack_profiler:StackProfiler"
            found.append(EntryPoint("stacks", value, "aiopt.profilers"))
        return found

    monkeypatch.setattr(plugins, "entry_points", with_ours)


def profiled(toy: Maker, **options: Any) -> Path:
    """The toy target with the profiler, in full mode."""
    folder = toy(**options)
    text = (folder / "target.toml").read_text()
    (folder / "target.toml").write_text(
        text.replace("[source]", 'profilers = ["stacks"]\n[source]')
    )
    return folder


@pytest.mark.usefixtures("stacks")
def test_profile_writes_what_others_open(toy: Maker) -> None:
    toy()
    done = invoke("profile", "toy", "--with", "stacks,proc", "--json")
    assert done.exit_code == 0, done.output
    answer = json.loads(done.stdout)
    first, second = answer["evidence"]
    assert first["tool"] == "stack profiler 7"
    assert (first["profiler"], first["status"]) == ("stacks", "measured")
    assert first["scalars"]["self_share[hot]"]["value"] == 0.5
    assert first["overhead_percent"] == {"cost": 0.0, "size": 0.0}
    assert second["profiler"] == "proc"
    names = {Path(name).name for name in answer["files"]}
    assert {"stacks.folded.txt", "stacks.speedscope.json"} <= names
    folded = Path("results/toy/profiles/stacks.folded.txt")
    assert folded.read_text() == "main;hot 10000\nmain;rest 10000\n"
    text = invoke("profile", "toy", "--with", "stacks", "--out", "there")
    assert "the unmodified source" in text.stdout
    assert "50 %  on-CPU  hot" in text.stdout
    assert Path("there/stacks.folded.txt").is_file()


@pytest.mark.usefixtures("stacks")
def test_profiles_are_of_the_incumbent(toy: Maker) -> None:
    """Also of a campaign that is finished, and it is finished afterwards."""
    toy(patches=("01-better",))
    assert invoke("run", "toy").exit_code == 0
    answer = json.loads(invoke("profile", "toy", "--with", "stacks", "--json").stdout)
    assert answer["patches"] == ["01-better"]
    assert (
        json.loads(invoke("show", "toy", "--json").stdout)["campaigns"][0]["status"] == "finished"
    )
    fresh = json.loads(invoke("profile", "toy", "--with", "stacks", "--json", "--new").stdout)
    assert fresh["patches"] == []


@pytest.mark.usefixtures("stacks")
def test_a_script_can_profile(toy: Maker) -> None:
    """What a script has begun, it can go on with, and so can the command."""
    folder = toy()
    seen: list[str] = []
    first = aiopt.profile(
        folder,
        profilers=("stacks", "bperf"),
        observer=lambda recorded: seen.append(type(recorded.event).__name__),
    )
    assert [(row.profiler, row.status) for row in first] == [
        ("stacks", "measured"),
        ("bperf", "not_available"),
    ]
    assert first[0].scalars["self_share[hot]"].value == 0.5
    assert "EvidenceCaptured" in seen
    (stream,) = aiopt.load_state("results/toy/events.db").campaigns
    (row,) = aiopt.profile(folder, profilers=["stacks"], resume=stream)
    assert row.status == "measured"
    assert invoke("profile", "toy", "--with", "stacks").exit_code == 0
    assert len(aiopt.load_state("results/toy/events.db").campaigns) == 1
    with pytest.raises(aiopt.UnknownPluginError, match="nosuch"):
        aiopt.profile(folder, profilers=["nosuch"])


def test_what_cannot_be_asked_for(toy: Maker) -> None:
    toy()
    assert "no profilers: name some" in invoke("profile", "toy").output
    unknown = invoke("profile", "toy", "--with", "nosuch")
    assert unknown.exit_code != 0
    assert "nosuch" in unknown.output
    workload = invoke("profile", "toy", "--with", "proc", "--workload", "nosuch")
    assert workload.exit_code == 2
    assert "there are main" in workload.output


def test_a_profiler_that_cannot_run_says_why(toy: Maker) -> None:
    toy()
    done = invoke("profile", "toy", "--with", "bperf", "--json")
    assert done.exit_code == 3
    (row,) = json.loads(done.stdout)["evidence"]
    assert row["status"] == "not_available"
    assert "5.3.7" in row["reason"]
    assert row["fix"]


@pytest.mark.usefixtures("stacks")
def test_claims_are_checked_in_full_mode(toy: Maker) -> None:
    """One patch does what it says; the other is faster for another reason, and is flagged."""
    profiled(toy)
    words = ("try", "toy", "--mode", "full", "--patch", "-", "--json", "--claim", "hot cost")
    honest = json.loads(invoke(*words, input=diff("cost", "100", "60")).stdout)
    assert (honest["status"], honest["flags"]) == ("keep", [])
    (check,) = honest["mechanism"]
    assert (check["status"], check["profiler"]) == ("confirmed", "stacks")
    (row,) = honest["evidence"]
    assert row["findings"][0]["where"] == "hot"
    assert "50 %  on-CPU  hot" in honest["where_to_look"]

    again = ("try", "toy", "--patch", "-", "--claim", "hot cost")
    wrong = json.loads(invoke(*again, "--json", input=diff("scale", "100", "80")).stdout)
    assert wrong["status"] == "keep"
    assert wrong["flags"] == ["faster, but the targeted function hot did not change"]
    shown = invoke("show", "toy").stdout
    assert "faster, but the targeted function hot did not change" in shown
    detail = invoke("show", "toy", wrong["experiment"]).stdout
    assert "claim hot, cost: unchanged" in detail
    assert "stacks, workload main:" in detail
    bad = invoke(*again[:-1], "hot", input=diff("note", "a", "b"))
    assert bad.exit_code == 2
    assert "expected a function and a metric" in bad.output


@pytest.mark.usefixtures("stacks")
def test_evidence_of_every_candidate_is_in_the_log(toy: Maker) -> None:
    profiled(toy, patches=("01-better", "06-scaled"))
    assert invoke("run", "toy", "--mode", "full").exit_code == 0
    with Log.open(Path("results/toy/events.db"), readonly=True) as log:
        captured = [r.event for r in log.read() if isinstance(r.event, EvidenceCaptured)]
    assert len({event.candidate for event in captured}) == 3  # the baseline, and both candidates
    assert all(event.under_profiler["size"] == (10.0,) for event in captured)
    assert shutil.which("aiopt") is None or invoke("verify", "toy").exit_code == 0


@pytest.mark.usefixtures("stacks")
def test_evidence_that_was_cut_off_is_taken_again(toy: Maker) -> None:
    """What ends the controller between the last pair and the last profile costs no evidence."""
    folder = profiled(toy, patches=("01-better",))

    class Killed(Exception):
        pass

    def kill(recorded: Recorded) -> None:
        event = recorded.event
        if isinstance(event, StageStarted) and event.run.startswith("profile:"):
            seen.append(event.run)
            if len(seen) == 2:  # the first one is of the baseline
                raise Killed

    seen: list[str] = []
    settings = aiopt.Settings(mode="full", rule="signed-rank")
    with pytest.raises(Killed):
        aiopt.run(folder, settings=settings, observer=kill)
    (stream,) = aiopt.load_state("results/toy/events.db").campaigns
    result = aiopt.run(folder, resume=stream)
    assert len(result.kept) == 1
    (campaign,) = aiopt.load_state("results/toy/events.db").campaigns.values()
    (experiment,) = campaign.of_purpose("candidate")
    assert [answer.profiler for answer in experiment.profiles] == ["stacks"]
    measured = [fact for fact in experiment.facts if isinstance(fact, PairScheduled)]
    assert len(measured) == len({(f.purpose, f.workload, f.index, f.attempt) for f in measured})
