"""Perf's profiles say what `perf report` says of the same file, in both formats."""

import json
from pathlib import Path

import anyio
import pytest

from aiopt.events import Scalar
from aiopt.profilers.perf import Perf
from aiopt.protocols import Command, Inconclusive, Measured, NotAvailable, ProfileResult

from .hostile import check_total, contents
from .programs import Printed, compiled, opened, profiled, skip_without

DATA = Path(__file__).parents[1] / "data" / "profilers" / "perf"
SCRIPT = (DATA / "pp.script.txt").read_bytes()
CHOSEN = (DATA / "pp.script.F.txt").read_bytes()
JSON = (DATA / "pp.json").read_bytes()


def measured(*files: bytes) -> Measured:
    result = Perf().parse(contents(*files))
    assert isinstance(result, Measured), result
    return result


def samples(result: ProfileResult) -> float:
    return result.scalars["samples"].value if isinstance(result, Measured) else 0


@pytest.mark.parametrize("file", [SCRIPT, CHOSEN, JSON], ids=["script", "fields", "json"])
def test_the_figures_are_those_of_perf_report(file: bytes) -> None:
    result = measured(file)
    rows = [line.split("|") for line in (DATA / "pp.report.sep.txt").read_text().splitlines()]
    rows = [row for row in rows if len(row) == 4 and "%" in row[0]]
    assert len(rows) == 4
    for percent, _, object, symbol in rows:
        name = symbol.strip()[4:]
        share = result.scalars[f"self_share[{name}]"]
        assert f"{100 * share.value:.2f}%" == percent.strip()
        assert share.low is not None
        assert share.high is not None
        assert 0 < share.low < share.value < share.high < 1
        found = next(each for each in result.findings if each.where == name)
        assert object.strip() in found.detail
    assert samples(result) == 176
    assert result.scalars["on_cpu_seconds"].value == pytest.approx(176 * 2004008e-9)
    assert result.scalars["kernel_share"].value == pytest.approx(6 / 176)
    assert result.scalars["total_share[do_syscall_64]"].value == pytest.approx(6 / 176)
    assert result.findings[0].where == "fixed_work"
    assert result.notes == ("recorded: cpu-clock",)
    assert sum(int(line.rsplit(" ", 1)[1]) for line in result.stacks.splitlines()) == 176
    assert result.stacks.startswith("__libc_start_call_main;fixed_work 88\n")


def test_the_interval_is_wilsons() -> None:
    """As in Newcombe, Statistics in Medicine 17 (1998) 857, table I: 81 of 263."""
    sample = "x 1 1.000000: 5 cycles: \n\t10 {} (/x)\n\n"
    text = sample.format("in") * 81 + sample.format("out") * (263 - 81)
    share = measured(text.encode()).scalars["self_share[in]"]
    assert share.low == pytest.approx(0.2553, abs=5e-5)
    assert share.high == pytest.approx(0.3662, abs=5e-5)


def test_samples_weigh_as_much_as_their_period() -> None:
    sample = "x 1 1.000000: {} cycles: \n\t10 {} (/x)\n\n"
    text = (sample.format(300, "slow") + sample.format(100, "fast")) * 50
    result = measured(text.encode())
    assert result.scalars["self_share[slow]"].value == 0.75
    assert "on_cpu_seconds" not in result.scalars
    assert result.stacks == "slow 75\nfast 25\n"
    even = measured((sample.format(100, "slow") * 75 + sample.format(100, "fast") * 25).encode())
    width = [
        (s.high or 0) - (s.low or 0)
        for s in (each.scalars["self_share[slow]"] for each in (result, even))
    ]
    assert width[0] > width[1]


def test_several_profiles_are_pooled() -> None:
    both, one = measured(CHOSEN, JSON), measured(CHOSEN)
    assert samples(both) == 2 * samples(one) == samples(measured(CHOSEN + CHOSEN))
    assert both.scalars["self_share[fixed_work]"].value == pytest.approx(169 / 176)
    assert "1 of 2 profiles" in " ".join(measured(CHOSEN, b"").notes)


def test_a_cut_sample_is_dropped() -> None:
    for end in range(len(CHOSEN) - 600, len(CHOSEN) - 1):
        cut = measured(CHOSEN[:end])
        assert samples(cut) <= 175
        whole = CHOSEN[:end].endswith(b"\n\n")
        assert whole or "1 samples were cut" in " ".join(cut.notes)


def test_time_in_user_space_alone_is_said_to_be_that() -> None:
    result = measured(CHOSEN.replace(b"cpu-clock:", b"cpu-clock:u:").replace(b"ffffffff8", b"f"))
    assert "kernel_share" not in measured(b"x 1 1.000000: 1 cpu-clock:u: 1 f (/x)\n" * 60).scalars
    assert any("only user space" in note for note in result.notes)


def test_an_event_that_fell_back_is_named() -> None:
    result = Perf(event="cycles").parse(contents(SCRIPT))
    assert isinstance(result, Measured)
    assert any("fell back to cpu-clock" in note for note in result.notes)


