"""Where the numbers of a run go besides its own folder; where a tracker lies is for the machine to say, not a spec."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from raydml.spec.base import Frozen


class MlflowTracking(Frozen):
    """A run of MLflow, at MLFLOW_TRACKING_URI of whoever trains, or in mlflow.db of the home."""

    kind: Literal["mlflow"]
    experiment: str = Field("raydml", min_length=1, max_length=200, description="of MLflow; made where it is not there")


class TensorboardTracking(Frozen):
    """Event files in the run's folder: `tensorboard --logdir ~/.raydml/runs` shows all runs."""

    kind: Literal["tensorboard"]


def _a_word_is_the_kind(value: Any) -> Any:
    return {"kind": value} if isinstance(value, str) else value


TrackerSpec = Annotated[
    Annotated[MlflowTracking | TensorboardTracking, Field(discriminator="kind")], BeforeValidator(_a_word_is_the_kind)
]
