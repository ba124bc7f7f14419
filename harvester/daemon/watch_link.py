"""What the daemon says of the way to a site on another host: before it closes, and when it has."""

from __future__ import annotations

from typing import Protocol

from harvester.daemon.problems import Problems

_KEY = "connection"


class Way(Protocol):
    """The way to the site."""

    def trouble(self) -> tuple[str, str] | None:
        """What is wrong with it or soon will be, and the cure; None when all is well.

        Reads what is known already: it never waits for the other side.
        """


def watch_way(way: Way | None, problems: Problems) -> None:
    """Report or clear the trouble with the way to the site; a site on this host has none."""
    found = None if way is None else way.trouble()
    if found is None:
        problems.clear(_KEY)
    else:
        problems.report(_KEY, *found)
