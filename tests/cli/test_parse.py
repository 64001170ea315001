"""`aiopt parse`."""

import gzip
import json
from io import BytesIO
from pathlib import Path

import pytest

import aiopt
from aiopt.metrics import FORMATS
from aiopt.protocols import Measured
from tests.cli.conftest import invoke

DATA = Path(__file__).parent.parent / "data" / "profilers"


def test_a_profile_becomes_the_same_typed_result(tmp_path: Path) -> None:
    profile = DATA / "valgrind" / "callgrind.out"
    found = tmp_path / "stacks.txt"
    scope = tmp_path / "scope.json"
    words = ("parse", "--with", "callgrind", str(profile), "--top", "3")
    done = invoke(*words, "--json", "--folded", str(found), "--speedscope", str(scope))
    assert done.exit_code == 0
    answer = json.loads(done.stdout)
    assert (answer["status"], answer["files"]) == ("measured", [str(profile)])
    assert answer["scalars"]["instructions"]["value"] == 56_531_563
    assert len(answer["stacks"]) == 3
    assert answer["stacks"][0]["frames"] == ["msort_with_tmp.part.0"]
    assert found.read_text().startswith("msort_with_tmp.part.0 ")
    assert json.loads(scope.read_text())["profiles"][0]["type"] == "sampled"
    text = invoke(*words)
    assert "msort_with_tmp" in text.stdout


def test_how_it_ended_is_in_the_exit_code(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.write_bytes(b"")
    for name, code in (("lines", 3), ("json", 1)):
        done = invoke("parse", "--with", name, str(empty), "--json")
        assert done.exit_code == code, done.output
        assert json.loads(done.stdout)["reason"]
    assert invoke("parse", "--with", "callgrind", str(empty)).exit_code in (1, 3)


def test_benchmark_output_is_read_too() -> None:
    done = invoke("parse", "--with", "lines", "-", "--json", input="wall_ms=12\n")
    assert json.loads(done.stdout)["scalars"]["wall_ms"]["value"] == 12


def test_a_script_can_parse() -> None:
    profile = DATA / "valgrind" / "callgrind.out"
    for files in ([profile], [str(profile)], [BytesIO(profile.read_bytes())]):
        result = aiopt.parse("callgrind", files)
        assert isinstance(result, Measured)
        assert result.scalars["instructions"].value == 56_531_563
    benchmark = aiopt.parse("lines", [BytesIO(b"wall_ms=12\n"), BytesIO(b"wall_ms=14\n")])
    assert isinstance(benchmark, Measured)
    assert benchmark.scalars["wall_ms"].value == 13
    with pytest.raises(
        aiopt.UnknownPluginError, match=r"'nosuch' is not known; there are .*perf.*"
    ):
        aiopt.parse("nosuch", [profile])
    with pytest.raises(FileNotFoundError):
        aiopt.parse("perf", ["/no/such/file"])


@pytest.mark.parametrize(
    ("tool", "content", "hint"),
    [
        ("perf", b"PERFILE2" + bytes(500), "perf script -i FILE"),
        ("offcpu", b"PERFILE2" + bytes(500), "--show-switch-events"),
        ("memray", b'\x04"M\x18' + bytes(500), "memray transform csv FILE"),
        ("coz", gzip.compress(b"startup\ttime=1\n"), "gunzip"),
    ],
)
def test_what_a_tool_keeps_for_itself_is_told(
    tmp_path: Path, tool: str, content: bytes, hint: str
) -> None:
    (tmp_path / "file").write_bytes(content)
    done = invoke("parse", "--with", tool, str(tmp_path / "file"))
    assert done.exit_code in (1, 3)
    assert hint in done.output


def test_several_files_are_runs_of_a_benchmark() -> None:
    files = [str(DATA.parent / "db_bench" / name) for name in ("01_plain.txt", "03_histogram.txt")]
    done = invoke("parse", "--with", "db_bench", *files, "--json")
    assert done.exit_code == 0, done.output
    scalars = json.loads(done.stdout)["scalars"]
    throughput = scalars["readrandom.ops_per_sec"]
    assert (throughput["unit"], throughput["high"]) == ("1/s", 158297)
    assert throughput["low"] < throughput["value"] < throughput["high"]
    assert scalars["fillrandom.write.p99_us"]["value"] == 18.34
    missing = str(DATA.parent / "db_bench" / "08_use_existing_missing.txt")
    done = invoke("parse", "--with", "db_bench", missing)
    assert done.exit_code == 1
    assert "is the database there?" in done.output


def test_help_names_every_format() -> None:
    words = "".join(invoke("parse", "--help").output.split())  # lines end at hyphens too
    assert not [name for name in FORMATS if f"{name}," not in words and f",{name}." not in words]


def test_an_unknown_name_lists_the_known_ones(tmp_path: Path) -> None:
    file = tmp_path / "x"
    file.write_bytes(b"x")
    done = invoke("parse", "--with", "nosuch", str(file))
    assert done.exit_code == 2
    assert "callgrind" in done.output
    assert "hyperfine" in done.output
