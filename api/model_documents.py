"""What requests about models may say, and what answers say, as documents."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, Field, StrictStr, model_validator

from api.documents import Document, Name
from api.job_documents import JOB_ID, Time

MODEL_ID = r"^mdl_[0-9a-hjkmnp-tv-z]{26}$"
Alias = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,62}$", examples=["production"])]


class RegisterRequest(Document):
    """A model to keep: that of a job, or of a run in the project's folder."""

    job: Annotated[StrictStr, Field(pattern=JOB_ID)] | None = None
    run: Name | None = None
    name: Name | None = Field(None, description="that of the job or run if none; models of one name follow each other")

    @model_validator(mode="after")
    def _one_source(self) -> RegisterRequest:
        if (self.job is None) == (self.run is None):
            raise ValueError("give the job or the run that trained the model")
        return self


class PromoteRequest(Document):
    """An alias, or a stage, of the model's name that is to point to it."""

    alias: Alias
    expected: Annotated[StrictStr, Field(pattern=MODEL_ID)] | None = Field(
        None, description="the model that it was seen to point to: 409 where it points elsewhere"
    )


class ModelFile(BaseModel):
    """A file of a model."""

    path: str
    size: int
    sha256: str


class Model(BaseModel):
    """A registered model; its files never change."""

    id: str
    name: str
    source: str = Field(description="the job or run that trained it")
    sha256: str = Field(description="of the weights")
    dimension: int
    metrics: dict[str, float]
    aliases: list[str] = Field(description="those of its name that point to it now")
    files: list[ModelFile]
    created_by: str
    created_at: Time


class ModelPage(BaseModel):
    """Models, the newest first."""

    items: list[Model]
    next_cursor: str | None = Field(description="give it as `cursor` for the next page")


class Promotion(BaseModel):
    """That an alias was moved."""

    alias: str
    model: str
    before: str | None = Field(description="the model that it pointed to")
    caller: str
    time: Time


class Promotions(BaseModel):
    """The history of a name, the newest first."""

    items: list[Promotion]


BODIES = (RegisterRequest, PromoteRequest)
