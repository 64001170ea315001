"""Help, version, completion, and what is imported for them."""

import subprocess
import sys

import click
import pytest

import aiopt
from aiopt.cli import COMMANDS, main

from .conftest import invoke

_HEAVY = ["numpy", "scipy", "sqlite_utils", "cattrs", "importlib.metadata", "anyio"]


def _loaded_after(code: str) -> set[str]:
    script = f"import sys\n{code}\nprint('\\n'.join(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())


def test_import_is_light() -> None:
    """`import aiopt` loads nothing that costs."""
    assert not _loaded_after("import aiopt").intersection(_HEAVY)


def test_help_is_light() -> None:
    """`aiopt --help` loads no library and no plug-in."""
    loaded = _loaded_after(
        "from aiopt.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit as end: assert end.code == 0"
    )
    assert not loaded.intersection(_HEAVY)
    assert not [name for name in loaded if name.startswith("aiopt.cli.")]


def test_names_are_sorted_and_there() -> None:
    """Everything that `aiopt` exports is there, and listed in order."""
    assert aiopt.__all__ == sorted(aiopt.__all__)
    for name in aiopt.__all__:
        assert getattr(aiopt, name) is not None
    assert set(aiopt.__all__) <= set(dir(aiopt))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        aiopt.nothing  # noqa: B018


def test_errors_are_the_same_objects() -> None:
    """`aiopt.ConfigError` is the class that is raised."""
    from aiopt.errors import ConfigError

    assert aiopt.ConfigError is ConfigError


def test_main_help_lists_every_command() -> None:
    """The overview has every command with its line, and the exit codes."""
    text = invoke("--help").output
    for name, (_, line) in COMMANDS.items():
        assert name in text
        assert line in text
    for code in ("0 done", "1 error", "2 usage", "3 finished", "4 a regression", "130 interrupted"):
        assert code in " ".join(text.split())


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_every_command(name: str) -> None:
    """Each has an example and explains each of its options; its line in the overview is its own."""
    result = invoke(name, "--help")
    assert result.exit_code == 0
    assert "Example" in result.output
    assert f"aiopt {name} " in result.output
    command = main.get_command(click.Context(main), name)
    assert command is not None
    assert command.short_help == COMMANDS[name][1]
    for option in command.params:
        if isinstance(option, click.Option):
            assert option.help, option.name
            assert option.help.strip().endswith((".", "]")), option.name


def test_version() -> None:
    """`--version` names the program and its version."""
    assert invoke("--version").output == f"aiopt, version {aiopt.__version__}\n"


def test_unknown_command() -> None:
    """A wrong name is a usage error."""
    assert invoke("rum").exit_code == 2


def test_completion_of_commands() -> None:
    """The shell completes names of commands and options without loading the commands."""
    found = main.shell_complete(click.Context(main), "re")
    assert [item.value for item in found] == ["resume", "replay"]
    assert main.shell_complete(click.Context(main), "--ver")[0].value == "--version"


def test_completion_script() -> None:
    """click's own completion is reachable."""
    result = invoke(env={"_MAIN_COMPLETE": "bash_source"}, prog_name="main")
    assert "_MAIN_COMPLETE=bash_complete" in result.output
