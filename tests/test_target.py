"""target.toml and aiopt.toml: all problems at once, each with its path."""

from pathlib import Path

import pytest

from aiopt.config import structure, unstructure
from aiopt.errors import ConfigError
from aiopt.rules import params_from
from aiopt.settings import Budget, Settings, load_settings, rule_params
from aiopt.target import (
    Target,
    harness_digest,
    harness_files,
    load_target,
    parse_target,
    spec_of,
)

GOOD = """
name = "toy"
[source]
path = "src"
[scope]
editable = ["*.py"]
[stages.build]
run = "make"
[stages.deploy]
run = ["./serve.sh", "--fast"]
service = true
ready = { line = "^ready", timeout = 5 }
[stages.workload]
run = ["python3", "load.py"]
timeout = 20
env = { N = "3" }
[metrics.cpu_seconds]
role = "primary"
[metrics.rss]
role = "guard"
margin = 0.1
[metrics.service_peak_rss_mb]
measured_by = "aiopt"
[metrics.answers]
kind = "digest"
[workloads.mixed]
[workloads.writes]
guard = true
"""


def problems(text: str) -> dict[str, str]:
    with pytest.raises(ConfigError) as caught:
        parse_target(text)
    return dict(caught.value.problems)


def test_a_good_target() -> None:
    target = parse_target(GOOD)
    assert target.main_workloads == ("mixed",)
    assert target.guard_workloads == ("writes",)
    assert target.primaries == ("cpu_seconds",)
    assert target.metrics["cpu_seconds"].tolerance == 0.02
    assert target.metrics["rss"].tolerance == 0.1
    assert target.metrics["answers"].tolerance == 0.05
    assert target.stages.build is not None
    assert target.stages.build.argv == ("sh", "-c", "make")
    assert target.stages.deploy is not None
    assert target.stages.deploy.argv == ("{harness}/serve.sh", "--fast")
    assert target.stages.workload.argv == ("python3", "load.py")
    assert [name for name, _ in target.stages.items()] == ["build", "deploy", "workload"]
    assert target.scope.allows("x.py")
    assert not target.scope.allows("x.c")


def test_a_target_survives_the_log() -> None:
    """What CampaignStarted keeps of a target is the target."""
    target = parse_target(GOOD)
    assert structure(spec_of(target), Target, "the log") == target


def test_wrong_keys_and_types_are_all_reported() -> None:
    found = problems(
        GOOD.replace('name = "toy"', 'name = 3\ncolour = "red"')
        .replace("timeout = 20", 'timeout = "soon"')
        .replace("guard = true", "guard = 1")
        .replace('role = "primary"', 'role = "boss"')
        .replace('run = "make"', "run = 7")
    )
    assert set(found) >= {
        "name",
        "stages.workload.timeout",
        "workloads.writes.guard",
        "metrics.cpu_seconds.role",
        "stages.build.run",
    }
    assert any("colour" in problem for problem in found.values())
    assert found["name"] == "expected str, found 3"


def test_what_is_missing_is_named() -> None:
    found = problems('name = "x"')
    assert set(found) == {"source", "scope", "stages", "metrics", "workloads"}
    assert set(found.values()) == {"missing"}


def test_not_toml_and_not_utf8(tmp_path: Path) -> None:
    assert "not TOML" in problems("= 3")[""]
    (tmp_path / "target.toml").write_bytes(b"\xff")
    with pytest.raises(ConfigError, match="not UTF-8"):
        load_target(tmp_path)
    with pytest.raises(ConfigError, match="new-target"):
        load_target(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("old", "new", "path", "words"),
    [
        ('name = "toy"', 'name = "My Toy"', "name", "lower-case"),
        ('path = "src"', "", "source", "none of them"),
        ('path = "src"', 'path = "src"\ngit = "x"\nrevision = "v1"', "source", "path and git"),
        ('path = "src"', 'git = "https://example.org/x"', "source.revision", "needed"),
        ('path = "src"', 'path = "src"\nrevision = "v1"', "source.revision", "belongs to git"),
        ('path = "src"', 'path = "../src"', "source.path", "inside"),
        ('path = "src"', 'path = "/src"', "source.path", "inside"),
        ('editable = ["*.py"]', "editable = []", "scope.editable", "empty"),
        ('run = "make"', 'run = ""', "stages.build.run", "empty"),
        ("timeout = 20", "timeout = 0", "stages.workload.timeout", "above 0"),
        ('run = "make"', 'run = "make"\nservice = true', "stages.build.service", "only deploy"),
        ('ready = { line = "^ready", timeout = 5 }', "", "stages.deploy.ready", "needed"),
        ('line = "^ready"', 'line = "^ready", port = true', "stages.deploy.ready", "exactly one"),
        ('line = "^ready"', 'line = "("', "stages.deploy.ready.line", "regular expression"),
        ("service = true", "", "stages.deploy.ready", "service = true"),
        ('role = "primary"', "", "metrics", "none has role"),
        ('kind = "digest"', 'kind = "digest"\nrole = "guard"', "metrics.answers", "equal"),
        ("margin = 0.1", "margin = 0", "metrics.rss.margin", "above 0"),
        ("margin = 0.1", "margin = 0.1\nlimit = 3", "metrics.rss", "not both"),
        ('role = "primary"', 'role = "primary"\nlimit = 3', "metrics.cpu_seconds.limit", "guard"),
        ('kind = "digest"', "margin = 0.2", "metrics.answers.margin", "primary or a guard"),
        (
            "[metrics.rss]",
            '[metrics.x]\nmeasured_by = "aiopt"\n[metrics.rss]',
            "metrics.x.measured_by",
            "not x",
        ),
        (
            'service = true\nready = { line = "^ready", timeout = 5 }',
            "",
            "metrics.service_peak_rss_mb.measured_by",
            "no service",
        ),
        ("[workloads.mixed]", "", "workloads", "at least one"),
        ("[workloads.mixed]", "[workloads.Mixed]", "workloads.Mixed", "lower-case"),
        ("guard = true", "guard = true\nmargin = 0", "workloads.writes.margin", "above 0"),
        (
            "[workloads.mixed]",
            '[output]\nformat = "xml"\n[workloads.mixed]',
            "output.format",
            "known are",
        ),
    ],
)
def test_each_mistake_is_named(old: str, new: str, path: str, words: str) -> None:
    assert old in GOOD
    found = problems(GOOD.replace(old, new, 1))
    assert words in found[path]


