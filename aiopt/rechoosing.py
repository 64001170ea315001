"""What another strategy, another seed or other parameters of it would have chosen to build on.

A strategy is asked again at every proposal of the log, with the state as it was then. So each
answer is for the logged history: after the first one that differs, the other history would have had
other candidates, of which the log knows nothing.
"""

from collections.abc import Iterable, Mapping
from typing import Protocol, runtime_checkable

from attrs import field, frozen

from aiopt.archive import Archive, CellChange, difference
from aiopt.events import CandidateProposed, Operator, Recorded
from aiopt.genome import change_name, ordered
from aiopt.ids import short_name
from aiopt.protocols import Selection, Strategy
from aiopt.replay import CampaignState, LogState, step
from aiopt.settings import TRY
from aiopt.stats import proposal_rng

__all__ = ["CellRow", "Choice", "EliteChanges", "KeepsArchive", "Rechosen", "rechoose"]


@runtime_checkable
class KeepsArchive(Protocol):
    """A strategy whose archive is a fold of the campaign."""

    def archive(self, state: CampaignState) -> Archive[str]:
        """Of candidates by their ids."""
        ...


@frozen
class _Wanted:
    """A selection, without the accidents of how it is written down."""

    operator: Operator
    parents: tuple[str, ...]
    genome: frozenset[str]
    parts: frozenset[tuple[str, tuple[int, ...]]] = frozenset()


@frozen(kw_only=True)
class Choice:
    """One proposal: what was chosen, and what would be."""

    number: int
    seq: int
    logged: str
    replayed: str
    """Empty: nothing."""
    same: bool
    parents: tuple[str, ...]
    """Names of the logged candidate's parents."""
    replayed_parents: tuple[str, ...]


@frozen(kw_only=True)
class CellRow:
    """A cell of the archive whose elite is another one."""

    edges: tuple[tuple[float, float], ...]
    """Of each measure from where to where."""
    was: str | None
    is_now: str | None
    objective_was: float | None
    """Log ratio to the baseline, positive is better."""
    objective_is: float | None


@frozen(kw_only=True)
class EliteChanges:
    """The archive at the end of the log, beside the one of the campaign's own strategy."""

    measures: tuple[str, ...]
    elites: tuple[str, ...]
    coverage: float
    qd_score: float
    compared: bool
    """Whether the campaign's own strategy keeps an archive over the same measures."""
    cells: tuple[CellRow, ...] = ()
    entered: tuple[str, ...] = ()
    left: tuple[str, ...] = ()


@frozen(kw_only=True)
class Rechosen:
    """A campaign's choices under another strategy, seed or parameters."""

    campaign: str
    strategy: str
    seed: int
    choices: tuple[Choice, ...]
    """Of every proposal for which a strategy was asked."""
    elites: EliteChanges | None
    """None: the strategy keeps no archive."""
    changed: tuple[Choice, ...] = field(init=False)
    parts_at: int | None = field(init=False)
    """The first event that would have been another one."""

    @changed.default
    def _changed(self) -> tuple[Choice, ...]:
        return tuple(choice for choice in self.choices if not choice.same)

    @parts_at.default
    def _parts_at(self) -> int | None:
        return self.changed[0].seq if self.changed else None


def rechoose(
    events: Iterable[Recorded],
    campaign: str,
    strategy: Strategy,
    *,
    name: str,
    logged: Strategy,
    seed: int | None = None,
) -> Rechosen:
    """Ask `strategy`, of this name, at every proposal of the campaign; nothing is run.

    `logged` is the campaign's own strategy, with whose archive the elites are compared. Without
    `seed`, the campaign's own is used. Asking costs what it cost when the campaign ran, so a
    campaign of thousands of candidates takes a while.

    Raises:
        KeyError: there is no such campaign.
        ConfigError: the strategy does not fit the campaign.
    """
    state, choices = LogState(), list[Choice]()
    for recorded in events:
        event = recorded.event
        if (
            recorded.stream == campaign
            and isinstance(event, CandidateProposed)
            and event.proposer != TRY
        ):
            here = state.campaigns[campaign]
            choices.append(_choice(here, event, recorded.seq, strategy, seed))
        state = step(state, recorded)
    here = state.campaigns[campaign]
    return Rechosen(
        campaign=campaign,
        strategy=name,
        seed=here.started.seed if seed is None else seed,
        choices=tuple(choices),
        elites=_elites(here, strategy, logged) if isinstance(strategy, KeepsArchive) else None,
    )


