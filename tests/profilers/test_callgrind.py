"""Callgrind's figures are those of callgrind_annotate."""

import re
from io import BytesIO
from pathlib import Path

from aiopt.profilers.callgrind import Callgrind
from aiopt.protocols import Command, Failed, Measured

from .hostile import check_total, contents

DATA = Path(__file__).parents[1] / "data" / "profilers" / "valgrind"
PROFILE = (DATA / "callgrind.out").read_bytes()


def test_the_figures_are_those_of_callgrind_annotate() -> None:
    result = Callgrind().parse([BytesIO(PROFILE)])
    assert isinstance(result, Measured)
    assert result.scalars["instructions"].value == 56_531_563
    assert result.notes == ()
    text = (DATA / "callgrind_annotate.txt").read_text()
    rows = re.findall(r"^ *([\d,]+) \([ \d.]+%\)  [^:\n]+:(\S+) \[", text, re.MULTILINE)
    assert len(rows) == 6
    for count, name in rows:
        assert result.scalars[f"instructions[{name}]"].value == int(count.replace(",", ""))
    assert [each.where for each in result.findings[:6]] == [name for _, name in rows]
    assert sum(int(line.rsplit(" ", 1)[1]) for line in result.stacks.splitlines()) == 56_531_563


def test_costs_that_do_not_add_up_are_a_failure() -> None:
    assert isinstance(Callgrind().parse(contents(PROFILE.replace(b"\n5 4610121", b""))), Failed)


def test_no_profile_is_a_failure() -> None:
    assert isinstance(Callgrind().parse([]), Failed)


def test_whatever_the_file_holds_the_answer_is_a_value() -> None:
    check_total(Callgrind().parse, PROFILE)


def test_the_command_runs_under_callgrind() -> None:
    wrapped = Callgrind().wrap(Command(argv=("./det", "1")), "/o/p")
    assert wrapped.argv == (
        "valgrind",
        "--tool=callgrind",
        "--callgrind-out-file=/o/p",
        "./det",
        "1",
    )
