"""Somebody else's package with a plug-in of each kind, installed for real and used."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from aiopt.events import (
    CampaignStarted,
    CandidateProposed,
    EnvironmentObserved,
    EvidenceCaptured,
    PluginUsed,
    VerdictReached,
)
from aiopt.log import Log

EXAMPLE = Path(__file__).parent.parent / "examples" / "plugins"

TARGET = """
name = "counted"
profilers = ["shell-times"]
[source]
path = "src"
[scope]
editable = ["*.py"]
[stages.workload]
run = ["python3", "main.py"]
timeout = 60
[metrics.cost]
role = "primary"
[workloads.main]
"""

MAIN = """
BLOCK = 100
print(f"cost={BLOCK}")
sum(range(2_000_000))
"""

CAMPAIGN = """
import sys
import aiopt
from aiopt.settings import Budget, Environment

settings = aiopt.Settings(
    environment="gentle",
    environments={"gentle": Environment(backend="nice-local", options={"niceness": 3})},
    mode="full",
    strategy="depth-limited",
    strategies={"depth-limited": {"depth": 1}},
    proposer="numbers",
    proposers={"numbers": {"file": "main.py", "constant": "BLOCK", "values": [100, 60, 30]}},
    profilers={"shell-times": {"least_seconds": 0.001}},
    rule="signed-rank",
    rule_options={"pairs": 5, "alpha": 0.05, "audit_pairs": 6, "void": {"psi": 0.0, "steal": 0.0}},
)
aiopt.run(sys.argv[1], results=sys.argv[2], settings=settings)
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of installed packages with the example in it; nothing is downloaded."""
    home = tmp_path_factory.mktemp("plugins")
    shutil.copytree(EXAMPLE, home / "package")
    if subprocess.run([sys.executable, "-m", "pip", "--version"], capture_output=True).returncode:
        pytest.skip("needs pip")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    command += ["--no-build-isolation", "--target", str(home / "site"), str(home / "package")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return home / "site"


def environment(site: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(site)}


@pytest.mark.slow
def test_a_campaign_uses_all_four(site: Path, tmp_path: Path) -> None:
    """Names, distribution and version are in the log, and so is what the plug-ins did."""
    source = tmp_path / "counted" / "src"
    source.mkdir(parents=True)
    (source / "main.py").write_text(MAIN)
    (tmp_path / "counted" / "target.toml").write_text(TARGET)
    command = [sys.executable, "-c", CAMPAIGN, "counted", "results"]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment(site), capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    with Log.open(tmp_path / "results" / "counted" / "events.db", readonly=True) as log:
        events = [recorded.event for recorded in log.read()]
    (started,) = [event for event in events if isinstance(event, CampaignStarted)]
    used = {("aiopt-example-plugins", "1.2.3")}
    assert {(plugin.distribution, plugin.version) for plugin in started.plugins} == used
    assert sorted((plugin.group, plugin.name) for plugin in started.plugins) == [
        ("backends", "nice-local"),
        ("profilers", "shell-times"),
        ("proposers", "numbers"),
        ("strategies", "depth-limited"),
    ]
    assert isinstance(started.plugins[0], PluginUsed)
    (observed,) = [event for event in events if isinstance(event, EnvironmentObserved)]
    assert observed.facts["niceness"] == 3
    proposals = [event for event in events if isinstance(event, CandidateProposed)]
    assert [event.genome[-1].name for event in proposals] == ["BLOCK-60"]  # then depth is reached
    (verdict,) = [event for event in events if isinstance(event, VerdictReached)]
    assert verdict.kind == "keep"
    captured = [event for event in events if isinstance(event, EvidenceCaptured)]
    assert [event.candidate for event in captured] == [
        proposals[0].parents[0],
        proposals[0].candidate,
    ]
    for evidence in captured:
        assert evidence.profiler == "shell-times"
        assert 0 < evidence.scalars["user"].value < 60


@pytest.mark.slow
def test_the_environment_can_switch_them_off(site: Path) -> None:
    """AIOPT_PLUGINS=none leaves only what aiopt brings itself."""
    code = "from aiopt import plugins; print([p.name for p in plugins.available('proposers')])"
    for allowed, expected in [
        ("none", "['pool']"),
        ("aiopt-example-plugins", "['numbers', 'pool']"),
    ]:
        env = {**environment(site), "AIOPT_PLUGINS": allowed}
        done = subprocess.run(
            [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True
        )
        assert done.stdout.strip() == expected


@pytest.mark.parametrize(
    "module", sorted(EXAMPLE.glob("aiopt_example_plugins/*.py")), ids=lambda p: p.stem
)
def test_templates_are_short(module: Path) -> None:
    """A plug-in that takes more than 60 lines is no template."""
    assert len(module.read_text(encoding="utf-8").splitlines()) <= 60
