"""Rows 5: other weights over a long log, from the columns beside it."""

import os
import shutil
import sqlite3
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from functools import cache, partial
from pathlib import Path
from statistics import median

import numpy as np
import orjson

import aiopt
from aiopt.projection import Projection, folder_of
from aiopt.rescoring import rescore
from aiopt.stats import Floats

from . import large_log
from .measuring import Line, Rounds, cost_of, cost_of_process, equal, ratio, turns
from .places import Places

__all__ = ["against_json", "against_memory", "command"]

_SIZES = (1_000, 10_000, 100_000, 1_000_000)
_SMALL = (500, 2_000)
_WEIGHTS = {name: 1 / (1 + place) for place, name in enumerate(large_log.METRICS)}
_ASKED = "bytes_written=0.5,cpu_seconds=0.5"
_NOTES = {
    "re-score, ours": "the projection beside the log opened anew, each of ten metrics weighted, a"
    " number for every run; files in the cache of the system",
    "gemv": "a product with a matrix in memory, one thread: `by run`, (runs, 10), as the goal has"
    " it; `by metric`, (10, runs), which is the faster one and ours on disk",
    "orjson + sum": "payloads of all runs from SQLite, orjson.loads, weighted sum of medians",
    "aiopt replay": "the process, from its start to the ranking and every decision: cold makes the"
    " columns first, warm has been asked before; the fold decodes every event in a process that has"
    " imported everything",
}


@cache
def _logs(places: Places, sizes: tuple[int, ...]) -> Mapping[int, Path]:
    """By the number of runs; with their columns."""
    found = {}
    for size in sizes:
        path = places.disk / f"rescoring-{size}" / "events.db"
        path.parent.mkdir()
        large_log.write(path, size)
        _scores(path)
        found[size] = path
    return found


def _scores(path: Path) -> Floats:
    with Projection.open(path) as opened:
        return opened.columns.weighted(_WEIGHTS)


def _matrix(path: Path) -> Floats:
    columns = aiopt.columns(path)
    return np.ascontiguousarray([columns[name] for name in _WEIGHTS])


def _decoded(path: Path) -> list[float]:
    found = []
    with closing(sqlite3.connect(path)) as con:
        query = "SELECT payload FROM event WHERE type = 'RunMeasured' ORDER BY seq"
        for (payload,) in con.execute(query):
            metrics = orjson.loads(payload)["metrics"]
            found.append(
                sum(w * median(metrics[name]) for name, w in _WEIGHTS.items())
                if _WEIGHTS.keys() <= metrics.keys()
                else float("nan")
            )
    return found


def _same(ours: Floats, theirs: Sequence[float] | Floats) -> None:
    equal("runs", len(ours), len(theirs))
    equal("scores", bool(np.allclose(ours, theirs, rtol=1e-12, equal_nan=True)), True)


def against_memory(places: Places, quick: bool) -> Iterator[Line]:
    """A number for every run, beside the product of matrices that it is; and how that grows."""
    sizes = _SMALL if quick else _SIZES
    logs = _logs(places, sizes)
    weights = np.array([*_WEIGHTS.values()])
    sides: dict[str, Callable[[], object]] = {}
    for size, path in logs.items():
        matrix = _matrix(path)
        _same(_scores(path), weights @ matrix)
        sides[f"ours {size}"] = partial(_scores, path)
        sides[f"by metric {size}"] = partial(np.matmul, weights, matrix)
        sides[f"by run {size}"] = partial(np.matmul, np.ascontiguousarray(matrix.T), weights)
    measured = Rounds()
    for side in turns(list(sides), 3 if quick else 25, measured):
        measured.add(side, cost_of(sides[side]))
    for floor in ("by run", "by metric"):
        for size in sizes:
            yield Line(
                row=f"5a {size:.0e}".replace("e+0", "e"),
                what=f"re-score {size:,} runs x 10, CPU",
                ours=measured.median(f"ours {size}", "cpu"),
                other=measured.median(f"{floor} {size}", "cpu"),
                unit="s",
                beside=f"gemv, {floor}",
                ratio=ratio(measured, f"ours {size}", f"{floor} {size}", "cpu"),
                goal=2.5 if (floor, size) == ("by run", sizes[-1]) else None,
                notes=_NOTES,
            )


def against_json(places: Places, quick: bool) -> Iterator[Line]:
    """The same beside reading every run."""
    size = (_SMALL if quick else _SIZES)[-1]
    path = _logs(places, _SMALL if quick else _SIZES)[size]
    _same(_scores(path), _decoded(path))
    sides: dict[str, Callable[[], object]] = {
        "ours": partial(_scores, path),
        "orjson": partial(_decoded, path),
    }
    measured = Rounds()
    for side in turns(list(sides), 2 if quick else 5, measured):
        measured.add(side, cost_of(sides[side]))
    yield Line(
        row="5b",
        what=f"re-score {size:,} runs x 10, CPU",
        ours=measured.median("ours", "cpu"),
        other=measured.median("orjson", "cpu"),
        unit="s",
        beside="orjson + sum",
        ratio=ratio(measured, "orjson", "ours", "cpu"),
        turned=True,
        goal=200.0,
        notes=_NOTES,
    )


def command(places: Places, quick: bool) -> Iterator[Line]:
    """`aiopt replay --weights` as a process, cold and warm, beside the fold of the same log."""
    sizes = _SMALL if quick else _SIZES
    logs = _logs(places, sizes)
    script = str(Path(sys.executable).with_name("aiopt"))
    nowhere = os.open(os.devnull, os.O_RDWR)
    for size in sizes[-2:]:
        path, measured = logs[size], Rounds()
        argv = [sys.executable, script, "replay", str(path), "--weights", _ASKED]
        sides = ["cold", "warm", "fold"] if size < 1_000_000 else ["cold", "warm"]
        for side in turns(sides, 1 if quick else 3, measured):
            if side == "fold":
                measured.add(side, cost_of(partial(_folded, path)))
                continue
            if side == "cold":
                shutil.rmtree(folder_of(path), ignore_errors=True)
            else:
                cost_of_process(argv, nowhere)
            measured.add(side, cost_of_process(argv, nowhere))
        beside = "fold" if "fold" in sides else "cold"
        for side in ("warm",) if beside == "cold" else ("cold", "warm"):
            yield Line(
                row=f"5c {size:.0e}".replace("e+0", "e"),
                what=f"`aiopt replay --weights`, {size:,} runs, {side}, CPU",
                ours=measured.median(side, "cpu"),
                other=measured.median(beside, "cpu"),
                unit="s",
                beside=beside if beside == "cold" else "the fold",
                ratio=ratio(measured, beside, side, "cpu"),
                turned=True,
                notes=_NOTES,
            )
    os.close(nowhere)


def _folded(path: Path) -> object:
    (campaign,) = aiopt.load_state(path).campaigns.values()
    return rescore(campaign, weights={"bytes_written": 0.5, "cpu_seconds": 0.5})
