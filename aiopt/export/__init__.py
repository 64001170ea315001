"""Files that outlive aiopt: one folder for each experiment, and a table for each environment.

A folder `<results>/<target>/<env>/<exp_id>/` holds five scripts that a person runs in order to get
the same measurement (build, deploy, workload, collect, teardown), the raw samples, the patch and a
README. It needs nothing beyond itself and no aiopt, and works after it was copied elsewhere.

The same log gives the same bytes, as long as the same source can be found.
"""

import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

import anyio
from attrs import Factory, define, frozen

from aiopt.errors import ConfigError
from aiopt.events import (
    Event,
    EvidenceCaptured,
    MetricUnreadable,
    ProfilerUnavailable,
    StageFinished,
)
from aiopt.export.bundle import Bundle, make_bundle
from aiopt.export.experiment import Experiment
from aiopt.export.readme import readme
from aiopt.export.samples import metrics_log
from aiopt.export.scripts import scripts
from aiopt.export.tables import rows, table
from aiopt.ids import short_name
from aiopt.log import Log
from aiopt.replay import CampaignState, LogState, step

__all__ = ["Exported", "export"]

_LET_GO = EvidenceCaptured | ProfilerUnavailable | StageFinished | MetricUnreadable
"""Events that the texts tell of and that the fold does not keep."""
_OPTIONAL = ("source.tar.gz", "incumbent.patch")


@frozen(kw_only=True)
class Exported:
    """What was written."""

    folders: tuple[Path, ...]
    """One for each experiment, in the order of the log."""
    tables: tuple[Path, ...]
    """`results.tsv`, one for each environment."""
    notes: tuple[str, ...] = ()
    """What a folder lacks, and why; its README says so too."""


@define
class _History:
    """The fold of a log, and by stream the events that the fold lets go of."""

    state: LogState = Factory(LogState)
    others: dict[str, list[Event]] = Factory(dict)


def export(
    log_path: Path,
    out: Path | None = None,
    campaign: str | None = None,
    target: Path | None = None,
) -> Exported:
    """Write the folders and tables of a log, over what an earlier export wrote.

    *out* is the folder that gets `<target>/<env>/…`, by default the one that the log's own folder
    lies in. *campaign* is a stream or its short name; by default all of them. *target* is the
    target's folder, which is needed only for a source that lies in it and is not in the log's work
    folder any more; without it `targets/<name>` is looked for beside the results and here. The log
    is only read, so a campaign may be running. Not to be called from a running event loop.

    Raises:
        ConfigError: there is no such campaign.
        LogError: the log cannot be read, or a patch or the harness is missing from the blobs.
        PatchError: the patches of a candidate that was measured do not apply any more.
    """
    history = _read(log_path)
    log_path = log_path.resolve()
    return anyio.run(_export, history, log_path, out or log_path.parent.parent, campaign, target)


def _read(log_path: Path) -> _History:
    history = _History()
    with Log.open(log_path, readonly=True) as log:
        for recorded in log.read():
            history.state = step(history.state, recorded)
            others = history.others.setdefault(recorded.stream, [])
            if isinstance(recorded.event, _LET_GO):
                others.append(recorded.event)
    return history


async def _export(
    history: _History, log_path: Path, out: Path, wanted: str | None, target: Path | None
) -> Exported:
    campaigns = _chosen(history.state, log_path, wanted)
    names = _names(stream for campaign in campaigns for stream in campaign.experiments)
    folders: list[Path] = []
    notes: list[str] = []
    lines: dict[Path, list[str]] = {}
    for campaign in campaigns:
        home = out / campaign.started.target
        experiments = [
            Experiment(campaign=campaign, state=e, others=history.others[e.stream], names=names)
            for e in campaign.experiments.values()
        ]
        with tempfile.TemporaryDirectory(prefix="aiopt-export-") as scratch:
            bundle = await make_bundle(campaign, log_path, target, Path(scratch))
        for experiment in experiments:
            folder = home / experiment.started.environment / experiment.name
            _write(folder, _files(experiment, bundle))
            folders.append(folder)
        notes += [f"{short_name(campaign.stream)}: {note}" for note in bundle.notes]
        for environment, line in rows(campaign, experiments):
            lines.setdefault(home / environment / "results.tsv", []).append(line)
    for path, found in lines.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(table(found), encoding="utf-8")
    return Exported(folders=tuple(folders), tables=tuple(lines), notes=tuple(notes))


def _chosen(state: LogState, log_path: Path, wanted: str | None) -> list[CampaignState]:
    campaigns = state.campaigns.values()
    chosen = [c for c in campaigns if wanted in (None, c.stream, short_name(c.stream))]
    if wanted is not None and not chosen:
        known = ", ".join(short_name(c.stream) for c in campaigns) or "none"
        raise ConfigError(str(log_path), [("campaign", f"no {wanted!r} here; there are {known}")])
    return chosen


def _names(streams: Iterable[str]) -> dict[str, str]:
    """Short names, but for those that a merged log has twice."""
    short = {stream: short_name(stream) for stream in streams}
    counts = Counter(short.values())
    return {stream: name if counts[name] == 1 else stream for stream, name in short.items()}


def _files(experiment: Experiment, bundle: Bundle) -> dict[str, bytes]:
    """Name and content of everything in a folder."""
    started, parent = experiment.started, experiment.parent
    files = scripts(bundle.target, experiment.campaign.started.base_commit)
    files["README.md"] = readme(experiment, bundle.target, bundle.notes).encode()
    files["metrics.log"] = metrics_log(experiment).encode()
    files["diff.patch"] = bundle.diffs[started.genome]
    if parent is not None and parent.started.genome and started.incumbent != started.candidate:
        files["incumbent.patch"] = bundle.diffs[parent.started.genome]
    files["harness.tar.gz"] = bundle.harness
    if bundle.source is not None:
        files["source.tar.gz"] = bundle.source
    return files


def _write(folder: Path, files: Mapping[str, bytes]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in _OPTIONAL:  # an earlier export may have had it
        if name not in files:
            (folder / name).unlink(missing_ok=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
        (folder / name).chmod(0o755 if name.endswith(".sh") and name != "lib.sh" else 0o644)
