"""Claims of patches against the profiles of incumbent and candidate."""

import math

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from aiopt.candidate import claims_of
from aiopt.events import Claim, Effect
from aiopt.mechanism import Profile, check_claim, cost_in, matches

CLAIM = Claim(function="encode", metric="cpu")


def effect(value: float, reach: float = 0.01) -> Effect:
    return Effect(
        metric="cpu",
        workload="main",
        role="primary",
        direction="lower",
        pairs=10,
        effect=value,
        low=value - reach,
        high=value + reach,
    )


def samples(encode: int, rest: int, profiler: str = "py-spy") -> Profile:
    stacks = f"main;rest (a.py:3) {rest}\nmain;encode (e.py:7);dumps {encode}\n"
    return Profile(profiler=profiler, stacks=stacks, unit="samples")


@pytest.mark.parametrize(
    ("frame", "function", "expected"),
    [
        ("encode", "encode", True),
        ("encode (encoding.py:20)", "encode", True),
        ("encode (encoding.py:20)", "encoding.py:encode", True),
        ("encode (src/encoding.py:20)", "encoding.py:encode", True),
        ("encode (other.py:20)", "encoding.py:encode", False),
        ("encode", "encoding.py:encode", False),
        ("Encoder.encode (encoding.py:20)", "encode", True),
        ("rocksdb::DB::Get(rocksdb::Slice const&)", "DB::Get", True),
        ("rocksdb::DB::Get(rocksdb::Slice const&)", "Get", True),
        ("rocksdb::DB::MultiGet(int)", "Get", False),
        ("reencode", "encode", False),
        ("encode.constprop.0", "encode", True),
        ("encode.part.0.isra.3.cold", "encode", True),
        ("encode.partial", "encode", False),
        ("serial.c:10", "serial.c:10", True),
        ("src/serial.c:10", "serial.c:10", True),
        ("heavy (serial.c:10)", "serial.c:10", True),
        ("serial.c:100", "serial.c:10", False),
        ("ns::(anonymous namespace)::encode", "encode", True),
        ("(anonymous namespace)::encode(int)", "encode", True),
        ("ns::hot [clone .isra.0]", "ns::hot", True),
        ("hot.constprop.0'2", "hot", True),
        ("hot@plt", "hot", True),
        ("void sort_it<int*>(int*, int*)", "sort_it", True),
        ("std::map<int, Foo<int> > ns::sort_it<a::b>(int)", "ns::sort_it", True),
        ("ns::Map<int, Foo>::get", "Map::get", True),
        ("ns::Map<int, Foo>::get", "Map<int, Foo>::get", True),
        ("ns::Map<int, Foo>::get", "Foo", False),
        ("audio_read (src/audio.c:12)", "io.c:audio_read", False),
        ("DB::get (db/db.cc:3)", "db.cc:DB::get", True),
        ("Foo::operator()(int) const", "Foo::operator()", True),
        ("bool ns::operator< <int>(int)", "operator<", True),
        ("ns::It::operator->", "It::operator->", True),
        ("operator new(unsigned long)", "operator new", True),
        ("void* ns::Pool::operator new(unsigned long)", "Pool::operator new", True),
        ("<lambda> (app.py:12)", "<lambda>", True),
        ("f.<locals>.<lambda> (app.py:12)", "<lambda>", True),
        ("f.<locals>.g (app.py:12)", "g", True),
        ("<core::iter::Map<I,F> as Iterator>::next", "next", True),
        ("main.(*Tree).Insert", "Tree.Insert", True),
        ("handle (app.py:12)", "Server.handle", False),
    ],
)
def test_a_function_is_known_by_its_name(frame: str, function: str, expected: bool) -> None:
    assert matches(frame, function) is expected


def test_claims_stand_above_the_diff() -> None:
    text = (
        b"Hypothesis: less\nClaim: encode cpu_seconds\nclaim:  DB::Get(a b)  ops\n"
        b"Claim: encode cpu_seconds\nClaim: nothing\ndiff --git a/x b/x\nClaim: no x\n"
    )
    assert claims_of(text) == (
        Claim(function="encode", metric="cpu_seconds"),
        Claim(function="DB::Get(a b)", metric="ops"),
    )


