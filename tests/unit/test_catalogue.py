"""The catalogue against pytorch-metric-learning's own signatures, and what it refuses."""

from __future__ import annotations

import inspect
import subprocess
import sys
from typing import Any, get_args

import pytest
from pydantic import BaseModel, TypeAdapter, ValidationError
from pytorch_metric_learning import distances, losses, miners, reducers, regularizers

from raydml import catalogue
from raydml.losses.build import PARTS
from raydml.losses.table import DISTANCES, LOSSES, MINERS, REDUCERS, REGULARIZERS

LOSS: TypeAdapter[Any] = TypeAdapter(catalogue.LossSpec)

# Arguments that raydml fills or that a spec writes in another place.
ELSEWHERE = {
    "collect_stats",
    "num_classes",
    "embedding_size",
    "descriptors_dim",
    "weight_init_func",
    "mat_based_loss",
    "distance",
    "reducer",
    "embedding_regularizer",
    "embedding_reg_weight",
    "weight_regularizer",
    "weight_reg_weight",
}
# Arguments that a class accepts and fixes, or that mean nothing to it.
FIXED = {
    "cosine": {"normalize_embeddings", "p", "power", "is_inverted"},
    "dot_product": {"p", "power", "is_inverted"},
    "snr": {"p", "power", "is_inverted"},
    "euclidean": {"p", "is_inverted"},
    "manhattan": {"p", "is_inverted"},
    "lp": {"is_inverted"},
    "batch_hard": {"pos_strategy", "neg_strategy"},
    "avg_non_zero": {"low", "high"},
    "per_anchor": {"aggregation_func"},
    "sparse_centers": {"centers_per_class"},
}
ABSTRACT = {
    "BaseDistance",
    "BaseLossWrapper",
    "BaseMetricLossFunction",
    "BaseMiner",
    "BaseReducer",
    "BaseRegularizer",
    "EmbeddingRegularizerMixin",
    "GenericPairLoss",
    "WeightMixin",
    "WeightRegularizerMixin",
}
REFUSED_CLASSES = {
    "CrossBatchMemory": "cross_batch_memory",
    "DynamicSoftMarginLoss": "dynamic_soft_margin",
    "InstanceLoss": "instance",
    "ManifoldLoss": "manifold",
    "MultipleLosses": "multiple",
    "SelfSupervisedLoss": "self_supervised",
    "VICRegLoss": "vic_reg",
    "EmbeddingsAlreadyPackagedAsTriplets": "embeddings_already_packaged_as_triplets",
    "BatchedDistance": "batched",
    "DoNothingReducer": "do_nothing",
    "MultipleReducers": "multiple_reducers",
}
FAMILIES = [
    (losses, LOSSES, catalogue.LossSpec),
    (miners, MINERS, catalogue.MinerSpec),
    (distances, DISTANCES, catalogue.DistanceSpec),
    (reducers, REDUCERS, catalogue.ReducerSpec),
    (regularizers, REGULARIZERS, catalogue.WeightRegularizerSpec),
]


def entries(spec: Any) -> dict[str, type[BaseModel]]:
    """Every name of a union, short or long, with its model."""
    models = get_args(get_args(spec)[0])
    return {name: model for model in models for name in get_args(model.model_fields["kind"].annotation)}


def constructor(kind: Any) -> dict[str, Any]:
    """All constructor arguments of a class and its bases, with defaults."""
    arguments: dict[str, Any] = {}
    for base in kind.__mro__:
        if "__init__" in vars(base) and base.__module__.startswith("pytorch_metric_learning"):
            for parameter in list(inspect.signature(base.__init__).parameters.values())[1:]:
                if parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
                    arguments.setdefault(parameter.name, parameter.default)
    return arguments


ROWS = [
    pytest.param(name, table[name], entries(spec)[name], id=f"{module.__name__.split('.')[-1]}-{name}")
    for module, table, spec in FAMILIES
    for name in table
]


@pytest.mark.parametrize(("name", "kind", "model"), ROWS)
def test_parameters_and_defaults_are_those_of_pytorch_metric_learning(name: str, kind: Any, model: Any) -> None:
    theirs = {key: value for key, value in constructor(kind).items() if key not in ELSEWHERE | FIXED.get(name, set())}
    regularizer = issubclass(model, catalogue.Regularizer)
    ours = {key: field for key, field in model.model_fields.items() if key not in PARTS | {"weight"} or key in theirs}
    if regularizer or name == "class_weighted":
        ours.pop("weight", None)
    assert ours.keys() == theirs.keys()
    for key, value in theirs.items():
        assert ours[key].is_required() if value is inspect.Parameter.empty else ours[key].default == value, key


def test_every_class_of_pytorch_metric_learning_is_in_a_table_or_refused() -> None:
    for module, table, _ in FAMILIES:
        bases = {base for kind in table.values() for base in kind.__mro__}
        for name, kind in vars(module).items():
            if inspect.isclass(kind) and name not in ABSTRACT:
                assert kind in bases or REFUSED_CLASSES[name] in catalogue.REFUSED, name
    assert set(REFUSED_CLASSES.values()) == set(catalogue.REFUSED)


