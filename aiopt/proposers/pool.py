"""Patches from a folder: each file is proposed once, in the order of the names."""

from attrs import frozen

from aiopt.candidate import canonical, hypothesis_of
from aiopt.errors import ConfigError, PatchError
from aiopt.ids import digest
from aiopt.protocols import Patch, Proposal, ProposalRequest

__all__ = ["PoolProposer"]


@frozen
class PoolProposer:
    """A pool of patch files. What was measured is never proposed again;
    what lost its incumbent before it was measured is.
    """

    folder: str = "patches"
    """Relative to the target's folder, or absolute."""
    pattern: str = "*.patch"

    async def propose(self, request: ProposalRequest) -> Proposal | None:
        """The first file that this campaign has not tried; see `aiopt.protocols.Proposer`.

        Raises:
            ConfigError: there is no such folder, or it holds no patch.
        """
        if request.selection.operator != "propose":
            return None  # a file cannot be written anew
        folder = request.target_folder / self.folder
        files = sorted(folder.glob(self.pattern)) if folder.is_dir() else []
        if not files:
            raise ConfigError(str(folder), [("", f"no {self.pattern} there; the pool is empty")])
        tried = {
            proposal.proposed.patch
            for proposal in request.state.proposals.values()
            if proposal.status != "superseded"
        }
        for file in files:
            text = file.read_bytes()
            if _digest(text) not in tried:
                return Proposal(
                    patch=Patch(name=file.stem, text=text, hypothesis=hypothesis_of(text))
                )
        return None


def _digest(text: bytes) -> str:
    """Of the patch as it is logged; a file that is no patch is known by its bytes."""
    try:
        return canonical(text).digest
    except PatchError:
        return digest(text)
