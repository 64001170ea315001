"""`aiopt doctor`: what works on this machine, and the command that would fix what does not."""

import os
import platform
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import anyio
import click
import zstandard
from attrs import frozen

from aiopt import plugins
from aiopt.cli._options import as_json, results
from aiopt.cli._text import coloured, one_line, print_json, table
from aiopt.cli._work import drive
from aiopt.errors import AiOptError
from aiopt.log import wal_bug_warning
from aiopt.profiling import probed
from aiopt.protocols import WorkspaceSpec

__all__ = ["doctor"]

_MIN_FREE = 1 << 30
_OBSERVE_SECONDS = 30.0


@frozen(kw_only=True)
class Check:
    """One finding. `missing`: aiopt cannot work; `warning`: something is worse than it could be."""

    name: str
    status: str
    """ok, note, warning, missing."""
    detail: str
    fix: str = ""


@click.command(short_help="Say what works on this machine and how to fix the rest.")
@results
@as_json
@click.pass_context
def doctor(ctx: click.Context, /, results: Path, as_json: bool) -> None:
    """Say what works on this machine, and for what does not, the command that would fix it.

    Looks at Python, git, SQLite, every backend, every profiler, the disk, and at what makes
    measurements noisy. Exit code 1 only if something is missing without which nothing works.

    \b
    Example:
      aiopt doctor --json
    """
    checks = [*_software(), *_disk(results), *_noise(), *drive(_plugged)]
    if as_json:
        print_json({"ok": not _missing(checks), "checks": checks})
    else:
        click.echo(table(("", "", ""), [_cells(check) for check in checks]).lstrip("\n"))
        fixes = [check for check in checks if check.fix and check.status != "ok"]
        if fixes:
            click.echo("\nto fix:")
        for check in fixes:
            click.echo(f"  {check.name}: {check.fix}")
    ctx.exit(1 if _missing(checks) else 0)


def _missing(checks: list[Check]) -> bool:
    return any(check.status == "missing" for check in checks)


def _cells(check: Check) -> tuple[str, str, str]:
    colour = {"ok": "green", "warning": "yellow", "missing": "red"}.get(check.status)
    status = click.style(check.status, fg=colour) if coloured(sys.stdout) else check.status
    return status, check.name, one_line(check.detail, 110)


# ---- what aiopt itself needs ----


def _software() -> Iterator[Check]:
    if sys.platform == "linux":
        yield Check(name="system", status="ok", detail=platform.platform())
    else:
        yield Check(
            name="system",
            status="warning",
            detail=f"{platform.platform()}: the local backend needs Linux",
            fix="run aiopt on Linux, or measure on another machine",
        )
    yield Check(name="python", status="ok", detail=f"{platform.python_version()} {sys.executable}")
    yield _git()
    warning = wal_bug_warning()
    yield Check(
        name="sqlite",
        status="note" if warning else "ok",
        detail=warning or sqlite3.sqlite_version,
    )
    version = ".".join(map(str, zstandard.ZSTD_VERSION))
    yield Check(name="zstd", status="ok", detail=version)


def _git() -> Check:
    fix = "apt-get install git"
    if shutil.which("git") is None:
        return Check(name="git", status="missing", detail="not found", fix=fix)
    done = subprocess.run(["git", "--version"], capture_output=True, text=True, check=False)
    status = "ok" if done.returncode == 0 else "missing"
    return Check(name="git", status=status, detail=(done.stdout or done.stderr).strip(), fix=fix)


def _disk(results: Path) -> Iterator[Check]:
    folder = results.absolute()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    detail = f"{free / 1e9:.1f} GB free for {results}"
    if not os.access(folder, os.W_OK):
        yield Check(
            name="results",
            status="missing",
            detail=f"{folder} is not writable",
            fix="give another folder with --results",
        )
    elif free < _MIN_FREE:
        yield Check(name="results", status="warning", detail=detail, fix="free some space")
    else:
        yield Check(name="results", status="ok", detail=detail)


