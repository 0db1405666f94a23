"""The literal catalogue of losses, miners, distances, reducers and regularisers: YAML in, checked frozen values out.

Names and defaults are those of pytorch-metric-learning (PML) 2.9, in snake_case without the suffix, beside the field's
short names. `num_classes` and `embedding_size` are absent: they come from the data and the model. This module loads
neither torch nor PML; one class below is one row of the table.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

PLUGIN = r"^[A-Za-z][A-Za-z0-9_.-]{0,99}$"  # names of entry points

REFUSED = {
    "cross_batch_memory": "is an option of the losses over pairs; write it inside one: "
    "{kind: contrastive, memory: {size: 4096, start_step: 100}}",
    "dynamic_soft_margin": "carries a histogram from step to step with its graph and outside the state dict, and "
    "runs over its end where d(a, p) - d(a, n) reaches 1.6; use triplet with smooth_loss",
    "instance": "takes row c of the batch as the target of class c, so the loss depends on the order of rows; "
    "use normalized_softmax or nt_xent",
    "manifold": "takes no class labels and draws its own at random; use proxy_anchor or soft_triple",
    "multiple": "is a list of losses, and a spec has one; add `center: {weight: ...}` to a loss, or a regularizer",
    "self_supervised": "pairs two views of each row, and a batch holds one; use nt_xent or sup_con",
    "vic_reg": "needs two views of each row and no labels, and a batch holds one view; use sup_con",
    "embeddings_already_packaged_as_triplets": "needs rows in triplets, and a batch holds P x K; use all or semihard",
    "batched": "gives distances in blocks, and no loss here takes blocks; use the distance inside it",
    "do_nothing": "leaves the loss unreduced, and a step needs one number; use mean or sum",
    "multiple_reducers": "needs one reducer for each part of a loss; give the one reducer that all parts share",
}


class Frozen(BaseModel):
    """Base of every entry: immutable, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)


def refuse(value: Any) -> Any:
    """Explain a known name that cannot be had, before the union calls it unknown."""
    kind = value.get("kind") if isinstance(value, dict) else None
    if isinstance(kind, str) and kind in REFUSED:
        raise ValueError(f"{kind} is refused: it {REFUSED[kind]}")
    return value


def canonical(entry: BaseModel) -> str:
    """The entry's long name, whichever of its names the spec used."""
    name: str = get_args(type(entry).model_fields["kind"].annotation)[0]
    return name


# ---- distances -------------------------------------------------------------------------------------------------------


class Cosine(Frozen):
    """Cosine similarity (CosineSimilarity)."""

    kind: Literal["cosine"] = "cosine"


class DotProduct(Frozen):
    """Inner product (DotProductSimilarity)."""

    kind: Literal["dot_product"] = "dot_product"
    normalize_embeddings: bool = Field(True, description="divide embeddings by their L2 norm first")


class Euclidean(Frozen):
    """L2 distance (LpDistance with p = 2)."""

    kind: Literal["euclidean"] = "euclidean"
    normalize_embeddings: bool = Field(True, description="divide embeddings by their L2 norm first")
    power: float = Field(1, ge=1, le=16, description="distances are raised to this power; 2: squared distances")


class Manhattan(Frozen):
    """L1 distance (LpDistance with p = 1)."""

    kind: Literal["manhattan"] = "manhattan"
    normalize_embeddings: bool = Field(True, description="divide embeddings by their L1 norm first")
    power: float = Field(1, ge=1, le=16, description="distances are raised to this power")


class Lp(Frozen):
    """Lp distance (LpDistance)."""

    kind: Literal["lp"] = "lp"
    p: float = Field(2, ge=1, le=64, description="order of the norm, also of the one that normalises")
    normalize_embeddings: bool = Field(True, description="divide embeddings by their Lp norm first")
    power: float = Field(1, ge=1, le=16, description="distances are raised to this power")


class Snr(Frozen):
    """Signal-to-noise ratio: var(a - b) / var(a) (SNRDistance)."""

    kind: Literal["snr"] = "snr"
    normalize_embeddings: bool = Field(True, description="divide embeddings by their L2 norm first")


DistanceSpec = Annotated[
    Cosine | DotProduct | Euclidean | Manhattan | Lp | Snr, Field(discriminator="kind"), BeforeValidator(refuse)
]

SIMILARITIES = ("cosine", "dot_product")
DISTANCES = ("euclidean", "manhattan", "lp", "snr")
ANY = (*SIMILARITIES, *DISTANCES)


# ---- reducers --------------------------------------------------------------------------------------------------------


class Plain(Frozen):
    """Mean or sum of all losses, or mean of the losses above zero (MeanReducer, SumReducer, AvgNonZeroReducer)."""

    kind: Literal["mean", "sum", "avg_non_zero"]


class Divisor(Frozen):
    """Sum over the count that the loss itself names (DivisorReducer)."""

    kind: Literal["divisor"] = "divisor"


