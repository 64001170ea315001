"""The benchmarks run to their end; what they find out is not asked here."""

import json
import signal
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests.benchmarks import __main__ as benchmarks
from tests.benchmarks.measuring import Cost, Line, Ratio, Rounds, WrongWork, equal, ratio, turns
from tests.benchmarks.places import Places, places

ROOT = Path(__file__).parents[1]
PEERS = {
    "2": "optuna",
    "3": "optuna",
    "replay": "eventsourcing",
    "6a": "ribs",
    "6b": "openevolve",
}


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "tests.benchmarks", *arguments]


@pytest.fixture(scope="module")
def report() -> Any:
    done = subprocess.run(
        command("--quick", "--json"), cwd=ROOT, capture_output=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    return json.loads(done.stdout)


def of_row(report: Any, row: str) -> list[Any]:
    return [line for line in report["rows"] if line["row"].split()[0] == row]


@pytest.mark.slow
@pytest.mark.parametrize("row", benchmarks.ROWS)
def test_every_row_is_there(report: Any, row: str) -> None:
    assert of_row(report, row)


@pytest.mark.slow
def test_quick_judges_no_goal(report: Any) -> None:
    assert report["quick"] is True
    assert report["ok"] is True
    assert {"met", "missed", "wrong work"}.isdisjoint(line["status"] for line in report["rows"])


@pytest.mark.slow
@pytest.mark.parametrize("row", PEERS)
def test_a_missing_peer_is_said_to_be_missing(report: Any, row: str) -> None:
    missing = find_spec(PEERS[row]) is None
    assert any(line["status"] == "not installed" for line in of_row(report, row)) == missing


@pytest.mark.slow
@pytest.mark.parametrize("row", ["1", "4", "verify", "7"])
def test_what_needs_no_peer_is_measured(report: Any, row: str) -> None:
    first = of_row(report, row)[0]
    assert first["ours"] > 0
    assert first["ratio"]["low"] <= first["ratio"]["median"] <= first["ratio"]["high"]


@pytest.mark.parametrize("row", ["2", "3", "replay", "6a", "6b"])
def test_without_peers(row: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for module in ("trials", "replaying", "archives"):
        monkeypatch.setattr(f"tests.benchmarks.{module}.find_spec", lambda name: None)
    where = Places(tmp_path, tmp_path, "tmpfs", "ext4")
    lines = [line.judged(True) for line in benchmarks.ROWS[row](where, True)]
    assert "not installed" in {line.status for line in lines}
    assert "met" not in {line.status for line in lines}


@pytest.mark.parametrize(
    ("median", "turned", "status"),
    [(1.3, False, "met"), (1.31, False, "missed"), (1.3, True, "met"), (1.29, True, "missed")],
)
def test_judged(median: float, turned: bool, status: str) -> None:
    line = Line(row="1", what="", goal=1.3, turned=turned, ratio=Ratio(0.0, median, 9.0))
    assert line.judged(True).status == status
    assert line.judged(False).status == "not judged"


def test_the_ratio_is_the_median_of_the_rounds() -> None:
    rounds = Rounds()
    for ours, theirs in [(1.0, 1.0), (4.0, 2.0), (30.0, 10.0)]:
        rounds.add("ours", Cost(ours, 0.0))
        rounds.add("theirs", Cost(theirs, 0.0))
    assert ratio(rounds, "ours", "theirs", "cpu") == Ratio(1.5, 2.0, 2.5)
    assert rounds.median("ours", "cpu") == 4.0


def test_turns_turn_and_the_first_round_does_not_count() -> None:
    rounds = Rounds()
    order = []
    for side in turns(["a", "b"], 2, rounds):
        order.append(side)
        rounds.add(side, Cost(1.0, 1.0))
    assert order == ["a", "b", "b", "a", "a", "b"]
    assert {side: len(costs) for side, costs in rounds.costs.items()} == {"a": 2, "b": 2}


def test_unequal_work_is_an_error() -> None:
    equal("rows", 3, 3)
    with pytest.raises(WrongWork, match="rows: ours 3, the other side 4"):
        equal("rows", 3, 4)


def test_wrong_work_fails_its_row_and_no_other(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def wrong(where: Places, quick: bool) -> Any:
        raise WrongWork("rows: 3 and 4")

    monkeypatch.setattr(benchmarks, "ROWS", {**benchmarks.ROWS, "1": wrong})
    before = signal.getsignal(signal.SIGTERM)
    try:
        assert benchmarks.main(["--only", "1", "--only", "9", "--json"]) == 1
    finally:
        signal.signal(signal.SIGTERM, before)
    found = json.loads(capsys.readouterr().out)
    assert [line["status"] for line in found["rows"]] == ["wrong work", "run it"]
    assert found["ok"] is False


def test_the_folders_go() -> None:
    with places(1) as where:
        assert where.memory.is_dir()
        assert where.disk.is_dir()
    assert not where.memory.exists()
    assert not where.disk.exists()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_it_leaves_nothing(number: signal.Signals) -> None:
    process = subprocess.Popen(
        command("--only", "4"), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.readline()  # the folders are there now, and held open
    descriptors = Path(f"/proc/{process.pid}/fd").iterdir()
    folders = {link.readlink() for link in descriptors if "aiopt-bench-" in str(link.readlink())}
    assert len(folders) >= 2
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors.decode()
    assert b"interrupted" in errors
    assert not any(folder.exists() for folder in folders)
