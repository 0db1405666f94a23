"""What requests about data sets may say, and what answers say, as documents."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, StrictInt, StrictStr, model_validator

from api.documents import Document, Name
from api.job_documents import Time

DATASET_ID = r"^dst_[0-9a-hjkmnp-tv-z]{26}$"
DIGEST = r"^[0-9a-f]{64}$"
Kind = Literal["archive", "parquet", "csv", "jsonl", "npz"]


class CreateDatasetRequest(Document):
    """An upload to begin, or data that lies under one of the server's roots."""

    name: Name
    kind: Kind | None = Field(
        None, description="archive: a zip or tar of class folders, or of a table with its pictures; else one file"
    )
    size: StrictInt | None = Field(None, ge=1, le=1 << 50, description="bytes of the upload")
    sha256: Annotated[StrictStr, Field(pattern=DIGEST)] | None = Field(None, description="of the whole upload")
    path: StrictStr | None = Field(None, min_length=1, max_length=4096, description="instead: where it lies")

    @model_validator(mode="after")
    def _one_way(self) -> CreateDatasetRequest:
        upload = (self.kind, self.size, self.sha256)
        if (self.path is None) == (None in upload) or (self.path is not None and upload != (None, None, None)):
            raise ValueError("give kind, size and sha256 of an upload, or a path")
        return self


class ValidateRequest(Document):
    """Data as a spec would name it."""

    data: dict[str, Any] = Field(
        description="the `data` of a spec", examples=[{"kind": "image_folder", "path": "dataset:dst_..."}]
    )


class ProblemItem(BaseModel):
    """An item that cannot be used, and is left out where a spec says `on_bad_item: skip`."""

    item: str
    reason: str


class Report(BaseModel):
    """What was found when everything was read once."""

    data_kind: str = Field(description="the `data.kind` of a spec that uses it", examples=["image_folder"])
    digest: str = Field(description="SHA-256 over names and contents of all files")
    items: int
    classes: int
    smallest_class: int = Field(description="items")
    largest_class: int = Field(description="items")
    images_by_split: dict[str, int]
    classes_by_split: dict[str, int]
    shared_classes: int = Field(description="classes that stand in both train and test")
    duplicates: int = Field(description="items of test that stand in train, too")
    longest_side: int | None = Field(description="pixels of the largest picture that was looked at")
    bad_items: int
    problems: list[ProblemItem] = Field(description="the first hundred bad items")


class Part(BaseModel):
    """A part that is on the server's disk."""

    number: int
    sha256: str


class Dataset(BaseModel):
    """A data set: a spec names it `dataset:ID` in `data.path`, once it is ready."""

    id: str
    name: str
    kind: str = Field(description="archive, parquet, csv, jsonl or npz; path: it lies under a root")
    state: Literal["uploading", "checking", "ready", "failed"]
    size: int
    sha256: str | None
    part_bytes: int = Field(description="bytes of each part but the last")
    num_parts: int
    report: Report | None
    problem: str | None = Field(description="why it failed; parts may be sent again, and completed again")
    created_by: str
    created_at: Time
    updated_at: Time


class DatasetWithParts(Dataset):
    """A data set, and the parts of it that need not be sent again."""

    parts: list[Part] = Field(description="while it is uploading, or has failed")


class DatasetPage(BaseModel):
    """Data sets, the newest first."""

    items: list[Dataset]
    next_cursor: str | None = Field(description="give it as `cursor` for the next page")


BODIES = (CreateDatasetRequest, ValidateRequest)
