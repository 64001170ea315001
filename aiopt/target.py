"""`target.toml`: what a codebase offers to be changed, how it is built, checked and measured.

`parse_target` is pure and reports all problems at once, each with its path; `load_target` reads a
folder. Nothing here runs anything.
"""

import hashlib
import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from attrs import evolve, field, frozen
from pathspec import GitIgnoreSpec

from aiopt.config import structure
from aiopt.errors import ConfigError
from aiopt.metrics import FORMATS

__all__ = [
    "USAGE_METRICS",
    "Artifact",
    "Harness",
    "Layout",
    "Metric",
    "Output",
    "Ready",
    "Scope",
    "Source",
    "Stage",
    "Stages",
    "Target",
    "Workload",
    "harness_digest",
    "harness_files",
    "load_target",
    "parse_target",
]

USAGE_METRICS = {
    "wall_seconds": "wall time of the workload command",
    "cpu_seconds": "CPU time of the workload command and everything under it",
    "peak_rss_mb": "largest process of the workload command",
    "service_cpu_seconds": "CPU time of the service, from its start to its end",
    "service_peak_rss_mb": "largest process of the service",
}
"""What aiopt measures itself; a metric with `measured_by = "aiopt"` must be one of these."""


@frozen(kw_only=True)
class Source:
    """Where the code comes from: exactly one of a folder, a git
    repository, or a script that fetches it.
    """

    path: str | None = None
    git: str | None = None
    revision: str | None = None
    script: tuple[str, ...] | str | None = None
    timeout: float = 1800.0
    """Seconds for a clone or for the script."""


@frozen(kw_only=True)
class Scope:
    """Which files patches may touch: gitignore-style patterns, relative to the source's root."""

    editable: tuple[str, ...]

    def allows(self, path: str) -> bool:
        return GitIgnoreSpec.from_lines(self.editable).match_file(path)


@frozen(kw_only=True)
class Artifact:
    """What a build produces: two builds with equal files here are the same program."""

    paths: tuple[str, ...] = ()


@frozen(kw_only=True)
class Harness:
    """The target's own files that stages need; everything in the
    folder but `exclude` and the source.
    """

    exclude: tuple[str, ...] = (
        "/patches/",
        "/aiopt.toml",
        "*.md",
        "/Dockerfile",
        "/k8s/",
        "__pycache__/",
        ".*/",
    )


@frozen(kw_only=True)
class Ready:
    """How to know that a service answers: one of a line on its
    standard output, an open port, an HTTP path.
    """

    line: str | None = None
    """A regular expression, searched in each line."""
    port: bool = False
    http: str | None = None
    timeout: float = 30.0


@frozen(kw_only=True)
class Stage:
    """One step of an experiment. A list is executed as it is, `./x` meaning
    a file of the target; a string goes to `sh -c`.
    """

    run: tuple[str, ...] | str
    timeout: float = 600.0
    service: bool = False
    ready: Ready | None = None
    env: Mapping[str, str] = field(factory=dict)

    @property
    def argv(self) -> tuple[str, ...]:
        if isinstance(self.run, str):
            return ("sh", "-c", self.run)
        first, *rest = self.run
        if first.startswith("./"):
            first = "{harness}/" + first[2:]
        return (first, *rest)


@frozen(kw_only=True)
class Stages:
    """The stages of one experiment, in the order in which they run."""

    workload: Stage
    build: Stage | None = None
    test: Stage | None = None
    deploy: Stage | None = None
    collect: Stage | None = None
    teardown: Stage | None = None

    def items(self) -> Iterator[tuple[str, Stage]]:
        for name in ("build", "test", "deploy", "workload", "collect", "teardown"):
            stage: Stage | None = getattr(self, name)
            if stage is not None:
                yield name, stage


