"""/v1/schemas: JSON Schemas of what the service takes and gives, for editors and other clients."""

from __future__ import annotations

from typing import Any, Literal, get_args

from fastapi import APIRouter
from pydantic import BaseModel

from api.job_documents import CreateJobRequest, Event, Job, Metric, SchemaList
from api.openapi import refusals
from api.problems import ProblemDocument
from raydml.spec import JobSpec

router = APIRouter(prefix="/v1/schemas", tags=["schemas"])
Known = Literal["job", "create_job", "job_state", "event", "metric", "problem"]
SCHEMAS: dict[Known, type[BaseModel]] = {
    "job": JobSpec,
    "create_job": CreateJobRequest,
    "job_state": Job,
    "event": Event,
    "metric": Metric,
    "problem": ProblemDocument,
}
assert set(SCHEMAS) == set(get_args(Known))


@router.get("")
async def list_schemas() -> SchemaList:
    """Names of the schemas; `job` is that of a spec."""
    return SchemaList(schemas=list(SCHEMAS))


@router.get("/{schema}", responses=refusals(422))
async def get_schema(schema: Known) -> dict[str, Any]:
    """One JSON Schema."""
    return SCHEMAS[schema].model_json_schema()
