"""Every file of tables, so that `Base.metadata` is whole once this one is imported."""

from raydml.jobs import audit, datasets, idempotency, keys, projects, tables
from raydml.jobs.database import Base

__all__ = ["Base", "audit", "datasets", "idempotency", "keys", "projects", "tables"]