class ClassWeighted(Frozen):
    """Mean weighted by the anchor's class (ClassWeightedReducer)."""

    kind: Literal["class_weighted"] = "class_weighted"
    weights: tuple[Annotated[float, Field(ge=0)], ...] = Field(min_length=1, description="one weight a class, in order")


class PerAnchor(Frozen):
    """Mean over each anchor's pairs, then over anchors (PerAnchorReducer)."""

    kind: Literal["per_anchor"] = "per_anchor"
    reducer: Literal["mean", "sum", "avg_non_zero"] = Field("mean", description="how the anchors' means are reduced")


class Threshold(Frozen):
    """Mean of the losses inside a range (ThresholdReducer)."""

    kind: Literal["threshold"] = "threshold"
    low: float | None = Field(None, description="losses at or below this are left out")
    high: float | None = Field(None, description="losses at or above this are left out")

    @model_validator(mode="after")
    def _a_range(self) -> Self:
        if self.low is None and self.high is None:
            raise ValueError("threshold needs low, high or both")
        if self.low is not None and self.high is not None and self.low >= self.high:
            raise ValueError(f"low = {self.low} leaves nothing below high = {self.high}")
        return self


ReducerSpec = Annotated[
    Plain | Divisor | ClassWeighted | PerAnchor | Threshold, Field(discriminator="kind"), BeforeValidator(refuse)
]

ON_ELEMENTS = ("mean", "sum", "avg_non_zero", "threshold", "class_weighted", "per_anchor")
ON_TRIPLETS = ("mean", "sum", "avg_non_zero", "threshold", "class_weighted")
ON_PROXIES = ("mean", "sum", "avg_non_zero", "threshold", "divisor")


# ---- regularisers ----------------------------------------------------------------------------------------------------


class Regularizer(Frozen):
    """Base of penalties on embeddings or on a loss's own weights."""

    weight: float = Field(1, ge=0, description="factor of the penalty")


class CenterInvariant(Regularizer):
    """Variance of squared norms (CenterInvariantRegularizer)."""

    kind: Literal["center_invariant"] = "center_invariant"


class LpNorm(Regularizer):
    """Lp norm of each row (LpRegularizer)."""

    kind: Literal["lp"] = "lp"
    p: float = Field(2, ge=1, le=64, description="order of the norm")
    power: float = Field(1, ge=1, le=16, description="norms are raised to this power")


class RegularFace(Regularizer):
    """Cosine similarity of each row to its nearest other row (RegularFaceRegularizer)."""

    kind: Literal["regular_face"] = "regular_face"


class SparseCenters(Regularizer):
    """Distances between the centres of one class (SparseCentersRegularizer)."""

    kind: Literal["sparse_centers"] = "sparse_centers"


class ZeroMean(Regularizer):
    """Absolute sum of each row (ZeroMeanRegularizer)."""

    kind: Literal["zero_mean"] = "zero_mean"


RegularizerSpec = Annotated[CenterInvariant | LpNorm | RegularFace | ZeroMean, Field(discriminator="kind")]
WeightRegularizerSpec = Annotated[
    CenterInvariant | LpNorm | RegularFace | SparseCenters | ZeroMean, Field(discriminator="kind")
]


# ---- miners ----------------------------------------------------------------------------------------------------------

Range = tuple[float, float] | None
Strategy = Literal["hard", "semihard", "easy", "all"]


class Mining(Frozen):
    """Base of miners that measure with a distance of choice."""

    distance: DistanceSpec | None = Field(None, description="None: the distance of the loss")


class Angular(Frozen):
    """Triplets with an angle above a threshold, on unit vectors (AngularMiner)."""

    kind: Literal["angular"] = "angular"
    angle: float = Field(20, ge=0, lt=90, description="degrees")


class BatchHard(Mining):
    """Each anchor's farthest positive and nearest negative (BatchHardMiner)."""

    kind: Literal["batch_hard"] = "batch_hard"
    allowed_pos_range: Range = Field(None, description="only positives at distances in this range")
    allowed_neg_range: Range = Field(None, description="only negatives at distances in this range")


class BatchEasyHard(Mining):
    """Each anchor's easiest, hardest, semihard or all positives and negatives (BatchEasyHardMiner)."""

    kind: Literal["batch_easy_hard"] = "batch_easy_hard"
    pos_strategy: Strategy = Field("easy", description="which positives")
    neg_strategy: Strategy = Field("semihard", description="which negatives")
    allowed_pos_range: Range = Field(None, description="only positives at distances in this range")
    allowed_neg_range: Range = Field(None, description="only negatives at distances in this range")

    @model_validator(mode="after")
    def _semihard_needs_one_other(self) -> Self:
        strategies = (self.pos_strategy, self.neg_strategy)
        if strategies in {("semihard", "semihard"), ("semihard", "all"), ("all", "semihard")}:
            raise ValueError(f"pos_strategy and neg_strategy cannot be {strategies}: make one of them easy or hard")
        return self