def _choice(
    state: CampaignState,
    event: CandidateProposed,
    seq: int,
    strategy: Strategy,
    seed: int | None,
) -> Choice:
    rng = proposal_rng(state.started.seed if seed is None else seed, event.number)
    asked = [*strategy.ask(state, rng, 1)]
    then = _of_event(event)
    now = _of_selection(asked[0]) if asked else None
    return Choice(
        number=event.number,
        seq=seq,
        logged=_text(state, then),
        replayed=_text(state, now) if now is not None else "",
        same=then == now,
        parents=_names(state, event.parents),
        replayed_parents=_names(state, asked[0].parents) if asked else (),
    )


def _of_selection(selection: Selection) -> _Wanted:
    return _Wanted(
        selection.operator,
        selection.parents,
        frozenset(patch.digest for patch in selection.genome),
        _parts(selection.parts),
    )


def _of_event(event: CandidateProposed) -> _Wanted:
    """What was selected to make this candidate of: without the patch that the proposer brought."""
    brought = len(event.genome) if event.operator not in ("propose", "rewrite") else -1
    origins = {part.digest: part.origin for part in event.parts}
    return _Wanted(
        event.operator,
        event.parents,
        frozenset(origins.get(p.digest, p.digest) for p in event.genome[:brought]),
        _parts({part.origin: part.hunks for part in event.parts}),
    )


def _parts(parts: Mapping[str, tuple[int, ...]]) -> frozenset[tuple[str, tuple[int, ...]]]:
    return frozenset((digest, tuple(hunks)) for digest, hunks in parts.items())


def _text(state: CampaignState, wanted: _Wanted) -> str:
    """Such as `propose on exp-0004`, or `union of exp-0004, exp-0007: 18-b`."""
    genome = ordered((state.patches[digest].ref for digest in wanted.genome), state.patches)
    first = state.genomes.get(wanted.parents[0], ()) if wanted.parents else ()
    towards = {"propose": "on", "add": "to", "drop": "from"}.get(wanted.operator, "of")
    text = f"{wanted.operator} {towards} {', '.join(_names(state, wanted.parents))}"
    if {patch.digest for patch in first} != wanted.genome:
        text += f": {change_name(first, genome)}"
    for digest, hunks in sorted(wanted.parts):
        text += f", hunks {', '.join(map(str, hunks))} of {state.patches[digest].ref.name}"
    return text


def _names(state: CampaignState, candidates: Iterable[str]) -> tuple[str, ...]:
    return tuple(_name(state, candidate) for candidate in candidates)


def _name(state: CampaignState, candidate: str) -> str:
    """Its latest experiment, or `baseline`."""
    found = [e for e in state.judged() if e.started.candidate == candidate]
    if not found:
        return "baseline" if candidate == state.baseline else candidate
    return short_name(found[-1].stream)


def _elite_names(state: CampaignState, candidates: Iterable[str]) -> tuple[str, ...]:
    return tuple(_elite_name(state, candidate) for candidate in candidates)


def _elite_name(state: CampaignState, candidate: str) -> str:
    """Such as `exp-0007 18-b`: with what it changed of its incumbent."""
    found = [e for e in state.judged() if e.started.candidate == candidate]
    name = _name(state, candidate)
    return f"{name} {state.change_name(found[-1])}" if found else name


def _elites(state: CampaignState, strategy: KeepsArchive, logged: Strategy) -> EliteChanges:
    after = strategy.archive(state)
    before = logged.archive(state) if isinstance(logged, KeepsArchive) else None
    compared = before is not None and before.grid.names == after.grid.names
    rows, entered, left = list[CellRow](), tuple[str, ...](), tuple[str, ...]()
    if before is not None and before.grid.names == after.grid.names:
        found = difference(before, after)
        entered, left = _elite_names(state, found.entered), _elite_names(state, found.left)
        rows += (_row(state, after, change) for change in found.cells)
    return EliteChanges(
        measures=tuple(after.grid.names),
        elites=_elite_names(state, (elite.item for elite in after.elites)),
        coverage=after.coverage,
        qd_score=after.qd_score(),
        compared=compared,
        cells=tuple(rows),
        entered=entered,
        left=left,
    )


def _row(state: CampaignState, archive: Archive[str], change: CellChange[str]) -> CellRow:
    was, is_now = change.before, change.after
    return CellRow(
        edges=archive.grid.edges_at(change.cell),
        was=_elite_name(state, was.item) if was is not None else None,
        is_now=_elite_name(state, is_now.item) if is_now is not None else None,
        objective_was=was.objective if was is not None else None,
        objective_is=is_now.objective if is_now is not None else None,
    )
