"""For the scripts beside it: ports, services, and what a command used.

Every exported folder gets a copy of this file, so it needs nothing but Python 3.9.
"""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Sequence
from typing import Any


def environment(pid: str = "self") -> dict[bytes, bytes]:
    """What a process was given; for this one, without what Python itself has added."""
    with open(f"/proc/{pid}/environ", "rb") as file:
        pairs = (part.partition(b"=") for part in file.read().split(b"\0") if part)
        return {name: value for name, _, value in pairs}


def state(pid: str) -> tuple[str, str]:
    """Its letter, and the start that tells it from a later process with the same number."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            fields = file.read().rpartition(") ")[2].split()
    except OSError:
        return "", ""
    return fields[0], fields[19]


def write(path: str, text: str) -> None:
    """All of it at once: others wait for the file to be there."""
    with open(path + ".new", "w") as file:
        file.write(text)
    os.replace(path + ".new", path)


def run(prefix: str, argv: Sequence[str], session: bool = False) -> int:
    """Run a command and note what it used; a service also gets a session and a note of its pid."""
    began = time.monotonic()
    try:
        child = subprocess.Popen(argv, env=environment(), start_new_session=session)
    except OSError as error:
        print(error, file=sys.stderr)
        return 127
    if session:
        write(prefix + ".pid", f"{child.pid} {state(str(child.pid))[1]}\n")
    _, status, used = os.wait4(child.pid, 0)
    lines = [
        f"wall_seconds={time.monotonic() - began:.6f}",
        f"cpu_seconds={used.ru_utime + used.ru_stime:.6f}",
        f"peak_rss_mb={used.ru_maxrss * 1024 / 1e6:.6f}",
    ]
    write(prefix + ".usage", "\n".join(lines) + "\n")
    code = child.returncode = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def answers(prefix: str, port: str, way: str, text: str) -> bool:
    """Whether the service does: by a line of its output, by HTTP, or by an open port."""
    try:
        if way == "line":
            with open(prefix + ".out", errors="replace") as file:
                return re.search(text, file.read(), re.MULTILINE) is not None
        if way == "http":
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{text}", timeout=5) as answer:
                return bool(200 <= answer.status < 300)
        socket.create_connection(("127.0.0.1", int(port)), timeout=5).close()
    except OSError:
        return False
    return True


def ready(prefix: str, port: str, way: str, text: str, seconds: str) -> int:
    """Wait until the service answers."""
    end = time.monotonic() + float(seconds)
    while time.monotonic() < end:
        if os.path.exists(prefix + ".pid") and answers(prefix, port, way, text):
            return 0
        if os.path.exists(prefix + ".usage"):
            print("the service ended before it was ready", file=sys.stderr)
            return 1
        time.sleep(0.02)
    return 1


def wait_until(done: Callable[[], bool], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not done() and time.monotonic() < end:
        time.sleep(0.02)


def kill(send: Callable[[int, int], Any], pid: str, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        send(int(pid), number)


def stop(prefix: str, job: str) -> int:
    """TERM to the service, after 5 s KILL, then KILL to whatever else belongs to the job."""
    try:
        with open(prefix + ".pid") as file:
            pid, since = file.read().split()
    except (OSError, ValueError):
        pid = since = ""

    def over() -> bool:
        letter, start = state(pid)
        return letter in ("", "Z", "X") or start != since

    if pid and not over():
        kill(os.killpg, pid, signal.SIGTERM)
        wait_until(over, 5)
        kill(os.killpg, pid, signal.SIGKILL)
        wait_until(lambda: os.path.exists(prefix + ".usage"), 2)
    for name in os.listdir("/proc"):
        try:
            mine = name.isdigit() and environment(name).get(b"AIOPT_JOB") == job.encode()
        except OSError:  # it has ended, or is not ours to look at
            continue
        if mine:
            kill(os.kill, name, signal.SIGKILL)
    return 0


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def main(what: str, *rest: str) -> int:
    if what == "port":
        print(os.environ.get("SERVICE_PORT") or free_port())
        return 0
    if what == "run":
        return run(rest[0], rest[1:])
    if what == "serve":
        os.setsid()  # what ends deploy.sh or its terminal is not to end the service
        return run(rest[0], rest[1:], session=True)
    if what == "ready":
        return ready(*rest)
    if what == "stop":
        return stop(*rest)
    raise ValueError(what)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
