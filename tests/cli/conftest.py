"""A tiny shell target whose metric is the number in a file, and a finished campaign on it."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import chdir
from pathlib import Path
from typing import Any

import pytest
from attrs import frozen
from click.testing import CliRunner, Result

from aiopt.cli import main

_TARGET = """\
name = "toy"
description = "a number in a file"
[source]
path = "src"
[scope]
editable = ["cost", "note", "scale"]
[stages.test]
run = "test -s cost && echo tested"
timeout = 10
[stages.workload]
run = ["./work.sh"]
timeout = 20
[metrics.cost]
role = "primary"
[metrics.size]
role = "guard"
[workloads.main]
env = {{ PAUSE = "{pause}" }}
"""
_WORK = """\
#!/bin/sh
sleep "$PAUSE"
echo "cost=$(($(cat cost) * $(cat scale) / 100))"
echo "size=10"
"""
_PATCHES = {
    "01-better": ("cost", "100", "80"),
    "02-worse": ("cost", "80", "120"),
    "03-broken": ("cost", "80", ""),
    "04-scope": ("work", "", "1"),
    "05-nothing": ("note", "a", "b"),
    "06-scaled": ("scale", "100", "90"),
}


def diff(file: str, before: str, after: str) -> str:
    """A change of the only line of a file."""
    minus = f"-{before}\n" if before else ""
    plus = f"+{after}\n" if after else ""
    old, new = int(bool(before)), int(bool(after))
    hunk = f"@@ -{old},{old} +{new},{new} @@\n{minus}{plus}"
    head = "" if before else "new file mode 100644\n"
    source = f"a/{file}" if before else "/dev/null"
    return f"diff --git a/{file} b/{file}\n{head}--- {source}\n+++ b/{file}\n{hunk}"


def make_target(folder: Path, pause: float = 0, patches: tuple[str, ...] = ()) -> Path:
    """The toy target, with some of the patches in its pool."""
    source = folder / "src"
    source.mkdir(parents=True)
    (source / "cost").write_text("100\n")
    (source / "note").write_text("a\n")
    (source / "scale").write_text("100\n")
    (folder / "target.toml").write_text(_TARGET.format(pause=pause))
    (folder / "work.sh").write_text(_WORK)
    (folder / "work.sh").chmod(0o755)
    (folder / "patches").mkdir()
    for name in patches or _PATCHES:
        text = f"Hypothesis: because of {name}\n{diff(*_PATCHES[name])}"
        (folder / "patches" / f"{name}.patch").write_text(text)
    return folder


def write_settings(folder: Path) -> None:
    """Few pairs, however busy the machine is, and a lock of its own: other tests may run here."""
    lock = folder / "lock" / "lock"
    lock.parent.mkdir()
    lock.touch()
    (folder / "aiopt.toml").write_text(
        f'[environments.local]\nbackend = "local"\noptions = {{ lock_path = "{lock}" }}\n'
        "[rule_options]\nncal = 10\nncal_guard = 6\nwarmup = 0\naudit_pairs = 6\n"
        "ablation_pairs = 6\n"
        "[rule_options.void]\nsteal = 0\npsi = 0\nthrottle = false\n"
    )


def invoke(*words: str | Path, **options: Any) -> Result:
    """The command in this process; what is no usage error must not be an exception."""
    result = CliRunner().invoke(main, [str(word) for word in words], **options)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def command(*words: str | Path, **options: Any) -> "subprocess.Popen[str]":
    """The command in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-c", "from aiopt.cli import main; main()", *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1", **options.pop("env", {})},
        **options,
    )


@frozen(kw_only=True)
class Finished:
    """A campaign that ran to its end, and what the command said."""

    home: Path
    target: Path
    log: Path
    result: Result


@pytest.fixture(scope="session")
def _finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    home = tmp_path_factory.mktemp("finished")
    target = make_target(home / "targets" / "toy")
    write_settings(home)
    with chdir(home):
        result = invoke("run", "toy", "--json")
    return Finished(
        home=home, target=target, log=home / "results" / "toy" / "events.db", result=result
    )


@pytest.fixture
def finished(_finished: Finished) -> Iterator[Finished]:
    """The finished campaign, from within its folder. Only to be read."""
    with chdir(_finished.home):
        yield _finished


Maker = Callable[..., Path]


@pytest.fixture
def toy(tmp_path: Path) -> Iterator[Maker]:
    """Makes a toy target in a fresh folder, which is the working folder."""
    write_settings(tmp_path)

    def make(pause: float = 0, patches: tuple[str, ...] = ()) -> Path:
        return make_target(tmp_path / "targets" / "toy", pause, patches)

    with chdir(tmp_path):
        yield make
