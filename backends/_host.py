"""What this machine is, how it is right now, and the lock that keeps measurements alone on it."""

import errno
import fcntl
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Literal

import anyio

from aiopt.errors import BackendUnavailable

__all__ = ["covariates", "host_lock", "observe"]

_SAMPLED_CPUS = 8
_CPUS = "/sys/devices/system/cpu"
_TOOLS = ("gcc", "clang", "git", "cmake", "make")


def _read(path: str) -> str:
    """The content of a small file; empty if there is none."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return ""


def _mean(paths: list[str]) -> float | None:
    values = [float(text) for text in map(_read, paths) if text.isdigit()]
    return sum(values) / len(values) if values else None


def covariates() -> Mapping[str, float]:
    """load1, cpus, steal_jiffies, psi_cpu_some_avg10, cpu_mhz, throttle_count: those that exist.

    Well below 1 ms: of many processors only the first eight are asked (reading a frequency
    interrupts the processor).
    """
    found: dict[str, float] = {"load1": os.getloadavg()[0], "cpus": float(os.cpu_count() or 1)}
    ticks = _read("/proc/stat").partition("\n")[0].split()
    if len(ticks) > 8:
        found["steal_jiffies"] = float(ticks[8])
    for part in _read("/proc/pressure/cpu").partition("\n")[0].split():
        name, _, value = part.partition("=")
        if name == "avg10":
            found["psi_cpu_some_avg10"] = float(value)
    cpus = range(min(os.cpu_count() or 1, _SAMPLED_CPUS))
    khz = _mean([f"{_CPUS}/cpu{cpu}/cpufreq/scaling_cur_freq" for cpu in cpus])
    if khz is not None:
        found["cpu_mhz"] = khz / 1000
    throttled = _mean([f"{_CPUS}/cpu{cpu}/thermal_throttle/core_throttle_count" for cpu in cpus])
    if throttled is not None:
        found["throttle_count"] = throttled * len(cpus)
    return found


def _cpu_model() -> str:
    for line in _read("/proc/cpuinfo").splitlines():
        name, _, value = line.partition(":")
        if name.strip() in ("model name", "Model", "cpu model"):
            return value.strip()
    return platform.processor()


def _container() -> str:
    if os.path.exists("/.dockerenv"):
        return "docker"
    if os.path.exists("/run/.containerenv"):
        return "podman"
    return _read("/run/systemd/container") or os.environ.get("container", "")  # noqa: SIM112


async def _version(tool: str) -> str | None:
    if shutil.which(tool) is None:
        return None
    with anyio.move_on_after(5):
        try:
            done = await anyio.run_process(
                [tool, "--version"], check=False, stderr=subprocess.DEVNULL
            )
        except OSError:
            return None
        return done.stdout.decode(errors="replace").partition("\n")[0].strip() or None
    return None


async def observe() -> dict[str, Any]:
    """What this machine is. Takes some 20 ms, for the versions of the tools."""
    found: dict[str, Any] = {
        "hostname": platform.node(),
        "kernel": platform.release(),
        "machine": platform.machine(),
        "cpu_model": _cpu_model(),
        "cpu_count": os.cpu_count() or 1,
        "cpus_usable": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "load": list(os.getloadavg()),
        "libc": " ".join(platform.libc_ver()).strip(),
        "python": sys.version.partition(" ")[0],
        "container": _container(),
    }
    for name, path in {
        "governor": f"{_CPUS}/cpu0/cpufreq/scaling_governor",
        "no_turbo": f"{_CPUS}/intel_pstate/no_turbo",
        "boost": f"{_CPUS}/cpufreq/boost",
        "smt": f"{_CPUS}/smt/control",
        "transparent_hugepage": "/sys/kernel/mm/transparent_hugepage/enabled",
        "randomize_va_space": "/proc/sys/kernel/randomize_va_space",
        "perf_event_paranoid": "/proc/sys/kernel/perf_event_paranoid",
    }.items():
        if text := _read(path):
            found[name] = text
    for tool in _TOOLS:
        if version := await _version(tool):
            found[tool] = version
    return found


# ---- the lock ----

# A lock that all users of a machine share needs something that exists on every machine, that every
# user can open, and that stays when they are gone. A lock file would be left over, would belong to
# whoever came first, and another user could not open it in a sticky folder. flock works on folders,
# and needs no right to write: so it is `/` itself. Nothing is written. Two containers have two
# roots and do not see each other's lock; then measure from outside, or give both one `lock_path`.
_LOCK = "/"
# Builders that overlap without a gap would keep a measurement waiting for ever. So everybody first
# passes a gate: a measurement keeps it shut while it waits, and no new builder gets in. A builder
# that waits holds it too, so that it comes before the next measurement.
_GATE = "/proc"


async def _flock(path: str, operation: int) -> int:
    """A descriptor with the lock.

    Polls, so that it can be cancelled: the system call would block a thread for ever.

    Raises:
        BackendUnavailable: `path` cannot be locked.
    """
    try:
        # Each use opens anew: the lock belongs to the open file description, so two tasks of one
        # process exclude each other.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise BackendUnavailable(
            f"cannot open {path} for the lock of this host: {error}"
        ) from error
    pause = 0.001
    try:
        while True:
            try:
                fcntl.flock(descriptor, operation | fcntl.LOCK_NB)
                return descriptor
            except OSError as error:
                if error.errno not in (errno.EWOULDBLOCK, errno.EINTR):
                    raise BackendUnavailable(
                        f"cannot lock {path}: {error}; set another lock_path"
                    ) from error
            await anyio.sleep(pause)
            pause = min(pause * 1.5, 0.05)
    except BaseException:
        os.close(descriptor)
        raise


@asynccontextmanager
async def host_lock(
    kind: Literal["measuring", "building"], path: str = _LOCK
) -> AsyncIterator[None]:
    """Measuring excludes everybody else on this host, building only measurements.

    Ends with the process, however that ends. Not re-entrant: a task that measures and asks to
    build waits for itself.

    Raises:
        BackendUnavailable: `path` cannot be locked.
    """
    operation = fcntl.LOCK_EX if kind == "measuring" else fcntl.LOCK_SH
    gate = await _flock(_GATE if path == _LOCK else str(Path(path).parent), operation)
    try:
        lock = await _flock(path, operation)
    finally:
        os.close(gate)
    try:
        yield
    finally:
        os.close(lock)
