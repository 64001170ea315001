"""What it costs to read a log and fold it, and to verify it."""

import hashlib
from collections.abc import Callable, Iterator
from functools import cache, partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import orjson

from aiopt import codec
from aiopt.blobs import BlobStore, blobs_beside
from aiopt.log import Log
from aiopt.logfile import Row, genesis, row_hash, rows
from aiopt.replay import fold
from aiopt.verify import verify

from . import facts
from .appending import build
from .measuring import Line, Rounds, cost_of, equal, ratio, turns
from .places import Places

__all__ = ["replay", "verifying"]

_NOTES = {
    "replay": "fold(log.read()): rows, decoded events, state. decode: codec.decode of payloads that"
    " lie in memory; orjson: orjson.loads of the same, neither keeps anything",
    "eventsourcing": "repository.get of every aggregate, SQLite recorder, one aggregate for an"
    " experiment, its 12 payloads as events; its state is a list of them",
}


def replay(places: Places, quick: bool) -> Iterator[Line]:
    """Microseconds an event, by length; and the longest beside the shortest."""
    sizes = [1_000] if quick else [1_000, 10_000, 100_000]
    folder = places.memory / "replay"
    folder.mkdir()
    paths = {size: folder / f"{size}.db" for size in sizes}
    for size, path in paths.items():
        build(path, size)[0].close()
    measured = {size: _replay(path, size, quick) for size, path in paths.items()}
    for size in sizes:
        found = measured[size]
        for side, beside in (
            ("decode", "cattrs decode"),
            ("orjson", "orjson.loads"),
            ("eventsourcing", "eventsourcing"),
        ):
            what = f"fold(log.read()) of {size:,} events, CPU an event"
            if side == "eventsourcing" and size == sizes[-1] and not quick:
                continue  # half a minute a round
            if side not in found.costs:
                yield Line(
                    row=f"replay {size:.0e}".replace("e+0", "e"),
                    what=what,
                    ours=found.median("ours", "cpu"),
                    unit="s",
                    beside=beside,
                    status="not installed",
                )
                continue
            yield Line(
                row=f"replay {size:.0e}".replace("e+0", "e"),
                what=what,
                ours=found.median("ours", "cpu"),
                other=found.median(side, "cpu"),
                unit="s",
                beside=beside,
                ratio=ratio(found, "ours", side, "cpu"),
                notes=_NOTES,
            )
    if len(sizes) > 1:
        yield _growth(paths, sizes)


def _growth(paths: dict[int, Path], sizes: list[int]) -> Line:
    short, long = sizes[0], sizes[-1]
    grown = Rounds()
    logs = {size: Log.open(paths[size], readonly=True) for size in (short, long)}
    for side in turns([str(short), str(long)], 7, grown):
        times = 20 if int(side) == short else 1
        log = logs[int(side)]
        cost = cost_of(partial(_fold, log, times))
        grown.add(side, cost.per(times * log.count()))
    for log in logs.values():
        log.close()
    return Line(
        row="replay growth",
        what=f"fold(log.read()) of {long:,} events, CPU an event",
        ours=grown.median(str(long), "cpu"),
        other=grown.median(str(short), "cpu"),
        unit="s",
        beside=f"of {short:,}",
        ratio=ratio(grown, str(long), str(short), "cpu"),
    )


def _fold(log: Log, times: int) -> None:
    for _ in range(times):
        fold(log.read())


def _replay(path: Path, size: int, quick: bool) -> Rounds:
    found = Rounds()
    with Log.open(path, readonly=True) as log:
        stored = [(row.type, row.schema_version, row.payload) for row in rows(path)]
        for name, version, payload in stored[:200]:
            equal(
                "encoded again",
                codec.encode(codec.decode(name, version, payload)),
                (name, version, payload),
            )
        experiments = sum(name == "ExperimentStarted" for name, _, _ in stored)
        state = fold(log.read())
        equal("experiments in the state", len(state.campaign_of), experiments)
        equal("last event", state.last_seq, len(stored))
        del state
        sides: dict[str, Callable[[], object]] = {
            "ours": partial(_fold, log, 1),
            "decode": partial(_decode, stored),
            "orjson": partial(_loads, stored),
        }
        if find_spec("eventsourcing") is not None and size <= 10_000:
            sides["eventsourcing"] = _eventsourcing(path)
        rounds = 2 if quick else 7
        for side in turns(list(sides), rounds, found):
            found.add(side, cost_of(sides[side]).per(len(stored)))
    return found


