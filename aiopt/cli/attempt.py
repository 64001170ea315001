"""`aiopt try`: one patch, one verdict. What an AI agent calls."""

from pathlib import Path
from typing import Any, BinaryIO

import click
from attrs import evolve, frozen

from aiopt.blobs import BlobStore, blobs_beside
from aiopt.campaign import Campaign
from aiopt.cli._options import Places, as_json, results, settings_options
from aiopt.cli._places import find_target, log_of, read_state
from aiopt.cli._report import effect_lines, mechanism_lines
from aiopt.cli._text import one_line, print_json, short, status_text
from aiopt.cli._work import check_lease, in_campaign, settings_from
from aiopt.errors import AiOptError
from aiopt.events import Claim, GateFailed, MechanismChecked
from aiopt.protocols import Patch
from aiopt.replay import CampaignState, LogState, ProposalState
from aiopt.settings import TRY
from aiopt.views import (
    CandidateRow,
    EffectView,
    EvidenceRow,
    advice,
    baseline_failed,
    candidate_row,
    evidence_digest,
    evidence_lines,
    evidence_table,
    is_finished,
    profiles_of,
)

__all__ = ["attempt"]

_TAIL_LINES = 30
_FIXED = ("mode", "seed", "rule", "set", "pairs", "alpha")
"""Options that are settled when a campaign begins."""


@frozen(kw_only=True)
class _Incumbent:
    candidate: str
    tree: str
    patches: tuple[str, ...]


@frozen(kw_only=True)
class _Answer:
    """What is printed, in this order, under these names."""

    candidate: str
    experiment: str | None
    campaign: str
    number: int
    patch: str
    status: str
    reason: str
    stage: str
    p_screen: float | None
    p_confirm: float | None
    mei_eff_percent: float | None
    needs: int | None
    effects: tuple[EffectView, ...]
    mechanism: tuple[MechanismChecked, ...]
    """Its claims, compared with the profiles of incumbent and candidate."""
    flags: tuple[str, ...]
    evidence: tuple[EvidenceRow, ...]
    """What profilers found in this candidate; the numbers of `scalars` are in the log."""
    where_to_look: str
    """What profilers found in what the next patch will be measured against."""
    log_tail: str | None
    incumbent: _Incumbent
    next: str
    log: str


@click.command("try", short_help="Judge one patch and print the verdict.")
@click.argument("target", metavar=Places.TARGET)
@click.option(
    "--patch", type=click.File("rb"), required=True, help="A unified diff; - is standard input."
)
@click.option("--hypothesis", default="", metavar="TEXT", help="Why it should be faster.")
@click.option(
    "--claim",
    "claims",
    multiple=True,
    metavar="'FUNCTION METRIC'",
    help="A function that it makes cheaper, and in which metric; checked with --mode full.",
)
@click.option("--name", metavar="NAME", help="Of the patch.  [the name of its file]")
@click.option("--new", is_flag=True, help="Begin another campaign, from the unmodified source.")
@click.option(
    "--forbid-regression", is_flag=True, help="Exit with 4 if the verdict is discard_regression."
)
@results
@settings_options
@as_json
@click.pass_context
def attempt(
    ctx: click.Context,
    /,
    target: str,
    patch: BinaryIO,
    hypothesis: str,
    claims: tuple[str, ...],
    name: str | None,
    new: bool,
    forbid_regression: bool,
    results: Path,
    as_json: bool,
    **options: Any,
) -> None:
    """Judge one patch on top of what was kept so far, and print the verdict.

    The first call begins a campaign and calibrates, later ones go on with it: a patch that is kept
    becomes what the next one is measured against and must apply to. The verdict is keep,
    discard_regression, discard_no_effect, inconclusive, no_change, invalid or rejected.

    \b
    Examples:
      aiopt try pyserver --patch cache.patch --hypothesis "fewer copies" --json
      git diff | aiopt try targets/mine --patch - --json

    \b
    Exit codes: 0 kept; 3 not kept; 4 a regression, with --forbid-regression;
    1 error; 2 usage or configuration.
    """
    folder = find_target(target)
    path = log_of(folder, results)
    text = patch.read()
    if not text.strip():
        raise click.UsageError("the patch is empty")
    settings = evolve(settings_from(folder, options), proposer=TRY)
    check_lease(path)
    state = read_state(path) if path.is_file() else LogState()
    resume = None if new else _going(state, settings.environment)
    if resume is not None:
        given = [f"--{name}" for name in _FIXED if options.get(name) not in (None, {})]
        if given:
            raise click.UsageError(
                f"{', '.join(given)}: settled when {short(resume)} began; "
                "add --new to begin another campaign"
            )
    stem = Path(getattr(patch, "name", "") or "").stem
    offered = Patch(
        name=name or (stem if stem and not stem.startswith("<") else "patch"),
        text=text,
        hypothesis=hypothesis,
        claims=tuple(_claim(claim) for claim in claims),
    )

    async def judge(campaign: Campaign) -> tuple[CampaignState, ProposalState]:
        proposal = await campaign.judge(offered)
        return campaign.state, proposal

    judged = in_campaign(folder, results, settings, resume, judge)
    answer = _answer(*judged, path, target)
    if as_json:
        print_json(answer)
    else:
        _print(answer)
    if answer.status == "keep":
        ctx.exit(0)
    ctx.exit(4 if forbid_regression and answer.status == "discard_regression" else 3)


