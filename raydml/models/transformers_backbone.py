"""A vision or text model of the `transformers` library as a backbone: pictures or token ids -> pooled features.

Built from a configuration, or read from a local folder (config.json and safetensors). Nothing is ever downloaded, and
the library is imported only when such a backbone is built.
"""

from __future__ import annotations

import inspect
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from raydml.errors import SpecError
from raydml.spec import TransformersSpec

IMAGES, TOKENS = "pixel_values", "input_ids"
PADDING = -1  # in place of a token id: no token
# What a model asks of inputs that do not fit, in the library's or torch's own words.
_MISFITS = (ValueError, TypeError, RuntimeError, IndexError, KeyError, AttributeError, AssertionError)


class TransformersBackbone(nn.Module):
    """The library's model, its output pooled to one row per input.

    Eager attention and no cache: fused attention has gradients that some GPUs do not reproduce.
    """

    def __init__(self, spec: TransformersSpec, input_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.pooling = spec.pooling
        self.model = _from_folder(spec, input_shape) if spec.path else _from_config(spec, input_shape)
        self.reads: str = self.model.main_input_name
        _check_kind(self.reads, type(self.model).__name__, input_shape)
        self.features = self._width(input_shape)

    @property
    def vocabulary(self) -> int:
        """Different token ids that it takes; text models only."""
        return int(self.model.config.vocab_size)

    @property
    def described(self) -> TransformersSpec:
        """The same model as architecture and configuration alone, for a folder that stands for itself."""
        config = self.model.config
        known = _known(type(config)())  # saved configurations often carry entries of their own
        options = {name: value for name, value in config.to_diff_dict().items() if name in known}
        return TransformersSpec(architecture=type(self.model).__name__, config=options, pooling=self.pooling)

    def forward(self, inputs: Tensor) -> Tensor:
        """(n, channels, h, w) pictures, or (n, length) whole token ids with -1 for padding -> (n, features)."""
        if self.reads == IMAGES:
            return self._pooled(self.model(pixel_values=inputs), None)
        present = inputs != PADDING
        filler = self.model.config.pad_token_id
        ids = inputs.masked_fill(~present, filler if filler is not None else 0)
        return self._pooled(self.model(input_ids=ids, attention_mask=present.long()), present)

    def pooled(self, hidden: Tensor, present: Tensor | None) -> Tensor:
        """(n, positions, width) hidden states of the last layer -> (n, features); present as in the mean."""
        output = {"last_hidden_state": hidden}
        if self.pooling == "pooler":
            output["pooler_output"] = self.model.pooler(hidden)
        return self._pooled(output, present)

    def _pooled(self, output: Any, present: Tensor | None) -> Tensor:
        """present: (n, length), which positions count in the mean; None: all."""
        if self.pooling == "pooler":
            if output.get("pooler_output") is None:
                raise ValueError("it has no pooler: choose pooling: mean")
            pooled: Tensor = output["pooler_output"].flatten(1)
            return pooled
        hidden: Tensor = output["last_hidden_state"]  # (n, positions, width) or (n, width, h, w)
        if hidden.dim() == 4:
            if self.pooling == "cls":
                raise ValueError("a convolutional model has no first token: choose pooling: mean")
            return hidden.mean((2, 3))
        if self.pooling == "cls":
            return hidden[:, 0]
        if present is None:
            return hidden.mean(1)
        weights = present.to(hidden.dtype)[:, :, None]
        return (hidden * weights).sum(1) / weights.sum(1).clamp(min=1)

    @torch.no_grad()
    def _width(self, input_shape: tuple[int, ...]) -> int:
        """Features of one row, found by running one. Raises SpecError where the model cannot take such inputs."""
        row = torch.zeros(1, *input_shape, dtype=torch.long if self.reads == TOKENS else torch.float32)
        try:
            return int(self.eval()(row).shape[1])
        except _MISFITS as error:
            raise SpecError(
                f"model.backbone: {type(self.model).__name__} cannot take inputs of shape {input_shape}: {error}"
            ) from error
        finally:
            self.train()


# Entries of a saved configuration that describe the file and not the model.
_NOT_OPTIONS = {"architectures", "auto_map", "dtype", "model_type", "torch_dtype", "transformers_version"}


def _from_config(spec: TransformersSpec, input_shape: tuple[int, ...]) -> Any:
    """A model with fresh weights; a vision model takes number of channels and size from the data."""
    kind = _architecture(str(spec.architecture))
    fitting = {"num_channels": input_shape[0], "image_size": input_shape[-1]} if len(input_shape) == 3 else {}
    try:
        options = _options(kind.config_class(), spec, fitting)
        config = kind.config_class(**options)
        config._attn_implementation = "eager"
        return kind(config, **_without_pooler(kind, spec))
    except _MISFITS as error:
        raise SpecError(f"model.backbone.config: {spec.architecture} refuses it: {error}") from error


def _from_folder(spec: TransformersSpec, input_shape: tuple[int, ...]) -> Any:
    """A model with the weights of a local folder, every one of them."""
    folder = Path(str(spec.path)).expanduser()
    if not (folder / "config.json").is_file():
        raise SpecError(f"model.backbone.path: {folder} holds no config.json: name a folder of a saved model")
    transformers = _library()
    try:
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        config.update(_options(config, spec, {}))
        kind = _architecture(spec.architecture) if spec.architecture else _base_class(config)
        model, found = kind.from_pretrained(
            folder,
            config=config,
            local_files_only=True,
            use_safetensors=True,
            dtype=torch.float32,
            attn_implementation="eager",
            output_loading_info=True,
            **_without_pooler(kind, spec),
        )
    except (OSError, *_MISFITS) as error:
        raise SpecError(f"model.backbone.path: {folder} cannot be read as a model: {error}") from error
    if missing := sorted(found["missing_keys"]):
        raise SpecError(
            f"model.backbone.path: {folder} lacks {len(missing)} of the weights of {type(model).__name__}, such as "
            f"{missing[:3]}: name the architecture that was saved, or another pooling"
        )
    return model


def _library() -> Any:
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    return transformers


def _architecture(name: str) -> Any:
    """The class of this name. Raises SpecError where the library has no such model."""
    transformers = _library()
    found: Any = getattr(transformers, name, None)
    if (
        inspect.isclass(found)
        and issubclass(found, transformers.PreTrainedModel)
        and found is not transformers.PreTrainedModel
    ):
        return found
    known = {entry.lower(): entry for entry in dir(transformers) if entry.endswith("Model")}
    near = [known[entry] for entry in get_close_matches(name.lower(), known, n=3)]
    raise SpecError(
        f"model.backbone.architecture: transformers {transformers.__version__} has no model {name}"
        + (f", did you mean {' or '.join(near)}?" if near else ": write a class name such as ViTModel")
    )


def _base_class(config: Any) -> Any:
    """The model without a task's head that belongs to a configuration."""
    return _library().AutoModel._model_mapping[type(config)]


def _without_pooler(kind: Any, spec: TransformersSpec) -> dict[str, bool]:
    """Leave out a pooling layer that would get no gradient."""
    optional = "add_pooling_layer" in inspect.signature(kind.__init__).parameters
    return {"add_pooling_layer": False} if optional and spec.pooling != "pooler" else {}


def _options(config: Any, spec: TransformersSpec, fitting: dict[str, int]) -> dict[str, Any]:
    """What to change in a configuration: no cache, what fits the data, the spec's own options last.

    Raises SpecError for an option that the configuration does not have.
    """
    known = _known(config)
    unknown = [name for name in spec.config if name not in known]
    if unknown:
        near = get_close_matches(unknown[0], known, n=1)
        hint = f", did you mean {near[0]}?" if near else f"; known: {', '.join(sorted(known))}"
        raise SpecError(f"model.backbone.config: {type(config).__name__} has no option {unknown[0]}{hint}")
    ours = {name: value for name, value in {"use_cache": False, **fitting}.items() if name in known}
    return ours | spec.config


def _known(config: Any) -> set[str]:
    """Names of a configuration's options."""
    names = {*config.to_dict(), *config.attribute_map} - _NOT_OPTIONS
    return {name for name in names if not name.startswith("_")}


def _check_kind(reads: str, name: str, input_shape: tuple[int, ...]) -> None:
    if reads not in (IMAGES, TOKENS):
        raise SpecError(f"model.backbone: {name} reads {reads}; pictures and texts are what raydml has")
    if reads == IMAGES and len(input_shape) != 3:
        raise SpecError(f"model.backbone: {name} takes pictures, and this data has inputs of shape {input_shape}")
    if reads == TOKENS and len(input_shape) != 1:
        raise SpecError(f"model.backbone: {name} takes texts, and this data has inputs of shape {input_shape}")