@frozen(kw_only=True)
class Metric:
    """One measured value.

    A *primary* decides: one of them must get better. No primary may get worse by more than its
    `margin` (a fraction), nor may a *guard*; a guard with a `limit` must stay within it in every
    run. `info` is only recorded. A *digest* is a text that must be the same for incumbent and
    candidate.
    """

    unit: str = ""
    direction: Literal["lower", "higher"] = "lower"
    role: Literal["primary", "guard", "info"] = "info"
    margin: float | None = None
    limit: float | None = None
    kind: Literal["number", "digest"] = "number"
    measured_by: Literal["target", "aiopt"] = "target"
    """Whether the target prints it, or aiopt measures it itself (`USAGE_METRICS`)."""

    @property
    def tolerance(self) -> float:
        """The margin in force: 2 % for primaries, 5 % for guards where none is given."""
        return (
            self.margin if self.margin is not None else (0.02 if self.role == "primary" else 0.05)
        )


@frozen(kw_only=True)
class Workload:
    """One way to exercise the program. On a guard workload no
    primary may get worse by more than `margin`.
    """

    env: Mapping[str, str] = field(factory=dict)
    guard: bool = False
    margin: float = 0.05


@frozen(kw_only=True)
class Layout:
    """How a compiled target tells a gain from an accident of code layout: by neutral rebuilds of
    the same source, or, where the build cannot make them, by a floor under all effects.
    """

    variable: str | None = None
    """Environment variable of the build stage: 0 in the plain build; 1, 2, … each have to give
    another layout (link order, padding, alignment) of the same program.
    """
    rebuilds: int = 6
    """How many there are; confirmation, audit and ablation rotate over them."""
    pairs: int = 5
    """Calibration pairs of the plain build against each rebuild."""
    floor: float | None = None
    """Effects (natural log) below it are taken for layout."""


@frozen(kw_only=True)
class Output:
    """How metrics are read from what `workload` and `collect` print."""

    format: str = "lines"


@frozen(kw_only=True)
class Target:
    """A codebase to optimise."""

    name: str
    source: Source
    scope: Scope
    stages: Stages
    metrics: Mapping[str, Metric]
    workloads: Mapping[str, Workload]
    description: str = ""
    artifact: Artifact = Artifact()
    harness: Harness = Harness()
    output: Output = Output()
    layout: Layout | None = None
    profilers: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(factory=dict)
    """Variables for every stage."""
    pass_env: tuple[str, ...] = ()
    """Names of variables that stages may see from the environment of aiopt."""
    writable: tuple[str, ...] = ()
    """Folders beyond the workspace that stages may write to, such as a compiler cache."""

    @property
    def main_workloads(self) -> tuple[str, ...]:
        return tuple(name for name, workload in self.workloads.items() if not workload.guard)

    @property
    def guard_workloads(self) -> tuple[str, ...]:
        return tuple(name for name, workload in self.workloads.items() if workload.guard)

    @property
    def primaries(self) -> tuple[str, ...]:
        return tuple(name for name, metric in self.metrics.items() if metric.role == "primary")

    def build_env(self, layout: int) -> Mapping[str, str]:
        """What the build stage is told of layouts; 0 is the plain build."""
        variable = self.layout.variable if self.layout is not None else None
        return {} if variable is None else {variable: str(layout)}


_NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_TAKEN = re.compile(
    "PATH|LANG|LC_.*|TZ|HOME|TMPDIR|WORKLOAD|AIOPT_JOB|(SOURCE|TARGET|RUN)_DIR|SERVICE_.*"
)
"""Variables that stages have from aiopt or from the user's environment."""


def parse_target(text: str, where: str = "target.toml") -> Target:
    """The target that a `target.toml` describes.

    Raises:
        ConfigError: all problems at once, each with its path.
    """
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(where, [("", f"not TOML: {error}")]) from None
    target = structure(data, Target, where)
    problems = list(_problems(target))
    if problems:
        raise ConfigError(where, problems)
    return target


