"""Which function a stack of the heap is laid to: neither the allocator nor the standard library."""

import re
from collections.abc import Sequence

__all__ = ["place", "without_allocator"]

_PREFIX = r"(?:_?rjem_)?(?:je_)?"
_PROFILING = re.compile(_PREFIX + r"prof_\w+(?:\W.*)?")
_INSIDE = re.compile(
    _PREFIX + r"(?:prof_\w+|imalloc\w*|ialloc\w*|iralloc\w*|irallocx\w*|tcache_\w+|arena_\w+"
    r"|large_\w+|malloc_default|do_rallocx|fallback_impl|fallbackNewImpl|newImpl)(?:\W.*)?"
    r"|\w+ (?:fallback_impl|fallbackNewImpl|newImpl)<.*"
)
_ENTRY = re.compile(
    _PREFIX + r"(?:malloc|calloc|realloc|aligned_alloc|memalign|posix_memalign|valloc|pvalloc"
    r"|[mrsx]allocx|reallocarray|(?:__)?strn?dup|handleOOM)(?:\W.*)?"
    r"|operator new.*|_Zn[wa].*|__rust_\w*alloc\w*.*|__rdl_\w*|__rg_\w*|alloc::alloc::.*"
    r"|<(?:alloc::alloc::Global|tikv_jemallocator::|jemallocator::).*"
)
_LINE = re.compile(r"(?P<name>.*) \((?P<file>[^()]*):(?:[0-9]+|\?)\)$")
_CPP = ("std::", "__gnu_cxx::")
_RUST = ("alloc::", "core::", "std::", "hashbrown::")
_LONGEST = 200


def without_allocator(frames: Sequence[str], *, gone: bool) -> list[str]:
    """The stack, root first, as far as what calls the allocator; all of it if that is nothing.

    `gone`: jemalloc's own functions are not in it any more. Otherwise it ends in those that take
    the sample. Their names are not looked for elsewhere, for programs have arenas and pools too.
    """
    last = len(frames)
    if not gone and _PROFILING.fullmatch(frames[-1]):
        while last > 1 and _INSIDE.fullmatch(frames[last - 1]):
            last -= 1
    while last > 1 and _ENTRY.fullmatch(frames[last - 1]):
        last -= 1
    return list(frames[:last])


def place(frames: Sequence[str]) -> str:
    """The deepest function that is not of a standard library, as `name (file)`.

    Lines move with every patch. A long name (of a template) is cut.
    """
    frame = next((each for each in reversed(frames) if not _is_standard(each)), frames[-1])
    if found := _LINE.match(frame):
        return f"{_short(found['name'])} ({found['file']})"
    return _short(frame)


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST else f"{name[: _LONGEST - 1]}…"


def _is_standard(frame: str) -> bool:
    found = _LINE.match(frame)
    name, called = _qualified(found["name"] if found else frame)
    if name.startswith(_CPP):
        return True
    # Rust's symbols have no list of arguments; C++ has namespaces of these names that are nobody's.
    rust = found["file"].endswith(".rs") if found else not called
    return rust and name.lstrip("<&").startswith(_RUST)


def _qualified(name: str) -> tuple[str, bool]:
    """`space::name` of `type space::name<type>(type) const`, and whether there were arguments."""
    depth = start = 0
    for at, char in enumerate(name):
        if char == "(" and not depth and at > start:
            return name[start:at], True
        if char in "(<[{":
            depth += 1
        elif char in ")>]}":
            depth = max(0, depth - 1)
        elif char == " " and not depth:
            start = at + 1
    return name[start:], False
