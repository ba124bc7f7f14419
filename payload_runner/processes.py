"""Processes of payloads: starting, signalling, finding those that escaped, and their memory.

A payload is a process group; what leaves the group is still known by the marker in its
environment, and stays our child because the agent is a subreaper. Linux only.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
from dataclasses import dataclass
from typing import (
    Container,
    Dict,
    FrozenSet,
    Iterable,
    List,
    Mapping,
    Optional,
    Sequence,
    Tuple,
)

from payload_runner.outcome import Exit

MARKER = "HARVESTER_ATTEMPT"
_PR_SET_CHILD_SUBREAPER = 36
RESET_SIGNALS = (
    signal.SIGPIPE,  # Python ignores these two, and ignored signals pass through exec
    signal.SIGXFSZ,
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGCHLD,
)
_PAGE_KB = os.sysconf("SC_PAGE_SIZE") // 1024
_PROC_BYTES = 32 * 1024


@dataclass(frozen=True)
class Ended:
    """A child that was reaped."""

    pid: int
    exit: Exit


def become_subreaper() -> bool:
    """Make orphans of our descendants our children; False where the kernel cannot."""
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        return bool(libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0)
    except (OSError, AttributeError):
        return False


def spawn(
    argv: Tuple[str, ...],
    environment: Mapping[str, str],
    workdir: str,
    stdout: int,
    stderr: int,
    cores: FrozenSet[int] = frozenset(),
) -> int:
    """Start a process in a session of its own with stdin empty; returns its id (= its group).

    Directory and cores are put on the calling thread for the time of the spawn, since
    posix_spawn has no attribute for them; that costs four system calls, a shim would cost an
    exec. Other threads must not rely on the working directory.

    Raises:
        OSError: it could not be started.
    """
    home = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    own = os.sched_getaffinity(0) if cores else cores
    try:
        os.chdir(workdir)
        if cores:
            os.sched_setaffinity(0, cores)
        return _posix_spawn(argv, environment, stdout, stderr)
    finally:
        if cores:
            os.sched_setaffinity(0, own)
        os.fchdir(home)
        os.close(home)


def send_group(group: int, number: int) -> None:
    """Signal a process group; one that is gone already is fine."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


