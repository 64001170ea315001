"""Numbers in sentences."""

__all__ = ["plural", "share", "spell_time"]


def share(fraction: float) -> str:
    """`3.0 %`, `0.12 %`, `14 %`: two figures."""
    value = 100 * fraction
    size = abs(value)
    digits = 0 if size >= 9.95 else 1 if size >= 0.995 else 2
    return f"{value:.{digits}f} %"


def spell_time(seconds: float) -> str:
    """`1.5 seconds`, `40 seconds`, `1.2 minutes`, `12 minutes`, `2.1 hours`."""
    value, unit = seconds, "seconds"
    if seconds >= 59.5:
        value, unit = seconds / 60, "minutes"
    if seconds >= 89.5 * 60:
        value, unit = seconds / 3600, "hours"
    return f"{value:.1f} {unit}" if value < 9.95 else f"{value:.0f} {unit}"


def plural(count: int, one: str, many: str = "") -> str:
    """`1 pair`, `2 pairs`."""
    return f"{count} {one if count == 1 else many or one + 's'}"
