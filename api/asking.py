"""A query as it was sent -> what `Collection.search` takes, after everything that can refuse this request alone."""

from __future__ import annotations

from typing import Any

from api import bodies, images
from api.documents import Query
from api.limits import check_queries, check_query
from api.searches import Search
from api.service import Service, check_lsn
from api.store import check_model
from raydml.search import Collection
from raydml.search.embedder import check_digest
from raydml.search.items import Array


async def asked(service: Service, collection: Collection, query: Query) -> dict[str, Any]:
    """`vectors=` (n, dimension), checked, or `ids=`. Raises Problem or RaydmlError."""
    check_query(query, service.settings)
    check_digest(query.model_digest, collection.model_digest)
    if query.min_lsn is not None:
        await service.tasks.run(lambda: check_lsn(collection, query.min_lsn))
    if query.ids is not None:
        return {"ids": query.ids}
    vectors = await _vectors(service, collection, query)
    check_queries(len(vectors), service.settings)
    return {"vectors": vectors}


async def prepared(service: Service, collection: Collection, query: Query, **options: Any) -> Search:
    """The query for the queue of searches; with equal `options` of `Collection.search`, others share its call."""
    given = await asked(service, collection, query)
    return Search(collection, given.get("vectors"), given.get("ids"), query.k, query.filter, tuple(options.items()))


async def _vectors(service: Service, collection: Collection, query: Query) -> Array:
    if query.vectors is not None:
        return collection.query_vectors(bodies.vectors_of(query.vectors, collection.dimension))
    check_model(collection, service.settings.home)

    def embedded() -> Array:
        if query.texts is not None:
            return collection.query_vectors(texts=query.texts)
        return collection.query_vectors(images=images.decoded(query.images or [], service.settings))

    return await service.embedding.run(embedded)
