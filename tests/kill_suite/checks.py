"""What must hold of a campaign however often its controller was killed.

Each check yields violations, lines that begin with the name of the check.
"""

import hashlib
import os
import pickle
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from attrs import frozen

from aiopt.errors import AiOptError
from aiopt.events import (
    AblationMeasured,
    AuditMeasured,
    CalibrationMeasured,
    CampaignFinished,
    CampaignStarted,
    CandidateProposed,
    Event,
    ExperimentFinished,
    ExperimentStarted,
    GateFailed,
    LevelCharged,
    LookTaken,
    PairScheduled,
    PairVoided,
    Recorded,
    RunMeasured,
    VerdictReached,
)
from aiopt.ids import short_name
from aiopt.log import Log
from aiopt.replay import CampaignState, fold
from aiopt.reproduce import reproduce
from aiopt.verify import verify

from .controller import Folders
from .processes import of_campaign, start_ticks

__all__ = [
    "CHECKS",
    "Summary",
    "differs",
    "fingerprint",
    "finished",
    "lost",
    "overlap",
    "running",
    "summary",
    "torn",
]

CHECKS = (
    "lost",
    "torn",
    "twice",
    "overlap",
    "orphan",
    "chain",
    "differs",
    "decides",
    "replay",
    "left",
    "died",
)
"""What a violation can be of; `died`: a controller ended by itself before its campaign did."""


@frozen(kw_only=True)
class Summary:
    """What a campaign came to, without anything that was measured or depends on who ran it."""

    proposals: tuple[str, ...]
    incumbent: str
    kept: tuple[str, ...]
    pairs: tuple[str, ...]
    finished: str


def _events(folders: Folders) -> list[Recorded]:
    with Log.open(folders.log, readonly=True) as log:
        return list(log.read())


def _lines(path: Path) -> list[list[str]]:
    """The words of each complete line."""
    if not path.exists():
        return []
    return [line.split() for line in path.read_text().split("\n")[:-1]]


# ---- after each kill ----


def torn(folders: Folders) -> Iterator[str]:
    """The log must end where a transaction ended."""
    if not folders.log.exists():
        return
    try:
        with Log.open(folders.log, readonly=True) as log:
            last = log.last_seq()
    except AiOptError as error:
        yield f"chain: the log cannot be opened after a kill: {error}"
        return
    meant = _lines(folders.meant)
    if meant and last not in (int(meant[-1][0]) - 1, int(meant[-1][1])):
        first, end = meant[-1]
        yield f"torn: the log ends at seq {last}, within the transaction of {first} to {end}"


def running(base: Path, lives: set[int]) -> Iterator[str]:
    """Once a controller has cleared away, only what is its own may run."""
    for process in of_campaign(base):
        if process.life not in lives and start_ticks(process.pid) is not None:
            yield (
                f"orphan: process {process.pid} of life {process.life} runs beside"
                f" {sorted(lives)}: {process.command}"
            )


# ---- at the end ----


def finished(folders: Folders, before: str) -> Iterator[str]:
    """Everything that can be known of a campaign that is over. `before` is its target's print."""
    try:
        events = _events(folders)
        campaign = next(iter(fold(events).campaigns.values()))
    except (AiOptError, StopIteration, KeyError) as error:
        yield f"chain: the log cannot be read: {type(error).__name__}: {error}"
        return
    yield from _lost(folders, events)
    yield from _twice(events)
    yield from _charged(events)
    yield from overlap(folders)
    yield from _orphans(folders)
    for problem in verify(folders.log).problems:
        yield f"chain: {problem.text}"
    yield from _replayed(folders, campaign)
    for found in reproduce(fold(events)).contradictions:
        name = short_name(found.experiment)
        yield f"decides: {name}: logged {found.logged}, recomputed {found.recomputed}"
    yield from _left(folders, before)


def _lost(folders: Folders, events: list[Recorded]) -> Iterator[str]:
    there = {(str(event.seq), event.hash.hex()) for event in events}
    for words in _lines(folders.told):
        if tuple(words) not in there:
            yield f"lost: the observer was told of seq {words[0]}, hash {words[1][:12]}"


def lost(folders: Folders) -> Iterator[str]:
    """Each event that the observer was told of must be in the log."""
    yield from _lost(folders, _events(folders) if folders.log.exists() else [])