# ---- what makes measurements noisy or evidence impossible ----


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def _noise() -> Iterator[Check]:
    load, cpus = os.getloadavg()[0], os.cpu_count() or 1
    busy = load > max(0.5, 0.2 * cpus)
    yield Check(
        name="load",
        status="warning" if busy else "ok",
        detail=f"{load:.2f} on {cpus} processors" + (", others are at work" if busy else ""),
        fix="end what else runs, or measure on another machine" if busy else "",
    )
    governor = _read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
    if governor and governor != "performance":
        yield Check(
            name="governor",
            status="warning",
            detail=f"{governor}: the frequency follows the load",
            fix="cpupower frequency-set -g performance",
        )
    elif governor:
        yield Check(name="governor", status="ok", detail=governor)
    else:
        yield Check(name="governor", status="note", detail="not visible (virtual machine?)")
    paranoid = _read("/proc/sys/kernel/perf_event_paranoid")
    if not paranoid:
        yield Check(name="perf_event", status="note", detail="this kernel offers no perf events")
    elif int(paranoid) > 1 and os.geteuid() != 0:
        what = "user space only" if paranoid == "2" else "perf is forbidden"
        yield Check(
            name="perf_event",
            status="warning",
            detail=f"perf_event_paranoid is {paranoid}: {what}",
            fix="sysctl kernel.perf_event_paranoid=1",
        )
    else:
        yield Check(name="perf_event", status="ok", detail=f"perf_event_paranoid is {paranoid}")


# ---- plug-ins ----


async def _plugged() -> list[Check]:
    checks: list[Check] = []
    local: Any = None
    for found in plugins.available("backends"):
        check, backend = await _backend(found.name)
        checks += check
        local = backend if found.name == "local" else local
    checks += await _profilers(local)
    return checks


async def _backend(name: str) -> tuple[list[Check], Any]:
    where = f"backend {name}"
    try:
        backend = plugins.load("backends", name).plugin
        with anyio.fail_after(_OBSERVE_SECONDS):
            facts: Mapping[str, Any] = await backend.observe()
    except AiOptError as error:
        fix = getattr(error, "fix", "")
        return [Check(name=where, status="note", detail=str(error), fix=fix)], None
    except TimeoutError:
        detail = f"no answer in {_OBSERVE_SECONDS:g} s"
        return [Check(name=where, status="note", detail=detail)], None
    model = facts.get("cpu_model") or facts.get("machine", "")
    found = [Check(name=where, status="ok", detail=f"{facts.get('hostname', '')} {model}".strip())]
    confinement = str(facts.get("write confinement", ""))
    if confinement:
        lacking = confinement.startswith("none")
        found.append(
            Check(
                name=f"{where}, confinement",
                status="warning" if lacking else "ok",
                detail=confinement,
                fix="use a kernel with Landlock (5.13 or later), or a container" if lacking else "",
            )
        )
    return found, backend


async def _profilers(backend: Any) -> list[Check]:
    """Each profiler's own probe, in a workspace on this machine."""
    found = plugins.available("profilers")
    if not found or backend is None:
        return []
    checks = []
    with tempfile.TemporaryDirectory(prefix="aiopt-doctor-") as name:
        root = anyio.Path(name)
        for part in ("tree", "harness", "scratch"):
            await (root / part).mkdir()
        spec = WorkspaceSpec(
            name="doctor",
            tree=Path(name) / "tree",
            harness=Path(name) / "harness",
            scratch=Path(name) / "scratch",
            marker=f"aiopt-doctor-{os.getpid()}",
        )
        try:
            async with backend.open(spec) as workspace:
                for each in found:
                    checks.append(await _profiler(each.name, workspace))
        except AiOptError as error:
            checks.append(Check(name="profilers", status="note", detail=str(error)))
    return checks


async def _profiler(name: str, workspace: Any) -> Check:
    where = f"profiler {name}"
    try:
        profiler = plugins.load("profilers", name).plugin
    except AiOptError as error:
        return Check(name=where, status="note", detail=str(error))
    await workspace.new_run(f"probe:{name}")
    unavailable = await probed(profiler, workspace)
    if unavailable is None:
        return Check(name=where, status="ok", detail="works here")
    return Check(name=where, status="note", detail=unavailable.reason, fix=unavailable.fix)