def _decode(stored: list[tuple[str, int, str]]) -> None:
    for name, version, payload in stored:
        codec.decode(name, version, payload)


def _loads(stored: list[tuple[str, int, str]]) -> None:
    for _, _, payload in stored:
        orjson.loads(payload)


@cache
def _aggregate() -> Any:
    """eventsourcing keeps classes by name, so there must be one only."""
    domain: Any = import_module("eventsourcing.domain")

    class Experiment(domain.Aggregate):  # type: ignore[misc]
        def __init__(self) -> None:
            self.facts: list[tuple[str, Any]] = []

        @domain.event("Recorded")  # type: ignore[untyped-decorator]
        def record(self, name: str, payload: Any) -> None:
            self.facts.append((name, payload))

    return Experiment


def _eventsourcing(path: Path) -> Callable[[], int]:
    """The same payloads kept by eventsourcing; calling the result reads all of them back."""
    application: Any = import_module("eventsourcing.application")
    app = application.Application(
        env={
            "PERSISTENCE_MODULE": "eventsourcing.sqlite",
            "SQLITE_DBNAME": str(path.with_name(f"{path.stem}-eventsourcing.db")),
        }
    )
    keys, current = [], _aggregate()()
    stored = list(rows(path))
    for row in stored:
        current.record(name=row.type, payload=orjson.loads(row.payload))
        if len(current.facts) == facts.EVENTS or row is stored[-1]:
            app.save(current)
            keys.append(current.id)
            current = _aggregate()()

    def read() -> int:
        return sum(len(app.repository.get(key).facts) for key in keys)

    equal("events read back", len(stored), read())
    first = app.repository.get(keys[0]).facts[0]
    equal("a payload read back", first, (stored[0].type, orjson.loads(stored[0].payload)))
    return read


# ---- verify ----


def verifying(places: Places, quick: bool) -> Iterator[Line]:
    """Beside the least that has to be done: hash and decode every row."""
    size, rounds = (1_000, 2) if quick else (30_000, 7)
    path = places.memory / "verify" / "events.db"
    build(path, size)[0].close()
    BlobStore(blobs_beside(path)).put(facts.BLOB)
    stored = list(rows(path))
    report = verify(path)
    equal("problems", report.problems, ())
    equal("end of the chain", next(iter(report.heads.values()))[1], _chain(stored).hex())
    equal("events", report.events, len(stored))
    measured = Rounds()
    sides: dict[str, Callable[[], object]] = {
        "ours": partial(verify, path),
        "floor": partial(_hash_and_decode, stored),
    }
    for side in turns(list(sides), rounds, measured):
        measured.add(side, cost_of(sides[side]).per(len(stored)))
    yield Line(
        row="verify",
        what=f"verify {len(stored):,} events and 1 blob, CPU an event",
        ours=measured.median("ours", "cpu"),
        other=measured.median("floor", "cpu"),
        unit="s",
        beside="hash + decode",
        ratio=ratio(measured, "ours", "floor", "cpu"),
        notes={"verify": "with SQLite's integrity check, schema, chain, versions, payloads, blobs"},
    )


def _chain(stored: list[Row]) -> bytes:
    found = genesis(stored[0].writer)
    for row in stored:
        found = row_hash(found, row)
    return found


def _hash_and_decode(stored: list[Row]) -> None:
    previous = b"\0" * hashlib.sha256().digest_size
    for row in stored:
        row_hash(previous, row)
        codec.decode(row.type, row.schema_version, row.payload)
        previous = row.hash