def _key(event: PairScheduled | RunMeasured | PairVoided) -> tuple[str, str, int]:
    return (event.purpose, event.workload, event.index)


def _twice(events: list[Recorded]) -> Iterator[str]:
    streams: dict[str, list[Event]] = {}
    for recorded in events:
        streams.setdefault(recorded.stream, []).append(recorded.event)
    every = [recorded.event for recorded in events]
    if (count := sum(isinstance(event, CampaignStarted) for event in every)) != 1:
        yield f"twice: {count} campaigns"
    if not any(isinstance(event, CampaignFinished) for event in every):
        yield "twice: no CampaignFinished"
    for name, numbers in (
        ("experiments", [e.number for e in every if isinstance(e, ExperimentStarted)]),
        ("proposals", [e.number for e in every if isinstance(e, CandidateProposed)]),
    ):
        for number, count in Counter(filter(None, numbers)).items():
            if count != 1:
                yield f"twice: {count} {name} have number {number}"
    for stream, facts in streams.items():
        if isinstance(facts[0], ExperimentStarted):
            yield from _experiment(short_name(stream), facts[0], facts)


_OUTCOME: Mapping[str, tuple[type[Event], ...]] = {
    "baseline": (VerdictReached, AuditMeasured, CalibrationMeasured, AblationMeasured),
    "calibration": (CalibrationMeasured,),
    "candidate": (VerdictReached,),
    "audit": (AuditMeasured,),
    "ablation": (AblationMeasured,),
}


def _experiment(name: str, started: ExperimentStarted, facts: list[Event]) -> Iterator[str]:
    ends = [event for event in facts if isinstance(event, ExperimentFinished)]
    verdicts: list[Any] = [e for e in facts if isinstance(e, _OUTCOME[started.purpose])]
    wanted = 0 if started.purpose == "baseline" else 1
    if started.purpose == "calibration":  # an event for each objective and guard
        wanted = max(1, len({(e.metric, e.workload) for e in verdicts}))
    if [end.outcome for end in ends] == ["superseded"]:
        wanted = 0
    if (len(ends), len(verdicts)) != (1, wanted):
        yield f"twice: {name} has {len(verdicts)} verdicts and {len(ends)} ends"
    looks = Counter(
        (e.purpose, e.workload, e.metric, e.pairs) for e in facts if isinstance(e, LookTaken)
    )
    for look, count in looks.items():
        if count != 1:
            yield f"twice: {name} looked {count} times at {look}"
    if any(isinstance(event, GateFailed) for event in facts):
        return
    attempts: dict[tuple[str, str, int], dict[int, list[str]]] = {}
    for event in facts:
        if isinstance(event, RunMeasured):
            attempts.setdefault(_key(event), {}).setdefault(event.attempt, []).append(event.arm)
    for event in facts:
        if isinstance(event, PairVoided):
            attempts.get(_key(event), {}).pop(event.attempt, None)
    for key, found in attempts.items():
        if key[0] == "warmup":  # each controller warms up, and nothing is made of it
            continue
        arms = ["B"] if key[0] == "check" else ["A", "B"]
        if [sorted(each) for each in found.values()] != [arms]:
            yield f"twice: {name} {':'.join(map(str, key))} was measured as {found}"


def _charged(events: list[Recorded]) -> Iterator[str]:
    """Each candidate that is screened costs of the error budget once, before its first pair."""
    charges: dict[str, list[LevelCharged]] = {}
    screened: set[str] = set()
    calibrated = False
    for recorded in events:
        event = recorded.event
        if isinstance(event, CampaignStarted):
            calibrated = event.rule == "two-stage"
        elif isinstance(event, LevelCharged):
            charges.setdefault(recorded.stream, []).append(event)
        elif isinstance(event, PairScheduled) and event.purpose == "screen" and calibrated:
            screened.update({recorded.stream} - charges.keys())
    for stream in screened:
        yield f"twice: {short_name(stream)} was screened and not charged before"
    for stream, found in charges.items():
        if len(found) != 1:
            yield f"twice: {short_name(stream)} was charged {len(found)} times"
    every = [charge for found in charges.values() for charge in found]
    if [charge.ordinal for charge in every] != list(range(1, len(every) + 1)):
        yield f"twice: charges are numbered {[charge.ordinal for charge in every]}"
    if every and abs(every[-1].spent - sum(charge.charged for charge in every)) > 1e-12:
        yield f"twice: {every[-1].spent} is said to be spent"


