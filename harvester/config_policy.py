"""The administrator's policy: limits that a user's site file can tighten but never loosen.

``/etc/harvester/policy.yaml`` belongs to root and nobody else may write to it; a policy that is
not so is refused, and with it every site, rather than passed over. It binds the harvester that is
installed on a machine; against other programs the batch system's own limits help.
"""

from __future__ import annotations

import dataclasses
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from harvester import paths
from harvester.config_sources import one_problem
from harvester.errors import ConfigurationError, Problem
from harvester.quantities import format_duration
from harvester.site import Budgets, PlanningChoice, Queue, Site

_Part = TypeVar("_Part", Budgets, PlanningChoice)
_OTHERS = stat.S_IWGRP | stat.S_IWOTH


@dataclass(frozen=True, slots=True)
class PolicyFile:
    """Where the policy lies and who must own it; other places are for tests."""

    path: Path = paths.POLICY
    owner: int = 0

    def check(self) -> None:
        """Do nothing where there is no policy, or a sound one.

        Raises:
            ConfigurationError: the file, or its directory, is not its owner's alone.
        """
        try:
            status = self.path.lstat()
        except (FileNotFoundError, NotADirectoryError):
            return
        except OSError as error:
            raise one_problem(self.path, "", "", f"cannot be read: {error.strerror}") from None
        if not stat.S_ISREG(status.st_mode):
            raise one_problem(self.path, "", "", "expected a plain file as policy, not a link")
        for path, found in ((self.path, status), (self.path.parent, self.path.parent.stat())):
            if found.st_uid != self.owner or found.st_mode & _OTHERS:
                cure = f"chown {self.owner} and chmod go-w {path}"
                raise one_problem(
                    path, "", "", f"expected a policy that only its owner can change; {cure}"
                )


SYSTEM_POLICY = PolicyFile()


@dataclass(frozen=True, slots=True, kw_only=True)
class Ruling:
    """One value that the policy decided."""

    key: str
    value: str
    instead_of: str  # what the site file says


def apply_policy(
    site: Site, policy: Mapping[str, Any], file: Path, layers: Sequence[Path] = ()
) -> tuple[Site, tuple[Ruling, ...]]:
    """The site within the limits of a policy (as its schema dumps it), and what that changed.

    Limits of a single site also bind files that extend it, whatever they call themselves.

    Raises:
        ConfigurationError: nothing of the site is allowed.
    """
    rulings: list[Ruling] = []
    names = dict.fromkeys((site.name, *(path.stem for path in layers)))
    single = [policy["sites"][name] for name in names if name in policy["sites"]]
    for limits in (policy, *single):
        site = _limited(site, limits, file, rulings)
    if rulings:
        _check_usable(site, file)
    return site, tuple(rulings)


def _limited(site: Site, limits: Mapping[str, Any], file: Path, rulings: list[Ruling]) -> Site:
    payloads = limits["payloads"]
    if payloads["containers_only"] and not site.containers_only:
        rulings.append(Ruling(key="payloads", value="containers only", instead_of="bare ones too"))
    _check_runtime(site, payloads, file)
    held = limits["submission"]["held"] and not site.submission.held
    if held:
        rulings.append(Ruling(key="submission.held", value="true", instead_of="false"))
    return dataclasses.replace(
        site,
        submission=dataclasses.replace(site.submission, held=site.submission.held or held),
        budgets=_bounded(site.budgets, "budgets", limits["budgets"], rulings),
        planning=_bounded(site.planning, "planning", limits["planning"], rulings),
        queues=_allowed_queues(site, limits["queues"], file, rulings),
        containers_only=site.containers_only or payloads["containers_only"],
    )


def _bounded(part: _Part, name: str, limits: Mapping[str, Any], rulings: list[Ruling]) -> _Part:
    changes = {}
    for key, bound in limits.items():
        if bound is None:
            continue
        field, stricter = _FIELDS[key]
        mine = getattr(part, field)  # the table below names the fields of these dataclasses
        if mine is None or stricter(mine, bound) != mine:
            changes[field] = bound
            shown = _shown(field, mine)
            rulings.append(
                Ruling(key=f"{name}.{key}", value=_shown(field, bound), instead_of=shown)
            )
    return dataclasses.replace(part, **changes)


_FIELDS: Mapping[str, tuple[str, Callable[[Any, Any], Any]]] = {
    "query_interval": ("query_interval_s", max),
    "queries_per_minute": ("queries_per_minute", min),
    "submissions_per_hour": ("submissions_per_hour", min),
    "jobs_in_flight": ("jobs_in_flight", min),
    "node_hours_per_day": ("node_hours_per_day", min),
    "node_hours_total": ("node_hours_total", min),
    "nodes_max": ("nodes_max", min),
    "walltime_max": ("walltime_max_s", min),
}


def _shown(field: str, value: float | None) -> str:
    if value is None:
        return "no limit"
    return format_duration(value) if field.endswith("_s") else f"{value:g}"


def _allowed_queues(
    site: Site, allowed: list[str] | None, file: Path, rulings: list[Ruling]
) -> tuple[Queue, ...]:
    if allowed is None:
        return site.queues
    kept = tuple(queue for queue in site.queues if queue.name in allowed)
    if not kept:
        raise _refused(
            file, "queues", ", ".join(allowed), f"site {site.name} has none of these queues"
        )
    if len(kept) < len(site.queues):
        names = (", ".join(_names(kept)), ", ".join(_names(site.queues)))
        rulings.append(Ruling(key="queues", value=names[0], instead_of=names[1]))
    return kept


def _check_usable(site: Site, file: Path) -> None:
    """Refuse what is sound by itself and leaves nothing that could be planned."""
    wish = site.planning
    queues = [
        queue
        for queue in site.queues
        if (queue.name in wish.queues if wish.queues else queue.planned)
    ]
    if not queues:
        names = ", ".join(_names(site.queues))
        expected = (
            f"site {site.name} plans with none of these; name some under planning.queues in a "
            "site file of your own"
        )
        raise _refused(file, "queues", names, expected)
    least = min(item.nodes_min for queue in queues for item in queue.bins)
    if wish.nodes_max is not None and wish.nodes_max < least:
        expected = f"site {site.name} has no allocations of fewer than {least} nodes"
        raise _refused(file, "planning.nodes_max", str(wish.nodes_max), expected)
    lost_s = wish.boot_margin_s + site.runner.drain_margin_s
    if wish.walltime_max_s is not None and wish.walltime_max_s <= lost_s:
        expected = (
            f"site {site.name} spends {format_duration(lost_s)} of each allocation on starting "
            "and ending, so nothing could run there"
        )
        raise _refused(
            file, "planning.walltime_max", format_duration(wish.walltime_max_s), expected
        )


def _names(queues: tuple[Queue, ...]) -> Iterator[str]:
    return (queue.name for queue in queues)


def _check_runtime(site: Site, payloads: Mapping[str, Any], file: Path) -> None:
    runtimes, runtime = payloads["runtimes"], site.container_runtime
    if runtime != "none" and runtimes is not None and runtime not in runtimes:
        expected = f"site {site.name} uses {runtime}, which this policy does not allow"
        raise _refused(file, "payloads.runtimes", ", ".join(runtimes), expected)
    if runtime == "none" and payloads["containers_only"]:
        expected = f"site {site.name} has no containers.runtime, so nothing could run there"
        raise _refused(file, "payloads.containers_only", "true", expected)


def _refused(file: Path, key: str, value: str, expected: str) -> ConfigurationError:
    return ConfigurationError(Problem(str(file), key, value, expected))
