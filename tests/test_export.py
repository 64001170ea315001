"""The exported folders and tables: complete, deterministic, and runnable without aiopt."""

import hashlib
import os
import shutil
import stat
import subprocess
import tarfile
import tomllib
from collections.abc import Iterator
from pathlib import Path
from statistics import mean, median
from typing import Any

import anyio
import pytest

from aiopt.blobs import BlobStore, blobs_beside
from aiopt.campaign import open_campaign
from aiopt.config import unstructure
from aiopt.errors import ConfigError, CorruptLogError
from aiopt.events import (
    CampaignStarted,
    CandidateProposed,
    CandidateRejected,
    Effect,
    Event,
    ExperimentFinished,
    ExperimentStarted,
    GateFailed,
    PairScheduled,
    PatchRef,
    RunMeasured,
    StageFinished,
    StageStarted,
    VerdictReached,
)
from aiopt.export import Exported, export
from aiopt.export.figures import delta
from aiopt.export.tables import COLUMNS
from aiopt.ids import candidate_id, digest
from aiopt.log import Log
from aiopt.settings import Budget, Environment, Settings, rule_params
from aiopt.target import parse_target
from tests.factories import make

SCRIPTS = ("build.sh", "deploy.sh", "workload.sh", "collect.sh", "teardown.sh")
ANY_MACHINE = {"steal": 0.0, "psi": 0.0, "throttle": False}
"""Void rules that void nothing: what is measured here does not depend on the machine."""

# ---- a target with a service, measured for real ----

SERVER = """
import os, subprocess, sys, time
from http.server import BaseHTTPRequestHandler, HTTPServer

subprocess.Popen(["sleep", "600"], start_new_session=True)  # a stray that teardown must find
ROUNDS = 40
class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        body = f"{ROUNDS} {os.environ['FLAVOUR']}".encode()
        self.send_response(200)
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *args): pass
server = HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler)
print("ready", flush=True)
server.serve_forever()
"""

TARGET = """
name = "served"
writable = []
[source]
path = "src"
[environment]
FLAVOUR = "plain 'quoted' $HOME"
[scope]
editable = ["*.py"]
[stages.build]
run = "python3 -m py_compile server.py && echo built > $SOURCE_DIR/built.txt"
timeout = 60
[stages.test]
run = ["grep", "-q", "serve_forever", "{source}/server.py"]
timeout = 60
[stages.deploy]
run = ["./serve.sh", "{run}"]
service = true
ready = { READY, timeout = 60 }
[stages.workload]
run = ["./load.py"]
timeout = 60
env = { SCALE = "2" }
[stages.collect]
run = "test -d /proc/$SERVICE_PID && cat \\"$RUN_DIR/notes\\""
timeout = 60
[stages.teardown]
run = "test -n $WORKLOAD"
timeout = 60
[metrics.cost]
unit = "rounds"
role = "primary"
[metrics.answer]
kind = "digest"
[metrics.noted]
role = "guard"
limit = 100
[metrics.wall_seconds]
measured_by = "aiopt"
[metrics.service_peak_rss_mb]
measured_by = "aiopt"
[workloads.main]
env = { WEIGHT = "3" }
[workloads.light]
guard = true
env = { WEIGHT = "1" }
"""

LOAD = """#!/usr/bin/env python3
import hashlib, os, urllib.request
url = f"http://{os.environ['SERVICE_HOST']}:{os.environ['SERVICE_PORT']}/"
rounds, flavour = urllib.request.urlopen(url).read().decode().split(" ", 1)
assert "AIOPT_SECRET" not in os.environ
scale = int(os.environ["WEIGHT"]) * int(os.environ["SCALE"])
print("some other text")
print(f"cost={int(rounds) * scale}")
print("answer=" + hashlib.sha256(flavour.encode()).hexdigest())
with open(os.environ["RUN_DIR"] + "/notes", "w") as notes:
    notes.write(f"noted={scale}\\n")
"""

SERVE = """#!/bin/sh
test -d "$1/tmp" || exit 3
exec python3 server.py "$SERVICE_PORT"
"""


