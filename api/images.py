"""Encoded images of a request -> decoded ones; what is none, too large, or too large once unpacked, is refused."""

from __future__ import annotations

import base64
import binascii
import io
from collections.abc import Sequence
from typing import Any

from PIL import Image, UnidentifiedImageError

from api.problems import TOO_LARGE, Problem
from api.settings import Settings

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")


def decoded(images: Sequence[str | bytes], settings: Settings) -> list[Any]:
    """Each as a Pillow image with its pixels; base64 where it is text. Raises Problem 413 or 422 with its number."""
    if len(images) > settings.max_images:
        raise Problem(
            TOO_LARGE, "too-many-images", f"{len(images)} images, and {settings.max_images} are taken at once"
        )
    return [_decoded(number, image, settings) for number, image in enumerate(images)]


def _decoded(number: int, given: str | bytes, settings: Settings) -> Any:
    content = _bytes(number, given)
    if len(content) > settings.max_image_bytes:
        raise Problem(
            TOO_LARGE,
            "image-too-large",
            f"image {number} has {len(content)} bytes, and {settings.max_image_bytes} are taken",
        )
    try:
        image = Image.open(io.BytesIO(content), formats=FORMATS)
        width, height = image.size  # of the header: nothing is unpacked yet
        if width * height > settings.max_image_pixels:
            raise Problem(
                TOO_LARGE,
                "image-too-large",
                f"image {number} unpacks to {width} x {height} = {width * height} pixels, and "
                f"{settings.max_image_pixels} are taken",
            )
        image.load()
    except Problem:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise Problem(TOO_LARGE, "image-too-large", f"image {number} is too large once unpacked: {error}") from error
    except UnidentifiedImageError as error:
        raise Problem(422, "not-an-image", f"image {number} is none of {', '.join(FORMATS)}") from error
    except Exception as error:  # a broken file makes the decoders raise almost anything
        raise Problem(
            422, "not-an-image", f"image {number} cannot be decoded: {type(error).__name__}: {error}"
        ) from error
    return image


def _bytes(number: int, given: str | bytes) -> bytes:
    if isinstance(given, bytes):
        return given
    try:
        return base64.b64decode(given, validate=True)
    except (binascii.Error, ValueError) as error:
        raise Problem(422, "not-an-image", f"image {number} is not base64: {error}") from error
