"""Whole searches on a real Grid Engine, compared with the books of qacct."""

from __future__ import annotations

import contextlib
import re
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import ClassVar

from scripts.stack import Account
from tests.live.clusters import CELL, GridCluster
from tests.live.searching import Search

_SITE = """
extends: gridengine
name: testbed
node: {{gpus: 4, cores: 2, memory: 2GB}}
directives: ["-pe {environment} {{slots}}"]
queues:
  - name: all.q
    bins: [{{nodes: {nodes}, walltime: "00:10:00"}}]
    queued_max: 10
spool: {{path: {spool}, filesystem: shared}}
state: {{index: {index}}}
runner:
  python: /usr/bin/python3
  node_local_dir: /local_scratch
  drain_margin: {drain_margin}
  idle_exit: 20s
planning: {{boot_margin: {boot_margin}, default_expected: 10s}}
budgets:
  query_interval: 2s
  queries_per_minute: 40
  submissions_per_hour: 60
  jobs_in_flight: {jobs}
  command_timeout: 20s
"""


class GridSearch(Search):
    """One search of a user on Grid Engine."""

    site_text = _SITE
    commands = ("qsub", "qstat", "qacct", "qdel")
    payload: ClassVar[Mapping[str, object]] = {"gpus_per_node": 1, "cores_per_node": 0}

    def __init__(
        self, grid: GridCluster, account: Account, *, environment: str = "mpi", **site: object
    ) -> None:
        self.grid = grid
        super().__init__(grid, replace(account, enter=grid.enter), environment=environment, **site)
        self.stack.environment.update(CELL)

    def told_ends(self, tags: frozenset[str]) -> tuple[Mapping[str, str], ...]:
        last = {}
        for record in _records(self.grid.control("qacct", "-o", self.user, "-j")):
            if record["jobname"] in tags:
                last[record["jobnumber"]] = {
                    "JobID": record["jobnumber"],
                    "JobName": record["jobname"],
                    "State": f"failed {record['failed']}, exit {record['exit_status']}",
                    "User": record["owner"],
                }
        listed = self.grid.control("qstat", "-u", self.user, "-xml")
        return () if any(tag in listed for tag in tags) else tuple(last.values())

    def _end_jobs(self) -> None:
        for tag in self.stack.tags():
            # A name of which there is no job is an error to qdel.
            with contextlib.suppress(subprocess.CalledProcessError):
                self.grid.control("qdel", tag)
        self.stack.jobs_have_ended()


def _records(books: str) -> Iterator[Mapping[str, str]]:
    """The records of qacct's answer, in the order in which jobs ended."""
    for part in re.split(r"^={20,}$", books, flags=re.MULTILINE):
        pairs = (line.partition(" ") for line in part.splitlines())
        record = {key: value.strip() for key, _, value in pairs}
        if "jobnumber" in record:
            yield record
