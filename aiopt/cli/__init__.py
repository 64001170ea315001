"""The `aiopt` command: parse, call the library, print, and turn how it ended into an exit code.

A command is imported when it is run, so that `aiopt --help` costs nothing; its one-line help is in
the table below.
"""

import importlib
from typing import Any

import click
from click.shell_completion import CompletionItem

from aiopt import __version__
from aiopt.errors import AiOptError

__all__ = ["COMMANDS", "main"]

COMMANDS = {
    "run": ("aiopt.cli.run:run", "Search a target for patches that make it faster."),
    "resume": ("aiopt.cli.run:resume", "Go on with a campaign that was interrupted."),
    "try": ("aiopt.cli.attempt:attempt", "Judge one patch and print the verdict."),
    "profile": ("aiopt.cli.profile:profile", "Profile the best source so far."),
    "parse": ("aiopt.cli.parse:parse", "Read a profile or benchmark output that you have."),
    "audit": ("aiopt.cli.audit:audit", "Measure the result of a campaign on fresh pairs."),
    "show": ("aiopt.cli.show:show", "Show campaigns, candidates or one experiment."),
    "log": ("aiopt.cli.log:log", "Print the events of a log."),
    "replay": ("aiopt.cli.replay:replay", "Rank and decide anew under other weights or rules."),
    "verify": ("aiopt.cli.logs:verify", "Check that a log is what was once written."),
    "merge": ("aiopt.cli.logs:merge", "Join the logs of several machines into one."),
    "export": (
        "aiopt.cli.export:export",
        "Write folders that repeat each experiment, and tables.",
    ),
    "targets": ("aiopt.cli.targets:targets", "List the targets that can be run."),
    "new-target": ("aiopt.cli.targets:new_target", "Write the skeleton of a new target."),
    "plugins": ("aiopt.cli.plugins:plugins", "List plug-ins and whether they load."),
    "doctor": (
        "aiopt.cli.doctor:doctor",
        "Say what works on this machine and how to fix the rest.",
    ),
}
"""Name to where the command is (module:attribute) and its one-line help."""


class _Commands(click.Group):
    """A group whose commands are imported one at a time, and the place where errors end."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name][0].partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        names = [
            CompletionItem(name, help=text)
            for name, (_, text) in COMMANDS.items()
            if name.startswith(incomplete)
        ]
        return names + click.Command.shell_complete(self, ctx, incomplete)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except AiOptError as error:
            click.echo(f"error: {error}", err=True)
            ctx.exit(error.exit_code)
        except KeyboardInterrupt:
            click.echo("interrupted", err=True)
            ctx.exit(130)


@click.command(
    cls=_Commands,
    context_settings={"auto_envvar_prefix": "AIOPT", "help_option_names": ["-h", "--help"]},
)
@click.version_option(__version__, prog_name="aiopt")
def main() -> None:
    """Make a program faster, and keep only what is proved.

    Proposed patches are built, checked, measured in pairs against the present best, and kept or
    discarded. Everything that happened is in a log, RESULTS/TARGET/events.db, and an interrupted
    campaign can always be resumed.

    \b
    Begin with:
      aiopt doctor
      aiopt new-target mine
      aiopt run targets/mine

    Every option can be given in the environment: AIOPT_COMMAND_OPTION, such as
    AIOPT_RUN_BUDGET=30m; --results also as AIOPT_RESULTS.

    \b
    Exit codes: 0 done; 1 error; 2 usage or configuration; 3 finished and nothing
    kept; 4 a regression where it was forbidden; 130 interrupted.
    """
