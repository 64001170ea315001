"""targets, new-target, plugins and doctor."""

import json
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest

import aiopt
from aiopt import plugins
from aiopt.protocols import NotAvailable, Workspace
from aiopt.target import load_target

from .conftest import Maker, invoke, write_settings


def _entry(name: str, group: str, value: str) -> plugins.Found:
    return plugins.Found(
        group=group,
        name=name,
        value=value,
        distribution="other",
        version="1.0",
        entry=EntryPoint(name, value, f"aiopt.{group}"),
    )


def test_targets(toy: Maker) -> None:
    """Targets below ./targets, with the problems of those that do not load."""
    assert "no targets here" in invoke("targets").stdout
    toy()
    assert "a number in a file" in invoke("targets").stdout
    broken = Path("targets/broken")
    broken.mkdir()
    (broken / "target.toml").write_text("name = 3\n")
    result = invoke("targets")
    assert result.exit_code == 1
    assert "targets/broken/target.toml" in result.stderr
    rows = json.loads(invoke("targets", "--json").stdout)["targets"]
    assert [row["name"] for row in rows] == ["broken", "toy"]
    assert list(rows[0]) == [
        "name",
        "folder",
        "description",
        "primaries",
        "workloads",
        "problems",
    ]


def test_targets_of_packages(toy: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    """A function behind an entry point says where its folder is."""
    toy()
    folder = str(Path("targets/toy").absolute())
    known = plugins.available
    mine = {"plugged": "plugged_target:folder", "gone": "no_such:x"}

    def available(group: str) -> tuple[plugins.Found, ...]:
        if group != "targets":
            return known(group)
        return tuple(_entry(name, group, value) for name, value in mine.items())

    monkeypatch.setattr(plugins, "available", available)
    monkeypatch.syspath_prepend(".")
    Path("plugged_target.py").write_text(f"def folder():\n    return {folder!r}\n")
    rows = json.loads(invoke("targets", "--json").stdout)["targets"]
    assert [(row["name"], bool(row["problems"])) for row in rows] == [
        ("toy", False),
        ("toy", False),
        ("gone", True),
    ]
    assert invoke("show", "plugged").exit_code == 2  # found, but there is no log yet
    assert invoke("run", "plugged", "--budget", "1").exit_code == 0


def test_new_target_loads_and_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The skeleton is a target; nothing is overwritten; the next commands are named."""
    monkeypatch.chdir(tmp_path)
    write_settings(tmp_path)
    result = invoke("new-target", "mine")
    assert result.exit_code == 0
    assert [line.strip() for line in result.stdout.splitlines()[-3:]] == [
        "aiopt doctor",
        "aiopt try mine --patch FILE",
        "aiopt run mine --budget 30m",
    ]
    target = load_target(Path("targets/mine"))
    assert target.name == "mine"
    assert target.primaries == ("wall_seconds",)
    again = invoke("new-target", "mine")
    assert again.exit_code == 2
    assert "is there already; nothing was written" in again.stderr
    assert invoke("new-target", "Wrong Name").exit_code == 2
    assert invoke("new-target", "other", "--dir", "here").exit_code == 0
    assert load_target(Path("here")).name == "other"
    tried = invoke("try", "mine", "--patch", "-", "--json", input="no diff")
    assert json.loads(tried.stdout)["status"] == "rejected"  # so its baseline builds and runs


def test_plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    """All groups; a plug-in that fails shows why and does not disturb the others."""
    assert "LocalBackend" in json.dumps(json.loads(invoke("plugins", "--json").stdout))
    known = plugins.available

    def available(group: str) -> tuple[Any, ...]:
        return (*known(group), _entry("bad", group, "no_such_module:Thing"))

    monkeypatch.setattr("aiopt.cli.plugins.available", available)
    result = invoke("plugins", "backends")
    assert result.exit_code == 1
    assert "ModuleNotFoundError: No module named 'no_such_module'" in result.stdout
    assert "loads" in result.stdout
    assert invoke("plugins", "nothing").exit_code == 2


def test_doctor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every check has a status; what is essential is there."""
    monkeypatch.chdir(tmp_path)
    result = invoke("doctor", "--json")
    assert result.exit_code == 0
    found = json.loads(result.stdout)
    assert found["ok"] is True
    assert {check["status"] for check in found["checks"]} <= {"ok", "note", "warning", "missing"}
    names = [check["name"] for check in found["checks"]]
    for name in ("python", "git", "sqlite", "zstd", "results", "load", "perf_event"):
        assert name in names
    assert "backend local" in names
    assert "python" in invoke("doctor").stdout


def test_doctor_without_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is essential and missing makes the exit code 1, and the fix is named."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("aiopt.cli.doctor.plugins.available", lambda group: ())
    result = invoke("doctor")
    assert result.exit_code == 1
    assert "git: apt-get install git" in result.stdout


class _Backend:
    async def observe(self) -> dict[str, Any]:
        raise aiopt.BackendUnavailable("no route to the machine")


class _Profiler:
    def __init__(self, unavailable: NotAvailable | None) -> None:
        self._unavailable = unavailable

    async def probe(self, workspace: Workspace) -> NotAvailable | None:
        return self._unavailable


def test_doctor_probes_plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each backend is asked what it is, each profiler whether it works here; fixes are shown."""
    monkeypatch.chdir(tmp_path)
    mine: dict[tuple[str, str], Any] = {
        ("backends", "far"): _Backend(),
        ("profilers", "good"): _Profiler(None),
        ("profilers", "lacking"): _Profiler(NotAvailable(reason="no perf", fix="install perf")),
    }
    known, load = plugins.available, plugins.load

    def available(group: str) -> tuple[plugins.Found, ...]:
        more = [_entry(name, kind, "x:y") for kind, name in mine if kind == group]
        found = known(group) if group == "backends" else ()
        return (*(f for f in found if f.name == "local"), *more)

    def loaded(group: str, name: str) -> Any:
        if (group, name) not in mine:
            return load(group, name)
        return plugins.Loaded(plugin=mine[group, name], used=_entry(name, group, "x:y").used)

    monkeypatch.setattr("aiopt.cli.doctor.plugins.available", available)
    monkeypatch.setattr("aiopt.cli.doctor.plugins.load", loaded)
    checks = {c["name"]: c for c in json.loads(invoke("doctor", "--json").stdout)["checks"]}
    assert checks["backend local"]["status"] == "ok"
    assert checks["backend far"]["detail"] == "no route to the machine"
    assert checks["profiler good"]["status"] == "ok"
    assert checks["profiler lacking"]["fix"] == "install perf"
    assert "profiler lacking: install perf" in invoke("doctor").stdout
