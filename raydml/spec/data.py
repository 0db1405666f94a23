"""Where items come from and what is done to each."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from raydml.catalogue import PLUGIN
from raydml.spec.base import Frozen


class AugmentSpec(Frozen):
    """Random changes of training inputs, each drawn from (seed, step, row)."""

    shift: float = Field(0.0, ge=0, le=0.5, description="largest translation, as a fraction of the image size")
    rotate: float = Field(0.0, ge=0, le=180, description="largest rotation, degrees")
    scale: float = Field(0.0, ge=0, lt=1, description="largest relative change of size")
    flip: bool = Field(False, description="mirror left-right with probability 1/2")
    brightness: float = Field(0.0, ge=0, lt=1, description="largest relative change of brightness")
    contrast: float = Field(0.0, ge=0, lt=1, description="largest relative change of contrast")
    noise: float = Field(0.0, ge=0, description="standard deviation of Gaussian noise on the normalised input")


class FoldSpec(Frozen):
    """One of several cuts of the classes for cross-validation; its part validates, all others but test train."""

    number: int = Field(ge=0, le=19, description="which part of the sorted classes validates, from 0 on")
    of: int = Field(ge=2, le=20, description="parts, equal but for one class, of all classes that have no test split")

    @model_validator(mode="after")
    def _is_one_of_them(self) -> Self:
        if self.number >= self.of:
            raise ValueError(f"number = {self.number} is none of {self.of} parts, which are 0 to {self.of - 1}")
        return self


class DataBase(Frozen):
    """Options that every kind of data shares."""

    augment: AugmentSpec = Field(default_factory=lambda: AugmentSpec(), description="training-time augmentation")
    on_bad_item: Literal["fail", "skip"] = Field(
        "fail", description="what a corrupt item does; skipped ones are counted"
    )
    fold: FoldSpec | None = Field(
        None, description="cross-validation: train and validation classes are divided anew; None: as the data says"
    )
    loader_processes: int = Field(
        0, ge=0, le=64, description="processes per worker that prepare batches; 0: in the worker"
    )


class ImageOptions(DataBase):
    """Options of every kind of data that holds images."""

    image_size: int = Field(32, ge=4, le=2048, description="images are resized to this many pixels on both sides")
    grayscale: bool = Field(False, description="one channel instead of three")


class GlyphsData(ImageOptions):
    """Characters as classes, font faces as instances: 32 x 32 drawings from the fonts in matplotlib."""

    kind: Literal["glyphs"] = "glyphs"
    image_size: int = Field(32, ge=8, le=256, description="side of the drawing, pixels")
    grayscale: bool = Field(True, description="one channel instead of three")


class ImageFolderData(ImageOptions):
    """`path/class/*.png`, or `path/{train,validation,test}/class/*.png`."""

    kind: Literal["image_folder"] = "image_folder"
    path: str = Field(description="the folder")


class NgramsText(Frozen):
    """Texts as hashed character n-grams: no vocabulary, any language. Goes with the backbone ngram_bag."""

    kind: Literal["ngrams"] = "ngrams"
    shortest: int = Field(3, ge=1, le=16, description="fewest characters of an n-gram")
    longest: int = Field(5, ge=1, le=16, description="most characters of an n-gram")
    length: int = Field(256, ge=1, le=65536, description="n-grams kept of a text")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.shortest > self.longest:
            raise ValueError(f"shortest = {self.shortest} characters is more than longest = {self.longest}")
        return self


class TokenizerText(Frozen):
    """Texts as the tokens of a model of the `transformers` library; its tokenizer travels with the trained model."""

    kind: Literal["tokenizer"] = "tokenizer"
    path: str = Field(min_length=1, description="local folder of the saved tokenizer")
    length: int = Field(64, ge=3, le=65536, description="tokens kept of a text, special ones among them")


TextSpec = Annotated[NgramsText | TokenizerText, Field(discriminator="kind")]


class ManifestData(ImageOptions):
    """A CSV, JSONL or Parquet table, one row an item: a label and a path, the bytes of a picture, or a text."""

    kind: Literal["manifest"] = "manifest"
    path: str = Field(description="the table; image paths in it are relative to its folder")
    text: TextSpec | None = Field(None, description="items are texts of the column text, and how they become tokens")


class ArraysData(ImageOptions):
    """Arrays `inputs` and `labels` in one .npz, or `inputs.npy` and `labels.npy` in a folder."""

    kind: Literal["arrays"] = "arrays"
    path: str = Field(description="the .npz file or the folder")


class CustomData(DataBase):
    """A torch Dataset handed to `raydml.train(spec, dataset=...)`, or one that an installed plug-in makes."""

    kind: Literal["custom"] = "custom"
    plugin: str | None = Field(
        None, pattern=PLUGIN, description="its entry point in raydml.plugins.datasets; None: one is handed over"
    )


DataSpec = Annotated[GlyphsData | ImageFolderData | ManifestData | ArraysData | CustomData, Field(discriminator="kind")]
