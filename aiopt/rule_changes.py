"""Parameters of a rule by their names, as people type them: `mei`, `void.psi`."""

from collections.abc import Iterator, Mapping
from typing import Any

from attrs import fields, has

from aiopt.config import unstructure
from aiopt.errors import ConfigError
from aiopt.rules import RuleParams, params_from

__all__ = ["merged", "rule_parameters", "with_changes"]


def rule_parameters() -> tuple[str, ...]:
    """Those that are plain numbers or truth values, parts of a table as `table.name`."""
    return tuple(sorted(_parameters(RuleParams)))


def _parameters(kind: type[Any], prefix: str = "") -> Iterator[str]:
    for attribute in fields(kind):
        name, default = f"{prefix}{attribute.name}", attribute.default
        if has(type(default)):
            yield from _parameters(type(default), f"{name}.")
        elif default is None or isinstance(default, int | float):
            yield name


def merged(options: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Options, as a table of `aiopt.toml` has them, with changes by name on top."""
    found = dict(options)
    for name, value in changes.items():
        table, _, inner = name.partition(".")
        found[table] = {**found.get(table, {}), inner: value} if inner else value
    return found


def with_changes(params: RuleParams, changes: Mapping[str, Any]) -> RuleParams:
    """The same parameters but for these.

    Raises:
        ConfigError: there is no parameter of such a name, or they make no sense together.
    """
    unknown = sorted(changes.keys() - set(rule_parameters()))
    if unknown:
        known = ", ".join(rule_parameters())
        problem = f"no parameter {', '.join(unknown)}; there are {known}"
        raise ConfigError("rule parameters", [("", problem)])
    return params_from(merged(unstructure(params), changes))
