"""What a campaign is doing, on standard error.

On a terminal one line that is rewritten, elsewhere a few plain ones.
"""

import shutil
import sys
import time
from collections.abc import Callable
from typing import Any, TextIO

from attrs import define, field

from aiopt.audit import ablation_of, audit_of
from aiopt.calibration import calibration_of
from aiopt.cli._text import duration, effects_text, is_terminal, one_line, short, status_text
from aiopt.events import (
    AuditMeasured,
    CampaignResumed,
    CampaignStarted,
    CandidateRejected,
    ExperimentFinished,
    ExperimentStarted,
    PairScheduled,
    ProfilerUnavailable,
    Recorded,
    RunMeasured,
    StageFinished,
    StageStarted,
)
from aiopt.replay import CampaignState, ExperimentState
from aiopt.rules import NeedsMore
from aiopt.verdict import Decider, verdict_by
from aiopt.views import candidate_row, estimates, pair_table

__all__ = ["Progress", "pairs_left"]

_PLAIN_SECONDS = 10.0
_WAITING_SECONDS = 2.0


def pairs_left(campaign: CampaignState, experiment: ExperimentState) -> int:
    """How many pairs an experiment needs until it can be looked at again."""
    started = experiment.started
    decider: Decider[Any]
    match started.purpose:
        case "baseline":
            return 0
        case "calibration":
            decider = calibration_of
        case "audit":
            decider = audit_of(started.incumbent, started.candidate)
        case "ablation":
            decider = ablation_of(started.candidate, "")
        case "candidate":
            decider = verdict_by(campaign.started.rule)
    decided = decider(campaign.params, campaign.evidence(experiment))
    return decided.missing if isinstance(decided, NeedsMore) else 0


@define
class Progress:
    """An observer of events that prints; `attach` it to the campaign once that is open."""

    stream: TextIO = field(factory=lambda: sys.stderr)
    clock: Callable[[], float] = time.monotonic
    _state: Callable[[], CampaignState] | None = None
    _experiment: str = ""
    _doing: str = ""
    _since: float = 0.0
    _pair_since: float | None = None
    _pair_seconds: list[float] = field(factory=list)
    _measured: str = ""
    _shown: bool = False
    _last: float | None = None

    def attach(self, state: Callable[[], CampaignState]) -> None:
        """From now on experiments are looked up in this campaign."""
        self._state = state

    # -- events --

    def __call__(self, recorded: Recorded) -> None:
        """One event that was just written."""
        event, now = recorded.event, self.clock()
        match event:
            case CampaignStarted():
                self.say(
                    f"{short(recorded.stream)}: target {event.target}, environment "
                    f"{event.environment}, seed {event.seed}"
                )
            case CampaignResumed():
                killed = event.processes_killed
                text = f"; {killed} processes were left over and killed" if killed else ""
                self.say(f"{short(recorded.stream)} resumed{text}")
            case ExperimentStarted():
                self._enter(recorded.stream)
            case StageStarted():
                if self._is_open(recorded.stream):
                    self._enter(recorded.stream)
                self._doing, self._since = event.stage, now
            case StageFinished():
                self._doing, self._since = "", now
            case PairScheduled():
                self._enter(recorded.stream)
                self._pair_since = now
            case RunMeasured():
                if event.position == 2 and self._pair_since is not None:
                    self._pair_seconds.append(now - self._pair_since)
                    self._pair_since = None
                self._measured = self._pairs()
            case CandidateRejected():
                self._candidate(event.number)
            case ProfilerUnavailable():
                self.say(f"{short(recorded.stream)} profiler {event.profiler}: {event.reason}")
            case AuditMeasured():
                self.say(f"{short(recorded.stream)} audit done")
            case ExperimentFinished():
                self._finished(recorded.stream, event)
            case _:
                return
        self.tick()

    def _enter(self, stream: str) -> None:
        if stream != self._experiment:
            self._experiment, self._measured = stream, ""
            self._pair_seconds, self._pair_since = [], None

    def _is_open(self, stream: str) -> bool:
        """Not the incumbent's, whose own experiment is over."""
        if self._state is None:
            return False
        experiment = self._state().experiments.get(stream)
        return experiment is not None and experiment.outcome is None

    def _look(self) -> tuple[CampaignState, ExperimentState] | None:
        if self._state is None:
            return None
        campaign = self._state()
        experiment = campaign.experiments.get(self._experiment)
        return None if experiment is None else (campaign, experiment)

    def _pairs(self) -> str:
        """How far the pairs are, what they say, and how long it may take."""
        found = self._look()
        if found is None or found[1].started.purpose == "baseline":
            return ""
        campaign, experiment = found
        done = sum(pair.complete for pair in pair_table(experiment.facts))
        left = pairs_left(campaign, experiment)
        parts = [f"{done} of at most {done + left} pairs"]
        if effects := estimates(campaign, experiment):
            parts.append(effects_text(effects))
        if self._pair_seconds and left:
            mean = sum(self._pair_seconds) / len(self._pair_seconds)
            parts.append(f"at most {duration(mean * left)} left")
        return "  ".join(parts)

    def _finished(self, stream: str, event: ExperimentFinished) -> None:
        self._experiment = stream
        found = self._look()
        if found is None:
            return
        experiment = found[1]
        if experiment.started.purpose == "candidate":
            self._candidate(experiment.started.number)
        elif experiment.started.purpose == "baseline":
            text = "builds and runs" if event.outcome == "measured" else f"fails: {event.detail}"
            self.say(f"{short(stream)} baseline {text} ({duration(experiment.seconds)})")
        self._experiment, self._doing, self._measured = "", "", ""

    def _candidate(self, number: int) -> None:
        if self._state is None:
            return
        campaign = self._state()
        row = candidate_row(campaign, campaign.proposals[number])
        text = effects_text(row.primaries)
        if row.status != "keep" and row.reason:
            text = f"{text}: {row.reason}" if text else row.reason
        verdict = status_text(row.status, self.stream)
        self.say(f"{short(row.experiment)} {row.patch}: {verdict}  {one_line(text)}".rstrip())

    # -- lines --

    def _line(self) -> str:
        found = self._look()
        if found is None:
            return ""
        experiment = found[1]
        genome = experiment.started.genome
        patch = genome[-1].name if genome else "baseline"
        if experiment.started.purpose == "audit":
            patch = "audit"
        seconds = self.clock() - self._since
        doing = f"{self._doing or 'waiting'} {duration(seconds)}"
        if not self._doing and seconds < _WAITING_SECONDS:
            doing = ""
        parts = [f"{short(experiment.stream)} {patch}", doing, self._measured]
        return "  ".join(part for part in parts if part)

    def say(self, line: str) -> None:
        """A line that stays."""
        self.clear()
        self.stream.write(f"{line}\n")
        self.stream.flush()
        self._last = self.clock()

    def clear(self) -> None:
        """Take the changing line away."""
        if self._shown:
            self.stream.write("\r\x1b[K")
            self.stream.flush()
            self._shown = False

    def tick(self) -> None:
        """Show the present state: at once on a terminal, elsewhere after a silence."""
        line = self._line()
        if not line:
            self.clear()
        elif is_terminal(self.stream):
            width = shutil.get_terminal_size().columns
            self.stream.write(f"\r\x1b[K{line[: width - 1]}")
            self.stream.flush()
            self._shown = True
        elif self._last is None or self.clock() - self._last >= _PLAIN_SECONDS:
            self.say(line)
