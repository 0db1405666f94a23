"""A finished run's folder in, the card of its model out: README.md of the model folder, equal for equal runs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from raydml.files import write_bytes
from raydml.spec import CardSpec, CustomBackbone, JobSpec

COMPARISONS = {
    "cosine": "similarity = first @ second / (np.linalg.norm(first) * np.linalg.norm(second))  # 1: the same direction",
    "euclidean": "distance = np.linalg.norm(first - second)  # 0: the same",
    "manhattan": "distance = np.abs(first - second).sum()  # 0: the same",
}


def write_card(folder: Path, spec: JobSpec, warnings: Sequence[Mapping[str, Any]], workers: str) -> None:
    """Write `model/README.md` of a run's folder, whole or not at all, from what the folder records.

    `workers` says how many trained when; empty where nobody knows.
    """
    read = {name: json.loads((folder / f"{name}.json").read_text()) for name in ("run", "data", "environment")}
    preprocessing = json.loads((folder / "model" / "preprocessing.json").read_text())
    write_bytes(folder / "model" / "README.md", model_card(spec, read, preprocessing, warnings, workers).encode())


def model_card(
    spec: JobSpec,
    read: Mapping[str, Mapping[str, Any]],
    preprocessing: Mapping[str, Any],
    warnings: Sequence[Mapping[str, Any]],
    workers: str,
) -> str:
    """The card in Markdown; `read` holds run.json, data.json and environment.json by name."""
    card = spec.model.card or CardSpec()
    head = yaml.safe_dump({"license": card.licence, "library_name": "raydml", "tags": ["metric-learning"]})
    parts = [
        f"---\n{head}---",
        f"# {spec.name}",
        card.description or f"Embeddings of {spec.model.dimension} numbers, trained with raydml.",
        *(["## Intended use", card.intended_use] if card.intended_use else []),
        "## Use",
        f"```python\n{use(spec, preprocessing)}\n```",
        _input_words(preprocessing),
        "## Measured",
        _measured(spec, read["run"]),
        "## Data",
        _data(spec, read["data"]),
        "## Training",
        _training(spec, read["run"], read["environment"], workers),
        *(["Rules of `watch` that were broken:", _warnings(warnings)] if warnings else []),
        f"Licence: {card.licence}.",
    ]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def use(spec: JobSpec, preprocessing: Mapping[str, Any]) -> str:
    """Lines of Python that load the model from the folder of the card and compare two inputs."""
    shape = tuple(preprocessing["shape"])
    if preprocessing["kind"] == "image":
        pixels = (2, *shape[1:], *([shape[0]] if shape[0] > 1 else []))
        inputs = f"random.integers(0, 256, {pixels}, np.uint8)  # or a list of paths of image files, or of PIL images"
    elif preprocessing["kind"] == "tokens":
        inputs = '["a text", "another text"]'
    else:
        inputs = f"random.normal(size={(2, *shape)}).astype(np.float32)"
    own = isinstance(spec.model.backbone, CustomBackbone)
    module = ", module=module" if own else ""
    folder = "the folder of this file, and your own torch module" if own else "the folder of this file"
    lines = (
        "import numpy as np",
        "import raydml",
        "",
        f'model = raydml.load_model("."{module})  # {folder}',
        "random = np.random.default_rng(0)",
        f"inputs = {inputs}",
        f"first, second = model.embed(inputs)  # float32, ({spec.model.dimension},) each",
        COMPARISONS[spec.evaluate.metric],
    )
    return "\n".join(lines)


def _input_words(preprocessing: Mapping[str, Any]) -> str:
    shape = tuple(preprocessing["shape"])
    if preprocessing["kind"] == "vector":
        return f"Inputs are arrays of shape {shape}, used as they are."
    if preprocessing["kind"] == "tokens":
        made = {"ngrams": "hashed n-grams", "tokenizer": "tokens"}[preprocessing["text"]["kind"]]
        return f"`embed` takes texts and makes at most {shape[0]} {made} of each."
    colours = "grey" if shape[0] == 1 else "red, green and blue"
    return (
        f"`embed` decodes an image, turns it upright, lays transparency on white, makes it {colours}, resizes "
        f"the whole of it to {shape[2]} x {shape[1]} pixels (bilinear, antialiased), and takes "
        f"(x / 255 - {preprocessing['mean']}) / {preprocessing['std']}."
    )


def _measured(spec: JobSpec, run: Mapping[str, Any]) -> str:
    metrics, baseline = dict(run["metrics"]), run.get("baseline", {})
    queries, without = (round(metrics.pop(name)) for name in ("queries", "queries_without_positive"))
    rows = [
        (name, f"{baseline[name]:.4f}" if name in baseline else "not measured", f"{value:.4f}")
        for name, value in metrics.items()
    ]
    words = f"Test split, {queries} queries ({without} without a positive are not counted), {spec.evaluate.metric}:"
    return f"{words}\n\n{_table(('metric', 'raw inputs', 'this model'), rows)}"


def _data(spec: JobSpec, data: Mapping[str, Any]) -> str:
    report = data["report"]
    rows = [(split, report["classes"][split], images) for split, images in report["images"].items()]
    notes = (
        f"{report['shared_classes']} classes stand in both train and test, {report['num_duplicates']} test images also "
        f"in train; {len(report['skipped'])} bad items were left out. Kind: {spec.data.kind}. Fingerprint: "
        f"`{data['fingerprint']}`."
    )
    return f"{_table(('split', 'classes', 'items'), rows)}\n\n{notes}"


def _training(spec: JobSpec, run: Mapping[str, Any], environment: Mapping[str, Any], workers: str) -> str:
    batch = spec.batch
    versions = {"python": environment["python"], **environment["packages"]}
    rows = [
        ("model", f"`{_flow(spec.model.model_dump(mode='json', exclude={'card'}))}`"),
        ("loss", f"`{_flow(spec.loss.model_dump(mode='json'))}`"),
        ("batch", f"{batch.classes} classes x {batch.samples} = {batch.size} in {batch.virtual_workers} slices"),
        ("optimiser", f"`{_flow(spec.train.optimizer.model_dump(mode='json'))}`"),
        ("steps", f"{spec.train.steps}, exported after step {run['exported_step']}"),
        *([("workers", workers)] if workers else []),
        ("seed", spec.seed),
        ("exactness", run["exactness"]),
        ("spec", f"`{run['spec_digest']}` (SHA-256)"),
        ("weights", f"`{run['sha256']}` (SHA-256)"),
        ("versions", ", ".join(f"{name} {version}" for name, version in versions.items())),
        ("machine", ", ".join([environment["machine"], *environment["gpus"]])),
    ]
    return _table(("", ""), rows)


def _warnings(warnings: Sequence[Mapping[str, Any]]) -> str:
    return "\n".join(f"- step {warning['step']}: {warning['message']}" for warning in warnings)


def _flow(values: Mapping[str, Any]) -> str:
    """One line of YAML without what is not set."""
    known = {name: value for name, value in values.items() if value is not None}
    return str(yaml.safe_dump(known, default_flow_style=True, sort_keys=False, width=10**6)).strip()


def _table(heads: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)
