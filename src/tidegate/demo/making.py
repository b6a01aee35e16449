"""Chapters 1 and 2: the maker's bench and the factory.

Touches: a work folder, the device's storage.
"""

from __future__ import annotations

import datetime
import secrets
from dataclasses import dataclass
from pathlib import Path

from tidegate.base.clock import SystemClock, SystemEntropy
from tidegate.base.durable import write_file_atomic
from tidegate.base.program import run_program
from tidegate.boot.storage import DeviceStorage, StorageSizes
from tidegate.crypto.aead import Secret
from tidegate.crypto.signing import SignatureAlgorithm, Signer
from tidegate.crypto.trust import TrustPolicy, hybrid_trust
from tidegate.demo.lab import OPERATOR_ADDRESS
from tidegate.demo.product import HARDWARE, SERVICE_PORT, Release, build_release
from tidegate.demo.report import Report, require
from tidegate.factory.provision import (
    DeviceOrder,
    FactoryCa,
    Provisioned,
    install_first_image,
    provision_identity,
)
from tidegate.image.layout import plan_extents
from tidegate.image.manifest import Manifest, PayloadKind
from tidegate.keys.software import PassphraseUnlock, SoftwareKeyStore
from tidegate.keys.store import KeyPurpose, KeySpec
from tidegate.pki.certificate import Issuance, encode_pem, issue_factory_ca
from tidegate.policy.document import parse_policy
from tidegate.policy.sign import sign_policy

DEVICE_ID = "gateway-0001"
SLOT_BYTES = 16 << 20
DATA_BYTES = 16 << 20

# What the owner wants of the device. {version}, {peers} and {timeout} differ between the policies of the story.
POLICY = """\
[policy]
version = {version}
devices = ["gateway-*"]
description = "demo gateway"

[firewall]
default = "deny"
confirm_timeout_s = {timeout}

[firewall.management]
peers = ["{peers}"]
service = "ssh"

[firewall.services.ssh]
protocol = "tcp"
ports = [22]
peers = ["{peers}"]

[firewall.services.web]
protocol = "tcp"
ports = [{port}]
peers = ["any"]
limit = {{ new_per_s = 100, burst = 200, connections = 64 }}

[firewall.services.plc]
protocol = "tcp"
ports = [502]
peers = ["any"]
fields = "reads"

[firewall.fields.reads]
protocol = "modbus"
allow = [{{ functions = ["read-holding-registers"], registers = ["0-99"] }}]

[firewall.egress.services.authority]
protocol = "tcp"
ports = [8443, 8080]
peers = ["{operator}"]
{more}
[firewall.bans]
never = ["{operator}"]

[ids]
interfaces = ["eth0"]
memory = "8MiB"
respond = "ban"
ban_s = 60
allow = ["{operator}/32"]

[watch]
paths = ["{watched}"]

[update]
tries = 2
deadline_s = 4
[[update.http]]
port = {port}
path = "/version"
expect = "{{version}}"
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class MakerKeys:
    """The maker's two keys, the signers that use them, and what a device has to trust."""

    store: SoftwareKeyStore
    signers: tuple[Signer, Signer]
    trust: TrustPolicy


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """What the maker and the owner have when the story begins."""

    work: Path
    maker: MakerKeys
    owner: MakerKeys
    bundles: dict[str, Path]


def write_policy(
    *, version: int, watched: Path, peers: str = OPERATOR_ADDRESS, timeout_s: int = 15, more: str = ""
) -> str:
    """Return one of the story's policies as TOML; ``more`` are tables below ``[firewall]``."""
    return POLICY.format(
        version=version,
        peers=peers,
        timeout=timeout_s,
        port=SERVICE_PORT,
        operator=OPERATOR_ADDRESS,
        watched=watched,
        more=more,
    )


def config_folder(storage: DeviceStorage) -> Path:
    """Return the folder that stands for the device's settings; the policy has it watched."""
    return storage.folder / "config"


def create_keys(folder: Path) -> MakerKeys:
    """Create a passphrase-sealed store with one Ed25519 and one ML-DSA-65 key."""
    store = SoftwareKeyStore.create(folder, PassphraseUnlock(Secret(secrets.token_bytes(24))))
    algorithms = (SignatureAlgorithm.ED25519, SignatureAlgorithm.ML_DSA_65)
    for algorithm in algorithms:
        store.generate(algorithm.label, KeySpec(purpose=KeyPurpose.SIGN, algorithm=algorithm))
    classical, post_quantum = (store.signer(algorithm.label) for algorithm in algorithms)
    trust = hybrid_trust([classical.public_key, post_quantum.public_key])
    return MakerKeys(store=store, signers=(classical, post_quantum), trust=trust)