def write_target(folder: Path, ready: str) -> None:
    (folder / "src").mkdir(parents=True)
    (folder / "patches").mkdir()
    (folder / "src" / "server.py").write_text(SERVER)
    (folder / "src" / "nested dir").mkdir()
    (folder / "src" / "nested dir" / "data.txt").write_text("data\n")
    (folder / "target.toml").write_text(TARGET.replace("READY", ready))
    for name, text in (("load.py", LOAD), ("serve.sh", SERVE)):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    better = SERVER.replace("ROUNDS = 40", "ROUNDS = 30")
    for name, new in (("1-better", better), ("2-outside", "")):
        file = "server.py" if new else "Makefile"
        (folder / "patches" / f"{name}.patch").write_text(diff_of(file, SERVER if new else "", new))
    best = better.replace("ROUNDS = 30", "ROUNDS = 20")
    (folder / "patches" / "3-best.patch").write_text(diff_of("server.py", better, best))


def diff_of(name: str, old: str, new: str) -> str:
    from difflib import unified_diff

    lines = unified_diff(
        old.splitlines(True), (new or "x\n").splitlines(True), f"a/{name}", f"b/{name}"
    )
    return "Hypothesis: fewer rounds\n\n" + "".join(lines)


async def run_campaign(folder: Path, results: Path) -> None:
    settings = Settings(
        rule="signed-rank",
        rule_options={
            "pairs": 5,
            "alpha": 0.05,
            "audit_pairs": 6,
            "ablation_pairs": 0,
            "warmup": 0,
            "void": ANY_MACHINE,
        },
        budget=Budget(candidates=3),
        environments={"local": Environment(backend="local", options={"lock_path": str(folder)})},
    )
    async with open_campaign(folder, results, settings) as campaign:
        await campaign.run()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with targets/ and results/ of a finished campaign, exported once."""
    home = tmp_path_factory.mktemp("served")
    write_target(home / "targets" / "served", 'line = "^ready"')
    anyio.run(run_campaign, home / "targets" / "served", home / "results")
    export(home / "results" / "served" / "events.db")
    return home


def table(path: Path) -> list[dict[str, str]]:
    header, *lines = path.read_text().splitlines()
    assert header.split("\t") == list(COLUMNS)
    rows = [line.split("\t") for line in lines]
    assert all(len(row) == len(COLUMNS) and all(row) for row in rows)
    return [dict(zip(COLUMNS, row, strict=True)) for row in rows]


def contents(folder: Path) -> dict[str, str]:
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


def still_running(folder: Path) -> list[str]:
    """Processes that were started from a folder, by their environment."""
    found = []
    for process in Path("/proc").iterdir():
        try:
            if (
                process.name.isdigit()
                and str(folder).encode() in (process / "environ").read_bytes()
            ):
                found.append((process / "cmdline").read_text().replace("\0", " "))
        except OSError:
            continue
    return found


def script(folder: Path, name: str, *args: str, **variables: str) -> str:
    """Run one of the scripts as a person would, with nothing but PATH and from elsewhere."""
    env = {"PATH": "/usr/local/bin:/usr/bin:/bin", **variables}
    done = subprocess.run(
        [folder / name, *args], cwd="/", env=env, capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 0, f"{name}: {done.stdout}{done.stderr}"
    return done.stdout


def values(text: str) -> dict[str, str]:
    pairs = (line.split("=", 1) for line in text.splitlines() if "=" in line)
    return {name: value for name, value in pairs if not name.startswith("#")}


@pytest.mark.slow
def test_each_experiment_has_a_folder_and_each_candidate_a_line(served: Path) -> None:
    """Baseline, two candidates and audit are folders; what was rejected is in the table only."""
    home = served / "results" / "served" / "local"
    folders = sorted(path.name for path in home.iterdir() if path.is_dir())
    assert folders == ["exp-0001", "exp-0002", "exp-0003", "exp-0004"]
    for name in folders:
        assert {*SCRIPTS, "metrics.log", "diff.patch", "README.md"} <= {
            path.name for path in (home / name).iterdir()
        }
        assert all((home / name / part).stat().st_mode & stat.S_IXUSR for part in SCRIPTS)
        assert sum(file.stat().st_size for file in (home / name).iterdir()) < 40_000
    rows = table(home / "results.tsv")
    assert [(row["exp_id"], row["status"]) for row in rows] == [
        ("exp-0001", "keep"),
        ("exp-0002", "keep"),
        ("exp-0003", "keep"),
        ("exp-0004", "keep"),
        ("proposal-0002", "invalid"),
    ]
    assert [row["delta_vs_baseline"] for row in rows[:3]] == ["0.0%", "-25.0%", "-50.0%"]
    assert [row["delta_vs_parent"] for row in rows[:3]] == ["0.0%", "-25.0%", "-33.3%"]
    assert [row["parent_branch"] for row in rows[:3]] == ["-", rows[0]["branch"], rows[1]["branch"]]
    assert rows[4]["description"].startswith("out_of_scope: ")


@pytest.mark.slow
def test_the_readme_says_how_and_what_to_expect(served: Path) -> None:
    """It has the four parts, each run, and the decision with its reason."""
    text = (served / "results" / "served" / "local" / "exp-0002" / "README.md").read_text()
    titles = [line for line in text.splitlines() if line.startswith("## ")]
    assert titles == [
        "## Hypothesis",
        "## How to reproduce",
        "## Expected results",
        "## Actual results",
    ]
    assert "fewer rounds" in text
    assert "| main | cost | rounds | 240 | 180 | -25.0% | 5 |" in text
    assert text.count("| 240 | 180 | -25.0% |") == 7  # also the medians, twice
    assert "Decision: **keep**" in text
    steps = [line.split()[:2] for line in text.splitlines() if line[:1].isdigit()]
    assert [f"{number} {name.strip('`./')}" for number, name in steps] == [
        f"{number}. {name.strip('./')}" for number, name in enumerate(SCRIPTS, start=1)
    ]


@pytest.mark.slow
def test_the_samples_can_be_read_as_key_and_value(served: Path) -> None:
    """`metrics.log` has every sample of every run, under its pair and arm."""
    text = (served / "results" / "served" / "local" / "exp-0002" / "metrics.log").read_text()
    assert text.count("# pair screen main ") == 5
    assert text.count("# run screen main ") == 10
    samples = [line for line in text.splitlines() if line.startswith("cost=")]
    assert samples.count("cost=240") == samples.count("cost=180") == 5
    assert samples.count("cost=80") == samples.count("cost=60") == 5  # the guard workload
    assert len([line for line in text.splitlines() if line.startswith("answer=")]) == 20


@pytest.mark.slow
def test_the_patch_is_one_diff_of_the_whole_genome(served: Path, tmp_path: Path) -> None:
    """`git apply` takes it on the base source, and gets the tree that was measured."""
    shutil.copytree(served / "targets" / "served" / "src", tmp_path / "src")
    patch = served / "results" / "served" / "local" / "exp-0003" / "diff.patch"
    assert patch.read_text().count("diff --git") == 1
    subprocess.run(["git", "init", "-q", "."], cwd=tmp_path / "src", check=True)
    subprocess.run(["git", "apply", patch], cwd=tmp_path / "src", check=True)
    assert "ROUNDS = 20" in (tmp_path / "src" / "server.py").read_text()


@pytest.mark.slow
def test_the_scripts_measure_the_same_without_aiopt(served: Path, tmp_path: Path) -> None:
    """All five in order, in a copy and a bare environment, give the metrics of the log."""
    exported = served / "results" / "served" / "local" / "exp-0003"
    folder = tmp_path / "a copy"
    shutil.copytree(exported, folder)
    script(folder, "build.sh", AIOPT_SECRET="x")
    for workload, cost in (("main", "120"), ("light", "40")):
        script(folder, "deploy.sh", workload)
        assert still_running(folder)
        printed = values(
            script(folder, "workload.sh", AIOPT_SECRET="x") + script(folder, "collect.sh")
        )
        printed |= values(script(folder, "teardown.sh"))
        assert still_running(folder) == []
        logged = (exported / "metrics.log").read_text()
        assert printed["cost"] == cost
        assert f"answer={printed['answer']}" in logged
        assert printed["noted"] == {"main": "6", "light": "2"}[workload]
        assert float(printed["wall_seconds"]) > 0
        assert 1 < float(printed["service_peak_rss_mb"]) < 1000
    assert not (folder / "work" / "run").exists()
    script(folder, "teardown.sh", "all")
    assert contents(folder) == contents(exported)


@pytest.mark.slow
def test_the_incumbent_is_one_variable_away(served: Path, tmp_path: Path) -> None:
    """ARM=incumbent measures what the candidate was compared with, beside it."""
    folder = tmp_path / "copy"
    shutil.copytree(served / "results" / "served" / "local" / "exp-0003", folder)
    for name in SCRIPTS[:2]:
        script(folder, name, ARM="incumbent")
    assert values(script(folder, "workload.sh", ARM="incumbent"))["cost"] == "180"
    script(folder, "teardown.sh", "all", ARM="incumbent")
    assert still_running(folder) == []


@pytest.mark.slow
def test_scripts_may_be_repeated_in_any_state(served: Path, tmp_path: Path) -> None:
    """Deploying twice leaves one service; teardown twice is no error; workload alone deploys."""
    folder = tmp_path / "copy"
    shutil.copytree(served / "results" / "served" / "local" / "exp-0002", folder)
    script(folder, "teardown.sh")
    script(folder, "build.sh")
    script(folder, "build.sh")
    assert values(script(folder, "workload.sh", "light"))["cost"] == "60"
    script(folder, "deploy.sh")
    script(folder, "deploy.sh")
    servers = [line for line in still_running(folder) if line.startswith("python3 server.py")]
    assert len(servers) == 1
    assert values(script(folder, "workload.sh"))["cost"] == "180"
    script(folder, "teardown.sh")
    script(folder, "teardown.sh")
    assert still_running(folder) == []


@pytest.mark.slow
def test_a_folder_works_inside_of_a_git_repository(served: Path, tmp_path: Path) -> None:
    """`git apply` must not take the paths for those of the repository around."""
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    folder = tmp_path / "copy"
    shutil.copytree(served / "results" / "served" / "local" / "exp-0002", folder)
    script(folder, "build.sh")
    assert "ROUNDS = 30" in (folder / "work" / "source" / "server.py").read_text()


@pytest.mark.slow
def test_the_same_log_gives_the_same_bytes(served: Path, tmp_path: Path) -> None:
    """Also when the work folder with the repository is gone and the source is imported again."""
    shutil.copytree(served, tmp_path / "copy", symlinks=True)
    work = tmp_path / "copy" / "results" / "served" / ".work"
    shutil.rmtree(work)
    again = export(tmp_path / "copy" / "results" / "served" / "events.db", tmp_path / "out")
    assert again.notes == ()
    assert contents(tmp_path / "out" / "served" / "local") == contents(
        served / "results" / "served" / "local"
    )


def copy_of_log(served: Path, folder: Path) -> Path:
    """Log and blobs alone, with neither work folder nor target beside them."""
    log = folder / "results" / "served" / "events.db"
    log.parent.mkdir(parents=True)
    shutil.copy(served / "results" / "served" / "events.db", log)
    shutil.copytree(served / "results" / "served" / "blobs", blobs_beside(log))
    return log


@pytest.mark.slow
def test_what_cannot_be_had_is_said(served: Path, tmp_path: Path) -> None:
    """Without target and repository there is a patch and a README that names what is missing."""
    exported = export(copy_of_log(served, tmp_path))
    (note,) = exported.notes
    folder = exported.folders[2]
    assert note.endswith("and source.tar.gz is missing")
    assert not (folder / "source.tar.gz").exists()
    assert "source.tar.gz is missing" in (folder / "README.md").read_text()
    shutil.copytree(served / "targets" / "served" / "src", tmp_path / "src")
    subprocess.run(["git", "apply", folder / "diff.patch"], cwd=tmp_path / "src", check=True)
    assert "ROUNDS = 20" in (tmp_path / "src" / "server.py").read_text()
    done = subprocess.run([folder / "build.sh"], capture_output=True, text=True)
    assert done.returncode != 0
    assert "README.md says why" in done.stderr


@pytest.mark.slow
def test_the_harness_is_that_of_the_measurement(
    served: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes from the log, whatever has become of the target; only the source is from there."""
    log = copy_of_log(served, tmp_path)
    changed = tmp_path / "elsewhere" / "served"
    shutil.copytree(served / "targets" / "served", changed)
    (changed / "load.py").write_text("#!/bin/sh\n")
    monkeypatch.chdir(changed.parent)
    exported = export(log, target=Path("served"))
    assert exported.notes == ()
    with tarfile.open(exported.folders[0] / "harness.tar.gz") as harness:
        loader = harness.extractfile("load.py")
        assert loader is not None
        assert loader.read().decode() == LOAD
        assert "src/server.py" not in harness.getnames()
    assert contents(log.parent / "local") == contents(served / "results" / "served" / "local")


