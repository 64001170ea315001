"""The five scripts of a folder, and the two files that they share.

They are the `*.sh` files and `helper.py` of this package; here the target's commands are put in
where a template has `@NAME@`.
"""

import re
import shlex
from collections.abc import Mapping, Sequence
from importlib import resources

from attrs import evolve

from aiopt.target import Source, Stage, Target

__all__ = ["scripts"]

_PASSED = (
    "LANG",
    "LC_ALL",
    "LC_COLLATE",
    "LC_CTYPE",
    "LC_MESSAGES",
    "LC_MONETARY",
    "LC_NUMERIC",
    "LC_TIME",
    "TZ",
)
"""Locale and time zone, which stages see of the environment as under a backend."""
_HELPER = '"$python" "$here/helper.py"'
_MARK = re.compile(r"@([A-Z]+)@")
_PLACEHOLDER = re.compile(r"(\{(?:source|harness|run)\})")
_FOLDERS = {"{source}": '"$SOURCE_DIR"', "{harness}": '"$TARGET_DIR"', "{run}": '"$RUN_DIR"'}


def scripts(target: Target, base_commit: str) -> dict[str, bytes]:
    """Name and content of each; the same for all experiments of a campaign."""
    texts = {
        "lib.sh": _filled("lib.sh", _shared(target)),
        "helper.py": _packaged("helper.py"),
        "build.sh": _filled("build.sh", _build(target, base_commit)),
        "deploy.sh": _filled("deploy.sh", _deploy(target)),
        "workload.sh": _filled("workload.sh", _workload(target)),
        "collect.sh": _filled("collect.sh", _collect(target)),
        "teardown.sh": _filled("teardown.sh", _teardown(target)),
    }
    return {name: text.encode() for name, text in texts.items()}


def _packaged(name: str) -> str:
    return (resources.files(__package__) / name).read_text(encoding="utf-8")


def _filled(name: str, marks: Mapping[str, str]) -> str:
    return _MARK.sub(lambda mark: marks[mark[1]], _packaged(name))


# ---- what goes into each of them ----


def _shared(target: Target) -> dict[str, str]:
    cases = []
    for name, workload in target.workloads.items():
        variables = " ".join(_variables({"WORKLOAD": name, **workload.env}))
        cases.append(f'    {name}) stage "$seconds" {variables} "$@" ;;')
    return {
        "COMMON": " ".join(_variables(target.environment)),
        "PASSED": " ".join([*_PASSED, *target.pass_env]),
        "CASES": "\n".join(cases),
        "WORKLOADS": " ".join(target.workloads),
    }


def _build(target: Target, base_commit: str) -> dict[str, str]:
    build, test = target.stages.build, target.stages.test
    return {
        "SOURCE": _fetch(target.source, base_commit),
        "BUILD": _call("stage", build, _layout(target)) if build else ": # nothing to build",
        "TEST": _call("stage", test) if test else ": # no test",
    }


def _layout(target: Target) -> str:
    """The plain build, unless the variable says which rebuild is wanted."""
    variables = target.build_env(0).items()
    return " ".join(f'{name}="${{{name}:-{plain}}}"' for name, plain in variables)


def _fetch(source: Source, base_commit: str) -> str:
    if source.path is not None:
        return (
            '[ -f "$here/source.tar.gz" ] || fail "source.tar.gz is missing; README.md says why"\n'
            'tar -xzf "$here/source.tar.gz" -C "$SOURCE_DIR"'
        )
    if source.git is not None:
        url, revision = shlex.quote(source.git), shlex.quote(source.revision or base_commit)
        return (
            'command -v git >/dev/null || fail "git is needed to fetch the source"\n'
            'git init -q "$SOURCE_DIR" && cd "$SOURCE_DIR"\n'
            f"git fetch -q --depth=1 {url} {revision} ||\n"
            f"    git fetch -q {url} '+refs/heads/*:refs/origin/*' '+refs/tags/*:refs/tags/*'\n"
            f"git -c advice.detachedHead=false checkout -q {base_commit}\n"
            'rm -rf "$SOURCE_DIR/.git"'
        )
    fetch = Stage(run=source.script or "", timeout=source.timeout)
    return f'cd "$SOURCE_DIR"\n{" ".join(map(_word, fetch.argv))}\ncd "$here"'