def write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)


def test_files_that_it_names_must_be_there(tmp_path: Path) -> None:
    write(tmp_path, {"target.toml": GOOD})
    with pytest.raises(ConfigError) as caught:
        load_target(tmp_path)
    assert {path for path, _ in caught.value.problems} == {"source.path", "stages.deploy.run"}
    write(tmp_path, {"src/main.py": "", "serve.sh": "#!/bin/sh\n"})
    with pytest.raises(ConfigError, match="chmod"):
        load_target(tmp_path)
    (tmp_path / "serve.sh").chmod(0o755)
    assert load_target(tmp_path).name == "toy"


def test_a_script_source_must_be_there_too(tmp_path: Path) -> None:
    text = GOOD.replace('path = "src"', 'script = ["./fetch.sh"]').replace(
        'run = ["./serve.sh", "--fast"]', 'run = "serve"'
    )
    write(tmp_path, {"target.toml": text})
    with pytest.raises(ConfigError, match=r"fetch\.sh"):
        load_target(tmp_path)


def test_the_harness_is_everything_but_source_patches_and_prose(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "target.toml": GOOD,
            "src/main.py": "x",
            "serve.sh": "",
            "checks/test_all.py": "",
            "patches/a.patch": "",
            "hints.md": "",
            "Dockerfile": "",
        },
    )
    target = parse_target(GOOD)
    files = harness_files(tmp_path, target)
    assert files == ("checks/test_all.py", "serve.sh", "target.toml")
    before = harness_digest(tmp_path, files)
    (tmp_path / "hints.md").write_text("other")
    assert harness_digest(tmp_path, harness_files(tmp_path, target)) == before
    (tmp_path / "serve.sh").chmod(0o755)
    executable = harness_digest(tmp_path, files)
    assert executable != before
    (tmp_path / "serve.sh").write_text("#")
    assert harness_digest(tmp_path, files) != executable


def test_settings_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "aiopt.toml"
    assert load_settings(file) == {}
    assert load_settings(None) == {}
    file.write_text('environment = "lab"\n[environments.lab]\nbackend = "local"\n')
    settings = structure(load_settings(file), Settings, "aiopt.toml")
    assert settings.here.backend == "local"
    assert structure(unstructure(settings), Settings, "the log") == settings
    file.write_text('environment = "lab"\nsed = 1\n')
    with pytest.raises(ConfigError, match="unknown sed; known are"):
        load_settings(file)
    file.write_text("=")
    with pytest.raises(ConfigError, match="not TOML"):
        load_settings(file)


def test_an_environment_must_be_defined() -> None:
    assert Settings().here.backend == "local"
    with pytest.raises(ConfigError, match="there are local"):
        _ = Settings(environment="lab").here


def test_rule_parameters_come_from_target_and_settings() -> None:
    target = parse_target(GOOD)
    params = params_from(rule_params(target, Settings(rule_options={"mei": 0.1})))
    assert params.mei == 0.1
    assert params.metrics["rss"].margin == 0.1
    assert params.guard_workloads == ("writes",)


@pytest.mark.parametrize(("candidates", "planned"), [(None, 200), (7, 7), (0, 1)])
def test_the_error_budget_is_spread_over_the_budget_of_candidates(
    candidates: int | None, planned: int
) -> None:
    budget = Budget(candidates=candidates)
    given = rule_params(parse_target(GOOD), Settings(budget=budget))
    assert params_from(given).planned == planned
    own = rule_params(parse_target(GOOD), Settings(budget=budget, rule_options={"planned": 50}))
    assert params_from(own).planned == 50
