"""Patches to Python sources that change nothing that matters, for a search that must keep none.

Each kind finds all places where a file can be changed so; which of them become patches is drawn
from a seed. Every patch is made against the unmodified source; they are not meant to be stacked.
"""

import ast
import difflib
import io
import random
import re
import tokenize
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path

from attrs import field, frozen

__all__ = ["KINDS", "kind_of", "neutral_patches"]

_REMARKS = (
    "Whoever changes this reads its callers first.",
    "Nothing else depends on the order of these steps.",
    "The checks cover this.",
    "See the notes for how this came about.",
    "Callers hold no reference to what is made here.",
)
_NAMES = ("unused", "spare", "reserved", "former", "retired")
_DEAD = 'raise AssertionError("never reached")\n'

_Function = ast.FunctionDef | ast.AsyncFunctionDef
_Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
# Names in these may be another scope's, and until Python 3.12 those in f-strings have no position.
_OTHER_SCOPES = (
    *(ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda, ast.JoinedStr),
    *(ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp),
)


@frozen
class _Edit:
    """The lines from `start` to before `stop`, counted from 0, become others."""

    start: int
    stop: int
    lines: Sequence[str]


@frozen
class _Module:
    path: str
    text: str
    lines: list[str] = field(init=False)
    tree: ast.Module = field(init=False)

    @lines.default
    def _split(self) -> list[str]:
        return self.text.splitlines(keepends=True)

    @tree.default
    def _parse(self) -> ast.Module:
        return ast.parse(self.text)

    def indent(self, node: ast.stmt) -> str:
        return self.lines[node.lineno - 1][: node.col_offset]

    def starts_line(self, node: ast.stmt) -> bool:
        """Nothing but blanks is before it, nor is it an `elif` in disguise."""
        rest = self.lines[node.lineno - 1][node.col_offset :]
        return not self.indent(node).strip() and not rest.startswith("elif")

    def functions(self) -> Iterator[_Function]:
        return (node for node in ast.walk(self.tree) if isinstance(node, _Function))

    def statements(self) -> Iterator[ast.stmt]:
        """Those within functions, each at the beginning of a line, no docstring."""
        for function in self.functions():
            for node in ast.walk(function):
                if not isinstance(node, ast.stmt) or node is function or _decorated(node):
                    continue
                if not _is_text(node) and self.starts_line(node):
                    yield node


def _decorated(node: ast.AST) -> bool:
    return isinstance(node, _Definition) and bool(node.decorator_list)


def _is_text(node: ast.stmt) -> bool:
    """A string that stands alone: a docstring, as a rule."""
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )


def _insert(line: int, *lines: str) -> _Edit:
    """Put lines before this one."""
    return _Edit(line, line, lines)


def _splice(line: str, column: int, length: int, text: str) -> str:
    """Replace a part of a line; `ast` counts columns in bytes."""
    old = line.encode()
    return (old[:column] + text.encode() + old[column + length :]).decode()


def _pick(texts: Sequence[str], line: int) -> str:
    return texts[line % len(texts)]


def _add_comment(module: _Module) -> Iterator[_Edit]:
    for node in module.statements():
        comment = f"{module.indent(node)}# {_pick(_REMARKS, node.lineno)}\n"
        yield _insert(node.lineno - 1, comment)


def _reword_comment(module: _Module) -> Iterator[_Edit]:
    for token in tokenize.generate_tokens(io.StringIO(module.text).readline):
        line, column = token.start
        if token.type == tokenize.COMMENT and line > 2:  # there it may mean something
            before = module.lines[line - 1][:column]
            comment = f"{token.string.rstrip('.')}. {_pick(_REMARKS, line)}\n"
            yield _Edit(line - 1, line, [before + comment])


def _add_blank_line(module: _Module) -> Iterator[_Edit]:
    for node in module.statements():
        yield _insert(node.lineno - 1, "\n")


