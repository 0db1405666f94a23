"""Vectors, ids and payloads in; on disk a durable collection, and out of it the nearest items, exactly."""

from raydml.search.collection import Collection
from raydml.search.embedder import Embedder
from raydml.search.items import Hit, Item

__all__ = ["Collection", "Embedder", "Hit", "Item"]
