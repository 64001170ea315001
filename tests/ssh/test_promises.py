"""The ssh backend keeps the promises of every backend."""

from pathlib import Path

import pytest

from aiopt.backends.ssh import SshBackend
from aiopt.testing import CHECKS, Check, check_backend

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("check", CHECKS, ids=str)
async def test_promises(check: Check, backend: SshBackend, tmp_path: Path) -> None:
    await check_backend(backend, root=tmp_path, only=[check])
