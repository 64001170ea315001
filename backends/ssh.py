"""Run on another machine to which one can log in with ssh; aiopt need not be installed there.

It needs an OpenSSH server, sh and Python 3.9 or newer, nothing else. What aiopt needs is sent
there, into `folder`, and everything of it but the store of contents is gone when the campaign is
over. Which machine, which key, through which other machines: `~/.ssh/config` says that, as for the
`ssh` command. The key of the host is always checked.

    [environments.lab]
    backend = "ssh"
    options = { host = "cslab-server" }

Commands run there as they do under the local backend, each under a supervisor and confined to its
workspace (see `machine`), and go on when the connection breaks.
"""

import asyncio
import hashlib
import hmac
import os
import secrets
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import anyio
from attrs import define, frozen

from aiopt.errors import BackendUnavailable, SessionLost
from aiopt.events import ProcessRef
from aiopt.protocols import Workspace, WorkspaceSpec

from ._link import Channel, Connection, Link, bootstrap
from ._remote import RemoteOptions, RemoteSession
from .machine.locks import LOCK

try:
    import asyncssh
except ModuleNotFoundError as error:
    raise ImportError("asyncssh is not installed; pip install 'aiopt[ssh]'") from error

__all__ = ["SshBackend"]


@frozen(kw_only=True)
class SshBackend:
    """A machine behind ssh."""

    host: str
    """As after `ssh`: an alias of `~/.ssh/config`, or a name; `user@` may stand before it."""
    config: str = "~/.ssh/config"
    """Where aliases are looked up."""
    port: int | None = None
    """Another one than the configuration's."""
    folder: str = "~/.cache/aiopt"
    """Where files go there: on a local disk, not on one that machines share."""
    python: str = "python3"
    output_cap_bytes: int = 8 << 20
    """Of stdout and of stderr, each: half of it from the beginning, half from the end."""
    grace_seconds: float = 2.0
    """Between TERM and KILL, at a timeout or an interruption."""
    confine: bool = True
    """Whether to use Landlock where the kernel there has it."""
    capabilities: tuple[str, ...] = ()
    """What commands keep of the powers of root, if we log in as root."""
    shared_memory: bool = True
    """Whether commands may use /dev/shm."""
    lock_path: str = LOCK
    """What is locked there while measuring; one per machine."""
    connect_seconds: float = 20.0
    keepalive_seconds: float = 5.0
    """A connection is lost when nothing came for four times as long."""
    patience_seconds: float = 900.0
    """For so long a lost connection is tried again."""
    lease_seconds: float = 1800.0
    """For so long commands there go on without us; then they are ended and removed."""

    @asynccontextmanager
    async def session(self, marker: str) -> AsyncIterator[RemoteSession]:
        """See `aiopt.protocols.Backend.session`."""
        login = _Login(self)
        link = Link(
            Connection(
                open=login.channel,
                where=self.host,
                root=self.folder,
                session=_derived("session", self.host, marker)[:24],
                options={
                    "token": _derived("token", self.host, marker),
                    "marker": marker,
                    "lease_seconds": self.lease_seconds,
                    "confine": self.confine,
                    "capabilities": list(self.capabilities),
                    "shared_memory": self.shared_memory,
                },
                patience=self.patience_seconds,
            )
        )
        options = RemoteOptions(
            output_cap_bytes=self.output_cap_bytes,
            grace_seconds=self.grace_seconds,
            lock_path=self.lock_path,
        )
        try:
            await link.open()
            connected = RemoteSession(link, marker, options)
            try:
                yield connected
            finally:
                with anyio.CancelScope(shield=True):
                    await link.close(keep_trees=connected.keeps_trees)
        finally:
            await login.close()

    @asynccontextmanager
    async def open(self, spec: WorkspaceSpec) -> AsyncIterator[Workspace]:
        """See `aiopt.protocols.Backend.open`."""
        async with self.session(spec.marker) as session, session.open(spec) as workspace:
            yield workspace

    async def observe(self) -> Mapping[str, Any]:
        """See `aiopt.protocols.Backend.observe`."""
        async with self.session(_one_off()) as session:
            return await session.observe()

    def building(self) -> AbstractAsyncContextManager[None]:
        """See `aiopt.protocols.Backend.building`."""
        return self._locked("building")

    def measuring(self) -> AbstractAsyncContextManager[None]:
        """See `aiopt.protocols.Backend.measuring`."""
        return self._locked("measuring")

    @asynccontextmanager
    async def _locked(self, kind: str) -> AsyncIterator[None]:
        async with self.session(_one_off()) as session:
            lock = session.building() if kind == "building" else session.measuring()
            async with lock:
                yield

    async def kill_remains(
        self, marker: str, supervisors: Sequence[ProcessRef], spared: Sequence[str] = ()
    ) -> int:
        """See `aiopt.protocols.Backend.kill_remains`."""
        if not marker:
            return 0
        async with self.session(marker) as session:
            return await session.kill_remains(marker, supervisors, spared)


