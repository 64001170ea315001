"""What a parser of benchmark output yields; `aiopt.metrics` makes numbers of it."""

from collections.abc import Callable, Iterable

from attrs import frozen

__all__ = ["Found", "Parser", "Problem"]


@frozen
class Found:
    """One value that a parser came across."""

    metric: str
    value: float | str
    """A number, or the text as it was printed."""
    line: int | None = None
    """Counted from 1; None where the format has no useful lines."""
    declared: bool = True
    """Whether the output says that this is a metric. If not, it may be text of another purpose that
    looks like one, and only matters when it is a number, or wanted."""


@frozen
class Problem:
    """One thing that is wrong with the output."""

    metric: str
    """Empty where the output as a whole is meant."""
    found: str
    """The text as it was printed; empty where there is none."""
    line: int | None = None
    """Counted from 1; None where there is no line to point at."""
    why: str = "not a finite number"

    def __str__(self) -> str:
        """One line for people."""
        where = f"line {self.line}" if self.line is not None else ""
        found = repr(self.found) if self.found else ""
        return ": ".join(part for part in (where, self.metric, found, self.why) if part)


Parser = Callable[[str], Iterable[Found | Problem]]
"""Reads one format. It may raise: `parse` makes that a problem."""
