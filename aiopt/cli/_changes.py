"""What `--set` and the like may say of a rule."""

from collections.abc import Mapping
from typing import Any

import click

from aiopt.rule_changes import rule_parameters
from aiopt.verdict import RULES

__all__ = ["check_changes", "check_fits"]


def check_changes(changes: Mapping[str, Any], rule: str | None) -> None:
    """Are these parameters that the rule (None: any) looks at?

    Raises:
        click.UsageError: no.
    """
    unknown = sorted(changes.keys() - set(rule_parameters()))
    if unknown:
        known = ", ".join(rule_parameters())
        raise click.UsageError(f"--set: no parameter {', '.join(unknown)}; there are {known}")
    for name in ("pairs", "alpha"):
        if name in changes and rule is not None:
            check_fits(name, rule, f"--set {name}")


def check_fits(name: str, rule: str, typed: str) -> None:
    """Numbers that a rule plans itself are not to be given, for they would be ignored."""
    if RULES[rule].calibrated:
        raise click.UsageError(
            f"{typed} belongs to --rule signed-rank; {rule} plans its own numbers from the noise"
        )
    if name == "alpha" and rule != "signed-rank":
        raise click.UsageError(f"{typed} belongs to --rule signed-rank; {rule} has no level")
