"""Settings that an operator may change while the service runs.

The operator replaces the file by renaming a new one over it; the next request sees the change.
"""

import json
from typing import Any


class Settings:
    def __init__(self, path: str) -> None:
        self.path = path

    def current(self) -> dict[str, Any]:
        with open(self.path, encoding="utf-8") as file:
            settings: dict[str, Any] = json.load(file)
        return settings
