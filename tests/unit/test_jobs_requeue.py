"""A site says whether its jobs may be requeued."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from harvester.batch.slurm import script_options
from harvester.jobs import job_of
from harvester.model import Tag
from tests.planning_cases import site


@pytest.mark.parametrize(("requeue", "option"), [(False, "--no-requeue"), (True, "--requeue")])
def test_jobs_are_requeued_only_where_the_site_wants_it(requeue: bool, option: str) -> None:
    job = job_of(
        replace(site(), requeue=requeue),
        tag=Tag("habcde-aaaaaa"),
        nodes=1,
        walltime_s=600.0,
        queue="batch",
        runner=Path("/spool/runner.pyz"),
    )
    assert option in script_options(job)
