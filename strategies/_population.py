"""What strategies that recombine share: who may breed, what is known of patches, what is new."""

from collections.abc import Iterable, Iterator, Mapping, Sequence

from attrs import frozen
from numpy.random import Generator

from aiopt.events import PatchRef
from aiopt.genome import Genome, ordered, without
from aiopt.ranking import DEFAULT_FITNESS, breaks_a_guard, rank
from aiopt.replay import CampaignState
from aiopt.standing import Standing, best_first

__all__ = ["Individual", "Known", "best", "compatible", "gains", "individuals"]


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


@frozen(kw_only=True)
class Known:
    """What a log says of patches and of what was made of them."""

    pool: Genome
    """The patches that work in some candidate, or that only did not go together with others, in
    canonical order. What never passed a gate, or changed nothing, is not among them.
    """
    worth: Mapping[str, float]
    """What a patch brought, see `gains`."""
    clashes: tuple[tuple[str, str], ...]
    """Pairs of patches that do not go together: found by applying them, or a part and its whole."""
    tried: frozenset[str]
    """Candidates that were proposed, but for ones that were never judged on what they are:
    superseded, or lost with their session.
    """

    @classmethod
    def of(cls, state: CampaignState, everyone: Iterable[Individual]) -> "Known":
        """Of a campaign, with what was measured of its candidates."""
        clashes = sorted({(min(pair), max(pair)) for pair in _clashes(state)})
        return cls(
            pool=_pool(state),
            worth=gains(state, everyone),
            clashes=tuple(clashes),
            tried=frozenset((state.baseline, state.incumbent, *_tried(state))),
        )


def _pool(state: CampaignState) -> Genome:
    usable: set[str] = set()
    for proposal in state.proposals.values():
        experiment = state.experiment_of(proposal)
        verdict = experiment.verdict if experiment is not None else None
        if verdict is not None and verdict.kind not in ("invalid", "no_change"):
            usable.update(patch.digest for patch in proposal.proposed.genome)
        elif proposal.rejected is not None and proposal.rejected.clashes_with:
            usable.add(str(proposal.rejected.patch))
    return ordered((known.ref for d, known in state.patches.items() if d in usable), state.patches)


def _tried(state: CampaignState) -> Iterator[str]:
    for proposal in state.proposals.values():
        experiment = state.experiment_of(proposal)
        transient = experiment is not None and experiment.is_transient
        if proposal.status not in ("superseded", "abandoned") and not transient:
            yield proposal.proposed.candidate


def _clashes(state: CampaignState) -> Iterator[tuple[str, str]]:
    for proposal in state.proposals.values():
        if proposal.rejected is not None and proposal.rejected.patch is not None:
            for other in proposal.rejected.clashes_with:
                yield proposal.rejected.patch, other
    for digest, known in state.patches.items():
        if known.origin:
            yield digest, known.origin


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


def compatible(
    genome: Iterable[PatchRef], known: Known, state: CampaignState, rng: Generator
) -> Genome:
    """The genome in canonical order, without one of each two that are known not to go together;
    a coin decides which.
    """
    found = ordered(genome, state.patches)
    for clash in known.clashes:
        if {patch.digest for patch in found}.issuperset(clash):
            found = without(found, clash[rng.integers(2)])
    return found
