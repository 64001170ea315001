"""Events to rows of text and back, for every version of every event that was ever written.

A payload is canonical JSON: keys sorted, no blanks, no NaN, no infinity. Old payloads are never
rewritten: `UPCASTERS` turn the dict of one version into that of the next, step by step, before the
class sees it. Whoever changes a class of event so that its payload changes raises its number in
`SCHEMA_VERSIONS`, writes the upcaster, and adds a sample to `tests/data/events/`.

A `JsonObject` holds JSON values only: a tuple in one comes back as a list.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from math import isfinite
from operator import eq
from typing import Any, get_args, get_origin

import orjson
from attrs import has
from cattrs import Converter
from cattrs.fns import identity
from cattrs.gen import make_dict_structure_fn
from cattrs.preconf.orjson import make_converter

from aiopt.errors import CorruptLogError, UnknownEventError
from aiopt.events import EVENT_TYPES, Event

__all__ = ["SCHEMA_VERSIONS", "UPCASTERS", "Codec", "decode", "encode"]

Upcaster = Callable[[dict[str, Any]], dict[str, Any]]

_CHANGED = {
    "CandidateProposed": 2,
    "CandidateRejected": 2,
    "StageStarted": 2,
    "VerdictReached": 2,
}

SCHEMA_VERSIONS: Mapping[str, int] = {
    cls.__name__: _CHANGED.get(cls.__name__, 1) for cls in EVENT_TYPES
}
"""The version that this aiopt writes, for every type of event."""


def _proposed_by_a_proposer(tree: dict[str, Any]) -> dict[str, Any]:
    """There was no other way: the last patch of the genome was the new one."""
    genome = tree["genome"]
    return {**tree, "operator": "propose", "patch": genome[-1]["digest"] if genome else None}


def _rejected_as_a_whole(tree: dict[str, Any]) -> dict[str, Any]:
    return {**tree, "patch": None, "clashes_with": []}


def _needs_renamed(tree: dict[str, Any]) -> dict[str, Any]:
    renamed = {name: value for name, value in tree.items() if name != "needs"}
    return {**renamed, "pairs_needed": tree.get("needs")}


def _started_without_a_name(tree: dict[str, Any]) -> dict[str, Any]:
    return {**tree, "job": ""}


UPCASTERS: Mapping[tuple[str, int], Upcaster] = {
    ("CandidateProposed", 1): _proposed_by_a_proposer,
    ("CandidateRejected", 1): _rejected_as_a_whole,
    ("StageStarted", 1): _started_without_a_name,
    ("VerdictReached", 1): _needs_renamed,
}
"""(type, version) -> what makes the dict of `version + 1` out of the dict of `version`."""

_OPTIONS = orjson.OPT_SORT_KEYS | orjson.OPT_PASSTHROUGH_DATACLASS | orjson.OPT_PASSTHROUGH_DATETIME


def _object(tree: Any, _: Any) -> dict[str, Any]:
    if not isinstance(tree, dict):
        raise TypeError(f"{tree!r} is no JSON object")
    return tree


def _floats(tree: Any, _: Any) -> dict[str, float]:
    return {key: float(value) for key, value in tree.items()}


def _samples(tree: Any, _: Any) -> dict[str, tuple[float, ...]]:
    return {key: tuple(map(float, values)) for key, values in tree.items()}


# These are JSON as they stand: orjson gets them without a copy, and they come back by hooks that
# spare cattrs' two calls per number.
_PLAIN: Sequence[tuple[Any, Callable[[Any, Any], Any]]] = (
    (dict[str, Any], _object),
    (dict[str, float], _floats),
    (dict[str, tuple[float, ...]], _samples),
)
_AS_IT_IS = (
    *(kind for kind, _ in _PLAIN),
    *(dict[str, str], tuple[str, ...]),
    *(str | None, int | None, float | None),
)


def _holds_values(kind: Any) -> bool:
    return get_origin(kind) is tuple and has(get_args(kind)[0])


def _list_of(kind: Any, converter: Converter) -> Callable[[Any], Any]:
    unstructure = converter.get_unstructure_hook(get_args(kind)[0])
    return lambda values: [unstructure(value) for value in values]


class Codec:
    """Encodes and decodes a closed set of event classes, each with a hook that is compiled once,
    when the first of its class comes.
    """

    def __init__(
        self,
        types: Sequence[type],
        versions: Mapping[str, int],
        upcasters: Mapping[tuple[str, int], Upcaster],
    ) -> None:
        """Raise ValueError if the upcasters leave a gap between version 1 and the current one."""
        converter = make_converter(detailed_validation=False)
        # cattrs knows this function: what it generates does not even call it.
        converter.register_unstructure_hook_func(lambda t: t in _AS_IT_IS, identity)
        converter.register_unstructure_hook_factory(
            _holds_values, lambda kind: _list_of(kind, converter)
        )
        for kind, hook in _PLAIN:
            converter.register_structure_hook_func(partial(eq, kind), hook)
        self._converter, self._upcasters = converter, dict(upcasters)
        self._types = {cls.__name__: cls for cls in types}
        self._versions = {name: versions[name] for name in self._types}
        self._encoders: dict[type, tuple[str, int, Callable[[Any], Any]]] = {}
        self._decoders: dict[str, tuple[int, Callable[[Any, Any], Any], type]] = {}
        for name, version in self._versions.items():
            missing = [n for n in range(1, version) if (name, n) not in upcasters]
            if missing:
                raise ValueError(
                    f"{name} is at version {version} but has no upcaster from {missing}"
                )

    def _encoder(self, cls: type) -> tuple[str, int, Callable[[Any], Any]]:
        """Compiled at the first event of a class: most commands meet few of them."""
        name = cls.__name__
        if self._types.get(name) is not cls:
            raise TypeError(f"{cls.__qualname__} is no class of event")
        hook = self._converter.get_unstructure_hook(cls)
        found = self._encoders[cls] = (name, self._versions[name], hook)
        return found

    def _decoder(self, name: str, version: int) -> tuple[int, Callable[[Any, Any], Any], type]:
        cls = self._types.get(name)
        if cls is None:
            raise UnknownEventError(
                f"event type {name} (version {version}) is unknown to this aiopt,"
                f" which knows {', '.join(sorted(self._types))}; upgrade aiopt to read this log"
            )
        structure: Any = make_dict_structure_fn(
            cls, self._converter, _cattrs_forbid_extra_keys=True
        )
        found = self._decoders[name] = (self._versions[name], structure, cls)
        return found

    def encode(self, event: Any) -> tuple[str, int, str]:
        """Return (type, schema version, payload).

        Raise ValueError for what JSON cannot hold (NaN, infinity, integers beyond 64 bits, halves
        of surrogate pairs, other objects), and TypeError for what is no event.
        """
        cls = event.__class__
        name, version, unstructure = self._encoders.get(cls) or self._encoder(cls)
        tree = unstructure(event)
        try:
            payload = orjson.dumps(tree, _plain, _OPTIONS).decode()
        except orjson.JSONEncodeError as error:
            raise ValueError(f"{name} cannot be written as JSON: {error}") from error
        # orjson writes NaN as null. Only where there are more nulls than fields that are None
        # has anything to be searched.
        if "null" in payload:
            nulls = payload.count("null")
            if nulls != [*tree.values()].count(None) and not _all_finite(tree):
                where, value = next(_not_finite(tree, name))
                raise ValueError(f"{where} is {value}: an event holds finite numbers only")
        return name, version, payload

    def decode(self, type_name: str, schema_version: int, payload: str | bytes) -> Any:
        """Return the event.

        Raise UnknownEventError for a type or a version that this aiopt does not know, and
        CorruptLogError if the payload is not what that version of that type looks like.
        """
        known = self._decoders.get(type_name) or self._decoder(type_name, schema_version)
        version, structure, cls = known
        if not 1 <= schema_version <= version:
            raise UnknownEventError(
                f"event type {type_name} has version {schema_version} here, but this aiopt knows"
                f" versions 1 to {version} of it; upgrade aiopt to read this log"
            )
        try:
            tree = orjson.loads(payload)
            for number in range(schema_version, version):
                tree = self._upcasters[type_name, number](tree)
            return structure(tree, cls)
        except Exception as error:
            raise CorruptLogError(
                f"the payload is no {type_name} of version {schema_version}:"
                f" {type(error).__name__}: {error}"
            ) from error


def _plain(value: Any) -> Any:
    """What orjson does not take by itself: subclasses of float, such as numpy's."""
    if isinstance(value, float):
        return float(value)
    raise TypeError(f"{value!r} is a {type(value).__name__}")


def _all_finite(tree: Any) -> bool:
    """The quick question; `_not_finite` says where."""
    for value in tree.values() if isinstance(tree, dict) else tree:
        kind = type(value)
        if kind is str or kind is int or value is None:
            continue
        if isinstance(value, float):
            if not isfinite(value):
                return False
        elif isinstance(value, dict | list | tuple) and not _all_finite(value):
            return False
    return True


def _not_finite(tree: Any, where: str) -> Iterator[tuple[str, float]]:
    if isinstance(tree, float):
        if not isfinite(tree):
            yield where, tree
    elif isinstance(tree, dict):
        for key, value in tree.items():
            yield from _not_finite(value, f"{where}.{key}")
    elif isinstance(tree, list | tuple):
        for index, value in enumerate(tree):
            yield from _not_finite(value, f"{where}[{index}]")


_CODEC = Codec(EVENT_TYPES, SCHEMA_VERSIONS, UPCASTERS)


# Bound methods, not functions around them: a call less for every event.
encode: Callable[[Event], tuple[str, int, str]] = _CODEC.encode
decode: Callable[[str, int, str | bytes], Event] = _CODEC.decode