def overlap(folders: Folders) -> Iterator[str]:
    """Controllers follow each other, and no stage lives on after the next one cleared away."""
    holder = cleared = 0
    before: set[int] = set()
    reported: set[tuple[int, int]] = set()
    for words in _lines(folders.stages):
        life, name, what = int(words[0]), words[2], words[3]
        if name == "controller":
            if life != holder:
                if life in before and (life, holder) not in reported:
                    reported.add((life, holder))
                    yield f"overlap: controller {life} went on ({what}) beside {holder}"
                before.add(holder)
                holder = life
            if what == "cleared":
                cleared = life
        elif life != cleared and (life, cleared) not in reported:
            reported.add((life, cleared))
            kind = "orphan" if name == "daemon" else "overlap"
            yield f"{kind}: {name} of life {life} still ran ({what}) when {cleared} had cleared"


def _orphans(folders: Folders) -> Iterator[str]:
    for process in of_campaign(folders.base):
        yield f"orphan: process {process.pid} of life {process.life}: {process.command}"
    for pid, ticks in _lines(folders.supervisors):
        if start_ticks(int(pid)) == int(ticks):
            yield f"orphan: supervisor {pid}"


def summary(campaign: CampaignState) -> Summary:
    """What is compared with a campaign that nobody disturbed."""
    proposals = []
    for proposal in campaign.proposals.values():
        experiment = campaign.experiments.get(proposal.experiment or "")
        verdict = experiment.verdict if experiment is not None else None
        words = [
            str(proposal.number),
            proposal.proposed.candidate,
            proposal.proposed.genome[-1].name,
            proposal.status,
            proposal.rejected.reason if proposal.rejected else "",
            short_name(proposal.experiment or ""),
            verdict.kind if verdict else "",
        ]
        proposals.append(" ".join(words))
    pairs = set()
    for experiment in campaign.experiments.values():
        facts = experiment.facts
        measured = {(*_key(e), e.attempt) for e in facts if isinstance(e, RunMeasured)}
        measured -= {(*_key(e), e.attempt) for e in facts if isinstance(e, PairVoided)}
        measured = {key for key in measured if key[0] != "warmup"}
        for event in facts:
            if isinstance(event, PairScheduled) and (*_key(event), event.attempt) in measured:
                words = [short_name(experiment.stream), *map(str, _key(event)), event.order]
                pairs.add(" ".join(words))
    return Summary(
        proposals=tuple(proposals),
        incumbent=campaign.incumbent,
        kept=tuple(map(short_name, campaign.kept)),
        pairs=tuple(sorted(pairs)),
        finished=campaign.finished or "",
    )


def differs(undisturbed: Mapping[str, Any], found: Mapping[str, Any]) -> Iterator[str]:
    """Two summaries must be equal."""
    for name, wanted in undisturbed.items():
        got = found[name]
        if wanted == got:
            continue
        if isinstance(wanted, str):
            yield f"differs: {name}: {got!r}, undisturbed {wanted!r}"
            continue
        for item in sorted({*wanted} ^ {*got}) or [f"order of {got}"]:
            where = "only undisturbed" if item in wanted else "only here"
            yield f"differs: {name}: {where}: {item}"


def _replayed(folders: Folders, campaign: CampaignState) -> Iterator[str]:
    if not folders.state.exists():
        yield "replay: the last controller left no state"
        return
    live: Any = pickle.loads(folders.state.read_bytes())
    if live != campaign:
        names = [name for name in vars(campaign) if getattr(live, name) != getattr(campaign, name)]
        yield f"replay: the last controller's state is not the fold of the log: {names}"


def fingerprint(folder: Path) -> str:
    """Of the names and contents of all files."""
    total = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        total.update(str(path.relative_to(folder)).encode() + b"\0")
        if path.is_file():
            total.update(path.read_bytes())
    return total.hexdigest()


def _left(folders: Folders, before: str) -> Iterator[str]:
    for name in ("trees", "runs", "harness", "fetched"):
        if (folders.work / name).exists():
            yield f"left: {folders.work / name}"
    for path in folders.temporary.iterdir():
        yield f"left: {path}"
    known = {"target", "results", "side", "tmp", "lock"}
    for entry in os.listdir(folders.base):
        if entry not in known:
            yield f"left: {folders.base / entry}"
    if fingerprint(folders.target) != before:
        yield "left: the target's own folder was changed"
