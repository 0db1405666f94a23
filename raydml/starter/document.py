"""Data and choices in; a YAML file that explains itself out."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from raydml.data.survey import Survey, survey
from raydml.errors import SpecError
from raydml.files import write_bytes
from raydml.spec import ArraysData, DataSpec, GlyphsData, ManifestData
from raydml.specfile import parse_spec
from raydml.starter.choices import Choices, choose

_COLUMN = 52  # where comments begin
Line = tuple[str, str]  # a line of YAML and why it says so


@dataclass(frozen=True)
class Written:
    """The file, and what it rests on."""

    path: Path
    kind: str
    choices: Choices
    skipped: int


def write_spec(data: DataSpec, path: Path, home: Path) -> Written:
    """Look at all of the data and write a spec for it. SpecError where the file is there already."""
    if path.exists():
        raise SpecError(f"{path} is there already: remove it, or choose another file with --out")
    found = survey(data, home)
    choices = choose(found)
    text = document(data, found, choices)
    parse_spec(yaml.safe_load(text))
    write_bytes(path, text.encode())
    return Written(path, data.kind, choices, len(found.dataset.report.skipped))


def document(data: DataSpec, found: Survey, choices: Choices) -> str:
    """The whole file."""
    lines = [
        *_head(data, found),
        *_data(data, found, choices),
        *_batch(choices),
        *_model(found),
        *_train(choices),
    ]
    return "".join(f"{text:<{_COLUMN}}  # {why}".rstrip() + "\n" if why else f"{text}\n" for text, why in lines)


def _head(data: DataSpec, found: Survey) -> list[Line]:
    report = found.dataset.report
    splits = ", ".join(f"{name} {report.images[name]} of {report.classes[name]} classes" for name in report.images)
    lines = [(f"# {splits}.", "")]
    if report.shared_classes:
        lines.append(
            (f"# {report.shared_classes} classes stand in both train and test: this is not about new classes.", "")
        )
    if report.num_duplicates:
        lines.append((f"# {report.num_duplicates} test items also stand in train, such as {report.duplicates[0]}.", ""))
    return [
        *lines,
        ("# Next: raydml plan THIS_FILE, then raydml train THIS_FILE.", ""),
        (f"name: {_scalar(_name(data))}", "the same name resumes the run"),
        ("seed: 7", "the only source of randomness"),
    ]


def _data(data: DataSpec, found: Survey, choices: Choices) -> list[Line]:
    lines: list[Line] = [("data:", ""), (f"  kind: {data.kind}", "")]
    if not isinstance(data, GlyphsData):
        lines.append((f"  path: {_scalar(getattr(data, 'path', ''))}", "starts at the current folder"))
    if isinstance(data, ManifestData) and data.text is not None:
        why = "enough for 95 of 100 texts; a transformers model takes kind: tokenizer"
        lines.append((f"  text: {{kind: ngrams, length: {choices.length}}}", why))
    elif found.dataset.preprocessing.kind == "image":
        lines += _pictures(data, found, choices)
    if found.dataset.report.skipped:
        name, _ = found.dataset.report.skipped[0]
        why = f"{len(found.dataset.report.skipped)} of {found.num_items} cannot be read, such as {_one_line(name)}"
        lines.append(("  on_bad_item: skip", why))
    return lines


def _pictures(data: DataSpec, found: Survey, choices: Choices) -> list[Line]:
    sides = sorted(found.sides)
    why = f"pictures have {sides[0]} to {sides[-1]} pixels, usually {sides[len(sides) // 2]}" if sides else "as drawn"
    return [
        (f"  image_size: {choices.image_size}", why),
        (f"  grayscale: {json.dumps(found.grey)}", "no colour was found" if found.grey else "colour was found"),
        ("  augment: {shift: 0.08, rotate: 8, scale: 0.1}", "flip: true too, where left and right mean nothing"),
    ]


def _batch(choices: Choices) -> list[Line]:
    usual = f"a class usually has {choices.median_samples}"
    rows = choices.classes * choices.samples
    slices = f"{rows // choices.virtual_workers} each; no more workers than slices"
    return [
        ("batch:", ""),
        (f"  classes: {choices.classes}", f"of {choices.num_classes} for training, in each step"),
        (f"  samples: {choices.samples}", f"of each class; {usual}"),
        (f"  virtual_workers: {choices.virtual_workers}", f"slices of the {rows} rows, {slices}"),
    ]


def _model(found: Survey) -> list[Line]:
    backbones = {
        "image": ("small_cnn", "0.7 M parameters; larger ones: kind: transformers"),
        "vector": ("mlp", "the inputs are vectors; linear learns a Mahalanobis metric"),
        "tokens": ("ngram_bag", "the mean of learned vectors of n-grams"),
    }
    kind, why = backbones[found.dataset.preprocessing.kind]
    return [
        ("model:", ""),
        (f"  backbone: {{kind: {kind}}}", why),
        ("  dimension: 128", "length of an embedding"),
        ("loss: {kind: multi_similarity}", "a good first choice; `raydml schema` lists all"),
    ]


def _train(choices: Choices) -> list[Line]:
    passes = choices.steps * choices.classes * choices.samples / choices.num_items
    return [
        (f"parallel: {{workers: {{min: 1, max: {choices.workers}}}}}", "CPUs of this machine, at most one a slice"),
        ("train:", ""),
        (f"  steps: {choices.steps}", f"about {passes:.0f} passes over {choices.num_items} training items"),
        ("  optimizer: {kind: adamw, lr: 0.001}", ""),
        (f"  schedule: {{kind: cosine, warmup_steps: {choices.steps // 20}}}", ""),
        (f"  evaluate_every: {choices.every}", "on validation; the best step is exported"),
        (f"  checkpoint_every: {choices.every}", ""),
    ]


def _name(data: DataSpec) -> str:
    """A name for the run, from the data's."""
    path = Path(getattr(data, "path", data.kind)).absolute()
    stem = path.stem if path.stem not in ("manifest", "data") or isinstance(data, ArraysData) else path.parent.name
    return re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-._")[:100] or "first"


def _scalar(value: Any) -> str:
    """Text as YAML."""
    plain = re.fullmatch(r"[A-Za-z/][\w/-]*[\w/.-]*", value, re.ASCII)
    reserved = value.lower() in {"true", "false", "yes", "no", "on", "off", "null", "y", "n"}
    return value if plain and not reserved else json.dumps(value)


def _one_line(text: str) -> str:
    return " ".join(text.split())
