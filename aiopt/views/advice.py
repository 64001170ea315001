"""What to do after a verdict: for whoever proposed the patch, an AI agent most of all."""

from aiopt.ids import short_name
from aiopt.planning import LARGEST
from aiopt.replay import CampaignState, ProposalState
from aiopt.verdict import RULES
from aiopt.views.campaign import CandidateRow, candidate_row

__all__ = ["advice"]


def advice(campaign: CampaignState, proposal: ProposalState, log: str, target: str) -> str:
    """The next step, as one sentence.

    Args:
        campaign: of the proposal.
        proposal: that was settled.
        log: how the log is named in commands.
        target: how the target is.
    """
    row = candidate_row(campaign, proposal)
    show = f"`aiopt show {log} {short_name(row.experiment or '')}`"
    base = "the unmodified source"
    if campaign.incumbent_genome:
        base = f"the source with {', '.join(p.name for p in campaign.incumbent_genome)}"
    match row.status:
        case "keep":
            return f"it is the incumbent now: the next patch must apply to {base}"
        case "rejected":
            return _seen_before(campaign, proposal, log) or (
                f"mend the patch: it must apply to {base} and stay in the editable scope"
            )
        case "invalid":
            return f"mend what failed and try again; {show} has every stage"
        case "inconclusive":
            return _undecided(row, campaign, target)
        case "no_change":
            return "the build came out the same: change what the build uses, then try again"
        case _:
            return f"try another idea on top of {base}; {show} has every pair"


def _seen_before(campaign: CampaignState, proposal: ProposalState, log: str) -> str:
    """Where a duplicate was judged."""
    of = proposal.rejected.duplicate_of if proposal.rejected is not None else None
    earlier = campaign.experiments.get(of or "")
    if earlier is None:
        return ""
    verdict = earlier.verdict.kind if earlier.verdict is not None else "not judged yet"
    show = f"`aiopt show {log} {short_name(earlier.stream)}`"
    return f"it was tried before: {verdict}; {show} has everything"


def _undecided(row: CandidateRow, campaign: CampaignState, target: str) -> str:
    """What would settle it. Trying the same again would not: its level is spent."""
    quieter = "quieten the machine (`aiopt doctor`) or measure something quieter"
    guards = [effect.metric for effect in row.effects if effect.state == "unresolved"]
    if guards:
        pairs = f" (about {row.needs} pairs would tell)" if row.needs is not None else ""
        return (
            f"there is a gain, and too much noise to be sure of {', '.join(guards)}{pairs}: give "
            f"it a wider margin in target.toml if you can accept that, or {quieter}"
        )
    rule = campaign.started.rule
    if not RULES[rule].calibrated:
        return (
            f"noise may hide a gain: `aiopt try {target} --new --rule {rule} --pairs N` measures "
            f"more pairs, or {quieter}"
        )
    if row.needs is None:
        return f"noise may hide a gain: {quieter}"
    cap = -(-row.needs // 2)
    if cap <= LARGEST:
        more = f"`aiopt try {target} --new --set cap={cap}` begins a campaign with as many"
        return f"about {row.needs} pairs would tell: {more}; or {quieter}"
    return (
        f"about {row.needs} pairs would tell, more than any plan has: {quieter}, or look for "
        "larger gains (`--set mei=…` in a new campaign)"
    )
