"""`aiopt.toml` and the options of the command line: how a campaign is to be run.

Everything that changes what a campaign does is logged with `CampaignStarted`, and a resume uses
what was logged.
"""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from attrs import field, frozen

from aiopt.config import structure
from aiopt.errors import ConfigError
from aiopt.target import Target

__all__ = ["TRY", "Budget", "Environment", "Settings", "load_settings", "rule_params"]

TRY = "try"
"""The proposer's name in campaigns whose patches are handed in one at a time; no strategy is asked.
"""


@frozen(kw_only=True)
class Budget:
    """When to stop proposing; what was begun is finished."""

    candidates: int | None = None
    minutes: float | None = None
    """Of stages run, over all resumes."""
    runs: int | None = None
    """Of the workload, calibration and all."""


@frozen(kw_only=True)
class Environment:
    """A named place to run: a backend and its options."""

    backend: str
    options: Mapping[str, Any] = field(factory=dict)


def _local() -> Mapping[str, Environment]:
    return {"local": Environment(backend="local")}


@frozen(kw_only=True)
class Settings:
    """The settings of one campaign."""

    environment: str = "local"
    environments: Mapping[str, Environment] = field(factory=_local)
    mode: Literal["fast", "full"] = "fast"
    """`full` profiles every candidate that passed its gates, `fast` none."""
    strategy: str = "greedy"
    strategies: Mapping[str, Mapping[str, Any]] = field(factory=dict)
    """Options by name of the strategy; likewise for proposers and profilers."""
    proposer: str = "pool"
    proposers: Mapping[str, Mapping[str, Any]] = field(factory=dict)
    profilers: Mapping[str, Mapping[str, Any]] = field(factory=dict)
    profile_with: tuple[str, ...] | None = None
    """Names of the profilers instead of those that the target names."""
    profile_slowdown: float = 10.0
    """By how much longer every stage of a profiled run may take."""
    seed: int = 0
    rule: str = "two-stage"
    rule_options: Mapping[str, Any] = field(factory=dict)
    """Parameters of the rule other than its defaults: mei, delta0, pfer, planned, …"""
    budget: Budget = Budget()
    jobs: int = 1
    """How many candidates are built at the same time; measuring is always alone."""

    @property
    def here(self) -> Environment:
        """The environment that is used.

        Raises:
            ConfigError: it is not defined.
        """
        environments = {**_local(), **self.environments}
        if self.environment not in environments:
            known = ", ".join(environments)
            raise ConfigError(
                "aiopt.toml",
                [("environment", f"{self.environment!r} is not defined; there are {known}")],
            )
        return environments[self.environment]


def load_settings(file: Path | None) -> dict[str, Any]:
    """The tables of an `aiopt.toml`, checked; empty if there is no file.

    Raises:
        ConfigError: all problems at once.
    """
    if file is None or not file.is_file():
        return {}
    try:
        data = tomllib.loads(file.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(str(file), [("", f"not TOML: {error}")]) from None
    structure(data, Settings, str(file))
    return data


def rule_params(target: Target, settings: Settings) -> dict[str, Any]:
    """The parameters of the decision rule, as they are logged.

    A budget of candidates is also the number over which the error budget is spread. What the
    target says of layout is a default: the settings may have other rebuilds, or none.

    Raises:
        ConfigError: they have rebuilds, and the target has no variable that makes any.
    """
    options = dict(settings.rule_options)
    given = options.get("layout", {})
    if isinstance(given, Mapping) and (given or target.layout is not None):
        options["layout"] = {**_layout_of(target), **given}
        _check_rebuilds(target, options["layout"])
    if settings.budget.candidates is not None:
        options.setdefault("planned", max(1, settings.budget.candidates))
    return {
        "metrics": {
            name: {
                "direction": metric.direction,
                "role": metric.role,
                "margin": metric.tolerance,
                "limit": metric.limit,
                "kind": metric.kind,
            }
            for name, metric in target.metrics.items()
        },
        "workloads": {
            name: {"guard": workload.guard, "margin": workload.margin}
            for name, workload in target.workloads.items()
        },
        **options,
    }


def _layout_of(target: Target) -> dict[str, Any]:
    layout = target.layout
    if layout is None:
        return {}
    if layout.variable is None:
        return {"floor": layout.floor}
    return {"rotate": layout.rebuilds, "pairs": layout.pairs}


def _check_rebuilds(target: Target, layout: Mapping[str, Any]) -> None:
    if layout.get("rotate") and (target.layout is None or target.layout.variable is None):
        problem = f"needs a [layout] variable in the target.toml of {target.name}"
        raise ConfigError("rule parameters", [("layout.rotate", problem)])
