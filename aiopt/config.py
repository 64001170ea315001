"""TOML tables into attrs values, strictly, and all problems at once."""

import types
from collections.abc import Mapping
from typing import Any, TypeVar, Union, get_args, get_origin

from attrs import fields, has
from cattrs import Converter, transform_error
from cattrs.errors import ForbiddenExtraKeysError
from cattrs.gen import make_dict_structure_fn, make_dict_unstructure_fn

from aiopt.errors import ConfigError

__all__ = ["structure", "unstructure"]

T = TypeVar("T")


def _strict(kind: type[Any], *accepted: type[Any]) -> Any:
    """TOML is typed, so "3" is no number and 1 is no truth value."""

    def hook(value: Any, _: Any) -> Any:
        if type(value) not in accepted:
            raise TypeError(f"expected {kind.__name__}, found {value!r}")
        return kind(value)

    return hook


def _union(value: Any, kind: Any) -> Any:
    """The unions in use: an optional, and a text beside a list of texts."""
    members = [member for member in get_args(kind) if member is not type(None)]
    if value is None and len(members) < len(get_args(kind)):
        return None
    if len(members) > 1 and isinstance(value, str):
        return value
    return _CONVERTER.structure(
        value, next(member for member in members if member is not str or len(members) == 1)
    )


def _is_union(kind: Any) -> bool:
    return get_origin(kind) in (Union, types.UnionType)


def _is_attrs(kind: Any) -> bool:
    return has(kind)


_CONVERTER = Converter(detailed_validation=True, forbid_extra_keys=True)
_CONVERTER.register_structure_hook(str, _strict(str, str))
_CONVERTER.register_structure_hook(bool, _strict(bool, bool))
_CONVERTER.register_structure_hook(int, _strict(int, int))
_CONVERTER.register_structure_hook(float, _strict(float, int, float))
_CONVERTER.register_structure_hook_func(_is_union, _union)
_CONVERTER.register_structure_hook_factory(
    _is_attrs,
    lambda cls: make_dict_structure_fn(
        cls, _CONVERTER, _cattrs_use_alias=True, _cattrs_forbid_extra_keys=True
    ),
)
_CONVERTER.register_unstructure_hook_factory(
    _is_attrs, lambda cls: make_dict_unstructure_fn(cls, _CONVERTER, _cattrs_use_alias=True)
)


def structure(data: Mapping[str, Any], kind: type[T], where: str) -> T:
    """A value of an attrs class from a table.

    Raises:
        ConfigError: unknown keys, missing keys and wrong types, all of them, each with its path.
    """
    try:
        return _CONVERTER.structure(data, kind)
    except Exception as error:
        raise ConfigError(where, _problems(error)) from None


def _problems(error: Exception) -> list[tuple[str, str]]:
    found = []
    for line in transform_error(error, format_exception=_describe):
        text, _, path = line.rpartition(" @ ")
        found.append(
            (path.removeprefix("$").removeprefix(".").replace("['", ".").replace("']", ""), text)
        )
    return found


def _describe(error: BaseException, kind: type[Any] | None) -> str:
    match error:
        case ForbiddenExtraKeysError():
            known = ", ".join(attribute.alias or attribute.name for attribute in fields(error.cl))
            return f"unknown {', '.join(sorted(error.extra_fields))}; known are {known}"
        case KeyError():
            return "missing"
        case TypeError() | ValueError():
            return str(error)
        case _:
            return f"{type(error).__name__}: {error}"


def unstructure(value: Any) -> dict[str, Any]:
    """Plain JSON data of an attrs value, under the names that the table uses."""
    data: dict[str, Any] = _CONVERTER.unstructure(value)
    return data
