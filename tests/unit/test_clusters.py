"""The cluster files, offline: what Ray's own checks say, and what they miss; then each file broken once on purpose.

Ray's `prepare_config` and `validate_config` know the upper keys alone. They miss typos inside `node_config`, options
that `ray start` does not have, variables that Ray or the server do not read, a token on one start line only, scripts
that are no shell, files to be copied that are not there, versions that are not this one, and packages that the head
needs to start further machines.
"""

from __future__ import annotations

import copy
import ipaddress
import re
import shlex
import subprocess
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from ray._raylet import Config
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.scripts.scripts import cli as ray_command

from api.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
FILES = ("cluster.yaml", "examples/clusters/aws.yaml", "examples/clusters/gcp.yaml")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
SHARED = "/srv/raydml"
COMMANDS = (
    "initialization_commands", "setup_commands", "head_setup_commands", "worker_setup_commands",
    "head_start_ray_commands", "worker_start_ray_commands",
)  # fmt: skip

# What EC2's RunInstances and Compute Engine's instances.insert take, as far as these files lead into it.
NODE_CONFIGS: dict[str, Any] = {
    "aws": {
        "InstanceType": str,
        "ImageId": str,
        "KeyName": str,
        "SubnetIds": [str],
        "SecurityGroupIds": [str],
        "IamInstanceProfile": {"Arn": str, "Name": str},
        "BlockDeviceMappings": [
            {
                "DeviceName": str,
                "VirtualName": str,
                "NoDevice": str,
                "Ebs": {
                    "VolumeSize": int,
                    "VolumeType": str,
                    "Iops": int,
                    "Throughput": int,
                    "Encrypted": bool,
                    "KmsKeyId": str,
                    "SnapshotId": str,
                    "DeleteOnTermination": bool,
                },
            }
        ],
        "MetadataOptions": {"HttpTokens": str, "HttpEndpoint": str, "HttpPutResponseHopLimit": int},
        "InstanceMarketOptions": {"MarketType": str, "SpotOptions": {"MaxPrice": str, "SpotInstanceType": str}},
        "Placement": {"AvailabilityZone": str, "GroupName": str, "Tenancy": str},
        "EbsOptimized": bool,
    },
    "gcp": {
        "machineType": str,
        "minCpuPlatform": str,
        "labels": dict,
        "tags": {"items": [str]},
        "guestAccelerators": [{"acceleratorType": str, "acceleratorCount": int}],
        "serviceAccounts": [{"email": str, "scopes": [str]}],
        "disks": [
            {
                "boot": bool,
                "autoDelete": bool,
                "type": str,
                "initializeParams": {"diskSizeGb": int, "diskType": str, "sourceImage": str},
            }
        ],
    },
}
NEEDED_BY_HEAD = {"aws": "boto3", "gcp": "google-api-python-client"}