def _problems(target: Target) -> Iterator[tuple[str, str]]:
    if not _NAME.fullmatch(target.name):
        yield "name", f"{target.name!r}: use lower-case letters, digits, - and _"
    yield from _source_problems(target.source)
    if not target.scope.editable:
        yield "scope.editable", "empty: no patch could ever be in scope"
    yield from _stage_problems(target.stages)
    yield from _metric_problems(target)
    if target.layout is not None:
        yield from _layout_problems(target, target.layout)
    if not target.main_workloads:
        yield "workloads", "at least one that is no guard is needed: it decides"
    for name, workload in target.workloads.items():
        if not _NAME.fullmatch(name):
            yield f"workloads.{name}", "use lower-case letters, digits, - and _"
        if workload.margin <= 0:
            yield f"workloads.{name}.margin", f"{workload.margin:g}: must be above 0"
    if target.output.format not in FORMATS and ":" not in target.output.format:
        known = ", ".join(sorted(FORMATS))
        yield "output.format", f"{target.output.format!r}: known are {known}, or module:function"


def _source_problems(source: Source) -> Iterator[tuple[str, str]]:
    given = [name for name in ("path", "git", "script") if getattr(source, name) is not None]
    if len(given) != 1:
        found = " and ".join(given) or "none of them"
        yield "source", f"give exactly one of path, git, script; found {found}"
    if source.git is not None and not source.revision:
        yield "source.revision", "needed with git: a commit or a tag, so that runs can be repeated"
    if source.revision is not None and source.git is None:
        yield "source.revision", "belongs to git"
    if source.path is not None and (Path(source.path).is_absolute() or ".." in source.path):
        yield "source.path", f"{source.path!r}: a folder inside the target's own"


def _stage_problems(stages: Stages) -> Iterator[tuple[str, str]]:
    for name, stage in stages.items():
        path = f"stages.{name}"
        if not stage.run:
            yield f"{path}.run", "empty"
        if stage.timeout <= 0:
            yield f"{path}.timeout", f"{stage.timeout:g}: seconds, above 0"
        if stage.service and name != "deploy":
            yield f"{path}.service", "only deploy can be a service"
        if stage.service and stage.ready is None:
            yield (
                f"{path}.ready",
                "needed for a service: { line = … }, { port = true } or { http = … }",
            )
        if stage.ready is None:
            continue
        ways = [bool(stage.ready.line), stage.ready.port, bool(stage.ready.http)]
        if sum(ways) != 1:
            yield f"{path}.ready", "give exactly one of line, port, http"
        if not stage.service:
            yield f"{path}.ready", "only a service becomes ready: add service = true"
        try:
            re.compile(stage.ready.line or "")
        except re.error as error:
            yield f"{path}.ready.line", f"not a regular expression: {error}"


def _layout_problems(target: Target, layout: Layout) -> Iterator[tuple[str, str]]:
    if (layout.variable is None) == (layout.floor is None):
        found = "neither" if layout.variable is None else "both"
        yield "layout", f"give exactly one of variable, floor; found {found}"
    if layout.floor is not None and not 0 < layout.floor < 1:
        yield "layout.floor", f"{layout.floor:g}: a natural log above 0, such as 0.018"
    if layout.rebuilds < 2:
        yield "layout.rebuilds", f"{layout.rebuilds}: at least 2"
    if layout.pairs < 2:
        yield "layout.pairs", f"{layout.pairs}: at least 2"
    name = layout.variable
    if name is None:
        return
    build = target.stages.build
    if build is None:
        yield "layout.variable", "needs a build stage, which is what turns it into a layout"
    if not _VARIABLE.fullmatch(name):
        yield "layout.variable", f"{name!r}: the name of an environment variable"
    elif _TAKEN.fullmatch(name):
        yield "layout.variable", f"{name} means something else to every stage"
    elif name in target.environment or name in target.pass_env or (build and name in build.env):
        yield "layout.variable", f"{name} is set by environment, pass_env or stages.build.env too"


