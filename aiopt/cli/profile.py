"""`aiopt profile`: what the incumbent spends its time and memory on."""

from collections.abc import Iterator
from pathlib import Path

import click
import orjson

from aiopt.blobs import BlobStore, blobs_beside
from aiopt.campaign import Campaign
from aiopt.cli._options import Places, as_json, results
from aiopt.cli._places import find_target, log_of, read_state
from aiopt.cli._text import print_json, short
from aiopt.cli._work import check_lease, in_campaign, settings_from
from aiopt.errors import AiOptError, PrerequisiteError
from aiopt.flame import flame_graph, speedscope
from aiopt.replay import CampaignState, LogState
from aiopt.settings import TRY
from aiopt.views import EvidenceRow, baseline_failed, evidence_lines, evidence_table

__all__ = ["profile"]


@click.command(short_help="Profile the best source so far.")
@click.argument("target", metavar=Places.TARGET)
@click.option(
    "--with",
    "names",
    metavar="NAME,…",
    help="Profilers; `aiopt plugins profilers` lists them.  [those that the target names]",
)
@click.option("--workload", metavar="NAME", help="[the target's first one]")
@click.option(
    "--new", is_flag=True, help="Profile the unmodified source, in a campaign of its own."
)
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder for folded stacks, speedscope files and flame graphs.  [RESULTS/TARGET/profiles]",
)
@click.option("--top", type=click.IntRange(1), default=10, show_default=True, help="Findings each.")
@results
@click.option("--env", metavar="NAME", help="Where to run.  [local]")
@click.option(
    "--config",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Settings.  [./aiopt.toml, else the target's]",
)
@as_json
@click.pass_context
def profile(
    ctx: click.Context,
    /,
    target: str,
    names: str | None,
    workload: str | None,
    new: bool,
    out: Path | None,
    top: int,
    results: Path,
    env: str | None,
    config: Path | None,
    as_json: bool,
) -> None:
    """Profile the incumbent of the latest campaign, or else the unmodified source.

    Each profiler has a run of its own, whose timing is never used for a verdict. What it found is
    logged and printed; stacks are written as folded text, as speedscope JSON
    (https://www.speedscope.app opens it) and as a flame graph. A profiler that cannot run here says
    why, and how to change that.

    \b
    Examples:
      aiopt profile pyserver --with py-spy,memray,proc
      aiopt profile targets/mine --with perf,offcpu --workload reads --json

    \b
    Exit codes: 0 at least one profiler found something; 3 none did;
    1 error; 2 usage or configuration.
    """
    folder = find_target(target)
    path = log_of(folder, results)
    settings = settings_from(folder, {"env": env, "config": config}, proposer=TRY)
    wanted = _wanted(names, folder, settings.profile_with)
    check_lease(path)
    state = read_state(path) if path.is_file() else LogState()
    resume = None if new else _latest(state, settings.environment, folder)

    async def work(campaign: Campaign) -> tuple[EvidenceRow, ...]:
        experiment = await campaign.profile(workload)
        return evidence_table(experiment.profiles, experiment.facts)

    rows = in_campaign(folder, results, settings, resume, work, profile_with=wanted)
    campaign = _campaign(read_state(path), resume)
    home = out if out is not None else path.parent / "profiles"
    files, remarks = _write(rows, BlobStore(blobs_beside(path)), home, folder.name)
    if as_json:
        print_json(
            {
                "campaign": campaign.stream,
                "candidate": campaign.incumbent,
                "patches": tuple(patch.name for patch in campaign.incumbent_genome),
                "evidence": rows,
                "files": [str(file) for file in files],
                "remarks": remarks,
                "log": str(path),
            }
        )
    else:
        click.echo(f"{short(campaign.stream)}, {_source(campaign)}")
        for line in _lines(rows, top):
            click.echo(line)
        for remark in remarks:
            click.echo(remark)
        if files:
            click.echo(f"\nwritten: {', '.join(file.name for file in files)} in {home}")
    ctx.exit(0 if any(row.status == "measured" for row in rows) else 3)


def _wanted(names: str | None, folder: Path, configured: tuple[str, ...] | None) -> tuple[str, ...]:
    from aiopt.target import load_target

    if names is not None:
        wanted = tuple(dict.fromkeys(name.strip() for name in names.split(",") if name.strip()))
    else:
        wanted = configured if configured is not None else load_target(folder).profilers
    if not wanted:
        raise click.UsageError(
            'no profilers: name some with --with, or in target.toml as profilers = ["perf", …]; '
            "`aiopt doctor` says which work here"
        )
    return wanted


def _latest(state: LogState, environment: str, folder: Path) -> str | None:
    """The latest campaign that can go on; None to begin one."""
    from aiopt.target import harness_digest, harness_files, load_target

    digest = harness_digest(folder, harness_files(folder, load_target(folder)))
    for campaign in reversed(state.campaigns.values()):
        if campaign.started.environment == environment and not baseline_failed(campaign):
            if campaign.started.target_digest == digest:
                return campaign.stream
            click.echo(
                f"{short(campaign.stream)} was begun with another target.toml or harness, so the "
                "unmodified source is profiled",
                err=True,
            )
            return None
    return None


def _campaign(state: LogState, stream: str | None) -> CampaignState:
    return state.campaigns[stream] if stream else next(reversed(state.campaigns.values()))


def _source(campaign: CampaignState) -> str:
    patches = ", ".join(patch.name for patch in campaign.incumbent_genome)
    return f"the source with {patches}" if patches else "the unmodified source"


def _lines(rows: tuple[EvidenceRow, ...], top: int) -> Iterator[str]:
    for row in rows:
        yield ""
        yield from evidence_lines(row, top)


def _write(
    rows: tuple[EvidenceRow, ...], blobs: BlobStore, folder: Path, name: str
) -> tuple[list[Path], list[str]]:
    """Files for other programs, and why one of them is missing."""
    files: list[Path] = []
    remarks: dict[str, None] = {}
    for row in rows:
        if row.stacks is None:
            continue
        stacks = blobs.get(row.stacks).decode(errors="replace")
        title = f"{name}, {row.workload}, {row.profiler}"
        written: list[tuple[str, bytes]] = [
            (".folded.txt", stacks.encode()),
            (".speedscope.json", orjson.dumps(speedscope(stacks, row.stacks_unit, title))),
        ]
        try:
            written.append((".svg", flame_graph(stacks, row.stacks_unit, title)))
        except PrerequisiteError as error:
            remarks[f"no flame graph: {error}"] = None
        except AiOptError as error:
            remarks[f"no flame graph of {row.profiler}: {error}"] = None
        folder.mkdir(parents=True, exist_ok=True)
        for ending, content in written:
            file = folder / f"{row.profiler}{ending}"
            file.write_bytes(content)
            files.append(file)
    return files, list(remarks)
