"""Makes a blank device one of the fleet: anchors, identity, keys, first policy, vault, first image.

Touches: the device's storage, a mount of its data image.
"""

from __future__ import annotations

import datetime
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509

from tidegate.base.blockdev import FileBlockDevice
from tidegate.base.clock import Clock, Entropy
from tidegate.base.durable import write_file_atomic
from tidegate.base.program import run_program
from tidegate.boot.control import RecordBootControl
from tidegate.boot.storage import JOURNAL_OFFSET, STATE_BYTES, DeviceStorage
from tidegate.crypto.signing import PublicKey, SignatureAlgorithm, Signer
from tidegate.factory.errors import DeviceNotBlank
from tidegate.keys.software import DeviceSecretUnlock, SoftwareKeyStore
from tidegate.keys.store import KeyPurpose, KeySpec
from tidegate.pki.certificate import Issuance, encode_pem, issue_idevid
from tidegate.policy.sign import PolicyRule, VerifiedPolicy, verify_policy
from tidegate.update.installer import Installed, Target, install_bundle
from tidegate.update.journal import UpdateJournal
from tidegate.vault.store import Vault
from tidegate.vault.unlockers import KeyStoreUnlocker

FACTORY_TRIES = 3
# name of the key on the device -> what it is for
DEVICE_KEYS = {
    "identity": KeySpec(purpose=KeyPurpose.SIGN, algorithm=SignatureAlgorithm.ECDSA_P256),
    "events": KeySpec(purpose=KeyPurpose.SIGN, algorithm=SignatureAlgorithm.ED25519),
    "vault": KeySpec(purpose=KeyPurpose.SEAL),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class FactoryCa:
    """Who vouches for devices: the CA's certificate and its signer."""

    certificate: x509.Certificate
    signer: Signer


@dataclass(frozen=True, slots=True, kw_only=True)
class Provisioned:
    """What the factory keeps of a device."""

    device: str
    event_key: PublicKey
    certificate: x509.Certificate
    policy: VerifiedPolicy


def provision_identity(
    storage: DeviceStorage, device: str, ca: FactoryCa, policy: bytes, *, clock: Clock, entropy: Entropy
) -> Provisioned:
    """Put keys, certificate, policy and an empty vault on the data image of ``storage``.

    The policy is verified as the device will verify it, before anything is written. Raises ``policy.*``, ``crypto.*``.
    """
    storage.require_blank()
    rule = PolicyRule(trust=storage.owner_trust(), device=device, min_version=1, now_s=clock.now_s())
    verified = verify_policy(policy, rule)
    with mounted_data(storage) as data:
        home = data / "tidegate"
        shutil.rmtree(home, ignore_errors=True)  # of a provisioning that was interrupted: the id comes last
        home.mkdir(mode=0o700)
        keys = SoftwareKeyStore.create(home / "keys", DeviceSecretUnlock(storage.rom / "device-secret"))
        for name, spec in DEVICE_KEYS.items():
            keys.generate(name, spec)
        moment = datetime.datetime.fromtimestamp(int(clock.now_s()), tz=datetime.UTC)
        issuance = Issuance(not_before=moment, serial=int.from_bytes(entropy.random_bytes(16), "big") | 1)
        certificate = issue_idevid(
            ca.certificate, ca.signer, keys.public_key("identity"), serial_number=device, issuance=issuance
        )
        write_file_atomic(home / "identity.pem", encode_pem(certificate))
        for name in ("policy.cose", "policy.copy.cose"):
            write_file_atomic(home / name, policy)
        Vault.create(home / "vault", KeyStoreUnlocker(keys, "vault")).close()
        event_key = keys.public_key("events")
    storage.burn_device_id(device)
    return Provisioned(device=device, event_key=event_key, certificate=certificate, policy=verified)


def install_first_image(storage: DeviceStorage, bundle: Path) -> Installed:
    """Write the factory image into the first slot and have it tried; the first healthy boot confirms it."""
    with storage.opened(writable=True) as parts, FileBlockDevice(bundle) as source:
        control = RecordBootControl(parts.state)
        if control.state().started is not None:
            raise DeviceNotBlank("this device has been started; `tidegate update install` replaces its system safely")
        target = Target(
            slots=dict(parts.slots),
            control=control,
            journal=UpdateJournal(parts.state, JOURNAL_OFFSET),
            rule=storage.maker_rule(),
            running=None,
        )
        installed = install_bundle(source, target)
        control.activate(installed.slot, tries=FACTORY_TRIES)
    return installed


@contextmanager
def mounted_data(storage: DeviceStorage) -> Iterator[Path]:
    """Mount the data file system of a device that is switched off; unmounted again at the end."""
    with tempfile.TemporaryDirectory(prefix="tidegate-data-") as folder:
        options = f"loop,offset={STATE_BYTES},nodev,nosuid,noexec"
        run_program(["mount", "-t", "ext4", "-o", options, str(storage.data_path), folder])
        try:
            yield Path(folder)
        finally:
            run_program(["umount", folder])
