import os
import subprocess
import sys
from typing import Any

import numpy as np
import orjson
import pytest
from attrs import frozen
from hypothesis import given

from aiopt.codec import SCHEMA_VERSIONS, UPCASTERS, Codec, decode, encode
from aiopt.errors import CorruptLogError, UnknownEventError
from aiopt.events import (
    EVENT_TYPES,
    BudgetSpent,
    CampaignStarted,
    EnvironmentObserved,
    Event,
    GatePassed,
    RunMeasured,
    StageFinished,
)
from tests.factories import SAMPLES, arbitrary, events, make


@pytest.mark.parametrize("cls", EVENT_TYPES, ids=lambda cls: cls.__name__)
def test_every_type_of_event_comes_back_equal(cls: type) -> None:
    """decode(encode(e)) == e for any event of every type, and encoding it again changes nothing."""

    @given(arbitrary(cls))
    def law(event: Event) -> None:
        row = encode(event)
        assert row[:2] == (cls.__name__, SCHEMA_VERSIONS[cls.__name__])
        assert decode(*row) == event
        assert encode(decode(*row)) == row

    law()


@given(events())
def test_payloads_are_canonical(event: Event) -> None:
    """A payload is what sorting its keys makes of it."""
    payload = encode(event)[2]
    again = orjson.dumps(orjson.loads(payload), option=orjson.OPT_SORT_KEYS)
    assert again.decode() == payload


@pytest.mark.parametrize("event", [make(StageFinished), make(StageFinished, signal=None)])
def test_bytes_are_taken_too(event: Event) -> None:
    """A payload may come as text or as UTF-8."""
    name, version, payload = encode(event)
    assert decode(name, version, payload.encode()) == event


def test_hash_seed_does_not_matter() -> None:
    """The same events have the same bytes under any PYTHONHASHSEED."""
    program = (
        "from tests.factories import make\n"
        "from aiopt.codec import encode\n"
        "from aiopt.events import EVENT_TYPES, EnvironmentObserved\n"
        "names = {f'fact {n}' for n in range(50)}\n"
        "print([encode(make(cls)) for cls in EVENT_TYPES])\n"
        "print(encode(EnvironmentObserved(environment='x', facts=dict.fromkeys(names, 1))))\n"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(SAMPLES.parents[2])},
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("0", "1", "2")
    }
    assert len(outputs) == 1


# ---- what an event cannot hold ----


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf"), np.float64("nan")])
@pytest.mark.parametrize("log", [None, "null"])
def test_no_nan_and_no_infinity(bad: float, log: str | None) -> None:
    """A number that is not finite is refused with its place, also beside fields that are None."""
    with pytest.raises(ValueError, match=r"RunMeasured\.metrics\.p99\[1\] is .*finite"):
        encode(make(RunMeasured, metrics={"p50": (), "p99": (1.0, bad)}, log=log))
    facts = {"": {"x": 1.0}, "a": [None, 1.5, {"b": bad}]}
    with pytest.raises(ValueError, match=r"EnvironmentObserved\.facts\.a\[2\]\.b is"):
        encode(EnvironmentObserved(environment="x", facts=facts))
    with pytest.raises(ValueError, match=r"BudgetSpent\.amount is"):
        encode(make(BudgetSpent, amount=bad))


def test_nulls_are_no_numbers() -> None:
    """None inside an object, and the word null in a text, are fine."""
    event = EnvironmentObserved(environment="null", facts={"a": None, "b": [None, {"c": 0.5}]})
    assert decode(*encode(event)) == event


@pytest.mark.parametrize("bad", [2**64, object(), {1: 2}, "\ud800"])
def test_what_is_no_json_is_refused(bad: Any) -> None:
    """What JSON cannot hold is a ValueError that names the event."""
    with pytest.raises(ValueError, match="EnvironmentObserved cannot be written as JSON"):
        encode(EnvironmentObserved(environment="x", facts={"a": bad}))


def test_numpy_floats_are_floats() -> None:
    """A numpy float is written as the number it is."""
    assert encode(make(BudgetSpent, amount=np.float64(0.1))) == encode(
        make(BudgetSpent, amount=0.1)
    )


def test_only_events_are_encoded() -> None:
    """What is no event is a TypeError."""
    with pytest.raises(TypeError, match="dict is no class of event"):
        encode({})  # type: ignore[arg-type]


# ---- what cannot be decoded ----


