"""What all tests share: the event loop, and what a skip means where nothing may be missing."""

import os
from collections.abc import Generator
from typing import Any

import pytest
from hypothesis import settings

# No test depends on the clock, so none fails because the machine is busy.
settings.register_profile("aiopt", deadline=None)
settings.load_profile("aiopt")

NOTHING_MAY_BE_MISSING = os.environ.get("CI") == "true"


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """The event loop that aiopt runs on."""
    return "asyncio"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """With CI=true, a test that skips itself because it "needs …" has failed."""
    report = yield
    _lacking(report, call)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """The same for a module that skips all of its tests."""
    report = yield
    _lacking(report, getattr(report, "call", None))
    return report


def _lacking(report: Any, call: pytest.CallInfo[Any] | None) -> None:
    if not NOTHING_MAY_BE_MISSING or call is None or call.excinfo is None:
        return
    reason = str(getattr(call.excinfo.value, "msg", ""))
    if call.excinfo.errisinstance(pytest.skip.Exception) and reason.startswith("needs "):
        report.outcome = "failed"
        report.longrepr = f"{report.nodeid}: was skipped, with CI=true that is a failure: {reason}"
