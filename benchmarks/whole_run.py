"""A whole `raydml.train` on a local Ray: its start-up by part, and what Ray's own processes take while it trains."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from raydml.run import train
from raydml.spec import JobSpec
from raydml.training.fleet.placement import cluster
from raydml.training.record import read_lines

SAMPLE_SECONDS = 0.5
TRAINING = ("RayTrainWorker", "ExtraProcess")  # in the titles of the processes that train
Sample = dict[int, tuple[str, float]]  # process -> title, CPU seconds so far


@dataclass(frozen=True)
class WholeRun:
    """Start-up in seconds, import being a fresh interpreter's; shares in percent of the CPU time of all processes of
    the run from its first step to its last; images per worker CPU-second with what Ray does inside of the workers."""

    import_seconds: float
    ray_init_seconds: float
    prepare_seconds: float
    fit_to_first_step_seconds: float
    training_seconds: float
    finish_seconds: float
    workers_cpu_percent: float
    ray_cpu_percent: float
    driver_cpu_percent: float
    waiting_for_data_percent: float
    between_steps_percent: float
    images_per_worker_cpu_second: float
    images_per_second: float


class Sampler(threading.Thread):
    """CPU time of this process and of all below it, twice a second."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._ended = threading.Event()
        self.samples: list[tuple[float, Sample]] = []

    def run(self) -> None:
        """Until `end`."""
        while not self._ended.wait(SAMPLE_SECONDS):
            self.samples.append((time.time(), sample(os.getpid())))

    def end(self) -> None:
        """Stop sampling."""
        self._ended.set()
        self.join()

    def between(self, start: float, end: float) -> tuple[dict[str, float], float]:
        """CPU seconds by kind within the samples nearest to these times, and the seconds between those samples."""
        (begun, first), (ended, last) = (min(self.samples, key=lambda item: abs(item[0] - at)) for at in (start, end))
        kinds = {"workers": 0.0, "driver": 0.0, "ray": 0.0}
        for pid, (title, spent) in last.items():
            kind = "workers" if any(name in title for name in TRAINING) else "driver" if pid == os.getpid() else "ray"
            kinds[kind] += spent - first.get(pid, ("", 0.0))[1]
        return kinds, ended - begun


def sample(root: int) -> Sample:
    """Title and CPU time of a process and of all below it, from /proc."""
    parents: dict[int, int] = {}
    found: Sample = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()  # from the third field of proc(5) on
            title = (folder / "cmdline").read_text().replace("\0", " ")
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended in the meantime
        pid = int(folder.name)
        parents[pid] = int(fields[1])
        found[pid] = title, (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def below(pid: int) -> bool:
        return pid == root or (pid in parents and below(parents[pid]))

    return {pid: entry for pid, entry in found.items() if below(pid)}


def whole_run(spec: JobSpec, home: Path) -> WholeRun:
    """Train once on a Ray that is started here."""
    at = [time.time()]
    subprocess.run([sys.executable, "-c", "import raydml.run, raydml.training.driver"], check=True)
    at.append(time.time())
    sampler = Sampler()
    sampler.start()
    with cluster(spec, None):
        at.append(time.time())
        run = train(spec, home=home)
        at.append(time.time())
    sampler.end()
    steps = read_lines(run.folder / "metrics.jsonl")[0]
    first, last = steps[0]["time"], steps[-1]["time"]
    spent, seconds = sampler.between(first, last)
    inside = sum(step["step_seconds"] for step in steps[1:])
    total = sum(spent.values())
    images_per_second = (len(steps) - 1) * spec.batch.size / (last - first)
    return WholeRun(
        import_seconds=at[1] - at[0],
        ray_init_seconds=at[2] - at[1],
        prepare_seconds=run.facts["started"] - at[2],
        fit_to_first_step_seconds=first - run.facts["started"],
        training_seconds=last - first,
        finish_seconds=at[3] - last,
        workers_cpu_percent=100 * spent["workers"] / total,
        ray_cpu_percent=100 * spent["ray"] / total,
        driver_cpu_percent=100 * spent["driver"] / total,
        waiting_for_data_percent=100 * sum(step["data_seconds"] for step in steps[1:]) / inside,
        between_steps_percent=100 * (1 - inside / (last - first)),
        images_per_worker_cpu_second=images_per_second * seconds / spent["workers"],
        images_per_second=images_per_second,
    )
