"""What travels between the HTTP layer and the endpoints."""

from typing import Any


class BadRequest(Exception):
    """The client asked for something that cannot be answered; the text is sent back."""


class Request:
    def __init__(self, method: str, path: str, query: dict[str, str], body: bytes) -> None:
        self.method = method
        self.path = path
        self.query = query
        self.body = body
        self.reply: "Reply | None" = None

    def text(self, name: str) -> str:
        try:
            return self.query[name]
        except KeyError:
            raise BadRequest(f"parameter {name} is missing") from None

    def number(self, name: str) -> int:
        text = self.text(name)
        try:
            return int(text)
        except ValueError:
            raise BadRequest(f"parameter {name} must be a whole number, not {text!r}") from None


class Reply:
    """An answer; it knows its request, and the request knows it, so that both can be traced."""

    def __init__(self, request: Request, status: int, payload: Any) -> None:
        self.request = request
        self.status = status
        self.payload = payload
        request.reply = self
