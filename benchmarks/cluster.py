"""A real `ray up` of cluster.yaml over hosts made of namespaces, a job through REST on them, seconds per event.

    python benchmarks/cluster.py --env ENV --lab FOLDER     # as root; ENV: a virtual environment with raydml's wheel

Each host has its own network, process, mount and host-name namespaces, its own sshd, home and shared memory; the
folder /srv/raydml is one for all, as NFS would have it. Debian packages: openssh-server, rsync, iproute2, curl.
Of cluster.yaml the addresses, the user, his key and one time limit are replaced; dist/ holds the wheel (`make wheel`).
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

import raydml

REPOSITORY = Path(__file__).resolve().parents[1]
HEAD, WORKERS, CLIENT = "rd-head", ("rd-one", "rd-two"), "rd-client"
ADDRESSES = {HEAD: "10.77.0.10", WORKERS[0]: "10.77.0.11", WORKERS[1]: "10.77.0.12", CLIENT: "10.77.0.9"}
SWITCH = "rd-switch"
CLONE_NEWNET = 0x40000000
ENDLESS = 1_000_000  # steps
HOME = Path.home()
SSHD = """Port 22
ListenAddress {address}
HostKey {lab}/hostkey
PermitRootLogin yes
PasswordAuthentication no
UsePAM no
StrictModes no
PidFile none
AuthorizedKeysFile {home}/.ssh/authorized_keys
MaxSessions 100
MaxStartups 100
"""


def run(*command: str, check: bool = True) -> str:
    """What a command prints."""
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if check and done.returncode != 0:
        raise SystemExit(f"{' '.join(command)}: {done.stderr or done.stdout}")
    return done.stdout


class Hosts:
    """Machines on one switch, made of namespaces; processes of each by its network namespace."""

    def __init__(self, lab: Path, environment: Path) -> None:
        self.lab, self.environment = lab, environment
        (lab / "shared").mkdir(parents=True, exist_ok=True)
        for name in ("key", "hostkey"):
            if not (lab / name).exists():
                run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(lab / name))

    def wire(self) -> None:
        """The switch, and a cable from it to every host."""
        run("ip", "netns", "add", SWITCH)
        run("ip", "-n", SWITCH, "link", "add", "br0", "type", "bridge")
        run("ip", "-n", SWITCH, "link", "set", "br0", "up")
        for name, address in ADDRESSES.items():
            run("ip", "netns", "add", name)
            run("ip", "link", "add", f"v-{name}", "type", "veth", "peer", "name", "eth0", "netns", name)
            run("ip", "link", "set", f"v-{name}", "netns", SWITCH)
            run("ip", "-n", SWITCH, "link", "set", f"v-{name}", "master", "br0", "up")
            run("ip", "-n", name, "link", "set", "lo", "up")
            run("ip", "-n", name, "addr", "add", f"{address}/24", "dev", "eth0")
            run("ip", "-n", name, "link", "set", "eth0", "up")
            run("ip", "-n", name, "route", "add", "default", "dev", "eth0")

    def inside(self, name: str, command: str, log: Path) -> subprocess.Popen[bytes]:
        """A command as the first process of the host `name`, in a home of its own."""
        home = self.lab / name / "home"
        for folder in (".ssh", ".ray", "raydml/env", ".pyenv"):
            (home / folder).mkdir(parents=True, exist_ok=True)
        (self.lab / name / "ray").mkdir(exist_ok=True)
        (home / ".ssh" / "authorized_keys").write_text((self.lab / "key.pub").read_text())
        mounts = [
            f"hostname {name}",
            "mount -t tmpfs -o size=2g tmpfs /dev/shm",
            "mkdir -p /tmp/ray /run/sshd",
            f"mount --bind {self.lab / name / 'ray'} /tmp/ray",
            "mount -t tmpfs tmpfs /srv && mkdir /srv/raydml",
            f"mount --bind {self.lab / 'shared'} /srv/raydml",
            f"mount --bind {self.environment} {home}/raydml/env",
            f"if [ -d {HOME}/.pyenv ]; then mount --bind {HOME}/.pyenv {home}/.pyenv; fi",
            f"mount --rbind {home} {HOME}",
        ]
        script = " && ".join(mounts) + f" && export HOME={HOME} && cd {REPOSITORY} && exec {command}"
        unshare = ["unshare", "--mount", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc"]
        words = ["ip", "netns", "exec", name, *unshare, "--propagation", "private", "bash", "-c", script]
        with log.open("ab") as output:
            return subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=output, stderr=output)

    def start(self, name: str) -> None:
        """Power on: an sshd."""
        settings = self.lab / f"{name}.sshd"
        settings.write_text(SSHD.format(address=ADDRESSES[name], lab=self.lab, home=HOME))
        self.inside(name, f"/usr/sbin/sshd -D -e -f {settings}", self.lab / f"{name}.log")

    def kill(self, name: str) -> None:
        """Power cut: every process of the host at once."""
        for pid in set(run("ip", "netns", "pids", name).split()) - {str(os.getpid())}:
            try:
                os.kill(int(pid), signal.SIGKILL)
            except ProcessLookupError:
                continue

    def kill_worker(self, name: str) -> None:
        """The process that trains on this host, at once."""
        trains = (b"ray::ExtraProcess", b"ray::RayTrainWorker")
        for pid in map(int, run("ip", "netns", "pids", name).split()):
            if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(trains):
                return os.kill(pid, signal.SIGKILL)
        raise SystemExit(f"no process trains on {name}")

    def cable(self, name: str, state: str) -> None:
        """`down`: packets vanish at the switch, nobody is told."""
        run("ip", "-n", SWITCH, "link", "set", f"v-{name}", state)

    def remove(self) -> None:
        """Everything."""
        for name in ADDRESSES:
            if Path("/run/netns", name).exists():
                self.kill(name)
        for name in (*ADDRESSES, SWITCH):
            run("ip", "netns", "del", name, check=False)


def adapted(lab: Path) -> Path:
    """cluster.yaml with the addresses, the user and the key of these hosts."""
    document = yaml.safe_load((REPOSITORY / "cluster.yaml").read_text())
    document["provider"] |= {"head_ip": ADDRESSES[HEAD], "worker_ips": [ADDRESSES[name] for name in WORKERS]}
    document["auth"] = {"ssh_user": "root", "ssh_private_key": str(lab / "key")}
    lines = document["head_start_ray_commands"]
    lines[-1] = f"export RAYDML_CHECK_SECONDS=600; {lines[-1]}"  # four machines on one: looking at data takes its time
    path = lab / "cluster.yaml"
    path.write_text(yaml.safe_dump(document, sort_keys=False))
    return path


def join_network(name: str) -> None:
    """This process, and what it starts, on the host's network from now on; it still sees every process."""
    handle = os.open(f"/run/netns/{name}", os.O_RDONLY)
    if ctypes.CDLL(None, use_errno=True).setns(handle, CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), f"setns {name}")
    os.close(handle)