def test_unknown_types_are_named() -> None:
    """An unknown type is named, with what is known and what to do."""
    with pytest.raises(
        UnknownEventError, match=r"ThingHappened \(version 3\).*GatePassed.*upgrade"
    ):
        decode("ThingHappened", 3, "{}")


@pytest.mark.parametrize("version", [0, 2])
def test_unknown_versions_are_named(version: int) -> None:
    """A version that this aiopt does not know is named, with what is known and what to do."""
    with pytest.raises(UnknownEventError, match=f"version {version} here.*1 to 1.*upgrade"):
        decode("GatePassed", version, '{"gate": "test"}')


@pytest.mark.parametrize(
    "payload",
    ["", "{", "[]", "null", "{}", '{"gate":"a","more":1}', b'{"gate":"\xff"}'],
)
def test_damaged_payloads_are_corrupt(payload: str | bytes) -> None:
    """A payload that is not what its class looks like is CorruptLogError, whatever is wrong."""
    with pytest.raises(CorruptLogError, match="no GatePassed of version 1"):
        decode("GatePassed", 1, payload)


@pytest.mark.parametrize("field", ["spec", "config"])
def test_objects_are_objects(field: str) -> None:
    """A JSON object that is none is CorruptLogError."""
    name, version, payload = encode(make(CampaignStarted))
    tree = {**orjson.loads(payload), field: [1]}
    with pytest.raises(CorruptLogError, match="no JSON object"):
        decode(name, version, orjson.dumps(tree))


# ---- versions ----


@frozen(kw_only=True)
class Moved:
    """A made-up event at its third version."""

    metres: float
    to: str


def _second(tree: dict[str, Any]) -> dict[str, Any]:
    return {"feet": tree["feet"], "to": "nowhere"}


def _third(tree: dict[str, Any]) -> dict[str, Any]:
    return {"metres": tree["feet"] * 0.3048, "to": tree["to"]}


def test_upcasters_are_chained() -> None:
    """An old version is brought to the current one step by step; the current one stays as it is."""
    codec = Codec([Moved], {"Moved": 3}, {("Moved", 1): _second, ("Moved", 2): _third})
    assert codec.decode("Moved", 1, '{"feet": 10}') == Moved(metres=3.048, to="nowhere")
    assert codec.decode("Moved", 2, '{"feet": 10, "to": "x"}') == Moved(metres=3.048, to="x")
    assert codec.decode("Moved", 3, '{"metres": 1, "to": "x"}') == Moved(metres=1.0, to="x")
    assert codec.encode(Moved(metres=1.0, to="x")) == ("Moved", 3, '{"metres":1.0,"to":"x"}')
    with pytest.raises(UnknownEventError, match="1 to 3"):
        codec.decode("Moved", 4, "{}")
    with pytest.raises(CorruptLogError, match="no Moved of version 1: KeyError"):
        codec.decode("Moved", 1, "{}")


def test_a_gap_in_the_chain_is_an_error() -> None:
    """A codec that could not read one of the old versions is not made."""
    with pytest.raises(ValueError, match=r"Moved is at version 3 but has no upcaster from \[1\]"):
        Codec([Moved], {"Moved": 3}, {("Moved", 2): _third})


def test_every_version_has_a_sample() -> None:
    """There is a frozen sample of every version of every type, and of nothing else."""
    expected = {
        f"{name}.v{version}.json"
        for name, current in SCHEMA_VERSIONS.items()
        for version in range(1, current + 1)
    }
    found = {path.name for path in SAMPLES.iterdir()}
    assert found == expected, "python tests/factories.py writes the samples that are missing"
    assert set(SCHEMA_VERSIONS) == {cls.__name__ for cls in EVENT_TYPES}
    assert {name for name, _ in UPCASTERS} <= set(SCHEMA_VERSIONS)


@pytest.mark.parametrize("path", sorted(SAMPLES.glob("*.json")), ids=lambda path: path.stem)
def test_samples_decode(path: Any) -> None:
    """What was released once can be read, and nobody changed a payload under the same version."""
    name, _, version = path.stem.partition(".v")
    event = decode(name, int(version), path.read_bytes())
    assert type(event).__name__ == name
    if int(version) == SCHEMA_VERSIONS[name]:
        assert orjson.loads(encode(event)[2]) == orjson.loads(path.read_bytes())


def test_gates_are_small() -> None:
    """A payload has no blanks."""
    assert encode(GatePassed(gate="test")) == ("GatePassed", 1, '{"gate":"test"}')