class DistanceWeighted(Frozen):
    """One random negative a pair, uniform over distance, on unit vectors (DistanceWeightedMiner)."""

    kind: Literal["distance_weighted"] = "distance_weighted"
    cutoff: float = Field(0.5, gt=0, lt=2, description="smaller distances count as this one")
    nonzero_loss_cutoff: float = Field(1.4, gt=0, le=2, description="negatives farther than this are not drawn")


class Hdc(Mining):
    """The hardest share of all positive and of all negative pairs (HDCMiner)."""

    kind: Literal["hdc"] = "hdc"
    filter_percentage: float = Field(0.5, gt=0, le=1, description="the share that stays")


class MultiSimilarityPairs(Mining):
    """Positives beyond the nearest negative, negatives within the farthest positive (MultiSimilarityMiner)."""

    kind: Literal["multi_similarity"] = "multi_similarity"
    epsilon: float = Field(0.1, ge=0, description="tolerance of both comparisons")


class PairMargin(Mining):
    """Positive pairs beyond one margin, negative pairs within the other (PairMarginMiner)."""

    kind: Literal["pair_margin"] = "pair_margin"
    pos_margin: float = Field(0.2, ge=-1e6, le=1e6, description="positives farther (less similar) than this stay")
    neg_margin: float = Field(0.8, ge=-1e6, le=1e6, description="negatives nearer (more similar) than this stay")


class TripletMarginTriplets(Mining):
    """Triplets that violate a margin (TripletMarginMiner)."""

    kind: Literal["triplet_margin"] = "triplet_margin"
    margin: float = Field(0.2, ge=0, le=1e6, description="largest d(a, n) - d(a, p) that counts as a violation")
    type_of_triplets: Literal["all", "hard", "semihard", "easy"] = Field(
        "all", description="hard: n is not farther than p; semihard: it is; easy: the triplets that are no violation"
    )


class Triplets(Mining):
    """Short names: triplet_margin with `type_of_triplets` = kind."""

    kind: Literal["all", "hard", "semihard", "easy"]
    margin: float = Field(0.2, ge=0, le=1e6, description="largest d(a, n) - d(a, p) that counts as a violation")


class UniformHistogram(Mining):
    """Pairs drawn so that their distances spread evenly (UniformHistogramMiner)."""

    kind: Literal["uniform_histogram"] = "uniform_histogram"
    num_bins: int = Field(100, ge=1, le=10_000, description="bins between the smallest and the largest distance")
    pos_per_bin: int = Field(10, ge=1, le=100_000, description="positive pairs drawn from each bin")
    neg_per_bin: int = Field(10, ge=1, le=100_000, description="negative pairs drawn from each bin")


MinerSpec = Annotated[
    Angular | BatchHard | BatchEasyHard | DistanceWeighted | Hdc | MultiSimilarityPairs | PairMargin
    | TripletMarginTriplets | Triplets | UniformHistogram,
    Field(discriminator="kind"),
    BeforeValidator(refuse),
]  # fmt: skip


# ---- losses: what they share -----------------------------------------------------------------------------------------

Margin = Annotated[float, Field(ge=-1e6, le=1e6)]
Scale = Annotated[float, Field(gt=0, le=1e6)]
PerAnchorTriplets = Literal["all"] | Annotated[int, Field(ge=1, le=100_000)]


class CenterTerm(Frozen):
    """The center loss added to another one (Wen et al. 2016)."""

    class_parallel: bool = Field(False, description="each centre on the worker that owns its class, not on all")

    weight: float = Field(0.01, ge=0, description="factor of the center loss")
    alpha: float = Field(0.5, ge=0, le=1, description="rate at which centres move, once a committed step")
    reduction: Literal["sum", "mean"] = Field("sum", description="over the rows of the batch; the paper sums")


class MemorySpec(Frozen):
    """Past embeddings that a batch is compared with too (XBM, Wang et al., CVPR 2020).

    Uniform sampling repeats no class within a pass, so a memory shorter than a pass holds hardly any positives.
    """

    size: int = Field(4096, ge=1, le=2**22, description="embeddings remembered, the latest; at least a global batch")
    start_step: int = Field(100, ge=0, description="committed steps before the memory counts in the loss")
    weight: float = Field(1, ge=0, le=1e6, description="factor of the loss against the memory")


class ClassParallel(Frozen):
    """Class vectors and their optimiser's state on the workers that own them, for very many classes."""


class ClassParallelSoftmax(ClassParallel):
    """A softmax over classes on their owners (model parallel, Deng et al. 2019; partial FC, An et al. 2022)."""

    sample_rate: float = Field(
        1.0, gt=0, le=1, description="share of the classes outside of the batch that a step compares with, drawn anew"
    )


class ClassParallelMargin(ClassParallelSoftmax):
    """The same with a margin on the own class."""

    gradient: Literal["exact", "insightface"] = Field(
        "exact", description="of the own class's cosine; insightface: as its ArcFace has it, the margin a constant"
    )


