"""A maker for tests: real keys, real signatures, images of a few kilobytes.

Promises: bundles that every verifier of ours accepts or refuses for the right reason, made in milliseconds.
Leaves to others: payloads that run (``boot.stage2_build``, squashfs). Never trust these keys on a device.

Touches: a folder for the key store.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tidegate.base.clock import SystemEntropy
from tidegate.base.durable import write_file_atomic
from tidegate.crypto.signing import SignatureAlgorithm, Signer
from tidegate.crypto.trust import TrustPolicy, hybrid_trust
from tidegate.image.build import ImageIdentity, PayloadSource, write_bundle
from tidegate.image.manifest import PayloadKind
from tidegate.keys.software import DeviceSecretUnlock, SoftwareKeyStore
from tidegate.keys.store import KeyPurpose, KeySpec

TEST_HARDWARE = "test-board-r1"
_ALGORITHMS = (SignatureAlgorithm.ED25519, SignatureAlgorithm.ML_DSA_65)


@dataclass(frozen=True, slots=True, kw_only=True)
class TestRelease:
    """What a bundle of the test maker says. Payload sizes are bytes; the content follows from name and version."""

    __test__ = False  # not a test class, whatever its name

    version: str
    security_version: int = 1
    hardware: tuple[str, ...] = (TEST_HARDWARE,)
    stage2: bytes | None = None
    rootfs_bytes: int = 20_000
    applications: Mapping[str, int] | None = None


class TestMaker:
    """One Ed25519 and one ML-DSA-65 key in a software key store below ``folder``, both required by ``trust``."""

    __test__ = False

    def __init__(self, folder: Path) -> None:
        secret = folder / "secret"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_file_atomic(secret, SystemEntropy().random_bytes(32), mode=0o400)
        self.store = SoftwareKeyStore.create(folder / "keys", DeviceSecretUnlock(secret))
        for algorithm in _ALGORITHMS:
            self.store.generate(algorithm.label, KeySpec(purpose=KeyPurpose.SIGN, algorithm=algorithm))
        self.signers: tuple[Signer, ...] = tuple(self.store.signer(algorithm.label) for algorithm in _ALGORITHMS)
        self.trust: TrustPolicy = hybrid_trust([signer.public_key for signer in self.signers])

    def build(self, release: TestRelease, *, signers: Sequence[Signer] | None = None) -> bytes:
        """Return the bundle of ``release``, signed by both keys unless other ``signers`` are named."""
        identity = ImageIdentity(
            vendor="Test Maker",
            product="Test product",
            hardware=release.hardware,
            version=release.version,
            security_version=release.security_version,
        )
        applications = {"service": 6_000} if release.applications is None else release.applications
        sources = [
            _source("stage2", PayloadKind.STAGE2, release.stage2 or _filler("stage2", release.version, 5_000)),
            _source("rootfs", PayloadKind.ROOTFS, _filler("rootfs", release.version, release.rootfs_bytes)),
            *(
                _source(name, PayloadKind.APPLICATION, _filler(name, release.version, size))
                for name, size in applications.items()
            ),
        ]
        out = io.BytesIO()
        write_bundle(identity, sources, self.signers if signers is None else signers, out)
        return out.getvalue()


def _source(name: str, kind: PayloadKind, data: bytes) -> PayloadSource:
    start = (f"/apps/{name}/start",) if kind is PayloadKind.APPLICATION else ()
    return PayloadSource(name=name, kind=kind, stream=io.BytesIO(data), start=start)


def _filler(name: str, version: str, size: int) -> bytes:
    """Return ``size`` bytes that differ from block to block, payload to payload and version to version."""
    words = (f"{name} {version} {number:08d}\n".encode() for number in range(size // 16 + 1))
    return b"".join(words)[:size]
