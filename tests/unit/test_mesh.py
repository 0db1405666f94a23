"""Grids of workers, pieces of tensors, stages, and what is refused or proposed before anything runs."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from raydml.errors import SpecError
from raydml.models import EmbeddingModel, build_model, chain
from raydml.parallel import Group, fit, world_sizes
from raydml.parallel.estimate import Candidate, candidates, choose_strategy, facts_of, measured, resolved
from raydml.parallel.group import Peers
from raydml.parallel.holding import Cut
from raydml.parallel.mesh import Mesh, mesh_of
from raydml.parallel.stages import balanced, sizes_of_stages
from raydml.parallel.strategies import STRATEGIES
from raydml.spec import JobSpec, MeshSpec
from tests.distributed.harness import small_spec
from tests.unit.test_membership_protocol import POLICY, Table, replace

CPU = torch.device("cpu")
VIT = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 24, "patch_size": 4}
BERT = {**{name: value for name, value in VIT.items() if name != "patch_size"}, "vocab_size": 40}


def spec_of(model: dict[str, Any] | None = None, **parallel: Any) -> JobSpec:
    changes = {} if model is None else {"model": model}
    return small_spec(Path("images.npz"), parallel={"workers": {"min": 1, "max": 8}, **parallel}, **changes)


def library(architecture: str, config: dict[str, Any]) -> dict[str, Any]:
    return {"backbone": {"kind": "transformers", "architecture": architecture, "config": config}, "dimension": 8}


# Grids


def test_places_ranks_and_lines_are_those_of_nested_loops() -> None:
    mesh = Mesh(("data", "pipeline", "tensor"), (3, 2, 2))
    places = [
        {"data": data, "pipeline": pipeline, "tensor": tensor}
        for data in range(3)
        for pipeline in range(2)
        for tensor in range(2)
    ]
    assert [mesh.place(rank) for rank in range(mesh.size)] == places
    assert [mesh.rank(place) for place in places] == list(range(12))
    for rank, axis in itertools.product(range(12), mesh.axes):
        others = [other for other in mesh.axes if other != axis]
        wanted = [n for n in range(12) if all(places[n][other] == places[rank][other] for other in others)]
        assert mesh.line(rank, axis) == wanted


def test_a_wrong_product_shows_its_numbers() -> None:
    with pytest.raises(SpecError, match=r"6 workers cannot .* data 2 x tensor 2 x pipeline 2 = 8"):
        mesh_of(MeshSpec(data=2, tensor=2, pipeline=2), 6)
    with pytest.raises(SpecError, match=r"6 workers cannot .* data any x tensor 2 x pipeline 2 = a multiple of 4"):
        mesh_of(MeshSpec(tensor=2, pipeline=2), 6)
    with pytest.raises(SpecError, match=r"6 workers cannot .* 4 workers \(mesh.shard\) each"):
        mesh_of(MeshSpec(shard=4), 6)


def test_workers_with_one_data_coordinate_hold_the_same_slices_and_all_are_held() -> None:
    for data, cell in itertools.product((1, 2, 3), (2, 4)):
        axes = MeshSpec(tensor=cell)
        held = [Group(rank, data * cell, 8, axes).owned for rank in range(data * cell)]
        assert all(held[rank] == held[rank // cell * cell] for rank in range(data * cell))
        assert [index for rank in range(0, data * cell, cell) for index in held[rank]] == list(range(8))


def test_workers_are_rounded_down_to_whole_grids_with_the_reason() -> None:
    grid = spec_of(strategy="tensor", mesh={"tensor": 2}, workers={"min": 1, "max": 7})
    assert fit(grid, 6).reason is None
    assert fit(grid, 7).workers == 6 and "takes multiples of 2" in str(fit(grid, 7).reason)
    assert fit(grid, 40).workers == 16 and "batch.virtual_workers = 8 slices" in str(fit(grid, 40).reason)
    assert world_sizes(grid) == [2, 4, 6]
    with pytest.raises(SpecError, match=r"1 workers cannot form .* it takes 2 at least"):
        fit(grid, 1)
    fixed = spec_of(strategy="tensor", mesh={"tensor": 2, "data": 2})
    assert fit(fixed, 7).workers == 4 and world_sizes(fixed) == [4]


def test_an_authority_forms_groups_of_whole_grids_only() -> None:
    table = Table(replace(POLICY, unit=2, state="sharded", num_slices=16))
    assert table.come("a") is None
    view = table.come("b")
    assert view is not None and view.members == ("a", "b")
    table.train("a", "b")
    assert table.come("c") is None and table.standing("a") == "go"
    assert table.come("d") is None and table.standing("a") == "change"


# Pieces


@pytest.mark.parametrize(("length", "workers", "dim"), [(7, 3, 0), (8, 3, 1), (2, 4, 0), (6, 2, 1)])
def test_pieces_are_the_chunks_of_torch(length: int, workers: int, dim: int) -> None:
    whole = torch.arange(3 * length).view((length, 3) if dim == 0 else (3, length))
    chunks = list(whole.chunk(workers, dim))
    for rank in range(workers):
        piece = Cut(Peers(rank, workers), dim, length).piece(whole)
        assert piece.numel() == 0 if rank >= len(chunks) else torch.equal(piece, chunks[rank])


# Stages


def test_no_other_cut_has_a_cheaper_costliest_stage() -> None:
    costs = [5.0, 1, 1, 7, 2, 2, 3]
    for stages in range(1, 7):
        cuts = itertools.combinations(range(1, len(costs)), stages - 1)
        all_sums = [
            max(sum(costs[low:high]) for low, high in itertools.pairwise([0, *cut, len(costs)])) for cut in cuts
        ]
        ends = list(itertools.accumulate(balanced(costs, stages)))
        got = max(sum(costs[low:high]) for low, high in itertools.pairwise([0, *ends]))
        assert got == min(all_sums) and ends[-1] == len(costs)


@pytest.mark.parametrize(
    "model",
    [
        {"backbone": {"kind": "mlp", "hidden": [16, 12]}, "dimension": 8},
        {"backbone": {"kind": "small_cnn", "width": 16}, "dimension": 8},
        library("ViTModel", VIT),
        library("BertModel", BERT),
    ],
    ids=["mlp", "small_cnn", "ViTModel", "BertModel"],
)
def test_units_one_after_another_are_the_model(model: dict[str, Any]) -> None:
    spec = spec_of(model)
    texts = model["backbone"].get("architecture") == "BertModel"
    built = build_model(spec.model, (6,) if texts else (1, 8, 8), 0).eval()
    random = torch.Generator().manual_seed(0)
    inputs = torch.randn(3, 1, 8, 8, generator=random)
    if texts:
        inputs = torch.tensor([[3, 4, 5, 6, 7, 8], [9, 10, -1, -1, -1, -1], [11, 12, 13, -1, -1, -1]])
    states = inputs
    units = chain(built)
    for unit in units:
        assert any(True for _ in unit.parameters())
        states = unit(states)
    torch.testing.assert_close(states, built(inputs), rtol=1e-5, atol=1e-6)
    with pytest.raises(SpecError, match=rf"split = \[1, 1\] has 2 stages of 2 units, .* {len(units)} units"):
        sizes_of_stages(units, 2, (1, 1), inputs[:1])


# What is refused


@pytest.mark.parametrize(
    ("parallel", "words"),
    [
        (
            {"mesh": {"tensor": 2}},
            "mesh.tensor = 2 is not for strategy ddp: leave it out, or choose tensor or pipeline",
        ),
        ({"strategy": "tensor"}, "strategy tensor needs mesh.tensor = 2 or more"),
        ({"strategy": "fsdp", "precision": "fp16"}, "choose bf16, which needs no loss scale, or strategy ddp"),
        ({"offload": True}, "offload is for strategy fsdp, not for ddp"),
        ({"strategy": "fsdp", "pipeline": {"schedule": "gpipe"}}, "pipeline is for strategy pipeline, not for fsdp"),
        ({"strategy": "pipeline", "mesh": {"pipeline": 2}, "pipeline": {"stages": 2}}, "has 1 stage a worker, not 2"),
        ({"strategy": "tensor", "mesh": {"tensor": 2}, "balance": "measured"}, "deals slices to single workers"),
    ],
)
def test_options_of_another_strategy_are_refused(parallel: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        spec_of(**parallel)


@pytest.mark.parametrize(
    ("model", "parallel", "words"),
    [
        ({"backbone": {"kind": "linear"}, "dimension": 8}, {"strategy": "tensor"}, "no plan to share .* linear"),
        (library("ViTModel", {**VIT, "attention_probs_dropout_prob": 0.1}), {"strategy": "tensor"}, "shares the heads"),
        ({"batch_norm": "synchronised", "dimension": 8}, {"strategy": "tensor"}, "choose per_slice or group"),
        ({"batch_norm": "synchronised", "dimension": 8}, {"strategy": "pipeline"}, "needs all slices in a layer"),
        ({"backbone": {"kind": "linear"}, "dimension": 8}, {"strategy": "pipeline"}, "cannot cut LinearBackbone"),
        ({"dimension": 8}, {"strategy": "fsdp", "precision": "bf16"}, "batch norm needs float32"),
    ],
)
def test_models_that_a_strategy_cannot_run_exactly_are_refused(
    model: dict[str, Any], parallel: dict[str, Any], words: str
) -> None:
    strategy = parallel["strategy"]
    mesh = {} if strategy == "fsdp" else {"mesh": {strategy: 2}}
    spec = spec_of(model, **parallel, **mesh)
    with pytest.raises(SpecError, match=words):
        STRATEGIES[strategy](build_model(spec.model, (1, 8, 8), 0), spec, Group(0, 1, 8), CPU)


# What is proposed


def built(spec: JobSpec) -> EmbeddingModel:
    return build_model(spec.model, (1, 8, 8), 0)


def test_the_whole_model_is_proposed_where_it_fits_and_parts_of_it_where_it_does_not() -> None:
    spec = spec_of(library("ViTModel", {**VIT, "attention_probs_dropout_prob": 0.0}))
    found = candidates(facts_of(spec, built(spec), measured(spec, built(spec), torch.float32), CPU), 4)
    assert [candidate.name for candidate in found] == [
        *("ddp", "fsdp", "tensor x tensor 2", "tensor x tensor 4", "pipeline x pipeline 2", "pipeline x pipeline 4")
    ]
    assert "4 workers cannot share" in str(found[3].impossible) and "2 features or heads" in str(found[3].impossible)
    least = min(candidate.memory for candidate in found if candidate.impossible is None)
    assert least < found[0].memory
    chosen, why = choose_strategy(found, 2 * found[0].memory)
    assert chosen.strategy == "ddp" and "fits" in why
    chosen, why = choose_strategy(found, 2 * found[0].memory - 1)
    assert chosen.strategy != "ddp" and "ddp does not fit" in why and 2 * chosen.memory < 2 * found[0].memory
    chosen, why = choose_strategy(found, 1)
    assert chosen.memory == least and "nothing fits" in why


def test_auto_becomes_a_strategy_before_anything_runs() -> None:
    roomy = spec_of(strategy="auto", workers={"min": 1, "max": 2, "memory": 4})
    got, why = resolved(roomy, built(roomy), torch.float32, CPU)
    assert got.parallel.strategy == "ddp" and got.exactness == "bitwise" and why.startswith("strategy ddp: ")
    narrow = spec_of(strategy="auto", workers={"min": 1, "max": 2, "memory": 1e-5})
    got, _ = resolved(narrow, built(narrow), torch.float32, CPU)
    assert got.parallel.strategy != "ddp" and got.exactness == "exact"


def test_a_candidate_that_is_impossible_says_why() -> None:
    spec = spec_of({"backbone": {"kind": "linear"}, "dimension": 8})
    found = candidates(facts_of(spec, built(spec), measured(spec, built(spec), torch.float32), CPU), 2)
    why = {candidate.strategy: candidate.impossible for candidate in found}
    assert why["ddp"] is None and why["fsdp"] is None
    assert "no plan" in str(why["tensor"]) and "cannot cut" in str(why["pipeline"])
    assert isinstance(found[0], Candidate)
