"""The small process between the controller and a command; run as a script, standard library only.

It lives in a session of its own and runs one command after the other. Whatever a command starts
stays below it: it is a child subreaper, so an orphan, even one that made itself a daemon, becomes
its child. So it can tell when nothing is left (`wait` says that there are no children), and it
alone counts what all of them used. When the controller dies, however it dies, the socket between
them ends, and everything below is killed at once.

Killing everything is one system call where the kernel has Landlock interface 6: the supervisor has
put itself into a domain whose members cannot signal anything outside, and nobody can leave a
domain, so `kill(-1)` reaches exactly what it has ever started. The kernel does that atomically with
respect to fork: a chain of processes that respawn faster than anybody can read /proc ends too.
Elsewhere it walks /proc, stopping before killing, until nothing is left.

The lease of the controller is held, never unlocked, and not passed on, from the request until
nothing of the command is left: so a second controller cannot begin while something of the first is
alive.

It is also small so that peak memory is honest: on exec the kernel keeps the high-water mark of the
process that called it, so no command appears to have used less than this process (about 10 MB), and
it would be hundreds below a real controller.

It must start fast (every experiment starts one): hence marshal instead of json, and the C halves of
socket and signal, which do not import enum and re. Both ends of the socket are the same
interpreter, and no command ever holds an end.

    request  ("run", number, tell, leased, locked) with descriptors: [lease,] request, stdin,
             stdout, stderr[, stages lock][, ruleset]
             ("kill", number, grace seconds)
    reply    ("started", number, pid), if told to tell
             ("done", number, status, wall, cpu, peak rss bytes, involuntary switches,
              major faults, strays killed)
             ("failed", number, text)
"""

# ruff: noqa: SIM105  (contextlib costs start-up)

import _signal as signal  # type: ignore[import-not-found, unused-ignore]
import _socket
import ctypes
import errno
import fcntl
import gc
import marshal
import os
import resource
import select
import struct
import sys
import time

TYPE_CHECKING = False  # typing costs start-up
if TYPE_CHECKING:
    from typing import Any

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_NAME = 1, 4, 15
_PR_CAPBSET_DROP = 24
_PR_SET_CHILD_SUBREAPER, _PR_SET_NO_NEW_PRIVS = 36, 38
_LANDLOCK_RESTRICT_SELF = 446
_LOCK_DESCRIPTOR = 90
_MOST_DESCRIPTORS = 7

# fmt: off
_POWERS = {
    "linux_immutable": 9, "net_admin": 12, "net_raw": 13, "sys_module": 16, "sys_rawio": 17,
    "sys_ptrace": 19, "sys_pacct": 20, "sys_admin": 21, "sys_boot": 22, "sys_time": 25,
    "sys_tty_config": 26, "mknod": 27, "audit_control": 30, "mac_override": 32, "mac_admin": 33,
    "syslog": 34, "wake_alarm": 35, "block_suspend": 36, "audit_read": 37, "perfmon": 38, "bpf": 39,
    "checkpoint_restore": 40,
}
# fmt: on

_libc = ctypes.CDLL(None, use_errno=True)


def _prctl(option: int, value: "int | bytes") -> None:
    argument = ctypes.c_char_p(value) if isinstance(value, bytes) else ctypes.c_ulong(value)
    zero = ctypes.c_ulong(0)
    if _libc.prctl(option, argument, zero, zero, zero):
        raise OSError(ctypes.get_errno(), f"prctl({option})")


def _restrict(ruleset: int) -> None:
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    if _libc.syscall(_LANDLOCK_RESTRICT_SELF, ruleset, ctypes.c_uint32(0)):
        raise OSError(ctypes.get_errno(), "landlock_restrict_self")


class Job:
    """The command that is running, and what has been used below it so far."""

    def __init__(
        self, number: int, pid: int, began: float, channel: _socket.socket, lease: int
    ) -> None:
        self.number = number
        self.lease = lease
        self.pid = pid
        self.began = began
        self.channel = channel
        self.status: int | None = None
        self.wall = 0.0
        self.cpu = 0.0
        self.peak_kib = 0
        self.switches = 0
        self.faults = 0
        self.strays = 0
        self.kill_at: float | None = None

    def count(self, pid: int, status: int, used: resource.struct_rusage, killing: bool) -> None:
        # A process's figures include those of the children that it waited for; the rest come to us
        # as orphans.
        self.cpu += used.ru_utime + used.ru_stime
        self.peak_kib = max(self.peak_kib, used.ru_maxrss)
        self.switches += used.ru_nivcsw
        self.faults += used.ru_majflt
        if pid == self.pid:
            self.status = status
            self.wall = time.monotonic() - self.began
        elif killing and os.WIFSIGNALED(status) and os.WTERMSIG(status) == 9:
            self.strays += 1