def tell_maker(report: Report, work: Path) -> Bench:
    """Chapter 1: keys, image, hash tree, manifest, bundle."""
    report.chapter("1  Maker")
    with report.step("signing keys: Ed25519 and ML-DSA-65, both required") as step:
        maker, owner = create_keys(work / "maker-keys"), create_keys(work / "owner-keys")
        step.evidence += [
            f"maker  {signer.public_key.algorithm.label:<10} key id {signer.public_key.key_id}"
            for signer in maker.signers
        ]
    with report.step("root file system, hash tree, signed manifest, bundle of version 1.0.0") as step:
        release = Release(version="1.0.0", security_version=1)
        bundle, manifest = build_release(work, release, trust=maker.trust, signers=maker.signers)
        step.evidence.append(f"{bundle.name}: {bundle.stat().st_size:,} bytes, payloads: {_payloads(manifest)}")
        step.evidence.append(f"veritysetup agrees with our tree: root {_check_tree(work, bundle, manifest)[:16]}…")
    with report.step("bundles of versions 2.0.0 (good) and 3.0.0 (its service is broken)"):
        bundles = {"1.0.0": bundle}
        for release in (
            Release(version="2.0.0", security_version=2),
            Release(version="3.0.0", security_version=2, broken=True),
        ):
            bundles[release.version], _ = build_release(work, release, trust=maker.trust, signers=maker.signers)
    return Bench(work=work, maker=maker, owner=owner, bundles=bundles)


def tell_factory(report: Report, bench: Bench) -> tuple[DeviceStorage, Provisioned]:
    """Chapter 2: storage, trust anchors, identity, first policy, vault, first image."""
    report.chapter("2  Factory")
    clock, entropy = SystemClock(), SystemEntropy()
    with report.step("storage: two slots, a data image, a read-only ROM with the trust anchors") as step:
        storage = DeviceStorage.provision(
            bench.work / "device",
            StorageSizes(slot=SLOT_BYTES, data=DATA_BYTES),
            maker=bench.maker.trust,
            owner=bench.owner.trust,
            hardware=HARDWARE,
            entropy=entropy,
        )
        config_folder(storage).mkdir()
        write_file_atomic(config_folder(storage) / "gateway.conf", b"upstream = 192.0.2.10\n")
        step.evidence.append("rom: " + ", ".join(sorted(path.name for path in storage.rom.iterdir())))
    with report.step("identity key and certificate, event key, first policy, vault") as step:
        ca_store = SoftwareKeyStore.create(bench.work / "ca-keys", PassphraseUnlock(Secret(secrets.token_bytes(24))))
        ca_store.generate("ca", KeySpec(purpose=KeyPurpose.SIGN, algorithm=SignatureAlgorithm.ECDSA_P256))
        issuance = Issuance(
            not_before=datetime.datetime.now(tz=datetime.UTC).replace(microsecond=0),
            serial=int.from_bytes(entropy.random_bytes(16), "big") | 1,
        )
        signer = ca_store.signer("ca")
        ca = FactoryCa(
            certificate=issue_factory_ca(signer, organization="Example Maker", issuance=issuance), signer=signer
        )
        policy = parse_policy(write_policy(version=1, watched=config_folder(storage)), name="policy-1.toml")
        signed = sign_policy(policy, bench.owner.signers)
        device = provision_identity(
            storage, DeviceOrder(device=DEVICE_ID, policy=signed), ca, clock=clock, entropy=entropy
        )
        step.evidence.append(f"device {DEVICE_ID}: IDevID {_check_certificate(bench.work, ca, device)}")
        step.evidence.append(
            f"policy 1 signed by the owner: {len(signed):,} bytes, sha256 {device.policy.digest.hex()[:16]}…"
        )
    with report.step("first image written to a slot and verified") as step:
        installed = install_first_image(storage, bench.bundles["1.0.0"])
        step.evidence.append(f"slot {installed.slot}: version {installed.image.manifest.version}")
    return storage, device


def _payloads(manifest: Manifest) -> str:
    return ", ".join(f"{payload.name} {payload.size:,} B" for payload in manifest.payloads)


def _check_tree(work: Path, bundle: Path, manifest: Manifest) -> str:
    """Have veritysetup verify our tree over the root file system; return the root digest in hex."""
    (rootfs,) = manifest.of_kind(PayloadKind.ROOTFS)
    extent = next(extent for extent in plan_extents(manifest) if extent.payload is rootfs)
    raw = bundle.read_bytes()
    data, tree = work / "verity-data", work / "verity-tree"
    data.write_bytes(raw[extent.data_offset : extent.end])
    tree.write_bytes(raw[extent.tree_offset : extent.tree_offset + extent.tree_size])
    options = ["--no-superblock", "--data-block-size=4096", "--hash-block-size=4096"]
    options += [f"--salt={rootfs.verity_salt.hex()}", f"--data-blocks={extent.data_blocks}"]
    run_program(["veritysetup", "verify", *options, str(data), str(tree), rootfs.verity_root.hex()])
    data.unlink()
    tree.unlink()
    return rootfs.verity_root.hex()


def _check_certificate(work: Path, ca: FactoryCa, device: Provisioned) -> str:
    """Have openssl verify the device's certificate against the factory CA; return its subject."""
    authority, leaf = work / "factory-ca.pem", work / "idevid.pem"
    write_file_atomic(authority, encode_pem(ca.certificate))
    write_file_atomic(leaf, encode_pem(device.certificate))
    said = run_program(["openssl", "verify", "-x509_strict", "-CAfile", str(authority), str(leaf)]).stdout.decode()
    require(said.strip().endswith("OK"), f"openssl does not accept the certificate: {said.strip()}")
    return f"{device.certificate.subject.rfc4514_string()}, accepted by openssl verify"