def _one_off() -> str:
    return f"aiopt-{secrets.token_hex(8)}"


def _derived(purpose: str, host: str, marker: str) -> str:
    """What only this user of this machine can know, and will know again after a crash."""
    text = "\0".join([purpose, host, marker]).encode()
    return hmac.new(_secret(), text, hashlib.sha256).hexdigest()


def _secret() -> bytes:
    state = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    path = Path(state, "aiopt", "secret")
    try:
        return path.read_bytes()
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        new = path.with_name(f"secret-{secrets.token_hex(6)}")
        new.touch(mode=0o600)
        new.write_bytes(secrets.token_bytes(32))
        with suppress(FileExistsError):  # another process was faster
            os.link(new, path)
        new.unlink()
        return path.read_bytes()


@define(eq=False)
class _Login:
    """One connection to the host, made when it is needed, and again when it is lost."""

    _backend: SshBackend
    _connection: asyncssh.SSHClientConnection | None = None

    async def channel(self) -> Channel:
        """Run the bootstrap there.

        Raises:
            BackendUnavailable: it would not work next time either.
            OSError, SessionLost: it may.
        """
        if self._connection is None or self._connection.is_closed():
            self._connection = await self._connect()
        try:
            process = await self._connection.create_process(
                bootstrap(self._backend.python), encoding=None, stderr=asyncio.subprocess.PIPE
            )
        except (asyncssh.ChannelOpenError, asyncssh.ConnectionLost) as error:
            self._connection.abort()
            self._connection = None
            raise SessionLost(str(error)) from error
        return _SshChannel(process)

    async def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            with suppress(OSError, asyncssh.Error, TimeoutError):
                async with asyncio.timeout(5):
                    await self._connection.wait_closed()

    async def _connect(self) -> asyncssh.SSHClientConnection:
        backend = self._backend
        user, at, host = backend.host.rpartition("@")
        given: dict[str, Any] = {}
        if at:
            given["username"] = user
        if backend.port is not None:
            given["port"] = backend.port
        config = await anyio.Path(backend.config).expanduser()
        try:
            return await asyncssh.connect(
                host,
                config=[str(config)] if await config.exists() else None,
                connect_timeout=backend.connect_seconds,
                keepalive_interval=backend.keepalive_seconds,
                keepalive_count_max=3,
                **given,
            )
        except asyncssh.HostKeyNotVerifiable as error:
            raise BackendUnavailable(_about_the_key(host, backend, error)) from error
        except asyncssh.PermissionDenied as error:
            raise BackendUnavailable(
                f"the login was refused: {error.reason}; to see why:  ssh -v {backend.host} true"
            ) from error
        except TimeoutError as error:
            raise SessionLost(f"no connection within {backend.connect_seconds:g} s") from error
        except asyncssh.Error as error:
            raise SessionLost(error.reason) from error


def _about_the_key(host: str, backend: SshBackend, error: asyncssh.Error) -> str:
    """Why the key of the host was not accepted, and what to do about it."""
    return f"{error.reason}; if that is right, accept its key once:  ssh {backend.host} true"


@frozen
class _SshChannel:
    _process: asyncssh.SSHClientProcess[bytes]

    async def read(self) -> bytes:
        try:
            return await self._process.stdout.read(1 << 18)
        except asyncssh.Error as error:
            raise ConnectionError(error.reason) from error

    async def write(self, data: bytes) -> None:
        try:
            self._process.stdin.write(data)
            await self._process.stdin.drain()
        except asyncssh.Error as error:
            raise ConnectionError(error.reason) from error

    async def close(self) -> str:
        ended = self._process.exit_status is not None
        said = b""
        if ended:
            with suppress(TimeoutError, OSError, asyncssh.Error):
                async with asyncio.timeout(2):
                    said = await self._process.stderr.read()
        self._process.close()
        return said.decode(errors="replace").strip()
