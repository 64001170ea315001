"""The private repository: deterministic names, and patches that hostile people wrote."""

import os
from pathlib import Path

import anyio
import pytest

from aiopt.candidate import canonical
from aiopt.errors import ConfigError, PatchDoesNotApply, PatchOutOfScope, PrerequisiteError
from aiopt.sources import SourceRepository, remove_tree
from aiopt.target import Scope

pytestmark = pytest.mark.anyio

EVERYTHING = Scope(editable=("**",))


def source(folder: Path) -> Path:
    (folder / "sub").mkdir(parents=True)
    (folder / "a.txt").write_text("one\ntwo\nthree\n")
    (folder / "sub" / "run.sh").write_text("#!/bin/sh\n")
    (folder / "sub" / "run.sh").chmod(0o755)
    (folder / "ignored.o").write_text("x")
    (folder / ".gitignore").write_text("*.o\n")
    return folder


async def test_the_same_files_have_the_same_names_anywhere(tmp_path: Path) -> None:
    one = await SourceRepository(tmp_path / "r1").import_folder(source(tmp_path / "s1"))
    two = await SourceRepository(tmp_path / "r2").import_folder(source(tmp_path / "s2"))
    assert one == two


async def test_a_checked_out_tree_is_the_source_without_git(tmp_path: Path) -> None:
    repository = SourceRepository(tmp_path / "r")
    commit, name = await repository.import_folder(source(tmp_path / "s"))
    tree = tmp_path / "tree"
    await repository.check_out(commit, tree)
    assert sorted(p.name for p in tree.iterdir()) == [".gitignore", "a.txt", "sub"]
    assert os.access(tree / "sub" / "run.sh", os.X_OK)
    assert await repository.is_intact(tree, name)
    assert not await repository.is_intact(tree, "0" * 40)
    (tree / "a.txt").write_text("other")
    assert not await repository.is_intact(tree, name)
    assert not await repository.is_intact(tmp_path / "nowhere", name)


async def test_patches_apply_in_order_and_equal_results_are_one_tree(tmp_path: Path) -> None:
    repository = SourceRepository(tmp_path / "r")
    commit, base = await repository.import_folder(source(tmp_path / "s"))
    first = canonical(b"--- a/a.txt\n+++ b/a.txt\n@@ -1 +1 @@\n-one\n+1\n")
    second = canonical(b"--- a/a.txt\n+++ b/a.txt\n@@ -3 +3 @@\n-three\n+3\n")
    ours = await repository.tree_with(commit, [first, second], EVERYTHING, tmp_path / "t1")
    theirs = await repository.tree_with(commit, [second, first], EVERYTHING, tmp_path / "t2")
    assert ours == theirs != base
    assert (tmp_path / "t1" / "a.txt").read_text() == "1\ntwo\n3\n"
    whole = canonical(await repository.diff(commit, ours))
    again = await repository.tree_with(commit, [whole], EVERYTHING, tmp_path / "t3")
    assert again == ours


async def test_a_patch_whose_place_has_moved_is_merged(tmp_path: Path) -> None:
    """Three-way, where the patch says which version it was made for."""
    folder = tmp_path / "s"
    folder.mkdir()
    (folder / "a.txt").write_text("".join(f"{n}\n" for n in range(30)))
    repository = SourceRepository(tmp_path / "r")
    commit, _ = await repository.import_folder(folder)
    (folder / "a.txt").write_text("".join(f"{n}\n" for n in range(30)).replace("20\n", "twenty\n"))
    changed, _ = await repository.import_folder(folder)
    late = canonical(await repository.diff(commit, changed))
    early = canonical(
        b"--- a/a.txt\n+++ b/a.txt\n@@ -18,3 +18,4 @@\n 17\n-18\n+eighteen\n+and a half\n 19\n"
    )
    await repository.tree_with(commit, [early, late], EVERYTHING, tmp_path / "t")
    text = (tmp_path / "t" / "a.txt").read_text()
    assert "eighteen\nand a half\n19\ntwenty\n" in text


