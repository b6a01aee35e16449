"""A device whose keys are in its TPM: provisioned by the factory, used by log and vault through the key process."""

from __future__ import annotations

import contextlib
import datetime
import os
import shutil
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tidegate.agent.home import DeviceHome
from tidegate.base.clock import SystemClock, SystemEntropy
from tidegate.base.errors import TidegateError
from tidegate.boot.storage import DeviceStorage, StorageSizes
from tidegate.crypto.signing import SignatureAlgorithm
from tidegate.crypto.trust import TrustPolicy
from tidegate.events import catalogue
from tidegate.events.segments import verify_folder
from tidegate.factory import provision
from tidegate.keys.store import KeyPurpose, KeySpec
from tidegate.keys.uri import open_store, parse_key_uri
from tidegate.pki.certificate import Issuance, issue_factory_ca
from tidegate.policy.document import parse_policy
from tidegate.policy.sign import sign_policy
from tidegate.testing.keyd import running_keyd
from tidegate.testing.maker import TEST_HARDWARE, TestMaker
from tidegate.testing.swtpm import SwTpm
from tidegate.vault.store import Vault
from tidegate.vault.unlockers import KeyStoreUnlocker

KEYD = """
[keyd]
socket = "{socket}"
store = "{store}"
mode = 0o600
[[grant]]
user = {uid}
keys = ["*"]
operations = ["list", "public", "sign", "seal", "unseal", "counter-read", "counter-increment"]
"""


class Device:
    """A provisioned device with its TPM and its key process."""

    def __init__(self, root: Path, monkeypatch) -> None:
        self.root = root
        self.tpm = SwTpm(root / "tpm")
        self.socket = root / "tpm" / "keyd.sock"
        self.maker, self.owner, self.ca = (TestMaker(root / name) for name in ("maker", "owner", "ca"))
        self.ca.store.generate("ca", KeySpec(purpose=KeyPurpose.SIGN, algorithm=SignatureAlgorithm.ECDSA_P256))
        self.storage = DeviceStorage.provision(
            root / "device",
            StorageSizes(slot=1 << 20, data=0),
            maker=self.maker.trust,
            owner=self.owner.trust,
            hardware=TEST_HARDWARE,
            entropy=SystemEntropy(),
        )
        self.data = root / "data"
        self.data.mkdir()
        (root / "run").mkdir()
        monkeypatch.setattr(provision, "mounted_data", lambda _: contextlib.nullcontext(self.data))
        self.home = DeviceHome(storage=self.storage, data=self.data, run=root / "run")
        self._running = contextlib.ExitStack()

    def provision(self) -> provision.Provisioned:
        signer = self.ca.store.signer("ca")
        issuance = Issuance(not_before=datetime.datetime(2025, 1, 1, tzinfo=datetime.UTC), serial=1)
        certificate = issue_factory_ca(signer, organization="Test", issuance=issuance)
        order = provision.DeviceOrder(
            device="gw-1",
            policy=sign_policy(parse_policy("[policy]\nversion = 1\n"), self.owner.signers),
            keystore=f"tpm2:{{data}}/keys?tcti={self.tpm.tcti}",
            keystore_in_use=f"keyd:{self.socket}",
        )
        factory = provision.FactoryCa(certificate=certificate, signer=signer)
        return provision.provision_identity(self.storage, order, factory, clock=SystemClock(), entropy=SystemEntropy())

    def start_keyd(self) -> None:
        config = self.root / "keyd.toml"
        store = f"tpm2:{self.home.folder}/keys?tcti={self.tpm.tcti}"
        config.write_text(KEYD.format(socket=self.socket, store=store, uid=os.getuid()))
        config.chmod(0o600)
        self._running.enter_context(running_keyd(config))

    def close(self) -> None:
        self._running.close()
        self.tpm.close()


@pytest.fixture
def device(tmp_path, monkeypatch):
    made = Device(tmp_path, monkeypatch)
    yield made
    made.close()


def test_every_key_of_a_device_is_in_its_tpm(device) -> None:
    told = device.provision()
    device.start_keyd()
    assert device.storage.keystore(device.home.folder) == f"keyd:{device.socket}"
    keys = device.home.open_keys()
    assert keys.capabilities().hardware
    assert {info.name for info in keys.list_keys()} == {"identity", "events", "vault"}
    assert told.event_key.algorithm is SignatureAlgorithm.ECDSA_P256  # a TPM has no Ed25519
    message = b"made by the identity key"
    point = told.certificate.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
    assert point == keys.public_key("identity").raw
    keys.public_key("identity").verify(keys.signer("identity").sign(message), message)
    keys.close()


def test_the_event_log_is_signed_by_the_tpm(device) -> None:
    told = device.provision()
    device.start_keyd()
    keys = device.home.open_keys()
    with device.home.open_events(keys, SystemClock(), SystemEntropy()) as events:
        events.append(catalogue.agent_started())
        events.checkpoint()
    trust = TrustPolicy(keys=(told.event_key,), threshold=1, required_classes=frozenset())
    assert len(verify_folder(device.home.events, trust).boots) == 1
    keys.close()


def test_a_copy_of_the_storage_put_back_is_seen_by_the_tpms_counter(device) -> None:
    """The whole data partition is restored, key files included; the counter in the TPM is what remembers."""
    device.provision()
    device.start_keyd()
    keys = device.home.open_keys()
    with Vault.open(device.home.vault, KeyStoreUnlocker(keys, "vault")) as vault:
        vault.write("record", b"first")
    before = device.root / "before"
    shutil.copytree(device.data, before)
    with Vault.open(device.home.vault, KeyStoreUnlocker(keys, "vault")) as vault:
        vault.write("record", b"second")
    shutil.rmtree(device.home.vault)
    shutil.copytree(before / "tidegate" / "vault", device.home.vault)
    with pytest.raises(TidegateError) as caught, Vault.open(device.home.vault, KeyStoreUnlocker(keys, "vault")):
        pass
    assert caught.value.code == "vault.manifest.rollback"
    keys.close()


def test_a_thief_with_the_storage_and_another_tpm_opens_nothing(device) -> None:
    device.provision()
    device.tpm.wipe()
    uri = parse_key_uri(device.storage.place("tpm2:{data}/keys?tcti=" + device.tpm.tcti, device.home.folder))
    with pytest.raises(TidegateError) as caught:
        keys = open_store(uri)
        Vault.open(device.home.vault, KeyStoreUnlocker(keys, "vault")).close()
    assert caught.value.code == "keys.unlock.refused"
