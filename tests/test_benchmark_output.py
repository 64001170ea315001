"""Benchmark output as the same typed result as a profile."""

from aiopt.benchmark_output import result_of
from aiopt.protocols import Failed, Inconclusive, Measured


def test_samples_of_all_runs_are_taken_together() -> None:
    result = result_of("lines", ["cpu_seconds=1.5\nother=2\n", "cpu_seconds=2.5\ncpu_seconds=9\n"])
    assert isinstance(result, Measured)
    cpu = result.scalars["cpu_seconds"]
    assert (cpu.value, cpu.unit, cpu.low, cpu.high) == (2.5, "s", 1.5, 9.0)
    assert (result.scalars["other"].low, result.scalars["other"].unit) == (None, "")


def test_nothing_is_inconclusive_and_rubbish_has_failed() -> None:
    assert isinstance(result_of("lines", ["no numbers\n"]), Inconclusive)
    assert isinstance(result_of("lines", []), Inconclusive)
    assert isinstance(result_of("json", ["{"]), Failed)
