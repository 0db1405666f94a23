"""Decoded training images and their keys in; randomly changed inputs out, each a pure function of (seed, step, row)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from raydml.data.randomness import stream_key, uniforms
from raydml.spec import AugmentSpec

_DRAWS = 7  # numbers a row uses: shift x, shift y, angle, scale, flip, brightness, contrast


class Augmentation:
    """The random changes that `spec` asks for.

    Geometry is one affine map (shift, rotation, scale together), where what comes from outside takes the colour of
    the top left pixel; then flip, brightness and contrast, all on uint8; noise goes on the normalised input.
    """

    def __init__(self, spec: AugmentSpec, seed: int) -> None:
        self.spec = spec
        self.seed = seed

    def images(self, images: NDArray[np.uint8], step: int, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """(n, H, W, C) changed copies; rows: (n,) rows of the global batch."""
        if self.spec == AugmentSpec(noise=self.spec.noise):
            return images
        key = stream_key(self.seed, "augment", step)
        draws = uniforms(key, rows[:, None] * _DRAWS + np.arange(_DRAWS))  # (n, 7)
        return np.stack([self._image(image, numbers) for image, numbers in zip(images, draws.tolist(), strict=True)])

    def inputs(self, inputs: NDArray[np.float32], step: int, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """(n, ...) normalised inputs, with Gaussian noise where the spec asks for it."""
        if not self.spec.noise:
            return inputs
        deviation = np.float32(self.spec.noise)
        noisy = np.empty_like(inputs)
        for target, source, row in zip(noisy, inputs, rows.tolist(), strict=True):
            generator = np.random.Generator(np.random.Philox(key=stream_key(self.seed, "noise", step, row)))
            target[...] = source + deviation * generator.standard_normal(source.shape, dtype=np.float32)
        return noisy

    def _image(self, image: NDArray[np.uint8], draws: list[float]) -> NDArray[np.uint8]:
        spec = self.spec
        x, y, angle, scale, flip, brightness, contrast = (2 * draw - 1 for draw in draws)  # each in [-1, 1)
        if spec.shift or spec.rotate or spec.scale:
            image = _affine(image, spec.shift * x, spec.shift * y, spec.rotate * angle, 1 + spec.scale * scale)
        if spec.flip and flip < 0:
            image = image[:, ::-1]
        if spec.brightness or spec.contrast:
            image = _tone(image, 1 + spec.brightness * brightness, 1 + spec.contrast * contrast)
        return image


def _affine(image: NDArray[np.uint8], x: float, y: float, degrees: float, scale: float) -> NDArray[np.uint8]:
    """Turn about the centre, scale, and move by fractions x and y of the size; bilinear."""
    height, width = image.shape[:2]
    cosine, sine = math.cos(math.radians(degrees)) / scale, math.sin(math.radians(degrees)) / scale
    centre_x, centre_y = width / 2, height / 2
    from_x, from_y = centre_x + x * width, centre_y + y * height  # Pillow maps output pixels to input pixels
    matrix = (
        *(cosine, sine, centre_x - cosine * from_x - sine * from_y),
        *(-sine, cosine, centre_y + sine * from_x - cosine * from_y),
    )
    grey = image.shape[2] == 1
    corner: Any = image[0, 0].tolist()
    moved = Image.fromarray(image[:, :, 0] if grey else image).transform(
        (width, height),
        Image.Transform.AFFINE,
        matrix,
        resample=Image.Resampling.BILINEAR,
        fillcolor=corner[0] if grey else tuple(corner),
    )
    return np.asarray(moved).reshape(image.shape)


def _tone(image: NDArray[np.uint8], brightness: float, contrast: float) -> NDArray[np.uint8]:
    """contrast * (brightness * x - m) + m, with m the mean of brightness * x; rounded and cut to 0..255."""
    mean = brightness * float(image.mean())
    table = contrast * (brightness * np.arange(256) - mean) + mean
    return np.asarray(np.rint(table).clip(0, 255).astype(np.uint8)[image])
