"""Two or more sides measured in turns, and what their ratio says.

Machines are noisy and slow down and speed up while they are looked at, so no figure here means
anything by itself. All sides of a row run in one process, or in alternation, round by round, the
order turning with the rounds; a row's figure is the median of the ratios within the rounds, with
its quartiles.
"""

import gc
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal

from attrs import Factory, define, evolve, field, frozen

__all__ = [
    "Cost",
    "Line",
    "Ratio",
    "Rounds",
    "Unit",
    "WrongWork",
    "cost_of",
    "cost_of_process",
    "equal",
    "ratio",
    "turns",
]

Status = Literal[
    "met",
    "missed",
    "no goal",
    "not judged",
    "not installed",
    "run it",
    "wrong work",
]


Unit = Literal["cpu", "wall"]


class WrongWork(Exception):
    """The two sides of a row did not do the same work, so their costs say nothing."""


def equal(what: str, ours: object, theirs: object) -> None:
    """Raise WrongWork if they differ."""
    if ours != theirs:
        raise WrongWork(f"{what}: ours {str(ours)[:80]}, the other side {str(theirs)[:80]}")


@frozen
class Cost:
    """What something used, in seconds."""

    cpu: float
    wall: float

    def of(self, unit: Unit) -> float:
        """One of the two."""
        return self.cpu if unit == "cpu" else self.wall

    def per(self, pieces: int) -> "Cost":
        """The cost of one of so many pieces of work."""
        return Cost(self.cpu / pieces, self.wall / pieces)


def cost_of(work: Callable[[], object]) -> Cost:
    """Run it and say what this process used for it."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return Cost(time.process_time() - cpu, time.perf_counter() - wall)


def cost_of_process(argv: list[str], output: int) -> Cost:
    """Run a command, whose output goes to this descriptor, and say what it used."""
    wall = time.perf_counter()
    actions = [(os.POSIX_SPAWN_DUP2, output, 1), (os.POSIX_SPAWN_DUP2, output, 2)]
    pid = os.posix_spawn(argv[0], argv, os.environ, file_actions=actions)
    _, status, used = os.wait4(pid, 0)
    if os.waitstatus_to_exitcode(status) != 0:
        raise WrongWork(f"{' '.join(argv)} ended with {os.waitstatus_to_exitcode(status)}")
    return Cost(used.ru_utime + used.ru_stime, time.perf_counter() - wall)


@define
class Rounds:
    """The costs of every side, a cost a round."""

    costs: dict[str, list[Cost]] = Factory(dict)

    def add(self, side: str, cost: Cost) -> None:
        self.costs.setdefault(side, []).append(cost)

    def median(self, side: str, unit: Unit) -> float:
        """In seconds."""
        return statistics.median(cost.of(unit) for cost in self.costs[side])


def turns(sides: Sequence[str], rounds: int, rounds_done: Rounds) -> Iterator[str]:
    """The side whose turn it is; after a round for warming up, whose costs are dropped.

    What was set up before is taken out of the garbage collector's sight: the thousands of objects
    of a benchmark are none of the program's.
    """
    for number in range(rounds + 1):
        if number < 2:
            gc.collect()
            gc.freeze()
        if number == 1:
            rounds_done.costs.clear()
        shift = number % len(sides)
        yield from [*sides[shift:], *sides[:shift]]
    gc.unfreeze()


@frozen
class Ratio:
    """Median and quartiles of a ratio."""

    low: float
    median: float
    high: float


def ratio(rounds: Rounds, over: str, under: str, unit: Unit) -> Ratio:
    """`over` / `under` within each round."""
    pairs = zip(rounds.costs[over], rounds.costs[under], strict=True)
    values = [a.of(unit) / b.of(unit) for a, b in pairs]
    if len(values) == 1:
        return Ratio(values[0], values[0], values[0])
    return Ratio(*statistics.quantiles(values, n=4, method="inclusive"))


@frozen(kw_only=True)
class Line:
    """One line of the table."""

    row: str
    what: str
    ours: float | None = None
    other: float | None = None
    unit: str = ""
    beside: str = ""
    """What the other side is."""
    ratio: Ratio | None = None
    turned: bool = False
    """The ratio is the other side over ours: how many times cheaper ours is."""
    goal: float | None = None
    status: Status = "no goal"
    notes: Mapping[str, str] = field(factory=dict)
    """How both sides were run; the same name is printed once."""

    @property
    def goal_text(self) -> str:
        if self.goal is None:
            return ""
        return f"{'>=' if self.turned else '<='} {self.goal:g}x"

    def judged(self, possible: bool) -> "Line":
        """With its status, if both sides were measured at full size where the goal applies."""
        if self.goal is None or self.ratio is None or self.status != "no goal":
            return self
        if not possible:
            return evolve(self, status="not judged")
        reached = self.ratio.median
        fine = reached >= self.goal if self.turned else reached <= self.goal
        return evolve(self, status="met" if fine else "missed")
