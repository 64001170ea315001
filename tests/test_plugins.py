"""Plug-ins by name: what is found, what is refused, and in which words."""

from importlib.metadata import EntryPoint
from types import SimpleNamespace
from typing import Any

import pytest
from attrs import frozen

from aiopt import plugins
from aiopt.errors import AiOptError, ConfigError, PluginLoadError, UnknownPluginError


@frozen
class Good:
    """A strategy with an option."""

    depth: int = 1

    def ask(self, state: object, rng: object, count: int) -> list[object]:
        return []


class Plain:
    """A strategy without options."""

    def ask(self, state: object, rng: object, count: int) -> list[object]:
        return []


class Fussy(Plain):
    """A strategy that cannot be made."""

    def __init__(self) -> None:
        raise RuntimeError("no licence")


class Polite(Plain):
    """A strategy that says what it lacks."""

    def __init__(self) -> None:
        raise AiOptError("needs a key")


class Mute:
    """No strategy at all."""


def declared(name: str, value: str, distribution: str) -> Any:
    entry = EntryPoint(name=name, value=value, group="aiopt.strategies")
    dist = SimpleNamespace(name=distribution, version="1.0")
    return SimpleNamespace(
        name=name, value=value, group=entry.group, dist=dist, load=lambda: EntryPoint.load(entry)
    )


@pytest.fixture(autouse=True)
def _strategies(monkeypatch: pytest.MonkeyPatch) -> None:
    here = "tests.test_plugins"
    entries = [
        declared("good", f"{here}:Good", "one"),
        declared("good", f"{here}:Good", "one"),  # the same twice, as editable installs may list it
        declared("plain", f"{here}:Plain", "one"),
        declared("fussy", f"{here}:Fussy", "one"),
        declared("polite", f"{here}:Polite", "one"),
        declared("mute", f"{here}:Mute", "one"),
        declared("gone", "no_such_module:X", "one"),
        declared("twice", f"{here}:Good", "one"),
        declared("twice", f"{here}:Plain", "two"),
    ]
    monkeypatch.setattr(plugins, "entry_points", lambda group: entries)


def test_options_are_the_fields_of_the_class() -> None:
    loaded = plugins.load("strategies", "good", {"depth": 3})
    assert loaded.plugin == Good(depth=3)
    assert (loaded.used.distribution, loaded.used.version) == ("one", "1.0")
    with pytest.raises(ConfigError, match="unknown width"):
        plugins.load("strategies", "good", {"width": 3})


def test_a_plain_class_takes_no_options() -> None:
    assert isinstance(plugins.load("strategies", "plain").plugin, Plain)
    with pytest.raises(PluginLoadError, match="takes no options; given: depth"):
        plugins.load("strategies", "plain", {"depth": 1})


@pytest.mark.parametrize(
    ("name", "error", "words"),
    [
        ("other", UnknownPluginError, "there are: fussy, gone, good"),
        ("twice", UnknownPluginError, r"one \(.*\) and two \(.*\): uninstall one"),
        ("gone", PluginLoadError, "of one 1.0 does not import: ModuleNotFoundError"),
        ("mute", PluginLoadError, "lacks ask"),
        ("fussy", PluginLoadError, "no licence"),
        ("polite", AiOptError, "needs a key"),
    ],
)
def test_what_cannot_be_used_is_said(name: str, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        plugins.load("strategies", name)


def test_listing_imports_nothing_and_a_variable_limits_it(monkeypatch: pytest.MonkeyPatch) -> None:
    names = [found.name for found in plugins.available("strategies")]
    assert names == sorted(names)
    assert "gone" in names
    monkeypatch.setenv("AIOPT_PLUGINS", "two")
    assert [found.distribution for found in plugins.available("strategies")] == ["two"]
    monkeypatch.setenv("AIOPT_PLUGINS", "none")
    assert plugins.available("strategies") == ()
