"""Promise 1: one SHA-256 of model, loss weights, optimiser and randomness, whatever the number of workers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast

from raydml.losses import Objective, evaluate_objective
from raydml.losses.objective import TILED_FROM
from raydml.losses.tiled import CLASSES, FORMULAS, layout
from raydml.parallel import Group
from raydml.spec import JobSpec
from tests.distributed.harness import run_processes, small_spec, train_cases, write_images
from tests.unit.test_losses import LOSS, every_entry

RESNET = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}
VIT = {
    **{"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24, "patch_size": 4},
    **{"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1},
}
BERT = {**{name: value for name, value in VIT.items() if name != "patch_size"}, "vocab_size": 40}
AUGMENT = {"shift": 0.1, "rotate": 10, "scale": 0.1, "flip": True, "brightness": 0.1, "contrast": 0.1, "noise": 0.05}
CNN = {"backbone": {"kind": "small_cnn", "width": 16, "dropout": 0.2}, "dimension": 8}
SGD = {"kind": "sgd", "lr": 0.05, "momentum": 0.9, "weight_decay": 1e-4}
SHORT = {"steps": 2, "evaluate_every": 0}
MINER = {"kind": "multi_similarity"}
CLIPPED = {"steps": 20, "evaluate_every": 0, "clip_norm": 0.5}


def _cases(data: Path) -> dict[str, JobSpec]:
    def case(loss: dict[str, Any], **changes: Any) -> JobSpec:
        return small_spec(data, loss=loss, **changes)

    augmented = {"data.augment": AUGMENT}
    return {
        "triplet, semihard, adamw, augmented": case(
            {"kind": "triplet", "margin": 0.2, "miner": {"kind": "semihard"}}, train=CLIPPED, **augmented
        ),
        "the same, two loader processes": case(
            {"kind": "triplet", "margin": 0.2, "miner": {"kind": "semihard"}},
            train=CLIPPED,
            **augmented,
            **{"data.loader_processes": 2},
        ),
        "contrastive, sgd, convolutions": case(
            {"kind": "contrastive"}, model=CNN, train={**CLIPPED, "optimizer": SGD}, **augmented
        ),
        "multi-similarity with its miner, adam": case(
            {"kind": "multi_similarity", "miner": {"kind": "multi_similarity"}},
            train={**CLIPPED, "optimizer": {"kind": "adam"}},
        ),
        "arcface, own weights": case({"kind": "arcface"}, model=CNN),
        "proxy anchor, own weights, warm-up": case(
            {"kind": "proxy_anchor"},
            train={
                **CLIPPED,
                "schedule": {"kind": "cosine", "warmup_steps": 4},
                "optimizer": {"kind": "adamw", "parts": {"loss": 10}},
            },
        ),
        "supcon": case({"kind": "sup_con"}),
        "textbook triplet, hard": case({"kind": "textbook_triplet", "margin": 0.2, "miner": {"kind": "hard"}}),
        "textbook contrastive, manhattan": case({"kind": "textbook_contrastive", "distance": {"kind": "manhattan"}}),
        "center, centres move": case({"kind": "multi_similarity", "center": {"weight": 0.01}}),
        "group norm, bf16": case(
            {"kind": "ntxent"}, model={**CNN, "batch_norm": "group"}, **{"parallel.precision": "bf16"}
        ),
        "16 slices": case({"kind": "circle"}, **{"batch.virtual_workers": 16}),
    }


def digests(cases: dict[str, JobSpec], sizes: tuple[int, ...], folder: Path) -> dict[str, dict[int, str]]:
    """SHA-256 by case and number of workers; all workers of one run must agree and must have learned."""
    by_slices: dict[int, dict[str, str]] = {}
    for name, spec in cases.items():
        by_slices.setdefault(spec.batch.virtual_workers, {})[name] = spec.model_dump_json()
    seen: dict[str, dict[int, str]] = {name: {} for name in cases}
    for slices, documents in by_slices.items():
        for size in sizes:
            for result in run_processes(size, train_cases, (documents, str(folder)), folder, slices):
                for name, (digest, losses) in result.items():
                    assert seen[name].setdefault(size, digest) == digest, f"{name}: workers differ at W = {size}"
                    assert losses[0] != losses[-1], f"{name}: nothing was trained"
    return seen


def write_texts(folder: Path) -> Path:
    """Twelve classes of six texts, each the words of its class in another order and number."""
    words = [f"word{number}" for number in range(36)]
    path = folder / "texts.jsonl"
    rows = [
        {"text": " ".join(words[3 * label : 3 * label + 3][turn % 3 :] + words[turn : turn + turn % 3]), "label": label}
        for label in range(12)
        for turn in range(6)
    ]
    splits = [*["train"] * 8, "validation", "validation", "test", "test"]
    path.write_text("\n".join(json.dumps(row | {"split": splits[row["label"]]}) for row in rows))
    return path


def write_tokenizer(folder: Path) -> Path:
    """A tokenizer of those words, as the library saves one."""
    vocabulary = {"[PAD]": 0, "[UNK]": 1} | {f"word{number}": 2 + number for number in range(36)}
    library = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    library.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=library, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(folder)
    return folder


def test_so_it_is_for_models_of_the_transformers_library(tmp_path: Path) -> None:
    data = write_images(tmp_path)
    short = {"steps": 3, "evaluate_every": 0}
    cases = {
        architecture: small_spec(
            data,
            train=short,
            model={"backbone": {"kind": "transformers", "architecture": architecture, "config": config}},
            **{"data.augment": AUGMENT},
        )
        for architecture, config in (("ResNetModel", RESNET), ("ViTModel", VIT))
    }
    texts = {"kind": "manifest", "path": str(write_texts(tmp_path))}
    words = {"kind": "tokenizer", "path": str(write_tokenizer(tmp_path / "tokenizer")), "length": 8}
    bert = {"kind": "transformers", "architecture": "BertModel", "config": BERT}
    bag = {"kind": "ngram_bag", "buckets": 64, "width": 8}
    for name, rule, backbone in (("BertModel", words, bert), ("n-grams", {"kind": "ngrams", "length": 24}, bag)):
        cases[name] = small_spec(data, train=short, model={"backbone": backbone}, **{"data": {**texts, "text": rule}})
    for name, found in digests(cases, (1, 2, 3), tmp_path).items():
        assert len(set(found.values())) == 1, f"{name}: {found}"


def test_one_sha256_for_one_to_four_workers(tmp_path: Path) -> None:
    seen = digests(_cases(write_images(tmp_path)), (1, 2, 3, 4), tmp_path)
    for name, found in seen.items():
        assert len(set(found.values())) == 1, f"{name}: {found}"
    same = ("triplet, semihard, adamw, augmented", "the same, two loader processes")
    assert seen[same[0]] == seen[same[1]]


@pytest.mark.timeout(400)
def test_so_it_is_for_losses_in_tiles(tmp_path: Path) -> None:
    data = write_images(tmp_path, classes=220)  # 132 of them train
    large = {"classes": 128, "samples": 8, "virtual_workers": 8}
    assert large["classes"] * large["samples"] >= TILED_FROM
    more = {"triplet": {"margin": 0.2, "miner": {"kind": "semihard"}}, "multi_similarity": {"miner": MINER}}
    kinds = (*FORMULAS, *CLASSES, "triplet")
    cases = {
        kind: small_spec(data, loss={"kind": kind, **more.get(kind, {})}, batch=large, train=dict(SHORT))
        for kind in kinds
    }
    for name, found in digests(cases, (1, 2, 3), tmp_path).items():
        assert len(set(found.values())) == 1, f"{name}: {found}"


def tiled_verdicts(group: Group, given: tuple[list[str], str, list[int]]) -> dict[str, tuple[float, list[bytes]]]:
    """Of each loss over a batch whose slices are cut into several tiles: the loss, and own gradients slice by slice.

    `given`: kinds of loss; `gather` or `ring`; how many slices each worker holds, or none for equal shares.
    """
    kinds, exchange, deal = given
    group.move(group.rank, deal or [len(group.share(rank)) for rank in range(group.size)])
    rows = 600 * group.num_slices
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, rows // 4, (rows,), generator=generator)
    embeddings = torch.randn(rows, 8, generator=generator)
    if exchange == "ring":
        embeddings = embeddings[600 * group.owned.start : 600 * group.owned.stop].clone()
    found = {}
    for kind in kinds:
        spec = LOSS.validate_python({"kind": kind})
        objective = Objective(spec, num_classes=rows, dimension=8, seed=0, dtype=torch.float32, batch_size=rows)
        assert objective.tiled is not None
        verdict = evaluate_objective(objective, embeddings, labels, 0, 0, group)
        gradients = [*verdict.cotangents.split(600), *(verdict.weights if group.rank == 0 else ())]
        found[kind] = float(verdict.loss), [part.numpy().tobytes() for part in gradients]
    return found


@pytest.mark.timeout(400)
def test_slices_of_several_tiles_give_the_same_bits_gathered_and_travelling_on_one_to_four_workers(
    tmp_path: Path,
) -> None:
    kinds = [*FORMULAS, "n_pairs", "arc_face", "proxy_anchor"]
    travelling = [kind for kind in kinds if kind != "n_pairs"]
    assert layout.ROWS < 600 and layout.can_travel(600)
    wanted = tiled_verdicts(Group(0, 1, 4), (kinds, "gather", []))
    cases = [(kinds, "gather", 3, []), *((travelling, "ring", workers, []) for workers in (2, 3, 4))]
    for names, exchange, workers, deal in [*cases, (travelling, "ring", 2, [3, 1])]:
        parts = run_processes(workers, tiled_verdicts, (names, exchange, deal), tmp_path, slices=4)
        for kind in names:
            where = f"{kind}, {exchange}, {workers} workers {deal}"
            assert all(part[kind][0] == wanted[kind][0] for part in parts), f"{where}: the loss"
            gradients = [parts[0][kind][1].pop(-1)] if len(wanted[kind][1]) > 4 else []  # of weights
            assert [*(own for part in parts for own in part[kind][1]), *gradients] == wanted[kind][1], where


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_so_it_is_for_every_row_of_the_tables(tmp_path: Path) -> None:
    data = write_images(tmp_path)
    cases = {
        json.dumps(loss): small_spec(data, loss=loss, train={"steps": 6, "evaluate_every": 0})
        for loss in every_entry(classes=12)
    }
    for name, found in digests(cases, (1, 3), tmp_path).items():
        assert len(set(found.values())) == 1, f"{name}: {found}"