@pytest.mark.slow
def test_another_source_is_not_taken(served: Path, tmp_path: Path) -> None:
    """A target folder whose source has changed since counts for as little as none."""
    log = copy_of_log(served, tmp_path)
    shutil.copytree(served / "targets" / "served", tmp_path / "targets" / "served")
    with (tmp_path / "targets" / "served" / "src" / "server.py").open("a") as file:
        file.write("# a comment\n")
    exported = export(log)
    assert len(exported.notes) == 1
    assert not (exported.folders[0] / "source.tar.gz").exists()


@pytest.mark.slow
@pytest.mark.parametrize("ready", ["port = true", 'http = "/"'])
def test_other_ways_to_be_ready(ready: str, tmp_path: Path) -> None:
    """A port that is open, and an answer by HTTP."""
    write_target(tmp_path / "targets" / "served", ready)
    shutil.rmtree(tmp_path / "targets" / "served" / "patches")

    async def baseline() -> None:
        settings = Settings(rule="signed-rank", budget=Budget(candidates=0))
        folder = tmp_path / "targets" / "served"
        async with open_campaign(folder, tmp_path / "results", settings) as campaign:
            await campaign.run()

    anyio.run(baseline)
    (folder,) = export(tmp_path / "results" / "served" / "events.db").folders
    script(folder, "build.sh")
    script(folder, "deploy.sh")
    assert values(script(folder, "workload.sh"))["cost"] == "240"
    script(folder, "teardown.sh")
    assert still_running(folder) == []


