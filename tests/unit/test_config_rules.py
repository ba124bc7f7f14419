"""The rules of centres: each names the key, the bin or the queue, and what would be accepted."""

from __future__ import annotations

from typing import Any

import pytest

from harvester.config_rules import broken_rules

BIN = {"nodes": "10-24", "walltime": "03:00:00"}


def site(**keys: Any) -> dict[str, Any]:
    base = {
        "batch_system": "slurm",
        "spool": {"path": "/scratch"},
        "node": {"gpus": 4, "cores": 32},
        "runner": {"launcher": ["srun"]},
        "queues": [{"name": "prod", "bins": [BIN]}],
    }
    return {**base, **keys}


def queue(**keys: Any) -> dict[str, Any]:
    return {"name": "prod", "bins": [BIN], **keys}


LOCAL = queue(bins=[{"nodes": 1, "walltime": "1h"}])
OURS = (
    ("slurm", "name", ("-J x", "--job-name=x", "--job-name x")),
    ("slurm", "name", ("-Jx", "-HJx")),
    ("slurm", "walltime", ("-t 60", "-t60", "--time=60", "'-t' 60")),
    ("slurm", "nodes", ("-N4", "--nodes=99")),
    ("slurm", "queue", ("-p big", "--partition=big", "-pbig", "-Hpbig", "--part=big", "-sp big")),
    ("slurm", "queue", ('"-p" big', "'--part'ition=big", "\\-pbig", "--exclusive -pbig")),
    ("slurm", "tasks in an array", ("--array=1-9", "--arr=1-9", "-a1-9")),
    ("pbs", "name", ("-N x",)),
    ("pbs", "walltime", ("-l walltime=9:00:00", "-l mem=4gb,walltime=9:00:00")),
    ("pbs", "nodes", ("-l select=99:system=polaris", "-l nodes=99:ppn=4")),
    ("pbs", "queue", ("-q big", "-qbig", "-zqbig", '"-q" big')),
    ("gridengine", "name", ("-N x",)),
    ("gridengine", "walltime", ("-l h_rt=99:0:0",)),
    ("gridengine", "nodes", ("-pe mpi 512",)),
    ("lsf", "name", ("-J x",)),
    ("lsf", "walltime", ("-W 600",)),
    ("lsf", "nodes", ("-nnodes 99", "-n 512")),
    ("flux", "name", ("--job-name=x",)),
    ("flux", "walltime", ("-t 9h",)),
    ("flux", "nodes", ("-N 99", "--nodes=99", "-xN99", "--node=99")),
)
#: Beside what the harvester says.
THEIRS = (
    ("slurm", "--time-min=10"),
    ("slurm", "--qos=high"),
    ("slurm", "--nodelist=n1"),
    ("slurm", "-xp1,p2"),
    ("slurm", "-Apq123"),
    ("slurm", "--prefer=pq"),
    ("slurm", "--ntasks-per-core=1"),
    ("pbs", "-l select={nodes}:system=polaris -l place=scatter"),
    ("pbs", "-l filesystems=home:eagle"),
    ("pbs", "-vN=1"),
    ("gridengine", "-pe mpi-32 {slots}"),
    ("gridengine", "-l exclusive=true"),
    ("lsf", '-alloc_flags "smt4 nvme"'),
    ("lsf", "-We 10"),
    ("flux", "--conf=resource.noverify=true"),
)


def test_sound_site_breaks_no_rule() -> None:
    assert broken_rules(site()) == []


