"""One suite for the client: of a server and of a folder, blocking and awaited."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import threading
import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pytest
import uvicorn
from PIL import Image

from api import Settings, create_app
from raydml import AsyncClient, Client
from raydml.errors import Conflict, DataError, NotFound, RequestRefused
from raydml.files import write_json
from raydml.jobs.database import Database
from raydml.jobs.supervisor import Supervisor
from raydml.jobs.sweeping import study_folder
from raydml.spec import JobSpec
from raydml.specfile import parse_spec
from raydml.tuning.record import StudyRecord
from tests.api.awaited import Awaited
from tests.jobs.cluster import FakeAttempt, FakeCluster
from tests.unit.studies import Synthetic, drive, new_study

pytestmark = pytest.mark.timeout(900)
Make = Callable[..., Any]
VECTORS = np.random.default_rng(0).standard_normal((40, 4)).astype(np.float32)
PAYLOADS = [{"colour": "red" if row % 4 else "blue", "row": row} for row in range(40)]


@dataclass(frozen=True)
class Place:
    """What a client is told, and the folder that its server has, or that it has itself."""

    home: Path
    told: dict[str, Any]


@pytest.fixture(scope="module", params=["server", "folder"])
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A real server on a free port, and a folder."""
    home = tmp_path_factory.mktemp(request.param)
    with pytest.MonkeyPatch.context() as environment, ExitStack() as stack:
        environment.setenv("RAYDML_SUPERVISE", "false")  # tests do this
        environment.setenv("RAYDML_CHECK_SECONDS", "3000")  # on a machine that is busy
        served = {"url": stack.enter_context(uvicorn_of(home))} if request.param == "server" else {"local": home}
        yield Place(home, served)


@contextmanager
def uvicorn_of(home: Path) -> Iterator[str]:
    """The application on a free port: its URL."""
    config = uvicorn.Config(create_app(Settings(home=home)), port=0, log_config=None, timeout_graceful_shutdown=10)
    with config.bind_socket() as socket:
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, args=([socket],))
        thread.start()
        yield f"http://127.0.0.1:{socket.getsockname()[1]}"
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module", params=["blocking", "awaited"])
def client(request: pytest.FixtureRequest, place: Place) -> Iterator[Client]:
    """Each kind of client, at each place."""
    if request.param == "blocking":
        with Client(**place.told) as client:
            yield client
        return
    loop = asyncio.new_event_loop()
    awaited = Awaited(loop, AsyncClient(**place.told))
    yield awaited  # type: ignore[misc]
    awaited.close()
    loop.close()


class Work:
    """The supervisor of a place over a cluster that does what the test says."""

    def __init__(self, home: Path) -> None:
        self.home, self.database, self.cluster = home, Database.at(home), FakeCluster(cpus=64)
        self.supervisor = Supervisor(self.database, home, self.cluster)

    def tick(self) -> None:
        assert self.supervisor.tick()

    def started(self, job: str) -> FakeAttempt:
        """The job's first attempt, at work."""
        self.tick()
        attempt = FakeAttempt(self.cluster, self.home, job)
        attempt.begin()
        self.tick()
        return attempt


@pytest.fixture(scope="module")
def work(place: Place) -> Iterator[Work]:
    """For all tests of a place: its jobs are other jobs."""
    work = Work(place.home)
    yield work
    work.supervisor.close()
    work.database.close()


@pytest.fixture
def name() -> str:
    """A collection that no other test has."""
    return f"c-{uuid4().hex}"


@pytest.fixture
def filled(client: Client, name: str) -> Any:
    """A collection of forty points."""
    client.collections.create(name, 4)
    client.collections[name].upsert(range(40), VECTORS, PAYLOADS)
    return client.collections[name]


def slow(query: Any, k: int, rows: Any = range(40)) -> list[int]:
    """Ids of the nearest rows by cosine, by a loop."""

    def cosine(row: int) -> float:
        q, v = np.asarray(query, float), VECTORS[row].astype(float)
        return float(q @ v / np.sqrt((q @ q) * (v @ v)))

    return sorted(rows, key=lambda row: (-cosine(row), row))[:k]


