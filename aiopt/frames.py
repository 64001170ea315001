"""The columns of a log in the tables of pandas, polars and Arrow, if these are installed.

A row is a run. Beside its metrics it has names in place of the numbers of `aiopt.columnar.RUN`.
"""

from collections.abc import Sequence
from importlib import import_module
from typing import Any

import numpy as np

from aiopt.columnar import PAIR_PURPOSES, Columns
from aiopt.errors import PrerequisiteError

__all__ = ["to_arrow", "to_pandas", "to_polars"]

_NUMBERS = ("index", "attempt", "position")


def _imported(name: str, package: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        raise PrerequisiteError(
            f"{package} cannot be imported ({error})", f"pip install {package}"
        ) from error


def _named(columns: Columns) -> dict[str, tuple[Any, Sequence[str]]]:
    """Columns of names: a place for each run, and the names."""
    experiment = columns.run("experiment")
    campaign = columns.experiments["campaign"][experiment]
    return {
        "campaign": (campaign, columns.campaigns),
        "experiment": (experiment, columns.texts["stream"]),
        "purpose": (columns.run("purpose"), PAIR_PURPOSES),
        "workload": (columns.run("workload"), columns.workloads),
        "arm": (columns.run("arm"), ("A", "B")),
    }


def _plain(columns: Columns) -> dict[str, Any]:
    """Whether the pair counts, and all that are numbers."""
    return {
        **{name: columns.run(name) for name in _NUMBERS},
        "void": columns.voided(),
        **{name: columns[name] for name in columns.metrics},
    }


def to_pandas(columns: Columns) -> Any:
    """See `Columns.to_pandas`."""
    pandas = _imported("pandas", "pandas")
    names = {
        name: pandas.Categorical.from_codes(places, categories=list(texts))
        for name, (places, texts) in _named(columns).items()
    }
    return pandas.DataFrame({**names, **_plain(columns)})


def to_polars(columns: Columns) -> Any:
    """See `Columns.to_polars`."""
    polars = _imported("polars", "polars")
    names = {
        name: polars.Series(name, list(texts), dtype=polars.String).gather(places.astype(np.uint32))
        for name, (places, texts) in _named(columns).items()
    }
    return polars.DataFrame({**names, **_plain(columns)})


def to_arrow(columns: Columns) -> Any:
    """See `Columns.to_arrow`."""
    arrow = _imported("pyarrow", "pyarrow")
    names = {
        name: arrow.DictionaryArray.from_arrays(
            arrow.array(places.astype(np.int32)), arrow.array(list(texts), arrow.string())
        )
        for name, (places, texts) in _named(columns).items()
    }
    return arrow.table({**names, **_plain(columns)})
