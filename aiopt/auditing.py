"""The result of a campaign: the final source against the unmodified one, and without each patch."""

from collections.abc import Iterator

from attrs import evolve

from aiopt.audit import ablation_of, audit_of, not_separable
from aiopt.errors import PatchError
from aiopt.events import ExperimentFinished
from aiopt.ids import candidate_id
from aiopt.laboratory import Change, Laboratory, earlier_of
from aiopt.replay import CampaignState, ExperimentState

__all__ = ["ablate", "audit", "audit_is_due"]


def audit_is_due(state: CampaignState) -> bool:
    """Whether ten more patches (`audit_every`) were kept since the last audit."""
    audited = {experiment.started.candidate for experiment in state.of_purpose("audit")}
    since = 0
    for stream in reversed(state.kept):
        if state.experiments[stream].started.candidate in audited:
            break
        since += 1
    return since >= state.params.audit_every


async def audit(lab: Laboratory, *, anew: bool = False) -> ExperimentState:
    """The incumbent against the baseline, on fresh pairs, unless that was done.

    `anew`: also if it was done; what was cut off is gone on with in any case.
    """
    state = lab.state
    found = [e for e in state.of_purpose("audit") if e.started.candidate == state.incumbent]
    done = [e for e in found if e.outcome == "measured"]
    open_ = [e for e in found if e.outcome is None]
    if done and not open_ and not anew:
        return done[-1]
    experiment = open_[0] if open_ else lab.begin("audit", 0, lab.incumbent, lab.baseline)
    emit = lab.emitter(experiment)
    arms = await lab.arms(experiment, lab.baseline, lab.incumbent)
    judge = lab.judge(experiment, audit_of(state.baseline, state.incumbent))
    outcome = await lab.run_pairs(experiment, judge, arms)
    emit(outcome, ExperimentFinished(outcome="measured"))
    return experiment


async def ablate(lab: Laboratory) -> None:
    """The incumbent against itself without one of its patches, for each of them, unless that was
    done. With a single patch the audit says the same.
    """
    state = lab.state
    if state.params.ablation_pairs and len(state.incumbent_genome) > 1:
        for without, place in list(_reduced(state)):
            await _ablate(lab, without, place)


def _reduced(state: CampaignState) -> Iterator[tuple[Change, int]]:
    genome = state.incumbent_genome
    for place in range(len(genome)):
        rest = (*genome[:place], *genome[place + 1 :])
        name = candidate_id(state.started.base_commit, [patch.digest for patch in rest])
        yield Change(name, rest, ""), place


async def _ablate(lab: Laboratory, without: Change, place: int) -> None:
    state, final = lab.state, lab.incumbent
    found = [
        e
        for e in state.of_purpose("ablation")
        if (e.started.candidate, e.started.incumbent) == (final.candidate, without.candidate)
    ]
    if any(e.outcome is not None for e in found):
        return
    digest = final.genome[place].digest
    decider = ablation_of(final.candidate, digest)
    try:
        base = state.started.base_commit
        tree = await lab.bench.check_out(without.candidate, base, without.genome)
        without = evolve(without, tree=tree)
        does_not_apply = ""
    except PatchError as error:
        does_not_apply = str(error)
    experiment = found[0] if found else lab.begin("ablation", 0, final, without)
    emit = lab.emitter(experiment)
    if does_not_apply:
        outcome = not_separable(final.candidate, digest, does_not_apply)
    elif await lab.bench.side(
        without.candidate, without.tree, emit, earlier=earlier_of(experiment, intact=False)
    ):
        arms = await lab.arms(experiment, without, final, frozenset({"A"}))
        judge = lab.judge(experiment, decider)
        outcome = await lab.run_pairs(experiment, judge, arms, frozenset({"A"}))
    else:
        failed = lab.judge(experiment, decider).outcome
        assert failed is not None  # the gate that it failed is logged
        outcome = failed
    emit(outcome, ExperimentFinished(outcome="measured"))
    await lab.bench.close(without.candidate)