def test_unknown_symbols_and_broken_chains_come_with_what_helps() -> None:
    known = "a b: 1 [2] 7/8 1.000000: 9 cpu-clock: \n\t10 work (/x)\n\t20 main (/x)\n\n" * 50
    nameless = (
        "a 8 1.000000: 9 cpu-clock: \n\t10 [unknown] (/l/libz.so.1 (deleted))\n"
        "\t0 [unknown] ([unknown])\n\t1 [unknown] ([unknown])\n\n"
    )
    result = measured((known.replace("main", "_start") + nameless * 50).encode())
    notes = " ".join(result.notes)
    assert (
        "50.0% of the samples have no symbol (/l/libz.so.1 (deleted) 50.0%): build with -g" in notes
    )
    assert "50.0% of the stacks do not reach the start" in notes
    assert "-fno-omit-frame-pointer" in notes
    assert result.stacks == "[unknown];[libz.so.1 (deleted)] 50\n_start;work 50\n"


def test_odd_names_are_read() -> None:
    text = (
        "net: 2 [sync]  77 [001]  12.345678:   1000 cpu-clock: \n"
        "\t  ffff operator new(unsigned long)+0x1f (/usr/lib/a (b)/libstdc++.so.6)\n"
        "\t  1234 f(int)::{lambda()#1}::operator()() const (/x)\n\n"
    )
    result = measured((text * 50).encode())
    assert (
        result.stacks == "f(int)::{lambda()#1}::operator()() const;operator new(unsigned long) 50\n"
    )


def test_losses_are_noted() -> None:
    result = measured(SCRIPT + b"pp  1  9.000000: PERF_RECORD_LOST lost 12\nwhat is this\n")
    assert any("lost 12 records" in note for note in result.notes)
    assert any("1 lines or samples were not understood" in note for note in result.notes)


def test_without_enough_samples_there_is_no_statement() -> None:
    few = b"\n\n".join(CHOSEN.split(b"\n\n")[:20]) + b"\n\n"
    result = Perf().parse(contents(few))
    assert isinstance(result, Inconclusive)
    assert result.reason.startswith("20 samples, fewer than 50")


def test_no_failure_of_the_tool_is_a_measurement() -> None:
    cases = [json.loads(line) for line in (DATA / "failures.jsonl").read_text().splitlines()]
    cases = [case for case in cases if case["argv"][1] in ("script", "data")]
    assert len(cases) == 6
    for case in cases:
        text = case["output_text"] or case["stdout_tail"]
        assert not isinstance(Perf().parse(contents(text.encode())), Measured)


@pytest.mark.parametrize("file", [CHOSEN, JSON], ids=["script", "json"])
def test_whatever_the_file_holds_the_answer_is_a_value(file: bytes) -> None:
    check_total(Perf().parse, file)


def test_deep_and_huge_json_is_no_exception() -> None:
    for text in (
        b'{"samples":' + b"[" * 1_000_000,
        b'{"samples":[{"callchain":[{"ip":' + b"9" * 10_000 + b"}]}]}",
        b'{"samples":[{"callchain":[{"ip":1e999,"symbol":[],"dso":{}}]}]}',
        b'{"samples":[1,{"callchain":7}],"headers":{"cmdline":[["-F"],{"a":1},null]}}',
    ):
        assert not isinstance(Perf().parse(contents(text)), Measured)


@pytest.mark.anyio
async def test_the_hot_function_of_a_real_program_is_found(tmp_path: Path) -> None:
    program = compiled("phases", tmp_path)
    async with opened(tmp_path) as workspace:
        result, printed = await profiled(Perf(), workspace, program, "compute=1200")
    assert isinstance(result, Measured)
    assert [each.where for each in result.findings[:2]] == ["critical", "irrelevant"]
    critical, irrelevant = (
        result.scalars[f"self_share[{name}]"] for name in ("critical", "irrelevant")
    )
    assert _within(critical, 2 / 3)
    assert _within(irrelevant, 1 / 3)
    seconds = printed.numbers()["cpu_ns"] / 1e9
    assert result.scalars["on_cpu_seconds"].value == pytest.approx(seconds, rel=0.1)


def _within(scalar: Scalar, truth: float) -> bool:
    """With some room: what is measured depends on what else runs on the machine."""
    assert scalar.low is not None
    assert scalar.high is not None
    return scalar.low - 0.05 < truth < scalar.high + 0.05


@pytest.mark.anyio
async def test_a_service_is_ended_and_its_profile_written(tmp_path: Path) -> None:
    async with opened(tmp_path) as workspace:
        missing = await Perf().probe(workspace)
        if missing is not None:
            skip_without(missing)
        script = "trap 'echo bye; exit 0' TERM; echo up; while :; do :; done"
        printed = Printed()
        command = Command(argv=("sh", "-c", script))
        service = await workspace.start(Perf().wrap(command, "{run}/out"), printed)
        with anyio.fail_after(20):
            while "up" not in printed.texts["stdout"]:  # noqa: ASYNC110  (there is no event)
                await anyio.sleep(0.01)
        await anyio.sleep(0.5)
        await service.stop()
        assert "bye" in printed.texts["stdout"]
        assert (await workspace.run(Perf().finish("{run}/out"), printed)).ok
        printed = Printed()
        await workspace.run(Command(argv=("cat", "{run}/out")), printed)
    assert samples(Perf().parse(contents(printed.texts["stdout"].encode()))) > 50


@pytest.mark.anyio
async def test_where_there_is_no_perf_it_says_how_to_get_it(tmp_path: Path) -> None:
    async with opened(tmp_path) as workspace:
        missing = await Perf(perf="/nowhere/perf").probe(workspace)
    assert isinstance(missing, NotAvailable)
    assert missing.fix == "apt-get install linux-perf"
