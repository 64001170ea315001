"""Arrays beside a log: kept, made anew where they are damaged, never wrong."""

import random
from pathlib import Path

import numpy as np
import pytest

from aiopt.array_memory import ArrayMemory

ARRAYS = (
    np.arange(12, dtype=np.int32).reshape(3, 4),
    np.array([0.1, np.nan, -np.inf]),
    np.zeros(0, dtype=np.float64),
    np.array([True, False]),
)


class Maker:
    """Counts how often it is asked."""

    def __init__(self, array: np.ndarray) -> None:
        self.array, self.times = array, 0

    def __call__(self) -> np.ndarray:
        self.times += 1
        return self.array


@pytest.mark.parametrize("array", ARRAYS)
def test_an_array_is_made_once_for_a_state(tmp_path: Path, array: np.ndarray) -> None:
    make = Maker(array)
    for _ in range(3):
        found = ArrayMemory(tmp_path / "memo", "s1")("a name / of anything", make)
        assert found.dtype == array.dtype
        assert np.array_equal(found, array, equal_nan=array.dtype.kind == "f")
    assert make.times == 1
    ArrayMemory(tmp_path / "memo", "s1")("another name", make)
    assert make.times == 2
    ArrayMemory(tmp_path / "memo", "s2")("another name", make)
    assert make.times == 3
    assert len(list((tmp_path / "memo").iterdir())) == 1  # what is of another state is removed


def test_the_byte_order_is_part_of_what_is_checked(tmp_path: Path) -> None:
    """One bit makes big of little endian."""
    memory = ArrayMemory(tmp_path / "memo", "s")
    memory("x", lambda: np.arange(3.0))
    (path,) = (tmp_path / "memo").iterdir()
    path.write_bytes(path.read_bytes().replace(b'"<f8"', b'">f8"'))
    assert memory("x", lambda: np.arange(3.0)).tolist() == [0, 1, 2]


@pytest.mark.parametrize("seed", range(30))
def test_what_is_cut_or_bent_is_made_anew(tmp_path: Path, seed: int) -> None:
    coin, array = random.Random(seed), np.arange(1000.0)
    memory = ArrayMemory(tmp_path / "memo", "s")
    memory("x", lambda: array)
    (path,) = (tmp_path / "memo").iterdir()
    data = bytearray(path.read_bytes())
    if seed % 3:
        for _ in range(coin.choice([1, 50])):
            data[coin.randrange(len(data))] ^= 1 << coin.randrange(8)
    else:
        del data[coin.randrange(len(data)) :]
    path.write_bytes(data)
    assert np.array_equal(memory("x", lambda: array), array)
    make = Maker(array)
    assert np.array_equal(memory("x", make), array)
    assert make.times == 0


def test_where_nothing_can_be_written_it_is_made_each_time(tmp_path: Path) -> None:
    (tmp_path / "memo").write_text("no folder")
    make = Maker(np.arange(3))
    memory = ArrayMemory(tmp_path / "memo", "s")
    assert memory("x", make).tolist() == memory("x", make).tolist() == [0, 1, 2]
    assert make.times == 2


def test_with_no_room_nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Path, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    assert ArrayMemory(tmp_path / "memo", "s")("x", lambda: np.arange(3)).tolist() == [0, 1, 2]
    assert list((tmp_path / "memo").iterdir()) == []
