"""Where the lines of one version of a file are in the next, by the diff between the two."""

from collections.abc import Iterator

from unidiff.patch import Hunk, PatchedFile, PatchSet

__all__ = ["lines_after"]


def lines_after(diff: str, place: str) -> tuple[str, ...]:
    """What became of the line `file:line`: where it is now, or the lines that stand in its place.

    A file may be named by the end of its path. None at all is a line that was removed.

    Raises:
        UnidiffParseError: the diff is none.
    """
    file, _, number = place.rpartition(":")
    line = int(number)
    for part in PatchSet(diff):
        if _is_of(part, file):
            return tuple(f"{file}:{now}" for now in _followed(part, line))
    return (place,)


def _is_of(part: PatchedFile, file: str) -> bool:
    return f"/{part.path}".endswith(f"/{file}") or file.endswith(f"/{part.path}")


def _followed(part: PatchedFile, line: int) -> Iterator[int]:
    shift = 0
    for hunk in part:
        # A hunk without lines of the old version names the one before it.
        if line < hunk.source_start + (hunk.source_length == 0):
            break
        if line < hunk.source_start + hunk.source_length:
            yield from _within(hunk, line)
            return
        shift += hunk.target_length - hunk.source_length
    yield line + shift


def _within(hunk: Hunk, line: int) -> list[int]:
    """Removed and added lines without a kept one between them take each other's place."""
    old, new = hunk.source_start, hunk.target_start
    removed: list[int] = []
    added: list[int] = []
    for each in hunk:
        if each.is_context:
            if line in removed:
                return added
            if old == line:
                return [new]
            removed, added = [], []
            old, new = old + 1, new + 1
        elif each.is_removed:
            removed.append(old)
            old += 1
        elif each.is_added:
            added.append(new)
            new += 1
    return added