def _deploy(target: Target) -> dict[str, str]:
    deploy = target.stages.deploy
    if deploy is None:
        run = ": # the target has nothing to deploy"
    elif deploy.ready is None:
        run = _call("in_workload", deploy)
    else:
        run = _serve(deploy)
    return {"RUN": run, "FIRST": target.main_workloads[0]}


def _serve(deploy: Stage) -> str:
    """Start the service in the background, and wait until it is ready."""
    ready = deploy.ready
    assert ready is not None
    way, text = ("line", ready.line) if ready.line else ("http", ready.http or "")
    if ready.port:
        way = "port"
    endless = evolve(deploy, timeout=0.0)
    wrapper = [f'{_HELPER} serve "$work/service"']
    return (
        f'{_HELPER} port >"$work/service.port"\n'
        '{\n    exec </dev/null >"$work/service.out" 2>"$work/service.err"\n'
        f"    {_call('in_workload', endless, '$(service_variables)', wrapper)}\n}} &\n"
        f'{_HELPER} ready "$work/service" "$(cat "$work/service.port")" '
        f"{way} {shlex.quote(text)} {ready.timeout:g} || {{\n"
        '    tail -n 5 "$work/service.out" "$work/service.err" >&2\n'
        "    stop\n"
        f'    fail "the service was not ready within {ready.timeout:g} s"\n'
        "}"
    )


def _workload(target: Target) -> dict[str, str]:
    asked = [name for name in _asked(target) if not name.startswith("service_")]
    wrapper = [f'{_HELPER} run "$work/workload"'] if asked else []
    return {
        "RUN": _call("in_workload", target.stages.workload, "$(service_variables)", wrapper),
        "USAGE": _usage("workload", asked),
    }


def _collect(target: Target) -> dict[str, str]:
    collect = target.stages.collect
    if collect is None:
        return {"RUN": ": # the target has no collect stage: all metrics come from workload.sh"}
    return {"RUN": _call("in_workload", collect, "$(service_variables)")}


def _teardown(target: Target) -> dict[str, str]:
    teardown = target.stages.teardown
    asked = [name for name in _asked(target) if name.startswith("service_")]
    return {
        "RUN": _call("in_workload", teardown) if teardown else ": # nothing else",
        "USAGE": _usage("service", asked),
    }


# ---- shell ----


def _asked(target: Target) -> list[str]:
    """The metrics that aiopt measures itself, and here the helper."""
    return [name for name, metric in target.metrics.items() if metric.measured_by == "aiopt"]


def _usage(of: str, metrics: Sequence[str]) -> str:
    if not metrics:
        return ": # no usage asked for"
    return f'print_usage "$work/{of}" {" ".join(metrics)}'


def _call(function: str, stage: Stage, before: str = "", wrapper: Sequence[str] = ()) -> str:
    """A call of `stage` or `in_workload`: seconds, variables, a wrapper, the command."""
    words = [function, f"{stage.timeout:g}", before, *_variables(stage.env), *wrapper]
    return " ".join(word for word in [*words, *map(_word, stage.argv)] if word)


def _variables(env: Mapping[str, str]) -> list[str]:
    return [f"{name}={_word(value)}" for name, value in env.items()]


def _word(text: str) -> str:
    """A word of a shell command, with the placeholders of the backend as variables."""
    parts = [_FOLDERS.get(part) or shlex.quote(part) for part in _PLACEHOLDER.split(text) if part]
    return "".join(parts) or "''"
