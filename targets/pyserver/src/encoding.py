"""JSON in and out."""

import json
from typing import Any

from messages import BadRequest


def decode(body: bytes) -> Any:
    try:
        return json.loads(body)
    except ValueError as error:
        raise BadRequest(f"the body is not JSON: {error}") from None


def encode(rid: str | None, payload: Any) -> bytes:
    """The envelope that every answer travels in: the caller's request id and the data."""
    envelope = {"rid": rid, "data": payload}
    text = json.dumps(envelope, indent=2, sort_keys=True)
    return text.encode()
