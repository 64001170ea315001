"""Values as plain data, and streams as people read them."""

from collections.abc import Mapping
from typing import Any

from attrs import fields, has

from aiopt.ids import short_name

__all__ = ["short", "to_json"]


def to_json(value: Any) -> Any:
    """A view as plain JSON data: objects under the names of the fields, streams in full."""
    if has(type(value)):
        return {field.name: to_json(getattr(value, field.name)) for field in fields(type(value))}
    if isinstance(value, Mapping):
        return {str(name): to_json(item) for name, item in value.items()}
    if isinstance(value, tuple | list):
        return [to_json(item) for item in value]
    return value


def short(stream: str | None) -> str:
    """`exp-0007`, or a dash where there is no stream."""
    return short_name(stream) if stream else "-"