def _claim(text: str) -> Claim:
    function, _, metric = text.strip().rpartition(" ")
    if not function:
        raise click.UsageError(f"--claim {text!r}: expected a function and a metric")
    return Claim(function=function.strip(), metric=metric)


def _going(state: LogState, environment: str) -> str | None:
    """The latest campaign of single patches in this environment that can go on."""
    for campaign in reversed(state.campaigns.values()):
        started = campaign.started
        if (started.config.get("proposer"), started.environment) == (TRY, environment):
            over = is_finished(campaign) or baseline_failed(campaign)
            return None if over else campaign.stream
    return None


def _answer(campaign: CampaignState, proposal: ProposalState, log: Path, target: str) -> _Answer:
    row = candidate_row(campaign, proposal)

    def of(candidate: str) -> tuple[EvidenceRow, ...]:
        return evidence_table(profiles_of(campaign, candidate))

    return _Answer(
        candidate=row.candidate,
        experiment=row.experiment,
        campaign=campaign.stream,
        number=row.number,
        patch=row.patch,
        status=row.status,
        reason=row.reason,
        stage=row.stage,
        p_screen=row.p_screen,
        p_confirm=row.p_confirm,
        mei_eff_percent=row.mei_eff_percent,
        needs=row.needs,
        effects=row.effects,
        mechanism=row.mechanism,
        flags=row.flags,
        evidence=tuple(evolve(found, scalars={}) for found in of(row.candidate)),
        where_to_look=evidence_digest(of(campaign.incumbent)),
        log_tail=_log_tail(campaign, row, BlobStore(blobs_beside(log))),
        incumbent=_Incumbent(
            candidate=campaign.incumbent,
            tree=campaign.incumbent_tree,
            patches=tuple(patch.name for patch in campaign.incumbent_genome),
        ),
        next=advice(campaign, proposal, str(log), target),
        log=str(log),
    )


def _log_tail(campaign: CampaignState, row: CandidateRow, store: BlobStore) -> str | None:
    """The last lines of the stage that failed."""
    experiment = campaign.experiments.get(row.experiment or "")
    for fact in reversed(experiment.facts) if experiment else ():
        if isinstance(fact, GateFailed) and fact.log is not None:
            try:
                text = store.get(fact.log).decode(errors="replace")
            except AiOptError as error:
                return str(error)
            return "\n".join(text.splitlines()[-_TAIL_LINES:])
    return None


def _print(answer: _Answer) -> None:
    click.echo(f"{short(answer.experiment)} {answer.patch}: {status_text(answer.status)}")
    if answer.reason:
        click.echo(f"  {one_line(answer.reason)}")
    ps = (("screen", answer.p_screen), ("confirmation", answer.p_confirm))
    if found := [f"p of the {name} {p:.2g}" for name, p in ps if p is not None]:
        click.echo(f"  {', '.join(found)}")
    if answer.effects:
        for line in effect_lines(answer.effects):
            click.echo(line)
    for line in mechanism_lines(answer.mechanism, answer.flags):
        click.echo(line)
    for row in answer.evidence:
        for line in evidence_lines(row, 4):
            click.echo(line)
    if answer.log_tail:
        click.echo(f"last lines of the stage that failed:\n{answer.log_tail}")
    click.echo(f"next: {answer.next}")