# ---- tables of logs that are written by hand ----

PLAIN = """
name = "plain"
[source]
git = "https://example.invalid/plain.git"
revision = "v1"
[scope]
editable = ["**"]
[stages.workload]
run = "true"
[metrics.latency_p99_ms]
role = "primary"
[metrics.error_rate]
role = "guard"
limit = 0
[workloads.main]
"""
CONTROL = (135, 135, 135, 136, 135, 139, 144, 137, 137, 136)
PATCHED = (130, 130, 125, 125, 126, 125, 125, 126, 125, 125)


class Story:
    """A log that is made up."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "results" / "plain" / "events.db"
        self.path.parent.mkdir(parents=True)
        self.log = Log.open(self.path)
        self.blobs = BlobStore(blobs_beside(self.path))
        self.target = parse_target(PLAIN)
        self.base = "0" * 40
        self.number = 0
        self.stream = self.log.new_stream("cmp")
        self.tell(
            self.stream,
            make(
                CampaignStarted,
                target="plain",
                harness=self.blobs.put(b"a tar"),
                spec=unstructure(self.target),
                base_commit=self.base,
                rule="signed-rank",
                rule_params=rule_params(self.target, Settings()),
            ),
        )
        self.baseline = self.experiment("baseline", ())
        self.tell(self.baseline, self.run("check", 0, "B", 136.0))
        self.tell(self.baseline, ExperimentFinished(outcome="measured"))

    def tell(self, stream: str, *events: Event) -> None:
        self.log.append([(stream, event) for event in events])

    def experiment(self, purpose: Any, genome: tuple[PatchRef, ...]) -> str:
        stream = self.log.new_stream("exp")
        nothing = candidate_id(self.base, ())
        self.tell(
            stream,
            make(
                ExperimentStarted,
                campaign=self.stream,
                number=self.number,
                purpose=purpose,
                candidate=candidate_id(self.base, [patch.digest for patch in genome]),
                genome=genome,
                tree=f"{self.number:040x}",
                incumbent=nothing,
                incumbent_tree="0" * 40,
            ),
        )
        return stream

    def propose(self, *, rejected: str = "") -> str:
        self.number += 1
        text = f"--- a/x\n+++ b/x\n@@ -1 +1 @@\n-0\n+{self.number}\n".encode()
        genome = (PatchRef(name=f"p{self.number}", digest=self.blobs.put(text)),)
        proposed = make(
            CandidateProposed, number=self.number, genome=genome, hypothesis="it is\tfaster\n"
        )
        self.tell(self.stream, proposed)
        if not rejected:
            return self.experiment("candidate", genome)
        self.tell(
            self.stream,
            make(CandidateRejected, number=self.number, reason=rejected, detail="a\nb"),
        )
        return ""

    def run(self, purpose: Any, index: int, arm: Any, value: float) -> RunMeasured:
        return make(
            RunMeasured,
            purpose=purpose,
            workload="main",
            index=index,
            attempt=0,
            arm=arm,
            metrics={"latency_p99_ms": (float(value),), "error_rate": (0.0,)},
            texts={},
            covariates={},
        )

    def pairs(self, stream: str, control: tuple[float, ...], patched: tuple[float, ...]) -> None:
        for index, (a, b) in enumerate(zip(control, patched, strict=True)):
            pair = make(PairScheduled, purpose="screen", workload="main", index=index, attempt=0)
            self.tell(
                stream,
                pair,
                self.run("screen", index, "A", a),
                self.run("screen", index, "B", b),
            )

    def verdict(self, stream: str, kind: Any, *effects: Effect, reason: str = "because") -> None:
        verdict = make(VerdictReached, kind=kind, reason=reason, effects=effects)
        self.tell(stream, verdict, ExperimentFinished(outcome="judged"))

    def export(self, **options: Any) -> Exported:
        self.log.close()
        return export(self.path, **options)

    def rows(self) -> dict[str, dict[str, str]]:
        (path,) = self.export().tables
        return {row["exp_id"]: row for row in table(path)}


@pytest.fixture
def story(tmp_path: Path) -> Iterator[Story]:
    told = Story(tmp_path)
    yield told
    told.log.close()


def failed(story: Story, gate: str, outcome: Any = "failed") -> str:
    stream = story.propose()
    stage = make(StageFinished, outcome=outcome, log=None)
    story.tell(stream, make(StageStarted), stage, GateFailed(gate=gate, detail="what it said"))
    story.verdict(stream, "invalid", reason=f"{gate}: what it said")
    return stream.partition("~")[0]


def test_their_arithmetic() -> None:
    """The published results, recomputed: signed changes of the metric itself."""
    assert delta(median(PATCHED), median(CONTROL)) == "-8.1%"
    assert delta(mean((207, 176, 190)), mean((317, 315, 318))) == "-39.7%"
    assert delta(798.7, 1149.9) == "-30.5%"
    assert delta(110, 100) == "+10.0%"
    assert delta(99.999, 100) == "0.0%"
    assert delta(None, 100) == delta(100, None) == delta(100, 0) == "-"


def test_columns_of_a_measured_candidate(story: Story) -> None:
    """Fifteen columns; what nobody measured is a dash and never 0."""
    stream = story.propose()
    story.pairs(stream, CONTROL, PATCHED)
    effect = make(Effect, metric="latency_p99_ms", workload="main", state="improved", p=0.001)
    story.verdict(stream, "keep", effect)
    row = story.rows()["exp-0002"]
    assert row["metric_name"] == "latency_p99_ms"
    assert (row["metric_value"], row["baseline_value"]) == ("125", "136")
    assert (row["delta_vs_baseline"], row["delta_vs_parent"]) == ("-8.1%", "-8.1%")
    assert (row["latency_p99_ms"], row["error_rate"]) == ("125", "0")
    assert (row["cpu_pct"], row["pod_restarts"]) == ("-", "-")
    assert row["commit"] == "00000000"
    assert row["description"] == "p1: it is faster (because)"


def test_status_words(story: Story) -> None:
    """Ours to theirs; a word that they do not have comes first in the description."""
    expected = {}
    for kind, effect, status, first in [
        ("keep", "improved", "keep", "p"),
        ("discard_regression", "unproved", "discard", "p"),
        ("discard_regression", "broken", "constraint_violation", "p"),
        ("discard_no_effect", "unproved", "discard", "p"),
        ("inconclusive", "unproved", "discard", "inconclusive: p"),
        ("no_change", "info", "discard", "no_change: p"),
        ("invalid", "info", "invalid", "p"),  # answers that differ: no gate
    ]:
        stream = story.propose()
        story.verdict(
            stream, kind, make(Effect, metric="latency_p99_ms", workload="main", state=effect)
        )
        expected[stream.partition("~")[0]] = (status, first)
    expected[failed(story, "build")] = ("crash", "p")
    expected[failed(story, "workload")] = ("crash", "p")
    expected[failed(story, "workload", "timeout")] = ("timeout", "p")
    expected[failed(story, "test")] = ("invalid", "p")
    expected[failed(story, "harness")] = ("invalid", "p")
    superseded = story.propose()
    story.tell(superseded, ExperimentFinished(outcome="superseded", detail="by another"))
    expected[superseded.partition("~")[0]] = ("discard", "superseded: by another; p")
    expected[story.propose().partition("~")[0]] = ("in_progress", "p")
    story.propose(rejected="duplicate")
    rows = story.rows()
    for name, (status, first) in expected.items():
        assert (rows[name]["status"], rows[name]["description"][: len(first)]) == (status, first)
    assert rows["exp-0001"]["status"] == "keep"
    rejected = rows["proposal-0015"]
    assert rejected["status"] == "invalid"
    assert rejected["description"] == "duplicate: a b; it is faster"
    assert rejected["metric_value"] == rejected["commit"] == "-"


def test_a_baseline_that_fails_is_a_crash(tmp_path: Path) -> None:
    """It was measured by nobody, so it has no value."""
    story = Story(tmp_path)
    stream = story.experiment("baseline", ())
    story.tell(stream, GateFailed(gate="build", detail="no compiler"))
    story.tell(stream, ExperimentFinished(outcome="abandoned", detail="no compiler"))
    row = story.rows()["exp-0002"]
    assert (row["status"], row["metric_value"]) == ("crash", "-")


def test_git_and_script_sources_are_fetched(story: Story) -> None:
    """The folder of a target by git clones the very commit; nothing else is shipped."""
    stream = story.propose()
    story.verdict(stream, "no_change")
    text = (story.export().folders[1] / "build.sh").read_text()
    assert "git fetch -q --depth=1 https://example.invalid/plain.git v1" in text
    assert f"checkout -q {story.base}" in text


def test_a_harness_that_is_lost_is_an_error(story: Story) -> None:
    """As for every blob that the log refers to."""
    story.blobs.path(digest(b"a tar")).unlink()
    with pytest.raises(CorruptLogError, match="missing"):
        story.export()


def test_the_templates_are_packaged() -> None:
    """What is no module has to be named in pyproject.toml, or a wheel lacks it without a word."""
    root = Path(__file__).parent.parent
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    globs = project["tool"]["setuptools"]["package-data"]["aiopt.export"]
    package = root / "aiopt" / "export"
    packaged = {file for pattern in globs for file in package.glob(pattern)}
    assert {file.name for file in packaged} == {*SCRIPTS, "lib.sh"}
    assert packaged == {
        file for file in package.rglob("*") if file.is_file() and file.suffix not in (".py", ".pyc")
    }


def test_one_campaign_of_several(story: Story) -> None:
    """By its short name; an unknown one is an error that lists what there is."""
    assert len(story.export(campaign="cmp-0001").folders) == 1
    with pytest.raises(ConfigError, match="there are cmp-0001"):
        export(story.path, campaign="cmp-0009")


@pytest.mark.parametrize("name", [*SCRIPTS, "lib.sh"])
def test_the_scripts_are_plain_sh(name: str, story: Story) -> None:
    """`sh -n` takes them, and so does dash where it is installed."""
    folder = story.export().folders[0]
    for shell in ("sh", "dash", "bash"):
        if shutil.which(shell):
            subprocess.run([shell, "-n", folder / name], check=True)
    assert "\r" not in (folder / name).read_text()
    assert os.access(folder / name, os.X_OK) == (name != "lib.sh")
