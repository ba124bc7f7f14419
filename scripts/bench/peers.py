"""The same trivial payloads through one of the systems that people use for this.

  PYTHON scripts/bench/peers.py NAME --points N --width W

PYTHON is that of an environment with the peer in it; `scripts/bench/all` makes one and measures the
CPU of the process tree. None of them tells a central service, as `throughput` does.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

# As in common.py, which this file cannot import: it runs in an environment of its own.
PAYLOAD = "printf '{\"loss\": 1}' > output.json"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=sorted(PEERS))
    parser.add_argument("--points", type=int, default=1000)
    parser.add_argument("--width", type=int, default=4)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="harvester-peer-") as temporary:
        directories = [Path(temporary) / str(number) for number in range(options.points)]
        for directory in directories:
            directory.mkdir()
        PEERS[options.name](directories, options.width, Path(temporary))
        missing = sum(not (directory / "output.json").exists() for directory in directories)
    if missing:
        print(f"{missing} of {options.points} payloads left no output.json", file=sys.stderr)
    return 1 if missing else 0


def run_payload(directory: str, payload: str = PAYLOAD) -> int:
    """One payload in a process of its own; its exit code."""
    import subprocess  # workers get the function alone, without its module

    return subprocess.run(("/bin/sh", "-c", payload), cwd=directory, check=False).returncode


def with_hyperqueue(directories: Sequence[Path], width: int, scratch: Path) -> None:
    """One job of as many tasks, on a local server and worker."""
    from hyperqueue import Job
    from hyperqueue.cluster import LocalCluster, WorkerConfig

    with LocalCluster(str(scratch / "server")) as cluster:
        cluster.start_worker(WorkerConfig(cores=width))
        client = cluster.client()
        job = Job()
        for directory in directories:
            job.program(["/bin/sh", "-c", PAYLOAD], cwd=directory, stdout=None, stderr=None)
        client.wait_for_jobs([client.submit(job)])


def with_parsl(directories: Sequence[Path], width: int, scratch: Path) -> None:
    """Its executor for clusters, on this host."""
    import parsl
    from parsl.config import Config
    from parsl.executors import HighThroughputExecutor
    from parsl.providers import LocalProvider

    executor = HighThroughputExecutor(
        max_workers_per_node=width,
        address="127.0.0.1",
        encrypted=False,
        provider=LocalProvider(init_blocks=1, max_blocks=1),
        worker_logdir_root=str(scratch),
    )
    parsl.load(Config(executors=[executor], run_dir=str(scratch / "runinfo")))
    evaluate = parsl.python_app(run_payload)
    try:
        for waiting in [evaluate(str(directory)) for directory in directories]:
            waiting.result()
    finally:
        parsl.dfk().cleanup()


def with_ray(directories: Sequence[Path], width: int, scratch: Path) -> None:
    """Remote functions on a local cluster."""
    import ray

    ray.init(num_cpus=width, include_dashboard=False, log_to_driver=False, _temp_dir=str(scratch))
    evaluate = ray.remote(run_payload)
    ray.get([evaluate.remote(str(directory)) for directory in directories])
    ray.shutdown()


def with_executorlib(directories: Sequence[Path], width: int, scratch: Path) -> None:
    """Its executor for one node, with workers that stay."""
    from executorlib import SingleNodeExecutor

    del scratch
    with SingleNodeExecutor(max_workers=width, block_allocation=True) as executor:
        for waiting in [executor.submit(run_payload, str(path)) for path in directories]:
            waiting.result()


PEERS: dict[str, Callable[[Sequence[Path], int, Path], None]] = {
    "hyperqueue": with_hyperqueue,
    "parsl": with_parsl,
    "ray": with_ray,
    "executorlib": with_executorlib,
}


if __name__ == "__main__":
    sys.exit(main())
