"""`aiopt audit`: campaigns that were finished, those of `aiopt try`, and what ends it."""

import json
import signal
import subprocess
import time
from pathlib import Path

import pytest

import aiopt
from aiopt.replay import CampaignState

from .conftest import Finished, Maker, command, diff, invoke


def _campaign() -> CampaignState:
    return next(iter(aiopt.load_state("results/toy/events.db").campaigns.values()))


def test_what_was_measured_is_printed(finished: Finished) -> None:
    """The result beside the claims, what each patch contributes, the table for ranking."""
    before = finished.log.stat().st_mtime_ns
    text = invoke("audit", "toy").stdout
    assert "cmp-0001 kept: 01-better, 06-scaled" in text
    assert "+28.00 %  [+28.00, +28.00]  +28.00 %" in text
    assert "The audit is the result." in text
    assert "exp-0009    01-better  supported  cost +20.0 % [+20.0, +20.0]" in text
    assert "for ranking only" in text
    found = json.loads(invoke("audit", finished.log, "--campaign", "cmp-0001", "--json").stdout)
    assert list(found) == ["campaign", "kept", "audit", "log"]
    assert list(found["audit"]) == [
        "experiment",
        "final",
        "effects",
        "claims",
        "ablation",
        "ablation_due",
        "shrunken",
        "sentences",
    ]
    (claim,) = found["audit"]["claims"]
    assert (claim["steps"], claim["claimed_percent"]) == (2, pytest.approx(28))
    assert claim["audited"]["better_percent"] == pytest.approx(28)
    assert finished.log.stat().st_mtime_ns == before


def test_single_patches_are_audited(toy: Maker) -> None:
    """`aiopt try` does not audit by itself; afterwards its campaign goes on."""
    toy()
    words = ("try", "toy", "--patch", "-")
    assert invoke("audit", "toy").exit_code == 2  # no log
    assert invoke(*words, input=diff("note", "a", "b")).exit_code == 3
    nothing = invoke("audit", "toy")
    assert nothing.exit_code == 3
    assert nothing.stdout == "cmp-0001: nothing was kept, so there is nothing to audit\n"
    assert json.loads(invoke("audit", "toy", "--json").stdout)["audit"] is None
    assert invoke(*words, input=diff("cost", "100", "80")).exit_code == 0
    assert invoke(*words, input=diff("scale", "100", "90")).exit_code == 0
    result = invoke("audit", "toy", "--json")
    assert result.exit_code == 0
    assert "audit done" in result.stderr
    view = json.loads(result.stdout)["audit"]
    assert [row["state"] for row in view["ablation"]] == ["supported", "supported"]
    again = invoke("audit", "toy", "--anew", "--json")
    assert json.loads(again.stdout)["audit"]["experiment"] != view["experiment"]
    assert _campaign().finished is None
    assert invoke(*words, input=diff("cost", "80", "70")).exit_code == 0
    assert len(_campaign().kept) == 3
    assert invoke("audit", "toy", "--campaign", "cmp-0009").exit_code == 2
    assert invoke("audit", "nothing").exit_code == 2


def test_a_finished_campaign_stays_finished(toy: Maker) -> None:
    """Also if the audit is interrupted; the same command goes on with it."""
    toy(pause=0.1, patches=("01-better",))
    assert invoke("run", "toy", "--rule", "signed-rank", "--pairs", "7").exit_code == 0
    assert len(_campaign().of_purpose("audit")) == 1
    process = command("audit", "toy", "--anew")
    _wait_for_audit(process)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 130, errors
    assert "interrupted; `aiopt audit toy --anew` goes on" in errors
    campaign = _campaign()
    assert campaign.finished == "the proposer has no more"
    assert [e.outcome for e in campaign.of_purpose("audit")] == ["measured", None]
    assert "finished: the proposer has no more" in invoke("show", "toy").stdout
    assert invoke("audit", "toy", "--anew").exit_code == 0
    campaign = _campaign()
    assert [e.outcome for e in campaign.of_purpose("audit")] == ["measured", "measured"]
    assert campaign.finished == "the proposer has no more"
    assert invoke("resume", "toy").exit_code == 2
    assert invoke("verify", "toy").exit_code == 0


def _wait_for_audit(process: "subprocess.Popen[str]") -> None:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()
        audits = _campaign().of_purpose("audit")
        if len(audits) == 2 and audits[1].facts:
            return
        time.sleep(0.05)
    raise AssertionError("no second audit began")


def test_a_log_elsewhere_cannot_go_on(toy: Maker) -> None:
    """A log that is to be written must be where a campaign would write it."""
    toy(patches=("01-better",))
    assert invoke("run", "toy", "--rule", "signed-rank", "--pairs", "7").exit_code == 0
    other = Path("elsewhere.db")
    other.write_bytes(Path("results/toy/events.db").read_bytes())
    result = invoke("audit", other, "--anew")
    assert (result.exit_code, "must be RESULTS/toy/events.db" in result.stderr) == (2, True)
