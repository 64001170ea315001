"""What it costs to read profiles, beside the programs that people use for it.

Both sides are processes of their own that read the same file and print stacks, so that each pays
for its interpreter and its imports; profiles are made by the real profilers, of a Python program.
"""

import os
import resource
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from aiopt.profilers.jemalloc import Jemalloc

from .measuring import Cost, Line, Rounds, WrongWork, ratio, turns
from .places import Places

__all__ = ["profiles"]

_PROGRAM = "import json; t = {str(i): [i] * 9 for i in range(%d)}; json.loads(json.dumps(t))"
_NOTES = {
    "parse": "CPU of processes that read one file and print stacks, each with its interpreter and"
    " imports; `parse alone` imports the parser only, as a campaign has long done",
}


def profiles(places: Places, quick: bool) -> Iterator[Line]:
    """A line for each profiler whose peer is installed here."""
    folder = places.memory / "parse"
    folder.mkdir()
    yield from _perf(folder, quick)
    yield from _callgrind(folder, quick)
    yield from _jemalloc(folder, quick)


def _perf(folder: Path, quick: bool) -> Iterator[Line]:
    what = "perf script text to folded stacks"
    peer = shutil.which("stackcollapse-perf.pl")
    record = ["perf", "record", "-q", "-F", "997", "-e", "cpu-clock:u", "-g", "-o", "perf.data"]
    program = [sys.executable, "-c", _PROGRAM % (20_000 if quick else 1_000_000)]
    if shutil.which("perf") is None or not _made(folder, [*record, "--", *program]):
        yield Line(row="parse perf", what=what, beside="perf", status="not installed")
        return
    fields = "comm,pid,tid,time,period,event,ip,sym,dso"
    text = folder / "perf.txt"
    script = ["perf", "script", "-i", "perf.data", "-F", fields, "--no-inline"]
    with text.open("wb") as out:
        subprocess.run(script, cwd=folder, stdout=out, stderr=subprocess.DEVNULL, check=True)
    size = f"{text.stat().st_size / 1e6:.1f} MB of {what}"
    sides = {"ours": _ours("perf", text), "whole": _command("perf", text)}
    if peer is None:
        beside = "perf's stackcollapse.py"
        # perf's own script reads perf.data, so what `perf script` costs is in both sides.
        sides["other"] = ["perf", "script", "-i", "perf.data", "report", "stackcollapse"]
        sides["ours"] = ["sh", "-c", '"$@" | ' + shlex.join(_ours("perf", "-")), "sh", *script]
        sides["whole"] = ["sh", "-c", '"$@" | ' + shlex.join(_command("perf", "-")), "sh", *script]
        size = f"perf.data of {text.stat().st_size / 1e6:.1f} MB as text, to folded stacks"
    else:
        beside = "stackcollapse-perf.pl"
        sides["other"] = ["perl", peer, str(text)]
    yield from _compared("parse perf", size, beside, sides, folder, quick)


def _callgrind(folder: Path, quick: bool) -> Iterator[Line]:
    what = "callgrind file to functions"
    record = ["valgrind", "-q", "--tool=callgrind", "--callgrind-out-file=callgrind.out"]
    program = [sys.executable, "-S", "-c", _PROGRAM % (10 if quick else 2000)]
    if shutil.which("callgrind_annotate") is None or not _made(folder, [*record, *program]):
        yield Line(row="parse callgrind", what=what, beside="valgrind", status="not installed")
        return
    file = folder / "callgrind.out"
    size = f"{file.stat().st_size / 1e6:.1f} MB of {what}"
    sides = {
        "ours": _ours("callgrind", file),
        "whole": _command("callgrind", file),
        "other": ["callgrind_annotate", "--auto=no", str(file)],
    }
    yield from _compared("parse callgrind", size, "callgrind_annotate", sides, folder, quick)


def _jemalloc(folder: Path, quick: bool) -> Iterator[Line]:
    what = "heap dump with symbols to folded stacks"
    conf = f"prof:true,prof_final:true,prof_accum:true,lg_prof_sample:{12 if quick else 6}"
    file = folder / "j"
    preload = ["env", "LD_PRELOAD=libjemalloc.so.2", f"MALLOC_CONF={conf},prof_prefix:j.mine"]
    program = ["PYTHONMALLOC=malloc", sys.executable, "-c", _PROGRAM % 5_000]
    made = _made(folder, [*preload, *program]) and _made(folder, Jemalloc().finish(str(file)).argv)
    if shutil.which("jeprof") is None or not made:
        yield Line(row="parse jemalloc", what=what, beside="jeprof", status="not installed")
        return
    size = f"{file.stat().st_size / 1e6:.1f} MB of {what}"
    sides = {
        "ours": _ours("jemalloc", file),
        "whole": _command("jemalloc", file),
        "other": ["jeprof", "--collapsed", str(file)],
    }
    yield from _compared("parse jemalloc", size, "jeprof", sides, folder, quick)


def _made(folder: Path, command: Sequence[str]) -> bool:
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, env=_environment())
    except OSError:
        return False
    return done.returncode == 0


def _environment() -> Mapping[str, str]:
    return {**os.environ, "LC_ALL": "C", "PYTHONHASHSEED": "0"}


_CLASSES = {
    "perf": "perf:Perf",
    "callgrind": "callgrind:Callgrind",
    "jemalloc": "jemalloc:Jemalloc",
}
_PARSE = (
    "import sys; from aiopt.profilers.{module} import {name};"
    " file = sys.stdin.buffer if sys.argv[1] == '-' else open(sys.argv[1], 'rb');"
    " sys.stdout.write({name}().parse([file]).stacks)"
)


def _ours(profiler: str, file: Path | str) -> list[str]:
    module, _, name = _CLASSES[profiler].partition(":")
    return [sys.executable, "-c", _PARSE.format(module=module, name=name), str(file)]


def _command(profiler: str, file: Path | str) -> list[str]:
    code = "from aiopt.cli import main; main()"
    return [sys.executable, "-c", code, "parse", "--with", profiler, "--json", str(file)]


def _compared(
    row: str,
    what: str,
    beside: str,
    sides: Mapping[str, Sequence[str]],
    folder: Path,
    quick: bool,
) -> Iterator[Line]:
    rounds = Rounds()
    for side in turns(list(sides), 2 if quick else 7, rounds):
        rounds.add(side, _cost(sides[side], folder))
    for side, how in (("ours", "parse alone"), ("whole", "aiopt parse --json")):
        yield Line(
            row=row,
            what=f"{what}, {how}",
            ours=rounds.median(side, "cpu"),
            other=rounds.median("other", "cpu"),
            unit="s",
            beside=beside,
            ratio=ratio(rounds, side, "other", "cpu"),
            notes=_NOTES,
        )


def _cost(command: Sequence[str], folder: Path) -> Cost:
    """CPU of a process and all that it waited for."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, cwd=folder, capture_output=True, env=_environment())
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode != 0 or len(done.stdout) < 10:
        said = done.stderr.decode(errors="replace").strip()[-200:]
        raise WrongWork(f"{command[0]} printed nothing (exit {done.returncode}): {said}")
    cpu = sum(getattr(after, f) - getattr(before, f) for f in ("ru_utime", "ru_stime"))
    return Cost(cpu, cpu)
