"""Messages to the outside gateway.

The gateway's contract: two messages leave at least GAP_SECONDS apart, however many callers there
are. A faster sender is cut off.
"""

import threading
import time
from typing import Any

GAP_SECONDS = 0.002


class Notifier:
    def __init__(self) -> None:
        self._gate = threading.Lock()
        self._sent = 0

    def send(self, source: str, text: str) -> dict[str, Any]:
        with self._gate:
            time.sleep(GAP_SECONDS)
            sent_ns = time.monotonic_ns()
            self._sent += 1
        return {"source": source, "length": len(text), "sent_ns": sent_ns}

    def sent(self) -> int:
        return self._sent
