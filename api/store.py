"""Names -> open collections: those in the server's own folder alone, and none that was deleted or replaced since."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from api.problems import Problem
from raydml.errors import CollectionError
from raydml.files import remove_folder
from raydml.search import DATABASE, Collection
from raydml.search.aliases import Aliases
from raydml.search.items import Metric
from raydml.search.writer import writing

NAME = r"^[A-Za-z0-9][A-Za-z0-9._~-]{0,127}$"
Mark = tuple[int, int]  # a database's file: device and inode


@dataclass(frozen=True)
class Held:
    """An open collection, and the file that it has open."""

    collection: Collection
    mark: Mark


class Store:
    """The collections of one home, opened when they are first asked for; for any number of threads."""

    def __init__(self, home: Path, patience: float, most: int, runs: Callable[[str], Path]) -> None:
        """`patience`: seconds that a change waits for another process's; `most`: collections that there may be; `runs`
        finds the folder of a run by its name."""
        self.home = home
        self._runs = runs
        self.patience = patience
        self.most = most
        self.folder = home / "collections"
        self.snapshots = home / "snapshots"
        self.aliases = Aliases(self.folder)
        self._prefix = f"{self.folder}/"
        self._held: dict[str, Held] = {}
        self._opening = threading.Lock()

    def names(self) -> list[str]:
        """Of all collections, sorted."""
        return sorted(path.parent.name for path in self.folder.glob(f"*/{DATABASE}"))

    def opened(self) -> list[Collection]:
        """Those that are open now and not removed since, by name."""
        held = [(name, self.held(name)) for name in sorted(self._held)]
        return [collection for _, collection in held if collection is not None]

    def held(self, name: str) -> Collection | None:
        """The collection where it is open already; of its own name alone, not of an alias."""
        held = self._held.get(name)
        return held.collection if held is not None and held.mark == self._mark(name) else None

    def get(self, name_or_alias: str) -> Collection:
        """The collection. Raises Problem 404 where there is none."""
        name = name_or_alias
        if self._mark(name) is None:
            name = self.aliases.current().collections.get(name, name)
        with self._opening:
            mark = self._mark(name)
            if mark is None:
                self._held.pop(name, None)
                raise Problem(
                    404, "no-such-collection", f"there is no collection or alias {name_or_alias}: see /v1/collections"
                )
            held = self._held.get(name)
            if held is None or held.mark != mark:
                held = Held(Collection.open(self._path(name), patience=self.patience), mark)
                self._held[name] = held
            return held.collection

    def create(
        self, name: str, dimension: int | None, metric: Metric | None, digest: str | None, run: str | None
    ) -> bool:
        """Make a collection, of a run's model where one is named; False where it was there and agrees.

        Raises Problem 409 where it was there and differs, 404 where the run has no model.
        """
        self._check_free(name)
        existed = self._mark(name) is not None
        if not existed:
            self._check_quota()
        model = None if run is None else self._model(run)
        try:
            opened = Collection.open(
                self._path(name), dimension, metric, model_digest=digest, model=model, patience=self.patience
            )
        except CollectionError as error:
            if not existed:
                raise
            raise Problem(409, "collection-exists", f"collection {name} exists: {error}") from error
        opened.close()
        return not existed

    def delete(self, name: str) -> None:
        """Remove the collection with everything in it; those who are using it finish with what they have."""
        if self._mark(name) is None:
            raise Problem(404, "no-such-collection", f"there is no collection {name}: see /v1/collections")
        pointing = sorted(alias for alias, target in self.aliases.current().collections.items() if target == name)
        if pointing:
            raise Problem(409, "collection-in-use", f"aliases point to {name}: {pointing}; switch or remove them first")
        with writing(self._path(name), self.patience):
            remove_folder(self._path(name))

    def snapshot_folder(self, name: str, snapshot: str) -> Path:
        """Where a snapshot of this name lies. Raises Problem 404 where there is none."""
        folder = self.snapshots / name / snapshot
        if not (folder / DATABASE).is_file() or folder.is_symlink():
            raise Problem(404, "no-such-snapshot", f"collection {name} has no snapshot {snapshot}")
        return folder

    def snapshot(self, collection: Collection, snapshot: str) -> None:
        """Copy the collection as it is now. Raises Problem 409 where the name is taken."""
        folder = self.snapshots / collection.path.name / snapshot
        if folder.exists():
            raise Problem(409, "snapshot-exists", f"{snapshot} is taken: give the snapshot another name")
        collection.snapshot(folder)

    def restore(self, name: str, snapshot: str, to: str) -> None:
        """Make a new collection of a snapshot, every byte checked. Raises Problem 409 where its name is taken."""
        source = self.snapshot_folder(name, snapshot)
        self._check_free(to)
        if self._mark(to) is not None:
            raise Problem(
                409, "collection-exists", f"collection {to} exists: restore to another name, then switch an alias"
            )
        self._check_quota()
        Collection.restore(source, self._path(to)).close()

    def close(self) -> None:
        """Give back files and connections; nobody uses them any more."""
        for held in self._held.values():
            held.collection.close()
        self._held.clear()

    def _check_free(self, name: str) -> None:
        if name in self.aliases.current().collections:
            raise Problem(409, "collection-exists", f"{name} is an alias already: give the collection another name")

    def _check_quota(self) -> None:
        if (count := len(self.names())) >= self.most:
            raise Problem(
                409,
                "quota-exceeded",
                f"there are {count} collections of {self.most} that a project may have: delete some",
            )

    def _path(self, name: str) -> Path:
        path = self.folder / name
        if path.is_symlink():
            raise Problem(409, "collection-elsewhere", f"collection {name} is a link to somewhere else: move it here")
        return path

    def _mark(self, name: str) -> Mark | None:
        try:
            status = os.stat(f"{self._prefix}{name}/{DATABASE}")
        except (FileNotFoundError, NotADirectoryError):
            return None
        return status.st_dev, status.st_ino

    def _model(self, run: str) -> Path:
        folder = self._runs(run) / "model"
        if not folder.resolve().is_relative_to(folder.parents[1]) or not (folder / "config.json").is_file():
            raise Problem(404, "no-such-model", f"there is no run {run} that has exported a model")
        return folder


def check_model(collection: Collection, home: Path) -> None:
    """Raises Problem 409 where the collection's model lies elsewhere: what the server loads lies in its folder."""
    folder = collection.model_path
    if folder is not None and not folder.resolve().is_relative_to(home):
        raise Problem(
            409, "model-elsewhere", "the collection's model lies outside of the server's folder: query by vector"
        )