def a_word_is_all(value: Any) -> Any:
    """`class_parallel: true` is the defaults."""
    return {} if value is True else None if value is False else value


Parallel = Annotated[ClassParallel | None, BeforeValidator(a_word_is_all)]
ParallelSoftmax = Annotated[ClassParallelSoftmax | None, BeforeValidator(a_word_is_all)]
ParallelMargin = Annotated[ClassParallelMargin | None, BeforeValidator(a_word_is_all)]
ON_OWNERS = "each class vector, and its optimiser's state, on the worker that owns the class, not on all"


class AnyLoss(Frozen):
    """Base of every loss: says why it takes no `memory`, unless it is Remembering, and refuses `class_parallel`."""

    no_memory: ClassVar[str] = "ranks or pairs the rows of one batch with each other"

    @model_validator(mode="before")
    @classmethod
    def _memory_is_refused(cls, value: Any) -> Any:
        if isinstance(value, dict) and value.get("memory") is not None and "memory" not in cls.model_fields:
            raise ValueError(
                f"{value.get('kind')} takes no memory: it {cls.no_memory}; those that take one are contrastive, "
                "triplet, multi_similarity, nt_xent, sup_con, circle and other losses over pairs"
            )
        return value

    @model_validator(mode="before")
    @classmethod
    def _class_parallel_is_refused(cls, value: Any) -> Any:
        asked = isinstance(value, dict) and value.get("class_parallel") not in (None, False)
        if asked and "class_parallel" not in cls.model_fields:
            raise ValueError(
                f"{value.get('kind')} is not class_parallel; those that are: arc_face, cos_face, sub_center_arc_face, "
                "curricular_face, normalized_softmax, softmax, proxy_anchor, center and the term `center` of any loss"
            )
        return value


class LossBase(AnyLoss):
    """What every loss takes beside its own parameters."""

    center: CenterTerm | None = Field(None, description="adds the center loss")


class Pml(LossBase):
    """Base of the losses of pytorch-metric-learning."""

    filled: ClassVar[tuple[str, ...]] = ()  # constructor arguments that come from the data and the model
    regularizer: RegularizerSpec | None = Field(None, description="penalty on the embeddings")


class Measured(Pml):
    """A loss that measures with a distance of choice."""

    distances: ClassVar[tuple[str, ...]] = ANY
    distance: DistanceSpec | None = Field(None, description="None: the loss's own default")

    @field_validator("distance")
    @classmethod
    def _distance_fits(cls, value: Any) -> Any:
        if value is not None and value.kind not in cls.distances:
            raise ValueError(f"{value.kind} does not fit this loss: choose from {', '.join(cls.distances)}")
        return value


class Reduced(Measured):
    """A loss with one term for each element, pair or triplet."""

    reducers: ClassVar[tuple[str, ...]] = ON_ELEMENTS
    reducer: ReducerSpec | None = Field(None, description="None: the loss's own default")

    @field_validator("reducer")
    @classmethod
    def _reducer_fits(cls, value: Any) -> Any:
        if value is not None and value.kind not in cls.reducers:
            raise ValueError(f"{value.kind} does not fit this loss: choose from {', '.join(cls.reducers)}")
        return value


class Mined(Reduced):
    """A loss over pairs, triplets or weighted rows that a miner may choose."""

    miner: MinerSpec | None = Field(None, description="None: every pair or triplet")


class Remembering(Mined):
    """A loss over pairs whose second row may come from a memory of past batches."""

    memory: MemorySpec | None = Field(None, description="None: pairs of the batch alone")

    @model_validator(mode="after")
    def _parts_take_a_memory(self) -> Self:
        if self.memory is not None and isinstance(self.reducer, PerAnchor):
            raise ValueError("memory: the reducer per_anchor counts pairs inside one batch; choose mean or another one")
        if self.memory is not None and isinstance(self.miner, Angular):
            raise ValueError(
                f"memory: the miner angular would hold rows x {self.memory.size}^2 angles; choose semihard or another"
            )
        return self


class Proxied(Mined):
    """A loss with weights of its own: proxies, class vectors or centres."""

    no_memory: ClassVar[str] = "compares rows with vectors of its own, which remember all classes already"
    filled: ClassVar[tuple[str, ...]] = ("num_classes", "embedding_size")
    weight_regularizer: WeightRegularizerSpec | None = Field(None, description="penalty on the loss's weights")

    @field_validator("weight_regularizer")
    @classmethod
    def _centers_are_many(cls, value: Any) -> Any:
        if isinstance(value, SparseCenters) and not {"centers_per_class", "sub_centers"} & cls.model_fields.keys():
            raise ValueError("sparse_centers needs several centres a class: use soft_triple or sub_center_arc_face")
        return value

    @model_validator(mode="after")
    def _sparse_centers_have_pairs(self) -> Self:
        centers = getattr(self, "centers_per_class", getattr(self, "sub_centers", 2))
        if isinstance(self.weight_regularizer, SparseCenters) and centers < 2:
            raise ValueError("sparse_centers needs at least 2 centres a class")
        return self


