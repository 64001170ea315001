"""What the folders of one campaign share: the target, its source and harness, and the diffs."""

import gzip
import io
import tarfile
from collections.abc import Mapping
from pathlib import Path

from attrs import frozen

from aiopt.blobs import BlobStore, blobs_beside
from aiopt.candidate import canonical
from aiopt.config import structure
from aiopt.errors import AiOptError
from aiopt.events import PatchRef
from aiopt.export.experiment import parent_of
from aiopt.ids import short_name
from aiopt.replay import CampaignState
from aiopt.sources import SourceRepository
from aiopt.target import Target

__all__ = ["Bundle", "make_bundle"]

Genome = tuple[PatchRef, ...]


@frozen(kw_only=True)
class Bundle:
    """The contents of the shared files."""

    target: Target
    source: bytes | None
    """A gzipped tar of the base source; None if the scripts fetch it, or it could not be had."""
    harness: bytes
    diffs: Mapping[Genome, bytes]
    """What each genome makes of the base source, as one diff."""
    notes: tuple[str, ...]
    """What is missing, and why."""


async def make_bundle(
    campaign: CampaignState, log_path: Path, folder: Path | None, scratch: Path
) -> Bundle:
    """All of it, from the log's blobs and the source; *folder* is the target's, if it was given."""
    started, notes = campaign.started, []
    target = structure(started.spec, Target, f"{log_path}: {short_name(campaign.stream)}")
    blobs = BlobStore(blobs_beside(log_path))
    repository = await _repository(campaign, target, log_path, folder, scratch)
    source = None
    if repository is None:
        notes.append(
            f"the base source (commit {started.base_commit[:12]}) was not at hand: diff.patch is "
            "the candidate's patches one after the other"
            + (", and source.tar.gz is missing" if target.source.path is not None else "")
        )
    elif target.source.path is not None:
        await repository.check_out(started.base_commit, scratch / "base")
        source = _packed(scratch / "base")
    diffs = {
        genome: await _diff(repository, campaign, target, blobs, genome, tree, scratch)
        for genome, tree in _trees(campaign).items()
    }
    return Bundle(
        target=target,
        source=source,
        harness=_gzip(blobs.get(started.harness)),
        diffs=diffs,
        notes=tuple(notes),
    )


async def _repository(
    campaign: CampaignState, target: Target, log_path: Path, folder: Path | None, scratch: Path
) -> SourceRepository | None:
    """A repository that has the base commit, or None.

    Its indexes are in *scratch*: a campaign may be using those of the private repository.
    """
    base, source = campaign.started.base_commit, target.source.path
    work = log_path.parent / ".work"
    if await SourceRepository(work).has(base):
        (scratch / "index").mkdir()
        (scratch / "source.git").symlink_to(work / "source.git")
        return SourceRepository(scratch)
    if source is None:
        return None
    beside = log_path.parent.parent.parent / "targets"
    places = [folder] if folder else [beside / target.name, Path("targets") / target.name]
    for place in places:
        if (place / source).is_dir():
            repository = SourceRepository(scratch)
            commit, _ = await repository.import_folder((place / source).resolve())
            if commit == base:
                return repository
    return None


def _trees(campaign: CampaignState) -> dict[Genome, str]:
    """The tree of every genome that a folder has a patch of."""
    experiments = campaign.experiments.values()
    trees = {each.started.genome: each.started.tree for each in experiments}
    for each in experiments:
        parent = parent_of(campaign, each)
        trees.setdefault(parent.started.genome if parent else (), each.started.incumbent_tree)
    return trees


async def _diff(
    repository: SourceRepository | None,
    campaign: CampaignState,
    target: Target,
    blobs: BlobStore,
    genome: Genome,
    tree: str,
    scratch: Path,
) -> bytes:
    if not genome:
        return b""
    base = campaign.started.base_commit
    patches = [canonical(blobs.get(patch.digest)) for patch in genome]
    if repository is None:
        return b"".join(patch.text for patch in patches)
    try:
        return await repository.diff(base, tree)
    except AiOptError:  # only the base was imported anew, and not what was made of it
        made = await repository.tree_with(base, patches, target.scope, scratch / "tree")
        return await repository.diff(base, made)


def _packed(folder: Path) -> bytes:
    """A gzipped tar that depends on names, contents and executable bits alone."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as tar:
        tar.add(folder, ".", filter=_impersonal)
    return _gzip(packed.getvalue())


def _impersonal(info: tarfile.TarInfo) -> tarfile.TarInfo:
    info.uid = info.gid = info.mtime = 0
    info.uname = info.gname = ""
    info.mode = 0o755 if info.mode & 0o111 else 0o644
    return info


def _gzip(data: bytes) -> bytes:
    return gzip.compress(data, 9, mtime=0)
