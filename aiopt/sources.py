"""Source trees: one private git repository per log, and one checked-out tree per candidate.

The repository lies beside the log, in a folder that can be deleted at any time: commits and trees
are named by their content, so preparing the same source again gives the same names. A candidate's
tree contains no `.git` at all: the index is kept outside and every git command names repository,
index and tree explicitly. Code under test can therefore neither rewrite history nor lead a later
git command of ours into a repository of its own, whose configuration would be executed.
"""

import hashlib
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import anyio
from attrs import frozen

from aiopt.candidate import CanonicalPatch, scope_problems
from aiopt.errors import (
    AiOptError,
    ConfigError,
    PatchDoesNotApply,
    PatchOutOfScope,
    PrerequisiteError,
)
from aiopt.target import Scope

__all__ = ["SourceRepository", "remove_tree"]

# Dates and names are fixed: the commit of a source depends on its content alone.
_IDENTITY = {
    "GIT_AUTHOR_NAME": "aiopt",
    "GIT_AUTHOR_EMAIL": "aiopt",
    "GIT_COMMITTER_NAME": "aiopt",
    "GIT_COMMITTER_EMAIL": "aiopt",
    "GIT_AUTHOR_DATE": "2000-01-01T00:00:00Z",
    "GIT_COMMITTER_DATE": "2000-01-01T00:00:00Z",
}
_NO_USER_CONFIG = {
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_CONFIG_SYSTEM": "/dev/null",
    "GIT_TERMINAL_PROMPT": "0",
    "LC_ALL": "C",
}


@frozen(kw_only=True)
class _Ran:
    code: int
    stdout: bytes
    stderr: str


