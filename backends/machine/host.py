"""What this machine is, and how it is right now."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

__all__ = ["covariates", "observe"]

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


def _version(tool: str) -> str | None:
    if shutil.which(tool) is None:
        return None
    try:
        done = subprocess.run(
            [tool, "--version"],
            check=False,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=5,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.decode(errors="replace").partition("\n")[0].strip() or None


def observe() -> dict[str, Any]:
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
        if version := _version(tool):
            found[tool] = version
    return found
