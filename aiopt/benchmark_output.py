"""Benchmark output as the same typed result as a profile."""

from collections.abc import Sequence
from statistics import median

from aiopt.events import Scalar
from aiopt.metrics import parse
from aiopt.protocols import Failed, Inconclusive, Measured, ProfileResult

__all__ = ["result_of"]


def result_of(format: str, texts: Sequence[str]) -> ProfileResult:
    """Every metric that the outputs of one or more runs hold, as scalars.

    A scalar is the median of all samples of its name, its interval reaches from the least to the
    largest of them.

    Raises:
        ConfigError: no format has this name.
    """
    samples: dict[str, list[float]] = {}
    problems: list[str] = []
    for text in texts:
        parsed = parse(format, text, {})
        problems += [str(problem) for problem in parsed.problems]
        for name, values in parsed.samples.items():
            samples.setdefault(name, []).extend(values)
    if not samples:
        if problems:
            return Failed(reason="; ".join(problems[:3]))
        return Inconclusive(reason=f"no metric in the format {format}")
    scalars = {
        name: Scalar(
            value=median(values),
            unit=_unit(name),
            low=min(values) if len(values) > 1 else None,
            high=max(values) if len(values) > 1 else None,
        )
        for name, values in samples.items()
    }
    return Measured(scalars=scalars, notes=tuple(problems[:20]))


_ENDINGS = {
    "seconds": "s",
    "_ms": "ms",
    "_us": "us",
    "_ns": "ns",
    "_mb": "MB",
    "_bytes": "bytes",
    "ops_per_sec": "1/s",
    "micros_per_op": "us",
    "mb_per_sec": "MB/s",
    "_gb": "GB",
    "_ratio": "ratio",
    "_percent": "%",
}


def _unit(name: str) -> str:
    return next((unit for ending, unit in _ENDINGS.items() if name.endswith(ending)), "")