@pytest.mark.parametrize(
    ("keys", "where", "sentence"),
    [
        (
            {"remote": {"host": "login"}, "spool": {"path": "$SCRATCH/spool"}},
            "spool.path",
            "expected the path as it is on login, from /",
        ),
        (
            {"remote": {"host": "login"}, "spool": {"path": "/s", "filesystem": "local"}},
            "spool.filesystem",
            "expected shared: the spool is on another host",
        ),
        (
            {"planning": {"nodes_max": 4}},
            "planning.nodes_max",
            "expected at least 10, where the smallest bin begins (queue prod)",
        ),
        (
            {"planning": {"queues": ["gpu"]}},
            "planning.queues",
            "'gpu' is none of this site's; expected names of queues: prod",
        ),
        (
            {"queues": [queue(planned=False)]},
            "queues",
            "expected a queue without `planned: false`, or planning.queues",
        ),
        (
            {"planning": {"walltime_max": "2m"}},
            "planning.walltime_max",
            "boot_margin and runner.drain_margin together (2 min)",
        ),
        (
            {"planning": {"walltime_min": "04:00:00"}},
            "planning.walltime_min",
            "at most the longest bin's walltime (3 h 00 min)",
        ),
        (
            {"routing_queues": {"route": ["prod", "large"]}},
            "queues.0.name",
            "queue prod takes no submissions; submit to route, which routes jobs to it",
        ),
        (
            {"submission": {"filesystems_required": True}},
            "submission.filesystems",
            "starts no job that does not name them (-l filesystems=)",
        ),
        (
            {"queues": [queue(gpus_min=1)], "node": {"gpus": 0, "cores": 4}},
            "queues.0.gpus_min",
            "queue prod takes jobs only with a GPU request (1 or more)",
        ),
        (
            {"queues": [queue(gpus_min=1)], "submission": {"gpu_request": "none"}},
            "queues.0.gpus_min",
            "submission.gpu_request other than none",
        ),
        (
            {"queues": [queue(limits_per="project")]},
            "queues.0.limits_per",
            "queue prod counts the jobs of a project; expected its `account`",
        ),
        (
            {"containers": {"only": True}},
            "containers.runtime",
            "expected a runtime: bare payloads are refused here",
        ),
        (
            {"submission": {"memory_request": False}, "directives": ["--mem=64G"]},
            "directives",
            "'--mem=64G' asks for memory, which jobs of this centre cannot do",
        ),
        (
            {
                "submission": {"memory_request": False},
                "queues": [queue(directives=["-l select=1:ncpus=4:mem=8gb"])],
            },
            "queues.0.directives",
            "asks for memory",
        ),
        (
            {"node": {"gpus": 4, "cores": 32, "gpu_order": ["3", "2", "1"]}},
            "node.gpu_order",
            "expected each of the node's 4 GPUs once",
        ),
        (
            {"node": {"gpus": 2, "cores": 32, "gpu_order": ["0", "0"]}},
            "node.gpu_order",
            "expected each of the node's 2 GPUs once",
        ),
        (
            {"budgets": {"query_interval": "60s", "query_interval_min": "120s"}},
            "budgets.query_interval",
            "expected at least 2 min, what this centre asks for",
        ),
        (
            {"reservations": [{"from": "2026-12-01T18:00Z", "to": "2026-12-01T06:00Z"}]},
            "reservations.0.to",
            "expected an instant after `from`",
        ),
        *[
            (
                {"batch_system": system, "runner": {}},
                "runner.launcher",
                f"expected a launcher such as {launcher}: a queue allows more than one node",
            )
            for system, launcher in (
                ("slurm", "srun"),
                ("pbs", "mpiexec"),
                ("lsf", "jsrun"),
                ("gridengine", "qrsh -inherit"),
                ("flux", "flux run"),
            )
        ],
        (
            {"runner": {"launcher": ["srun", "-n", "{node}"]}},
            "runner.launcher",
            "unknown placeholder {node}; expected {nodes}, {cores}, {gpus}",
        ),
        (
            {"runner": {"launcher": ["srun"], "node_local_dir": "tmp"}},
            "runner.node_local_dir",
            "expected an absolute path",
        ),
        (
            {"batch_system": "local", "runner": {}, "queues": [LOCAL], "directives": ["-x"]},
            "directives",
            "expected none: the local batch system has no directives",
        ),
        (
            {"queues": [queue(directives=["--exclusive --time=48:00:00"])]},
            "queues.0.directives",
            "'--exclusive --time=48:00:00' sets the walltime (queues[].bins, planning.",
        ),
        (
            {"queues": [queue(kind="qos")], "directives": ["-q big"]},
            "directives",
            "sets the QOS (queues[].name) of jobs",
        ),
        *[
            ({"batch_system": system, "directives": [line]}, "directives", f"sets the {what}")
            for system, what, lines in OURS
            for line in lines
        ],
        (
            {"batch_system": "flux", "runner": {"launcher": ["flux", "run"]}, "requeue": True},
            "requeue",
            "expected false: Flux starts no job a second time",
        ),
    ],
)
def test_rule_names_key_and_reason(keys: dict[str, Any], where: str, sentence: str) -> None:
    ((key, text),) = broken_rules(site(**keys))
    assert (".".join(map(str, key)), sentence in text) == (where, True), text


@pytest.mark.parametrize(
    "keys",
    [
        {"submission": {"filesystems_required": True, "filesystems": ["home", "eagle"]}},
        {"submission": {"filesystems_required": True}, "directives": ["-l filesystems=home"]},
        {"queues": [queue(gpus_min=1)]},
        {"queues": [queue(planned=False)], "planning": {"queues": ["prod"]}},
        {
            "queues": [queue(gpus_min=1, directives=["--gpus=4"])],
            "submission": {"gpu_request": "none"},
        },
        {"directives": ["--mem=64G"]},
        *[{"batch_system": system, "directives": [line]} for system, line in THEIRS],
        {"queues": [queue(kind="qos")], "directives": ["--partition=gpu"]},
        {"runner": {"launcher": ["srun", "-n", "{nodes}"], "node_local_dir": "$TMPDIR/h"}},
        {"submission": {"memory_request": False}, "directives": ["--comment=memory"]},
        {"routing_queues": {"prod": ["small", "medium"]}},
        {"node": {"gpus": 4, "cores": 32, "gpu_order": ["3", "2", "1", "0"]}},
        {"budgets": {"query_interval": "120s", "query_interval_min": "120s"}},
        {"queues": [queue(limits_per="project")], "account": "abc123"},
        {
            "queues": [queue(limits_per="project", bins=[{"nodes": 1, "walltime": "1h"}])],
            "batch_system": "local",
            "runner": {},
        },
    ],
)
def test_what_a_rule_asks_for_satisfies_it(keys: dict[str, Any]) -> None:
    assert broken_rules(site(**keys)) == []


@pytest.mark.parametrize("value", [None, 5, "x", [], [5], {"a": 1}, [{"from": 1}], True])
@pytest.mark.parametrize(
    "key",
    ["planning", "queues", "routing_queues", "submission", "node", "budgets", "reservations"],
)
def test_rules_pass_over_what_is_of_the_wrong_type(key: str, value: object) -> None:
    broken_rules(site(**{key: value}))


def test_virtual_cluster_is_never_on_another_host() -> None:
    found = broken_rules(site(remote={"host": "login"}, batch_system="local"))
    assert [key for key, text in found if "a real batch system" in text] == [("remote",)]


def test_site_that_bundles_serve_calls_no_service() -> None:
    ((key, text),) = broken_rules(site(central={"kind": "bundles", "url": "https://central"}))
    assert (key, "no service is called" in text) == (("central", "url"), True)