def ids(results: Any) -> list[list[int]]:
    return [[hit.id for hit in hits] for hits in results]


def test_a_server_says_that_it_lives(client: Client) -> None:
    assert client.alive() and client.ready()


def test_collections_are_made_described_listed_and_removed(client: Client, name: str) -> None:
    made = client.collections.create(name, 3, "l2")
    assert (made.name, made.dimension, made.metric, made.points) == (name, 3, "l2", 0)
    assert client.collections.create(name, 3).lsn == client.collections.get(name).lsn == made.lsn
    with pytest.raises(Conflict, match="dimension 3"):
        client.collections.create(name, 4)
    others = [f"{name}-{number}" for number in range(3)]
    for other in others:
        client.collections.create(other, 1)
    listed = list(client.collections.list(page_size=2))  # several pages
    assert listed == sorted(listed) and {name, *others} <= set(listed)
    for other in [*others, name]:
        client.collections.delete(other)
    with pytest.raises(NotFound, match="no collection or alias") as caught:
        client.collections.get(name)
    assert caught.value.data["status"] == 404 and caught.value.data["problem"] == "no-such-collection"
    assert caught.value.data["request_id"]


def test_hits_are_those_of_a_loop_for_arrays_and_for_lists(filled: Any) -> None:
    queries = np.random.default_rng(1).standard_normal((3, 4)).astype(np.float32)
    expected = [slow(query, 5) for query in queries]
    assert ids(filled.search(queries, k=5)) == ids(filled.search(queries.tolist(), k=5)) == expected
    found = filled.search(queries, k=2, with_vectors=True)
    assert found[0][0].vector.tolist() == VECTORS[found[0][0].id].tolist()
    assert found[0][0].payload == PAYLOADS[found[0][0].id]
    blue = filled.search(queries, k=4, filter={"colour": "blue"})
    assert ids(blue) == [slow(query, 4, range(0, 40, 4)) for query in queries]
    groups = filled.search(queries, k=9, group_by="colour", exact=True)
    assert all(len(hits) == 2 for hits in groups)
    assert ids(filled.search(ids=[7], k=2)) == [slow(VECTORS[7], 3)[1:]]


def test_a_batch_is_what_each_search_would_be_alone(filled: Any) -> None:
    together = filled.search_batch([{"vectors": VECTORS[:2], "k": 3}, {"ids": [5], "k": 2, "with_vectors": True}])
    assert ids(together[0]) == ids(filled.search(VECTORS[:2], k=3))
    assert ids(together[1]) == ids(filled.search(ids=[5], k=2))
    assert together[1][0][0].vector.tolist() == VECTORS[together[1][0][0].id].tolist()


def test_an_array_of_another_dimension_is_refused_though_its_bytes_would_fit(filled: Any) -> None:
    with pytest.raises(DataError, match="another dimension"):
        filled.search(np.ones((2, 2), np.float32))
    with pytest.raises(RequestRefused):
        filled.upsert([100, 101], np.ones((2, 2), np.float32))
    with pytest.raises(DataError, match="2 ids and 3 vectors"):
        filled.upsert([100, 101], np.ones((3, 4), np.float32))
    with pytest.raises(DataError, match="exactly one"):
        filled.search(VECTORS, ids=[1])


def test_points_are_read_changed_paged_and_removed(filled: Any) -> None:
    assert [point.id for point in filled.scroll(page_size=7)] == list(range(40))
    wanted = [point.id for point in filled.scroll({"colour": "blue"}, page_size=3)]
    assert wanted == list(range(0, 40, 4))
    assert [point.vector.tolist() for point in filled.get([3, 1], with_vectors=True)] == VECTORS[[3, 1]].tolist()
    assert filled.set_payload([3], {"name": "Ada"}).points == 1
    assert filled.get([3])[0].payload == {**PAYLOADS[3], "name": "Ada"}
    assert filled.set_payload([3], {"name": "Ada"}, merge=False).points == 1
    assert filled.get([3])[0].payload == {"name": "Ada"}
    gone = filled.delete([3, 99])
    assert (gone.points, filled.count()) == (1, 39)
    assert filled.delete(filter={"colour": "blue"}).points == 10
    assert filled.describe().points == filled.stats().points == 29
    with pytest.raises(RequestRefused, match=r"\[3\]"):
        filled.get([3], min_lsn=gone.lsn)
    with pytest.raises(Conflict, match="lsn"):
        filled.get([1], min_lsn=gone.lsn + 100)


