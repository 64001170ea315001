"""What a campaign is doing, on standard error.

On a terminal one line that is rewritten, elsewhere a few plain ones.
"""

import shutil
import sys
import time
from collections.abc import Callable
from typing import TextIO

from attrs import define, field

from aiopt.cli._report import calibration_lines
from aiopt.cli._text import duration, effects_text, is_terminal, one_line, short, status_text
from aiopt.events import (
    AblationMeasured,
    AuditMeasured,
    CampaignResumed,
    CampaignStarted,
    CandidateRejected,
    ExperimentFinished,
    ExperimentStarted,
    MeasuringPaused,
    PairScheduled,
    PairVoided,
    ProfilerUnavailable,
    Recorded,
    RunMeasured,
    StageFinished,
    StageStarted,
)
from aiopt.replay import CampaignState, ExperimentState
from aiopt.views import (
    ProgressView,
    audit_view,
    calibration_view,
    candidate_row,
    effect_view,
    estimates,
    left_out,
    primary_effects,
    progress_view,
)

__all__ = ["Progress"]

_PLAIN_SECONDS = 10.0
_WAITING_SECONDS = 2.0


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
    _pair_seconds: dict[str, list[float]] = field(factory=dict)
    """Of the present experiment, by workload."""
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
                self._measured = self._pairs()
            case RunMeasured():
                if event.position == 2 and self._pair_since is not None:
                    seconds = self._pair_seconds.setdefault(event.workload, [])
                    seconds.append(now - self._pair_since)
                    self._pair_since = None
                    self._measured = self._pairs()
            case PairVoided():
                self._measured = self._pairs()
            case MeasuringPaused():
                self.say(f"paused for {duration(event.seconds)}: {event.reason}")
                self._doing, self._since = f"paused for {duration(event.seconds)},", now
            case CandidateRejected():
                self._candidate(event.number)
            case ProfilerUnavailable():
                self.say(f"{short(recorded.stream)} profiler {event.profiler}: {event.reason}")
            case ExperimentFinished():
                self._finished(recorded.stream, event)
            case _:
                return
        self.tick()

    def _enter(self, stream: str) -> None:
        if stream != self._experiment:
            self._experiment, self._measured = stream, ""
            self._pair_seconds, self._pair_since = {}, None

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
        """How far the pairs are, what they say, and how long it takes where that is known."""
        found = self._look()
        if found is None:
            return ""
        view = progress_view(*found)
        parts = [
            view.text if view is not None else "",
            effects_text(estimates(*found)),
            self._left(view) if view is not None else "",
        ]
        return "  ".join(part for part in parts if part)

    def _left(self, view: ProgressView) -> str:
        """A stage that may end at any look has no time left that could be known."""
        seconds = 0.0
        for workload, missing in view.missing.items():
            taken = self._pair_seconds.get(workload)
            if view.bound == "unknown" or not taken:
                return ""
            seconds += missing * sum(taken) / len(taken)
        bound = "" if view.bound == "exactly" else f"{view.bound} "
        return f"{bound}{duration(seconds)} left"

    def _finished(self, stream: str, event: ExperimentFinished) -> None:
        self._experiment = stream
        found = self._look()
        if found is None:
            return
        campaign, experiment = found
        match experiment.started.purpose:
            case "candidate":
                self._candidate(experiment.started.number)
            case "baseline":
                text = "builds and runs" if event.outcome == "measured" else "fails"
                text = f"{text}: {event.detail}" if event.detail else text
                self.say(f"{short(stream)} baseline {text} ({duration(experiment.seconds)})")
            case "calibration":
                calibration = calibration_view(campaign)
                for line in calibration_lines(calibration) if calibration is not None else ():
                    self.say(line)
            case "audit" if experiment.audit is not None:
                self.say(f"{short(stream)} audit done: {_primaries(experiment.audit)}")
            case "ablation" if experiment.ablation is not None:
                self._ablation(campaign, experiment.ablation)
            case _:
                pass
        self._experiment, self._doing, self._measured = "", "", ""

    def _ablation(self, campaign: CampaignState, measured: AblationMeasured) -> None:
        """What one patch contributes."""
        audit = audit_view(campaign)
        for row in audit.ablation if audit is not None else ():
            if row.digest == measured.without:
                text = effects_text(row.effects) or row.detail
                line = f"{short(row.experiment)} without {row.patch}: {row.state}  {text}"
                self.say(one_line(line))

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
        campaign, experiment = found
        patch = campaign.change_name(experiment)
        if experiment.started.purpose in ("calibration", "audit"):
            patch = ""  # what the pairs are for says it
        elif experiment.started.purpose == "ablation":
            patch = f"without {left_out(campaign, experiment)}"
        seconds = self.clock() - self._since
        doing = f"{self._doing or 'waiting'} {duration(seconds)}"
        if not self._doing and seconds < _WAITING_SECONDS:
            doing = ""
        parts = [f"{short(experiment.stream)} {patch}".rstrip(), doing, self._measured]
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


def _primaries(measured: AuditMeasured) -> str:
    return effects_text(primary_effects(effect_view(effect) for effect in measured.effects))
