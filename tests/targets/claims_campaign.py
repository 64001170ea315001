"""A campaign in full mode on pyserver: evidence for every candidate, and a wrong claim is flagged.

    python -m tests.targets.claims_campaign                    # about six minutes

Two patches of the pool are measured that make the server faster. One claims the function that it
changes, the other one claims a function that it does not touch. The exit code is 1 unless every
candidate has what its profilers found, the honest claim is confirmed, and the other patch is kept
and its claim flagged. (The honest one saves three percent, which eight pairs of a busy machine need
not prove.)
"""

import argparse
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import aiopt
from aiopt.api import load_state
from aiopt.events import EvidenceCaptured, MechanismChecked, Recorded, VerdictReached
from aiopt.replay import CampaignState
from aiopt.views import mechanism_flags, short

from .measure_pool import TARGET

__all__ = ["main"]

CLAIMS = {
    "05-compact-json": ("encode cpu_seconds", "confirmed"),
    "08-identifiers-set": ("Search.find cpu_seconds", "unchanged"),
}
PROFILERS = ("py-spy", "memray")


def make_target(folder: Path) -> Path:
    """pyserver with these two patches as its pool, and their claims above them."""
    ignore = shutil.ignore_patterns("__pycache__", "patches")
    target = Path(shutil.copytree(TARGET, folder, ignore=ignore))
    (target / "patches").mkdir()
    for name, (claim, _) in CLAIMS.items():
        text = (TARGET / "patches" / f"{name}.patch").read_text()
        (target / "patches" / f"{name}.patch").write_text(f"Claim: {claim}\n{text}")
    return target


def tell(recorded: Recorded) -> None:
    event = recorded.event
    if isinstance(event, VerdictReached):
        text = f"{event.kind}: {event.reason}"
    elif isinstance(event, EvidenceCaptured):
        text = f"{event.profiler}: {len(event.findings)} findings"
    elif isinstance(event, MechanismChecked):
        text = f"claim {event.claim.function}: {event.status}"
    else:
        return
    print(f"{short(recorded.stream)} {text}", file=sys.stderr, flush=True)


def problems(campaign: CampaignState) -> Iterator[str]:
    """What is not as it should be."""
    seen: dict[str, set[str]] = {}
    for experiment in campaign.experiments.values():
        for answer in experiment.profiles:
            if isinstance(answer, EvidenceCaptured):
                seen.setdefault(answer.candidate, set()).add(answer.profiler)
    judged = {
        experiment.started.genome[-1].name: experiment
        for experiment in campaign.of_purpose("candidate")
    }
    for name, (claim, expected) in CLAIMS.items():
        found = judged.get(name)
        if found is None or found.verdict is None:
            yield f"{name} has no verdict"
            continue
        if expected != "confirmed" and found.verdict.kind != "keep":
            yield f"{name} was not kept"
        statuses = [check.status for check in found.mechanism]
        if statuses != [expected]:
            yield f"{name}: the claim {claim!r} is {statuses}, expected {expected}"
        flags = mechanism_flags("keep", found.mechanism)
        if bool(flags) != (expected != "confirmed"):
            yield f"{name}: flags {flags}"
    for candidate in (campaign.baseline, *(e.started.candidate for e in judged.values())):
        if lacking := set(PROFILERS) - seen.get(candidate, set()):
            yield f"{candidate}: nothing of {', '.join(sorted(lacking))}"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--results", type=Path, help="keep the log there")
    options = parser.parse_args()
    settings = aiopt.Settings(
        mode="full",
        rule="signed-rank",
        rule_options={"pairs": 8},
        profile_with=PROFILERS,
    )
    with tempfile.TemporaryDirectory(prefix="claims-campaign-") as scratch:
        target = make_target(Path(scratch) / "pyserver")
        results = options.results or Path(scratch) / "results"
        try:
            aiopt.run(target, results=results, settings=settings, observer=tell)
        except aiopt.AiOptError as error:
            print(error, file=sys.stderr)
            return 2
        (campaign,) = load_state(results / "pyserver" / "events.db").campaigns.values()
    wrong = list(problems(campaign))
    print("\n".join(wrong) or "all as expected")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