class OnOwners(Proxied):
    """A loss whose class vectors may live on their owners."""

    class_parallel: Parallel = Field(None, description=ON_OWNERS)

    @model_validator(mode="after")
    def _owners_see_whole_columns(self) -> Self:
        if self.class_parallel is None:
            return self
        given = [name for name in ("distance", "miner", "weight_regularizer") if getattr(self, name) is not None]
        if self.reducer is not None and "divisor" in self.reducers:
            given.append("reducer")
        if given:
            raise ValueError(f"class_parallel has the loss's own {', '.join(given)} alone: leave out what is given")
        return self


class CosineProxied(Proxied):
    """A margin softmax over cosines to class vectors."""

    distances: ClassVar[tuple[str, ...]] = ("cosine",)


class CosineOnOwners(OnOwners, CosineProxied):
    """One whose class vectors may live on their owners."""

    class_parallel: ParallelMargin = Field(None, description=ON_OWNERS)


# ---- losses: the table -----------------------------------------------------------------------------------------------


class AngularLoss(Remembering):
    """https://arxiv.org/abs/1708.01682"""

    distances: ClassVar[tuple[str, ...]] = ("euclidean",)
    kind: Literal["angular"] = "angular"
    alpha: float = Field(40, gt=0, lt=90, description="the angle, degrees")

    @field_validator("distance")
    @classmethod
    def _unit_vectors(cls, value: Any) -> Any:
        if isinstance(value, Euclidean) and (value.power != 1 or not value.normalize_embeddings):
            raise ValueError("angular needs normalize_embeddings: true and power: 1")
        return value


class ArcFace(CosineOnOwners):
    """https://arxiv.org/abs/1801.07698"""

    kind: Literal["arc_face", "arcface"] = "arc_face"
    margin: float = Field(28.6, ge=0, lt=180, description="degrees")
    scale: Scale = Field(64, description="factor of the cosines")


class Circle(Remembering):
    """https://arxiv.org/abs/2002.10857"""

    distances: ClassVar[tuple[str, ...]] = ("cosine",)
    kind: Literal["circle"] = "circle"
    m: float = Field(0.4, ge=0, le=1, description="relaxation: radius of the decision boundary")
    gamma: Scale = Field(80, description="scale of the similarities")


class Contrastive(Remembering):
    """Positive pairs nearer than one margin, negative pairs farther than the other (ContrastiveLoss)."""

    kind: Literal["contrastive"] = "contrastive"
    pos_margin: Margin = Field(0, description="positives at this distance (similarity) cost nothing")
    neg_margin: Margin = Field(1, description="negatives at this distance (similarity) cost nothing")

    @model_validator(mode="after")
    def _margins_point_the_right_way(self) -> Self:
        if self.distance is not None and self.distance.kind in SIMILARITIES and self.pos_margin <= self.neg_margin:
            raise ValueError(
                f"pos_margin = {self.pos_margin} and neg_margin = {self.neg_margin} push the wrong way with the "
                f"similarity {self.distance.kind}: use pos_margin: 1 and neg_margin: 0"
            )
        return self


class CosFace(CosineOnOwners):
    """https://arxiv.org/abs/1801.09414"""

    kind: Literal["cos_face", "cosface"] = "cos_face"
    margin: float = Field(0.35, ge=0, le=2, description="taken from the target's cosine")
    scale: Scale = Field(64, description="factor of the cosines")


class FastAP(Mined):
    """Cakir et al., CVPR 2019: average precision by a histogram of distances of unit vectors."""

    distances: ClassVar[tuple[str, ...]] = ("euclidean",)
    kind: Literal["fast_ap"] = "fast_ap"
    num_bins: int = Field(10, ge=1, le=10_000, description="bins of the histogram")

    @field_validator("distance")
    @classmethod
    def _unit_vectors(cls, value: Any) -> Any:
        if isinstance(value, Euclidean) and not value.normalize_embeddings:
            raise ValueError("fast_ap needs normalize_embeddings: true")
        return value


class GeneralizedLiftedStructure(Remembering):
    """https://arxiv.org/abs/1703.07737, page 4"""

    kind: Literal["generalized_lifted_structure"] = "generalized_lifted_structure"
    neg_margin: Margin = Field(1, description="added to every negative pair")
    pos_margin: Margin = Field(0, description="taken from every positive pair")


class Histogram(Measured):
    """https://arxiv.org/abs/1611.00822"""

    distances: ClassVar[tuple[str, ...]] = ("cosine",)
    kind: Literal["histogram"] = "histogram"
    n_bins: int | None = Field(None, ge=1, le=10_000, description="bins over [-1, 1]; None: 100, or 2 / delta")
    delta: float | None = Field(None, ge=2e-4, le=2, description="width of a bin, 2 / n_bins")
    miner: MinerSpec | None = Field(None, description="None: every triplet")

    @model_validator(mode="after")
    def _one_width(self) -> Self:
        if self.n_bins is not None and self.delta is not None and self.delta != 2 / self.n_bins:
            raise ValueError(f"delta = {self.delta} is not 2 / n_bins = {2 / self.n_bins}: give one of them")
        if self.delta is not None and abs(2 / self.delta - round(2 / self.delta)) > 1e-6:
            raise ValueError(f"delta = {self.delta} does not cut [-1, 1] into equal bins: use 2 / a whole number")
        return self


