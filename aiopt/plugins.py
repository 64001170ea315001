"""Plug-ins by name: one entry-point group per kind, one object loaded at a time.

Listing names imports nothing. A plug-in is a class whose attrs fields are its options; `load`
builds it from a table. `AIOPT_PLUGINS` limits what is found: `none`, or a comma-separated list of
distributions besides aiopt itself.
"""

import os
from collections.abc import Iterator, Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from attrs import frozen, has

from aiopt.config import structure
from aiopt.errors import AiOptError, PluginLoadError, UnknownPluginError
from aiopt.events import PluginUsed

__all__ = ["GROUPS", "Found", "Loaded", "available", "load"]

GROUPS = ("backends", "profilers", "strategies", "proposers", "targets")

_METHODS: Mapping[str, tuple[str, ...]] = {
    "backends": ("session", "open", "observe", "building", "measuring", "kill_remains"),
    "profilers": ("probe", "wrap", "parse"),
    "strategies": ("ask",),
    "proposers": ("propose",),
    "targets": (),
}
"""What the object must have; checked at load, where the
distribution can be named, not at the first call.
"""


@frozen(kw_only=True)
class Found:
    """An entry point and the distribution that it belongs to; nothing is imported yet."""

    group: str
    name: str
    value: str
    distribution: str
    version: str
    entry: EntryPoint

    @property
    def used(self) -> PluginUsed:
        return PluginUsed(
            group=self.group, name=self.name, distribution=self.distribution, version=self.version
        )


@frozen(kw_only=True)
class Loaded:
    """A plug-in ready for use, and how the log names it."""

    plugin: Any
    used: PluginUsed


def available(group: str) -> tuple[Found, ...]:
    """The plug-ins of a group, sorted by name."""
    return tuple(sorted(_found(group), key=lambda found: (found.name, found.distribution)))


def _found(group: str) -> Iterator[Found]:
    allowed = os.environ.get("AIOPT_PLUGINS")
    names = None if allowed is None else {"aiopt", *(part.strip() for part in allowed.split(","))}
    seen = set()
    for entry in entry_points(group=f"aiopt.{group}"):
        distribution = entry.dist.name if entry.dist is not None else "?"
        version = entry.dist.version if entry.dist is not None else "?"
        key = (entry.name, distribution, entry.value)
        if key in seen or (names is not None and distribution not in names):
            continue
        seen.add(key)
        yield Found(
            group=group,
            name=entry.name,
            value=entry.value,
            distribution=distribution,
            version=version,
            entry=entry,
        )


def load(group: str, name: str, options: Mapping[str, Any] | None = None) -> Loaded:
    """The plug-in of this name, built from its options.

    Raises:
        UnknownPluginError: no plug-in has this name, or more than one distribution brings one.
        PluginLoadError: it does not import, or does not fit its protocol.
        ConfigError: the options do not fit.
    """
    known = available(group)
    matches = [found for found in known if found.name == name]
    if not matches:
        there = ", ".join(found.name for found in known) or "none"
        raise UnknownPluginError(
            f"no {group} plug-in named {name!r}; there are: {there}. A package that brings one "
            f"declares it in the entry-point group aiopt.{group}: install it beside aiopt"
        )
    if len(matches) > 1:
        both = " and ".join(f"{found.distribution} ({found.value})" for found in matches)
        raise UnknownPluginError(f"{group} plug-in {name!r} is brought by {both}: uninstall one")
    found = matches[0]
    try:
        kind = found.entry.load()
    except Exception as error:
        raise PluginLoadError(
            f"{group} plug-in {name!r} of {found.distribution} {found.version} does not import: "
            f"{type(error).__name__}: {error}"
        ) from error
    missing = [method for method in _METHODS[group] if not callable(getattr(kind, method, None))]
    if missing:
        raise PluginLoadError(
            f"{group} plug-in {name!r} of {found.distribution} {found.version} ({found.value}) "
            f"lacks {', '.join(missing)}; see aiopt.protocols"
        )
    return Loaded(plugin=_build(kind, found, options or {}), used=found.used)


def _build(kind: Any, found: Found, options: Mapping[str, Any]) -> Any:
    if isinstance(kind, type) and has(kind):
        return structure(options, kind, f"{found.group}.{found.name} options")
    if options:
        raise PluginLoadError(
            f"{found.group} plug-in {found.name!r} of {found.distribution} takes no options; "
            f"given: {', '.join(options)}"
        )
    try:
        return kind()
    except AiOptError:
        raise
    except Exception as error:
        raise PluginLoadError(
            f"{found.group} plug-in {found.name!r} of {found.distribution}: {error}"
        ) from error
