"""Two weightings of a log and what differs between them, against the slow and obvious way.

python -m tests.test_rescoring_reference LOG
"""

import json
import math
import sqlite3
import statistics
import sys
from collections import defaultdict
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from scipy.stats import t as student_t  # type: ignore[import-untyped]

import aiopt
from aiopt import quick_rescore
from aiopt.codec import decode
from aiopt.ids import candidate_id
from aiopt.rescoring import Rescored
from aiopt.rules import params_from, vary
from aiopt.two_stage import TwoStage
from tests.benchmarks import large_log

Row = tuple[str, float, float]
"""Experiment, log ratio to the baseline, lower bound."""

WEIGHTINGS: tuple[dict[str, float], dict[str, float]] = (
    {"cpu_seconds": 1.0},
    {"rss_mb": 0.8, "throughput_ops": 0.2},
)


def ranking_of(log: Path, weights: Mapping[str, float]) -> tuple[list[Row], set[str]]:
    """The ranking, best first, and the experiments that are kept; from rows of the log, one
    experiment after the other, with what is written nowhere else in this project.
    """
    experiments: dict[str, dict[str, Any]] = {}
    runs: dict[str, dict[tuple[Any, ...], dict[str, Any]]] = defaultdict(dict)
    void: dict[str, set[tuple[Any, ...]]] = defaultdict(set)
    invalid, judged, events = set[str](), list[str](), defaultdict[str, list[Any]](list)
    calibration_of, last_calibration, started = {}, "", {}
    with closing(sqlite3.connect(log)) as con:
        query = "SELECT stream, type, schema_version, payload FROM event ORDER BY seq"
        for stream, kind, version, payload in con.execute(query):
            event = json.loads(payload)
            if kind == "CampaignStarted":
                started = event
            if kind == "ExperimentStarted":
                experiments[stream] = event
                if event["purpose"] == "candidate":
                    calibration_of[stream] = last_calibration
            if kind == "ExperimentFinished" and experiments[stream]["purpose"] == "calibration":
                last_calibration = stream
            if kind == "RunMeasured":
                pair = event["purpose"], event["workload"], event["index"], event["attempt"]
                runs[stream].setdefault(pair, {})[event["arm"]] = event["metrics"]
            if kind == "PairVoided":
                pair = event["purpose"], event["workload"], event["index"], event["attempt"]
                void[stream].add(pair)
            if kind == "VerdictReached" and experiments[stream]["purpose"] == "candidate":
                judged.append(stream)
                if event["kind"] == "invalid":
                    invalid.add(stream)
            if kind in ("RunMeasured", "PairVoided", "GateFailed", "LevelCharged", "ArtifactBuilt"):
                events[stream].append(decode(kind, version, payload))
    params = params_from(started["rule_params"])
    workloads = [name for name, each in params.workloads.items() if not each.guard]
    totals = {candidate_id(started["base_commit"], ()): (0.0, 0.0)}
    found: list[tuple[float, float, int, str]] = []
    share = sum(map(abs, weights.values()))
    for stream in judged:
        if stream in invalid:
            continue
        pairs = {key: both for key, both in runs[stream].items() if len(both) == 2}
        stage = "confirm" if any(key[0] == "confirm" for key in runs[stream]) else "screen"
        d = []
        for workload in workloads:
            for key in sorted(pairs, key=lambda key: key[2:]):
                if key[:2] == (stage, workload) and key not in void[stream]:
                    total = 0.0
                    for name, weight in weights.items():
                        before, after = (
                            math.log(statistics.median(pairs[key][arm][name])) for arm in "AB"
                        )
                        sign = -1 if params.metrics[name].direction == "higher" else 1
                        total += weight / share * sign * (before - after)
                    d.append(total)
        if not d:
            continue
        value, se = estimated(d)
        base = totals[experiments[stream]["incumbent"]]
        total, variance = base[0] + value, base[1] + se * se
        totals[experiments[stream]["candidate"]] = total, variance
        low = total - 1.6448536269514722 * math.sqrt(variance)
        found.append((-low, -total, experiments[stream]["number"], stream))
    rule, changed = TwoStage(), vary(params, weights=dict(weights))
    kept = {
        stream
        for stream in judged
        if getattr(
            rule.decide(changed, [*events[calibration_of[stream]], *events[stream]]), "kind", ""
        )
        == "keep"
    }
    return [(stream, -total, -low) for low, total, _, stream in sorted(found)], kept


def estimated(d: list[float]) -> tuple[float, float]:
    """Hodges and Lehmann's estimate, and a standard error of which 1.96 make half the interval."""
    walsh = sorted((d[i] + d[j]) / 2 for i in range(len(d)) for j in range(i, len(d)))
    value = statistics.median(walsh)
    ways = [1]  # of the signs of the ranks, by the rank sum
    for rank in range(1, len(d) + 1):
        ways = [
            (ways[w] if w < len(ways) else 0) + (ways[w - rank] if w >= rank else 0)
            for w in range(len(ways) + rank)
        ]
    beyond = [sum(ways[w:]) / 2 ** len(d) for w in range(len(ways) + 1)]
    c = sum(p > 0.025 for p in beyond)
    if c <= len(walsh):
        return value, (walsh[c - 1] - walsh[-c]) / (2 * 1.959963984540054)
    if len(d) == 1:
        return value, math.inf
    quantile = float(student_t.ppf(0.975, len(d) - 1)) / 1.959963984540054
    return value, quantile * statistics.stdev(d) * math.sqrt(math.pi / 3 / len(d))


def check(results: tuple[Rescored, Rescored], log: Path) -> tuple[int, int]:
    """Places and keeps under both, and so what differs; returns how many places and keeps do."""
    expected = [ranking_of(log, weights) for weights in WEIGHTINGS]
    for result, (rows, kept) in zip(results, expected, strict=True):
        expected_of = {row[0]: row for row in rows}
        assert {ranked.experiment for ranked in result.ranking} == expected_of.keys()
        for ranked, beside in zip(result.ranking, rows, strict=True):
            _, total, low = expected_of[ranked.experiment]
            assert ranked.total == pytest.approx(total, rel=1e-9, abs=1e-12)
            assert ranked.low == pytest.approx(low, rel=1e-9, abs=1e-12)
            # in its place, or in that of one whose bound is the same but for the last digits
            assert low == pytest.approx(beside[2], rel=1e-9, abs=1e-12)
        assert {d.experiment for d in result.decisions if d.replayed == "keep"} == kept
    places = [{row[0]: place for place, row in enumerate(rows)} for rows, _ in expected]
    moved = sum(places[0][stream] != place for stream, place in places[1].items())
    return moved, len(expected[0][1] ^ expected[1][1])


@pytest.mark.slow
@pytest.mark.parametrize("least", [0, 1 << 40])
def test_both_ways_agree_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, least: int
) -> None:
    """By columns, and by the fold."""
    monkeypatch.setattr(quick_rescore, "LEAST", least)
    log = tmp_path / "events.db"
    large_log.write(log, 6_000)
    first, second = (aiopt.rescore(log, weights=weights) for weights in WEIGHTINGS)
    moved, flipped = check((first, second), log)
    assert moved > 100
    assert flipped > 0
    assert (log.parent / "projection").exists() == (least == 0)


if __name__ == "__main__":
    LOG = Path(sys.argv[1])
    BOTH = [aiopt.rescore(LOG, weights=weights) for weights in WEIGHTINGS]
    print("places, keeps that differ:", *check((BOTH[0], BOTH[1]), LOG))
