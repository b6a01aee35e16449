"""A device's home without a mount, a maker and an owner, and a network namespace with nftables of its own."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from tidegate.agent.home import DeviceHome
from tidegate.base.clock import SystemClock, SystemEntropy
from tidegate.boot.storage import DeviceStorage, StorageSizes
from tidegate.crypto.signing import SignatureAlgorithm
from tidegate.events.spool import EventLog
from tidegate.factory import provision
from tidegate.keys.store import KeyPurpose, KeySpec
from tidegate.pki.certificate import Issuance, issue_factory_ca
from tidegate.policy.document import parse_policy
from tidegate.policy.sign import sign_policy
from tidegate.testing.maker import TEST_HARDWARE, TestMaker
from tidegate.testing.netns import Namespace, make_unique

DEVICE_ID = "gateway-0001"
FIREWALL = """
[firewall]
confirm_timeout_s = {timeout}
[firewall.management]
peers = ["192.0.2.10"]
service = "ssh"
[firewall.services.ssh]
protocol = "tcp"
ports = [22]
peers = ["192.0.2.10"]
[firewall.services.web]
protocol = "tcp"
ports = [{port}]
peers = ["any"]
"""


@dataclass(frozen=True)
class Device:
    """A provisioned device and the people around it."""

    home: DeviceHome
    maker: TestMaker
    owner: TestMaker

    def policy(self, version: int, *, port: int | None = 8080, timeout: int = 5, signer=None, head: str = "") -> bytes:
        text = f"[policy]\nversion = {version}\ndevices = ['gateway-*']\n{head}\n"
        if port is not None:
            text += FIREWALL.format(port=port, timeout=timeout)
        return sign_policy(parse_policy(text), (signer or self.owner).signers)

    def events(self) -> list[dict]:
        lines = [line for path in sorted(self.home.events.glob("*.events")) for line in path.read_bytes().splitlines()]
        return [event for event in map(json.loads, lines) if "unmapped" in event]

    def kinds(self) -> list[str]:
        return [event["unmapped"]["tidegate"]["kind"] for event in self.events()]


@pytest.fixture(scope="session")
def works(tmp_path_factory):
    folder = tmp_path_factory.mktemp("works")
    maker, owner, ca = (TestMaker(folder / name) for name in ("maker", "owner", "ca"))
    ca.store.generate("ca", KeySpec(purpose=KeyPurpose.SIGN, algorithm=SignatureAlgorithm.ECDSA_P256))
    return maker, owner, ca


@pytest.fixture
def device(works, tmp_path, monkeypatch) -> Device:
    """A device straight from the factory; its data file system is a plain folder here."""
    if shutil.which("mkfs.ext4", path="/usr/sbin:/sbin:/usr/bin:/bin") is None:
        pytest.skip("mkfs.ext4 (e2fsprogs) is missing")
    maker, owner, ca = works
    storage = DeviceStorage.provision(
        tmp_path / "device",
        StorageSizes(slot=1 << 20, data=0),
        maker=maker.trust,
        owner=owner.trust,
        hardware=TEST_HARDWARE,
        entropy=SystemEntropy(),
    )
    data, run = tmp_path / "data", tmp_path / "run"
    data.mkdir()
    run.mkdir()
    monkeypatch.setattr(provision, "mounted_data", lambda _: contextlib.nullcontext(data))
    made = Device(home=DeviceHome(storage=storage, data=data, run=run), maker=maker, owner=owner)
    signer = ca.store.signer("ca")
    issuance = Issuance(not_before=datetime.datetime(2025, 1, 1, tzinfo=datetime.UTC), serial=1)
    authority = provision.FactoryCa(
        certificate=issue_factory_ca(signer, organization="Test", issuance=issuance), signer=signer
    )
    provision.provision_identity(
        storage,
        provision.DeviceOrder(device=DEVICE_ID, policy=made.policy(1)),
        authority,
        clock=SystemClock(),
        entropy=SystemEntropy(),
    )
    return made


@pytest.fixture
def log(device):
    keys = device.home.open_keys()
    with EventLog(device.home.events, device_id=DEVICE_ID, boot_id="boot", signer=keys.signer("events")) as events:
        yield events
    keys.close()


@pytest.fixture
def netns():
    """This thread inside a namespace of its own."""
    if os.geteuid() != 0:
        pytest.skip("network namespaces need root")
    if shutil.which("ip") is None or not Path("/usr/sbin/nft").exists():
        pytest.skip("ip (iproute2) or nft (nftables) is missing")
    with Namespace.create(make_unique("tga")) as space, space.inside():
        yield space
