"""A campaign over patches to pyserver that change nothing that matters: it must keep none of them.

    python -m tests.targets.null_campaign                      # 30 patches
    python -m tests.targets.null_campaign --count 5 --seed 7 --results null
    python -m tests.targets.null_campaign --rule signed-rank --set alpha=0.05 --set pairs=12

This is the whole of aiopt with a real service on a real machine, to check what simulations say of
the decision rule. Progress is on standard error. The exit code is 1 if anything was kept, and 2 if
the campaign proves less than it should: it broke off, or some patch was not measured. One that was
interrupted cannot be resumed, for its target was temporary.
"""

import argparse
import shutil
import signal
import sys
import tempfile
import time
import tomllib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiopt
from aiopt.events import (
    CalibrationFailed,
    CampaignStarted,
    CandidateRejected,
    ExperimentFinished,
    ExperimentStarted,
    LevelCharged,
    MeasuringPaused,
    Recorded,
    RunMeasured,
    VerdictReached,
)
from aiopt.rules import params_from
from aiopt.views import Summary, short

from .measure_pool import TARGET
from .neutral_patches import neutral_patches


class Watch:
    """Counts what the summary does not, and says how far the campaign is."""

    def __init__(self) -> None:
        self.pairs = 0
        """All of them: of candidates, of calibrations, to warm up."""
        self.charges: list[LevelCharged] = []
        """What candidates were charged of the error budget, under a rule that has one."""
        self.alpha = 0.0
        self._names: dict[str, str] = {}
        self._pairs_of: Counter[str] = Counter()
        self._start = time.monotonic()

    @property
    def minutes(self) -> float:
        return (time.monotonic() - self._start) / 60

    def __call__(self, recorded: Recorded) -> None:
        event, stream = recorded.event, recorded.stream
        match event:
            case CampaignStarted():
                self.alpha = params_from(event.rule_params).alpha
            case ExperimentStarted():
                self._names[stream] = event.genome[-1].name if event.genome else event.purpose
                if event.purpose != "candidate":
                    self._say(f"{short(stream)} {event.purpose}")
            case RunMeasured(position=2):
                self.pairs += 1
                self._pairs_of[stream] += 1
                if self._pairs_of[stream] % 25 == 0:
                    self._say(f"{short(stream)} {self._pairs_of[stream]} pairs")
            case VerdictReached():
                what = f"{short(stream)} {self._names[stream]}: {event.kind.replace('_', ' ')}"
                self._say(f"{what} after {self._pairs_of[stream]} pairs: {event.reason}")
            case CandidateRejected():
                self._say(f"#{event.number} rejected: {event.detail}")
            case ExperimentFinished(outcome="abandoned"):
                self._say(f"{short(stream)} {self._names[stream]} abandoned: {event.detail}")
            case CalibrationFailed():
                self._say(f"{short(stream)} calibration failed: {event.detail}")
            case MeasuringPaused():
                self._say(f"{short(stream)} waits: {event.reason}")
            case LevelCharged():
                self.charges.append(event)

    def _say(self, text: str) -> None:
        print(f"{self.minutes:6.1f} min  {text}", file=sys.stderr, flush=True)


def make_target(folder: Path, count: int, seed: int) -> Path:
    """pyserver with these patches as its pool."""
    ignore = shutil.ignore_patterns("__pycache__", "patches")
    target = Path(shutil.copytree(TARGET, folder, ignore=ignore))
    (target / "patches").mkdir()
    for name, text in neutral_patches(target / "src", count, seed):
        (target / "patches" / f"{name}.patch").write_text(text)
    return target


def report(result: Summary, watch: Watch) -> Iterator[str]:
    """What came of it."""
    pairs: Counter[str] = Counter()
    for row in result.candidates:
        pairs[row.status] += row.pairs
    yield f"rule {result.rule}, seed {result.seed}: {result.reason}"
    yield ""
    yield f"{'verdict':<20}{'patches':>8}{'pairs':>8}"
    for status, number in result.counts.items():
        yield f"{status.replace('_', ' '):<20}{number:>8}{pairs[status]:>8}"
    yield f"{'all':<20}{len(result.candidates):>8}{pairs.total():>8}"
    yield ""
    yield (
        f"{watch.pairs} pairs in all, with those that judge no patch; {watch.minutes:.1f} minutes, "
        f"{result.seconds / 60:.1f} of them in stages"
    )
    yield from _budget(result, watch)
    for row in result.candidates:
        if row.status == "keep":
            yield f"KEPT: {row.patch}: {row.reason}"
        elif row.pairs == 0:
            yield f"not measured: {row.patch}: {row.status.replace('_', ' ')}: {row.reason}"


def _budget(result: Summary, watch: Watch) -> Iterator[str]:
    """What the rule promises, and what was seen."""
    measured = sum(row.pairs > 0 for row in result.candidates)
    kept = result.counts.get("keep", 0)
    if watch.charges:
        last = watch.charges[-1]
        yield (
            f"error budget: {len(watch.charges)} patches were charged {last.spent:.3g} of "
            f"{last.spent + last.left:.3g}: so many false keeps are expected, at the most"
        )
    elif result.rule == "signed-rank":
        yield (
            f"error budget: {watch.alpha:.3g} for each patch, {watch.alpha * measured:.3g} for "
            f"{measured}: so many false keeps are expected, at the most"
        )
    if kept:
        yield f"kept: {kept} of {measured} that were measured"
    elif measured:
        yield (
            f"kept: none of {measured} that were measured; with 95 % confidence fewer than "
            f"{100 * (1 - 0.05 ** (1 / measured)):.1f} % of such patches would be"
        )


def exit_code(result: Summary) -> int:
    """1 if anything was kept, 2 if not all patches were put to the test."""
    if result.kept or "keep" in result.counts:
        return 1
    return 0 if result.candidates and all(row.pairs for row in result.candidates) else 2


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--count", type=int, default=30, help="patches")
    parser.add_argument("--seed", type=int, default=0, help="of the patches and of the coins")
    parser.add_argument("--results", type=Path, help="keep the log there")
    parser.add_argument("--rule", help="another one than the default")
    parser.add_argument("--set", action="append", default=[], metavar="a=b", help="its parameters")
    options = parser.parse_args()
    try:
        settings: dict[str, Any] = {
            "seed": options.seed,
            "rule_options": tomllib.loads("\n".join(options.set)),
        }
    except tomllib.TOMLDecodeError as error:
        parser.error(f"--set: {error}")
    if options.rule:
        settings["rule"] = options.rule

    # However it is ended, it shall tear everything down. Started with `&` it would ignore SIGINT.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    watch = Watch()
    with tempfile.TemporaryDirectory(prefix="null-campaign-") as scratch:
        target = make_target(Path(scratch) / "pyserver", options.count, options.seed)
        try:
            result = aiopt.run(
                target,
                results=options.results or Path(scratch) / "results",
                settings=aiopt.Settings(**settings),
                observer=watch,
            )
        except aiopt.AiOptError as error:
            print(error, file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return 130
    print("\n".join(report(result, watch)))
    return exit_code(result)


if __name__ == "__main__":
    sys.exit(main())
