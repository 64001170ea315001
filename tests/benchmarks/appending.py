"""Rows 1 and 4: what it costs to append, beside raw SQLite, and in a log that is long."""

from collections.abc import Iterator
from functools import partial
from itertools import count, islice
from pathlib import Path

from aiopt.log import Log
from aiopt.verify import verify

from . import facts
from .measuring import Cost, Line, Rounds, Unit, WrongWork, cost_of, equal, ratio, turns
from .places import Places
from .raw import Raw, contents

__all__ = ["against_raw", "growth"]


def against_raw(places: Places, quick: bool) -> Iterator[Line]:
    """Twelve event objects in one transaction; the other side has the same rows, finished."""
    transactions, rounds = (10, 4) if quick else (100, 40)
    measured = _against_raw(places.memory / "row1", transactions, rounds)
    mean, most = facts.mean_payload()
    yield Line(
        row="1",
        what=f"append 12 events, 1 transaction, {places.memory_kind} FULL, CPU",
        ours=measured.median("ours", "cpu"),
        other=measured.median("raw", "cpu"),
        unit="s",
        beside="raw sqlite3",
        ratio=ratio(measured, "ours", "raw", "cpu"),
        goal=1.3,
        notes={
            "raw sqlite3": "the same table, triggers, guards, PRAGMAs and commits; the rows that"
            " ours wrote a round before, finished. Afterwards both files hold the same bytes and"
            " `verify` finds nothing wrong",
            "events": f"12 for an experiment, payloads of {mean:.0f} bytes in the mean, {most} with"
            " ten metrics",
        },
    )
    transactions, rounds = (3, 3) if quick else (25, 20)
    measured = _against_raw(places.disk / "row1", transactions, rounds)
    units: tuple[Unit, ...] = ("cpu", "wall")
    for unit in units:
        yield Line(
            row=f"1 disk {unit}",
            what=f"the same, {places.disk_kind} FULL, {unit.replace('cpu', 'CPU')}",
            ours=measured.median("ours", unit),
            other=measured.median("raw", unit),
            unit="s",
            beside="raw sqlite3",
            ratio=ratio(measured, "ours", "raw", unit),
        )


def _against_raw(folder: Path, transactions: int, rounds: int) -> Rounds:
    folder.mkdir()
    path, other = folder / "ours.db", folder / "raw.db"
    measured = Rounds()
    with Log.open(path) as log:
        log.append(facts.campaign(log.writer))
        raw = Raw(other, path)
        raw.fetch([1])
        for rows in raw.next():
            raw.write(rows)
        numbers = count(1)

        def ours() -> Cost:
            work = [facts.experiment(next(numbers), log.writer) for _ in range(transactions)]

            def append() -> None:
                for items in work:
                    log.append(items)

            cost = cost_of(append)
            raw.fetch([facts.EVENTS] * transactions)
            return cost

        def theirs() -> Cost:
            work = raw.next()

            def write() -> None:
                for rows in work:
                    raw.write(rows)

            return cost_of(write)

        ours()
        for side in turns(["ours", "raw"], rounds, measured):
            cost = ours() if side == "ours" else theirs()
            measured.add(side, cost.per(transactions))
        raw.finish()
    equal("rows and their hash", contents(path), contents(other))
    _must_be_right(path)
    return measured


def _must_be_right(path: Path) -> None:
    wrong = [problem for problem in verify(path).problems if problem.kind != "blob"]
    if wrong:
        raise WrongWork(f"{path.name}: {wrong[0].text}")


# ---- growth ----


_SINGLY = 50
"""The last experiments are written an event at a time: so the write-ahead log of every log, long or
short, has its full length, and no page of it is the first of its kind."""


