"""`aiopt run` and `aiopt resume`: results, exit codes, interruption, the lease."""

import json
import signal
import subprocess
import time
from pathlib import Path

import pytest

import aiopt
from aiopt.config import structure
from aiopt.events import Recorded
from aiopt.log import Log
from aiopt.settings import Settings, load_settings

from .conftest import Finished, Maker, command, invoke

_SUMMARY_KEYS = [
    "campaign",
    "target",
    "environment",
    "mode",
    "strategy",
    "proposer",
    "rule",
    "seed",
    "status",
    "reason",
    "baseline",
    "incumbent",
    "kept",
    "counts",
    "seconds",
    "calibration",
    "candidates",
    "audit",
    "causal",
    "log",
]
_CANDIDATE_KEYS = [
    "number",
    "experiment",
    "candidate",
    "patch",
    "hypothesis",
    "proposer",
    "status",
    "reason",
    "stage",
    "pairs",
    "seconds",
    "p_screen",
    "p_confirm",
    "mei_eff_percent",
    "needs",
    "effects",
    "mechanism",
    "flags",
]


def _wait_for(path: Path, kind: str, process: "subprocess.Popen[str]") -> None:
    """Until an event of this kind is in the log."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()
        if path.is_file():
            with Log.open(path, readonly=True) as log:
                if any(type(recorded.event).__name__ == kind for recorded in log.read()):
                    return
        time.sleep(0.05)
    raise AssertionError(f"no {kind} in {path}")


def test_summary_as_json(finished: Finished) -> None:
    """One object on standard output with stable keys, nothing else; progress is on stderr."""
    assert finished.result.exit_code == 0
    found = json.loads(finished.result.stdout)
    assert list(found) == _SUMMARY_KEYS
    assert list(found["candidates"][0]) == _CANDIDATE_KEYS
    statuses = [row["status"] for row in found["candidates"]]
    assert statuses[0] == "keep"
    assert statuses[1] == "discard_regression"
    assert statuses[2:4] == ["invalid", "rejected"]
    assert found["kept"] == ["01-better", "06-scaled"]
    audit = {effect["metric"]: effect for effect in found["audit"]["effects"]}
    assert audit["cost"]["better_percent"] == pytest.approx(28, abs=0.01)
    assert "01-better: keep  cost +20.0 %" in finished.result.stderr
    assert "the smallest gain in cost that can be proved is 3.0 %" in finished.result.stderr
    assert "audit done: cost +28.0 %" in finished.result.stderr
    assert "without 06-scaled: supported cost +10.0 %" in finished.result.stderr
    assert "\x1b" not in finished.result.stderr


def test_nothing_kept_is_3(toy: Maker) -> None:
    """A campaign that keeps nothing ends with 3, and says in a table why."""
    toy(patches=("05-nothing",))
    result = invoke("run", "toy", "--budget", "5", "--budget", "1h")
    assert result.exit_code == 3
    assert "05-nothing" in result.stdout
    assert "discard no effect" in result.stdout
    assert "aiopt show results/toy/events.db exp-0003" in result.stdout
    again = invoke("resume", "toy")
    assert again.exit_code == 2
    assert "no campaign in results/toy/events.db is unfinished" in again.stderr


def test_budget_is_checked(toy: Maker) -> None:
    """What is no budget is a usage error."""
    toy()
    assert "give a number of candidates" in invoke("run", "toy", "--budget", "soon").stderr
    assert invoke("run", "toy", "--budget", "1.5").exit_code == 2


def test_rule_and_its_parameters(toy: Maker) -> None:
    """Another rule, and parameters by name, also those of a table, over those of aiopt.toml."""
    toy(patches=("05-nothing",))
    settings = Path("aiopt.toml")
    settings.write_text(settings.read_text().replace("steal = 0", "steal = 0.5"))
    changes = ("--set", "mei=0.05,void.psi=0", "--set", "void.throttle=false")
    assert invoke("run", "toy", *changes).exit_code == 3
    fixed = ("--rule", "signed-rank", "--pairs", "7", "--alpha", "0.02")
    result = invoke("run", "toy", *fixed, env={"AIOPT_RUN_SET": "delta0=0"})
    assert result.exit_code == 3
    state = aiopt.load_state("results/toy/events.db")
    first, second = (campaign.started for campaign in state.campaigns.values())
    assert (first.rule, first.rule_params["mei"], first.rule_params["ncal"]) == (
        "two-stage",
        0.05,
        10,
    )
    void = {"steal": 0.5, "psi": 0, "throttle": False}
    assert void.items() <= first.rule_params["void"].items()
    assert second.rule == "signed-rank"
    assert {"pairs": 7, "alpha": 0.02, "delta0": 0}.items() <= second.rule_params.items()
    text = invoke("show", "toy", "cmp-0002", "--budget").stdout
    assert "the rule signed-rank has no error budget: its level is 0.02" in text


def test_parameters_that_do_not_belong(toy: Maker) -> None:
    """What a rule would ignore is a usage error, and so is what no rule has."""
    toy()
    text = "--pairs belongs to --rule signed-rank; two-stage plans its own numbers from the noise"
    wrong = invoke("run", "toy", "--pairs", "9")
    assert (wrong.exit_code, text in wrong.stderr) == (2, True)
    assert "--alpha belongs to" in invoke("run", "toy", "--alpha", "0.1").stderr
    assert "--set pairs belongs to" in invoke("run", "toy", "--set", "pairs=9").stderr
    level = invoke("run", "toy", "--rule", "benchstat", "--alpha", "0.1")
    assert "--alpha belongs to --rule signed-rank; benchstat has no level" in level.stderr
    assert "no rule 'none'; there are two-stage" in invoke("run", "toy", "--rule", "none").stderr
    unknown = invoke("run", "toy", "--set", "void.noise=1")
    assert (unknown.exit_code, "no parameter void.noise; there are" in unknown.stderr) == (2, True)
    assert invoke("run", "toy", "--set", "mei=0").exit_code == 2
    assert (
        not Path("results/toy/events.db").is_file()
        or not aiopt.load_state("results/toy/events.db").campaigns
    )


def test_configuration_errors_are_2(toy: Maker) -> None:
    """Without a traceback, with the path of each problem."""
    folder = toy()
    result = invoke("run", "toy", "--proposer", "nobody")
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ")
    assert "nobody" in result.stderr
    Path("aiopt.toml").write_text("pairs = 3\n")
    result = invoke("run", folder)
    assert result.exit_code == 2
    assert "aiopt.toml: 1 problem" in result.stderr
    assert invoke("run", "other").exit_code == 2
    assert invoke("run", "toy", "--proposer", "try").exit_code == 2


def test_broken_baseline_is_1(toy: Maker) -> None:
    """A target that fails unchanged is an error, and no unfinished campaign."""
    folder = toy()
    script = folder / "work.sh"
    good = script.read_text()
    script.write_text("#!/bin/sh\necho broken; exit 3\n")
    result = invoke("run", "toy")
    assert result.exit_code == 1
    assert "exit 3: broken" in result.stderr
    assert "Traceback" not in result.stderr
    script.write_text(good)
    assert invoke("run", "toy", "--budget", "1").exit_code == 0


def test_environment_variables(toy: Maker) -> None:
    """Options can be given as AIOPT_COMMAND_OPTION, the results also for all commands."""
    toy(patches=("05-nothing",))
    env = {"AIOPT_RUN_BUDGET": "1", "AIOPT_RESULTS": "elsewhere", "NO_COLOR": "1"}
    assert invoke("run", "toy", env=env).exit_code == 3
    assert Path("elsewhere/toy/events.db").is_file()
    other = invoke("run", "toy", env={"AIOPT_RUN_ENV": "nowhere"})
    assert (other.exit_code, "'nowhere' is not defined" in other.stderr) == (2, True)
    assert invoke("show", "toy", env=env).exit_code == 0


def test_interrupt_resume_and_lease(toy: Maker) -> None:
    """SIGINT tears down, logs it and exits with 130; nobody else may write; resume finishes."""
    toy(pause=0.1, patches=("01-better",))
    log = Path("results/toy/events.db")
    first = command("run", "toy")
    _wait_for(log, "PairScheduled", first)
    second = invoke("run", "toy")
    assert second.exit_code == 1
    assert f"is being written by process {first.pid}" in second.stderr
    with command("log", "toy", "--follow", "--json", "--type", "PairScheduled") as follower:
        assert follower.stdout is not None
        assert json.loads(follower.stdout.readline())["type"] == "PairScheduled"
        follower.send_signal(signal.SIGINT)
        assert follower.wait(10) == 0
        assert follower.stderr is not None
        assert follower.stderr.read() == ""
    first.send_signal(signal.SIGINT)
    _, errors = first.communicate(timeout=20)
    assert first.returncode == 130, errors
    assert "`aiopt resume toy` goes on" in errors
    assert "Traceback" not in errors
    with Log.open(log, readonly=True) as opened:
        assert "stopped by the user" in str([r.event for r in opened.read()][-1])
    third = invoke("run", "toy")
    assert third.exit_code == 2
    assert "`aiopt resume toy`" in third.stderr
    result = invoke("resume", log, "--campaign", "cmp-0001", "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["kept"] == ["01-better"]
    assert invoke("resume", "toy", "--campaign", "cmp-0001").exit_code == 2
    assert invoke("verify", "toy").exit_code == 0


def test_terminated_is_130(toy: Maker) -> None:
    """SIGTERM is as good as Ctrl-C; --new begins another campaign then."""
    toy(pause=0.1, patches=("05-nothing",))
    process = command("run", "toy", "--json")
    _wait_for(Path("results/toy/events.db"), "PairScheduled", process)
    process.terminate()
    output, _ = process.communicate(timeout=20)
    assert process.returncode == 130
    assert output == ""
    second = invoke("run", "toy", "--new", "--json")
    assert second.exit_code == 3, second.stderr
    assert invoke("resume", "toy", "--json").exit_code == 3


def test_from_python(toy: Maker) -> None:
    """`aiopt.run` gives the same summary, `aiopt.rescore` what other weights make of it."""
    folder = toy(patches=("01-better",))
    settings = structure(load_settings(Path("aiopt.toml")), Settings, "aiopt.toml")
    seen: list[Recorded] = []
    result = aiopt.run(folder, settings=settings, observer=seen.append)
    assert result.kept == ("01-better",)
    assert len(seen) > 20
    log = Path("results/toy/events.db")
    assert list(aiopt.load_state(log).campaigns) == [result.campaign]
    assert aiopt.rescore(log, weights={"cost": 1.0}).ranking[0].patch == "01-better"
    assert result.calibration is not None
    assert not aiopt.rescore(log).post_hoc
    other = aiopt.rescore(log, rule="signed-rank", changes={"pairs": 20, "void.psi": 0})
    assert [decision.replayed for decision in other.decisions] == ["needs_more"]
    assert other.post_hoc
    with pytest.raises(aiopt.ConfigError, match="no parameter colour; there are ablation_pairs"):
        aiopt.rescore(log, changes={"colour": 1})
    with pytest.raises(aiopt.ConfigError, match="no rule"):
        aiopt.rescore(log, rule="none")
    with pytest.raises(aiopt.ConfigError, match="is not there"):
        aiopt.rescore(log, campaign="cmp-0009~1")