def test_a_named_change_is_done_once_and_refused_with_another_body(filled: Any) -> None:
    first = filled.upsert([50], VECTORS[:1], request="load-1")
    assert filled.upsert([50], VECTORS[:1], request="load-1") == first
    assert filled.upsert([50], VECTORS[:1]) > first  # each call has a name of its own
    with pytest.raises(RequestRefused):
        filled.upsert([51], VECTORS[:1], request="load-1")


def test_values_of_a_field_are_counted(filled: Any) -> None:
    filled.index_payload("colour")
    assert [(value.value, value.points) for value in filled.facet("colour")] == [("red", 30), ("blue", 10)]
    assert [value.value for value in filled.facet("colour", limit=1)] == ["red"]


def test_neighbours_say_who_and_what_a_query_is(client: Client, name: str) -> None:
    random = np.random.default_rng(2)
    centres = np.eye(4) * 10
    vectors = np.concatenate([centre + random.standard_normal((30, 4)) * 0.2 for centre in centres])
    client.collections.create(name, 4)
    people: Any = client.collections[name]
    people.upsert(range(120), vectors, [{"who": f"p{row // 30}"} for row in range(120)])
    (label,) = people.classify("who", centres[1:2], k=5)
    assert (label.label, label.share, len(label.hits)) == ("p1", 1.0, 5)
    threshold = people.calibrate("who", "pairs", 0.1)
    assert threshold.field == "who" and threshold.false_accept_rate <= 0.2
    assert [verdict.same for verdict in people.verify([(0, 1), (0, 70)], threshold)] == [True, False]
    known = people.calibrate("who", "identify", 0.2)
    assert people.identify(known, ids=[35])[0].identity == "p1"
    assert people.recommend([61, 62], [1], k=3)[0].payload == {"who": "p2"}
    groups = people.duplicates(0.9)
    assert sorted(map(len, groups)) == [30, 30, 30, 30]


def test_snapshots_and_aliases_lead_to_collections(client: Client, filled: Any, name: str) -> None:
    filled.snapshots.create("before")
    filled.delete(range(30))
    assert filled.snapshots.list() == ["before"]
    with pytest.raises(Conflict, match="taken"):
        filled.snapshots.create("before")
    assert filled.snapshots.restore("before", f"{name}-old").points == 40
    filled.snapshots.delete("before")
    assert filled.snapshots.list() == []
    seen = client.aliases.get().generation
    switched = client.aliases.switch({f"{name}-now": name}, expected=seen)
    assert client.collections[f"{name}-now"].count() == 10
    client.aliases.switch({f"{name}-now": f"{name}-old"}, expected=switched.generation)
    assert client.collections[f"{name}-now"].count() == 40
    with pytest.raises(Conflict, match="generation"):
        client.aliases.switch({f"{name}-now": name}, expected=seen)
    assert client.aliases.roll_back().aliases[f"{name}-now"] == name
    client.aliases.switch({f"{name}-now": None})
    assert f"{name}-now" not in client.aliases.get().aliases


def test_an_image_is_sent_as_bytes_or_as_a_file(filled: Any, tmp_path: Path) -> None:
    picture = io.BytesIO()
    Image.new("RGB", (4, 4), "red").save(picture, "PNG")
    (tmp_path / "query.png").write_bytes(picture.getvalue())
    for image in (picture.getvalue(), tmp_path / "query.png"):
        with pytest.raises(RequestRefused, match="no model"):  # it arrived, and this collection cannot embed it
            filled.search(images=[image])
    with pytest.raises(DataError, match="cannot be read"):
        filled.search(images=[tmp_path / "none.png"])


@pytest.mark.parametrize("wrong", [{"n": float("nan")}, {"n": {1, 2}}], ids=["nan", "set"])
def test_what_json_cannot_say_is_refused_before_it_is_sent(filled: Any, wrong: Any) -> None:
    with pytest.raises(DataError, match="cannot be sent"):
        filled.upsert([1], [[1, 2, 3, 4]], [wrong])


