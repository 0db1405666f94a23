"""Which network interface leads to an address, against a look at what the system's own tool says."""

from __future__ import annotations

import json
import os
import shutil
import subprocess

import pytest

from raydml.training.interfaces import VARIABLE, interface_towards, meet_by


def test_loopback_leads_to_loopback() -> None:
    assert interface_towards("127.0.0.1") == "lo"


@pytest.mark.skipif(shutil.which("ip") is None, reason="needs ip")
def test_an_address_elsewhere_is_reached_by_the_interface_of_its_route() -> None:
    asked = subprocess.run(["ip", "-json", "route", "get", "192.0.2.1"], capture_output=True, text=True)
    wanted = json.loads(asked.stdout)[0]["dev"] if asked.returncode == 0 else None
    assert interface_towards("192.0.2.1") == wanted


def test_an_interface_that_somebody_named_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "somebody0")
    meet_by("127.0.0.1")
    assert os.environ[VARIABLE] == "somebody0"


def test_gloo_is_told_where_to_listen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "")  # so that what is set here goes away again
    monkeypatch.delenv(VARIABLE)
    meet_by("127.0.0.1")
    assert os.environ[VARIABLE] == "lo"


def test_an_address_that_nothing_leads_to_names_no_interface() -> None:
    assert interface_towards("no.such.address.invalid") is None
