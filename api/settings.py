"""What a server may be told: by RAYDML_... in the environment, or by `raydml serve`; bounded, unknown names refused."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from raydml.errors import SpecError
from raydml.jobs.database import default_url
from raydml.jobs.posting import Targets

_MEBIBYTE = 1 << 20


class Settings(BaseSettings):
    """Where a server listens, what it serves, and how much it takes."""

    model_config = SettingsConfigDict(env_prefix="RAYDML_", env_ignore_empty=True, frozen=True, extra="forbid")

    home: Annotated[
        Path, Field(default_factory=lambda: Path.home() / ".raydml", description="runs, models and collections")
    ]
    roots: tuple[Path, ...] = Field((), description="folders that specs may read data from, as JSON; home/data if none")
    database: str | None = Field(None, description="postgresql://USER@HOST/NAME; a SQLite file in home if none")
    host: str = Field("127.0.0.1", description="where to listen; other machines can reach it only where keys were made")
    port: int = Field(8080, ge=0, le=65535, description="0: any that is free")
    workers: int = Field(1, ge=1, le=64, description="processes that answer requests")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="which log lines are written")
    shutdown_seconds: int = Field(30, ge=1, le=3600, description="how long requests may go on after a signal to stop")

    ray_address: str | None = Field(None, description="http://HEAD:8265 of a cluster; RAY_ADDRESS, or a Ray of its own")
    cpus: int = Field(default_factory=lambda: os.cpu_count() or 1, ge=1, le=4096, description="of a Ray of its own")
    supervise: bool = Field(True, description="whether jobs are brought to their end here, not by another server")
    job_retries: int = Field(10, ge=0, le=1000, description="attempts in a row that may come no further")
    retry_seconds: float = Field(60.0, ge=0, le=86_400, description="at most, between two attempts")
    lease_seconds: float = Field(15.0, ge=1, le=3600, description="of silence, after which another supervisor acts")
    stop_seconds: float = Field(120.0, ge=1, le=86_400, description="for the last checkpoint of a job that is to stop")

    patience: float = Field(5.0, ge=0, le=600, description="seconds that a change waits for another process's")
    max_body_bytes: int = Field(64 * _MEBIBYTE, ge=1024, le=1 << 31, description="of a request's body")
    body_seconds: float = Field(120.0, gt=0, le=3600, description="that a request's body may take to arrive")
    max_points: int = Field(10_000, ge=1, le=1_000_000, description="points in one request, written or read")
    max_queries: int = Field(1024, ge=1, le=100_000, description="queries in one request")
    max_k: int = Field(1000, ge=1, le=100_000, description="neighbours of one query")
    max_images: int = Field(64, ge=1, le=10_000, description="images in one request")
    max_image_bytes: int = Field(16 * _MEBIBYTE, ge=64, le=1 << 30, description="of one image file")
    max_image_pixels: int = Field(40_000_000, ge=1, le=89_000_000, description="of one image, unpacked")
    max_texts: int = Field(256, ge=1, le=10_000, description="texts in one request")
    max_text_characters: int = Field(10_000, ge=1, le=1_000_000, description="of one text")
    max_waiting_queries: int = Field(4096, ge=1, le=1_000_000, description="queries in the queue; more are 429")
    max_batch_queries: int = Field(256, ge=1, le=65_536, description="queries that Faiss is given together")
    max_waiting_tasks: int = Field(64, ge=1, le=10_000, description="writes and reads in the queue; more are 429")
    requests_per_second: float = Field(500, gt=0, le=1e6, description="of one key; more are 429")
    requests_at_once: int = Field(1000, ge=1, le=1_000_000, description="of one key that has been silent for a while")
    max_collections: int = Field(1000, ge=1, le=1_000_000, description="collections of one project")

    max_live_jobs: int = Field(1000, ge=1, le=1_000_000, description="jobs of one project that are not over")
    max_datasets: int = Field(1000, ge=1, le=1_000_000, description="data sets of one project")
    max_dataset_bytes: int = Field(64 << 30, ge=1, le=1 << 50, description="of one upload")
    max_project_bytes: int = Field(256 << 30, ge=1, le=1 << 50, description="of all uploads of one project")
    max_unpacked_bytes: int = Field(256 << 30, ge=1, le=1 << 50, description="of one archive, unpacked")
    upload_days: float = Field(
        7.0, gt=0, le=36_500, description="after which an upload that nobody goes on with is gone"
    )
    record_days: float = Field(90.0, gt=0, le=36_500, description="that events and metrics of a job that is over stay")
    dataset_part_bytes: int = Field(8 * _MEBIBYTE, ge=1, le=1 << 30, description="of one part of an upload")
    dataset_check_seconds: float = Field(3600.0, gt=0, le=1e6, description="that looking at a data set may take")
    dataset_check_bytes: int = Field(8 << 30, ge=1 << 29, le=1 << 50, description="of memory that it may take")

    webhook_hosts: tuple[str, ...] = Field((), description="host names that webhooks may go to, as JSON; none if empty")
    webhook_private: bool = Field(False, description="webhooks may go to private addresses, and without TLS")

    max_followers: int = Field(1000, ge=1, le=100_000, description="event streams at a time; more are 429")
    watch_seconds: float = Field(0.25, gt=0, le=60, description="between two looks for what event streams tell")
    heartbeat_seconds: float = Field(15.0, gt=0, le=600, description="of silence, after which a stream says something")
    check_seconds: float = Field(60.0, gt=0, le=3600, description="that looking at a spec and its data may take")

    @field_validator("home")
    @classmethod
    def _absolute(cls, home: Path) -> Path:
        return home.expanduser().resolve()

    @field_validator("roots")
    @classmethod
    def _absolute_roots(cls, roots: tuple[Path, ...]) -> tuple[Path, ...]:
        return tuple(root.expanduser().resolve() for root in roots)

    @property
    def data_roots(self) -> tuple[Path, ...]:
        """Where paths in specs and data sets may lead."""
        return self.roots or (self.home / "data",)

    @property
    def cluster(self) -> str | None:
        """The cluster that jobs run on, None for a Ray of the server's own."""
        return self.ray_address or os.environ.get("RAY_ADDRESS")

    @property
    def webhook_targets(self) -> Targets:
        """Where webhooks may go."""
        return Targets(frozenset(host.lower() for host in self.webhook_hosts), self.webhook_private)

    @property
    def database_url(self) -> str:
        """Of the database with jobs, keys and everything else but vectors."""
        return self.database or default_url(self.home)


@lru_cache
def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the address; of names, localhost alone."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def load_settings(given: Mapping[str, Any]) -> Settings:
    """Settings from the environment and, before it, from what is given. Raises SpecError with every mistake."""
    try:
        return Settings(**given)
    except ValidationError as error:
        raise SpecError("\n".join(_mistake(each["loc"], each["msg"]) for each in error.errors())) from None


def _mistake(path: tuple[int | str, ...], message: str) -> str:
    name = str(path[0]) if path else "settings"
    if message == "Extra inputs are not permitted":
        message = f"unknown setting; there are {', '.join(Settings.model_fields)}"
    return f"{name} (RAYDML_{name.upper()}): {message.removeprefix('Value error, ')}"
