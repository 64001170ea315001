"""Files that outlive aiopt: one folder for each experiment, and a table for each environment.

A folder `<results>/<target>/<env>/<exp_id>/` holds five scripts that a person runs in order to get
the same measurement (build, deploy, workload, collect, teardown), the raw samples, the patch and a
README. It needs nothing beyond itself and no aiopt, and works after it was copied elsewhere.

`results.tsv` has the columns and status words of autooptimization, whose tools can so read it. A
value that was not measured is `-` there, never 0. `metric_value` is the candidate's median,
`baseline_value` the median of all runs of the unmodified source in the campaign under the same
workload, `delta_vs_parent` compares with the incumbent's runs in the same pairs, and `commit` is
the git tree that was measured.

The same log gives the same bytes, as long as the same source and harness can be found.
"""

import gzip
import io
import math
import os
import re
import shlex
import tarfile
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median

import anyio
from attrs import Factory, define, evolve, frozen

from aiopt.blobs import BlobStore, blobs_beside
from aiopt.candidate import canonical
from aiopt.config import structure
from aiopt.errors import AiOptError, ConfigError
from aiopt.events import (
    Effect,
    Event,
    EvidenceCaptured,
    GateFailed,
    MetricUnreadable,
    PairPurpose,
    PairScheduled,
    PairVoided,
    PatchRef,
    ProfilerUnavailable,
    RunMeasured,
    StageFinished,
)
from aiopt.ids import short_name
from aiopt.log import Log
from aiopt.pairs import pairs_of
from aiopt.replay import CampaignState, ExperimentState, LogState, ProposalState, step
from aiopt.sources import SourceRepository, remove_tree
from aiopt.target import Stage, Target, harness_digest, harness_files

__all__ = ["COLUMNS", "Exported", "delta", "export"]

COLUMNS = (
    "exp_id",
    "branch",
    "parent_branch",
    "commit",
    "metric_name",
    "metric_value",
    "baseline_value",
    "delta_vs_baseline",
    "delta_vs_parent",
    "cpu_pct",
    "latency_p99_ms",
    "error_rate",
    "pod_restarts",
    "status",
    "description",
)
"""Of `results.tsv`, in this order."""

_NOTHING = "-"
_INVALID_GATES = ("test", "harness")


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
    """The fold of a log, and the events of experiments that the fold lets go of."""

    state: LogState = Factory(LogState)
    others: dict[str, list[Event]] = Factory(dict)


@frozen(kw_only=True)
class _Material:
    """What the folders of one campaign are made of."""

    target: Target
    source: bytes | None
    """A gzipped tar of the base source; None if the scripts fetch it, or it could not be had."""
    harness: bytes | None
    diffs: Mapping[tuple[PatchRef, ...], bytes]
    """What each genome makes of the base source, as one diff."""
    notes: tuple[str, ...]


def export(
    log_path: Path,
    out: Path | None = None,
    campaign: str | None = None,
    target: Path | None = None,
) -> Exported:
    """Write the folders and tables of a log, over what an earlier export wrote.

    *out* is the folder that gets `<target>/<env>/…`, by default the one that the log's own folder
    lies in. *campaign* is a stream or its short name; by default all of them. *target* is the
    target's folder; without it `targets/<name>` is looked for beside the results and here. The log
    is only read, so a campaign may be running. Not to be called from a running event loop.

    Raises:
        ConfigError: there is no such campaign.
        LogError: the log cannot be read, or a patch is missing from the blobs.
    """
    history = _History()
    with Log.open(log_path, readonly=True) as log:
        for recorded in log.read():
            history.state = step(history.state, recorded)
            history.others.setdefault(recorded.stream, [])
            kept = EvidenceCaptured | ProfilerUnavailable | StageFinished | MetricUnreadable
            if isinstance(recorded.event, kept):
                history.others[recorded.stream].append(recorded.event)
    log_path = log_path.resolve()
    return anyio.run(_export, history, log_path, out or log_path.parent.parent, campaign, target)


async def _export(
    history: _History, log_path: Path, out: Path, wanted: str | None, folder: Path | None
) -> Exported:
    campaigns = history.state.campaigns.values()
    chosen = [c for c in campaigns if wanted in (None, c.stream, short_name(c.stream))]
    if wanted is not None and not chosen:
        known = ", ".join(short_name(c.stream) for c in campaigns) or "none"
        raise ConfigError(str(log_path), [("campaign", f"no {wanted!r} here; there are {known}")])
    names = _names(stream for c in chosen for stream in c.experiments)
    folders: list[Path] = []
    notes: list[str] = []
    rows: dict[Path, list[str]] = {}
    for campaign in chosen:
        home = out / campaign.started.target
        with tempfile.TemporaryDirectory(prefix="aiopt-export-") as scratch:
            material = await _material(campaign, log_path, folder, Path(scratch))
            for experiment in campaign.experiments.values():
                others = history.others[experiment.stream]
                place = home / experiment.started.environment / names[experiment.stream]
                files = _files(_View(campaign, experiment, others, names), material)
                _write(place, files)
                folders.append(place)
        notes += [f"{short_name(campaign.stream)}: {note}" for note in material.notes]
        for environment, line in _rows(campaign, history.others, names):
            rows.setdefault(home / environment / "results.tsv", []).append(line)
    for table, lines in rows.items():
        table.parent.mkdir(parents=True, exist_ok=True)
        header = "\t".join(COLUMNS)
        table.write_text("\n".join([header, *lines]) + "\n", encoding="utf-8")
    return Exported(folders=tuple(folders), tables=tuple(rows), notes=tuple(notes))


