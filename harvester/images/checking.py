"""Whether what lies in a directory can serve as a payload's root file system here."""

from __future__ import annotations

import os

from harvester.images.rootfs import RootFs
from payload_runner.commits import Broken

_SHELL = "/bin/sh"  # payloads are started with it
_ELF_MACHINES = {21: "ppc64le", 62: "x86_64", 183: "aarch64", 22: "s390x"}
_LITTLE_ENDIAN = 1


def check_root(root: RootFs, machine: str) -> None:
    """See that payloads can be started in it. ``machine``: as ``uname -m`` says it.

    Raises:
        Broken: there is no shell, or it is for another machine.
        OSError: it cannot be read.
    """
    shell = root.find(_SHELL)
    if shell is None or not os.access(shell, os.X_OK):
        raise Broken(f"the image has no {_SHELL}, by which payloads are started")
    built_for = _machine_of(shell.read_bytes()[:20])
    if built_for is not None and built_for != machine:
        raise Broken(f"the image is for {built_for}; this machine is {machine}")


def _machine_of(head: bytes) -> str | None:
    """The machine that an ELF header names; None where it is no ELF file or an unknown machine."""
    if len(head) < 20 or not head.startswith(b"\x7fELF"):
        return None
    little = head[5] == _LITTLE_ENDIAN
    return _ELF_MACHINES.get(int.from_bytes(head[18:20], "little" if little else "big"))
