"""Patches as values: their canonical text, what they touch, and whether a target allows that.

A patch is a unified diff as git writes it. Everything before its first file header is free text; a
line `Hypothesis: …` there says why it should help. Nothing here touches a file: whether a patch
applies is git's answer (`aiopt.sources`), and the scope is checked a second time on what git then
really changed.
"""

import re
from collections.abc import Collection, Iterable, Iterator
from pathlib import PurePosixPath

from attrs import frozen
from unidiff.errors import UnidiffParseError
from unidiff.patch import Hunk, PatchSet

from aiopt.errors import PatchError, PatchOutOfScope
from aiopt.events import Claim, PatchShape
from aiopt.ids import digest
from aiopt.target import Scope

__all__ = [
    "CanonicalPatch",
    "canonical",
    "check_scope",
    "claims_of",
    "hypothesis_of",
    "part_of",
    "scope_problems",
]

_LINK = "120000"
_SUBMODULE = "160000"
_FIRST_HEADER = re.compile(rb"^(diff --git |--- )", re.MULTILINE)
_MODE = re.compile(r"^(?:new file mode|new mode|old mode|deleted file mode) (\d{6})$")
_INDEX_MODE = re.compile(r"^index [0-9a-f]+\.\.[0-9a-f]+ (\d{6})$")


@frozen(kw_only=True)
class CanonicalPatch:
    """A patch without its preamble. Equal changes written equally have equal digests."""

    text: bytes
    digest: str
    paths: tuple[str, ...]
    """Every path that it reads, writes, creates, renames or removes, sorted."""
    modes: frozenset[str]
    zero_context: bool
    """Some hunk has no context lines, so git must be told to expect that."""
    shape: PatchShape


def hypothesis_of(text: bytes) -> str:
    """The hypothesis in a patch file's preamble, or an empty text."""
    return next(_in_preamble(text, "hypothesis"), "")


def claims_of(text: bytes) -> tuple[Claim, ...]:
    """The claims in a patch file's preamble: lines `Claim: FUNCTION METRIC`."""
    found = []
    for line in _in_preamble(text, "claim"):
        function, _, metric = line.rpartition(" ")
        if function:
            found.append(Claim(function=function.strip(), metric=metric))
    return tuple(dict.fromkeys(found))


def _in_preamble(text: bytes, wanted: str) -> Iterator[str]:
    """The texts of the lines `wanted: text` above the diff."""
    start = _FIRST_HEADER.search(text)
    preamble = text[: start.start() if start else len(text)].decode(errors="replace")
    for line in preamble.splitlines():
        name, colon, rest = line.partition(":")
        if colon and name.strip().lower() == wanted:
            yield rest.strip()


def canonical(text: bytes) -> CanonicalPatch:
    """The patch in a file or an answer.

    Raises:
        PatchError: it is no unified diff, is binary, or changes nothing.
    """
    start = _FIRST_HEADER.search(text)
    if start is None:
        raise PatchError("no diff: expected a line that begins with `diff --git` or `---`")
    body = text[start.start() :].rstrip(b"\n") + b"\n"
    if b"\nGIT binary patch\n" in body or b"\nBinary files " in body:
        raise PatchError("a binary patch; only text can be reviewed, so only text is taken")
    try:
        patches = PatchSet(body.decode("utf-8", errors="surrogateescape"))
    except UnidiffParseError as error:
        raise PatchError(f"no well-formed unified diff: {error}") from None
    paths: set[str] = set()
    modes: set[str] = set()
    zero_context = False
    changes = hunks = added = removed = 0
    for part in patches:
        changes += len(part)
        hunks, added, removed = hunks + len(part), added + part.added, removed + part.removed
        for name in (part.source_file, part.target_file):
            if name is not None and name != "/dev/null":
                paths.add(_without_prefix(name))
        for line in part.patch_info or ():
            modes.update(_modes(line.rstrip("\n")))
        zero_context |= any(not any(line.is_context for line in hunk) for hunk in part)
    renamed = set(_header_paths(body))
    paths |= renamed
    if not paths or not (changes or renamed):
        raise PatchError("an empty diff: it changes no file")
    return CanonicalPatch(
        text=body,
        digest=digest(body),
        paths=tuple(sorted(paths)),
        modes=frozenset(modes),
        zero_context=zero_context,
        shape=PatchShape(files=len(patches), hunks=hunks, added=added, removed=removed),
    )