def _names(streams: Iterable[str]) -> dict[str, str]:
    """Short names, but for those that a merged log has twice."""
    found = list(streams)
    short = [short_name(stream) for stream in found]
    return {s: n if short.count(n) == 1 else s for s, n in zip(found, short, strict=True)}


def _write(folder: Path, files: Mapping[str, bytes]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("source.tar.gz", "harness.tar.gz", "incumbent.patch"):
        if name not in files:
            (folder / name).unlink(missing_ok=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
        (folder / name).chmod(0o755 if name.endswith(".sh") and name != "lib.sh" else 0o644)


# ---- source, harness, patches ----


async def _material(
    campaign: CampaignState, log_path: Path, folder: Path | None, scratch: Path
) -> _Material:
    started, notes = campaign.started, []
    target = structure(started.spec, Target, f"{log_path}: {short_name(campaign.stream)}")
    here, same = _target_folder(campaign, target, log_path, folder)
    if here is None:
        notes.append(
            f"harness.tar.gz is missing: no folder targets/{target.name} was found beside the "
            "results or here. Put the target's files into a folder harness/ beside the scripts"
        )
    elif not same:
        notes.append(
            f"the files of the target in {here.name} are not those of the measurement, whose "
            f"digest was {started.target_digest[:12]}"
        )
    repository = await _repository(campaign, target, log_path, here, scratch)
    source = None
    if repository is None:
        notes.append(
            f"the base source (commit {started.base_commit[:12]}) was not at hand: diff.patch is "
            "the candidate's patches one after the other"
            + (", and source.tar.gz is missing" if target.source.path is not None else "")
        )
    elif target.source.path is not None:
        await repository.check_out(started.base_commit, scratch / "base")
        source = _tar(scratch / "base", sorted(_all_files(scratch / "base")))
        remove_tree(scratch / "base")
    blobs = BlobStore(blobs_beside(log_path))
    genomes = {e.started.genome: e.started.tree for e in campaign.experiments.values()}
    for e in campaign.experiments.values():
        genomes.setdefault(_incumbent_genome(campaign, e), e.started.incumbent_tree)
    diffs = {
        genome: await _diff(repository, campaign, target, blobs, genome, tree, scratch)
        for genome, tree in genomes.items()
    }
    return _Material(
        target=target,
        source=source,
        harness=None if here is None else _tar(here, harness_files(here, target)),
        diffs=diffs,
        notes=tuple(notes),
    )


def _target_folder(
    campaign: CampaignState, target: Target, log_path: Path, given: Path | None
) -> tuple[Path | None, bool]:
    """Where the target's files are, and whether they are those that were measured with."""
    home = log_path.parent
    places = [home.parent.parent / "targets" / target.name, Path("targets") / target.name]
    places = [given] if given is not None else [home / ".work" / "harness", *places]
    there = [place for place in places if (place / "target.toml").is_file()]
    for place in there:
        digest = harness_digest(place, harness_files(place, target))
        if digest == campaign.started.target_digest:
            return place, True
    there = [place for place in there if place.name != "harness"]
    return (there[0], False) if there else (None, False)


async def _repository(
    campaign: CampaignState, target: Target, log_path: Path, folder: Path | None, scratch: Path
) -> SourceRepository | None:
    """A repository that has the base commit, with its indexes in *scratch*; or None."""
    base, source = campaign.started.base_commit, target.source
    work = log_path.parent / ".work"
    if await SourceRepository(work).has(base):
        (scratch / "index").mkdir()
        (scratch / "source.git").symlink_to(work / "source.git")
        return SourceRepository(scratch)
    if source.path is None or folder is None or not (folder / source.path).is_dir():
        return None
    repository = SourceRepository(scratch)
    commit, _ = await repository.import_folder(folder / source.path)
    return repository if commit == base else None


async def _diff(
    repository: SourceRepository | None,
    campaign: CampaignState,
    target: Target,
    blobs: BlobStore,
    genome: tuple[PatchRef, ...],
    tree: str,
    scratch: Path,
) -> bytes:
    if not genome:
        return b""
    base = campaign.started.base_commit
    patches = [canonical(blobs.get(patch.digest)) for patch in genome]
    if repository is not None:
        try:
            return await repository.diff(base, tree)
        except AiOptError:  # the tree is not in the repository any more
            pass
        try:
            made = await repository.tree_with(base, patches, target.scope, scratch / "tree")
            return await repository.diff(base, made)
        except AiOptError:
            pass
    return b"".join(patch.text for patch in patches)


def _all_files(folder: Path) -> Iterator[str]:
    for root, folders, names in os.walk(folder):
        links = [name for name in folders if (Path(root) / name).is_symlink()]
        for name in [*names, *links]:
            yield (Path(root) / name).relative_to(folder).as_posix()


def _tar(folder: Path, names: Iterable[str]) -> bytes:
    """The files as a gzipped tar that depends on names, contents and executable bits alone."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for name in names:
            info = tar.gettarinfo(folder / name, name)
            info.uid = info.gid = info.mtime = 0
            info.uname = info.gname = ""
            info.mode = 0o755 if info.mode & 0o111 else 0o644
            if info.isreg():
                tar.addfile(info, io.BytesIO((folder / name).read_bytes()))
            else:
                tar.addfile(info)
    return gzip.compress(packed.getvalue(), 9, mtime=0)


# ---- one experiment, seen from the outside ----


@frozen
class _View:
    campaign: CampaignState
    experiment: ExperimentState
    others: Sequence[Event]
    names: Mapping[str, str]

    @property
    def name(self) -> str:
        return self.names[self.experiment.stream]

    @property
    def purpose(self) -> PairPurpose:
        """Of the pairs that count most in this experiment."""
        purposes: Mapping[str, PairPurpose] = {"baseline": "check", "audit": "audit"}
        return purposes.get(self.experiment.started.purpose, "screen")

    @property
    def proposal(self) -> ProposalState | None:
        return self.campaign.proposals.get(self.experiment.started.number)

    @property
    def hypothesis(self) -> str:
        if self.experiment.started.purpose == "baseline":
            return "The unmodified source: what all candidates are compared with."
        if self.experiment.started.purpose == "audit":
            return "The final source against the unmodified one, on fresh pairs."
        proposal = self.proposal
        return (proposal.proposed.hypothesis if proposal else "") or "none was given"

    def runs(self, workload: str, arm: str) -> list[RunMeasured]:
        """Of the complete pairs; a baseline has single runs."""
        if self.purpose == "check":
            facts = self.experiment.facts
            runs = [e for e in facts if isinstance(e, RunMeasured) and e.workload == workload]
            return runs if arm == "B" else []
        found = []
        purposes: tuple[PairPurpose, ...] = (self.purpose, "guard")
        for purpose in purposes:
            for pair in pairs_of(self.experiment.facts, purpose, workload):
                found.append(pair.a if arm == "A" else pair.b)
        return found

    def value(self, metric: str, workload: str, arm: str) -> float | None:
        """The median over the runs of each run's median."""
        return _middle(self.runs(workload, arm), metric)

    @property
    def effects(self) -> tuple[Effect, ...]:
        if self.experiment.audit is not None:
            return self.experiment.audit.effects
        return self.experiment.verdict.effects if self.experiment.verdict is not None else ()

    @property
    def deciding(self) -> tuple[str, str]:
        """The metric and workload of the table: what improved, else the first primary."""
        params = self.campaign.params
        improved = [e for e in self.effects if e.state == "improved" and e.metric in params.metrics]
        if improved:
            best = min(improved, key=lambda effect: (effect.p is None, effect.p))
            return best.metric, best.workload
        primaries = [n for n, m in params.metrics.items() if m.role == "primary"]
        return primaries[0], params.main[0]


def _middle(runs: Sequence[RunMeasured], metric: str) -> float | None:
    values = [median(run.metrics[metric]) for run in runs if run.metrics.get(metric)]
    return median(values) if values else None


def _incumbent_genome(campaign: CampaignState, experiment: ExperimentState) -> tuple[PatchRef, ...]:
    for other in campaign.experiments.values():
        if other.started.candidate == experiment.started.incumbent:
            return other.started.genome
    return ()


def _number(value: float | None) -> str:
    """All digits of a value, without a needless `.0`."""
    if value is None:
        return _NOTHING
    return repr(int(value)) if value == int(value) and abs(value) < 1e15 else repr(float(value))


def _cell(value: float | None) -> str:
    """Ten significant digits: medians of two values end in what binary fractions cannot say."""
    return _number(None if value is None else float(f"{value:.10g}"))


def _short(value: float | None) -> str:
    return _NOTHING if value is None else f"{value:.5g}"


def delta(value: float | None, reference: float | None) -> str:
    """The signed change of a metric itself, as the table shows it: `-30.0%`; `-` if unknown."""
    if value is None or not reference:
        return _NOTHING
    change = f"{(value - reference) / reference:+.1%}"
    return "0.0%" if float(change[:-1]) == 0 else change


# ---- results.tsv ----


def _rows(
    campaign: CampaignState, others: Mapping[str, Sequence[Event]], names: Mapping[str, str]
) -> Iterator[tuple[str, str]]:
    """Environment and line, in the order of the log; what was rejected comes last."""
    for experiment in campaign.experiments.values():
        view = _View(campaign, experiment, others[experiment.stream], names)
        yield experiment.started.environment, _line(_row(view))
    for proposal in campaign.proposals.values():
        if proposal.rejected is not None:
            yield campaign.started.environment, _line(_rejected_row(campaign, proposal))


def _line(row: Mapping[str, str]) -> str:
    return "\t".join(" ".join(row.get(column, _NOTHING).split()) for column in COLUMNS)


def _branch(campaign: CampaignState, name: str) -> str:
    return f"autoopt/{campaign.started.target}/{short_name(campaign.stream)}-{name}"


def _row(view: _View) -> dict[str, str]:
    campaign, started = view.campaign, view.experiment.started
    metric, workload = view.deciding
    value = view.value(metric, workload, "B")
    baseline = _middle(_baseline_runs(campaign, workload), metric)
    if started.purpose == "baseline":
        baseline = baseline if value is not None else None
        value, parent, against_parent = baseline, _NOTHING, delta(value, value)
    else:
        parent = _branch(campaign, _parent_name(view))
        against_parent = delta(value, view.value(metric, workload, "A"))
    status, description = _status(view)
    extras = {
        name: _cell(view.value(name, workload, "B"))
        for name in ("cpu_pct", "latency_p99_ms", "error_rate", "pod_restarts")
    }
    return {
        "exp_id": view.name,
        "branch": _branch(campaign, view.name),
        "parent_branch": parent,
        "commit": started.tree[:8],
        "metric_name": metric,
        "metric_value": _cell(value),
        "baseline_value": _cell(baseline),
        "delta_vs_baseline": delta(value, baseline),
        "delta_vs_parent": against_parent,
        **extras,
        "status": status,
        "description": description,
    }


def _parent_name(view: _View) -> str:
    """The experiment that made the incumbent: never the experiment itself."""
    for other in view.campaign.experiments.values():
        same = other.started.candidate == view.experiment.started.incumbent
        if same and other.stream != view.experiment.stream:
            return view.names[other.stream]
    return "baseline"


def _rejected_row(campaign: CampaignState, proposal: ProposalState) -> dict[str, str]:
    rejected = proposal.rejected
    assert rejected is not None
    name = f"proposal-{proposal.number:04d}"
    hypothesis = proposal.proposed.hypothesis
    return {
        "exp_id": name,
        "branch": _branch(campaign, name),
        "status": "invalid",
        "description": f"{rejected.reason}: {rejected.detail}"
        + (f"; {hypothesis}" if hypothesis else ""),
    }


def _baseline_runs(campaign: CampaignState, workload: str) -> list[RunMeasured]:
    """Every run of the unmodified source under a workload."""
    found = []
    for experiment in campaign.experiments.values():
        view = _View(campaign, experiment, (), {experiment.stream: ""})
        if experiment.started.purpose == "baseline":
            found += view.runs(workload, "B")
        elif experiment.started.incumbent == campaign.baseline:
            found += view.runs(workload, "A")
    return found


def _status(view: _View) -> tuple[str, str]:
    """Their word, and a description that begins with ours where they have none for it."""
    experiment, text = view.experiment, view.hypothesis
    proposal = view.proposal
    if proposal is not None and proposal.proposed.genome:
        text = f"{proposal.proposed.genome[-1].name}: {text}"
    verdict = experiment.verdict
    gate = next((e for e in experiment.facts if isinstance(e, GateFailed)), None)
    if verdict is None:
        if experiment.outcome is None:
            return "in_progress", text
        if gate is not None:
            return _gate_status(view, gate), f"{gate.gate}: {gate.detail}; {text}"
        if experiment.outcome == "measured":
            return "keep", text
        return "discard", f"{experiment.outcome}: {experiment.detail}; {text}"
    text = f"{text} ({verdict.reason})"
    match verdict.kind:
        case "keep":
            return "keep", text
        case "inconclusive" | "no_change":
            return "discard", f"{verdict.kind}: {text}"
        case "invalid":
            return ("invalid" if gate is None else _gate_status(view, gate)), text
        case _:
            broken = any(effect.state == "broken" for effect in verdict.effects)
            return ("constraint_violation" if broken else "discard"), text


def _gate_status(view: _View, gate: GateFailed) -> str:
    if gate.gate in _INVALID_GATES:
        return "invalid"
    ended = [e for e in view.others if isinstance(e, StageFinished) and e.outcome != "ok"]
    timed_out = bool(ended) and ended[-1].outcome == "timeout"
    return "timeout" if timed_out else "crash"


# ---- metrics.log and README.md ----


def _metrics_log(view: _View) -> str:
    """Every run in the order in which it was measured; all but `key=value` begins with #."""
    started = view.experiment.started
    lines = [
        f"# {view.name}: the raw samples of every run, in the order of measuring.",
        "# Arm A is the incumbent, B the candidate. A key that is repeated within a run is a",
        "# metric with several samples.",
        f"# candidate {started.candidate} tree {started.tree}",
        f"# incumbent {started.incumbent} tree {started.incumbent_tree}",
    ]
    for event in view.experiment.facts:
        match event:
            case PairScheduled():
                again = f" attempt {event.attempt + 1}" if event.attempt else ""
                lines += [
                    "",
                    f"# pair {event.purpose} {event.workload} {event.index}{again} "
                    f"order {event.order}",
                ]
            case RunMeasured():
                place = f"{event.purpose} {event.workload} {event.index} {event.arm}"
                lines += ["", f"# run {place}"] if event.purpose == "check" else [f"# run {place}"]
                for name, samples in sorted(event.metrics.items()):
                    lines += [f"{name}={_number(sample)}" for sample in samples]
                lines += [f"{name}={text}" for name, text in sorted(event.texts.items())]
                state = sorted(event.covariates.items())
                lines.append("# machine: " + " ".join(f"{k}:{_short(v)}" for k, v in state))
            case PairVoided():
                lines.append(
                    f"# void: pair {event.purpose} {event.workload} {event.index}: "
                    + " ".join(event.reason.split())
                )
            case GateFailed():
                lines.append(f"# failed: {event.gate}: " + " ".join(event.detail.split()))
            case _:
                continue
    for event in view.others:
        if isinstance(event, MetricUnreadable):
            lines.append(
                f"# unreadable: {event.metric} in {event.purpose} {event.workload} {event.index} "
                f"{event.arm}: " + " ".join(event.found.split())
            )
    return "\n".join(lines) + "\n"


def _readme(view: _View, material: _Material) -> str:
    campaign, experiment = view.campaign, view.experiment
    started, target = experiment.started, material.target
    genome = ", ".join(patch.name for patch in started.genome) or "none"
    kind = {"baseline": "baseline", "audit": "audit"}.get(started.purpose, "candidate")
    parts = [
        f"# {view.name}: {kind} of {target.name} in {started.environment}",
        "",
        f"Campaign {campaign.stream}, patches: {genome}. "
        f"Base commit {campaign.started.base_commit}, measured tree {started.tree}, "
        f"incumbent tree {started.incumbent_tree}.",
        "",
        "## Hypothesis",
        "",
        " ".join(view.hypothesis.split()),
        "",
        "## How to reproduce",
        "",
        *_how_to(target, started.incumbent != started.candidate),
        "",
    ]
    if material.notes:
        parts += ["Beware:", "", *(f"- {note}." for note in material.notes), ""]
    parts += ["## Expected results", "", *_expected(view), "", "## Actual results", ""]
    parts += [*_actual(view), ""]
    return "\n".join(parts)


def _how_to(target: Target, compares: bool) -> list[str]:
    first = target.main_workloads[0]
    every = " ".join(target.workloads)
    needs = "`sh`, `tar`, `git` or `patch`, `python3`, and whatever the target itself needs"
    if target.source.git is not None:
        needs += f"; the source is fetched from {target.source.git}"
    elif target.source.script is not None:
        needs += "; the source is fetched by the target's own script"
    lines = [
        f"In this folder, which may be copied anywhere. Needed: {needs}. aiopt is not.",
        "The scripts run the patch as you, without the confinement that aiopt puts around it: "
        "read `diff.patch` first.",
        "",
        "1. `./build.sh` puts the source into `work/source`, applies `diff.patch`, builds, tests",
        f"2. `./deploy.sh {first}` begins a run for that workload (one of: {every})"
        + (" and starts the service" if _service(target) else ""),
        "3. `./workload.sh` runs it and prints its metrics",
        "4. `./collect.sh` prints what is measured from outside, if the target has such metrics",
        "5. `./teardown.sh` ends everything that was started (`./teardown.sh all` removes `work`)",
        "",
        "Steps 2 to 5 are one run; repeat them for more. Each script may be run again.",
    ]
    if target.output.format != "lines":
        lines.append(f"The output is in the format `{target.output.format}`.")
    if compares:
        lines.append(
            "`ARM=incumbent ./build.sh` and so on do the same with what this candidate was "
            "compared with, in `work-incumbent`; take turns, in the order of the pairs in "
            "`metrics.log`."
        )
    return lines


def _expected(view: _View) -> list[str]:
    facts = next(iter(view.campaign.environments.values()), None)
    machine = ""
    if facts is not None:
        shown = ("cpu_model", "cpus_usable", "kernel", "governor")
        found = [str(facts.facts[name]) for name in shown if facts.facts.get(name)]
        machine = f" ({', '.join(found)})" if found else ""
    lines = [
        f"Medians of one run on the machine of the measurement{machine}. Another machine gives "
        "other numbers; what should be the same is the change, within its interval, and every "
        "text that is compared.",
        "",
        "| workload | metric | unit | incumbent | candidate | change | runs |",
        "|---|---|---|---|---|---|---|",
    ]
    params, spec = view.campaign.params, view.campaign.started.spec["metrics"]
    rows = []
    for workload in params.workloads:
        for name, metric in params.metrics.items():
            a, b = (view.value(name, workload, arm) for arm in ("A", "B"))
            if b is not None:
                cells = [workload, name, spec[name].get("unit", ""), _short(a), _short(b)]
                runs = str(len(view.runs(workload, "B")))
                rows.append("| " + " | ".join([*cells, delta(b, a), runs]) + " |")
            elif metric.kind == "digest":
                texts = {run.texts.get(name, "") for run in view.runs(workload, "B")}
                if texts:
                    text = ", ".join(sorted(texts))
                    rows.append(f"| {workload} | {name} | | | `{text[:80]}` | | |")
    return [*lines, *rows] if rows else ["Nothing was measured."]


def _actual(view: _View) -> list[str]:
    lines: list[str] = []
    metric, workload = view.deciding
    if view.purpose != "check":
        pairs = pairs_of(view.experiment.facts, view.purpose, workload)
        if pairs:
            lines += [
                f"`{metric}` of each run under `{workload}` (all others: `metrics.log`):",
                "",
                "| pair | first | incumbent | candidate | change |",
                "|---|---|---|---|---|",
            ]
        for pair in pairs:
            a, b = _middle([pair.a], metric), _middle([pair.b], metric)
            first = "incumbent" if pair.a.position == 1 else "candidate"
            lines.append(
                f"| {pair.a.index} | {first} | {_short(a)} | {_short(b)} | {delta(b, a)} |"
            )
        if pairs:
            a, b = (view.value(metric, workload, arm) for arm in ("A", "B"))
            lines += [f"| median | | {_short(a)} | {_short(b)} | {delta(b, a)} |", ""]
    effects = [effect for effect in view.effects if effect.effect is not None]
    if effects:
        lines += [
            "Effects, as change of the metric itself (Hodges-Lehmann estimate over the pairs, "
            "95 % interval):",
            "",
            "| workload | metric | role | change | interval | pairs | state |",
            "|---|---|---|---|---|---|---|",
            *(_effect_row(view.campaign, effect) for effect in effects),
            "",
        ]
    for event in view.others:
        if isinstance(event, EvidenceCaptured):
            found = ", ".join(
                f"{name} {_short(scalar.value)} {scalar.unit}".rstrip()
                for name, scalar in sorted(event.scalars.items())
            )
            lines.append(f"Evidence by {event.profiler} ({event.workload}): {found}.")
        elif isinstance(event, ProfilerUnavailable):
            lines.append(f"No evidence by {event.profiler}: {event.status}, {event.reason}.")
    verdict = view.experiment.verdict
    if verdict is not None:
        lines += [
            f"Decision: **{verdict.kind}** by {verdict.rule} {verdict.rule_version}. "
            f"Reason: {' '.join(verdict.reason.split())}."
        ]
    elif view.experiment.outcome is not None:
        detail = " ".join(view.experiment.detail.split())
        lines.append(f"Outcome: {view.experiment.outcome}{f', {detail}' if detail else ''}.")
    else:
        lines.append("The experiment is not finished.")
    return lines


def _effect_row(campaign: CampaignState, effect: Effect) -> str:
    rule = campaign.params.metrics.get(effect.metric)
    sign = -1 if rule is None or rule.direction == "lower" else 1

    def change(value: float | None) -> str:
        return "unbounded" if value is None else f"{math.expm1(sign * value):+.2%}"

    ends = (effect.low, effect.high) if sign > 0 else (effect.high, effect.low)
    interval = f"{change(ends[0])} to {change(ends[1])}"
    cells = [effect.workload, effect.metric, effect.role, change(effect.effect), interval]
    return "| " + " | ".join([*cells, str(effect.pairs), effect.state]) + " |"


# ---- the scripts ----


def _files(view: _View, material: _Material) -> dict[str, bytes]:
    """Name and content of everything in a folder."""
    target, started = material.target, view.experiment.started
    files = {name: text.encode() for name, text in _scripts(view, target).items()}
    files["diff.patch"] = material.diffs[started.genome]
    genome = _incumbent_genome(view.campaign, view.experiment)
    if genome and started.incumbent != started.candidate:
        files["incumbent.patch"] = material.diffs[genome]
    if material.source is not None:
        files["source.tar.gz"] = material.source
    if material.harness is not None:
        files["harness.tar.gz"] = material.harness
    files["metrics.log"] = _metrics_log(view).encode()
    files["README.md"] = _readme(view, material).encode()
    return files


def _service(target: Target) -> bool:
    return target.stages.deploy is not None and target.stages.deploy.service


_PLACEHOLDER = re.compile(r"(\{(?:source|harness|run)\})")
_FOLDERS = {"{source}": '"$SOURCE_DIR"', "{harness}": '"$TARGET_DIR"', "{run}": '"$RUN_DIR"'}


def _word(text: str) -> str:
    """A word of a shell command, with the placeholders of the backend as variables."""
    parts = [_FOLDERS.get(part) or shlex.quote(part) for part in _PLACEHOLDER.split(text) if part]
    return "".join(parts) or "''"


def _variables(env: Mapping[str, str]) -> list[str]:
    return [f"{name}={_word(value)}" for name, value in env.items()]


def _call(function: str, stage: Stage, before: str = "", around: Sequence[str] = ()) -> str:
    """A call of `stage` or `in_workload`: seconds, variables, a wrapper, the command."""
    words = [function, f"{stage.timeout:g}", before, *_variables(stage.env), *around]
    return " ".join(word for word in [*words, *map(_word, stage.argv)] if word)


def _scripts(view: _View, target: Target) -> dict[str, str]:
    stages, base = target.stages, view.campaign.started.base_commit
    asked = [n for n, m in target.metrics.items() if m.measured_by == "aiopt"]
    of_workload = [name for name in asked if not name.startswith("service_")]
    of_service = [name for name in asked if name.startswith("service_")]
    measured = [f'{_HELP} run "$work/workload"'] if of_workload else []
    texts = {
        "build.sh": _BUILD.format(
            source=_source_commands(target, base),
            build=_call("stage", stages.build) if stages.build else ": # nothing to build",
            test=_call("stage", stages.test) if stages.test else ": # no test",
        ),
        "deploy.sh": _DEPLOY.format(run=_deploy_commands(target), first=target.main_workloads[0]),
        "workload.sh": _WORKLOAD.format(
            run=_call("in_workload", stages.workload, "$(service_variables)", measured),
            usage=_usage("workload", of_workload),
        ),
        "collect.sh": _COLLECT.format(
            run=_call("in_workload", stages.collect, "$(service_variables)")
            if stages.collect
            else ": # the target has no collect stage: all metrics come from workload.sh"
        ),
        "teardown.sh": _TEARDOWN.format(
            run=_call("in_workload", stages.teardown) if stages.teardown else ": # nothing else",
            usage=_usage("service", of_service),
        ),
    }
    return {"lib.sh": _lib(target), "helper.py": _HELPER, **texts}


def _deploy_commands(target: Target) -> str:
    deploy = target.stages.deploy
    if deploy is None:
        return ": # the target has nothing to deploy"
    if deploy.ready is None:
        return _call("in_workload", deploy)
    ready, port = deploy.ready, '"$(cat "$work/service.port")"'
    way, text = ("line", ready.line) if ready.line else ("http", ready.http or "")
    if ready.port:
        way = "port"
    service = evolve(deploy, timeout=0.0)
    start = _call(
        "in_workload", service, "$(service_variables)", [f'{_HELP} serve "$work/service"']
    )
    return (
        f'{_HELP} port >"$work/service.port"\n'
        '{\n    exec </dev/null >"$work/service.out" 2>"$work/service.err"\n'
        f"    {start}\n}} &\n"
        f'{_HELP} ready "$work/service" {port} {way} {shlex.quote(text)} {ready.timeout:g} || {{\n'
        '    tail -n 5 "$work/service.out" "$work/service.err" >&2\n'
        "    stop\n"
        f'    fail "the service was not ready within {ready.timeout:g} s"\n'
        "}"
    )


def _usage(what: str, names: Sequence[str]) -> str:
    return f'print_usage "$work/{what}" {" ".join(names)}' if names else ": # no usage asked for"


def _source_commands(target: Target, base: str) -> str:
    source = target.source
    if source.path is not None:
        return (
            '[ -f "$here/source.tar.gz" ] || fail "source.tar.gz is missing; README.md says why"\n'
            'tar -xzf "$here/source.tar.gz" -C "$SOURCE_DIR"'
        )
    if source.git is not None:
        url, revision = shlex.quote(source.git), shlex.quote(source.revision or base)
        return (
            'command -v git >/dev/null || fail "git is needed to fetch the source"\n'
            f'git init -q "$SOURCE_DIR" && cd "$SOURCE_DIR"\n'
            f"git fetch -q --depth=1 {url} {revision} ||\n"
            f"    git fetch -q {url} '+refs/heads/*:refs/origin/*' '+refs/tags/*:refs/tags/*'\n"
            f"git -c advice.detachedHead=false checkout -q {base}\n"
            'rm -rf "$SOURCE_DIR/.git"'
        )
    stage = Stage(run=source.script or "", timeout=source.timeout)
    words = " ".join(map(_word, stage.argv))
    return f'cd "$SOURCE_DIR"\n{words}\ncd "$here"'


def _lib(target: Target) -> str:
    cases = []
    for name, workload in target.workloads.items():
        variables = " ".join(_variables({"WORKLOAD": name, **workload.env}))
        cases.append(f'    {name}) stage "$seconds" {variables} "$@" ;;')
    passed = ["LANG", "LC_ALL", "LC_COLLATE", "LC_CTYPE", "LC_MESSAGES", "LC_MONETARY"]
    passed += ["LC_NUMERIC", "LC_TIME", "TZ", *target.pass_env]
    common = " ".join(_variables(target.environment))
    text = _LIB.replace("@COMMON@", common + " " if common else "")
    text = text.replace("@PASSED@", " ".join(passed)).replace("@CASES@", "\n".join(cases))
    return text.replace("@WORKLOADS@", " ".join(target.workloads))


_HELP = '"$python" "$here/helper.py"'

_LIB = r"""# What the five scripts share; each reads it first. Written by aiopt, without need of it.
set -eu
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd -P)
fail() { echo "$0: $*" >&2; exit 1; }
arm=${ARM:-candidate}
case $arm in
candidate) work=$here/work ;;
incumbent) work=$here/work-incumbent ;;
*) fail "ARM=$arm: candidate or incumbent" ;;
esac
SOURCE_DIR=$work/source
TARGET_DIR=$here/harness
RUN_DIR=$work/run
# In the environment of everything that a stage starts, so that nothing of it is left behind.
job=aiopt-export-$(printf %s "$work" | cksum | cut -d ' ' -f 1)
python=$(command -v python3) || fail "python3 is needed"

remove() {
    if [ -d "$1" ]; then
        chmod -R u+rwX "$1"
        rm -rf "$1"
    fi
}

fresh_run() {
    remove "$RUN_DIR"
    mkdir -p "$RUN_DIR/home" "$RUN_DIR/tmp"
}

# stage SECONDS [VARIABLE=VALUE…] COMMAND [ARGUMENT…]: in the source, with the variables of a stage.
stage() (
    cd "$SOURCE_DIR"
    seconds=$1
    shift
    set -- @COMMON@"$@"
    for name in @PASSED@; do
        if eval "[ -n \"\${$name+x}\" ]"; then
            eval "value=\$$name"
            set -- "$name=$value" "$@"
        fi
    done
    set -- env -i PATH="$PATH" HOME="$RUN_DIR/home" TMPDIR="$RUN_DIR/tmp" AIOPT_JOB="$job" \
        SOURCE_DIR="$SOURCE_DIR" TARGET_DIR="$TARGET_DIR" RUN_DIR="$RUN_DIR" "$@"
    if [ "$seconds" != 0 ] && command -v timeout >/dev/null; then
        set -- timeout --foreground -k 5 "$seconds" "$@"
    fi
    exec "$@"
)

# in_workload SECONDS …: a stage, with the variables of the workload that was deployed.
in_workload() {
    seconds=$1
    shift
    case $(cat "$work/workload.name") in
@CASES@
    esac
}

check_workload() {
    case " @WORKLOADS@ " in
    *" $1 "*) ;;
    *) fail "no workload $1; there are: @WORKLOADS@" ;;
    esac
}

# SERVICE_HOST, SERVICE_PORT and SERVICE_PID, as far as there is a service.
service_variables() {
    [ ! -f "$work/service.port" ] || echo SERVICE_HOST=127.0.0.1
    [ ! -f "$work/service.port" ] || echo "SERVICE_PORT=$(cat "$work/service.port")"
    [ ! -f "$work/service.pid" ] || echo "SERVICE_PID=$(cut -d ' ' -f 1 "$work/service.pid")"
}

# The service first, then everything else that a stage of this folder has left running.
stop() { "$python" "$here/helper.py" stop "$work/service" "$job"; }

print_usage() { # PREFIX METRIC…
    file=$1.usage
    shift
    for name in "$@"; do
        [ ! -f "$file" ] || sed -n "s/^${name#service_}=/$name=/p" "$file"
    done
}
"""

_BUILD = """#!/bin/sh
# Source, patch, build, test. Begins anew each time.
. "$(dirname -- "$0")/lib.sh"
stop
remove "$work"
mkdir -p "$SOURCE_DIR"
if [ -f "$here/harness.tar.gz" ]; then
    mkdir -p "$TARGET_DIR"
    tar -xzf "$here/harness.tar.gz" -C "$TARGET_DIR"
elif [ ! -d "$TARGET_DIR" ]; then
    fail "harness.tar.gz is missing; README.md says why"
fi

{source}

patch_file=$here/diff.patch
[ "$arm" = candidate ] || patch_file=$here/incumbent.patch
if [ -s "$patch_file" ]; then
    (
        cd "$SOURCE_DIR"
        if command -v git >/dev/null; then
            # Whatever repository this folder may lie in is none of our business.
            unset GIT_DIR GIT_WORK_TREE GIT_INDEX_FILE
            GIT_CEILING_DIRECTORIES=$work git apply --whitespace=nowarn "$patch_file"
        else
            patch -p1 -s -f --no-backup-if-mismatch <"$patch_file"
        fi
    )
fi

fresh_run
{build}
{test}
echo "built: $SOURCE_DIR"
"""

_DEPLOY = """#!/bin/sh
# Begin a run of one workload, with whatever it needs to be there: ./deploy.sh [WORKLOAD]
. "$(dirname -- "$0")/lib.sh"
[ -d "$SOURCE_DIR" ] || fail "run ./build.sh first"
workload=${{1:-{first}}}
check_workload "$workload"
stop
rm -f "$work"/service.* "$work"/workload.*
echo "$workload" >"$work/workload.name"
fresh_run
{run}
echo "deployed: $workload"
"""

_WORKLOAD = """#!/bin/sh
# Run the workload and print its metrics: ./workload.sh [WORKLOAD]
. "$(dirname -- "$0")/lib.sh"
deployed=$(cat "$work/workload.name" 2>/dev/null || true)
if [ -z "$deployed" ] || [ "${{1:-$deployed}}" != "$deployed" ]; then
    "$here/deploy.sh" "$@" >&2
fi
{run}
{usage}
"""

_COLLECT = """#!/bin/sh
# Print what is measured from outside.
. "$(dirname -- "$0")/lib.sh"
[ -f "$work/workload.name" ] || fail "run ./deploy.sh and ./workload.sh first"
{run}
"""

_TEARDOWN = """#!/bin/sh
# End everything that was started and remove the run: ./teardown.sh [all]
. "$(dirname -- "$0")/lib.sh"
stop
if [ -f "$work/workload.name" ] && [ -d "$RUN_DIR" ]; then
    {run}
    {usage}
    stop
fi
remove "$RUN_DIR"
rm -f "$work/workload.name" "$work"/service.*
if [ "${{1:-}}" = all ]; then
    remove "$work"
    [ ! -f "$here/harness.tar.gz" ] || remove "$TARGET_DIR"
fi
"""

_HELPER = r'''"""For the scripts beside it: ports, services, and what a command used."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request


def environment(pid="self"):
    """What a process was given; for this one, without what Python itself has added."""
    with open(f"/proc/{pid}/environ", "rb") as file:
        pairs = (part.partition(b"=") for part in file.read().split(b"\0") if part)
        return {name: value for name, _, value in pairs}


def state(pid):
    """Its letter, and the start that tells it from a later process with the same number."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            fields = file.read().rpartition(") ")[2].split()
    except OSError:
        return "", ""
    return fields[0], fields[19]


def write(path, text):
    with open(path + ".new", "w") as file:
        file.write(text)
    os.replace(path + ".new", path)


def run(prefix, argv, session=False):
    began = time.monotonic()
    try:
        child = subprocess.Popen(argv, env=environment(), start_new_session=session)
    except OSError as error:
        print(error, file=sys.stderr)
        return 127
    if session:
        write(prefix + ".pid", f"{child.pid} {state(child.pid)[1]}\n")
    _, status, used = os.wait4(child.pid, 0)
    lines = [
        f"wall_seconds={time.monotonic() - began:.6f}",
        f"cpu_seconds={used.ru_utime + used.ru_stime:.6f}",
        f"peak_rss_mb={used.ru_maxrss * 1024 / 1e6:.6f}",
    ]
    write(prefix + ".usage", "\n".join(lines) + "\n")
    code = child.returncode = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def answers(prefix, port, way, text):
    try:
        if way == "line":
            with open(prefix + ".out", errors="replace") as file:
                return re.search(text, file.read(), re.MULTILINE) is not None
        if way == "http":
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{text}", timeout=5) as answer:
                return 200 <= answer.status < 300
        socket.create_connection(("127.0.0.1", int(port)), timeout=5).close()
    except OSError:
        return False
    return True


def ready(prefix, port, way, text, seconds):
    end = time.monotonic() + float(seconds)
    while time.monotonic() < end:
        if os.path.exists(prefix + ".pid") and answers(prefix, port, way, text):
            return 0
        if os.path.exists(prefix + ".usage"):
            print("the service ended before it was ready", file=sys.stderr)
            return 1
        time.sleep(0.02)
    return 1


def wait_until(done, seconds):
    end = time.monotonic() + seconds
    while not done() and time.monotonic() < end:
        time.sleep(0.02)


def kill(send, pid, number):
    try:
        send(pid, number)
    except (ProcessLookupError, PermissionError):
        pass


def stop(prefix, job):
    """TERM to the service, after 5 s KILL, then KILL to whatever else belongs to the job."""
    try:
        with open(prefix + ".pid") as file:
            pid, since = file.read().split()
    except (OSError, ValueError):
        pid = since = ""

    def over():
        letter, start = state(pid)
        return letter in ("", "Z", "X") or start != since

    if pid and not over():
        kill(os.killpg, int(pid), signal.SIGTERM)
        wait_until(over, 5)
        kill(os.killpg, int(pid), signal.SIGKILL)
        wait_until(lambda: os.path.exists(prefix + ".usage"), 2)
    for name in os.listdir("/proc"):
        try:
            mine = name.isdigit() and environment(name).get(b"AIOPT_JOB") == job.encode()
        except OSError:
            continue
        if mine:
            kill(os.kill, int(name), signal.SIGKILL)
    return 0


def port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        print(os.environ.get("SERVICE_PORT") or probe.getsockname()[1])
    return 0


def serve(prefix, *argv):
    os.setsid()
    return run(prefix, argv, session=True)


def main(what, *rest):
    if what == "run":
        return run(rest[0], rest[1:])
    return {"port": port, "ready": ready, "serve": serve, "stop": stop}[what](*rest)


sys.exit(main(*sys.argv[1:]))
'''