def until(what: str, there: Callable[[], Any], patience: float = 600) -> Any:
    """Wait for something true; SystemExit says what did not come."""
    end = time.monotonic() + patience
    while time.monotonic() < end:
        if found := there():
            return found
        time.sleep(0.1)
    raise SystemExit(f"{what}: not within {patience:.0f} s")


class Story:
    """Events and the seconds that they took, one JSON line each."""

    def __init__(self) -> None:
        self.began = time.monotonic()

    def tell(self, event: str, since: float, **more: Any) -> float:
        """Print one; returns the moment, for the next."""
        now = time.monotonic()
        print(json.dumps({"event": event, "seconds": round(now - since, 1)} | more), flush=True)
        return now


def spec(steps: int) -> dict[str, Any]:
    """A job of one or two workers, one a host."""
    cpus = os.cpu_count() or 1
    return {
        "name": "glyphs",
        "seed": 7,
        "data": {"kind": "glyphs"},
        "batch": {"classes": 16, "samples": 4, "virtual_workers": 8},
        "model": {"backbone": {"kind": "mlp", "hidden": [256]}, "dimension": 64},
        "loss": {"kind": "multi_similarity"},
        "parallel": {"workers": {"min": 1, "max": 2, "cpus": cpus}},
        "train": {"steps": steps, "checkpoint_every": 500, "evaluate_every": 10_000},
        "index": {"collection": "glyphs"},
    }


def changes(job: Any, *causes: str) -> list[Any]:
    """Of the group of a job's workers, by these causes."""
    return [each for each in job.workers().changes if each.cause in causes]


def next_change(story: Story, job: Any, what: str, since: float, known: int, *causes: str) -> float:
    """Wait until there are more than were known, and tell of the newest."""
    until(what, lambda: len(changes(job, *causes)) > known, patience=1200)
    return story.tell(what, since, change=changes(job, *causes)[-1].model_dump(mode="json"))


