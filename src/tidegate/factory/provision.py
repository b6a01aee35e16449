"""Makes a blank device one of the fleet: anchors, identity, keys, first policy, vault, first image.

Touches: the device's storage, a mount of its data image.
"""

from __future__ import annotations

import contextlib
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
from tidegate.base.errors import TidegateError
from tidegate.base.program import run_program
from tidegate.boot.control import RecordBootControl
from tidegate.boot.storage import JOURNAL_OFFSET, SOFTWARE_KEYSTORE, STATE_BYTES, DeviceStorage
from tidegate.crypto.signing import PublicKey, SignatureAlgorithm, Signer
from tidegate.factory.errors import DeviceNotBlank
from tidegate.keys.errors import KeyExists
from tidegate.keys.store import KeyPolicy, KeyPurpose, KeySpec, KeyStore
from tidegate.keys.uri import KeyUri, open_store, parse_key_uri
from tidegate.pki.certificate import Issuance, encode_pem, issue_idevid
from tidegate.policy.sign import PolicyRule, VerifiedPolicy, verify_policy
from tidegate.update.installer import Installed, Target, install_bundle
from tidegate.update.journal import UpdateJournal
from tidegate.vault.store import Vault
from tidegate.vault.unlockers import KeyStoreUnlocker

FACTORY_TRIES = 3
# name of the signing key on the device -> algorithms, the best first; a provider gets the first that it has
DEVICE_SIGNING_KEYS = {
    "identity": (SignatureAlgorithm.ECDSA_P256, SignatureAlgorithm.ECDSA_P384),
    "events": (SignatureAlgorithm.ED25519, SignatureAlgorithm.ECDSA_P256, SignatureAlgorithm.ECDSA_P384),
}
VAULT_KEY = "vault"


@dataclass(frozen=True, slots=True, kw_only=True)
class FactoryCa:
    """Who vouches for devices: the CA's certificate and its signer."""

    certificate: x509.Certificate
    signer: Signer


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceOrder:
    """What the factory makes of a blank device: its id, its first policy, and where its keys are to be.

    ``keystore`` is a key URI in which ``{data}`` and ``{rom}`` stand for the device's folders. ``keystore_in_use`` is
    another way to the same keys that the running device is to take (the key process), if not the same.
    """

    device: str
    policy: bytes
    keystore: str = SOFTWARE_KEYSTORE
    keystore_in_use: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Provisioned:
    """What the factory keeps of a device."""

    device: str
    event_key: PublicKey
    certificate: x509.Certificate
    policy: VerifiedPolicy


def provision_identity(
    storage: DeviceStorage, order: DeviceOrder, ca: FactoryCa, *, clock: Clock, entropy: Entropy
) -> Provisioned:
    """Make the keys in the device's key store, and put certificate, policy and an empty vault on its data image.

    The policy is verified as the device will verify it, and the key URIs are parsed, before anything is written.
    Raises ``policy.*``, ``crypto.*``, ``keys.*``; ``keys.key.exists`` if a token has keys of these names already: they
    may be somebody's, and stay.
    """
    storage.require_blank()
    rule = PolicyRule(trust=storage.owner_trust(), device=order.device, min_version=1, now_s=clock.now_s())
    verified = verify_policy(order.policy, rule)
    in_use = order.keystore_in_use or order.keystore
    for template in (order.keystore, in_use):  # what is burnt in cannot be mended
        parse_key_uri(storage.place(template, storage.folder))
    storage.burn_keystore(in_use)
    with mounted_data(storage) as data:
        home = data / "tidegate"
        uri = parse_key_uri(storage.place(order.keystore, home))
        if home.exists():
            _remove_interrupted(home, uri)
        home.mkdir(mode=0o700)
        keys = open_store(uri, create=True)
        _make_keys(keys)
        moment = datetime.datetime.fromtimestamp(int(clock.now_s()), tz=datetime.UTC)
        issuance = Issuance(not_before=moment, serial=int.from_bytes(entropy.random_bytes(16), "big") | 1)
        certificate = issue_idevid(
            ca.certificate, ca.signer, keys.public_key("identity"), serial_number=order.device, issuance=issuance
        )
        write_file_atomic(home / "identity.pem", encode_pem(certificate))
        for name in ("policy.cose", "policy.copy.cose"):
            write_file_atomic(home / name, order.policy)
        Vault.create(home / "vault", KeyStoreUnlocker(keys, VAULT_KEY)).close()
        event_key = keys.public_key("events")
        keys.close()
    storage.burn_device_id(order.device)
    return Provisioned(device=order.device, event_key=event_key, certificate=certificate, policy=verified)


def _remove_interrupted(home: Path, uri: KeyUri) -> None:
    """Remove what an interrupted provisioning left (the id comes last): its keys first, which take places in a TPM.

    Keys that are not in the folder may be somebody's, and stay.
    """
    if Path(uri.location).is_relative_to(home):
        with contextlib.suppress(TidegateError), contextlib.closing(open_store(uri)) as keys:  # as far as it got
            for info in keys.list_keys():
                keys.destroy(info.name)
    shutil.rmtree(home)


def _make_keys(keys: KeyStore) -> None:
    """Generate what a device has, all of it or nothing."""
    capabilities = keys.capabilities()
    specs = {VAULT_KEY: KeySpec(purpose=KeyPurpose.SEAL, policy=KeyPolicy(revocable=capabilities.can_revoke))}
    for name, algorithms in DEVICE_SIGNING_KEYS.items():
        chosen = next((one for one in algorithms if one in capabilities.algorithms), algorithms[0])
        specs[name] = KeySpec(purpose=KeyPurpose.SIGN, algorithm=chosen)
    for spec in specs.values():
        capabilities.require(spec)
    there = sorted({info.name for info in keys.list_keys()}.intersection(specs))
    if there:  # of an interrupted provisioning, or of another device: a person has to know
        raise KeyExists(f"the store has keys of these names already: {', '.join(there)}", key=there[0])
    made: list[str] = []
    try:
        for name, spec in specs.items():
            keys.generate(name, spec)
            made.append(name)
    except BaseException:
        for name in made:
            keys.destroy(name)
        raise


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
