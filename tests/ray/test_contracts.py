"""Every developer hook of Ray that is used here: what it must go on doing, in the order in which a run meets them."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest
import ray

pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("default")]


def test_a_backend_may_have_replica_groups_and_has_none_by_default() -> None:
    from ray.train.backend import Backend

    from raydml.training.fleet.group import MembershipConfig

    assert Backend.has_replica_groups is False, "Ray's Backend no longer knows has_replica_groups"
    assert MembershipConfig().backend_cls.has_replica_groups is True


def test_a_run_takes_callbacks_of_the_controller_and_of_the_worker_group() -> None:
    from ray.train import RunConfig
    from ray.train.v2._internal.execution.callback import (
        ControllerCallback,
        ReplicaGroupCallback,
        WorkerGroupCallback,
    )

    from raydml.training.fleet.keeper import Keeper

    ours = {name for name, value in vars(Keeper).items() if inspect.isfunction(value) and not name.startswith("_")}
    hooks = {name for kind in (ControllerCallback, ReplicaGroupCallback, WorkerGroupCallback) for name in dir(kind)}
    assert ours <= hooks, f"Ray calls these no more: {sorted(ours - hooks)}"
    for name in ours:
        theirs = next(
            getattr(kind, name)
            for kind in (ControllerCallback, WorkerGroupCallback, ReplicaGroupCallback)
            if hasattr(kind, name)
        )
        assert [*inspect.signature(getattr(Keeper, name)).parameters] == [*inspect.signature(theirs).parameters]
    keeper = Keeper(Path("unused"))
    assert RunConfig(callbacks=[keeper]).callbacks == [keeper], "Ray drops callbacks that are not UserCallbacks"


def nodes_seen(address: str, token: Path) -> subprocess.CompletedProcess[str]:
    """What a process with that token sees of the cluster."""
    program = f"import ray; print(len(ray._raylet.GcsClient(address={address!r}).get_all_node_info(timeout=10)))"
    environment = {**os.environ, "RAY_AUTH_TOKEN_PATH": str(token)}
    return subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=120)


@pytest.mark.usefixtures("shared_ray")
def test_the_clusters_of_these_tests_refuse_whoever_has_another_token(token: Path, tmp_path: Path) -> None:
    address = ray.get_runtime_context().gcs_address
    assert nodes_seen(address, token).stdout == "1\n"
    (tmp_path / "other").write_text("0" * 64)
    refused = nodes_seen(address, tmp_path / "other")
    assert refused.returncode != 0 and "InvalidAuthToken" in refused.stderr


def test_one_hook_hears_of_the_first_workers_and_of_every_replacement() -> None:
    from ray.train.v2._internal.execution.callback import ReplicaGroupCallback, WorkerGroupCallback

    class Ears(WorkerGroupCallback, ReplicaGroupCallback):  # type: ignore[misc]
        heard: list[object]

        def after_execution_group_start(self, execution_group: object) -> None:
            self.heard = [*getattr(self, "heard", []), execution_group]

    ears = Ears()
    ears.after_worker_group_start("all")
    ears.after_replica_group_start("one")
    assert ears.heard == ["all", "one"], "after_execution_group_start is not called for both any more"


def test_workers_that_die_are_replaced_without_a_limit() -> None:
    from ray.train import FailureConfig
    from ray.train.v2._internal.execution.failure_handling import FailureDecision, create_failure_policy
    from ray.train.v2.api.exceptions import WorkerGroupError

    policy = create_failure_policy(FailureConfig(max_failures=-1))
    for _ in range(100):
        decision = policy.make_decision(WorkerGroupError("one died", {0: RuntimeError("killed")}))
        assert decision == FailureDecision.RETRY, "max_failures=-1 is not unlimited any more"


def test_the_environment_variable_is_called_as_we_call_it_and_reaches_the_controller() -> None:
    from ray.train.v2._internal import constants

    from raydml.training.fleet.placement import TRAIN_ENVIRONMENT

    assert set(TRAIN_ENVIRONMENT) == {constants.HEALTH_CHECK_INTERVAL_S_ENV_VAR}, "the variable has another name now"
    assert set(TRAIN_ENVIRONMENT) <= constants.ENV_VARS_TO_PROPAGATE, "the controller is not handed the variable"


def test_the_table_of_placement_groups_says_which_actor_made_each() -> None:
    from ray._private.state import GlobalState
    from ray.core.generated.gcs_pb2 import PlacementGroupTableData

    fields = set(PlacementGroupTableData.DESCRIPTOR.fields_by_name)
    assert {"placement_group_id", "creator_actor_id", "state"} <= fields, "the room of a killed controller is not found"
    assert hasattr(GlobalState, "_connect_and_get_accessor") and hasattr(GlobalState, "get_draining_nodes")


def test_what_a_group_does_without_are_callbacks_that_can_be_left_out(tmp_path: Path) -> None:
    from ray.train import RunConfig
    from ray.train.torch import TorchTrainer

    from raydml.training.fleet.group import UNUSED, GroupTrainer

    def kinds(trainer: TorchTrainer) -> list[type]:
        return [type(callback) for callback in trainer._create_default_callbacks()]

    run_config = RunConfig(name="group", storage_path=str(tmp_path))
    theirs = kinds(TorchTrainer(print, run_config=run_config))
    assert set(UNUSED) <= set(theirs), "Ray starts its cleaner, or its data sets, from elsewhere now"
    assert kinds(GroupTrainer(print, run_config=run_config)) == [kind for kind in theirs if kind not in UNUSED]