@given(st.binary())
def test_any_text_may_stand_there(text: bytes) -> None:
    assert isinstance(claims_of(text), tuple)


def test_a_stack_counts_once_and_what_is_no_stack_not_at_all() -> None:
    stacks = "f;f 2\ng 1\n\nnonsense\nf x\nf nan\nf -3\n 4\n"
    assert cost_in(stacks, "f") == (2.0, 3.0)


def test_a_function_that_got_cheaper_is_confirmed() -> None:
    found = check_claim(CLAIM, "s", [samples(500, 500)], [samples(100, 500)], [effect(0.4)])
    assert found.status == "confirmed"
    assert found.change is not None
    expected = math.log((1 / 6) / (1 / 2)) - 0.4
    assert found.change.value == pytest.approx(expected)
    assert found.change.low is not None
    assert found.change.high is not None
    assert found.change.low < expected < found.change.high < 0
    assert found.share_before is not None
    assert found.share_before.value == 0.5
    assert "50.0 % before" in found.detail


def test_an_effect_without_an_interval_shifts_the_change_alone() -> None:
    effects = [evolve(effect(0.4), low=None, high=None)]
    found = check_claim(CLAIM, "s", [samples(500, 500)], [samples(100, 500)], effects)
    sure = check_claim(CLAIM, "s", [samples(500, 500)], [samples(100, 500)], [effect(0.4)])
    assert found.change is not None
    assert sure.change is not None
    assert found.change.value == sure.change.value
    assert found.change.low is not None
    assert sure.change.low is not None
    assert found.change.low > sure.change.low


def test_faster_elsewhere_is_seen() -> None:
    """Half of the rest is gone: the share of the function grew, its cost did not change."""
    found = check_claim(
        CLAIM, "s", [samples(500, 500)], [samples(667, 333)], [effect(math.log(1 / 0.75))]
    )
    assert found.status == "unchanged"


def test_a_function_that_got_dearer_is_opposite() -> None:
    found = check_claim(CLAIM, "s", [samples(100, 900)], [samples(400, 900)], [])
    assert found.status == "opposite"


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [(300, 0, "confirmed"), (0, 300, "opposite"), (2, 0, "unchanged"), (0, 2, "unchanged")],
)
def test_a_function_that_is_gone_or_new(before: int, after: int, expected: str) -> None:
    found = check_claim(CLAIM, "s", [samples(before, 700)], [samples(after, 700)], [])
    assert (found.status, found.change) == (expected, None)


def test_what_no_profile_has_seen_is_said() -> None:
    claim = Claim(function="decode", metric="cpu")
    found = check_claim(claim, "s", [samples(1, 2)], [samples(1, 2)], [])
    assert (found.status, found.profiler) == ("not_seen", "py-spy")


def test_without_both_profiles_nothing_is_measured() -> None:
    for before, after in (([samples(1, 2)], []), ([], [samples(1, 2)])):
        assert check_claim(CLAIM, "s", before, after, []).status == "not_measured"
    of_time = [samples(1, 2)]
    assert check_claim(CLAIM, "MB", of_time, of_time, []).status == "not_measured"
    empty = [Profile(profiler="perf", stacks="", unit="samples")]
    assert check_claim(CLAIM, "s", empty, empty, []).status == "not_seen"


def test_bytes_are_compared_as_they_are() -> None:
    before = Profile(profiler="memray", stacks="main;encode 1000\nmain 10\n", unit="bytes")
    after = Profile(profiler="memray", stacks="main;encode 500\nmain 10\n", unit="bytes")
    found = check_claim(CLAIM, "MB", [before], [after], [effect(0.3)])
    assert found.status == "confirmed"
    assert found.change is not None
    assert found.change.value == pytest.approx(math.log(0.5))
    same = check_claim(CLAIM, "MB", [before], [before], [effect(0.3)])
    assert same.status == "unchanged"