class IntraPairVariance(Remembering):
    """Yu and Tao, ICCV 2019: variance of positive and of negative similarities."""

    kind: Literal["intra_pair_variance"] = "intra_pair_variance"
    pos_eps: float = Field(0.01, ge=0, le=1, description="tolerance below the mean of positives")
    neg_eps: float = Field(0.01, ge=0, le=1, description="tolerance above the mean of negatives")


class LargeMarginSoftmax(CosineProxied):
    """https://arxiv.org/abs/1612.02295"""

    kind: Literal["large_margin_softmax"] = "large_margin_softmax"
    margin: int = Field(4, ge=1, le=16, description="factor of the target's angle")
    scale: Scale = Field(1, description="factor of the logits")


class LiftedStructure(Mined):
    """https://arxiv.org/abs/1511.06452"""

    no_memory: ClassVar[str] = "finds the negatives of a positive by its row in the batch"
    kind: Literal["lifted_structure"] = "lifted_structure"
    neg_margin: Margin = Field(1, description="added to every negative pair")
    pos_margin: Margin = Field(0, description="taken from every positive pair")


class MarginLoss(Remembering):
    """https://arxiv.org/abs/1706.07567; a learned beta is one number for each class."""

    filled: ClassVar[tuple[str, ...]] = ("num_classes",)
    reducers: ClassVar[tuple[str, ...]] = (*ON_TRIPLETS, "divisor")
    kind: Literal["margin"] = "margin"
    margin: Margin = Field(0.2, description="half the width of the band around beta")
    nu: float = Field(0, ge=0, le=1e6, description="factor of beta's penalty")
    beta: Margin = Field(1.2, description="boundary between positives and negatives")
    triplets_per_anchor: PerAnchorTriplets = Field("all", description="all, or as many drawn at random")
    learn_beta: bool = Field(False, description="beta is learned, for each class")


class MultiSimilarity(Remembering):
    """https://arxiv.org/abs/1904.06627"""

    kind: Literal["multi_similarity"] = "multi_similarity"
    alpha: Scale = Field(2, description="weight of positive pairs")
    beta: Scale = Field(50, description="weight of negative pairs")
    base: Margin = Field(0.5, description="shift of both")


class Nca(Remembering):
    """Goldberger et al., NeurIPS 2004: neighbourhood components analysis."""

    kind: Literal["nca"] = "nca"
    softmax_scale: Scale = Field(1, description="inverse temperature")


class NormalizedSoftmax(OnOwners):
    """https://arxiv.org/abs/1811.12649"""

    class_parallel: ParallelSoftmax = Field(None, description=ON_OWNERS)

    kind: Literal["normalized_softmax"] = "normalized_softmax"
    temperature: float = Field(0.05, gt=0, le=1e3, description="divides the logits")


class NPairs(Mined):
    """Sohn, NeurIPS 2016: one positive pair a class."""

    kind: Literal["n_pairs", "npairs"] = "n_pairs"


class NTXent(Remembering):
    """https://arxiv.org/abs/1807.03748, also InfoNCE"""

    kind: Literal["nt_xent", "ntxent", "info_nce"] = "nt_xent"
    temperature: float = Field(0.07, gt=0, le=1e3, description="divides the similarities")


class P2SGrad(Pml):
    """https://arxiv.org/abs/1905.02479; its reduction is a mean and its distance the cosine."""

    no_memory: ClassVar[str] = Proxied.no_memory
    filled: ClassVar[tuple[str, ...]] = ("num_classes", "descriptors_dim")
    kind: Literal["p2s_grad"] = "p2s_grad"


class Pnp(Measured):
    """https://arxiv.org/abs/2102.04640: penalty of negatives ranked before positives."""

    distances: ClassVar[tuple[str, ...]] = ("cosine",)
    kind: Literal["pnp"] = "pnp"
    b: float = Field(2, gt=0, le=1e6, description="boundary, variant Ib")
    alpha: float = Field(1, gt=0, le=1e3, description="power, variant Dq")
    anneal: float = Field(0.01, gt=0, le=1e3, description="temperature of the sigmoid")
    variant: Literal["Ds", "Dq", "Iu", "Ib", "O"] = Field("O", description="function of the number of negatives before")


class ProxyAnchor(OnOwners):
    """https://arxiv.org/abs/2003.13911"""

    reducers: ClassVar[tuple[str, ...]] = ON_PROXIES
    kind: Literal["proxy_anchor"] = "proxy_anchor"
    margin: Margin = Field(0.1, description="added to both sides")
    alpha: Scale = Field(32, description="scale of the similarities")


