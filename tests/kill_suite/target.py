"""The target of the suite: stages that sleep long enough to be caught, and say that they live.

What it measures is computed from the candidate's files, so verdicts do not depend on the machine.
Each stage appends lines `life pid name what time` to a file: `start`, `beat` every 30 ms, `end`.
"""

import difflib
import sys
from pathlib import Path

__all__ = ["NAME", "POOL", "write_target"]

NAME = "killed"

_STAGE = '''
import os, signal, socket, sys, time

name = sys.argv[1]
seconds = float(os.environ["STAGE_SECONDS"])
log = os.open(os.environ["STAGES_LOG"], os.O_WRONLY | os.O_APPEND)


def line(what, name=name):
    text = f"{os.environ['KILL_LIFE']} {os.getpid()} {name} {what} {time.monotonic_ns()}\\n"
    os.write(log, text.encode())


def work(seconds, name=name):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(min(0.03, max(0.0, end - time.monotonic())))
        line("beat", name)


def daemon():
    """Leave everything that could lead to it, but for its environment."""
    if os.fork():
        os.wait()
        return
    os.setsid()
    if os.fork():
        os._exit(0)
    for descriptor in range(256):
        if descriptor != log:
            try:
                os.close(descriptor)
            except OSError:
                pass
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    line("start", "daemon")
    work(20, "daemon")
    line("end", "daemon")
    os._exit(0)


def read(file):
    with open(os.path.join(os.environ["SOURCE_DIR"], file)) as text:
        return text.read().split()[0]


line("start")
if name == "build":
    if read("daemon.txt") == "yes":
        daemon()
    work(seconds)
    program = " ".join(map(read, ("cost.txt", "extra.txt", "daemon.txt", "comment.txt")))
    if os.path.exists(os.path.join(os.environ["TARGET_DIR"], "stamps")):
        with open("stamp.txt", "a") as file:
            file.write("built\\n")
    os.makedirs("out", exist_ok=True)
    with open("out/program", "w") as file:
        file.write(program)
elif name == "test":
    work(seconds / 2)
    if read("check.txt") != "good":
        line("end")
        sys.exit("check.txt is not good")
elif name == "deploy":
    signal.signal(signal.SIGTERM, lambda *_: (line("end"), os._exit(0)))
    door = socket.create_server(("127.0.0.1", int(os.environ["SERVICE_PORT"])))
    print("ready", flush=True)
    work(30)
elif name == "workload":
    cost, extra, fork, _ = open("out/program").read().split()
    if fork == "yes":
        daemon()
    work(seconds)
    print(f"cost={float(cost) + float(extra) - 6 * (fork == 'yes')}")
line("end")
'''

_SOURCE = {
    "cost.txt": "100\n",
    "extra.txt": "40\n",
    "daemon.txt": "no\n",
    "comment.txt": "plain\n",
    "check.txt": "good\n",
    "stamp.txt": "",
    "notes.txt": "nothing is built from this\n",
}

_CHANGES = {
    "01-win": {"cost.txt": "80\n"},
    "02-tests": {"comment.txt": "quick\n", "check.txt": "bad\n"},
    "03-loss": {"extra.txt": "70\n"},
    "04-daemon": {"daemon.txt": "yes\n"},
    "06-neutral": {"comment.txt": "fancy\n"},
    "07-win": {"extra.txt": "20\n"},
    "08-same": {"notes.txt": "still nothing\n"},
}

POOL = (*_CHANGES, "05-conflict")
"""The names of the patches; the proposer takes them in order."""


def _patch(changes: dict[str, str], source: dict[str, str]) -> str:
    parts: list[str] = []
    for file, text in changes.items():
        old, new = source[file].splitlines(True), text.splitlines(True)
        parts += difflib.unified_diff(old, new, f"a/{file}", f"b/{file}")
    return "".join(parts)


def _quoted(words: list[str]) -> str:
    return "[" + ", ".join(f'"{word}"' for word in words) + "]"


def write_target(
    folder: Path,
    side: Path,
    *,
    seconds: float,
    service: bool,
    guarded: bool,
    patches: tuple[str, ...],
    daemons: bool = False,
    stamps: bool = False,
) -> None:
    """The target in `folder`; its stages write to `side/stages/log`.

    With `guarded` there is a guard workload; with `daemons` the unmodified source begins daemons
    already; with `stamps` a build changes a file of the source.
    """
    (folder / "src").mkdir(parents=True)
    (folder / "patches").mkdir()
    for name, text in _SOURCE.items():
        (folder / "src" / name).write_text(text)
    if daemons:
        (folder / "src" / "daemon.txt").write_text("yes\n")
    for name in patches:
        if name == "05-conflict":
            source = {**_SOURCE, "cost.txt": "something else\n"}
            text = _patch({"cost.txt": "90\n"}, source)
        else:
            text = _patch(_CHANGES[name], _SOURCE)
        (folder / "patches" / f"{name}.patch").write_text(text)
    if stamps:
        (folder / "stamps").touch()
    (folder / "stage.py").write_text(_STAGE)
    stages = side / "stages"
    stages.mkdir(parents=True)
    (stages / "log").touch()
    lines = [
        f'name = "{NAME}"',
        f'writable = ["{stages}"]',
        'pass_env = ["KILL_LIFE"]',
        f'environment = {{ STAGES_LOG = "{stages}/log", STAGE_SECONDS = "{seconds}" }}',
        '[source]\npath = "src"',
        '[scope]\neditable = ["*.txt"]',
        '[artifact]\npaths = ["/out/"]',
        '[metrics.cost]\nrole = "primary"',
        '[metrics.wall_seconds]\nmeasured_by = "aiopt"',
        "[workloads.main]",
        *(["[workloads.other]\nguard = true"] if guarded else []),
    ]
    for stage in ("build", "test", *(["deploy"] if service else []), "workload"):
        argv = [sys.executable, "-I", "-S", "{harness}/stage.py", stage]
        lines.append(f"[stages.{stage}]\nrun = {_quoted(argv)}\ntimeout = 60")
        if stage == "deploy":
            lines.append("service = true\nready = { line = '^ready' }")
    (folder / "target.toml").write_text("\n".join(lines) + "\n")
