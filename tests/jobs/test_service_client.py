"""The whole service through the client, with a real Ray: of a real server, and of a folder without one."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from raydml import Client
from raydml.files import sha256_file
from raydml.jobs.local_ray import LocalRay
from tests.jobs.house import House, tiny_spec

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(1800)]
PATIENCE = 1500


@pytest.fixture(params=["server", "folder"])
def place(request: pytest.FixtureRequest) -> Iterator[tuple[Client, Path]]:
    """A client, and the folder of its server, or of its own: with a short path, as Ray's sockets are named after it."""
    with tempfile.TemporaryDirectory(prefix="raydml-client-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        home = Path(folder)
        if request.param == "server":
            with House(home) as house, Client(house.url) as client:
                yield client, home
            return
        with Client(local=home) as client:
            yield client, home
        assert LocalRay(home, 1).url() is None, "a Ray outlived the client that started it"


def test_a_spec_becomes_a_collection_that_is_searched_by_image(place: tuple[Client, Path], tmp_path: Path) -> None:
    client, home = place
    job = client.jobs.create(tiny_spec(home, "glyphs", index={"collection": "tiny", "split": "all"}))
    events = list(job.events())
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    states = [event.data["to"] for event in events if event.type == "state"]
    assert states == ["queued", "starting", "running", "succeeded"]
    done = job.wait("succeeded", timeout=PATIENCE)
    assert done.result is not None and done.progress is not None and done.progress["step"] == 120
    frame = job.metrics().to_pandas()
    assert sorted(set(frame["step"][frame["loss"].notna()])) == list(range(1, 121))
    output = home / "runs" / job.id / "attempts" / "00001" / "output.log"
    assert [line.text for line in job.logs()] == output.read_text().splitlines()
    weights = job.download("model/model.safetensors", tmp_path)
    assert sha256_file(weights) == job.evaluation().model_sha256 == done.result["model_sha256"]
    assert job.evaluation().metrics == done.result["metrics"]
    tiny = client.collections["tiny"]
    assert tiny.count() == 160
    pictures = np.load(home / "data" / "tiny.npz")["inputs"]
    for item in (0, 80):
        file = io.BytesIO()
        Image.fromarray(pictures[item]).save(file, "PNG")
        ((hit,),) = tiny.search(images=[file.getvalue()], k=1)
        assert hit.score == pytest.approx(1, abs=1e-5), "the picture itself was indexed"
