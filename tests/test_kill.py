"""The kill suite in short: `make kill-suite` has ten times as many kills."""

import sys

import pytest

from tests.kill_suite.__main__ import Result, run_suite
from tests.kill_suite.plans import CONTROLS

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="the local backend is for Linux"),
]


@pytest.fixture(scope="module")
def result() -> Result:
    return run_suite(kills=30, seed="short", jobs=6, seconds=0.1)


def test_a_campaign_survives_every_kill(result: Result) -> None:
    assert list(result.violations()) == []
    assert result.total >= 30


@pytest.mark.parametrize("control", CONTROLS)
def test_a_missing_protection_is_noticed(result: Result, control: str) -> None:
    assert control not in result.powerless(), result.controls[control]
