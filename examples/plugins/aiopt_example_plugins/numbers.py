"""A proposer: other values for one constant of the source.

    proposer = "numbers"
    [proposers.numbers]
    file = "src/table.c"
    constant = "BLOCK"
    values = [16, 64, 256]

Where another one would ask a model, this one edits a line. The parent's source is in `request.tree`
to be read, and what was proposed before is in `request.state`; never write to either.
"""

import re
from difflib import unified_diff

from attrs import frozen

from aiopt.protocols import Patch, Proposal, ProposalRequest


@frozen(kw_only=True)
class Numbers:
    file: str
    constant: str
    values: tuple[int, ...]

    async def propose(self, request: ProposalRequest) -> Proposal | None:
        if request.tree is None:
            return None
        old = (request.tree / self.file).read_text(encoding="utf-8")
        proposals = request.state.proposals.values()
        tried = {proposal.proposed.genome[-1].name for proposal in proposals}
        for value in self.values:
            name = f"{self.constant}-{value}"
            new = self._with(value, old)
            if name not in tried and new != old:
                hypothesis = f"{self.constant} = {value} suits this workload better"
                return Proposal(
                    patch=Patch(name=name, text=self._diff(old, new), hypothesis=hypothesis)
                )
        return None

    def _with(self, value: int, text: str) -> str:
        pattern = rf"^(.*\b{re.escape(self.constant)}\b\s*=\s*)\d+"
        return re.sub(pattern, rf"\g<1>{value}", text, count=1, flags=re.MULTILINE)

    def _diff(self, old: str, new: str) -> bytes:
        names = f"a/{self.file}", f"b/{self.file}"
        return "".join(unified_diff(old.splitlines(True), new.splitlines(True), *names)).encode()
