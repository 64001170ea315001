"""Events for tests: plain ones by `make`, arbitrary ones by `events()`.

`python tests/factories.py` writes the frozen samples of `tests/data/events` that are missing. It
never touches one that is there: what was released once has to be read for ever.
"""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

import attrs
import orjson
from hypothesis import strategies as st

from aiopt.codec import encode
from aiopt.events import EVENT_TYPES, Event

SAMPLES = Path(__file__).parent / "data" / "events"

E = TypeVar("E")

_TEXTS = {
    "base_commit": "5f0c3b1e9d7a48260b1c2d3e4f5061728394a5b6",
    "campaign": "campaign-0001~3k9fa2c",
    "experiment": "exp-0007~3k9fa2c",
    "environment": "local",
    "workload": "mixed",
    "metric": "p99",
    "run": "screen:mixed:3:0:B",
}


def make(cls: type[E], **changes: Any) -> E:
    """A plain event (or a value in one) of this class, always the same but for `changes`."""
    fields = {
        field.name: _plain(field.name, field.type)
        for field in _fields(cls)
        if field.name not in changes
    }
    return cls(**fields, **changes)


def _fields(cls: Any) -> Any:
    return attrs.fields(attrs.resolve_types(cls))


def _plain(name: str, kind: Any) -> Any:
    origin, args = get_origin(kind), get_args(kind)
    if origin is Literal:
        return args[0]
    if origin in (Union, UnionType):
        return _plain(name, args[0])
    if origin is tuple:
        return (_plain(name, args[0]),)
    if origin is dict:
        return {"key": "value"} if args[1] is Any else {"key": _plain(name, args[1])}
    if kind is str:
        if any(word in name for word in ("digest", "log", "stacks", "artifact")):
            return "0123456789abcdef" * 4
        if "tree" in name or "commit" in name:
            return "5f0c3b1e9d7a48260b1c2d3e4f5061728394a5b6"
        return _TEXTS.get(name, f"some {name}")
    plain = {int: 3, float: 1.25, bool: True}
    return plain[kind] if kind in plain else make(kind)


texts = st.text(max_size=20)
numbers = st.floats(allow_nan=False, allow_infinity=False)
whole_numbers = st.integers(-(2**63), 2**64 - 1)
json_values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | whole_numbers | numbers | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)


def arbitrary(kind: Any) -> st.SearchStrategy[Any]:
    """Any value of an annotation that is found in events."""
    origin, args = get_origin(kind), get_args(kind)
    if origin is Literal:
        return st.sampled_from(args)
    if origin in (Union, UnionType):
        return st.one_of(*map(arbitrary, args))
    if origin is tuple:
        return st.lists(arbitrary(args[0]), max_size=3).map(tuple)
    if origin is dict:
        return st.dictionaries(texts, arbitrary(args[1]), max_size=3)
    if attrs.has(kind):
        fields = _fields(kind)
        return st.builds(kind, **{field.name: arbitrary(field.type) for field in fields})
    known = {
        str: texts,
        int: whole_numbers,
        float: numbers,
        bool: st.booleans(),
        Any: json_values,
        type(None): st.none(),
    }
    return known[kind]


def events() -> st.SearchStrategy[Event]:
    """Any event of any type."""
    return st.sampled_from(EVENT_TYPES).flatmap(arbitrary)


def appends() -> st.SearchStrategy[list[list[tuple[str, Event]]]]:
    """What may be appended to a log, transaction by transaction."""
    streams = st.sampled_from(["campaign-0001~a", "exp-0001~a", "exp-0002~b"])
    return st.lists(st.lists(st.tuples(streams, events()), max_size=4), max_size=4)


def ticking(start: datetime = datetime(2026, 1, 1, tzinfo=UTC)) -> Callable[[], datetime]:
    """A clock that is one second later each time it is looked at."""
    seconds = iter(range(10**9))
    return lambda: start + timedelta(seconds=next(seconds))


def write_missing_samples() -> None:
    SAMPLES.mkdir(parents=True, exist_ok=True)
    for cls in EVENT_TYPES:
        name, version, payload = encode(make(cls))
        path = SAMPLES / f"{name}.v{version}.json"
        if not path.exists():
            path.write_bytes(
                orjson.dumps(
                    orjson.loads(payload), option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE
                )
            )


if __name__ == "__main__":
    write_missing_samples()