def _document(module: _Module) -> Iterator[_Edit]:
    """A docstring where there is none, and one more sentence where there is one."""
    for node in ast.walk(module.tree):
        if not isinstance(node, _Definition):
            continue
        first = node.body[0]
        if not _is_text(first):
            if module.starts_line(first) and not _decorated(first):
                text = f'{module.indent(first)}"""{_pick(_REMARKS, first.lineno)}"""\n'
                yield _insert(first.lineno - 1, text)
        elif first.end_lineno is not None and first.end_col_offset is not None:
            last, column = module.lines[first.end_lineno - 1], first.end_col_offset - 3
            if last.encode()[column:].startswith(b'"""'):
                text = _splice(last, column, 0, f" {_pick(_REMARKS, first.lineno)}")
                yield _Edit(first.end_lineno - 1, first.end_lineno, [text])


def _rename_local(module: _Module) -> Iterator[_Edit]:
    for function in module.functions():
        for name in sorted(_own_names(function)):
            new = f"{name}_here"
            if re.search(rf"\b{new}\b", module.text):
                continue
            lines = list(module.lines)
            uses = [n for n in ast.walk(function) if isinstance(n, ast.Name) and n.id == name]
            # From the end, so that the columns of those before stay right.
            for use in sorted(uses, key=lambda n: (n.lineno, n.col_offset), reverse=True):
                old = lines[use.lineno - 1]
                lines[use.lineno - 1] = _splice(old, use.col_offset, len(name.encode()), new)
            start, stop = function.lineno - 1, function.end_lineno
            yield _Edit(start, stop or start + 1, lines[start:stop])


def _own_names(function: _Function) -> set[str]:
    """Names that are assigned in a function and that nobody else can see or mean."""
    stored: set[str] = set()
    shared = {argument.arg for argument in ast.walk(function.args) if isinstance(argument, ast.arg)}
    for node in ast.walk(function):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            stored.add(node.id)
        elif isinstance(node, _OTHER_SCOPES) and node is not function:
            shared.update(name.id for name in ast.walk(node) if isinstance(name, ast.Name))
        elif isinstance(node, ast.Global | ast.Nonlocal):
            shared.update(node.names)
        elif isinstance(node, ast.ExceptHandler | ast.MatchAs | ast.MatchStar) and node.name:
            shared.add(node.name)
        elif isinstance(node, ast.alias):
            shared.add(node.asname or node.name)
    return {name for name in stored - shared if name.strip("_")}


def _add_dead_branch(module: _Module) -> Iterator[_Edit]:
    for node in module.statements():
        indent = module.indent(node)
        yield _insert(node.lineno - 1, f"{indent}if False:\n", f"{indent}    {_DEAD}")


def _add_after_return(module: _Module) -> Iterator[_Edit]:
    for node in module.statements():
        if isinstance(node, ast.Return) and node.end_lineno is not None:
            yield _insert(node.end_lineno, module.indent(node) + _DEAD)


def _add_function(module: _Module) -> Iterator[_Edit]:
    for node in _top_level(module):
        name = f"_{_pick(_NAMES, node.lineno)}_{node.lineno}"
        lines = (f"def {name}(value: int) -> int:\n", "    return 2 * value + 1\n", "\n", "\n")
        yield _insert(node.lineno - 1, *lines)


def _add_constant(module: _Module) -> Iterator[_Edit]:
    for node in _top_level(module):
        name = f"_{_pick(_NAMES, node.lineno)}_{node.lineno}".upper()
        yield _insert(node.lineno - 1, f"{name} = {node.lineno}\n", "\n", "\n")


def _top_level(module: _Module) -> Iterator[ast.stmt]:
    """The functions and classes of a module."""
    for node in module.tree.body:
        if isinstance(node, _Definition) and not node.decorator_list:
            yield node


def _reorder(module: _Module) -> Iterator[_Edit]:
    """Two neighbours change places: imports, constants, functions, classes or methods."""
    for scope in (module.tree, *_top_level(module)):
        if not isinstance(scope, ast.Module | ast.ClassDef):
            continue
        for one, two in pairwise(scope.body):
            if _are_independent(module, one, two) and one.end_lineno and two.end_lineno:
                first = module.lines[one.lineno - 1 : one.end_lineno]
                between = module.lines[one.end_lineno : two.lineno - 1]
                second = module.lines[two.lineno - 1 : two.end_lineno]
                yield _Edit(one.lineno - 1, two.end_lineno, [*second, *between, *first])


