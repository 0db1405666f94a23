"""raydml over HTTP: settings in, a FastAPI application out; `raydml serve` runs it."""

from api.app import create_app
from api.settings import Settings

__all__ = ["Settings", "create_app"]