class Supervisor:
    def __init__(self, link: int, scope: int, ignored: "list[int]") -> None:
        self.ignored = ignored
        self.link = _socket.socket(fileno=link)
        self.pid = os.getpid()
        self.atomic = scope >= 0 and self._enter(scope)
        self.terminated = False
        self.job: Job | None = None
        self.ahead: tuple[int, _socket.socket] | None = None
        self.wake, wake_end = os.pipe()
        os.set_blocking(self.wake, False)
        os.set_blocking(wake_end, False)
        signal.set_wakeup_fd(wake_end, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._terminate)

    def _terminate(self, *_: object) -> None:
        self.terminated = True

    @staticmethod
    def _enter(scope: int) -> bool:
        """Whether `kill(-1)` is now safe: proved on our own parent.

        It could be signalled before and cannot be any more. Asking only afterwards would prove
        nothing: if the controller had just died, our parent would be init, which an ordinary user
        may never signal, and `kill(-1)` would reach all that the user runs.
        """
        parent = os.getppid()
        try:
            os.kill(parent, 0)
        except OSError:
            os.close(scope)
            return False
        _restrict(scope)
        os.close(scope)
        try:
            os.kill(parent, 0)
        except PermissionError:
            return os.getppid() == parent
        except ProcessLookupError:
            pass
        return False

    def serve(self) -> int:
        self.ahead = self.fork_ahead()
        poller = select.poll()
        poller.register(self.link.fileno(), select.POLLIN)
        poller.register(self.wake, select.POLLIN)
        while True:
            job = self.job
            wait = None
            if job is not None and job.kill_at is not None:
                wait = max(0.0, job.kill_at - time.monotonic()) * 1000 + 1
            ready = dict(poller.poll(wait))
            if self.wake in ready:
                try:
                    os.read(self.wake, 4096)
                except BlockingIOError:
                    pass
            if self.terminated or (self.link.fileno() in ready and not self.obey()):
                self.clear()
                return 0
            if self.job is not None:
                self.advance(self.job)

    def obey(self) -> bool:
        """Take one message; False if the controller is gone."""
        data, descriptors = _receive(self.link)
        if not data:
            return False
        message = marshal.loads(data)
        if message[0] == "run":
            self.begin(message, descriptors)
        elif self.job is not None and message[1] == self.job.number:
            grace = message[2]
            if grace > 0 and self.job.kill_at is None:
                try:
                    os.killpg(self.job.pid, 15)
                except (ProcessLookupError, PermissionError):
                    pass
            self.job.kill_at = time.monotonic() + grace
        return True

    def reply(self, *message: object) -> None:
        try:
            self.link.send(marshal.dumps(message))  # type: ignore[arg-type, unused-ignore]
        except (BrokenPipeError, ConnectionResetError):
            self.terminated = True

    def begin(self, message: "tuple[object, ...]", descriptors: "list[int]") -> None:
        """Hand the request over to the child that was forked ahead."""
        _, number, tell, leased, locked = message
        lease = descriptors.pop(0) if leased else -1
        while True:
            pid, channel = self.ahead or self.fork_ahead()
            self.ahead = None
            began = time.monotonic()
            try:
                raw = struct.pack(f"{len(descriptors)}i", *descriptors)
                rights = [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, raw)]
                channel.sendmsg([b"locked" if locked else b"free"], rights)
                break
            except (BrokenPipeError, ConnectionResetError):
                channel.close()  # somebody killed it while it waited
                os.waitpid(pid, 0)
        for descriptor in descriptors:
            os.close(descriptor)
        self.job = Job(number, pid, began, channel, lease)  # type: ignore[arg-type]
        if tell:
            self.reply("started", number, pid)

    def fork_ahead(self) -> "tuple[int, _socket.socket]":
        """The process of the next command and the socket at which it waits for it.

        A fork, with the pages that the child copies then, costs as much as all the rest, and there
        is time for it between two commands.
        """
        channel, theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
        pid = os.fork()
        if pid == 0:
            try:
                channel.close()
                self.become(theirs)
            except BaseException as error:
                theirs.send(f"{type(error).__name__}: {error}".encode()[:2000])
            finally:
                os._exit(125)
        theirs.close()
        return pid, channel

    def become(self, channel: _socket.socket) -> None:
        """In the child: turn into the command. Returns never; raises if the machinery fails."""
        _prctl(_PR_SET_PDEATHSIG, 9)
        if os.getppid() != self.pid:
            os._exit(125)
        for number in self.ignored:
            signal.signal(number, signal.SIG_DFL)
        os.setsid()
        data, descriptors = _receive(channel)
        if not data:
            os._exit(125)
        with open(descriptors.pop(0), "rb") as file:
            request = marshal.loads(file.read())
        for target, source in enumerate(descriptors[:3]):
            os.dup2(source, target)
        del descriptors[:3]
        if data == b"locked":
            fcntl.fcntl(descriptors.pop(0), fcntl.F_DUPFD, _LOCK_DESCRIPTOR)
        if descriptors:
            _restrict(descriptors[0])
        _execute(request)

    def advance(self, job: Job) -> None:
        """Reap what has ended; finish the command if it is over or its time is."""
        empty = self.reap(job, killing=False)
        late = job.kill_at is not None and time.monotonic() >= job.kill_at
        if job.status is None and not late:
            return
        if not empty:
            self.clear()
        self.job = None
        trouble = _receive(job.channel)[0]  # nothing, once it has executed
        job.channel.close()
        if job.lease >= 0:
            os.close(job.lease)
        if trouble:
            self.reply("failed", job.number, trouble.decode(errors="replace"))
            return  # and the controller lets go of us
        self.reply(
            "done",
            job.number,
            job.status,
            job.wall,
            job.cpu,
            job.peak_kib * 1024,
            job.switches,
            job.faults,
            job.strays,
        )
        self.ahead = self.fork_ahead()

    def reap(self, job: "Job | None", killing: bool) -> bool:
        """Take everything that has ended; True if nothing is left below us."""
        while True:
            try:
                pid, status, used = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                return True
            if pid == 0:
                return False
            if job is not None:
                job.count(pid, status, used, killing)

    def clear(self) -> None:
        """Kill everything below, and return when it is gone."""
        while True:
            if self.atomic:
                try:
                    os.kill(-1, 9)
                except ProcessLookupError:
                    pass
            else:
                _kill_below(self.pid)
            for _ in range(40):
                if self.reap(self.job, killing=True):
                    return
                time.sleep(0.0005)


