"""`aiopt try`: one patch, one verdict, and the exit code that an agent acts on."""

import json
from pathlib import Path

from .conftest import Maker, diff, invoke

_KEYS = [
    "candidate",
    "experiment",
    "campaign",
    "number",
    "patch",
    "status",
    "reason",
    "stage",
    "p_screen",
    "p_confirm",
    "mei_eff_percent",
    "needs",
    "effects",
    "mechanism",
    "flags",
    "evidence",
    "where_to_look",
    "log_tail",
    "incumbent",
    "next",
    "log",
]


def test_verdicts_in_turn(toy: Maker) -> None:
    """Each call goes on from what was kept; the exit code says whether this one was."""
    toy()
    words = ("try", "toy", "--patch", "-", "--json")
    kept = invoke(
        *words, "--name", "faster", "--hypothesis", "less", input=diff("cost", "100", "90")
    )
    assert kept.exit_code == 0
    answer = json.loads(kept.stdout)
    assert list(answer) == _KEYS
    assert (answer["status"], answer["patch"]) == ("keep", "faster")
    assert answer["incumbent"]["patches"] == ["faster"]
    assert (answer["stage"], answer["needs"], answer["mei_eff_percent"]) == (
        "confirm",
        None,
        2.9554,
    )
    assert answer["p_confirm"] < answer["p_screen"] < 0.01
    assert "the smallest gain in cost that can be proved is 3.0 %" in kept.stderr
    assert answer["incumbent"]["candidate"] == answer["candidate"]

    Path("worse.patch").write_text(diff("cost", "90", "95"))
    file = ("try", "toy", "--patch", "worse.patch", "--json")
    worse = invoke(*file, "--forbid-regression")
    assert worse.exit_code == 4
    answer = json.loads(worse.stdout)
    assert (answer["status"], answer["patch"], answer["number"]) == (
        "discard_regression",
        "worse",
        2,
    )
    again = invoke(*file, "--forbid-regression")
    assert again.exit_code == 3
    answer = json.loads(again.stdout)
    assert answer["status"] == "rejected"
    assert "it was tried before: discard_regression" in answer["next"]

    broken = invoke(*words, input=diff("cost", "90", ""))
    answer = json.loads(broken.stdout)
    assert (broken.exit_code, answer["status"]) == (3, "invalid")
    assert answer["reason"].startswith("test: ")
    assert json.loads(invoke(*words, input=diff("cost", "1", "2")).stdout)["status"] == "rejected"
    text = invoke("try", "toy", "--patch", "-", input=diff("note", "a", "b"))
    assert text.exit_code == 3
    assert "discard no effect" in text.stdout
    assert "  p of the screen 1\n" in text.stdout
    assert "~+0.00 %" in text.stdout
    assert "next: try another idea on top of the source with faster" in text.stdout

    settled = ("--set", "mei=0.05", "--rule", "two-stage")
    fixed = invoke(*words, *settled, input=diff("cost", "90", "80"))
    assert fixed.exit_code == 2
    assert "--rule, --set: settled when cmp-0001 began" in fixed.stderr
    fresh = invoke(*words, "--new", *settled, input=diff("cost", "100", "80"))
    assert fresh.exit_code == 0
    assert json.loads(fresh.stdout)["campaign"].startswith("cmp-0002~")
    assert invoke("resume", "toy").exit_code == 2
    assert "belongs to `aiopt try`" in invoke("resume", "toy", "--campaign", "cmp-0001").stderr


def test_failed_stage_shows_its_log(toy: Maker) -> None:
    """What a failed stage printed comes with the answer."""
    folder = toy()
    text = (folder / "target.toml").read_text()
    (folder / "target.toml").write_text(
        text.replace("test -s cost && echo tested", "cat note; grep -q a note")
    )
    result = invoke("try", "toy", "--patch", "-", "--json", input=diff("note", "a", "wrong"))
    assert json.loads(result.stdout)["log_tail"] == "wrong"
    again = invoke("try", "toy", "--patch", "-", input=diff("note", "a", "worse"))
    assert "last lines of the stage that failed:\nworse" in again.stdout


def test_usage(toy: Maker) -> None:
    """No patch, no target."""
    toy()
    assert invoke("try", "toy", "--patch", "-", input="").exit_code == 2
    assert invoke("try", "toy").exit_code == 2
    assert invoke("try", "toy", "--patch", "nowhere.patch").exit_code == 2
    assert invoke("try", "other", "--patch", "-", input="x").exit_code == 2
