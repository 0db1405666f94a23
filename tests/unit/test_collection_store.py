"""What a collection holds on disk: refused requests leave nothing, damage is named, segments come and go unseen."""

from __future__ import annotations

import errno
import multiprocessing
import os
import shutil
import sqlite3
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raydml import files
from raydml.errors import CollectionError, ResourceError
from raydml.search import Collection, compaction, database, home, writer

pytestmark = pytest.mark.timeout(300)
RANDOM = np.random.default_rng(1)
VECTORS = RANDOM.standard_normal((60, 4)).astype(np.float32)


def content(collection: Collection) -> dict[Any, Any]:
    items = collection.scroll(limit=10_000)
    return {item.id: (item.vector.tolist(), item.payload) for item in items}


def filled(path: Path) -> Collection:
    """Three segments with dead rows, and some rows unsealed."""
    collection = Collection.open(path, 4)
    for start in (0, 20, 40):
        names = [f"item {row}" if row % 2 else row for row in range(start, start + 20)]
        collection.upsert(names, VECTORS[start : start + 20], [{"row": row} for row in range(20)])
        collection.seal()
    collection.index_payload("row")
    collection.delete([0, "item 21", 40, "item 59"])
    collection.upsert([2, "item 3", "new"], VECTORS[:3], [{"row": 100}, {}, {}])
    return collection


def nearest_ids(collection: Collection) -> list[list[Any]]:
    return [[hit.id for hit in hits] for hits in collection.search(VECTORS[:10], k=12)]


def test_sealing_and_compaction_change_nothing_that_can_be_seen(tmp_path: Path) -> None:
    collection = filled(tmp_path / "c")
    before, ids = content(collection), nearest_ids(collection)
    report = collection.compact()
    assert report == {"segments": 3, "rows": 60, "kept": 54}
    assert (content(collection), nearest_ids(collection)) == (before, ids)
    collection.seal()
    collection.check()
    assert (content(collection), nearest_ids(collection)) == (before, ids)
    with Collection.open(tmp_path / "c") as again:
        assert (content(again), nearest_ids(again), again.ids) == (before, ids, list(before))
    collection.compact()
    assert collection.compact() is None
    collection.check()
    assert content(collection) == before
    assert len(list((tmp_path / "c" / "segments").iterdir())) == 1


def test_what_dies_during_a_compaction_stays_dead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    collection = filled(tmp_path / "c")
    swap = compaction.swap

    def late(*given: Any) -> None:
        swap(*given)

    def check(*given: Any) -> None:
        collection.delete([4, "item 5"])
        collection.upsert([6], [[9.0, 9.0, 9.0, 9.0]])

    monkeypatch.setattr(compaction, "check", check)
    monkeypatch.setattr(compaction, "swap", late)
    expected = content(collection)
    for gone in (4, "item 5"):
        del expected[gone]
    expected[6] = ([9.0] * 4, {})
    compaction.compact(tmp_path / "c")
    collection.check()
    assert content(collection) == expected


def test_a_compaction_that_finds_other_neighbours_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    collection = filled(tmp_path / "c")
    before, segments = content(collection), sorted((tmp_path / "c" / "segments").iterdir())
    merge = compaction.merge

    def wrong(sources: Any, dimension: int) -> Any:
        merged = merge(sources, dimension)
        merged.rows[0][:] = merged.rows[0][::-1].copy()
        return merged

    monkeypatch.setattr(compaction, "merge", wrong)
    with pytest.raises(CollectionError, match="nothing was changed"):
        compaction.compact(tmp_path / "c")
    assert content(collection) == before
    collection.seal()  # which removes what the failed one left
    assert set(segments) < set((tmp_path / "c" / "segments").iterdir())
    assert len(list((tmp_path / "c" / "segments").iterdir())) == 4


def test_a_reader_sees_one_state_while_others_compact_it_away(tmp_path: Path) -> None:
    collection = filled(tmp_path / "c")
    reader = Collection.open(tmp_path / "c")
    collection.compact()
    assert content(reader) == content(collection)  # opened before, and its segments never read until now


def test_a_snapshot_is_restored_as_it_was(tmp_path: Path) -> None:
    collection = filled(tmp_path / "c")
    before = content(collection)
    collection.snapshot(tmp_path / "copy")
    collection.delete(filter={"row": {"gte": 0}})
    shutil.rmtree(tmp_path / "c" / "segments")
    restored = Collection.restore(tmp_path / "copy", tmp_path / "again")
    assert content(restored) == before
    assert restored.facet("row", 2) == [(4, 3), (5, 3)]
    restored.check()
    for refused in (
        lambda: collection.snapshot(tmp_path / "copy"),
        lambda: Collection.restore(tmp_path / "copy", tmp_path / "again"),
        lambda: Collection.restore(tmp_path / "nothing", tmp_path / "other"),
    ):
        with pytest.raises(CollectionError):
            refused()


