"""Vectors, ids and payloads in; on disk a durable collection, and out of it the nearest items."""

from raydml.search.collection import Collection
from raydml.search.database import DATABASE
from raydml.search.embedder import Embedder
from raydml.search.home import Facts
from raydml.search.items import Hit, Item

__all__ = ["DATABASE", "Collection", "Embedder", "Facts", "Hit", "Item"]