def test_names_cannot_lead_to_other_paths(client: Client) -> None:
    for name in ("../aliases", "a/points", "a?b", "ä", "a#b"):
        with pytest.raises((RequestRefused, NotFound)):
            client.collections.get(name)


@pytest.fixture(scope="module")
def spec(place: Place) -> dict[str, Any]:
    """Of twelve classes of four small pictures, under the root of the place."""
    random = np.random.default_rng(0)
    folder = place.home / "data" / "small"
    for split, classes in {"train": range(8), "validation": range(8, 10), "test": range(10, 12)}.items():
        for name in classes:
            (folder / split / f"c{name}").mkdir(parents=True)
            for number in range(4):
                picture = Image.fromarray(random.integers(0, 256, (8, 8), np.uint8))
                picture.save(folder / split / f"c{name}" / f"{number}.png")
    return {
        "name": "small",
        "data": {"kind": "image_folder", "path": str(folder), "image_size": 8},
        "batch": {"classes": 4, "samples": 2, "virtual_workers": 4},
        "loss": {"kind": "triplet"},
        "parallel": {"workers": {"min": 1, "max": 4}},
    }


@pytest.fixture
def make(client: Client, spec: dict[str, Any]) -> Make:
    """A queued job, made by the client."""
    return lambda **said: client.jobs.create(spec, **said)


def test_a_job_is_made_once_found_and_changed(client: Client, make: Make) -> None:
    team = uuid4().hex
    jobs = [make(name=f"j{n}", labels={"team": team, "n": str(n)}, priority=n) for n in range(3)]
    assert make(request=f"r-{team}").id == make(request=f"r-{team}").id
    listed = list(client.jobs.list(labels={"team": team}, page_size=1))
    assert [job.id for job in listed] == [job.id for job in reversed(jobs)]
    assert [job.name for job in client.jobs.list(labels={"team": team, "n": "1"}, state=["queued", "failed"])] == ["j1"]
    assert list(client.jobs.list(labels={"team": team}, state="running")) == []
    first = client.jobs.get(jobs[0].id)
    assert (first.name, first.state, first.facts.priority, first.facts.labels["n"]) == ("j0", "queued", 0, "0")
    changed = first.patch(labels={"n": None, "new": "x"}, priority=7, version=first.facts.version)
    assert (changed.facts.labels, changed.facts.priority) == ({"team": team, "new": "x"}, 7)
    with pytest.raises(Conflict):
        first.patch(priority=8, version=first.facts.version)
    with pytest.raises(NotFound):
        client.jobs.get("job_" + "0" * 26)


