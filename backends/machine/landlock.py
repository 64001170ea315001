"""Landlock: where a process and everything it starts may write, decided by the kernel.

Only writing is restricted; reading and executing stay as they are. A ruleset is a file descriptor:
it is made here, by the controller, and enforced elsewhere (`supervisor`), by the process that is
about to execute the command.

See https://docs.kernel.org/userspace-api/landlock.html for the numbers.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import struct
from collections.abc import Iterable
from functools import cache

__all__ = ["abi", "missing", "signal_scope", "write_ruleset"]

_CREATE_RULESET = 444
_ADD_RULE = 445
_VERSION_FLAG = 1
_RULE_PATH_BENEATH = 1

_WRITE_FILE = 1 << 1
_REFER = 1 << 13
_TRUNCATE = 1 << 14
_IOCTL_DEV = 1 << 15
# Removing folders (1 << 4) and files, and making each kind of file (up to links, 1 << 12).
_CHANGE_FOLDERS = sum(1 << bit for bit in range(4, 13))

_SCOPE_ABSTRACT_SOCKETS = 1 << 0
_SCOPE_SIGNALS = 1 << 1


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


@cache
def _version() -> int:
    """The version of the interface, or a negative errno."""
    size = ctypes.c_size_t(0)
    version = _libc().syscall(_CREATE_RULESET, None, size, ctypes.c_uint32(_VERSION_FLAG))
    return int(version) if version > 0 else -ctypes.get_errno()


def abi() -> int:
    """The version of the kernel's Landlock interface; 0 if there is none."""
    return max(_version(), 0)


def missing() -> str:
    """Why there is no Landlock here; empty if there is."""
    if _version() > 0:
        return ""
    if -_version() == errno.ENOSYS:
        return "this kernel has no Landlock (CONFIG_SECURITY_LANDLOCK, Linux 5.13 or newer)"
    if -_version() == errno.EOPNOTSUPP:
        return "Landlock is switched off; boot with lsm=landlock,..."
    return f"Landlock: {os.strerror(-_version())}"


def _create(handled_fs: int, scoped: int) -> int:
    version = abi()
    # The structure grew with the interface: file access, then (4) network, then (6) scopes.
    attributes = struct.pack("QQQ", handled_fs, 0, scoped)[
        : 24 if version >= 6 else 16 if version >= 4 else 8
    ]
    descriptor = int(
        _libc().syscall(
            _CREATE_RULESET,
            ctypes.c_char_p(attributes),
            ctypes.c_size_t(len(attributes)),
            ctypes.c_uint32(0),
        )
    )
    if descriptor < 0:
        raise OSError(ctypes.get_errno(), "landlock_create_ruleset")
    os.set_inheritable(descriptor, False)
    return descriptor


def signal_scope() -> int | None:
    """A ruleset under which a process can signal only itself and its descendants.

    None before interface 6.
    """
    return _create(0, _SCOPE_SIGNALS) if abi() >= 6 else None


def write_ruleset(folders: Iterable[str], devices: Iterable[str]) -> int:
    """A ruleset that allows writing below `folders` and to `devices` only; the caller closes it.

    Paths that do not exist are left out. From interface 6 on it also keeps signals and abstract
    sockets inside.

    Raises:
        OSError: the kernel refused.
    """
    version = abi()
    file_rights = _WRITE_FILE
    folder_rights = _WRITE_FILE | _CHANGE_FOLDERS
    if version >= 2:
        folder_rights |= _REFER  # before: renaming between folders is always refused
    if version >= 3:
        file_rights |= _TRUNCATE
        folder_rights |= _TRUNCATE
    handled = folder_rights
    if version >= 5:
        # Ioctls on devices: none anywhere, except on the devices named.
        handled |= _IOCTL_DEV
        file_rights |= _IOCTL_DEV
    scoped = _SCOPE_ABSTRACT_SOCKETS | _SCOPE_SIGNALS if version >= 6 else 0
    ruleset = _create(handled, scoped)
    try:
        for path in folders:
            _allow(ruleset, path, folder_rights, file_rights)
        for path in devices:
            _allow(ruleset, path, file_rights, file_rights)
    except BaseException:
        os.close(ruleset)
        raise
    return ruleset


def _allow(ruleset: int, path: str, folder_rights: int, file_rights: int) -> None:
    try:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        is_folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        rule = struct.pack("=Qi", folder_rights if is_folder else file_rights, descriptor)
        refused = _libc().syscall(
            _ADD_RULE, ruleset, _RULE_PATH_BENEATH, ctypes.c_char_p(rule), ctypes.c_uint32(0)
        )
        if refused:
            raise OSError(ctypes.get_errno(), "landlock_add_rule", path)
    finally:
        os.close(descriptor)
