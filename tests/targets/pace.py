"""How fast the server's core is while the server runs: known work, done every few milliseconds.

On a machine with other tenants the same work takes 0.7 to 1.5 times as long from one second to the
next. What is measured at the same time on the same core shares that, so the server's CPU time
between two samples is divided by what the known work took there. Over 40 runs this brought the
standard deviation of ln(CPU time) from 0.106 to 0.016; division by the mean of all samples of a run
came to 0.039 only.

`pace.py PID FILE` samples beside a process until it ends; `pace.py FILE` reads what the command
`collect` prints and prints it again with `cpu_seconds` as on a core on which the work takes 0.3 ms.
"""

import os
import sys
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

REFERENCE = 0.0003
INTERVAL = 0.002


def work() -> int:
    """What the server does a lot of: strings, dictionaries, small integers."""
    table = {}
    for number in range(1500):
        table[str(number)] = number * number
    return sum(table.values())


def watch(pid: int, file: Path) -> None:
    """Lines of the process' CPU time so far and of what the work took just then, in seconds."""
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})  # where the server is, see deploy.sh
    clock = (~pid << 3) | 2  # as clock_getcpuclockid(3) makes it
    with file.open("w", buffering=1) as lines:
        while True:
            start = time.thread_time()
            work()
            taken = time.thread_time() - start
            try:
                used = time.clock_gettime(clock)
            except OSError:  # it has ended
                return
            lines.write(f"{used:.9f} {taken:.9f}\n")
            time.sleep(INTERVAL)


def samples(file: Path, until: float) -> Iterator[tuple[float, float]]:
    """From the start of the process to when it had used so much."""
    taken = REFERENCE
    for number, line in enumerate(file.read_text().splitlines(keepends=True)):
        if not line.endswith("\n"):
            break  # is being written
        used, taken = map(float, line.split())
        if used >= until:
            break
        if number == 0:
            yield 0.0, taken
        yield used, taken
    yield until, taken


def paced(cpu_seconds: float, file: Path) -> float:
    """The CPU time on a core that is always as fast as the reference."""
    return sum(
        (used - before) * REFERENCE / ((taken + earlier) / 2)
        for (before, earlier), (used, taken) in pairwise(samples(file, cpu_seconds))
    )


def main() -> None:
    if len(sys.argv) == 3:
        watch(int(sys.argv[1]), Path(sys.argv[2]))
        return
    for line in sys.stdin:
        name, _, value = line.strip().partition("=")
        if name == "cpu_seconds":
            value = f"{paced(float(value), Path(sys.argv[1])):.6f}"
        print(f"{name}={value}")


if __name__ == "__main__":
    main()
