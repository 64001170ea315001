"""pyserver is what its table says: checks find wrong patches, right ones change no answer."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from aiopt.candidate import canonical, hypothesis_of, scope_problems
from aiopt.errors import PatchError
from aiopt.target import load_target

from .measure_pool import TARGET, end_helpers, make_tree, run_once

TABLE: dict[str, dict[str, Any]] = tomllib.loads(
    Path(__file__).with_name("pyserver_expected.toml").read_text()
)["patch"]
SMALL = {"LOAD_MIX": "mixed", "LOAD_REQUESTS": "200", "LOAD_WARMUP": "40", "LOAD_SEED": "3"}


def names(**wanted: Any) -> list[str]:
    """Patches whose entry has these values."""
    return [
        name
        for name, entry in TABLE.items()
        if all(entry.get(key) == value for key, value in wanted.items())
    ]


def patch_file(name: str) -> Path:
    return TARGET / "patches" / f"{name}.patch"


def run_checks(tree: Path, timeout: float = 60) -> int:
    """The exit code of test.sh. Whatever it started is gone afterwards."""
    with subprocess.Popen(
        [str(TARGET / "test.sh")],
        cwd=tree,
        env={**os.environ, "PYTHON": sys.executable, "SOURCE_DIR": str(tree)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as process:
        try:
            return process.wait(timeout)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def baseline(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What a small run of the unmodified source prints."""
    folder = tmp_path_factory.mktemp("baseline")
    return run_once(make_tree(folder / "tree", []), folder / "run", SMALL)


@pytest.fixture(autouse=True)
def no_helper_stays() -> Iterator[None]:
    yield
    end_helpers()


def test_the_table_names_every_patch() -> None:
    assert sorted(TABLE) == sorted(file.stem for file in (TARGET / "patches").glob("*.patch"))
    assert list(TABLE) == sorted(TABLE)


def test_the_table_has_a_patch_of_every_kind() -> None:
    assert len(names(kind="cpu win")) >= 5
    assert len(names(kind="memory win")) >= 2
    assert len(names(kind="trade-off")) >= 1
    assert len(names(kind="neutral")) >= 2
    assert len(names(kind="regression")) >= 2
    assert len(names(kind="decoy")) >= 3


def test_the_target_is_well_formed() -> None:
    target = load_target(TARGET)
    assert target.primaries == ("cpu_seconds", "peak_rss_mb")
    assert target.main_workloads == ("mixed",)
    assert target.guard_workloads == ("writes",)


@pytest.mark.parametrize("name", TABLE)
def test_a_patch_gives_its_reason(name: str) -> None:
    assert len(hypothesis_of(patch_file(name).read_bytes()).split()) >= 8


@pytest.mark.parametrize("name", TABLE)
def test_a_patch_is_in_scope_or_not(name: str) -> None:
    scope = load_target(TARGET).scope
    try:
        patch = canonical(patch_file(name).read_bytes())
        inside = not list(scope_problems(patch.paths, patch.modes, scope))
    except PatchError:
        inside = False
    assert inside == (TABLE[name].get("rejected") != "out_of_scope")


@pytest.mark.parametrize("name", TABLE)
def test_a_patch_applies_or_not(name: str, tmp_path: Path) -> None:
    if TABLE[name].get("rejected") == "out_of_scope":
        pytest.skip("refused before it is applied")
    tree = shutil.copytree(TARGET / "src", tmp_path / "tree")
    subprocess.run(["git", "init", "-q"], cwd=tree, check=True)
    applied = subprocess.run(
        ["git", "apply", "--check", str(patch_file(name))], cwd=tree, capture_output=True
    )
    assert (applied.returncode == 0) == ("rejected" not in TABLE[name])


def test_kept_patches_apply_in_the_order_of_their_names_and_in_reverse(tmp_path: Path) -> None:
    kept = [name for name, entry in TABLE.items() if entry["in_order"][0] == "keep"]
    kept += ["17-page-key", "18-page-revision"]
    make_tree(tmp_path / "forward", sorted(kept))
    make_tree(tmp_path / "backward", sorted(kept, reverse=True))
    for file in (tmp_path / "forward").glob("*.py"):
        assert file.read_text() == (tmp_path / "backward" / file.name).read_text()


def test_of_two_patches_that_conflict_the_second_no_longer_applies(tmp_path: Path) -> None:
    make_tree(tmp_path / "second", ["03-orders-join"])
    with pytest.raises(subprocess.CalledProcessError):
        make_tree(tmp_path / "both", ["02-orders-items-in", "03-orders-join"])


def test_a_broken_build_is_found(tmp_path: Path) -> None:
    for name in names(fails="build"):
        with pytest.raises(subprocess.CalledProcessError, match=r"build\.sh"):
            make_tree(tmp_path / name, [name])


@pytest.mark.slow
def test_the_source_passes_its_checks(tmp_path: Path) -> None:
    assert run_checks(make_tree(tmp_path / "tree", [])) == 0


@pytest.mark.slow
def test_all_kept_patches_together_pass_the_checks(tmp_path: Path) -> None:
    kept = [name for name, entry in TABLE.items() if entry["in_order"][0] == "keep"]
    tree = make_tree(tmp_path / "tree", [*kept, "17-page-key", "18-page-revision"])
    assert run_checks(tree) == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", names(fails="test"))
def test_the_checks_find_a_wrong_patch(name: str, tmp_path: Path) -> None:
    assert run_checks(make_tree(tmp_path / "tree", [name])) == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", names(fails="test timeout"))
def test_a_patch_that_hangs_never_ends_the_checks(name: str, tmp_path: Path) -> None:
    with pytest.raises(subprocess.TimeoutExpired):
        run_checks(make_tree(tmp_path / "tree", [name]), timeout=5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [name for name, entry in TABLE.items() if entry.get("same_answers", True)]
)
def test_a_right_patch_changes_no_answer(
    name: str, tmp_path: Path, baseline: dict[str, str]
) -> None:
    printed = run_once(make_tree(tmp_path / "tree", [name]), tmp_path / "run", SMALL)
    assert printed["response_digest"] == baseline["response_digest"]
    assert float(printed["error_rate"]) == 0


@pytest.mark.slow
def test_the_load_is_what_it_claims(tmp_path: Path) -> None:
    target = load_target(TARGET)
    printed = run_once(
        make_tree(tmp_path / "tree", []), tmp_path / "run", dict(target.workloads["mixed"].env)
    )
    assert int(printed["clients"]) == 4
    assert int(printed["total_requests"]) >= 1000
    assert re.fullmatch(r"[0-9a-f]{64}", printed["response_digest"])
    missing = set(target.metrics) - set(printed)
    assert not missing
    assert 0.1 < float(printed["cpu_seconds"]) < 60
    assert 30 < float(printed["peak_rss_mb"]) < 100
    assert os.listdir(tmp_path / "run") == ["audit.log"]


@pytest.mark.slow
def test_a_wrong_answer_changes_the_digest(tmp_path: Path, baseline: dict[str, str]) -> None:
    tree = make_tree(tmp_path / "tree", ["01-orders-single-select"])
    printed = run_once(tree, tmp_path / "run", SMALL)
    assert printed["response_digest"] != baseline["response_digest"]


@pytest.mark.slow
def test_a_server_that_refuses_raises_the_error_rate(tmp_path: Path) -> None:
    tree = make_tree(tmp_path / "tree", [])
    server = tree / "server.py"
    server.write_text(server.read_text().replace('("GET", "/orders"): self.get_orders,', ""))
    assert float(run_once(tree, tmp_path / "run", SMALL)["error_rate"]) > 0.05