def test_a_damaged_snapshot_is_not_restored(tmp_path: Path) -> None:
    filled(tmp_path / "c").snapshot(tmp_path / "copy")
    flip(next((tmp_path / "copy" / "segments").rglob("vectors.npy")), 200)
    with pytest.raises(CollectionError, match=r"vectors.npy: its SHA-256"):
        Collection.restore(tmp_path / "copy", tmp_path / "again")
    assert not (tmp_path / "again").exists()


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1 << (place % 8)
    path.write_bytes(data)


def test_every_flipped_bit_of_a_segment_is_found_and_the_file_named(tmp_path: Path) -> None:
    filled(tmp_path / "c").close()
    for path in sorted((tmp_path / "c" / "segments").rglob("*.*")):
        flip(path, path.stat().st_size // 2)
        with Collection.open(tmp_path / "c") as collection, pytest.raises(CollectionError, match=path.name):
            collection.check()
        flip(path, path.stat().st_size // 2)
    with Collection.open(tmp_path / "c") as collection:
        collection.check()


def test_a_search_does_not_use_a_damaged_file(tmp_path: Path) -> None:
    filled(tmp_path / "c").close()
    flip(next((tmp_path / "c" / "segments").rglob("unit.npy")), 200)
    collection = Collection.open(tmp_path / "c")
    with pytest.raises(CollectionError, match=r"unit.npy.*Collection.rebuild\(\)"):
        collection.search(VECTORS[:1])
    collection.rebuild()
    collection.check()
    assert nearest_ids(collection) == nearest_ids(filled(tmp_path / "other"))


def test_a_flipped_bit_of_the_database_is_found_or_changes_nothing(tmp_path: Path) -> None:
    with filled(tmp_path / "c") as collection:
        expected, ids, facts = content(collection), nearest_ids(collection), collection.facts
    path = tmp_path / "c" / database.DATABASE
    whole = path.read_bytes()
    found = 0
    used = np.flatnonzero(np.frombuffer(whole, dtype=np.uint8))
    for place in np.random.default_rng(3).choice(used, 60, replace=False).tolist():
        for leftover in tmp_path.glob("c/*-wal"):
            leftover.unlink()
        path.write_bytes(whole)
        flip(path, place)
        try:
            with Collection.open(tmp_path / "c") as collection:
                collection.check()
                assert (content(collection), nearest_ids(collection), collection.facts) == (expected, ids, facts)
        except CollectionError:
            found += 1
    assert found > 20


@pytest.mark.parametrize("size", [0, 10, 100, 5000])
def test_a_truncated_database_is_refused_and_only_that_collection(tmp_path: Path, size: int) -> None:
    filled(tmp_path / "good").close()
    filled(tmp_path / "bad").close()
    os.truncate(tmp_path / "bad" / database.DATABASE, size)
    with pytest.raises(CollectionError, match="damaged"):
        Collection.open(tmp_path / "bad")
    Collection.open(tmp_path / "good").check()


def test_a_missing_database_or_segment_is_damage_not_an_empty_collection(tmp_path: Path) -> None:
    filled(tmp_path / "c").close()
    shutil.rmtree(next((tmp_path / "c" / "segments").iterdir()))
    collection = Collection.open(tmp_path / "c")
    for use in (collection.check, lambda: collection.search(VECTORS[:1])):
        with pytest.raises(CollectionError, match="it is missing"):
            use()
    collection.close()
    (tmp_path / "c" / database.DATABASE).unlink()
    with pytest.raises(CollectionError, match="missing beside its segments"):
        Collection.open(tmp_path / "c", 4)


def test_a_folder_of_an_earlier_version_is_refused(tmp_path: Path) -> None:
    (tmp_path / "CURRENT").write_text("000001 abc")
    with pytest.raises(CollectionError, match="index again"):
        Collection.open(tmp_path, 4)


def test_a_network_file_system_is_refused(tmp_path: Path) -> None:
    mounts = f"/dev/sda / ext4 rw 0 0\nserver:/x {tmp_path} nfs4 rw 0 0\n"
    with pytest.raises(CollectionError, match="nfs4"):
        database.refuse_network(tmp_path / "c", mounts)
    database.refuse_network(tmp_path.parent, mounts)


def hold(path: Path, locked: Any, done: Any) -> None:
    with Collection.open(path).batch():
        locked.set()
        done.wait()


def test_of_two_processes_one_writes_and_the_other_waits_or_is_refused(tmp_path: Path) -> None:
    Collection.open(tmp_path / "c", 1).close()
    context = multiprocessing.get_context("spawn")
    locked, done = context.Event(), context.Event()
    process = context.Process(target=hold, args=(tmp_path / "c", locked, done))
    process.start()
    try:
        assert locked.wait(250)
        with pytest.raises(CollectionError, match="another writer"):
            Collection.open(tmp_path / "c", patience=0.05).upsert([1], [[1.0]])
        assert Collection.open(tmp_path / "c").search([[1.0]]) == [[]]
        done.set()
        Collection.open(tmp_path / "c", patience=250).upsert([1], [[1.0]])
    finally:
        done.set()
        process.join()
    assert Collection.open(tmp_path / "c").ids == [1]


def test_threads_commit_together_and_a_refused_change_harms_no_other(tmp_path: Path) -> None:
    collection = Collection.open(tmp_path / "c", 1)
    acknowledged: list[int] = []
    commits: list[str] = []
    collection.upsert([-1], [[1.0]], request="taken")
    trace = collection._writer._connection
    assert trace is not None
    trace.set_trace_callback(lambda line: commits.append(line) if line == "COMMIT" else None)

    def work(thread: int) -> None:
        for number in range(20):
            identifier = 100 * thread + number
            collection.upsert([identifier], [[1.0]])
            acknowledged.append(identifier)
            with pytest.raises(CollectionError, match="other content"):
                collection.upsert([10_000 + identifier], [[1.0]], request="taken")

    threads = [threading.Thread(target=work, args=(thread,)) for thread in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    collection.check()
    assert set(collection.ids) == {-1, *acknowledged}
    assert len(acknowledged) == 160
    assert len(commits) < 320


def test_a_change_that_fails_halfway_is_undone_alone(tmp_path: Path) -> None:
    collection = filled(tmp_path / "c")
    expected = content(collection)

    def fails(change: Any) -> None:
        change.delete([2, "item 3"])
        raise KeyError("halfway")

    group = [writer.Waiting(lambda change: change.delete([4])), writer.Waiting(fails),
             writer.Waiting(lambda change: change.delete([6]))]  # fmt: skip
    collection._writer._commit(group)
    assert [type(one.error) for one in group] == [type(None), KeyError, type(None)]
    for gone in (4, 6):
        del expected[gone]
    assert content(collection) == expected
    collection.check()


def test_a_named_request_is_done_once_also_after_reopening(tmp_path: Path) -> None:
    collection = Collection.open(tmp_path / "c", 1)
    first = collection.upsert([1, 2], [[1.0], [2.0]], request="a")
    assert collection.delete([1], request="b") == 1
    collection.close()
    again = Collection.open(tmp_path / "c")
    assert again.upsert([1, 2], [[1.0], [2.0]], request="a") == first
    assert again.delete([1], request="b") == 1
    assert again.ids == [2]
    with pytest.raises(CollectionError, match="other content"):
        again.upsert([1, 2], [[1.0], [2.5]], request="a")


def test_a_full_database_refuses_and_nothing_is_left_also_after_reopening(tmp_path: Path) -> None:
    collection = filled(tmp_path / "c")
    before = content(collection)
    connection = collection._writer._connection
    assert connection is not None
    pages = connection.execute("PRAGMA page_count").fetchone()[0]
    connection.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(ResourceError, match="full"):
        collection.upsert(range(1000, 9000), RANDOM.standard_normal((8000, 4)))
    assert content(collection) == before
    collection.close()
    again = Collection.open(tmp_path / "c")
    again.check()
    assert content(again) == before


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("operation", ["fsync", "rename"])
def test_a_seal_or_snapshot_or_rebuild_whose_disk_fails_anywhere_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, operation: str, code: int
) -> None:
    collection = filled(tmp_path / "c")
    before = content(collection)
    actual = getattr(os, operation)
    failed = 0
    for place in range(12 if operation == "fsync" else 2):
        calls = 0

        def failing(*given: Any, place: int = place) -> Any:
            nonlocal calls, failed
            calls += 1
            if calls == place + 1:
                failed += 1
                raise OSError(code, os.strerror(code))
            return actual(*given)

        for number, work in enumerate(
            (collection.seal, lambda: collection.snapshot(tmp_path / "s"), collection.rebuild)
        ):
            calls = 0
            with monkeypatch.context() as patch:
                patch.setattr(files.os, operation, failing)
                try:
                    work()
                except ResourceError:
                    assert calls == place + 1
            shutil.rmtree(tmp_path / "s", ignore_errors=True)
            assert content(collection) == before, (operation, number, place)
            if number == 0:
                collection.upsert(["item 3"], VECTORS[1:2])
    assert failed >= (12 if operation == "fsync" else 3)
    collection.close()
    again = Collection.open(tmp_path / "c")
    again.check()
    assert content(again) == before


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize(("operation", "at_least"), [("fsync", 8), ("rename", 1)])
def test_a_compaction_whose_disk_fails_anywhere_changes_nothing_and_the_next_one_succeeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, operation: str, at_least: int, code: int
) -> None:
    with filled(tmp_path / "whole") as collection:
        expected, ids = content(collection), nearest_ids(collection)
    actual = getattr(os, operation)
    for place in range(100):
        shutil.copytree(tmp_path / "whole", tmp_path / str(place))
        calls = 0

        def failing(*given: Any, place: int = place) -> Any:
            nonlocal calls
            calls += 1
            if calls == place + 1:
                raise OSError(code, os.strerror(code))
            return actual(*given)

        with monkeypatch.context() as patch:
            patch.setattr(files.os, operation, failing)
            try:
                compaction.compact(tmp_path / str(place))
            except ResourceError:
                assert calls == place + 1
        with Collection.open(tmp_path / str(place)) as collection:
            collection.check()
            assert (content(collection), nearest_ids(collection)) == (expected, ids), place
            if calls <= place:
                break
            assert compaction.compact(tmp_path / str(place)) == {"segments": 3, "rows": 60, "kept": 54}
            collection.check()
            assert content(collection) == expected
            assert len(list((tmp_path / str(place) / "segments").iterdir())) == 1
    assert at_least <= place < 99, "it failed at every place there is, and there were some"


def test_a_seal_during_a_compaction_leaves_the_segment_that_nobody_knows_yet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    collection = filled(tmp_path / "c")
    before = content(collection)
    monkeypatch.setattr(compaction, "check", lambda *_: collection.seal())  # which sweeps what is nobody's
    assert compaction.compact(tmp_path / "c") == {"segments": 3, "rows": 60, "kept": 54}
    collection.check()
    assert content(collection) == before


def test_every_connection_that_writes_syncs_its_commits(tmp_path: Path) -> None:
    collection = filled(tmp_path / "c")
    for connection in (collection._writer._connection, *collection._connections):
        assert connection is not None
        assert connection.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL: a commit waits for the disk
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_a_commit_that_fails_is_seen_by_nobody_and_told_to_all_who_waited(tmp_path: Path) -> None:
    collection = filled(tmp_path / "c")
    before, ids = content(collection), nearest_ids(collection)
    connection = collection._writer._connection
    assert connection is not None
    parent = "REFERENCES pages (number) DEFERRABLE INITIALLY DEFERRED"
    connection.execute(f"CREATE TEMP TABLE pages (number INTEGER PRIMARY KEY, parent INTEGER {parent})")
    connection.execute("PRAGMA foreign_keys = ON")
    said: list[str] = []
    connection.set_trace_callback(said.append)

    def spoils(change: Any) -> int:
        change.connection.execute("INSERT INTO temp.pages VALUES (1, 7)")  # which COMMIT itself refuses
        return int(change.delete([2]))

    group = [writer.Waiting(lambda change: change.delete([4])), writer.Waiting(spoils)]
    collection._writer._commit(group)
    assert "COMMIT" in said
    assert all(one.error is not None for one in group)
    assert (content(collection), nearest_ids(collection)) == (before, ids)
    assert collection._writer.change(lambda change: change.delete([4])) == 1
    collection.check()


@pytest.mark.parametrize("operation", ["fsync", "replace"])
def test_a_creation_whose_disk_fails_can_be_done_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, operation: str
) -> None:
    def failing(*_: Any) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(files.os, operation, failing)
        with pytest.raises(ResourceError):
            Collection.open(tmp_path / "c", 4)
    assert Collection.open(tmp_path / "c", 4).count() == 0


def test_opening_reads_no_vectors(tmp_path: Path) -> None:
    filled(tmp_path / "c").close()
    for path in (tmp_path / "c" / "segments").rglob("*.*"):
        path.write_bytes(b"")
    collection = Collection.open(tmp_path / "c")
    assert (collection.count(), collection.dimension) == (57, 4)


def test_the_schema_has_the_columns_that_are_checked(tmp_path: Path) -> None:
    filled(tmp_path / "c").close()
    connection = sqlite3.connect(tmp_path / "c" / database.DATABASE)
    connection.execute("UPDATE points SET payload = '{}' WHERE key = 5")
    connection.commit()
    connection.close()
    with pytest.raises(CollectionError, match="point 5 does not match its checksum"):
        Collection.open(tmp_path / "c").scroll()
    assert home.read_facts(tmp_path / "c").dimension == 4
