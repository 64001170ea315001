"""The calibration of a campaign: measured before the first verdict, and again when it is out of
date.
"""

from collections.abc import Iterator

from aiopt.calibration import (
    REFRESH_PAIRS,
    CalibrationOutcome,
    calibrate,
    calibration_of,
    needs_anew,
)
from aiopt.events import CalibrationFailed, ExperimentFinished, PairPurpose
from aiopt.laboratory import Laboratory, LayoutArms, Unfit
from aiopt.pairs import composite, pairs_by_purpose
from aiopt.replay import CampaignState, ExperimentState
from aiopt.rules import Objective
from aiopt.stats import hodges_lehmann
from aiopt.verdict import RULES, Judge

__all__ = ["ensure_calibrated", "is_out_of_date", "residuals"]


async def ensure_calibrated(lab: Laboratory) -> None:
    """Calibrate if the rule needs it and there is no calibration, or none that still holds.

    Raises:
        Unfit: the machine or the workload does not allow a verdict, and why.
    """
    state = lab.state
    if not RULES[state.started.rule].calibrated or not is_out_of_date(state):
        return
    open_ = [e for e in state.of_purpose("calibration") if e.outcome is None]
    experiment = open_[0] if open_ else lab.begin("calibration", 0, lab.incumbent, lab.incumbent)
    emit = lab.emitter(experiment)
    arms = await lab.arms(experiment, lab.incumbent, lab.incumbent)
    if isinstance(arms, LayoutArms):
        await arms.build(["B"])  # before any pair: if they are all the same, that is its outcome
    judge: Judge[CalibrationOutcome] = lab.judge(experiment, calibration_of)
    outcome = await lab.run_pairs(experiment, judge, arms)
    if isinstance(outcome, CalibrationFailed):
        emit(outcome, ExperimentFinished(outcome="abandoned", detail=outcome.cause))
        raise Unfit(f"the calibration failed ({outcome.cause}): {outcome.detail}")
    emit(*outcome, ExperimentFinished(outcome="measured"))


def is_out_of_date(state: CampaignState) -> bool:
    """Whether there is no calibration, or the noise has changed so much that the plan would."""
    calibration = state.calibration
    if calibration is None or any(e.outcome is None for e in state.of_purpose("calibration")):
        return True
    params = state.params
    measured = pairs_by_purpose(calibration.facts)
    for each in calibrate(params, measured).values():
        if needs_anew(params, each, residuals(state, calibration, each.objective)):
            return True
    return False


def residuals(
    state: CampaignState, calibration: ExperimentState, objective: Objective
) -> list[float]:
    """Log ratios of the latest pairs that were judged by this calibration, in order, each minus the
    estimate of its candidate and stage; no more than are looked at.
    """
    newest_first: list[float] = []
    for experiment in reversed(state.experiments.values()):
        if len(newest_first) >= REFRESH_PAIRS or experiment is calibration:
            break
        if state.calibration_of(experiment) is calibration:
            newest_first += reversed(list(_of_experiment(state, experiment, objective)))
    return newest_first[:REFRESH_PAIRS][::-1]


def _of_experiment(
    state: CampaignState, experiment: ExperimentState, objective: Objective
) -> Iterator[float]:
    measured = pairs_by_purpose(experiment.facts)
    stages: tuple[PairPurpose, ...] = ("screen", "confirm")
    for purpose in stages:
        pairs = measured.get((purpose, objective.workload), ())
        d = composite(pairs, objective.weights, state.params)
        if d:
            centre = hodges_lehmann(d)
            yield from (x - centre for x in d)