def build(path: Path, events: int) -> tuple[Log, Iterator[facts.Items]]:
    """A log with that many events in it, and the experiments that come next."""
    log = Log.open(path)
    log.append(facts.campaign(log.writer))
    coming = facts.experiments(1, 10**9, log.writer)
    left = max(1, (events - 1) // facts.EVENTS)
    while left > _SINGLY:
        some = min(left - _SINGLY, 100)
        log.append([item for items in islice(coming, some) for item in items])
        left -= some
    for items in islice(coming, left):
        for item in items:
            log.append([item])
    return log, coming


def growth(places: Places, quick: bool) -> Iterator[Line]:
    """All logs are built first, then measured in turns; short ones are fresh in each round."""
    sizes = [1_000, 3_000] if quick else [1_000, 10_000, 100_000, 1_000_000]
    transactions, rounds = (8, 3) if quick else (160, 15)
    folder = places.memory / "row4"
    folder.mkdir()
    short, long = sizes[0], sizes[-1]
    pools: dict[int, list[tuple[Log, Iterator[facts.Items]]]] = {}
    for size in sizes:
        copies = rounds + 1 if size <= 10_000 else 1
        pools[size] = [build(folder / f"{size}-{n}.db", size) for n in range(copies)]
        for log, _ in pools[size]:
            built = (size - 1) // facts.EVENTS * facts.EVENTS + 1
            equal("events built", log.count(), built)
    measured = {name: Rounds() for name in ("append", "name")}
    done = dict.fromkeys(sizes, 0)
    for side in turns([str(size) for size in sizes], rounds, measured["append"]):
        size = int(side)
        pool = pools[size]
        log, coming = pool[min(done[size], len(pool) - 1)]
        work = list(islice(coming, transactions))
        before = log.count()
        cost = cost_of(partial(_append, log, work))
        measured["append"].add(side, cost.per(transactions * facts.EVENTS))
        equal("events added", log.count() - before, transactions * facts.EVENTS)
        done[size] += 1
    for side in turns([str(size) for size in sizes], 5, measured["name"]):
        log = pools[int(side)][-1][0]
        measured["name"].add(side, cost_of(partial(_names, log)).per(_NAMES))
    for size in sizes[1:]:
        yield Line(
            row="4" if size == long else f"4 {size:.0e}".replace("e+0", "e"),
            what=f"append at {size:,} events, 12 a transaction, {places.memory_kind}, CPU an event",
            ours=measured["append"].median(str(size), "cpu"),
            other=measured["append"].median(str(short), "cpu"),
            unit="s",
            beside=f"at {short:,}",
            ratio=ratio(measured["append"], str(size), str(short), "cpu"),
            goal=1.2 if size == long else None,
            notes={
                "growth": f"a round appends {transactions * facts.EVENTS} events to each log, so"
                " that checkpoints are part of it"
            },
        )
    yield Line(
        row="4 name",
        what=f"new_stream at {long:,} events ({long // facts.EVENTS:,} experiments), CPU",
        ours=measured["name"].median(str(long), "cpu"),
        other=measured["name"].median(str(short), "cpu"),
        unit="s",
        beside=f"at {short:,}",
        ratio=ratio(measured["name"], str(long), str(short), "cpu"),
    )
    opened = Rounds()
    paths = {str(size): pools[size][-1][0].path for size in sizes}
    for pool in pools.values():
        for log, _ in pool:
            log.close()
    for side in turns(list(paths), 3, opened):
        opened.add(side, cost_of(partial(_open, paths[side])))
    yield Line(
        row="4 open",
        what=f"Log.open at {long:,} events, CPU",
        ours=opened.median(str(long), "cpu"),
        other=opened.median(str(short), "cpu"),
        unit="s",
        beside=f"at {short:,}",
        ratio=ratio(opened, str(long), str(short), "cpu"),
    )
    for size in sizes:
        if size <= 100_000:  # verify takes its time
            _must_be_right(paths[str(size)])


_NAMES = 3


def _open(path: Path) -> None:
    Log.open(path).close()


def _names(log: Log) -> None:
    for _ in range(_NAMES):
        log.new_stream("exp")


def _append(log: Log, work: list[facts.Items]) -> None:
    for items in work:
        log.append(items)