def test_a_spec_file_goes_as_it_is_and_its_mistakes_are_named_by_line(
    client: Client, spec: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / "spec.yaml"
    text = "".join(f"{name}: {json.dumps(value)}\n" for name, value in spec.items())
    path.write_text(text.replace('"triplet"', '"triplet", "margin": 0.25'))
    assert client.jobs.create(path).facts.spec["loss"]["margin"] == 0.25
    assert client.jobs.create(JobSpec.model_validate(spec)).facts.spec["batch"]["classes"] == 4
    path.write_text(text.replace('"triplet"', '"triplet", "marign": 0.25'))
    with pytest.raises(RequestRefused, match="marign") as caught:
        client.jobs.create(path)
    assert "4" in str(caught.value)  # its line
    with pytest.raises(RequestRefused, match="classes"):
        client.jobs.create({**spec, "batch": {"classes": 9}})


def test_a_plan_says_what_a_spec_would_do(client: Client, spec: dict[str, Any]) -> None:
    plan = client.jobs.plan(spec)
    assert plan["world_sizes"] == [1, 2, 3, 4] and plan["parameters"] > 0


def test_a_job_is_followed_from_the_queue_to_its_result(make: Make, work: Work, tmp_path: Path) -> None:
    job = make()
    events = job.events()
    assert next(events).data["to"] == "queued"
    attempt = work.started(job.id)
    told = [next(events) for _ in range(4)]
    assert [event.type for event in told] == ["attempt", "state", "membership", "state"]
    assert job.wait("running", timeout=60).state == "running"
    for step in (1, 2, 3):
        attempt.step(step)
    attempt.checkpoint(3)
    attempt.place.output.parent.mkdir(parents=True, exist_ok=True)
    attempt.place.output.write_bytes(b"loading\nstep 3\n")
    (attempt.place.run / "model").mkdir()
    (attempt.place.run / "model" / "weights.bin").write_bytes(bytes(range(256)) * 1000)
    attempt.end("succeeded", result={"model_sha256": "ab"})
    work.tick()
    rest = list(events)
    assert [event.seq for event in [*told, *rest]] == list(range(2, 2 + len(told) + len(rest)))
    assert [event.type for event in rest] == ["checkpoint", "state"] and rest[-1].data["to"] == "succeeded"
    assert [event.seq for event in job.events(3, follow=False)] == list(range(4, 2 + len(told) + len(rest)))
    done = job.wait()
    assert (done.state, done.result["model_sha256"], done.facts.ended) == ("succeeded", "ab", True)
    frame = job.metrics().to_pandas()
    assert frame["step"].tolist() == [1, 2, 3] and frame["loss"].tolist() == [1 / step for step in (1, 2, 3)]
    assert [metric.step for metric in job.follow_metrics(after=1)] == [2, 3]
    for follow in (True, False):
        assert [line.text for line in job.logs(follow=follow)] == ["loading", "step 3"]
    assert [checkpoint.step for checkpoint in job.checkpoints()] == [3]
    assert [change.cause for change in job.workers().changes] == ["start"]
    assert "model/weights.bin" in {artifact.path for artifact in job.artifacts(page_size=2)}
    got = job.download("model/weights.bin", tmp_path)
    assert got.read_bytes() == bytes(range(256)) * 1000
    assert job.evaluation().state == "succeeded"
    with pytest.raises(NotFound):
        job.download("model/none.bin", tmp_path)
    with pytest.raises(Conflict, match="succeeded"):
        job.cancel()


def test_a_job_is_paused_resumed_resized_and_stopped(client: Client, make: Make, work: Work) -> None:
    job = make()
    assert job.pause().state == "paused"
    assert client.jobs[job.id].resume().state == "queued"
    assert job.resize((2, 3)).facts.workers.model_dump() == {"min": 2, "max": 3}
    assert job.resize(4).facts.workers.max == 4
    attempt = work.started(job.id)
    job.cancel()
    work.tick()
    assert job.get().state == "stopping" and attempt.asked_to_stop
    attempt.end("interrupted")
    work.tick()
    assert job.wait("cancelled", timeout=60).state == "cancelled"
    assert make().kill().state == "cancelled"


def test_a_sweep_is_made_followed_stopped_and_tells_its_trials(
    client: Client, spec: dict[str, Any], work: Work
) -> None:
    searching = spec | {"tune": {"space": {"loss.margin": {"uniform": [0.05, 0.5]}}, "trials": 2}}
    team = uuid4().hex
    sweep = client.sweeps.create(searching, labels={"team": team}, request=f"s-{team}")
    assert client.sweeps.create(searching, labels={"team": team}, request=f"s-{team}").id == sweep.id
    assert (sweep.state, sweep.facts.kind) == ("queued", "sweep")
    assert [each.id for each in client.sweeps.list(labels={"team": team})] == [sweep.id]
    assert list(client.jobs.list(labels={"team": team})) == []
    assert client.sweeps.plan(searching)["study"]["trials"] == 2
    assert client.sweeps.get(sweep.id).patch(priority=4).facts.priority == 4
    assert client.sweeps[sweep.id].pause().state == "paused"
    assert sweep.resume().state == "queued"
    study = StudyRecord(study_folder(work.home, sweep.id))
    drive(new_study(study.folder, parse_spec(searching)), Synthetic(lambda trial, step: 1 - trial["loss"]["margin"]))
    attempt = work.started(sweep.id)
    attempt.end("succeeded", result={"winner": {"configuration": 0}})
    work.tick()
    assert sweep.wait("succeeded", timeout=60).result == {"winner": {"configuration": 0}}
    trials = sweep.trials()
    assert [trial.state for trial in trials] == ["trained"] * 2 and trials.best == trials.items[0].configuration
    assert [trial.verdict for trial in trials] == ["best", "too few seeds"] and trials.verdict
    assert len(trials.to_pandas()) == len(sweep.trials(most=1)) + 1 == 2
    assert [event.data["event"] for event in sweep.events() if event.type == "trial"].count("trained") == 2
    assert list(sweep.logs()) == []
    with pytest.raises(Conflict):
        sweep.kill()
    assert client.sweeps.create(searching).cancel().state == "cancelled"


def test_a_job_is_forked_from_a_checkpoint_with_changes(make: Make, work: Work) -> None:
    job = make(labels={"a": "b"})
    attempt = work.started(job.id)
    folder = attempt.place.run / "checkpoints" / "step-00000005"
    folder.mkdir(parents=True)
    (folder / "state.safetensors").write_bytes(b"state")
    digest = hashlib.sha256(b"state").hexdigest()
    write_json(folder / "checkpoint.json", {"step": 5, "state_sha256": digest, "file_sha256": digest, "parts": {}})
    child = job.fork(5, {"loss": {"margin": 0.5}}, name="child")
    assert (child.facts.parent.job, child.facts.parent.step) == (job.id, 5)
    assert (child.name, child.facts.spec["loss"]["margin"], child.facts.labels) == ("child", 0.5, {"a": "b"})
    with pytest.raises(Conflict, match="no checkpoint of step 6"):
        job.fork(6)
    job.kill()
    work.tick()


def archive(path: Path, seed: int) -> Path:
    """Three classes of two small pictures for each split, in a zip."""
    random = np.random.default_rng(seed)
    with zipfile.ZipFile(path, "w") as packed:
        for split in ("train", "validation", "test"):
            for name in ("a", "b", "c"):
                for number in range(2):
                    picture = io.BytesIO()
                    Image.fromarray(random.integers(0, 256, (8, 8), np.uint8)).save(picture, "PNG")
                    packed.writestr(f"{split}/{split}-{name}/{number}.png", picture.getvalue())
    return path


def test_a_data_set_is_uploaded_checked_used_and_removed(
    client: Client, place: Place, spec: dict[str, Any], tmp_path: Path
) -> None:
    file = archive(tmp_path / "pictures.zip", seed=1)
    sent = client.datasets.upload(file)
    ready = client.datasets.wait(sent.id)
    assert (ready.name, ready.kind, ready.report.classes, ready.report.items) == ("pictures", "archive", 9, 18)
    again = client.datasets.upload(file, resume=sent.id)
    assert (again.id, again.state) == (sent.id, "ready")
    small = {
        **spec,
        "data": {**ready.data, "image_size": 8},
        "batch": {"classes": 3, "samples": 2, "virtual_workers": 2},
    }
    job = client.jobs.create({**small, "parallel": {"workers": {"min": 1, "max": 2}}})
    with pytest.raises(Conflict):
        client.datasets.delete(sent.id)
    job.kill()
    client.datasets.delete(sent.id)
    with pytest.raises(NotFound):
        client.datasets.get(sent.id)
    rooted = client.datasets.register(spec["data"]["path"], "rooted")
    assert client.datasets.wait(rooted.id).report.classes == 12
    assert rooted.id in [one.id for one in client.datasets.list(page_size=1)]
    assert client.datasets.validate(spec["data"]).items == 48


def test_a_data_set_that_cannot_be_used_says_why(client: Client, tmp_path: Path) -> None:
    (tmp_path / "broken.zip").write_bytes(b"this is no archive")
    with pytest.raises(DataError, match="cannot be used"):
        client.datasets.wait(client.datasets.upload(tmp_path / "broken.zip").id)
    with pytest.raises(DataError, match="kind="):
        client.datasets.upload(tmp_path / "what.is")


def test_a_server_tells_its_schemas_and_what_was_done(client: Client) -> None:
    assert "job" in client.schemas.list()
    assert "properties" in client.schemas.get("job")
    assert [entry.seq for entry in client.audit.list(page_size=2)] == sorted(
        (entry.seq for entry in client.audit.list()), reverse=True
    )