def read(name: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((ROOT / name).read_text())
    return found


def misfits(value: Any, shape: Any, path: str) -> Iterator[str]:
    """Where a value has keys or types that its shape has not."""
    if isinstance(shape, dict) and isinstance(value, dict):
        for key, inner in value.items():
            if key in shape:
                yield from misfits(inner, shape[key], f"{path}.{key}")
            else:
                yield f"{path}.{key} is unknown"
    elif isinstance(shape, list) and isinstance(value, list):
        for number, inner in enumerate(value):
            yield from misfits(inner, shape[0], f"{path}[{number}]")
    elif not isinstance(shape, type) or type(value) is not shape:
        yield f"{path} is {value!r}"


def variables(line: str) -> dict[str, str]:
    """Those that a line sets for what it starts."""
    return dict(re.findall(r"\b(RAY\w*)=(\S+?)(?=[;\s]|$)", line))


def start_options(line: str) -> dict[str, Any]:
    """What `ray start` makes of its options. Raises click.ClickException where it has no such option."""
    words = shlex.split(re.split("&&|;", line[line.index("ray start") :])[0])[2:]
    command = ray_command.commands["start"]
    with click.Context(command) as context:
        options, rest, _ = command.make_parser(context).parse_args(words)
    assert not rest, rest
    return options


def problems(document: dict[str, Any]) -> Iterator[str]:
    """Everything that is wrong with a cluster file."""
    try:
        validate_config(prepare_config(copy.deepcopy(document)))
    except (Exception, SystemExit) as error:
        yield f"Ray: {error!r}"
        return
    yield from of_machines(document)
    yield from of_commands(document)
    yield from of_start_lines(document)
    yield from of_server(document)
    yield from of_versions(document)


def of_machines(document: dict[str, Any]) -> Iterator[str]:
    provider = document["provider"]
    if provider["type"] == "local":
        hosts = [provider["head_ip"], *provider["worker_ips"]]
        if len({ipaddress.ip_address(host) for host in hosts}) < len(hosts):
            yield f"a host is named twice: {hosts}"
    for name, node in document.get("available_node_types", {}).items():
        yield from misfits(node["node_config"], NODE_CONFIGS[provider["type"]], f"{name}.node_config")
    head = document.get("available_node_types", {}).get(document.get("head_node_type"))
    if head is not None and head["resources"] != {"CPU": 0, "GPU": 0}:
        yield f"the head offers {head['resources']} for training"
    if head is not None and sum(node.get("min_workers", 0) for node in document["available_node_types"].values()) == 0:
        yield "no machine is started for workers"


def of_commands(document: dict[str, Any]) -> Iterator[str]:
    for kind in COMMANDS:
        for line in document.get(kind, []):
            if subprocess.run(["bash", "-n", "-c", line], capture_output=True).returncode != 0:
                yield f"{kind}: no shell command: {line}"
            if "RAY_HEAD_IP" in line and not kind.startswith("worker"):
                yield f"{kind}: the head is not told its own address"
    needed = NEEDED_BY_HEAD.get(document["provider"]["type"], "")
    if not any(needed in line for line in document["head_setup_commands"]):
        yield f"the head cannot start machines without {needed}"


def of_start_lines(document: dict[str, Any]) -> Iterator[str]:
    lines = {role: [line for line in document[f"{role}_start_ray_commands"] if "ray start" in line] for role in
             ("head", "worker")}  # fmt: skip
    for role, (line, *more) in lines.items():
        if more:
            yield f"{role}: starts Ray twice"
        told = variables(line)
        if told.get("RAY_AUTH_MODE") != "token" or told.get("RAY_AUTH_TOKEN_PATH") not in document["file_mounts"]:
            yield f"{role}: asks for no token, or for one that is not copied there"
        for name in told:
            known = name.startswith("RAY_AUTH_") or hasattr(Config, name.removeprefix("RAY_"))
            if not known:
                yield f"{role}: Ray reads no {name}"
        try:
            options = start_options(line)
        except click.ClickException as error:
            yield f"{role}: {error.format_message()}"
            continue
        if role == "head":
            yield from of_head(options, told, document["provider"]["type"])
        elif "for attempt in" not in line:
            yield "worker: a host that starts slowly is given up for good"
        elif options.get("address") != "$RAY_HEAD_IP:6379":
            yield f"worker: joins {options.get('address')}"


def of_head(options: dict[str, Any], told: dict[str, str], provider: str) -> Iterator[str]:
    if options.get("dashboard_host") != "127.0.0.1":
        yield f"head: the dashboard listens on {options.get('dashboard_host')}"
    if (options.get("num_cpus"), options.get("num_gpus")) != ("0", "0"):
        yield "head: offers resources for training"
    if options.get("autoscaling_config") != "~/ray_bootstrap_config.yaml" or options.get("port") != "6379":
        yield "head: nobody starts the workers"
    if provider == "local" and told.get("RAY_enable_autoscaler_v2") != "0":
        yield "head: autoscaler v2 counts the head as one of the hosts of provider local"
    seconds = [int(told.get(f"RAY_health_check_{name}_ms", 60_000)) / 1000 for name in ("period", "timeout")]
    silence = sum(seconds) * int(told.get("RAY_health_check_failure_threshold", 5))
    if not 15 <= silence <= 30:
        yield f"head: a host that is silent for {silence} s is given up"


def of_server(document: dict[str, Any]) -> Iterator[str]:
    served = [line for line in document["head_start_ray_commands"] if "raydml serve" in line]
    if len(served) != 1:
        yield "the API is not started on the head"
        return
    told = variables(served[0])
    for name in told:
        if name.startswith("RAYDML_") and name.removeprefix("RAYDML_").lower() not in Settings.model_fields:
            yield f"the server reads no {name}"
    if told.get("RAYDML_HOME") != SHARED or told.get("RAYDML_HOST") != "127.0.0.1":
        yield "the server keeps its folder elsewhere, or listens to other machines"
    if told.get("RAY_ADDRESS") != "http://127.0.0.1:8265" or told.get("RAY_AUTH_MODE") != "token":
        yield "the server does not find the cluster, or has no token for it"
    if not all(any(SHARED in line for line in document[f"{role}_setup_commands"]) for role in ("head", "worker")):
        yield f"nobody sees to it that {SHARED} is there"


def of_versions(document: dict[str, Any]) -> Iterator[str]:
    wheel = f"raydml-{PROJECT['version']}-py3-none-any.whl"
    mounts = document["file_mounts"]
    if mounts.get(f"~/raydml/{wheel}") != f"dist/{wheel}":
        yield f"{wheel} is not copied to the hosts"
    if not (ROOT / mounts.get("~/raydml/constraints.txt", "missing")).is_file():
        yield "constraints.txt is not copied to the hosts"
    if not any(f"-c ~/raydml/constraints.txt ~/raydml/{wheel}" in line for line in document["setup_commands"]):
        yield f"{wheel} is not what is installed"


@pytest.mark.parametrize("name", FILES)
def test_nothing_is_wrong_with_a_cluster_file(name: str) -> None:
    assert list(problems(read(name))) == []


def replaced(key: str, old: str, new: str) -> Callable[[dict[str, Any]], None]:
    def change(document: dict[str, Any]) -> None:
        before = yaml.safe_dump(document[key], width=10_000)
        assert old in before, (key, old)
        document[key] = yaml.safe_load(before.replace(old, new))

    return change


HEAD_LINES, WORKER_LINES = "head_start_ray_commands", "worker_start_ray_commands"
BREAKS: dict[str, tuple[str, Callable[[dict[str, Any]], None], str]] = {
    "an upper key": ("aws", lambda document: document.update(max_wrokers=3), "Ray:"),
    "a host twice": ("local", replaced("provider", "192.168.1.12", "192.168.1.11"), "named twice"),
    "an address": ("local", replaced("worker_start_ray_commands", "$RAY_HEAD_IP", "$HEAD_IP"), "joins"),
    "a key of a node": ("aws", replaced("available_node_types", "InstanceType", "InstanceTyp"), "InstanceTyp is"),
    "a deep key of a node": ("aws", replaced("available_node_types", "VolumeSize", "Volumesize"), "Volumesize is"),
    "a type in a node": ("gcp", replaced("available_node_types", "diskSizeGb: 500", "diskSizeGb: big"), "'big'"),
    "a head that trains": ("gcp", replaced("available_node_types", "CPU: 0", "CPU: 4"), "for training"),
    "CPUs of the head": ("local", replaced(HEAD_LINES, "--num-cpus=0", "--num-cpus=4"), "offers resources"),
    "one try": ("gcp", replaced(WORKER_LINES, "for attempt in", "for atempt in"), "given up for good"),
    "no token of workers": ("local", replaced(WORKER_LINES, "RAY_AUTH_MODE=token", ""), "worker: asks for no token"),
    "no token of the head": ("aws", replaced(HEAD_LINES, "RAY_AUTH_MODE=token", ""), "head: asks for no token"),
    "another token": ("aws", replaced(WORKER_LINES, "/auth_token", "/token"), "worker: asks for no token"),
    "an option of Ray": ("gcp", replaced(WORKER_LINES, "--disable-usage", "--disable-use"), "No such option"),
    "a variable of Ray": ("local", replaced(HEAD_LINES, "check_period_ms", "check_periods_ms"), "Ray reads no"),
    "an open dashboard": ("aws", replaced(HEAD_LINES, "dashboard-host=127.0.0.1", "dashboard-host=0"), "listens"),
    "autoscaler v2": ("local", replaced(HEAD_LINES, "RAY_enable_autoscaler_v2=0", ""), "counts the head"),
    "slow health checks": ("gcp", replaced(HEAD_LINES, "RAY_health_check_timeout_ms=5000", ""), "is given up"),
    "hasty health checks": ("aws", replaced(HEAD_LINES, "timeout_ms=5000", "timeout_ms=1000"), "is given up"),
    "a shell's quote": ("local", replaced(HEAD_LINES, "until curl", "'until curl"), "no shell command"),
    "no API": ("aws", replaced(HEAD_LINES, "raydml serve", "raydml doctor"), "the API is not started"),
    "an open API": ("local", replaced(HEAD_LINES, "RAYDML_HOST=127.0.0.1", "RAYDML_HOST=0.0.0.0"), "other machines"),
    "a setting": ("gcp", replaced(HEAD_LINES, "RAYDML_PORT", "RAYDML_PROT"), "reads no RAYDML_PROT"),
    "no shared folder": ("aws", replaced("worker_setup_commands", "/srv/raydml", "/srv/other"), "sees to it"),
    "another version": ("local", replaced("setup_commands", "raydml-0.1.0", "raydml-0.0.9"), "not what is installed"),
    "no constraints": ("gcp", replaced("file_mounts", ": constraints.txt", ": constraint.txt"), "is not copied"),
    "no boto3": ("aws", replaced("head_setup_commands", "boto3", "boto"), "without boto3"),
}  # fmt: skip


@pytest.mark.parametrize("case", BREAKS)
def test_a_file_that_is_broken_in_one_place_is_refused_for_that(case: str) -> None:
    provider, change, words = BREAKS[case]
    document = read({"local": FILES[0], "aws": FILES[1], "gcp": FILES[2]}[provider])
    change(document)
    found = list(problems(document))
    assert any(words in each for each in found), found
