"""Models of the transformers library: pooling, sizes from the data, folders, refusals; never a download."""

from __future__ import annotations

import shutil
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from pydantic import TypeAdapter, ValidationError
from torch import nn

from raydml.data import Preprocessing
from raydml.errors import SpecError
from raydml.models import EmbeddingModel, build_model, load_model, save_model
from raydml.spec import ModelSpec

RESNET = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 2], "layer_type": "basic"}
VIT = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24, "patch_size": 4}
BERT = {
    "vocab_size": 60,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 12,
}
PICTURES = (1, 16, 16)
TEXTS = (9,)
TINY: list[tuple[str, dict[str, Any], tuple[int, ...]]] = [
    ("ResNetModel", RESNET, PICTURES),
    ("ViTModel", VIT, PICTURES),
    ("BertModel", BERT, TEXTS),
]
EVERY_TINY = pytest.mark.parametrize(("architecture", "config", "shape"), TINY, ids=[name for name, _, _ in TINY])


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("something asked the network")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


def spec_of(**backbone: Any) -> ModelSpec:
    document = {"backbone": {"kind": "transformers", **backbone}, "dimension": 8}
    return TypeAdapter(ModelSpec).validate_python(document)


def built(shape: tuple[int, ...], seed: int = 3, **backbone: Any) -> EmbeddingModel:
    return build_model(spec_of(**backbone), shape, seed)


def batch(shape: tuple[int, ...], rows: int = 4) -> torch.Tensor:
    """Random pictures, or token ids whose row r ends in r places of padding."""
    generator = torch.Generator().manual_seed(1)
    if len(shape) == 3:
        return torch.rand(rows, *shape, generator=generator)
    ids = torch.randint(1, 60, (rows, *shape), generator=generator)
    for row in range(rows):
        ids[row, shape[0] - row :] = -1
    return ids


def same(one: nn.Module, other: nn.Module) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return list(a) == list(b) and all(torch.equal(a[name], b[name]) for name in a)


@EVERY_TINY
def test_weights_are_a_function_of_the_seed_alone(
    architecture: str, config: dict[str, Any], shape: tuple[int, ...]
) -> None:
    torch.manual_seed(11)
    one = built(shape, architecture=architecture, config=config)
    torch.rand(50)
    assert same(one, built(shape, architecture=architecture, config=config))
    assert not same(one, built(shape, seed=4, architecture=architecture, config=config))


@EVERY_TINY
def test_every_parameter_gets_a_gradient(architecture: str, config: dict[str, Any], shape: tuple[int, ...]) -> None:
    model = built(shape, architecture=architecture, config=config)
    outputs = model(batch(shape))
    assert outputs.shape == (4, 8)
    outputs.pow(3).sum().backward()
    unused = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert unused == []


def test_the_mean_of_a_text_leaves_padding_out() -> None:
    backbone = built(TEXTS, architecture="BertModel", config=BERT).eval().backbone
    ids = batch(TEXTS)
    pooled = backbone(ids)
    for row in range(4):
        kept = ids[row : row + 1, : TEXTS[0] - row]
        hidden = backbone.model(input_ids=kept).last_hidden_state
        torch.testing.assert_close(pooled[row], sum(hidden[0]) / len(hidden[0]))


def test_the_first_position_and_the_models_own_pooler_are_features_too() -> None:
    ids = batch(TEXTS)
    first = built(TEXTS, architecture="BertModel", config=BERT, pooling="cls").eval().backbone
    seen = first.model(input_ids=ids.clamp(min=0), attention_mask=(ids >= 0).long()).last_hidden_state[:, 0]
    torch.testing.assert_close(first(ids), seen)
    pictures = batch(PICTURES)
    pooler = built(PICTURES, architecture="ViTModel", config=VIT, pooling="pooler").eval().backbone
    torch.testing.assert_close(pooler(pictures), pooler.model(pixel_values=pictures).pooler_output)


def test_the_mean_of_a_convolutional_model_is_its_global_average() -> None:
    pictures = batch(PICTURES)
    mean = built(PICTURES, architecture="ResNetModel", config=RESNET).eval().backbone
    pooler = built(PICTURES, architecture="ResNetModel", config=RESNET, pooling="pooler").eval().backbone
    torch.testing.assert_close(mean(pictures), pooler(pictures))
    assert mean.features == 16


def test_fresh_vision_models_take_channels_and_size_from_the_data() -> None:
    config = built((3, 24, 24), architecture="ViTModel", config=VIT).backbone.model.config
    assert (config.num_channels, config.image_size) == (3, 24)


def test_group_norm_replaces_the_batch_norms_of_a_residual_network() -> None:
    document = {"backbone": {"kind": "transformers", "architecture": "ResNetModel", "config": RESNET}}
    model = build_model(TypeAdapter(ModelSpec).validate_python(document | {"batch_norm": "group"}), PICTURES, 0)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    pictures = batch(PICTURES)
    torch.testing.assert_close(model(pictures)[:2], model(pictures[:2]))


