"""Columns as tables of other libraries, where these are installed."""

import sys
from importlib.util import find_spec
from typing import Any

import pytest

from aiopt.columnar import Columns
from aiopt.errors import PrerequisiteError
from aiopt.events import PairVoided
from tests.factories import make
from tests.test_columnar import BEGIN, CALIBRATION, CANDIDATE, Items, gathered, run


def installed(name: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(find_spec(name) is None, reason=f"{name} is not installed")


@pytest.fixture(scope="module")
def columns() -> Columns:
    pair: dict[str, Any] = {"purpose": "screen", "workload": "mixed", "index": 3, "attempt": 0}
    items: Items = [
        (CALIBRATION, run(metrics={"a": (1.5,)}, purpose="calibration", arm="A")),
        (CANDIDATE, run(metrics={"b": (2.0, 4.0)}, **pair, arm="B")),
        (CANDIDATE, make(PairVoided, **pair)),
    ]
    return gathered([*BEGIN, *items])


NAMES = {
    "campaign": ["cmp-0001~1", "cmp-0001~1"],
    "experiment": ["exp-0001~1", "exp-0002~1"],
    "purpose": ["calibration", "screen"],
    "workload": ["mixed", "mixed"],
    "arm": ["A", "B"],
    "void": [False, True],
}


@installed("pandas")
def test_pandas(columns: Columns) -> None:
    frame = columns.to_pandas()
    assert {name: frame[name].tolist() for name in NAMES} == NAMES
    assert frame["b"].isna().tolist() == [True, False]
    assert frame["b"][1] == 3.0
    assert frame["index"].tolist() == columns["index"].tolist()


@installed("polars")
def test_polars(columns: Columns) -> None:
    frame = columns.to_polars()
    assert {name: frame[name].to_list() for name in NAMES} == NAMES
    assert frame["b"][1] == 3.0
    assert frame["b"].is_nan().to_list() == [True, False]


@installed("pyarrow")
def test_arrow(columns: Columns) -> None:
    table = columns.to_arrow()
    assert {name: table[name].to_pylist() for name in NAMES} == NAMES
    assert table["b"][1].as_py() == 3.0


@pytest.mark.parametrize("name", ["pandas", "polars", "pyarrow"])
def test_what_is_not_installed_is_named_with_the_command_that_installs_it(
    name: str, columns: Columns, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    method = "to_arrow" if name == "pyarrow" else f"to_{name}"
    with pytest.raises(PrerequisiteError, match=f"pip install {name}"):
        getattr(columns, method)()