def _are_independent(module: _Module, one: ast.stmt, two: ast.stmt) -> bool:
    """Both only define something, of the same sort, and neither mentions what the other defines."""
    if isinstance(one, ast.Import | ast.ImportFrom):
        return isinstance(two, ast.Import | ast.ImportFrom)
    if isinstance(one, ast.Assign):
        return all(
            isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
            for node in (one, two)
        )
    if not isinstance(one, _Definition) or not isinstance(two, _Definition):
        return False
    if one.decorator_list or two.decorator_list:
        return False
    return all(
        re.search(rf"\b{name}\b", ast.get_source_segment(module.text, node) or "") is None
        for name, node in ((one.name, two), (two.name, one))
    )


_Finder = Callable[[_Module], Iterator[_Edit]]
_FINDERS: dict[str, tuple[_Finder, str]] = {
    "comment": (_add_comment, "A comment is added."),
    "reworded": (_reword_comment, "A comment is reworded."),
    "blank": (_add_blank_line, "A blank line is added."),
    "docstring": (_document, "A docstring says more."),
    "rename": (_rename_local, "A local variable has another name."),
    "branch": (_add_dead_branch, "A branch is added that is never taken."),
    "after-return": (_add_after_return, "A statement is added that is never reached."),
    "function": (_add_function, "A function is added that nobody calls."),
    "constant": (_add_constant, "A constant is added that nobody reads."),
    "reorder": (_reorder, "Two independent statements change places."),
}

KINDS = tuple(_FINDERS)
"""What the patches do."""


def kind_of(name: str) -> str:
    """The kind of a patch, from its name: `03-after-return-orders`."""
    return name.split("-", 1)[1].rpartition("-")[0]


def neutral_patches(source: Path, count: int, seed: int) -> list[tuple[str, str]]:
    """So many patches as (name, text), no two for the same place; of all kinds and files in turn.

    Raises:
        ValueError: there are not so many places.
    """
    rng = random.Random(f"neutral patches {seed}")
    files = sorted(source.rglob("*.py"))
    modules = [_Module(f.relative_to(source).as_posix(), f.read_text("utf-8")) for f in files]
    places: dict[str, list[tuple[_Module, _Edit]]] = {
        kind: [(module, edit) for module in modules for edit in find(module)]
        for kind, (find, _) in _FINDERS.items()
    }
    taken: set[tuple[str, int]] = set()
    of_file: Counter[str] = Counter()
    kinds: list[str] = []
    patches: list[tuple[str, str]] = []
    while len(patches) < count:
        kinds = kinds or rng.sample(KINDS, len(KINDS))
        kind = kinds.pop()
        free = [place for place in places[kind] if (place[0].path, place[1].start) not in taken]
        places[kind] = free
        if not any(places.values()):
            raise ValueError(f"{source}: there are places for {len(patches)} patches, not {count}")
        if not free:
            continue
        fewest = min(of_file[module.path] for module, _ in free)
        module, edit = rng.choice([place for place in free if of_file[place[0].path] == fewest])
        taken.add((module.path, edit.start))
        of_file[module.path] += 1
        stem = module.path.removesuffix(".py").replace("/", "_").replace("-", "_")
        patches.append((f"{len(patches) + 1:02d}-{kind}-{stem}", _diff(module, edit, kind)))
    return patches


def _diff(module: _Module, edit: _Edit, kind: str) -> str:
    changed = [*module.lines[: edit.start], *edit.lines, *module.lines[edit.stop :]]
    sides = f"a/{module.path}", f"b/{module.path}"
    diff = difflib.unified_diff(module.lines, changed, *sides, n=1)
    hypothesis = f"Hypothesis: {_FINDERS[kind][1]} Nothing that runs is any different."
    return f"{hypothesis}\n\ndiff --git {sides[0]} {sides[1]}\n" + "".join(diff)