@pytest.mark.parametrize(
    "patch",
    [
        b"--- a/a.txt\n+++ b/a.txt\n@@ -1 +1 @@\n-four\n+4\n",
        b"--- a/none.txt\n+++ b/none.txt\n@@ -1 +1 @@\n-one\n+1\n",
        b"--- /dev/null\n+++ b/../../escaped.txt\n@@ -0,0 +1 @@\n+x\n",
        b"--- /dev/null\n+++ b/.git/config\n@@ -0,0 +1 @@\n+x\n",
        b"--- /dev/null\n+++ b//etc/escaped.txt\n@@ -0,0 +1 @@\n+x\n",
    ],
)
async def test_git_refuses_what_does_not_apply_or_escapes(tmp_path: Path, patch: bytes) -> None:
    """Even if the scope check had let it pass."""
    repository = SourceRepository(tmp_path / "r")
    commit, _ = await repository.import_folder(source(tmp_path / "s"))
    with pytest.raises((PatchDoesNotApply, PatchOutOfScope)):
        await repository.tree_with(commit, [canonical(patch)], EVERYTHING, tmp_path / "t")
    assert not [name for _, _, names in os.walk(tmp_path) for name in names if "escaped" in name]


async def test_the_scope_is_checked_again_on_what_changed(tmp_path: Path) -> None:
    repository = SourceRepository(tmp_path / "r")
    commit, _ = await repository.import_folder(source(tmp_path / "s"))
    link = canonical(
        b"diff --git a/l b/l\nnew file mode 120000\nindex 0000000..1111111\n"
        b"--- /dev/null\n+++ b/l\n@@ -0,0 +1 @@\n+/etc/passwd\n\\ No newline at end of file\n"
    )
    with pytest.raises(PatchOutOfScope, match="symbolic link"):
        await repository.tree_with(commit, [link], EVERYTHING, tmp_path / "t")
    edit = canonical(b"--- a/a.txt\n+++ b/a.txt\n@@ -1 +1 @@\n-one\n+1\n")
    with pytest.raises(PatchOutOfScope, match="not editable"):
        await repository.tree_with(commit, [edit], Scope(editable=("*.c",)), tmp_path / "t")


async def test_a_tree_cannot_make_git_run_its_own_configuration(tmp_path: Path) -> None:
    """Code under test may put a .git into its tree; no later command of ours looks into it."""
    repository = SourceRepository(tmp_path / "r")
    commit, name = await repository.import_folder(source(tmp_path / "s"))
    tree = tmp_path / "tree"
    await repository.check_out(commit, tree)
    await anyio.run_process(["git", "init", "-q", str(tree)])
    config = tree / ".git" / "config"
    config.write_text(f"[core]\n fsmonitor = touch {tmp_path}/pwned\n")
    patch = canonical(b"--- a/a.txt\n+++ b/a.txt\n@@ -1 +1 @@\n-one\n+1\n")
    assert await repository.is_intact(tree, name)
    await repository.apply(tree, patch, EVERYTHING)
    assert not (tmp_path / "pwned").exists()


async def test_what_git_cannot_fetch_is_a_problem_of_the_target(tmp_path: Path) -> None:
    repository = SourceRepository(tmp_path / "r")
    with pytest.raises(ConfigError, match=r"source\.git"):
        await repository.import_git(str(tmp_path / "nowhere"), "v1")
    assert not await repository.has("0" * 40)


async def test_without_git_the_fix_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(PrerequisiteError, match="apt-get install git"):
        await SourceRepository(tmp_path / "r").import_folder(source(tmp_path / "s"))


def test_a_tree_without_permissions_is_removed(tmp_path: Path) -> None:
    folder = source(tmp_path / "s")
    (folder / "link").symlink_to(tmp_path)
    (folder / "sub").chmod(0)
    remove_tree(folder)
    assert not folder.exists()
    assert tmp_path.exists()
    remove_tree(folder)
