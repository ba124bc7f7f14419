"""Renders systemd units for a site's daemon. Pure.

Hardening follows the batch system, for ``NoNewPrivileges`` takes their rights from helpers that
are set-user-id: the commands of PBS prove who asks through ``pbs_iff``, those of LSF through
``eauth``. Most seccomp switches imply it for a service that does not run as root
(systemd.exec(5)), so that such a site gets only what works through mounts. With the ``local``
batch system the payloads run inside the unit: no limit and no switch that is meant for the daemon
may touch them, Apptainer's or Podman's set-user-id helpers least of all. No unit sets
``RemainAfterExit``: a daemon that is gone has to show as gone.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from enum import Enum

from harvester.service.facts import Service

_PRIVILEGED_HELPERS = {
    "pbs": "qstat and qsub authenticate through pbs_iff, which is set-user-id root",
    "lsf": "bsub and bjobs authenticate through eauth, which is set-user-id root",
}
# A stalled shared file system stops the tick for minutes and goes on afterwards.
_WATCHDOG_S = {"local": 60, "shared": 300}


class Manager(Enum):
    """Who runs the unit."""

    SYSTEM = "system"  #: pid 1, as an ordinary user; root installs it
    USER = "user"  #: the user's own service manager


def unit_name(site: str) -> str:
    """The unit's file name: the instance of ``harvester@.service`` for a site."""
    return f"harvester@{site}.service"


def render_unit(service: Service, manager: Manager) -> str:
    """The unit file."""
    blocks = (
        ("[Unit]", _unit(service, manager)),
        ("[Service]", _service(service, manager)),
        ("", _limits(service)),
        ("", _hardening(service, manager)),
        ("[Install]", [f"WantedBy={_target(manager)}"]),
    )
    parts = ["\n".join([*([title] if title else []), *lines]) for title, lines in blocks if lines]
    return "\n\n".join(parts) + "\n"


def quote(word: str) -> str:
    """A word of a unit file that systemd reads as exactly this text."""
    escaped = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return escaped if re.fullmatch(r"[A-Za-z0-9_./:@=%+,-]+", escaped) else f'"{escaped}"'


def _unit(service: Service, manager: Manager) -> list[str]:
    lines = [
        f"Description=Harvester for {service.site.name}",
        # A login node that comes up again, or a service that is away: keep trying, once a minute.
        "StartLimitIntervalSec=0",
    ]
    if manager is Manager.SYSTEM:
        lines += [
            "Wants=network-online.target",
            "After=network-online.target remote-fs.target nss-user-lookup.target munge.service",
            f"RequiresMountsFor={_words(_places(service))}",
        ]
    return lines


def _places(service: Service) -> list[str]:
    site = service.site
    spool = [str(site.spool)] if site.remote is None else []  # else it is on another host
    return [*spool, str(site.state_dir)]


def _service(service: Service, manager: Manager) -> list[str]:
    watchdog = _WATCHDOG_S["local" if service.site.filesystem == "local" else "shared"]
    return [
        "Type=notify",
        "NotifyAccess=main",
        *([f"User={service.user}"] if manager is Manager.SYSTEM else []),
        *(f"Environment={quote(f'{name}={value}')}" for name, value in service.environment.items()),
        f"ExecStart={_command(service.command)}",
        "ExecReload=/bin/kill -HUP $MAINPID",
        "# Cold imports from a busy shared file system take their time.",
        "TimeoutStartSec=180",
        "TimeoutStopSec=60",
        "# Fed by the tick itself: it stops when deciding stops, not when the outside hangs.",
        f"WatchdogSec={watchdog}",
        "Restart=on-failure",
        "RestartSec=60",
        "# A wrong command line or site file does not mend itself.",
        "RestartPreventExitStatus=64 78",
        *_killing(service),
        "UMask=0077",
    ]


def _killing(service: Service) -> list[str]:
    if service.runs_payloads:
        return [
            "# Jobs of the local batch system live in this unit and go on without the daemon.",
            "KillMode=process",
        ]
    return ["KillMode=mixed"]


def _limits(service: Service) -> list[str]:
    if service.runs_payloads:
        return ["# No limits: payloads of the local batch system would run under them."]
    return [
        "# A login node is shared: far above what the daemon uses, far below what others notice.",
        "MemoryHigh=256M",
        "MemoryMax=512M",
        "TasksMax=128",
        "CPUWeight=20",
        "CPUQuota=50%",
        "Nice=5",
        "LimitCORE=0",
    ]


def _hardening(service: Service, manager: Manager) -> list[str]:
    if service.runs_payloads:
        return ["# No hardening: payloads, and set-user-id helpers of containers, would feel it."]
    # Of a site on another host the commands run there; here only ssh does.
    here = service.site.remote is None
    why = _PRIVILEGED_HELPERS.get(service.site.batch_system) if here else None
    mounts = _MOUNTS if manager is Manager.SYSTEM else []
    if why is not None:
        return [
            f"# NoNewPrivileges, and all that implies it, stays off: {why}.",
            *mounts,
        ]
    return [*_SEALED, *(_SEALED_BY_ROOT if manager is Manager.SYSTEM else []), *mounts]


# For these the user's manager would need namespaces of its own, in which other users' ids vanish.
_MOUNTS = [
    "# Not PrivateTmp: the index lies in /var/tmp, and tickets of Kerberos in /tmp.",
    "ProtectSystem=full",
]
_SEALED = [
    "NoNewPrivileges=yes",
    "RestrictSUIDSGID=yes",
    "RestrictRealtime=yes",
    "RestrictNamespaces=yes",
    "LockPersonality=yes",
    "SystemCallArchitectures=native",
    "SystemCallFilter=@system-service",
    "SystemCallErrorNumber=EPERM",
    "RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK",
]
_SEALED_BY_ROOT = [
    "CapabilityBoundingSet=",
    "PrivateDevices=yes",
    "ProtectClock=yes",
    "ProtectControlGroups=yes",
    "ProtectHostname=yes",
    "ProtectKernelLogs=yes",
    "ProtectKernelModules=yes",
    "ProtectKernelTunables=yes",
]


def _target(manager: Manager) -> str:
    return "multi-user.target" if manager is Manager.SYSTEM else "default.target"


def _command(words: Sequence[str]) -> str:
    # A dollar sign means a variable in command lines, and only there.
    return _words(word.replace("$", "$$") for word in words)


def _words(words: Iterable[str]) -> str:
    return " ".join(quote(word) for word in words)
