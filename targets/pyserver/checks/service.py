"""Start the server of SOURCE_DIR on a free port and talk to it."""

import http.client
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import urlencode

SOURCE = Path(os.environ.get("SOURCE_DIR", Path(__file__).resolve().parents[1] / "src"))


class Service:
    """One server process with an audit log and a settings file of its own.

    There is no deadline here: the stage that runs the checks has one, and a server that hangs is
    stopped by it.
    """

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="pyserver-checks-"))
        self.audit = self.folder / "audit.log"
        self.config = self.folder / "config.json"
        shutil.copy(SOURCE / "config.json", self.config)

    def __enter__(self) -> "Service":
        self.process = subprocess.Popen(
            [sys.executable, "server.py", "--audit", str(self.audit), "--config", str(self.config)],
            cwd=SOURCE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        ready = self.process.stdout.readline()
        if not ready.startswith("ready "):
            self.close()
            raise AssertionError(f"expected a line `ready HOST:PORT`, found {ready!r}")
        self.port = int(ready.rsplit(":", 1)[1])
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def stop(self) -> int:
        """SIGTERM, and the exit code. Does not wait for the end of stdout: a stray child of the
        server may hold it open."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        code = self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()
        return code

    def client(self) -> "Client":
        return Client(self.port)

    def replace_settings(self, settings: dict[str, Any]) -> None:
        """As the operator does it: a new file, renamed over the old one."""
        new = self.config.with_suffix(".new")
        new.write_text(json.dumps(settings))
        new.replace(self.config)


class Client:
    """A keep-alive connection."""

    def __init__(self, port: int) -> None:
        self.connection = http.client.HTTPConnection("127.0.0.1", port)
        self.sent = 0

    def exchange(self, method: str, path: str, body: Any, query: dict[str, Any]) -> tuple[int, Any]:
        self.sent += 1
        rid = f"r{id(self)}-{self.sent}"
        target = f"{path}?{urlencode({'rid': rid, **query})}"
        data = None if body is None else json.dumps(body)
        self.connection.request(method, target, data)
        response = self.connection.getresponse()
        envelope = json.loads(response.read())
        if envelope["rid"] != rid:
            raise AssertionError(f"asked as {rid}, answered as {envelope['rid']}")
        return response.status, envelope["data"]

    def get(self, path: str, **query: Any) -> Any:
        status, data = self.exchange("GET", path, None, query)
        if status != 200:
            raise AssertionError(f"GET {path} {query}: {status} {data}")
        return data

    def post(self, path: str, body: Any) -> Any:
        status, data = self.exchange("POST", path, body, {})
        if status != 200:
            raise AssertionError(f"POST {path}: {status} {data}")
        return data

    def refused(self, method: str, path: str, body: Any = None, **query: Any) -> tuple[int, str]:
        status, data = self.exchange(method, path, body, query)
        if status == 200:
            raise AssertionError(f"{method} {path} {query} was not refused: {data}")
        return status, data["error"]
