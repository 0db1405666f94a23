"""A cluster of several nodes that come, drain and die."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster
from ray.core.generated.autoscaler_pb2 import DrainNodeReason

from raydml.training.fleet.placement import TRAIN_ENVIRONMENT

# A node that is killed refuses connections, and is noticed after two seconds; one that is slow has 20.
QUICK_DEATH = {
    "health_check_initial_delay_ms": 1000,
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 5000,
    "health_check_failure_threshold": 4,
}
# Ray gives way to everything else on the machine by default: its workers would starve beside other tests.
ENVIRONMENT = TRAIN_ENVIRONMENT | {"RAY_worker_niceness": "0", "RAY_USAGE_STATS_ENABLED": "0"}


class Machines:
    """A cluster whose head has no room for workers; every further node has room for one."""

    def __init__(self) -> None:
        head = {"num_cpus": 0, "include_dashboard": False, "object_store_memory": 80 << 20}
        self.cluster = Cluster(initialize_head=True, head_node_args=head | {"_system_config": QUICK_DEATH})
        self.nodes = {node.node_id: node for node in [self.add(), self.add()]}
        ray.init(address=self.cluster.address, logging_level="ERROR", log_to_driver=False)

    def add(self) -> Any:
        return self.cluster.add_node(num_cpus=1, object_store_memory=80 << 20)

    def arrive(self) -> str:
        node = self.add()
        self.nodes[node.node_id] = node
        return str(node.node_id)

    def drain(self, node: str) -> None:
        deadline = int(time.time() * 1000) + 600_000
        reason = DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
        accepted, why = ray._raylet.GcsClient(address=self.cluster.address).drain_node(node, reason, "test", deadline)
        assert accepted, why

    def kill(self, node: str) -> None:
        self.cluster.remove_node(self.nodes.pop(node), allow_graceful=False)

    def close(self) -> None:
        ray.shutdown()
        self.cluster.shutdown()


@pytest.fixture(scope="module")
def machines() -> Iterator[Machines]:
    scratch = Path(tempfile.mkdtemp(prefix="raydml-test-"))  # a short path: Ray puts sockets below it
    (scratch / "ray").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**ENVIRONMENT, "RAY_TMPDIR": str(scratch)}.items():
            patch.setenv(name, value)
        machines = Machines()
        yield machines
        machines.close()
    shutil.rmtree(scratch, ignore_errors=True)
