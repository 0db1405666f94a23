"""The loop and its optimiser."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from raydml.spec.base import Frozen


class Sgd(Frozen):
    """Stochastic gradient descent with momentum (torch.optim.SGD)."""

    kind: Literal["sgd"] = "sgd"
    lr: float = Field(0.1, gt=0, description="learning rate")
    momentum: float = Field(0.9, ge=0, lt=1)
    nesterov: bool = False
    weight_decay: float = Field(0.0, ge=0)
    parts: dict[str, Annotated[float, Field(ge=0)]] = Field(
        default_factory=dict,
        description="learning-rate factor by prefix of parameter name; `loss` is the loss's own weights",
    )

    @model_validator(mode="after")
    def _nesterov_needs_momentum(self) -> Self:
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov needs momentum > 0")
        return self


class Adam(Frozen):
    """Adam (torch.optim.Adam)."""

    kind: Literal["adam"] = "adam"
    lr: float = Field(0.001, gt=0, description="learning rate")
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.999)
    eps: float = Field(1e-8, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    parts: dict[str, Annotated[float, Field(ge=0)]] = Field(
        default_factory=dict,
        description="learning-rate factor by prefix of parameter name; `loss` is the loss's own weights",
    )


class AdamW(Adam):
    """Adam with decoupled weight decay (torch.optim.AdamW)."""

    kind: Literal["adamw"] = "adamw"  # type: ignore[assignment]
    weight_decay: float = Field(0.01, ge=0)


OptimizerSpec = Annotated[Sgd | Adam | AdamW, Field(discriminator="kind")]


class ScheduleSpec(Frozen):
    """The learning rate as a pure function of the step."""

    kind: Literal["constant", "cosine"] = "constant"
    warmup_steps: int = Field(0, ge=0, description="linear from lr / warmup_steps up to lr")
    final_factor: float = Field(0.0, ge=0, le=1, description="of lr, reached by cosine at the last step")


class TrainSpec(Frozen):
    """The loop."""

    steps: int = Field(1000, ge=1, description="optimiser steps")
    optimizer: OptimizerSpec = Field(default_factory=AdamW)
    schedule: ScheduleSpec = Field(default_factory=lambda: ScheduleSpec())
    clip_norm: float | None = Field(None, gt=0, description="largest L2 norm of all gradients together")
    loss_limit: float = Field(1e6, gt=0, description="a loss beyond this stops the run as exploded")
    evaluate_every: int = Field(200, ge=0, description="steps between evaluations on validation; 0: never")
    checkpoint_every: int = Field(100, ge=1, description="steps between checkpoints")
    keep_last: int = Field(2, ge=1, description="checkpoints kept besides the best one")
    export: Literal["best", "last"] = Field(
        "best", description="model of the best validation MAP@R, or of the last step"
    )