def disturb(hosts: Hosts, story: Story, job: Any) -> None:
    """Kill a worker; take a host's power and give it back, pull the other's cable and put it back."""

    def step() -> int:
        return int((job.get().progress or {}).get("step", 0))

    def counts() -> tuple[int, int]:
        return len(changes(job, "death", "lost")), len(changes(job, "join"))

    until("two workers", lambda: job.workers().now == 2)
    start, mark = step(), time.monotonic()
    until("300 steps", lambda: step() >= start + 300)
    story.tell("300 steps of two workers", mark)
    lost, joined = counts()
    mark = time.monotonic()
    hosts.kill_worker(WORKERS[1])
    mark = next_change(story, job, "a worker killed: the other goes on", mark, lost, "death", "lost")
    next_change(story, job, "a worker in its place", mark, joined, "join")
    until("two workers", lambda: job.workers().now == 2)
    lost, joined = counts()
    mark = time.monotonic()
    hosts.kill(WORKERS[1])
    mark = next_change(story, job, "power of a host cut: the others go on", mark, lost, "death", "lost")
    hosts.start(WORKERS[1])
    next_change(story, job, "power back: Ray is started there, a worker joins", mark, joined, "join")
    until("two workers", lambda: job.workers().now == 2)
    start = step()
    until("50 steps", lambda: step() >= start + 50)  # that both have the state
    lost, joined = counts()
    hosts.cable(WORKERS[0], "down")
    mark = next_change(story, job, "cable pulled: the others go on", time.monotonic(), lost, "death", "lost")
    hosts.cable(WORKERS[0], "up")
    next_change(story, job, "cable back: a worker joins", mark, joined, "join")


def cut_short(story: Story, job: Any, steps: int) -> Any:
    """Stop it; a job that goes on from its checkpoint takes so many steps more."""
    mark = time.monotonic()
    job.cancel()
    step = int(job.wait("cancelled", timeout=1200).progress["step"])
    mark = story.tell("job cancelled, with a checkpoint", mark, step=step)
    new = job.fork(changes={"train": {"steps": step + steps}})
    story.tell("job forked from there", mark, job=new.id)
    return new


def job_through_rest(hosts: Hosts, story: Story, steps: int, disturbed: bool) -> None:
    """Submit, watch, disturb, search what was trained."""
    with raydml.Client("http://127.0.0.1:8080") as client:
        mark = time.monotonic()
        job = client.jobs.create(spec(ENDLESS if disturbed else steps))
        mark = story.tell("job accepted", mark, job=job.id)

        next_change(story, client.jobs[job.id], "first group of workers", mark, 0, "start")
        if disturbed:
            disturb(hosts, story, client.jobs[job.id])
            job = cut_short(story, client.jobs[job.id], steps)
        mark = time.monotonic()
        ended = client.jobs[job.id].wait("succeeded", timeout=1200)
        mark = story.tell("job succeeded", mark, metrics=(ended.result or {}).get("metrics"))
        faces = client.collections["glyphs"]
        first = next(iter(faces.scroll(page_size=1)))
        hits = faces.recommend([first.id], k=3)
        story.tell("search in what it indexed", mark, points=faces.count(), hits=[hit.id for hit in hits])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--env", type=Path, required=True, help="a virtual environment with raydml's wheel")
    parser.add_argument("--lab", type=Path, required=True, help="an empty folder with a short path")
    parser.add_argument("--steps", type=int, default=300, help="after everything that happened")
    parser.add_argument("--undisturbed", action="store_true", help="no host loses its power, and none its cable")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("told to stop"))
    hosts, story = Hosts(given.lab.absolute(), given.env.absolute()), Story()
    try:
        hosts.wire()
        token = hosts.lab / CLIENT / "home" / ".ray" / "auth_token"
        token.parent.mkdir(parents=True, exist_ok=True)
        token.write_text(os.urandom(32).hex())
        for name in (HEAD, *WORKERS):
            hosts.start(name)
        file, mark = adapted(hosts.lab), time.monotonic()
        up = hosts.inside(CLIENT, f"{given.env.absolute()}/bin/ray up -y {file}", hosts.lab / "up.log")
        if up.wait() != 0:
            raise SystemExit(f"ray up failed: see {hosts.lab / 'up.log'}")
        mark = story.tell("ray up: head and API", mark)
        join_network(CLIENT)
        tunnel = ["ssh", "-q", "-i", str(hosts.lab / "key"), "-o", "StrictHostKeyChecking=no"]
        tunnel += ["-o", "UserKnownHostsFile=/dev/null", "-NL", "8080:127.0.0.1:8080", f"root@{ADDRESSES[HEAD]}"]
        with subprocess.Popen(tunnel) as forwarding:
            try:
                time.sleep(2)
                job_through_rest(hosts, story, given.steps, not given.undisturbed)
            finally:
                forwarding.terminate()
        story.tell("all of it", story.began)
    finally:
        hosts.remove()


if __name__ == "__main__":
    sys.exit(main())
