"""When a run is not healthy."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from raydml.spec.base import Frozen


class RuleBase(Frozen):
    """What a broken rule does, and after how many watched steps; a word alone is the action."""

    action: Literal["warn", "stop", "off"] = Field("warn", description="tell of it, end the run, or do not look")
    patience: int = Field(1, ge=1, le=100_000, description="watched steps in a row that must break the rule")

    @model_validator(mode="before")
    @classmethod
    def _a_word_is_the_action(cls, value: Any) -> Any:
        return {"action": value} if isinstance(value, str | bool) else value

    @field_validator("action", mode="before")
    @classmethod
    def _yaml_reads_off_as_false(cls, value: Any) -> Any:
        return "off" if value is False else value


class CollapseRule(RuleBase):
    """Embeddings of different images are about one point, or lie on one line."""

    rank: float = Field(
        3.0, ge=0, le=65536, description="broken below this effective rank, or half of the most that a batch can have"
    )
    spread: float = Field(
        0.01, ge=0, lt=1, description="broken below this root mean square distance to the mean, over that to 0"
    )


class NoSignalRule(RuleBase):
    """The loss has no gradient: every tuple is solved, or the miner finds none."""

    patience: int = Field(3, ge=1, le=100_000, description="watched steps in a row that must break the rule")
    share: float = Field(1.0, gt=0, le=1, description="broken from this share of rows without gradient on")


class DeadProxiesRule(RuleBase):
    """Classes whose proxies are nearest to no row, though their own rows came by."""

    patience: int = Field(10, ge=1, le=100_000, description="watched steps in a row that must break the rule")
    share: float = Field(0.8, ge=0, lt=1, description="broken above this share of the classes that came by")
    batches: int = Field(10, ge=1, le=10_000, description="watched batches that are looked at together")


class ExplodingNormsRule(RuleBase):
    """Rows grow without bound."""

    norm: float = Field(1e4, gt=0, description="broken above this L2 norm of a row, before normalisation")


class GapNegativeRule(RuleBase):
    """Pairs of one class are less similar than pairs of two."""

    patience: int = Field(3, ge=1, le=100_000, description="watched steps in a row that must break the rule")
    gap: float = Field(0.0, ge=-2, le=2, description="broken below this gap of mean cosine similarities")


class RulesSpec(Frozen):
    """When a run is not healthy."""

    collapse: CollapseRule = Field(default_factory=lambda: CollapseRule())
    no_signal: NoSignalRule = Field(default_factory=lambda: NoSignalRule())
    dead_proxies: DeadProxiesRule = Field(default_factory=lambda: DeadProxiesRule())
    exploding_norms: ExplodingNormsRule = Field(default_factory=lambda: ExplodingNormsRule())
    gap_negative: GapNegativeRule = Field(default_factory=lambda: GapNegativeRule())


class WatchSpec(Frozen):
    """The run's health, measured from what a step has computed; it changes no bit of training."""

    every: int = Field(50, ge=0, description="steps between measurements; 0: never")
    rules: RulesSpec = Field(default_factory=lambda: RulesSpec())
