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

It is also small so that peak memory is honest: on exec the kernel keeps the high-water mark of the
process that called it, so no command appears to have used less than this process (about 10 MB), and
it would be hundreds below a real controller.

It must start fast (every experiment starts one): hence marshal instead of json, and the C halves of
socket and signal, which do not import enum and re. Both ends of the socket are the same
interpreter, and no command ever holds an end.

    request    ("run", number) with descriptors: request, stdin, stdout, stderr[, ruleset]; ("kill",
    number, grace seconds) reply      ("started", number, pid); ("failed", number, text);
               ("done", number, status, wall, cpu, peak rss bytes, involuntary switches, major
               faults, strays killed)
"""

import _signal as signal  # type: ignore[import-not-found, unused-ignore]
import _socket
import ctypes
import errno
import fcntl
import marshal
import os
import resource
import select
import sys
import time

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_NAME = 1, 4, 15
_PR_SET_CHILD_SUBREAPER, _PR_SET_NO_NEW_PRIVS = 36, 38
_LANDLOCK_RESTRICT_SELF = 446
_LOCK_DESCRIPTOR = 90
_OUTER_DESCRIPTORS = 5

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

    def __init__(self, number: int, pid: int, began: float, trouble: int) -> None:
        self.number = number
        self.pid = pid
        self.began = began
        self.trouble = trouble
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
    def __init__(self, link: int, scope: int) -> None:
        self.link = _socket.socket(fileno=link)
        self.pid = os.getpid()
        self.null = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
        self.atomic = scope >= 0 and self._enter(scope)
        self.terminated = False
        self.job: Job | None = None
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
        """Whether `kill(-1)` is now safe: proved by being refused to signal our own parent."""
        _restrict(scope)
        os.close(scope)
        try:
            os.kill(os.getppid(), 0)
        except PermissionError:
            return True
        except ProcessLookupError:
            pass
        return False

    def serve(self) -> int:
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
        space = _socket.CMSG_SPACE(4 * _OUTER_DESCRIPTORS)
        try:
            data, ancillary, _, _ = self.link.recvmsg(4096, space, _socket.MSG_CMSG_CLOEXEC)
        except OSError as error:
            if error.errno == errno.ECONNRESET:
                return False
            raise
        if not data:
            return False
        descriptors = [fd for _, _, raw in ancillary for fd in memoryview(raw).cast("i")]
        message = marshal.loads(data)
        if message[0] == "run":
            try:
                self.begin(message[1], descriptors)
            finally:
                for descriptor in descriptors:
                    os.close(descriptor)
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

    def begin(self, number: int, descriptors: "list[int]") -> None:
        with open(descriptors[0], "rb", closefd=False) as file:
            request = marshal.loads(file.read())
        trouble, trouble_end = os.pipe()
        began = time.monotonic()
        pid = os.fork()
        if pid == 0:
            try:
                self.become(request, descriptors)
            except BaseException as error:
                os.write(trouble_end, f"{type(error).__name__}: {error}".encode()[:2000])
            finally:
                os._exit(125)
        os.close(trouble_end)
        self.job = Job(number, pid, began, trouble)
        self.reply("started", number, pid)

    def become(self, request: "dict[str, object]", descriptors: "list[int]") -> None:
        """In the child: turn into the command. Returns never; raises if the machinery fails."""
        signal.set_wakeup_fd(-1)
        for number in range(1, signal.NSIG):
            if number not in (signal.SIGKILL, signal.SIGSTOP):
                try:
                    signal.signal(number, signal.SIG_DFL)
                except OSError:
                    pass  # the C library keeps two for itself
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        _prctl(_PR_SET_DUMPABLE, 1)
        _prctl(_PR_SET_PDEATHSIG, 9)
        if os.getppid() != self.pid:
            os._exit(125)
        os.setsid()
        os.umask(0o022)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        try:
            with open("/proc/self/oom_score_adj", "w") as file:
                file.write("500")  # short of memory, the kernel shall take the command, not us
        except OSError:
            pass
        lock = request["stages_lock"]
        if lock:
            # A description of our own: whoever unlocks it frees only this one, and it lives on in
            # every descendant.
            locked = os.open(str(lock), os.O_RDONLY | os.O_CLOEXEC)
            fcntl.flock(locked, fcntl.LOCK_SH)
            fcntl.fcntl(locked, fcntl.F_DUPFD, _LOCK_DESCRIPTOR)
        for target, source in enumerate([descriptors[1], *descriptors[2:4]]):
            os.dup2(source, target)
        _prctl(_PR_SET_NO_NEW_PRIVS, 1)
        if len(descriptors) > 4:
            _restrict(descriptors[4])
        _execute(request["argv"], request["env"], request["cwd"])  # type: ignore[arg-type]

    def advance(self, job: Job) -> None:
        """Reap what has ended; finish the command if it is over or its time is."""
        empty = self.reap(job, killing=False)
        late = job.kill_at is not None and time.monotonic() >= job.kill_at
        if job.status is None and not late:
            return
        if not empty:
            self.clear()
        self.job = None
        trouble = os.read(job.trouble, 4096)
        os.close(job.trouble)
        if trouble:
            self.reply("failed", job.number, trouble.decode(errors="replace"))
            return
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


def _execute(argv: "list[str]", env: "dict[str, str]", cwd: str) -> None:
    """Execute; if that fails say so and exit as a shell would."""
    name = argv[0]
    try:
        os.chdir(cwd)
    except OSError as error:
        os.write(2, f"aiopt: cannot enter {cwd}: {error.strerror}\n".encode())
        os._exit(127)
    places = (
        [""]
        if "/" in name
        else [f"{folder or '.'}/" for folder in env.get("PATH", os.defpath).split(":")]
    )
    reason = errno.ENOENT
    for place in places:
        try:
            os.execve(place + name, argv, env)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR):
                reason = error.errno or reason
                if reason != errno.EACCES:
                    break
    os.write(2, f"aiopt: cannot execute {name}: {os.strerror(reason)}\n".encode())
    os._exit(127 if reason == errno.ENOENT else 126)


def _kill_below(root: int) -> None:
    """Stop, then kill, all descendants: what is stopped cannot fork away between our looking and our killing."""
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


def main(arguments: "list[str]") -> int:
    # The lease stays open, here and only here, until this process ends: it is never unlocked and
    # never passed on.
    link, scope, lease = (int(argument) for argument in arguments)
    for descriptor in (link, scope, lease):
        if descriptor >= 0:
            os.set_inheritable(descriptor, False)
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    _prctl(_PR_SET_DUMPABLE, 0)
    _prctl(_PR_SET_NAME, b"aiopt-superviso")
    return Supervisor(link, scope).serve()


if __name__ == "__main__":
    os._exit(main(sys.argv[1:]))