class SourceRepository:
    """The private repository in `root` (a folder that need not exist yet).

    `marker` is put into the environment of every git command as AIOPT_JOB, so that whoever comes
    after a dead controller finds and ends those that it left.
    """

    def __init__(self, root: Path, marker: str = "") -> None:
        self._marker = marker
        self._git_dir = root / "source.git"
        self._indexes = root / "index"

    async def _git(
        self,
        *argv: str,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        stdin: bytes = b"",
        check: bool = True,
    ) -> _Ran:
        command = ["git", f"--git-dir={self._git_dir}", *argv]
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("GIT_")},
            **_NO_USER_CONFIG,
            **_IDENTITY,
            "AIOPT_JOB": self._marker,
            **(env or {}),
        }
        try:
            done = await anyio.run_process(
                command, input=stdin, check=False, cwd=cwd, env=environment
            )
        except FileNotFoundError:
            raise PrerequisiteError("git is not installed", "apt-get install git") from None
        ran = _Ran(
            code=done.returncode,
            stdout=done.stdout,
            stderr=done.stderr.decode(errors="replace").strip(),
        )
        if check and ran.code != 0:
            raise AiOptError(f"{' '.join(command)}: exit {ran.code}: {ran.stderr}")
        return ran

    def _exists(self) -> bool:
        return (self._git_dir / "HEAD").exists()

    def unlock(self) -> None:
        """Remove the lock files of git commands that were killed; nothing else may be using it."""
        for folder in (self._indexes, self._git_dir):
            for lock in folder.rglob("*.lock"):
                lock.unlink()

    async def _create(self) -> None:
        if not self._exists():
            self._make_folders()
            await self._git("init", "--quiet", "--bare", str(self._git_dir))

    def _make_folders(self) -> None:
        self._git_dir.mkdir(parents=True, exist_ok=True)
        self._indexes.mkdir(parents=True, exist_ok=True)

    async def import_folder(self, folder: Path) -> tuple[str, str]:
        """Commit and tree of a folder's files (what its .gitignore
        files leave), deterministically.
        """
        await self._create()
        env = self._fresh_index(folder)
        await self._git(f"--work-tree={folder}", "add", "--all", ".", cwd=folder, env=env)
        tree = (await self._git("write-tree", env=env)).stdout.decode().strip()
        message = b"Source as imported by aiopt\n"
        commit = (await self._git("commit-tree", tree, stdin=message)).stdout.decode().strip()
        await self._git("update-ref", f"refs/aiopt/{commit}", commit)
        return commit, tree

    async def import_git(self, url: str, revision: str) -> tuple[str, str]:
        """Commit and tree of a revision of another repository.

        Raises:
            ConfigError: the repository or the revision cannot be had.
        """
        await self._create()
        shallow = await self._git("fetch", "--quiet", "--depth=1", url, revision, check=False)
        if shallow.code != 0:  # servers may refuse a bare commit id: then all of it is needed
            everything = await self._git(
                "fetch",
                "--quiet",
                url,
                "+refs/heads/*:refs/origin/*",
                "+refs/tags/*:refs/tags/*",
                check=False,
            )
            if everything.code != 0:
                raise ConfigError(url, [("source.git", everything.stderr or shallow.stderr)])
            name = revision
        else:
            name = "FETCH_HEAD"
        found = await self._git("rev-parse", "--verify", f"{name}^{{commit}}", check=False)
        if found.code != 0:
            raise ConfigError(url, [("source.revision", f"{revision}: {found.stderr}")])
        commit = found.stdout.decode().strip()
        await self._git("update-ref", f"refs/aiopt/{commit}", commit)
        tree = (await self._git("rev-parse", f"{commit}^{{tree}}")).stdout.decode().strip()
        return commit, tree

    async def has(self, commit: str) -> bool:
        if not self._exists():
            return False
        return (await self._git("cat-file", "-e", f"{commit}^{{commit}}", check=False)).code == 0

    def _index(self, folder: Path) -> Path:
        return self._indexes / hashlib.sha256(str(folder).encode()).hexdigest()[:16]

    def _env(self, folder: Path) -> dict[str, str]:
        return {"GIT_INDEX_FILE": str(self._index(folder))}

    def _fresh_index(self, folder: Path) -> dict[str, str]:
        self._index(folder).unlink(missing_ok=True)
        return self._env(folder)

    def _is_checked_out(self, folder: Path) -> bool:
        return folder.is_dir() and self._index(folder).exists()

    async def check_out(self, commit: str, folder: Path) -> None:
        """Fill an empty folder with the files of a commit."""
        _make_empty(folder)
        env, tree = self._fresh_index(folder), f"--work-tree={folder}"
        await self._git("read-tree", commit, env=env)
        await self._git(tree, "checkout-index", "--all", "--index", cwd=folder, env=env)

    async def apply(self, folder: Path, patch: CanonicalPatch, scope: Scope) -> str:
        """Apply a patch to a checked-out tree; returns the id of the tree that results.

        A patch whose context has moved is merged three-way where its index lines allow that. The
        scope is checked again on what git changed.

        Raises:
            PatchDoesNotApply: with git's words.
            PatchOutOfScope: it changed something that it may not.
        """
        env = self._env(folder)
        before = (await self._git("write-tree", env=env)).stdout.decode().strip()
        zero = ["--unidiff-zero"] if patch.zero_context else []
        argv = [f"--work-tree={folder}", "apply", "--index", "--whitespace=nowarn", *zero]
        done = await self._git(*argv, cwd=folder, env=env, stdin=patch.text, check=False)
        if done.code != 0:
            merged = await self._git(
                *argv, "--3way", cwd=folder, env=env, stdin=patch.text, check=False
            )
            if merged.code != 0:
                raise PatchDoesNotApply(done.stderr)
        tree = (await self._git("write-tree", env=env)).stdout.decode().strip()
        changed = await self._git("diff-tree", "-r", "-z", "--raw", "--no-renames", before, tree)
        paths, modes = _parse_raw_diff(changed.stdout)
        problems = list(scope_problems(paths, modes, scope))
        if problems:
            raise PatchOutOfScope("; ".join(problems))
        return tree

    async def diff(self, before: str, after: str) -> bytes:
        """The unified diff between two trees or commits, as `git apply` takes it."""
        done = await self._git("diff", "--full-index", "--no-renames", before, after)
        return done.stdout

    async def tree_with(
        self, commit: str, patches: Sequence[CanonicalPatch], scope: Scope, folder: Path
    ) -> str:
        """Check a commit out and apply patches in order; returns the id of the resulting tree.

        Raises:
            PatchDoesNotApply: with the place of the patch.
            PatchOutOfScope: as `apply`.
        """
        await self.check_out(commit, folder)
        tree = (await self._git("write-tree", env=self._env(folder))).stdout.decode().strip()
        for place, patch in enumerate(patches):
            try:
                tree = await self.apply(folder, patch, scope)
            except PatchDoesNotApply as error:
                error.place = place
                raise
        return tree

    async def is_intact(self, folder: Path, tree: str) -> bool:
        """Whether `folder` holds this tree, wholly applied, and none of its files was modified."""
        if not self._is_checked_out(folder):
            return False
        env = self._env(folder)
        written = await self._git("write-tree", env=env, check=False)
        if written.stdout.decode().strip() != tree:
            return False  # cut off between the patches of a genome
        done = await self._git(
            f"--work-tree={folder}", "diff-files", "--quiet", cwd=folder, env=env, check=False
        )
        return done.code == 0


def _parse_raw_diff(raw: bytes) -> tuple[tuple[str, ...], frozenset[str]]:
    """Paths, and the modes that they have afterwards, of `git diff-tree -z --raw`."""
    fields = raw.decode(errors="surrogateescape").split("\0")
    paths, modes = [], set()
    for header, path in zip(fields[0::2], fields[1::2], strict=False):
        _, new_mode, *_ = header.lstrip(":").split(" ")
        paths.append(path)
        modes.add(new_mode)
    return tuple(paths), frozenset(modes)


def _make_empty(folder: Path) -> None:
    remove_tree(folder)
    folder.mkdir(parents=True)


def remove_tree(folder: Path) -> None:
    """Remove a folder, also where code under test has taken permissions away."""
    if not folder.exists():
        return
    folder.chmod(0o700)
    for root, names, _ in os.walk(folder):
        for name in names:
            path = Path(root) / name
            if not path.is_symlink():
                path.chmod(0o700)
    shutil.rmtree(folder)