class ProxyNca(Proxied):
    """https://arxiv.org/abs/1703.07464"""

    kind: Literal["proxy_nca"] = "proxy_nca"
    softmax_scale: Scale = Field(1, description="inverse temperature")


class RankedList(Reduced):
    """https://arxiv.org/abs/1903.03238"""

    distances: ClassVar[tuple[str, ...]] = DISTANCES
    kind: Literal["ranked_list"] = "ranked_list"
    margin: float = Field(ge=0, le=1e6, description="between positives and negatives; 0.4 in the paper")
    Tn: float = Field(ge=0, le=5, description="temperature of negatives; larger ones overflow")
    imbalance: float = Field(0.5, ge=0, le=1, description="share of the negatives' part")
    alpha: float | None = Field(None, ge=0, le=1e6, description="distance wanted of negatives; None: 1 + margin / 2")
    Tp: float = Field(0, ge=0, le=5, description="temperature of positives")


class SnrContrastive(Remembering):
    """Yuan et al., CVPR 2019: contrastive with the signal-to-noise ratio."""

    distances: ClassVar[tuple[str, ...]] = ("snr",)
    kind: Literal["signal_to_noise_ratio_contrastive", "snr_contrastive"] = "signal_to_noise_ratio_contrastive"
    pos_margin: Margin = Field(0, description="positives at this distance cost nothing")
    neg_margin: Margin = Field(1, description="negatives at this distance cost nothing")


class SmoothAP(Mined):
    """https://arxiv.org/abs/2007.12163"""

    distances: ClassVar[tuple[str, ...]] = ("cosine",)
    kind: Literal["smooth_ap"] = "smooth_ap"
    temperature: float = Field(0.01, gt=0, le=1e3, description="of the sigmoid in place of the step")


class SoftTriple(Proxied):
    """https://arxiv.org/abs/1909.05235"""

    distances: ClassVar[tuple[str, ...]] = SIMILARITIES
    kind: Literal["soft_triple"] = "soft_triple"
    centers_per_class: int = Field(10, ge=1, le=10_000, description="centres of each class")
    la: Scale = Field(20, description="scale of the class logits")
    gamma: float = Field(0.1, gt=0, le=1e6, description="temperature over the centres of a class")
    margin: Margin = Field(0.01, description="taken from the target's similarity")


class SphereFace(CosineProxied):
    """https://arxiv.org/abs/1704.08063"""

    kind: Literal["sphere_face", "sphereface"] = "sphere_face"
    margin: int = Field(4, ge=1, le=16, description="factor of the target's angle")
    scale: Scale = Field(1, description="factor of the logits")


class SubCenterArcFace(CosineOnOwners):
    """Deng et al., ECCV 2020: ArcFace with several centres a class."""

    kind: Literal["sub_center_arc_face", "subcenter_arcface"] = "sub_center_arc_face"
    margin: float = Field(28.6, ge=0, lt=180, description="degrees")
    scale: Scale = Field(64, description="factor of the cosines")
    sub_centers: int = Field(3, ge=1, le=1000, description="centres of each class")


class SupCon(Remembering):
    """https://arxiv.org/abs/2004.11362"""

    kind: Literal["sup_con", "supcon"] = "sup_con"
    temperature: float = Field(0.1, gt=0, le=1e3, description="divides the similarities")


class ThresholdConsistentMargin(Measured):
    """https://arxiv.org/abs/2307.04047"""

    distances: ClassVar[tuple[str, ...]] = ("cosine",)
    kind: Literal["threshold_consistent_margin", "tcm"] = "threshold_consistent_margin"
    lambda_plus: float = Field(1, ge=0, le=1e6, description="weight of positive pairs")
    lambda_minus: float = Field(1, ge=0, le=1e6, description="weight of negative pairs")
    margin_plus: float = Field(0.9, ge=-1, le=1, description="positives less similar than this cost")
    margin_minus: float = Field(0.5, ge=-1, le=1, description="negatives more similar than this cost")
    miner: MinerSpec | None = Field(None, description="None: every pair")


class TripletMargin(Remembering):
    """max(0, d(a, p) - d(a, n) + margin) (TripletMarginLoss)."""

    reducers: ClassVar[tuple[str, ...]] = ON_TRIPLETS
    kind: Literal["triplet_margin", "triplet"] = "triplet_margin"
    margin: float = Field(0.05, ge=0, le=1e6, description="wanted d(a, n) - d(a, p)")
    swap: bool = Field(False, description="use d(p, n) where it violates the margin more")
    smooth_loss: bool = Field(False, description="softplus in place of max(0, .)")
    triplets_per_anchor: PerAnchorTriplets = Field("all", description="all, or as many drawn at random")

    @model_validator(mode="after")
    def _swap_stays_in_the_batch(self) -> Self:
        if self.memory is not None and self.swap:
            raise ValueError("memory: swap needs d(p, n), and both rows are in the memory; leave one of the two out")
        return self


