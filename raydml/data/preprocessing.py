"""A picture, vector or text in; the array and tensor that the model sees out, the same in training and in search."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from raydml.data.text import TextRule, text_rule_from_dict, token_ids
from raydml.errors import DataError

Source = str | Path | bytes | Image.Image | NDArray[Any]


@dataclass(frozen=True)
class Preprocessing:
    """How one input becomes a tensor; stored with the model.

    kind: `image`: decoded to uint8 and normalised by (x / 255 - mean) / std; `vector`: floats that pass unchanged;
    `tokens`: texts as whole ids by the rule `text`, -1 for padding.
    shape: of the tensor, (C, H, W) with H = W for images, (D,) or any other for vectors, (length,) for tokens.
    """

    kind: Literal["image", "vector", "tokens"]
    shape: tuple[int, ...]
    mean: float = 0.5
    std: float = 0.5
    text: TextRule | None = None

    @classmethod
    def for_images(cls, image_size: int, grayscale: bool) -> Self:
        """Whole images resized to image_size x image_size pixels."""
        return cls("image", (1 if grayscale else 3, image_size, image_size))

    @classmethod
    def for_texts(cls, rule: TextRule, length: int) -> Self:
        """Texts of at most `length` tokens."""
        return cls("tokens", (length,), text=rule)

    @property
    def type(self) -> torch.dtype:
        """Of the tensor."""
        return torch.int64 if self.kind == "tokens" else torch.float32

    @property
    def image_size(self) -> int:
        """Pixels on a side; images only."""
        return self.shape[-1]

    @property
    def channels(self) -> int:
        """1 (grey) or 3 (red, green, blue); images only."""
        return self.shape[0]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        values = asdict(self) | {"shape": list(self.shape)}
        return values if self.text else {name: value for name, value in values.items() if name != "text"}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of `to_dict`."""
        rule = text_rule_from_dict(values["text"]) if "text" in values else None
        return cls(**{**values, "shape": tuple(values["shape"]), "text": rule})

    def decode(self, source: Source) -> NDArray[Any]:
        """uint8 (H, W, C) for images, float32 of `shape` for vectors, int64 (length,) for texts; DataError when the
        source cannot be read so.

        EXIF orientation is applied, transparency laid on white, 16 bits scaled to 8, and the whole picture resized
        (bilinear, antialiased), without keeping its proportions. An array is uint8 (H, W) or (H, W, 1 | 3 | 4).
        """
        if self.kind == "vector":
            return self._vector(source)
        if self.text is not None:
            return np.array(token_ids(self.text, source, self.shape[0]), np.int64)
        try:
            image = _eight_bits(ImageOps.exif_transpose(open_image(source)))
        except DataError:
            raise
        except Exception as error:  # a broken file makes the decoders raise almost anything
            raise DataError(f"{_name(source)} cannot be decoded as an image ({_reason(source, error)})") from error
        image = image.convert("L" if self.channels == 1 else "RGB")
        size = (self.image_size, self.image_size)
        if image.size != size:
            image = image.resize(size, Image.Resampling.BILINEAR)
        return np.array(image).reshape(*size, self.channels)

    def normalised(self, array: NDArray[Any]) -> NDArray[Any]:
        """float32 (..., C, H, W) of uint8 (..., H, W, C); vectors and token ids pass unchanged."""
        if self.kind == "tokens":
            return array
        if self.kind == "vector":
            return array.astype(np.float32)
        scaled = array.astype(np.float32) * np.float32(1 / (255 * self.std)) - np.float32(self.mean / self.std)
        return np.ascontiguousarray(np.moveaxis(scaled, -1, -3))

    def tensor(self, array: NDArray[Any]) -> torch.Tensor:
        """`normalised` as a tensor: (C, H, W) of one decoded image, (n, C, H, W) of n."""
        return torch.from_numpy(self.normalised(array))

    def _vector(self, source: Source) -> NDArray[np.float32]:
        if not isinstance(source, np.ndarray):
            raise DataError(f"this model takes arrays of shape {self.shape}, not {_name(source)}")
        if source.shape != self.shape:
            raise DataError(f"this model takes arrays of shape {self.shape}, not {source.shape}")
        if not np.isfinite(source).all():
            raise DataError(f"the array holds {np.count_nonzero(~np.isfinite(source))} values that are NaN or infinite")
        return source.astype(np.float32)


def open_image(source: Source) -> Image.Image:
    """The picture as it is, perhaps not yet decoded; DataError or Pillow's errors for what is none."""
    if isinstance(source, Image.Image):
        return source
    if isinstance(source, np.ndarray):
        if source.dtype != np.uint8:
            raise DataError(f"an image array must be uint8, not {source.dtype}")
        grey = source.ndim == 3 and source.shape[2] == 1
        return Image.fromarray(source[:, :, 0] if grey else source)
    content = source if isinstance(source, bytes) else Path(source).read_bytes()
    if not content:
        raise DataError(f"{_name(source)} is empty")
    return Image.open(io.BytesIO(content))


def _eight_bits(image: Image.Image) -> Image.Image:
    """An image of mode L, RGB, or another that converts to them without loss of range."""
    if image.mode == "F":
        raise DataError("pictures of floating-point pixels have no fixed range: convert them to 8 or 16 bits")
    if image.mode == "I" or image.mode.startswith("I;16"):
        values = np.asarray(image).astype(np.int64).clip(0, 65535)
        return Image.fromarray(((values + 128) // 257).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, image)
    return image


def _name(source: Source) -> str:
    return str(source) if isinstance(source, str | Path) else f"the {type(source).__name__} given"


def _reason(source: Source, error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if isinstance(error, UnidentifiedImageError):
        return "not an image"
    return f"{type(error).__name__}: {error}"