def weights(encode: int, profiler: str = "callgrind", unit: str = "instructions") -> Profile:
    stacks = f"main;encode {encode}\nmain;rest 99000000\n"
    return Profile(profiler=profiler, stacks=stacks, unit=unit)


@pytest.mark.parametrize(("many", "expected"), [(10_000_000, "py-spy"), (5, "callgrind")])
def test_whoever_can_tell_most_precisely_is_asked(many: int, expected: str) -> None:
    """Of few samples a change cannot be seen that instruction counts show."""
    before, after = [weights(1000), samples(many, 500)], [weights(500), samples(many // 2, 500)]
    found = check_claim(CLAIM, "s", before, after, [])
    assert (found.profiler, found.status) == (expected, "confirmed")


def test_waiting_is_asked_only_where_it_can_be_meant() -> None:
    waits, few = weights(1000, "offcpu", "us"), samples(5, 5)
    for metric, expected in (("cpu", "py-spy"), ("wall_seconds", "offcpu")):
        claim = Claim(function="encode", metric=metric)
        assert check_claim(claim, "s", [few, waits], [few, waits], []).profiler == expected
    fewer = weights(800, "offcpu", "us")
    assert check_claim(CLAIM, "s", [waits], [fewer], []).status == "unchanged"


@pytest.mark.parametrize("metric", ["wall_seconds", "p99_ms", "no_such_metric"])
def test_samples_are_not_in_proportion_to_time_that_is_no_cpu_time(metric: str) -> None:
    """A sleep that is gone halves the wall time, and no function on the CPU has changed."""
    claim = Claim(function="encode", metric=metric)
    halved = evolve(effect(math.log(2)), metric=metric)
    same = [samples(600, 400)]
    assert check_claim(claim, "s", same, same, [halved]).status == "unchanged"
    assert check_claim(claim, "s", same, same, [halved, effect(0.0)]).status == "unchanged"
    # Where the rest became less, the share says nothing, and the number does.
    assert check_claim(claim, "s", same, [samples(600, 40)], [halved]).status == "unchanged"
    half = check_claim(claim, "s", same, [samples(300, 400)], [halved])
    assert half.status == "confirmed"
    assert half.change is not None
    assert half.change.value == pytest.approx(math.log(0.5))


def test_lines_are_compared_with_what_came_of_them() -> None:
    def lines(*weights: tuple[int, int]) -> list[Profile]:
        stacks = "".join(f"/src/w.c:{line} {weight}\n" for line, weight in weights)
        return [Profile(profiler="coz", stacks=stacks, unit="samples")]

    claim = Claim(function="w.c:120", metric="cpu")
    before, moved = lines((120, 600), (9, 400)), lines((123, 600), (9, 400))
    assert check_claim(claim, "s", before, moved, [], ["w.c:123"]).status == "unchanged"
    assert check_claim(claim, "s", before, moved, []).status == "not_measured"
    split = lines((120, 200), (121, 100), (9, 400))
    found = check_claim(claim, "s", before, split, [], ["w.c:120", "w.c:121"])
    assert found.status == "confirmed"
    assert found.change is not None
    assert found.change.value == pytest.approx(math.log(0.5))
    assert check_claim(claim, "s", before, lines((9, 400)), [], []).status == "confirmed"


@given(*[st.integers(0, 2000) for _ in range(4)])
def test_an_unchanged_profile_confirms_nothing(a: int, b: int, c: int, d: int) -> None:
    same = samples(a, b)
    assert check_claim(CLAIM, "s", [same], [same], []).status in ("unchanged", "not_seen")
    forth = check_claim(CLAIM, "s", [samples(a, b)], [samples(c, d)], [])
    back = check_claim(CLAIM, "s", [samples(c, d)], [samples(a, b)], [])
    mirror = {"confirmed": "opposite", "opposite": "confirmed"}
    assert back.status == mirror.get(forth.status, forth.status)
