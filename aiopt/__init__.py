"""aiopt makes real programs faster and smaller, and keeps only what it can prove.

Everything a program needs is here; it is loaded when it is first used:

    import aiopt

    result = aiopt.run("targets/pyserver", results="results")
    for row in result.candidates:
        print(row.patch, row.status, row.reason)
    rescored = aiopt.rescore("results/pyserver/events.db", weights={"cpu_seconds": 1.0})
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aiopt.api import (
        columns,
        load_state,
        pareto,
        parse,
        profile,
        rechoose,
        rescore,
        run,
        what_if,
    )
    from aiopt.campaign import open_campaign
    from aiopt.errors import (
        AiOptError,
        BackendError,
        BackendUnavailable,
        CommandTimeout,
        ConcurrentWriteError,
        ConfigError,
        CorruptLogError,
        LogError,
        LogFullError,
        LogVersionError,
        PatchDoesNotApply,
        PatchError,
        PatchOutOfScope,
        PluginError,
        PluginLoadError,
        PrerequisiteError,
        SessionLost,
        UnknownEventError,
        UnknownPluginError,
    )
    from aiopt.settings import Settings
    from aiopt.target import load_target

__version__ = "0.1.0"

__all__ = [
    "AiOptError",
    "BackendError",
    "BackendUnavailable",
    "CommandTimeout",
    "ConcurrentWriteError",
    "ConfigError",
    "CorruptLogError",
    "LogError",
    "LogFullError",
    "LogVersionError",
    "PatchDoesNotApply",
    "PatchError",
    "PatchOutOfScope",
    "PluginError",
    "PluginLoadError",
    "PrerequisiteError",
    "SessionLost",
    "Settings",
    "UnknownEventError",
    "UnknownPluginError",
    "__version__",
    "columns",
    "load_state",
    "load_target",
    "open_campaign",
    "pareto",
    "parse",
    "profile",
    "rechoose",
    "rescore",
    "run",
    "what_if",
]

_HOMES = {
    "Settings": "aiopt.settings",
    "columns": "aiopt.api",
    "load_state": "aiopt.api",
    "load_target": "aiopt.target",
    "open_campaign": "aiopt.campaign",
    "pareto": "aiopt.api",
    "parse": "aiopt.api",
    "profile": "aiopt.api",
    "rechoose": "aiopt.api",
    "rescore": "aiopt.api",
    "run": "aiopt.api",
    "what_if": "aiopt.api",
}
"""Where each name is defined; everything else is in `aiopt.errors`."""


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'aiopt' has no attribute {name!r}")
    value = getattr(import_module(_HOMES.get(name, "aiopt.errors")), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