@EVERY_TINY
@pytest.mark.parametrize("from_folder", [False, True], ids=["config", "folder"])
def test_an_exported_model_loads_again_without_the_folder_that_it_came_from(
    tmp_path: Path, architecture: str, config: dict[str, Any], shape: tuple[int, ...], from_folder: bool
) -> None:
    backbone: dict[str, Any] = {"architecture": architecture, "config": config}
    if from_folder:
        fitting = {"num_channels": 1, "image_size": 16} if len(shape) == 3 else {}
        saved(tmp_path / "pretrained", architecture, config | fitting)
        backbone = {"path": str(tmp_path / "pretrained")}
    spec = spec_of(**backbone)
    model = build_model(spec, shape, 3).eval()
    kind = "image" if len(shape) == 3 else "vector"
    save_model(tmp_path / "model", model, spec, shape, Preprocessing(kind, shape))
    shutil.rmtree(tmp_path / "pretrained", ignore_errors=True)
    again = load_model(tmp_path / "model").model
    assert same(model, again)
    assert torch.equal(model(batch(shape)), again(batch(shape)))


def saved(folder: Path, architecture: str, config: dict[str, Any]) -> nn.Module:
    """A folder as the library itself writes it."""
    kind = getattr(transformers, architecture)
    model: nn.Module = kind(kind.config_class(**config))
    model.save_pretrained(folder)
    return model


def test_a_local_folder_gives_its_weights_and_its_configuration(tmp_path: Path) -> None:
    theirs = saved(tmp_path / "bert", "BertModel", BERT).eval()
    ours = built(TEXTS, path=str(tmp_path / "bert"), pooling="cls", config={"hidden_dropout_prob": 0.0})
    ids = batch(TEXTS)
    output = theirs(input_ids=ids.clamp(min=0), attention_mask=(ids >= 0).long()).last_hidden_state[:, 0]
    torch.testing.assert_close(ours.eval().backbone(ids), output)
    assert ours.backbone.model.config.hidden_dropout_prob == 0.0


def test_a_folder_without_all_weights_is_refused(tmp_path: Path) -> None:
    saved(tmp_path / "bert", "BertModel", BERT)
    with pytest.raises(SpecError, match=r"lacks 6 of the weights of BertForMaskedLM"):
        built(TEXTS, path=str(tmp_path / "bert"), architecture="BertForMaskedLM", pooling="cls")


@pytest.mark.parametrize(
    ("shape", "backbone", "message"),
    [
        (PICTURES, {"architecture": "VitModel"}, r"has no model VitModel, did you mean ViTModel"),
        (PICTURES, {"architecture": "AutoTokenizer"}, r"has no model AutoTokenizer"),
        (
            PICTURES,
            {"architecture": "ViTModel", "config": {"hiden_size": 8}},
            r"no option hiden_size, did you mean hid",
        ),
        (PICTURES, {"architecture": "ViTModel", "config": {"save_pretrained": 1}}, r"no option save_pretrained"),
        (PICTURES, {"architecture": "ViTModel", "config": VIT | {"patch_size": 40}}, r"model\.backbone.*ViTModel"),
        (PICTURES, {"architecture": "ViTModel", "config": VIT | {"image_size": 32}}, r"cannot take inputs of shape"),
        (PICTURES, {"architecture": "BertModel", "config": BERT}, r"BertModel takes texts"),
        ((7,), {"architecture": "ViTModel", "config": VIT}, r"ViTModel takes pictures"),
        ((13,), {"architecture": "BertModel", "config": BERT}, r"BertModel cannot take inputs of shape \(13,\)"),
        (PICTURES, {"architecture": "ResNetModel", "config": RESNET, "pooling": "cls"}, r"choose pooling: mean"),
        (PICTURES, {"path": "/nowhere"}, r"/nowhere holds no config\.json"),
    ],
)
def test_what_cannot_work_is_refused_with_the_way_out(
    shape: tuple[int, ...], backbone: dict[str, Any], message: str
) -> None:
    with pytest.raises(SpecError, match=message):
        built(shape, **backbone)


def test_a_folder_of_rubbish_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(SpecError, match=r"cannot be read as a model"):
        built(TEXTS, path=str(tmp_path))


@pytest.mark.parametrize("backbone", [{}, {"architecture": "../x"}, {"architecture": "A", "config": {"a": np.nan}}])
def test_a_backbone_that_names_nothing_or_no_json_is_no_spec(backbone: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        spec_of(**backbone)


def test_building_leaves_torch_without_its_companions() -> None:
    import sys

    built(PICTURES, architecture="ViTModel", config=VIT)
    assert not {"torchvision", "torchaudio", "timm"} & set(sys.modules)
