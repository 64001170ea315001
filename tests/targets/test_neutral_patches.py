"""Patches for a null campaign change every file digest and nothing that runs."""

import ast
import dis
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import CodeType
from typing import Any

import pytest
from attrs import frozen

from aiopt.candidate import canonical, check_scope, hypothesis_of
from aiopt.target import load_target

from .measure_pool import TARGET
from .neutral_patches import KINDS, kind_of, neutral_patches

SOURCE = TARGET / "src"
COUNT = 30
SEEDS = (0, 1)


@frozen
class Patched:
    """A patch, and its file without and with it."""

    name: str
    text: str
    path: str
    before: str
    after: str

    @property
    def kind(self) -> str:
        return kind_of(self.name)


def applied(seed: int, folder: Path) -> Iterator[Patched]:
    """Each patch on the unmodified source, by git."""
    tree = shutil.copytree(SOURCE, folder, ignore=shutil.ignore_patterns("__pycache__"))
    # Within another repository's folder `git apply` would silently skip every file.
    subprocess.run(["git", "init", "-q"], cwd=tree, check=True)
    for name, text in neutral_patches(SOURCE, COUNT, seed):
        (path,) = canonical(text.encode()).paths
        before = (tree / path).read_text()
        subprocess.run(["git", "apply"], input=text, text=True, cwd=tree, check=True)
        yield Patched(name, text, path, before, (tree / path).read_text())
        (tree / path).write_text(before)


@pytest.fixture(scope="module")
def patches(tmp_path_factory: pytest.TempPathFactory) -> list[Patched]:
    folder = tmp_path_factory.mktemp("neutral")
    return [patch for seed in SEEDS for patch in applied(seed, folder / f"seed-{seed}")]


def functions(code: CodeType) -> Iterator[tuple[str, Any]]:
    """The functions that modules and classes define, with what they execute."""
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            if constant.co_flags & 2:  # CO_NEWLOCALS: no class body
                yield constant.co_qualname, executed(constant)
            else:
                yield from functions(constant)


def executed(code: CodeType) -> Any:
    """The instructions, whatever the local variables are called and whichever lines they are on."""
    idle = ("NOP", "EXTENDED_ARG")
    instructions = [i for i in dis.get_instructions(code) if i.opname not in idle]
    found: list[Any] = []
    for instruction in instructions:
        value: Any = instruction.argval
        if instruction.opcode in (*dis.hasjrel, *dis.hasjabs):
            value = sum(i.offset < value for i in instructions)
        elif instruction.opcode in dis.haslocal:
            value = instruction.arg
        elif isinstance(value, CodeType):
            value = executed(value)
        found.append((instruction.opname, type(value), value))
    return code.co_flags, code.co_argcount, code.co_varnames[: code.co_argcount], found


def compiled(source: str) -> dict[str, Any]:
    """Without docstrings."""
    return dict(functions(compile(source, "module", "exec", optimize=2)))


def outline(source: str) -> Counter[str]:
    """What modules and classes do when they are imported: statements without function bodies."""
    tree = ast.parse(source)
    found: Counter[str] = Counter()
    scopes: list[tuple[str, ast.Module | ast.ClassDef]] = [("", tree)]
    for prefix, scope in scopes:
        for node in scope.body:
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
                continue
            if isinstance(node, ast.ClassDef):
                scopes.append((f"{prefix}{node.name}.", node))
                bases = ast.dump(ast.Tuple([*node.bases, *node.decorator_list], ast.Load()))
                found[f"{prefix}class {node.name} {bases}"] += 1
                continue
            if isinstance(node, ast.FunctionDef):
                node.body = []
            found[prefix + ast.dump(node)] += 1
    return found


def added_name(patch: Patched) -> str:
    """What a patch defines that was not there before."""
    match = re.search(r"^\+(?:def )?(_\w+)", patch.text, re.MULTILINE)
    assert match is not None
    return match[1]


def test_the_same_seed_gives_the_same_patches_and_another_one_others() -> None:
    found = neutral_patches(SOURCE, COUNT, 5)
    assert found == neutral_patches(SOURCE, COUNT, 5)
    assert found != neutral_patches(SOURCE, COUNT, 6)


def test_there_are_as_many_as_were_asked_for_or_an_error() -> None:
    assert len(neutral_patches(SOURCE, 200, 1)) == 200
    with pytest.raises(ValueError, match=r"there are places for \d+ patches, not 100000"):
        neutral_patches(SOURCE, 100_000, 1)


@pytest.mark.parametrize("seed", SEEDS)
def test_kinds_and_files_are_mixed(seed: int) -> None:
    found = neutral_patches(SOURCE, COUNT, seed)
    assert [name[:2] for name, _ in found] == [f"{n:02d}" for n in range(1, COUNT + 1)]
    assert Counter(kind_of(name) for name, _ in found) == dict.fromkeys(KINDS, COUNT // len(KINDS))
    files = Counter(canonical(text.encode()).paths for _, text in found)
    assert files.keys() == {(file.name,) for file in SOURCE.glob("*.py")}
    assert max(files.values()) <= 4


def test_patches_are_in_scope_and_small(patches: list[Patched]) -> None:
    scope = load_target(TARGET).scope
    for patch in patches:
        parsed = canonical(patch.text.encode())
        check_scope(parsed, scope)
        assert patch.path.endswith(".py")
        assert not parsed.zero_context
        assert hypothesis_of(patch.text.encode())


def test_patched_files_are_distinct(patches: list[Patched]) -> None:
    assert all(patch.after != patch.before for patch in patches)
    for start in range(0, len(patches), COUNT):
        one_seed = patches[start : start + COUNT]
        assert len({(patch.path, patch.after) for patch in one_seed}) == COUNT


def test_functions_execute_the_same(patches: list[Patched]) -> None:
    for patch in patches:
        before, after = compiled(patch.before), compiled(patch.after)
        if patch.kind == "function":
            del after[added_name(patch)]
        assert after == before, patch.name
        assert before


def test_modules_and_classes_define_the_same(patches: list[Patched]) -> None:
    for patch in patches:
        before, after = outline(patch.before), outline(patch.after)
        if patch.kind in ("function", "constant"):
            name = added_name(patch)
            assert len(re.findall(rf"\b{name}\b", patch.after)) == 1, patch.name
            assert not any(name in file.read_text() for file in SOURCE.glob("*.py"))
            (added,) = (after - before).elements()
            assert f"'{name}'" in added
            del after[added]
        assert after == before, patch.name


def test_each_kind_does_what_its_name_says(patches: list[Patched]) -> None:
    for patch in patches:
        same_tree = ast.dump(ast.parse(patch.before)) == ast.dump(ast.parse(patch.after))
        assert same_tree == (patch.kind in ("comment", "reworded", "blank")), patch.name
        same_lines = sorted(patch.before.split()) == sorted(patch.after.split())
        assert same_lines == (patch.kind in ("blank", "reorder")), patch.name


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("2", "3"),
        ("2", "2.0"),
        ("result = value\n", "result = value or 1\n"),
        ("return result", "return value"),
        ("if value", "if not value"),
    ],
)
def test_the_comparison_finds_what_does_matter(old: str, new: str) -> None:
    lines = ("result = value * 2", "if value:", "    result = value", "return result")
    source = "def double(value):\n" + "".join(f"    {line}\n" for line in lines)
    assert source.count(old) == 1
    assert compiled(source) != compiled(source.replace(old, new))
    assert compiled(source) == compiled(source.replace("result", "other"))