def test_every_name_of_a_union_has_a_class() -> None:
    short = {"all", "hard", "semihard", "easy"}
    own = {"textbook_contrastive", "textbook_triplet", "center", "softmax", "curricular_face", "custom"}
    for _, table, spec in FAMILIES:
        models = set(entries(spec).values())
        names = {get_args(model.model_fields["kind"].annotation)[0] for model in models}
        assert names - short - own <= table.keys()


def test_every_parameter_is_described() -> None:
    for _, _, spec in FAMILIES:
        for model in entries(spec).values():
            assert model.__doc__
            assert all(field.description for name, field in model.model_fields.items() if name != "kind"), model


@pytest.mark.parametrize("name", sorted(catalogue.REFUSED))
def test_a_refused_name_is_refused_with_its_reason(name: str) -> None:
    document: dict[str, Any] = {"kind": name}
    if name == "embeddings_already_packaged_as_triplets":
        document = {"kind": "triplet", "miner": document}
    if name in {"do_nothing", "multiple_reducers"}:
        document = {"kind": "triplet", "reducer": document}
    if name == "batched":
        document = {"kind": "triplet", "distance": document}
    with pytest.raises(ValidationError) as caught:
        LOSS.validate_python(document)
    (error,) = caught.value.errors()
    assert catalogue.REFUSED[name] in error["msg"]


BAD: list[tuple[dict[str, Any], tuple[str, ...], str]] = [
    ({"kind": "triplet", "margin": -1}, ("triplet", "margin"), "greater than or equal to 0"),
    ({"kind": "triplet", "margin": float("inf")}, ("triplet", "margin"), "finite"),
    ({"kind": "triplet", "marjin": 1}, ("triplet", "marjin"), "Extra inputs"),
    ({"kind": "triplet", "num_classes": 3}, ("triplet", "num_classes"), "Extra inputs"),
    ({"kind": "triplet", "triplets_per_anchor": 0}, ("triplet", "triplets_per_anchor"), ""),
    ({"kind": "arcface", "distance": {"kind": "euclidean"}}, ("arcface", "distance"), "choose from cosine"),
    ({"kind": "soft_triple", "distance": {"kind": "lp"}}, ("soft_triple", "distance"), "choose from cosine, dot_pro"),
    ({"kind": "fast_ap", "distance": {"kind": "cosine"}}, ("fast_ap", "distance"), "choose from euclidean"),
    ({"kind": "angular", "distance": {"kind": "euclidean", "power": 2}}, ("angular", "distance"), "power: 1"),
    ({"kind": "triplet", "reducer": {"kind": "per_anchor"}}, ("triplet", "reducer"), "choose from mean"),
    ({"kind": "contrastive", "reducer": {"kind": "divisor"}}, ("contrastive", "reducer"), "choose from mean"),
    ({"kind": "contrastive", "distance": {"kind": "cosine"}}, ("contrastive",), "push the wrong way"),
    ({"kind": "histogram", "reducer": {"kind": "sum"}}, ("histogram", "reducer"), "Extra inputs"),
    ({"kind": "histogram", "delta": 0.3}, ("histogram",), "equal bins"),
    ({"kind": "ranked_list", "margin": 0.4}, ("ranked_list", "Tn"), "required"),
    ({"kind": "arcface", "weight_regularizer": {"kind": "sparse_centers"}}, ("arcface", "weight_regularizer"), "soft_"),
    ({"kind": "triplet", "miner": {"kind": "semihard", "margin": -1}}, ("triplet", "miner", "semihard", "margin"), ""),
    ({"kind": "triplet", "reducer": {"kind": "threshold"}}, ("triplet", "reducer", "threshold"), "low, high or both"),
    ({"kind": "center", "alpha": 2}, ("center", "alpha"), "less than or equal to 1"),
    ({"kind": "triplet", "center": {"alpha": 2}}, ("triplet", "center", "alpha"), "less than or equal to 1"),
]


@pytest.mark.parametrize(("document", "path", "message"), BAD)
def test_a_bad_parameter_is_refused_at_its_path(document: dict[str, Any], path: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        LOSS.validate_python(document)
    assert message in caught.value.errors()[0]["msg"]
    assert caught.value.errors()[0]["loc"][: len(path)] == path


def test_a_loss_survives_json_and_cannot_be_changed() -> None:
    document = {"kind": "triplet", "distance": {"kind": "cosine"}, "miner": {"kind": "semihard"}, "center": {}}
    loss = LOSS.validate_python(document)
    assert LOSS.validate_json(LOSS.dump_json(loss)) == loss
    assert (loss.kind, catalogue.canonical(loss)) == ("triplet", "triplet_margin")
    with pytest.raises(ValidationError, match="frozen"):
        loss.margin = 1.0


def test_the_json_schema_names_every_loss_and_refuses_unknown_keys() -> None:
    schema = LOSS.json_schema()
    assert set(schema["discriminator"]["mapping"]) == set(entries(catalogue.LossSpec))
    assert all(part["additionalProperties"] is False for part in schema["$defs"].values())


def test_the_catalogue_loads_neither_torch_nor_pytorch_metric_learning() -> None:
    code = "import sys, raydml.catalogue; sys.exit(bool({'torch', 'pytorch_metric_learning'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0
