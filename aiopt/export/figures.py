"""How the exported texts write numbers; what was not measured is `-` and never 0."""

__all__ = ["NOTHING", "cell", "delta", "exact", "short"]

NOTHING = "-"


def exact(value: float | None) -> str:
    """All digits of a value, without a needless `.0`."""
    if value is None:
        return NOTHING
    return repr(int(value)) if value == int(value) and abs(value) < 1e15 else repr(float(value))


def cell(value: float | None) -> str:
    """Ten significant digits: medians of two values end in what binary fractions cannot say."""
    return exact(None if value is None else float(f"{value:.10g}"))


def short(value: float | None) -> str:
    """Five significant digits, for people."""
    return NOTHING if value is None else f"{value:.5g}"


def delta(value: float | None, reference: float | None) -> str:
    """The signed change of a metric itself: `-30.0%`; `-` if unknown."""
    if value is None or not reference:
        return NOTHING
    change = f"{(value - reference) / reference:+.1%}"
    return "0.0%" if float(change[:-1]) == 0 else change