class TupletMargin(Mined):
    """Yu and Tao, ICCV 2019."""

    no_memory: ClassVar[str] = "holds positive pairs x negative pairs numbers, which a memory multiplies"
    distances: ClassVar[tuple[str, ...]] = ("cosine",)
    kind: Literal["tuplet_margin"] = "tuplet_margin"
    margin: float = Field(5.73, ge=0, lt=180, description="degrees")
    scale: Scale = Field(64, description="factor of the cosines")


# ---- losses: the textbook --------------------------------------------------------------------------------------------


class TextbookDistance(Frozen):
    """|x - y|_2, |x - y|_1 or 1 - cos(x, y), of the embeddings as they are."""

    kind: Literal["euclidean", "manhattan", "cosine"] = "euclidean"


class TextbookMiner(Frozen):
    """All triplets, or by g = D(a, n)^2 - D(a, p)^2: hard g <= 0, semihard 0 < g <= margin."""

    kind: Literal["all", "semihard", "hard"] = "all"


class TextbookContrastive(LossBase):
    """1 / (2N) sum_ij [y_ij D^2 + (1 - y_ij) max(0, margin - D)^2] over N rows (Hadsell et al. 2006); D_ii = 0."""

    no_memory: ClassVar[str] = "is the textbook's sum over one batch"
    kind: Literal["textbook_contrastive"] = "textbook_contrastive"
    margin: float = Field(1, gt=0, le=1e6, description="negatives at this distance cost nothing")
    distance: TextbookDistance = Field(default_factory=lambda: TextbookDistance(), description="D")


class TextbookTriplet(LossBase):
    """Mean of max(0, D(a, p)^2 - D(a, n)^2 + margin) over triplets (Schroff et al. 2015)."""

    no_memory: ClassVar[str] = "is the textbook's sum over one batch"
    kind: Literal["textbook_triplet"] = "textbook_triplet"
    margin: float = Field(0.2, gt=0, le=1e6, description="wanted D(a, n)^2 - D(a, p)^2")
    distance: TextbookDistance = Field(default_factory=lambda: TextbookDistance(), description="D")
    miner: TextbookMiner = Field(default_factory=lambda: TextbookMiner(), description="which triplets count")


class Owned(LossBase):
    """Base of softmax heads that are class parallel always."""

    no_memory: ClassVar[str] = Proxied.no_memory
    class_parallel: Annotated[ClassParallelSoftmax, BeforeValidator(a_word_is_all)] = Field(
        default_factory=lambda: ClassParallelSoftmax(), description="which classes a step compares with"
    )


class Softmax(Owned):
    """Cross entropy of a linear classifier without bias, on the embeddings as they are."""

    kind: Literal["softmax"] = "softmax"


class CurricularFace(Owned):
    """https://arxiv.org/abs/2004.00288: ArcFace that weighs hard classes more as training goes on."""

    kind: Literal["curricular_face", "curricularface"] = "curricular_face"
    margin: float = Field(28.6, ge=0, lt=180, description="degrees")
    scale: Scale = Field(64, description="factor of the cosines")
    momentum: float = Field(0.01, gt=0, le=1, description="share of the batch in the mean cosine that decides")


class Center(AnyLoss):
    """1/2 sum_i |x_i - c_{y_i}|^2, centres moved by their own rule (Wen et al. 2016)."""

    no_memory: ClassVar[str] = "compares rows with centres of its own"
    kind: Literal["center"] = "center"
    class_parallel: bool = Field(False, description="each centre on the worker that owns its class, not on all")
    alpha: float = Field(0.5, ge=0, le=1, description="rate at which centres move, once a committed step")
    reduction: Literal["sum", "mean"] = Field("sum", description="over the rows of the batch; the paper sums")


class CustomLoss(LossBase):
    """A loss that an installed plug-in makes: (B, D), (B,) -> a number, of the whole global batch."""

    no_memory: ClassVar[str] = "is a plug-in, which sees one batch"
    kind: Literal["custom"] = "custom"
    plugin: str = Field(pattern=PLUGIN, description="its entry point in raydml.plugins.losses")


LossSpec = Annotated[
    AngularLoss | ArcFace | Circle | Contrastive | CosFace | FastAP | GeneralizedLiftedStructure | Histogram
    | IntraPairVariance | LargeMarginSoftmax | LiftedStructure | MarginLoss | MultiSimilarity | Nca | NormalizedSoftmax
    | NPairs | NTXent | P2SGrad | Pnp | ProxyAnchor | ProxyNca | RankedList | SnrContrastive | SmoothAP | SoftTriple
    | SphereFace | SubCenterArcFace | SupCon | ThresholdConsistentMargin | TripletMargin | TupletMargin
    | Softmax | CurricularFace | TextbookContrastive | TextbookTriplet | Center | CustomLoss,
    Field(discriminator="kind"),
    BeforeValidator(refuse),
]  # fmt: skip
