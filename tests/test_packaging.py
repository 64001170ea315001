"""What is built and installed: every package, every plug-in, every file that a user needs."""

import os
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
PLUGIN_FOLDERS = ("backends", "profilers", "strategies")
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
SETUPTOOLS = PROJECT["tool"]["setuptools"]


def packages_on_disk() -> Iterator[str]:
    """Every folder with Python files that ships, under the name by which it is imported."""
    for top, package in [("aiopt", "aiopt"), *((name, f"aiopt.{name}") for name in PLUGIN_FOLDERS)]:
        for folder, names, files in os.walk(ROOT / top):
            names[:] = [
                n for n in names if n != "__pycache__" and not (Path(folder) / n).is_symlink()
            ]
            if any(name.endswith(".py") for name in files):
                inner = Path(folder).relative_to(ROOT / top).parts
                yield ".".join([package, *inner])


def modules_on_disk() -> set[str]:
    """Their files, as a wheel names them."""
    found = set()
    for package in packages_on_disk():
        parts = package.split(".")
        linked = len(parts) > 1 and parts[1] in PLUGIN_FOLDERS
        folder = ROOT.joinpath(*parts[1:]) if linked else ROOT.joinpath(*parts)
        found |= {f"{package.replace('.', '/')}/{file.name}" for file in folder.glob("*.py")}
    return found


def test_every_package_on_disk_is_listed() -> None:
    """An editable install sees an unlisted one anyway, and the wheel lacks it without a word."""
    assert sorted(packages_on_disk()) == sorted(SETUPTOOLS["packages"])


@pytest.mark.parametrize("name", PLUGIN_FOLDERS)
def test_links_say_what_the_mapping_says(name: str) -> None:
    """Tools that only read files follow the link, setuptools the mapping."""
    mapping = SETUPTOOLS["package-dir"]
    assert mapping[f"aiopt.{name}"] == name
    link = ROOT / "aiopt" / name
    if not link.is_symlink():
        pytest.skip("a checkout without symbolic links")
    assert os.readlink(link) == f"../{name}"


@pytest.mark.parametrize("name", PLUGIN_FOLDERS)
def test_no_module_hides_a_plugin_folder(name: str) -> None:
    """`aiopt/backends.py` would win over the package in some tools and lose in others."""
    assert not (ROOT / "aiopt" / f"{name}.py").exists()


ENTRIES = [
    (group, name, value)
    for group, entries in PROJECT["project"]["entry-points"].items()
    for name, value in entries.items()
]


@pytest.mark.parametrize(("group", "name", "value"), ENTRIES)
def test_every_entry_point_loads_from_its_group(group: str, name: str, value: str) -> None:
    """What pyproject.toml names is there, in the package of its kind."""
    module, _, attribute = value.partition(":")
    found = getattr(import_module(module), attribute)
    assert found.__module__.startswith(f"{group}.") or group == "aiopt.targets"


def test_the_command_is_there() -> None:
    """`aiopt` points at something that can be called."""
    module, _, attribute = PROJECT["project"]["scripts"]["aiopt"].partition(":")
    assert callable(getattr(import_module(module), attribute))


def test_every_import_is_a_dependency() -> None:
    """What a fresh environment would lack is found here and not by the first user."""
    declared = {
        "".join(c for c in requirement.partition(">")[0].partition("[")[0] if c != " ").lower()
        for requirement in PROJECT["project"]["dependencies"]
    }
    optional = {
        requirement.partition(">")[0].lower()
        for extra in PROJECT["project"].get("optional-dependencies", {}).values()
        for requirement in extra
    }
    names = {"attr": "attrs", "sqlite_utils": "sqlite-utils"}
    imported = set()
    for file in modules_on_disk():
        parts = Path(file).parts[1:] if Path(file).parts[1] in PLUGIN_FOLDERS else Path(file).parts
        for line in ROOT.joinpath(*parts).read_text(encoding="utf-8").splitlines():
            words = line.split()
            if len(words) > 1 and words[0] in ("import", "from") and not words[1].startswith("."):
                top = words[1].partition(".")[0].strip(",")
                if words[0] == "import" or (len(words) > 2 and words[2] == "import"):
                    imported.add(names.get(top, top))
    foreign = imported - set(sys.stdlib_module_names) - {"aiopt"}
    assert foreign <= declared | optional


@pytest.mark.parametrize("module", ["aiopt", "aiopt.cli"])
def test_importing_is_cheap(module: str) -> None:
    """`aiopt --help` and `import aiopt` pay for neither numpy nor scipy."""
    heavy = "{'numpy', 'scipy', 'sqlite_utils'}"
    code = f"import sys, {module}; print(*sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with wheel and sdist of a copy of what git would ship, built without a network."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    tree = tmp_path_factory.mktemp("tree")
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listing, cwd=ROOT, capture_output=True, check=True).stdout.split(b"\0")
    for name in filter(None, names):
        source, copy = ROOT / os.fsdecode(name), tree / os.fsdecode(name)
        if not source.is_symlink() and not source.is_file():
            continue
        copy.parent.mkdir(parents=True, exist_ok=True)
        if source.is_symlink():
            copy.symlink_to(os.readlink(source))
        else:
            copy.write_bytes(source.read_bytes())
    out = tmp_path_factory.mktemp("dist")
    done = subprocess.run(
        [sys.executable, "tools/dist.py", out], cwd=tree, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return out


@pytest.mark.slow
def test_the_wheel_has_every_module(built: Path) -> None:
    """All files of the three folders at their import names, the marker for types, and no tests."""
    (wheel,) = built.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert modules_on_disk() <= names
    assert "aiopt/py.typed" in names
    tops = {name.partition("/")[0] for name in names}
    assert tops == {"aiopt", wheel.name.removesuffix("-py3-none-any.whl") + ".dist-info"}


@pytest.mark.slow
def test_the_sdist_has_what_a_checkout_has(built: Path) -> None:
    """Targets, examples, tests and the texts come along; results stay at home."""
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    for file in (
        "README.md",
        "program.md",
        "CHANGELOG.md",
        "LICENSE",
        "Makefile",
        "pyproject.toml",
    ):
        assert file in names
    for file in (
        "targets/pyserver/target.toml",
        "targets/pyserver/src/server.py",
        "examples/demo/run.sh",
        "examples/plugins/pyproject.toml",
        "tests/test_packaging.py",
        "backends/local.py",
    ):
        assert file in names
    assert not any(name.startswith("results/") for name in names)
