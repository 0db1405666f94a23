"""How a trained model is measured and what search serves of it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from raydml.spec.base import Frozen, Name


class EvaluateSpec(Frozen):
    """How the trained model is measured."""

    protocol: Literal["retrieval"] = "retrieval"
    metric: Literal["cosine", "euclidean", "manhattan"] = Field("cosine", description="distance between embeddings")
    baseline: bool = Field(True, description="measure raw inputs beside the model")
    bootstrap: int = Field(
        1000, ge=0, le=100_000, description="resamples behind the intervals of the metrics; 0: no intervals"
    )
    bootstrap_over: Literal["queries", "classes"] = Field(
        "queries", description="what is drawn anew: single queries, or whole classes, whose queries are correlated"
    )
    confidence: float = Field(0.95, gt=0, lt=1, description="part of the resamples that an interval holds")
    clustering: bool = Field(
        False, description="NMI and AMI of k-means with as many clusters as classes; slow for many classes"
    )


class CompareSpec(Frozen):
    """How two runs are compared; the same answer each time."""

    metric: Literal["cosine", "euclidean", "manhattan"] | None = Field(
        None, description="distance between embeddings; None: the runs' own, which must agree"
    )
    over: Literal["queries", "classes"] = Field(
        "queries", description="what is drawn anew: single queries, or whole classes, whose queries are correlated"
    )
    confidence: float = Field(0.95, gt=0, lt=1, description="part of the resamples that an interval holds")
    repeats: int = Field(1000, ge=100, le=100_000, description="resamples behind an interval")
    seed: int = Field(0, ge=0, lt=2**63, description="of the resamples")
    shown: int = Field(20, ge=0, le=1000, description="queries that are listed, of those fixed and of those broken")


class IndexSpec(Frozen):
    """What search serves when the job has succeeded."""

    collection: Name = Field(description="name of the collection")
    metric: Literal["cosine", "l2", "inner_product"] = "cosine"
    split: Literal["train", "validation", "test", "all"] = Field("test", description="which items are indexed")