def part_of(patch: CanonicalPatch, hunks: Collection[int]) -> CanonicalPatch:
    """The patch that consists of some hunks of another one, counted from 0 over all its files.

    What a file header says beyond hunks (a rename, a mode, a new file) stays with the hunks of that
    file.

    Raises:
        PatchError: there is no such hunk, or none is left.
    """
    text, count = [], 0
    for file in PatchSet(patch.text.decode("utf-8", errors="surrogateescape")):
        chosen = [hunk for place, hunk in enumerate(file, count) if place in hunks]
        count += len(file)
        if chosen:
            text += [*map(str, file.patch_info or ()), f"--- {file.source_file}\n"]
            text += [f"+++ {file.target_file}\n", *_moved(chosen)]
    if not text or not all(0 <= hunk < count for hunk in hunks):
        wanted = ", ".join(map(str, sorted(hunks))) or "none"
        raise PatchError(f"the patch has the hunks 0 to {count - 1}, and {wanted} were asked for")
    return canonical("".join(text).encode("utf-8", errors="surrogateescape"))


def _moved(hunks: Iterable[Hunk]) -> Iterator[str]:
    """The hunks of one file where they are if those that are not among them were never applied."""
    shift = 0
    for hunk in hunks:
        # A side without lines names the line before the place, so it is one off.
        hunk.target_start = (
            hunk.source_start + (hunk.source_length == 0) - (hunk.target_length == 0) + shift
        )
        shift += hunk.target_length - hunk.source_length
        yield str(hunk)


def _without_prefix(name: str) -> str:
    return name[2:] if name.startswith(("a/", "b/")) else name


def _modes(line: str) -> Iterator[str]:
    for pattern in (_MODE, _INDEX_MODE):
        match = pattern.match(line)
        if match:
            yield match[1]


def _header_paths(body: bytes) -> Iterator[str]:
    """Paths in headers that carry no hunk: pure renames, copies, mode changes, empty files."""
    for line in body.decode(errors="surrogateescape").splitlines():
        for prefix in ("rename from ", "rename to ", "copy from ", "copy to "):
            if line.startswith(prefix):
                yield line.removeprefix(prefix).strip('"')
        match = re.fullmatch(r'diff --git "?a/(.+?)"? "?b/(.+?)"?', line)
        if match:
            yield match[1]
            yield match[2]


def check_scope(patch: CanonicalPatch, scope: Scope) -> None:
    """Refuse a patch that touches what the target does not offer.

    Raises:
        PatchOutOfScope: with every reason.
    """
    problems = list(scope_problems(patch.paths, patch.modes, scope))
    if problems:
        raise PatchOutOfScope("; ".join(problems))


def scope_problems(paths: tuple[str, ...], modes: frozenset[str], scope: Scope) -> Iterator[str]:
    """Why these paths and file modes are not allowed; nothing if they are."""
    for path in paths:
        parts = PurePosixPath(path).parts
        if path.startswith("/") or ".." in parts:
            yield f"{path}: leaves the source tree"
        elif any(part.lower() == ".git" for part in parts):
            yield f"{path}: touches git's own files"
        elif not scope.allows(path):
            yield f"{path}: not editable; the target offers {', '.join(scope.editable)}"
    if _LINK in modes:
        yield "creates or changes a symbolic link"
    if _SUBMODULE in modes:
        yield "creates or changes a submodule"