def _receive(link: _socket.socket) -> "tuple[bytes, list[int]]":
    """One message and its descriptors; an empty one if the other side is gone."""
    space = _socket.CMSG_SPACE(4 * _MOST_DESCRIPTORS)
    try:
        data, ancillary, _, _ = link.recvmsg(4096, space, _socket.MSG_CMSG_CLOEXEC)
    except ConnectionResetError:
        return b"", []
    return data, [fd for _, _, raw in ancillary for fd in memoryview(raw).cast("i")]


def _execute(request: "Any") -> None:
    """Execute; if that fails say so and exit as a shell would."""
    argv, cwd = request["argv"], request["cwd"]
    try:
        os.chdir(cwd)
    except OSError as error:
        os.write(2, f"aiopt: cannot enter {cwd}: {error.strerror}\n".encode())
        os._exit(127)
    reason = errno.ENOENT
    for file in request["files"]:
        try:
            os.execve(file, argv, request["env"])
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR):
                reason = error.errno or reason
                if reason != errno.EACCES:
                    break
    os.write(2, f"aiopt: cannot execute {argv[0]}: {os.strerror(reason)}\n".encode())
    os._exit(127 if reason == errno.ENOENT else 126)


def _kill_below(root: int) -> None:
    """Stop, then kill, all descendants: what is stopped cannot fork away in between."""
    known: set[int] = set()
    while True:
        found = _descendants(root) - known
        if not found:
            break
        known |= found
        _signal_all(found, 19)
    _signal_all(known, 9)


def _signal_all(pids: "set[int]", number: int) -> None:
    for pid in pids:
        try:
            os.kill(pid, number)
        except (ProcessLookupError, PermissionError):
            pass


def _descendants(root: int) -> "set[int]":
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            with open(f"/proc/{name}/stat", "rb") as file:
                state, parent = file.read().rpartition(b")")[2].split()[:2]
        except OSError:
            continue
        if state not in (b"Z", b"X"):
            children.setdefault(int(parent), []).append(int(name))
    found: set[int] = set()
    queue = [root]
    while queue:
        for child in children.get(queue.pop(), ()):
            if child not in found:
                found.add(child)
                queue.append(child)
    return found


def _prepare() -> "list[int]":
    """What all commands inherit. Returns the signals that they must not ignore as we do."""
    os.umask(0o022)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    try:
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write("500")  # short of memory, the kernel shall take the command, not others
    except OSError:
        pass
    known = range(1, signal.NSIG)
    return [number for number in known if signal.getsignal(number) == signal.SIG_IGN]


def _drop_powers(kept: "list[str]") -> None:
    """Take from commands what root may do to others, and to the machine; no one else has it anyway.

    `perfmon` and `sys_admin` are among it: with either, root reads the environment of any process,
    Landlock or not, and with that the keys of the controller.
    """
    for name, number in _POWERS.items():
        if name not in kept:
            try:
                _prctl(_PR_CAPBSET_DROP, number)
            except OSError:
                pass  # not root, or a capability that this kernel does not know


def main(arguments: "list[str]") -> int:
    link, scope = (int(argument) for argument in arguments[:2])
    for descriptor in (link, scope):
        if descriptor >= 0:
            os.set_inheritable(descriptor, False)
    ignored = _prepare()
    if arguments[2] != "all":
        _drop_powers(arguments[2].split(","))
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    _prctl(_PR_SET_DUMPABLE, 0)  # no debugger of the same user, and no /proc/PID/mem
    _prctl(_PR_SET_NAME, b"aiopt-superviso")
    gc.disable()
    return Supervisor(link, scope, ignored).serve()


if __name__ == "__main__":
    os._exit(main(sys.argv[1:]))
