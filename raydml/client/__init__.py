"""The API of a server, or of a folder, from Python: `Client` blocks, `AsyncClient` is awaited."""

from raydml.client.client import AsyncClient, Client
from raydml.client.retries import Retries

__all__ = ["AsyncClient", "Client", "Retries"]
