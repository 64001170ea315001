"""README.md, program.md and the examples say what is there, and what they say works."""

import math
import os
import re
import sqlite3
import subprocess
import sys
import textwrap
import tomllib
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from random import Random

import click
import pytest

from aiopt import plugins
from aiopt.cli import COMMANDS, main
from aiopt.config import structure
from aiopt.log import Log
from aiopt.settings import Settings

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PROGRAM = (ROOT / "program.md").read_text(encoding="utf-8")
TEXTS = {"README.md": README, "program.md": PROGRAM}
WITH_AIOPT = {
    **os.environ,
    "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
}


def command(name: str) -> click.Command:
    module, _, attribute = COMMANDS[name][0].partition(":")
    found = getattr(import_module(module), attribute)
    assert isinstance(found, click.Command)
    return found


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_in_the_readme(name: str) -> None:
    """In the table of commands, and once more where an agent or a newcomer needs it."""
    assert re.search(rf"^\| `aiopt {name}\b", README, re.MULTILINE)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_in_the_method(name: str) -> None:
    """An agent that reads program.md knows all that it can call."""
    assert re.search(rf"\baiopt {name}\b", PROGRAM)


@pytest.mark.parametrize("text", TEXTS)
def test_only_commands_that_exist_are_named(text: str) -> None:
    """`aiopt WORD` in code is a command, and each option behind it one of that command."""
    for name, rest in re.findall(r"(?:^ {4}|`|\| )aiopt ([a-z-]+)([^`\n]*)", TEXTS[text], re.M):
        assert name in COMMANDS, f"{text}: aiopt {name}"
        known = {option for param in command(name).params for option in param.opts}
        for option in re.findall(r"(?<![\w-])--[a-z][a-z-]*", rest):
            assert option in known, f"{text}: aiopt {name} {option}"


def test_exit_codes_are_those_of_the_command_line() -> None:
    """The table has every code that `aiopt --help` names, and no other."""
    assert main.help is not None
    summary = (
        main.help[main.help.index("Exit codes:") :].replace("\n", " ").removeprefix("Exit codes:")
    )
    named = {part.split()[0] for part in summary.split(";")}
    assert set(re.findall(r"^\| (\d+) \|", README, re.MULTILINE)) == named
    for code in named - {"0"}:
        assert re.search(rf"\b{code}\b", PROGRAM)


def test_strategies_take_the_options_of_the_readme() -> None:
    """The example of an `aiopt.toml` with parameters of strategies."""
    (block,) = re.findall(r'^    strategy = "map-elites"\n(?:    .*\n)+', README, re.MULTILINE)
    settings = structure(tomllib.loads(textwrap.dedent(block)), Settings, "README.md")
    assert set(settings.strategies) == {"genetic", "map-elites"}
    for name, options in settings.strategies.items():
        assert plugins.load("strategies", name, options).plugin is not None


def test_paths_that_are_named_exist() -> None:
    """Files and folders of this repository, as they are written in the texts."""
    for text in TEXTS.values():
        for path in re.findall(
            r"`((?:examples|tests|tools|targets/pyserver|aiopt/)[\w./-]*)`", text
        ):
            assert (ROOT / path).exists(), path
        for path in re.findall(r"\]\(([\w./-]+)\)", text):
            assert (ROOT / path).exists(), path


def blocks(language: str) -> Iterator[str]:
    for text in TEXTS.values():
        yield from re.findall(rf"<!-- run -->\n```{language}\n(.*?)```", text, re.DOTALL)


@pytest.mark.parametrize("block", [*blocks("sh")])
def test_examples_run(block: str, tmp_path: Path) -> None:
    """What is marked to be run is run, in an empty folder."""
    done = subprocess.run(
        ["sh", "-c", block], cwd=tmp_path, env=WITH_AIOPT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "targets" / "mine" / "target.toml").is_file()


@pytest.mark.parametrize("gain", [0.0, 0.1])
@pytest.mark.parametrize("block", [*blocks("python")])
def test_examples_in_python(block: str, gain: float, capsys: pytest.CaptureFixture[str]) -> None:
    """What is marked to be run decides as it should, for costs with a little noise."""
    rng = Random(11)
    exec(
        block,
        {
            "old": lambda: math.exp(rng.gauss(0, 0.005)),
            "new": lambda: (1 - gain) * math.exp(rng.gauss(0, 0.005)),
        },
    )
    kind = "keep" if gain else "discard_no_effect"
    assert f"ProtocolVerdict(kind='{kind}', keep={gain > 0}, " in capsys.readouterr().out


@pytest.mark.slow
def test_the_library_example(tmp_path: Path) -> None:
    """It runs a campaign, reads it, re-scores it and exports it."""
    done = subprocess.run(
        [sys.executable, ROOT / "examples" / "library.py", tmp_path],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "provable of memory: 3.0 %, 8 + 9 pairs",
        "provable of steps: 3.0 %, 8 + 9 pairs",
        "kept: fewer-steps",
        "fewer-steps: keep",
        "no-difference: discard_no_effect",
        "wrong-answer: invalid",
        "runs: 85, of the candidate: 43",
        "first with other weights: fewer-steps, log cost ratio +0.045",
        "flips: []",
        "by signed-rank: ['keep', 'discard_no_effect', 'invalid']",
        "folders: 6",
    ]


@pytest.mark.parametrize(
    "script", [*ROOT.glob("examples/*/*.sh"), *ROOT.glob("tools/*.sh")], ids=lambda path: path.name
)
def test_scripts_are_shell(script: Path) -> None:
    """They can be executed, and sh understands them."""
    assert os.access(script, os.X_OK)
    subprocess.run(["sh", "-n", script], check=True)


def test_the_collecting_script_reads_memory() -> None:
    """The pattern for VmHWM prints numbers above 0."""
    script = ROOT / "examples" / "lifecycle" / "collect-memory.sh"
    env = {**os.environ, "SERVICE_PID": str(os.getpid())}
    done = subprocess.run([script], env=env, capture_output=True, text=True, check=True)
    found = dict(line.split("=") for line in done.stdout.splitlines())
    assert float(found["peak_rss_mb"]) >= float(found["current_rss_mb"]) > 1


def test_canned_queries_fit_the_log(tmp_path: Path) -> None:
    """Every query of metadata.yaml runs on a log."""
    Log.open(tmp_path / "events.db").close()
    text = (ROOT / "metadata.yaml").read_text(encoding="utf-8")
    queries = re.findall(r"sql: \|-\n((?: {10}.*\n)+)", text)
    assert len(queries) == text.count("title: ")
    connection = sqlite3.connect(f"file:{tmp_path / 'events.db'}?mode=ro", uri=True)
    for query in queries:
        connection.execute(query, {"metric": "x"}).fetchall()
    connection.close()
