"""Attempts as jobs of Ray, over its REST interface: on a Ray of the server's own, or on a cluster.

Ray's SDK would wait for ever on a head that hangs; these requests do not. Ray runs shell commands by design: the only
one that is ever submitted is ours, whose arguments are a job's id, a number and the server's folder.
"""

from __future__ import annotations

import os
import shlex
import sys
import time
from pathlib import Path
from typing import Any

import httpx2

from raydml.errors import ResourceError, SpecError
from raydml.jobs.launcher import Launch, Process, Sight, Unreachable
from raydml.jobs.local_ray import LocalRay

PATIENCE = 30.0  # seconds for an answer
STOP_SECONDS = 10  # between the signal to terminate and the one to kill
_ALIVE = ("PENDING", "RUNNING")
_CPUS_LAST = 10.0  # seconds for which a count of the cluster's CPUs is good


class LocalJobs:
    """Attempts on this machine: Ray starts with the first one, and anew where part of it died."""

    def __init__(self, ray: LocalRay) -> None:
        self._ray = ray
        self._client: tuple[str, httpx2.Client] | None = None

    def look(self) -> Sight:
        """What there is."""
        return Sight(_processes(self._http()), float(self._ray.cpus))

    def submit(self, launch: Launch) -> None:
        """Start one; a process of an earlier attempt that Ray lost sight of is ended first."""
        if launch.submission_id not in _processes(self._http()):
            self._ray.end_process(launch.job)
            _submit(self._http(), launch, self._ray.home, sys.executable)

    def end(self, submission_id: str) -> None:
        """End one."""
        _stop(self._http(), submission_id)

    def mend(self) -> None:
        """Start Ray where it is not whole."""
        try:
            self._ray.ensure()
        except ResourceError as error:
            raise Unreachable(str(error)) from error

    def close(self) -> None:
        """Give back connections; Ray goes on."""
        if self._client is not None:
            self._client[1].close()

    def _http(self) -> httpx2.Client:
        url = self._ray.url()
        if url is None:
            raise Unreachable("Ray is not running")
        if self._client is None or self._client[0] != url:
            self.close()
            self._client = url, _client(url, self._ray.token)
        return self._client[1]


class ClusterJobs:
    """Attempts on a cluster whose nodes all have the server's folder; drivers run on the head and hold no resources.

    Collections and locks have to lie on a disk of the machine that uses them: so the server runs on the head, too.
    """

    def __init__(self, url: str, home: Path, token: str | None = None) -> None:
        if not url.startswith(("http://", "https://")):
            raise SpecError(f"RAY_ADDRESS is {url}: give the URL of the cluster's dashboard, http://HEAD:8265")
        self._home, self._client = home, _client(url, token)
        self._cpus, self._counted = 0.0, -_CPUS_LAST

    def look(self) -> Sight:
        """What there is."""
        if time.monotonic() >= self._counted + _CPUS_LAST:
            nodes = _ask(self._client, "GET", "/api/v0/nodes", params={"detail": 1, "limit": 10_000})
            alive = [each for each in nodes["data"]["result"]["result"] if each["state"] == "ALIVE"]
            self._cpus = sum(each["resources_total"].get("CPU", 0.0) for each in alive)
            self._counted = time.monotonic()
        return Sight(_processes(self._client), self._cpus)

    def submit(self, launch: Launch) -> None:
        """Start one."""
        _submit(self._client, launch, self._home, "python")

    def end(self, submission_id: str) -> None:
        """End one."""
        _stop(self._client, submission_id)

    def mend(self) -> None:
        """Nothing: who keeps the cluster mends it."""

    def close(self) -> None:
        """Give back connections."""
        self._client.close()


def cluster_token() -> str | None:
    """Of a cluster that asks for one, where Ray itself looks for it."""
    if token := os.environ.get("RAY_AUTH_TOKEN"):
        return token
    path = os.environ.get("RAY_AUTH_TOKEN_PATH")
    if path is None and os.environ.get("RAY_AUTH_MODE") == "token":
        path = "~/.ray/auth_token"
    return Path(path).expanduser().read_text().strip() if path else None


def _client(url: str, token: str | None) -> httpx2.Client:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    return httpx2.Client(base_url=url, headers=headers, timeout=PATIENCE, trust_env=False)


def _ask(client: httpx2.Client, method: str, path: str, **more: Any) -> Any:
    """The answer's JSON. Raises Unreachable for every other answer than a good one."""
    try:
        answer = client.request(method, path, **more)
    except httpx2.HTTPError as error:
        raise Unreachable(f"{method} {client.base_url}{path}: {error or type(error).__name__}") from error
    if answer.status_code != 200:
        raise Unreachable(f"{method} {client.base_url}{path}: {answer.status_code} {answer.text[-500:]}")
    return answer.json()


def _processes(client: httpx2.Client) -> dict[str, Process]:
    jobs = _ask(client, "GET", "/api/jobs/")
    return {
        each["submission_id"]: "alive" if each["status"] in _ALIVE else "gone"
        for each in jobs
        if each.get("submission_id")
    }


def _submit(client: httpx2.Client, launch: Launch, home: Path, python: str) -> None:
    """Without resources for its entrypoint Ray starts a job on the head."""
    command = [python, "-m", "raydml.jobs.attempt", "--job", launch.job]
    command += ["--attempt", str(launch.attempt), "--home", str(home)]
    body = {
        "entrypoint": shlex.join(command),
        "submission_id": launch.submission_id,
        "runtime_env": {"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_SECONDS)}},
    }
    try:
        _ask(client, "POST", "/api/jobs/", json=body)
    except Unreachable:
        if launch.submission_id not in _processes(client):  # refused as a second one: that is well
            raise


def _stop(client: httpx2.Client, submission_id: str) -> None:
    if _processes(client).get(submission_id) == "alive":
        _ask(client, "POST", f"/api/jobs/{submission_id}/stop")
