"""A fitness of the user's own, found by its name."""

import importlib
import importlib.util
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from aiopt.errors import ConfigError

__all__ = ["UserFunction", "user_function"]

UserFunction = Callable[[Mapping[str, float]], float]
"""From log ratios to the baseline, by the names of metrics and of `PROFILER:SCALAR`, positive is
better, to a number of which more is better. What was not measured is not among them.
"""


def user_function(name: str) -> UserFunction:
    """`MODULE:FUNCTION`, of a module that can be imported, or `PATH.py:FUNCTION`.

    Raises:
        ConfigError: there is no such module, file or function.
    """
    place, _, attribute = name.rpartition(":")
    try:
        module = (
            _from_file(Path(place)) if place.endswith(".py") else importlib.import_module(place)
        )
    except Exception as error:
        problem = f"{place} does not import: {type(error).__name__}: {error}"
        if Path(f"{place}.py").is_file():
            problem += f"; {place}.py is a file here, so {place}.py:{attribute} would do"
        raise ConfigError("fitness", [(name, problem)]) from error
    found = getattr(module, attribute, None)
    if not callable(found):
        problem = f"there is no function {attribute!r} in {place}"
        raise ConfigError("fitness", [(name, problem)])
    function: UserFunction = found
    return function


def _from_file(path: Path) -> Any:
    """As it is now; a strategy asks for it again and again, so it is read once for each time that
    it was written.
    """
    path = path.resolve()
    stamp = path.stat().st_mtime_ns
    name = f"_aiopt_fitness_{path.stem}_{abs(hash((path, stamp)))}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.modules[name] = module
    return module
