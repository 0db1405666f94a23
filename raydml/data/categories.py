"""A dataset's column `category` in; the one category of each training class out."""

from __future__ import annotations

from raydml.data.dataset import Dataset
from raydml.errors import DataError


def class_categories(dataset: Dataset) -> tuple[str, ...]:
    """(num_training_classes,) names. DataError where a training item has none, or a class has two."""
    items, table = dataset.indices("train").tolist(), dataset.items
    values = [table.payloads[item].get("category") for item in items]
    missing = [table.ids[item] for item, value in zip(items, values, strict=True) if value is None]
    if missing:
        shown = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        raise DataError(
            f"batch.sampling: hierarchical needs a category of every training item, and {len(missing)} of {len(items)} "
            f"have none: {shown}; fill the manifest's column `category`, or choose another sampling"
        )
    found: dict[int, str] = {}
    for item, label, value in zip(items, dataset.training_labels.tolist(), values, strict=True):
        if found.setdefault(label, str(value)) != str(value):
            raise DataError(
                f"class {table.class_names[table.labels[item]]!r} is in the categories {found[label]!r} and "
                f"{str(value)!r} ({table.ids[item]}): give each class one category"
            )
    return tuple(found[label] for label in range(dataset.num_training_classes))
