"""perf forgets the maps of what a program has replaced, and of nothing else."""

import random
import struct
from pathlib import Path

import pytest

from aiopt.profilers._perf_maps import COMM_EXEC, EMPTY, LUMBER, main
from aiopt.profilers.offcpu import OffCpu
from aiopt.protocols import Measured

from .programs import compiled, opened, profiled

MMAP, LOST, COMM, FORK, SAMPLE, SWITCH, MMAP2 = 1, 2, 3, 7, 9, 14, 10
TID, TIME, CPU, IDENTIFIER = 1 << 1, 1 << 2, 1 << 7, 1 << 16
KIND = TID | TIME | CPU | IDENTIFIER
SHELL, PROGRAM, WORKER = 100, 101, 102


def record(kind: int, *body: int, time: int, misc: int = 0, name: bytes = b"") -> bytes:
    """The body as 32-bit words, then a name, then the pid, time, CPU and identifier of all."""
    name = name and name + b"\0" * (8 - len(name) % 8)
    words = struct.pack(f"<{len(body)}I", *body) + name
    end = struct.pack("<2IQ2IQ", 0, 0, time, 0, 0, 7)
    return struct.pack("<IHH", kind, misc, 8 + len(words) + len(end)) + words + end


def mapped(pid: int, time: int, kind: int = MMAP2) -> bytes:
    return record(kind, pid, pid, *(0,) * 14, time=time, name=b"/lib/libc.so.6")


def comm(pid: int, time: int, misc: int = COMM_EXEC) -> bytes:
    return record(COMM, pid, pid, time=time, misc=misc, name=b"python3")


def fork(pid: int, parent: int, tid: int, time: int) -> bytes:
    return record(FORK, pid, parent, tid, parent, time, 0, time=time)


def recorded(
    *records: bytes, kinds: tuple[int, ...] = (KIND, KIND), size: int | None = None
) -> bytes:
    attributes = b"".join(
        struct.pack("<2I3Q", 1, 136, 0, 1, kind).ljust(152, b"\0") for kind in kinds
    )
    body = b"".join(records)
    start = 104 + len(attributes)
    size = len(body) if size is None else size
    head = struct.pack("<8s7Q", b"PERFILE2", 104, 152, 104, len(attributes), start, size, 0)
    return head.ljust(104, b"\0") + attributes + body


def forgotten(path: Path, content: bytes) -> bytes:
    path.write_bytes(content)
    main(str(path))
    return path.read_bytes()


RECORDS = (
    comm(SHELL, 10),
    mapped(SHELL, 11, MMAP),
    record(SAMPLE, 1, 2, 3, 4, time=12),
    fork(PROGRAM, SHELL, PROGRAM, 20),
    comm(PROGRAM, 30),
    mapped(PROGRAM, 31),
    comm(PROGRAM, 40),
    mapped(PROGRAM, 41),
    record(SWITCH, time=42),
    comm(PROGRAM, 43, misc=0),
    fork(PROGRAM, PROGRAM, PROGRAM + 900, 44),
    fork(WORKER, PROGRAM, WORKER, 45),
    mapped(WORKER, 46),
)


def test_what_was_before_the_last_exec_goes_to_nobody(tmp_path: Path) -> None:
    before = list(RECORDS)
    after = list(RECORDS)
    after[3] = record(FORK, PROGRAM, EMPTY, PROGRAM, EMPTY, 20, 0, time=20)
    after[5] = record(MMAP2, LUMBER, LUMBER, *(0,) * 14, time=31, name=b"/lib/libc.so.6")
    for order in (slice(None), slice(None, None, -1)):
        # They come from several CPUs, one buffer after another.
        found = forgotten(tmp_path / "data", recorded(*before[order]))
        assert found == recorded(*after[order])


def test_a_file_that_was_not_finished_is_read_to_its_end(tmp_path: Path) -> None:
    """perf writes the size last."""
    cut = recorded(*RECORDS, size=0)[:-20]
    found = forgotten(tmp_path / "data", cut)
    assert found != cut
    assert len(found) == len(cut)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"PERFILE2",
        b"PERFFILE" + recorded(*RECORDS)[8:],
        recorded(*RECORDS, kinds=()),
        recorded(*RECORDS, kinds=(KIND, KIND & ~CPU)),
        recorded(*RECORDS, kinds=(TID,)),
        recorded(),
    ],
)
def test_what_is_not_understood_stays_as_it_is(tmp_path: Path, content: bytes) -> None:
    assert forgotten(tmp_path / "data", content) == content


def test_a_file_that_is_not_there_is_for_perf_to_tell(tmp_path: Path) -> None:
    main(str(tmp_path / "data"))
    assert not (tmp_path / "data").exists()


def test_damaged_files_never_grow_or_raise(tmp_path: Path) -> None:
    coin, whole = random.Random(5), recorded(*RECORDS)
    for _ in range(500):
        bent = bytearray(whole[: coin.randrange(len(whole) + 1)] if coin.random() < 0.5 else whole)
        for _ in range(coin.randrange(6) if bent else 0):
            bent[coin.randrange(len(bent))] = coin.randrange(256)
        assert len(forgotten(tmp_path / "data", bytes(bent))) == len(bent)


@pytest.mark.anyio
async def test_what_a_script_starts_is_unwound(tmp_path: Path) -> None:
    """Without help perf does so for about every second of them, by where their libraries are."""
    program = compiled("phases", tmp_path)
    script = 'for each in 1 2 3 4 5 6; do env A=1 "$0" sleep=60; done'
    async with opened(tmp_path, "perfmon", "syslog") as workspace:
        result, _ = await profiled(OffCpu(), workspace, "sh", "-c", script, program)
    assert isinstance(result, Measured)
    if "off_cpu_ms[B]" not in result.scalars:
        pytest.skip(f"no right to trace here: {result.notes}")
    # The phase may be inlined.
    found = [each for each in result.findings if each.where in ("sleep_phase", "main")]
    waits = [float(each.detail.split(": ")[1].split()[0]) for each in found if "sleep" in each.what]
    assert sum(waits) == 360
