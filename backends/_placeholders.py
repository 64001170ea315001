"""The folders of a workspace, in what a command says."""

import re
from collections.abc import Mapping

__all__ = ["expand"]

_PLACEHOLDER = re.compile(r"\{(source|harness|run)\}")


def expand(text: str, folders: Mapping[str, str]) -> str:
    """`text` with `folders` in place of `{source}`, `{harness}` and `{run}`."""
    if "{" not in text:
        return text
    return _PLACEHOLDER.sub(lambda match: folders[match[1]], text)
