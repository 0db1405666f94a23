"""Files in; datasets, the order of the batches, and the batches themselves out."""

from raydml.data.dataset import DataReport, Dataset, Items
from raydml.data.loader import Slice, slices
from raydml.data.plan import SamplingPlan, sampling_plan
from raydml.data.preprocessing import Preprocessing
from raydml.data.sources import open_dataset

__all__ = [
    "DataReport",
    "Dataset",
    "Items",
    "Preprocessing",
    "SamplingPlan",
    "Slice",
    "open_dataset",
    "sampling_plan",
    "slices",
]
