"""A trained model as a folder: weights, configuration, preprocessing; inputs -> embeddings."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import TypeAdapter
from safetensors.torch import load_file, save
from torch import Tensor, nn

from raydml.data import Preprocessing
from raydml.errors import CheckpointError, DataError, SpecError
from raydml.files import digest_of_json, sha256_file, whole_folder, write_json
from raydml.models.embedding import EmbeddingModel, as_input, build_model
from raydml.models.transformers_backbone import TransformersBackbone
from raydml.plugins import plugged
from raydml.spec import CustomBackbone, ModelSpec

WEIGHTS = "model.safetensors"
CHUNK = 256


class Embedder:
    """A trained model with its preprocessing: what `load_model` returns and search uses."""

    def __init__(self, model: EmbeddingModel, preprocessing: Preprocessing, digest: str, dimension: int) -> None:
        self.model = model.eval()
        self.preprocessing = preprocessing
        self.digest = digest
        self.dimension = dimension

    @property
    def takes_texts(self) -> bool:
        """Whether inputs are texts."""
        return self.preprocessing.kind == "tokens"

    @property
    def preprocessing_digest(self) -> str:
        """SHA-256 of how inputs become tensors."""
        return digest_of_json(self.preprocessing.to_dict())

    def embed(self, inputs: Sequence[Any]) -> np.ndarray:
        """Images (paths, PIL images, uint8 arrays), texts or vectors, as the model takes -> (n, dimension) float32."""
        if isinstance(inputs, str):
            raise DataError(f"embed takes a list, not the single {inputs!r}: write [{inputs!r}]")
        if not len(inputs):
            return np.empty((0, self.dimension), np.float32)
        tensors = [self.preprocessing.tensor(self.preprocessing.decode(one)) for one in inputs]
        return embed_tensors(self.model, torch.stack(tensors)).float().numpy()


@torch.no_grad()
def embed_tensors(model: nn.Module, inputs: Tensor, chunk: int = CHUNK) -> Tensor:
    """(n, *input_shape) -> (n, dimension) on the CPU; the model's own type and device do the work."""
    parameter = next(model.parameters())
    parts = [model(as_input(part, parameter.device, parameter.dtype)).cpu() for part in torch.split(inputs, chunk)]
    return torch.cat(parts)


def save_model(
    folder: Path,
    model: EmbeddingModel,
    spec: ModelSpec,
    input_shape: tuple[int, ...],
    preprocessing: Preprocessing,
    tensors: Mapping[str, Tensor] | None = None,
) -> str:
    """Write the folder whole or not at all; returns the SHA-256 of its weights file.

    tensors: the whole ones of a model that lies here in part.
    """
    tensors = model.state_dict() if tensors is None else tensors
    weights = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    with whole_folder(folder) as draft:
        (draft / WEIGHTS).write_bytes(save(weights))
        digest = sha256_file(draft / WEIGHTS)
        write_json(draft / "preprocessing.json", preprocessing.to_dict())
        write_json(
            draft / "config.json",
            {
                "model": _standing_alone(spec, model).model_dump(mode="json"),
                "input_shape": list(input_shape),
                "sha256": digest,
            },
        )
    return digest


def _standing_alone(spec: ModelSpec, model: EmbeddingModel) -> ModelSpec:
    """The spec without folders to start from, which may be gone when the model is loaded."""
    if isinstance(model.backbone, TransformersBackbone):
        return spec.model_copy(update={"backbone": model.backbone.described})
    return spec


def load_model(folder: str | Path, *, module: nn.Module | None = None) -> Embedder:
    """A model folder -> an Embedder; `module` is the user's own module where the run was trained with one.

    Raises CheckpointError where the folder is missing or damaged, SpecError where a custom module is needed.
    """
    folder = Path(folder)
    try:
        config = json.loads((folder / "config.json").read_text())
        preprocessing = Preprocessing.from_dict(json.loads((folder / "preprocessing.json").read_text()))
        recorded, input_shape = str(config["sha256"]), tuple(config["input_shape"])
        spec = TypeAdapter(ModelSpec).validate_python(config["model"])
        digest = sha256_file(folder / WEIGHTS)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"{folder} is not a readable model folder: {error}", folder=str(folder)) from error
    if digest != recorded:
        raise CheckpointError(
            f"{folder / WEIGHTS} is damaged: its SHA-256 is {digest[:12]}…, config.json says {recorded[:12]}…",
            folder=str(folder),
        )
    if isinstance(spec.backbone, CustomBackbone) and module is None and spec.backbone.plugin is not None:
        module = plugged("models", spec.backbone.plugin)
    if isinstance(spec.backbone, CustomBackbone) and module is None:
        raise SpecError(f"{folder} holds weights of your own module: load_model(folder, module=<the module>)")
    model = build_model(spec, input_shape, seed=0, custom=module)
    weights = load_file(folder / WEIGHTS)
    model.to(next(value.dtype for value in weights.values() if value.is_floating_point()))
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise CheckpointError(f"{folder} holds weights of another module: {error}", folder=str(folder)) from error
    return Embedder(model, preprocessing, digest, spec.dimension)