def _metric_problems(target: Target) -> Iterator[tuple[str, str]]:
    if not target.primaries:
        yield "metrics", 'none has role = "primary": nothing could decide'
    for name, metric in target.metrics.items():
        path = f"metrics.{name}"
        compared = metric.role != "info" or metric.margin is not None or metric.limit is not None
        if metric.kind == "digest" and compared:
            yield path, "a digest must be equal; role, margin and limit do not apply"
        if metric.margin is not None and metric.margin <= 0:
            yield f"{path}.margin", f"{metric.margin:g}: a fraction above 0, such as 0.05"
        if metric.margin is not None and metric.role == "info":
            yield f"{path}.margin", "belongs to a primary or a guard"
        if metric.limit is not None and metric.role != "guard":
            yield f"{path}.limit", "belongs to a guard"
        if metric.limit is not None and metric.margin is not None:
            yield path, "a guard has a limit or a margin, not both"
        if metric.measured_by == "aiopt" and name not in USAGE_METRICS:
            yield f"{path}.measured_by", f"aiopt measures {', '.join(USAGE_METRICS)}; not {name}"
        if (
            name.startswith("service_")
            and metric.measured_by == "aiopt"
            and not (target.stages.deploy and target.stages.deploy.service)
        ):
            yield f"{path}.measured_by", "there is no service: stages.deploy.service"


def load_target(folder: Path) -> Target:
    """The target in a folder.

    Raises:
        ConfigError: there is no target.toml, or it has problems, or files that it names are
        missing.
    """
    file = folder / "target.toml"
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(
            str(file), [("", "no such file; `aiopt new-target NAME` writes a skeleton")]
        ) from None
    except UnicodeDecodeError as error:
        raise ConfigError(str(file), [("", f"not UTF-8: {error}")]) from None
    target = parse_target(text, str(file))
    problems: list[tuple[str, str]] = []
    if target.source.path is not None and not (folder / target.source.path).is_dir():
        problems.append(("source.path", f"no folder {folder / target.source.path}"))
    for name, stage in [*target.stages.items(), ("source", _source_stage(target))]:
        if stage is None or isinstance(stage.run, str) or not stage.run[0].startswith("./"):
            continue
        script = folder / stage.run[0]
        if not script.is_file():
            problems.append((f"stages.{name}.run", f"no file {script}"))
        elif not os.access(script, os.X_OK):
            problems.append((f"stages.{name}.run", f"not executable: chmod +x {script}"))
    if problems:
        raise ConfigError(str(file), problems)
    return evolve(target, writable=tuple(str(Path(path).expanduser()) for path in target.writable))


def _source_stage(target: Target) -> Stage | None:
    script = target.source.script
    return None if script is None else Stage(run=script, timeout=target.source.timeout)


def harness_files(folder: Path, target: Target) -> tuple[str, ...]:
    """The files of the harness, relative to the folder, sorted."""
    ignored = list(target.harness.exclude)
    if target.source.path is not None:
        ignored.append(f"/{target.source.path.strip('/')}/")
    spec = GitIgnoreSpec.from_lines(ignored)
    found = []
    for root, _, names in os.walk(folder):
        for name in names:
            path = (Path(root) / name).relative_to(folder).as_posix()
            if not spec.match_file(path):
                found.append(path)
    return tuple(sorted(found))


def harness_digest(folder: Path, files: tuple[str, ...]) -> str:
    """One sha256 over names, executable bits and contents."""
    total = hashlib.sha256(b"aiopt harness 1")
    for name in files:
        path = folder / name
        executable = os.access(path, os.X_OK)
        content = hashlib.sha256(path.read_bytes()).digest()
        total.update(f"{len(name)}:{name}:{int(executable)}:".encode() + content)
    return total.hexdigest()


def spec_of(target: Target) -> dict[str, Any]:
    """The target as plain JSON data, as `CampaignStarted` keeps it."""
    from aiopt.config import unstructure

    return unstructure(target)
