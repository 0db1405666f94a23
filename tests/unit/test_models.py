"""Models: sizes, seeds, frozen parts, and a model folder that gives back the same embeddings bit for bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import TypeAdapter
from torch import nn

from raydml.data import Preprocessing
from raydml.errors import CheckpointError, SpecError
from raydml.models import EmbeddingModel, build_model, load_model, save_model
from raydml.spec import ModelSpec

IMAGE = (1, 16, 16)
SMALL = {"backbone": {"kind": "small_cnn", "width": 16}, "dimension": 8}


def spec_of(document: dict[str, Any]) -> ModelSpec:
    return TypeAdapter(ModelSpec).validate_python(document)


def built(document: dict[str, Any], shape: tuple[int, ...] = IMAGE, seed: int = 3) -> EmbeddingModel:
    return build_model(spec_of(document), shape, seed)


def same(one: nn.Module, other: nn.Module) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return list(a) == list(b) and all(torch.equal(a[name], b[name]) for name in a)


def test_small_cnn_at_width_32_has_the_published_size() -> None:
    count = sum(parameter.numel() for parameter in built({}, (1, 32, 32)).parameters())
    assert 600_000 <= count <= 800_000


@pytest.mark.parametrize("shape", [(1, 32, 32), (3, 17, 17), (3, 4, 4)])
def test_small_cnn_embeds_images_of_any_size_to_unit_length(shape: tuple[int, ...]) -> None:
    embeddings = built(SMALL, shape).eval()(torch.rand(5, *shape))
    assert embeddings.shape == (5, 8)
    torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(5))


@pytest.mark.parametrize("backbone", ["small_cnn", "mlp", "linear"])
def test_weights_are_a_function_of_the_seed_alone(backbone: str) -> None:
    document = {"backbone": {"kind": backbone}, "dimension": 8}
    torch.manual_seed(11)
    one = built(document)
    torch.manual_seed(12)
    torch.rand(100)
    assert same(one, built(document))
    assert not same(one, built(document, seed=4))


def test_building_a_model_leaves_the_global_generator_as_it_was() -> None:
    before = torch.get_rng_state()
    built(SMALL)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_linear_model_is_one_map_without_bias() -> None:
    model = built({"backbone": {"kind": "linear"}, "dimension": 8, "normalize": False})
    assert [name for name, _ in model.named_parameters()] == ["head.weight"]
    inputs = torch.rand(4, *IMAGE)
    torch.testing.assert_close(model(inputs), inputs.reshape(4, -1) @ model.head.weight.T)


@pytest.mark.parametrize("backbone", [{"kind": "small_cnn", "width": 48}, {"kind": "mlp", "hidden": [7, 40]}])
def test_group_norm_replaces_every_batch_norm_and_treats_rows_apart(backbone: dict[str, Any]) -> None:
    model = built({"backbone": backbone, "dimension": 8, "batch_norm": "group"})
    norms = [module for module in model.modules() if isinstance(module, nn.GroupNorm)]
    assert not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())
    assert all(norm.num_groups <= 32 and norm.num_channels % norm.num_groups == 0 for norm in norms)
    replaced = built({"backbone": backbone, "dimension": 8})
    assert len(norms) == sum(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in replaced.modules())
    inputs = torch.rand(4, *IMAGE)
    torch.testing.assert_close(model(inputs)[:2], model(inputs[:2]))


@pytest.mark.parametrize("hidden", [7, 16, 32, 40, 256])
def test_group_norm_of_an_mlp_still_tells_inputs_apart(hidden: int) -> None:
    model = built({"backbone": {"kind": "mlp", "hidden": [hidden]}, "dimension": 8, "batch_norm": "group"})
    embeddings = model(torch.rand(4, *IMAGE))
    assert float(embeddings.detach().std(0).max()) > 1e-3


def test_frozen_parts_do_not_train_and_all_others_do() -> None:
    model = built(SMALL | {"frozen": ["backbone.stem", "backbone.blocks.0"]})
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert frozen == {
        name for name, _ in model.named_parameters() if name.startswith(("backbone.stem.", "backbone.blocks.0."))
    }
    assert "backbone.stem.weight" in frozen


def test_what_ones_own_module_froze_stays_frozen() -> None:
    module = own_module()
    module[0].weight.requires_grad_(False)
    model = build_model(spec_of({"backbone": {"kind": "custom"}, "dimension": 4}), (7,), 0, custom=module)
    trained_names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert trained_names == ["backbone.0.bias", "backbone.1.weight", "backbone.1.bias"]


@pytest.mark.parametrize("prefix", ["backbone.ste", "stem", "backbone.stem.weight.x"])
def test_a_frozen_prefix_that_names_nothing_is_refused_with_names_that_exist(prefix: str) -> None:
    with pytest.raises(SpecError, match=rf"model\.frozen: '{prefix}' names no parameter.*backbone\.stem\.weight"):
        built(SMALL | {"frozen": ["head", prefix]})


def test_vectors_are_refused_by_small_cnn_with_the_way_out() -> None:
    with pytest.raises(SpecError, match=r"inputs of shape \(7,\): use mlp or linear"):
        built(SMALL, (7,))


def test_a_custom_backbone_without_module_is_refused() -> None:
    with pytest.raises(SpecError, match=r"custom needs raydml\.train\(spec, model="):
        built({"backbone": {"kind": "custom"}})


def test_a_module_beside_another_backbone_is_refused() -> None:
    with pytest.raises(SpecError, match=r"model\.backbone\.kind is small_cnn: write custom"):
        build_model(spec_of(SMALL), IMAGE, 0, custom=nn.Flatten())


# Model folders


def trained(document: dict[str, Any], shape: tuple[int, ...], custom: nn.Module | None = None) -> EmbeddingModel:
    """A model whose statistics are no longer those at the start."""
    model = build_model(spec_of(document), shape, 3, custom=custom)
    with torch.no_grad():
        model(torch.rand(8, *shape))
    return model.eval()


def pictures(count: int = 5) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 20, 20), dtype=np.uint8)


def test_a_saved_model_embeds_paths_pictures_and_arrays_to_the_same_bits(tmp_path: Path) -> None:
    preprocessing = Preprocessing.for_images(16, grayscale=True)
    model = trained(SMALL, IMAGE)
    digest = save_model(tmp_path / "model", model, spec_of(SMALL), IMAGE, preprocessing)
    embedder = load_model(tmp_path / "model")
    arrays = list(pictures())
    images = [Image.fromarray(array) for array in arrays]
    paths = [tmp_path / f"{number}.png" for number in range(len(images))]
    for image, path in zip(images, paths, strict=True):
        image.save(path)
    with torch.no_grad():
        wanted = model(torch.stack([preprocessing.tensor(preprocessing.decode(array)) for array in arrays])).numpy()
    assert (embedder.digest, embedder.dimension) == (digest, 8)
    for given in (arrays, images, paths, [str(path) for path in paths]):
        embeddings = embedder.embed(given)
        assert embeddings.dtype == np.float32
        np.testing.assert_array_equal(embeddings, wanted)
    assert embedder.embed([]).shape == (0, 8)


@pytest.mark.parametrize("backbone", [{"kind": "mlp", "hidden": [6]}, {"kind": "linear"}])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_saved_vector_model_keeps_its_type_and_bits(
    tmp_path: Path, backbone: dict[str, Any], dtype: torch.dtype
) -> None:
    document = {"backbone": backbone, "dimension": 4}
    model = trained(document, (7,)).to(dtype)
    save_model(tmp_path / "model", model, spec_of(document), (7,), Preprocessing("vector", (7,)))
    embedder = load_model(tmp_path / "model")
    vectors = np.random.default_rng(1).normal(size=(300, 7)).astype(np.float32)
    assert next(embedder.model.parameters()).dtype == dtype
    with torch.no_grad():
        parts = [model(torch.from_numpy(vectors[at : at + 256]).to(dtype)) for at in (0, 256)]
    np.testing.assert_array_equal(embedder.embed(list(vectors)), torch.cat(parts).float().numpy())


def saved(folder: Path) -> Path:
    save_model(folder, trained(SMALL, IMAGE), spec_of(SMALL), IMAGE, Preprocessing.for_images(16, grayscale=True))
    return folder


@pytest.mark.parametrize("place", [0, 300, -1])
def test_one_flipped_bit_in_the_weights_is_refused(tmp_path: Path, place: int) -> None:
    weights = saved(tmp_path / "model") / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[place] ^= 1
    weights.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"model\.safetensors is damaged: its SHA-256"):
        load_model(tmp_path / "model")


@pytest.mark.parametrize("name", ["config.json", "preprocessing.json", "model.safetensors"])
def test_a_model_folder_that_lacks_a_file_is_refused(tmp_path: Path, name: str) -> None:
    (saved(tmp_path / "model") / name).unlink()
    with pytest.raises(CheckpointError, match="is not a readable model folder"):
        load_model(tmp_path / "model")


@pytest.mark.parametrize("name", ["config.json", "preprocessing.json"])
@pytest.mark.parametrize("content", ["", "{", "{}", "[]", '{"sha256": 3}'])
def test_a_model_folder_with_a_broken_description_is_refused(tmp_path: Path, name: str, content: str) -> None:
    (saved(tmp_path / "model") / name).write_text(content)
    with pytest.raises(CheckpointError):
        load_model(tmp_path / "model")


def test_a_model_saved_twice_is_replaced_whole(tmp_path: Path) -> None:
    saved(tmp_path / "model")
    digest = json.loads((saved(tmp_path / "model") / "config.json").read_text())["sha256"]
    assert load_model(tmp_path / "model").digest == digest
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def own_module() -> nn.Module:
    return nn.Sequential(nn.Linear(7, 4), nn.BatchNorm1d(4))


def test_a_model_of_ones_own_module_needs_that_module_and_gives_the_same_bits(tmp_path: Path) -> None:
    document = {"backbone": {"kind": "custom"}, "dimension": 4}
    model = trained(document, (7,), own_module())
    save_model(tmp_path / "model", model, spec_of(document), (7,), Preprocessing("vector", (7,)))
    with pytest.raises(SpecError, match=r"load_model\(folder, module="):
        load_model(tmp_path / "model")
    vectors = np.random.default_rng(1).normal(size=(5, 7)).astype(np.float32)
    with torch.no_grad():
        wanted = model(torch.from_numpy(vectors)).numpy()
    np.testing.assert_array_equal(load_model(tmp_path / "model", module=own_module()).embed(list(vectors)), wanted)


def test_weights_that_do_not_fit_ones_own_module_are_refused(tmp_path: Path) -> None:
    document = {"backbone": {"kind": "custom"}, "dimension": 4}
    model = trained(document, (7,), own_module())
    save_model(tmp_path / "model", model, spec_of(document), (7,), Preprocessing("vector", (7,)))
    with pytest.raises((CheckpointError, SpecError)):
        load_model(tmp_path / "model", module=nn.Linear(7, 4))