def send(pids: Iterable[int], number: int) -> None:
    """Signal processes; those that are gone already are fine."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)


def reap_one(groups: Container[int]) -> Optional[Ended]:
    """The next child that ended, or None.

    The rest of a group in ``groups`` is killed before its first process is reaped, while the
    group's number cannot be given to anyone else yet.
    """
    try:
        found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return None
    if found is None:
        return None
    if found.si_pid in groups:
        send_group(found.si_pid, signal.SIGKILL)
    pid, status, usage = os.wait4(found.si_pid, 0)
    peak_mb = usage.ru_maxrss // 1024
    if os.WIFSIGNALED(status):
        return Ended(pid, Exit(signal=os.WTERMSIG(status), peak_memory_mb=peak_mb))
    return Ended(pid, Exit(code=os.WEXITSTATUS(status), peak_memory_mb=peak_mb))


def children(known: Container[int]) -> List[int]:
    """Our child processes besides the ``known`` ones: orphans that payloads left to us.

    Only our main thread has any: it starts them, and the kernel gives orphans to the first
    living thread of a subreaper.
    """
    me = os.getpid()
    try:
        found = [int(word) for word in _read_proc(f"{me}/task/{me}/children").split()]
    except OSError:  # a kernel without CONFIG_PROC_CHILDREN
        found = [item.pid for item in all_processes() if item.parent == me]
    return [pid for pid in found if pid not in known]


def attempt_of(pid: int) -> Optional[str]:
    """The attempt that a process belongs to by its environment, or None."""
    try:
        data = b"\0" + _read_proc(f"{pid}/environ")
    except OSError:
        return None
    start = data.find(b"\0" + MARKER.encode() + b"=")
    if start < 0:
        return None
    start = data.index(b"=", start) + 1
    return data[start : data.find(b"\0", start)].decode("ascii", "replace")


def strays(attempt: str, known: Container[int]) -> List[int]:
    """Processes of an attempt among our orphans and below them; ``known`` are no orphans.

    Podman's monitor, for one, detaches itself with an environment of its own; only what runs in the
    container below it carries the marker.
    """
    found = []
    waiting = children(known)
    while waiting:
        pid = waiting.pop()
        if attempt_of(pid) == attempt:
            found.append(pid)
        else:
            waiting += _children_of(pid)
    return found


def marked(attempt: str, agent: str) -> List[int]:
    """All processes of this node that an attempt under this agent left in whatever place."""
    wanted = (f"{MARKER}={attempt}".encode(), f"{AGENT_MARKER}={agent}".encode())
    found = []
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            words = _read_proc(f"{name}/environ").split(b"\0")
        except OSError:
            continue
        if all(word in words for word in wanted):
            found.append(int(name))
    return found


def catches(pid: int, number: int) -> bool:
    """Whether a process has a handler for a signal, so that it means something to it."""
    try:
        with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as file:
            line = next(line for line in file if line.startswith("SigCgt:"))
    except (OSError, StopIteration):
        return False
    return bool(int(line.split()[1], 16) >> (number - 1) & 1)


# --- trees and memory ---


@dataclass(frozen=True)
class Process:
    """One line of the process table."""

    pid: int
    parent: int
    group: int
    resident_mb: float


def all_processes() -> List[Process]:
    """Every process of the node that can be read."""
    found = (_read_stat(name) for name in os.listdir("/proc") if name.isdigit())
    return [item for item in found if item is not None]


def tree(table: Sequence[Process], roots: Iterable[int]) -> List[Process]:
    """The processes that descend from ``roots`` or share their groups."""
    wanted = set(roots)
    below: Dict[int, List[Process]] = {}
    for item in table:
        below.setdefault(item.parent, []).append(item)
    found: Dict[int, Process] = {}
    waiting = [item for item in table if item.pid in wanted or item.group in wanted]
    while waiting:
        item = waiting.pop()
        if item.pid not in found:
            found[item.pid] = item
            waiting += below.get(item.pid, [])
    return list(found.values())


def to_end(members: Sequence[Process], catching: Container[int]) -> List[int]:
    """Whom of a tree to send a signal that ends processes, so that handlers get their time.

    Spared are the ancestors of those ``catching`` it that have no handler themselves: a shell
    that dies at once would leave the program that it waits for without anyone to wait for it,
    and an exit without the program's code.
    """
    parents = {item.pid: item.parent for item in members}
    spared = set()
    for item in members:
        pid = parents.get(item.pid, 0) if item.pid in catching else 0
        while pid in parents and pid not in spared:
            spared.add(pid)
            pid = parents[pid]
    return [item.pid for item in members if item.pid in catching or item.pid not in spared]


def memory_mb(members: Sequence[Process], limit_mb: float) -> float:
    """Memory of a tree. Shared pages count once, but only when that decides about the limit."""
    resident = sum(item.resident_mb for item in members)
    if resident <= limit_mb:
        return resident
    return sum(_proportional_mb(item) for item in members)


def _read_proc(name: str) -> bytes:
    """A file of the process table; without Python's buffers, which cost more than the reading.

    Raises:
        OSError: it cannot be read, mostly as the process is gone.
    """
    fd = os.open(f"/proc/{name}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        parts = []
        while True:
            part = os.read(fd, _PROC_BYTES)
            parts.append(part)
            if len(part) < _PROC_BYTES // 2:  # the kernel hands out whole pages
                return b"".join(parts)
    finally:
        os.close(fd)


def _children_of(pid: int) -> List[int]:
    found: List[int] = []
    try:
        threads = os.listdir(f"/proc/{pid}/task")
    except OSError:
        return found
    for thread in threads:
        try:
            found += [int(word) for word in _read_proc(f"{pid}/task/{thread}/children").split()]
        except OSError:
            continue
    return found


def _read_stat(name: str) -> Optional[Process]:
    try:
        data = _read_proc(f"{name}/stat")
    except OSError:
        return None
    words = data[data.rfind(b")") + 2 :].split()  # the command's name may hold anything
    resident_kb = int(words[21]) * _PAGE_KB
    return Process(int(name), int(words[1]), int(words[2]), resident_kb / 1024)


def _proportional_mb(item: Process) -> float:
    try:
        with open(f"/proc/{item.pid}/smaps_rollup", encoding="ascii") as file:
            line = next(line for line in file if line.startswith("Pss:"))
        return int(line.split()[1]) / 1024
    except (OSError, StopIteration):
        return item.resident_mb


# --- starting ---


def _posix_spawn(
    argv: Tuple[str, ...], environment: Mapping[str, str], stdout: int, stderr: int
) -> int:
    actions = (
        (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
        (os.POSIX_SPAWN_DUP2, stdout, 1),
        (os.POSIX_SPAWN_DUP2, stderr, 2),
    )
    try:
        return os.posix_spawn(
            argv[0],
            argv,
            environment,
            file_actions=actions,
            setsid=True,
            setsigmask=(),
            setsigdef=RESET_SIGNALS,
        )
    except NotImplementedError:  # built against a glibc before 2.26: a group of its own will do
        return os.posix_spawn(
            argv[0],
            argv,
            environment,
            file_actions=actions,
            setpgroup=0,
            setsigmask=(),
            setsigdef=RESET_SIGNALS,
        )


AGENT_MARKER = "HARVESTER_AGENT"
