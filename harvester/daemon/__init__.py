"""The daemon: one deciding thread that drives a spool and loses nothing (DESIGN.md section 6)."""

from harvester.daemon.core import Daemon
from harvester.daemon.round import TickOutcome

__all__ = ["Daemon", "TickOutcome"]
