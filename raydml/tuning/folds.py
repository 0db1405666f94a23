"""The winner's trials of a study with folds in; what their models reach on test classes, together, out.

As Musgrave, Belongie and Lim measure (ECCV 2020): each model by itself, of which the mean is taken, and the embeddings
of all models side by side. It is the only look at test classes, and decides nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from raydml.data import open_dataset
from raydml.evaluation import summarise
from raydml.evaluation.reality_check import concatenated, separated
from raydml.models import load_model
from raydml.parallel import Group
from raydml.specfile import load_spec
from raydml.training.evaluate import embed_split, values_of_split
from raydml.training.record import RunRecord
from raydml.tuning.trial import Training

ALONE = Group(rank=0, size=1, num_slices=1)


def reality_check(folders: Sequence[Path], training: Training) -> dict[str, Any]:
    """Finish these trials, one of each fold, and measure their models: `each`, `separated` and `concatenated`."""
    for folder in folders:
        training.finish(folder)
    each = [RunRecord(folder).read()["metrics"] for folder in folders]
    spec = load_spec(folders[0] / "spec.yaml")
    dataset = open_dataset(spec.data, training.home, custom=training.dataset)  # test classes are alike in all folds
    test = dataset.indices("test")
    models = [load_model(folder / "model", module=training.model).model for folder in folders]
    parts = [embed_split(model, dataset, test, ALONE, spec.model.dimension) for model in models]
    together = summarise(values_of_split(concatenated(parts), dataset, test, spec.evaluate.metric, ALONE))
    return {"folds": len(folders), "each": each, "separated": separated(each), "concatenated": together}
