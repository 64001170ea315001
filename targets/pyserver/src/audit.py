"""The audit log: one line for each accepted reading.

Lines of one batch stay together and in order. The log is complete when the service has ended.
"""

import threading
import time
from collections.abc import Sequence


class AuditLog:
    def __init__(self, path: str) -> None:
        self._file = open(path, "a", encoding="utf-8")
        self._lock = threading.Lock()

    def readings(self, source: str, accepted: Sequence[tuple[str, int, int]]) -> None:
        with self._lock:
            for identifier, bucket, value in accepted:
                stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
                line = "{} source={} id={} bucket={} value={}".format(
                    stamp, source, identifier, bucket, value
                )
                self._file.write(line + "\n")
                self._file.flush()

    def close(self) -> None:
        with self._lock:
            self._file.close()
