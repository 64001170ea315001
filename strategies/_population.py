"""What strategies that recombine share: who may breed, what is known of patches, what is new."""

from collections.abc import Iterable, Iterator, Mapping, Sequence

from attrs import frozen
from numpy.random import Generator

from aiopt.events import PatchRef
from aiopt.genome import Genome, ordered, without
from aiopt.ids import candidate_id
from aiopt.ranking import DEFAULT_FITNESS, breaks_a_guard, rank
from aiopt.replay import CampaignState, ProposalState
from aiopt.standing import Standing, best_first

__all__ = [
    "Individual",
    "best",
    "compatible",
    "gains",
    "gene_pool",
    "individuals",
    "is_new",
]


@frozen(kw_only=True)
class Individual:
    """A candidate that was measured, and how it stands against the baseline."""

    candidate: str
    genome: Genome
    standing: Standing
    number: int
    """Of its proposal; 0 for the baseline."""

    @property
    def value(self) -> float:
        """What decides first; more is better."""
        return self.standing.objectives[0].value


def individuals(
    state: CampaignState, weights: Mapping[str, float], fitness: str = DEFAULT_FITNESS
) -> Sequence[Individual]:
    """The baseline and every candidate that was measured, works and breaks no guard, best first.

    Of one that was measured beside several incumbents the last measurement counts.
    """
    ranking = rank(state, weights=weights or None, fitness=fitness)
    found = {
        state.baseline: Individual(
            candidate=state.baseline, genome=(), standing=ranking.baseline, number=0
        )
    }
    for ranked in sorted(ranking.ranked, key=lambda ranked: ranked.number):
        experiment = state.experiments[ranked.experiment]
        started = experiment.started
        if not breaks_a_guard(state, experiment):
            found[started.candidate] = Individual(
                candidate=started.candidate,
                genome=started.genome,
                standing=ranked.standing,
                number=ranked.number,
            )
    everyone = sorted(found.values(), key=lambda one: one.number)
    return [everyone[place] for place in best_first([e.standing for e in everyone], sure=False)]


def best(contestants: Sequence[Individual], z: float, rng: Generator) -> Individual:
    """The winner of a tournament in which a coin decides what the measurements do not."""
    champion = contestants[0]
    for challenger in contestants[1:]:
        wins = challenger.standing.is_ahead(champion.standing, z)
        tied = not wins and not champion.standing.is_ahead(challenger.standing, z)
        if wins or (tied and rng.random() < 0.5):
            champion = challenger
    return champion


def gene_pool(state: CampaignState) -> Genome:
    """The patches that work in some candidate, or that only did not go together with others.

    In canonical order. What never passed a gate, or changed nothing, is not among them.
    """
    usable: set[str] = set()
    for proposal in state.proposals.values():
        verdict = _verdict_kind(state, proposal)
        if verdict not in (None, "invalid", "no_change"):
            usable.update(patch.digest for patch in proposal.proposed.genome)
        elif proposal.rejected is not None and proposal.rejected.clashes_with:
            usable.add(str(proposal.rejected.patch))
    return ordered((known.ref for d, known in state.patches.items() if d in usable), state.patches)


def gains(state: CampaignState, everyone: Iterable[Individual]) -> Mapping[str, float]:
    """What each patch brought where one was added to a candidate: of each digest the best of the
    estimates, which are of different sources and so of different interactions.

    A patch that was first tried on a weak source lost against the incumbent, whatever it is worth.
    """
    values = {one.candidate: one.value for one in everyone}
    found: dict[str, float] = {}
    for proposal in state.proposals.values():
        proposed = proposal.proposed
        if len(proposed.parents) != 1 or proposed.candidate not in values:
            continue
        (parent,) = proposed.parents
        before = {patch.digest for patch in state.genomes.get(parent, ())}
        added = [patch.digest for patch in proposed.genome if patch.digest not in before]
        if len(added) == 1 and len(proposed.genome) == len(before) + 1 and parent in values:
            gain = values[proposed.candidate] - values[parent]
            found[added[0]] = max(gain, found.get(added[0], gain))
    return found


def _verdict_kind(state: CampaignState, proposal: ProposalState) -> str | None:
    experiment = state.experiments.get(proposal.experiment or "")
    return experiment.verdict.kind if experiment is not None and experiment.verdict else None


def _clashes(state: CampaignState) -> Iterator[frozenset[str]]:
    """Pairs of patches that do not go together: found by applying them, or a part and its whole."""
    for proposal in state.proposals.values():
        if proposal.rejected is not None and proposal.rejected.patch is not None:
            for other in proposal.rejected.clashes_with:
                yield frozenset((proposal.rejected.patch, other))
    for digest, known in state.patches.items():
        if known.origin:
            yield frozenset((digest, known.origin))


def compatible(genome: Iterable[PatchRef], state: CampaignState, rng: Generator) -> Genome:
    """The genome in canonical order, without one of each two that are known not to go together;
    a coin decides which.
    """
    found = ordered(genome, state.patches)
    for clash in sorted(tuple(sorted(pair)) for pair in _clashes(state)):
        if {patch.digest for patch in found}.issuperset(clash):
            found = without(found, clash[rng.integers(2)])
    return found


def is_new(genome: Genome, state: CampaignState) -> bool:
    """Whether no such candidate was proposed yet, but for ones that were never judged on what they
    are: superseded, or lost with their session.
    """
    base = state.started.base_commit
    wanted = candidate_id(base, [patch.digest for patch in genome])
    if wanted in (state.baseline, state.incumbent):
        return False
    return not any(
        proposal.proposed.candidate == wanted
        and proposal.status not in ("superseded", "abandoned")
        and not _is_transient(state, proposal)
        for proposal in state.proposals.values()
    )


def _is_transient(state: CampaignState, proposal: ProposalState) -> bool:
    experiment = state.experiments.get(proposal.experiment or "")
    return experiment is not None and experiment.is_transient
