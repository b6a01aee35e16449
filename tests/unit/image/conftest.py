"""A maker with two keys, and small bundles that are true, or signed lies."""

import io

import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519, mldsa

from tidegate.base.errors import TidegateError
from tidegate.crypto import cbor
from tidegate.crypto.cose import sign_envelope
from tidegate.crypto.signing import PublicKey, SignatureAlgorithm
from tidegate.crypto.trust import hybrid_trust
from tidegate.image.build import ImageIdentity, PayloadSource, write_bundle
from tidegate.image.layout import encode_head
from tidegate.image.manifest import PayloadKind
from tidegate.image.verify import AcceptanceRule


class MemorySigner:
    def __init__(self, key, algorithm) -> None:
        self._key = key
        self.public_key = PublicKey(algorithm, key.public_key().public_bytes_raw())

    def sign(self, message):
        return self._key.sign(message)


class MemorySource:
    """A bundle or slot in memory, which reads as exactly as a device does."""

    def __init__(self, content) -> None:
        self.content = bytes(content)
        self.size_bytes = len(self.content)
        self.largest_read = 0

    def read_at(self, offset, count):
        from tidegate.base.errors import InputTruncated

        self.largest_read = max(self.largest_read, count)
        piece = self.content[offset : offset + count]
        if len(piece) != count:
            raise InputTruncated("short")
        return piece


class Maker:
    def __init__(self) -> None:
        self.classical = MemorySigner(ed25519.Ed25519PrivateKey.generate(), SignatureAlgorithm.ED25519)
        self.post_quantum = MemorySigner(mldsa.MLDSA65PrivateKey.generate(), SignatureAlgorithm.ML_DSA_65)
        self.signers = (self.classical, self.post_quantum)
        self.trust = hybrid_trust([signer.public_key for signer in self.signers])

    def rule(self, hardware="board-r1", floor=0):
        return AcceptanceRule(trust=self.trust, hardware=hardware, security_floor=floor)

    def identity(self, **changes):
        return ImageIdentity(
            **{
                "vendor": "Maker",
                "product": "Gateway",
                "hardware": ("board-r1", "board-r2"),
                "version": "1.2.3",
                "security_version": 4,
            }
            | changes
        )

    def sources(self, stage2=b"second stage" * 100, rootfs=bytes(range(256)) * 40, **applications):
        made = [("stage2", PayloadKind.STAGE2, stage2, ()), ("rootfs", PayloadKind.ROOTFS, rootfs, ())]
        made += [(name, PayloadKind.APPLICATION, data, (f"/apps/{name}/start",)) for name, data in applications.items()]
        return [
            PayloadSource(name=name, kind=kind, stream=io.BytesIO(data), start=start)
            for name, kind, data, start in made
        ]

    def bundle(self, sources=None, signers=None, **identity):
        """Return (bundle bytes, manifest)."""
        out = io.BytesIO()
        sources = self.sources(service=b"application" * 9) if sources is None else sources
        manifest = write_bundle(self.identity(**identity), sources, signers or self.signers, out)
        return out.getvalue(), manifest

    def signed(self, manifest, context="tidegate.image.v1"):
        """Return a head that carries ``manifest``, a value or bytes, whatever it says."""
        raw = manifest if isinstance(manifest, bytes) else cbor.encode(manifest)
        return encode_head(sign_envelope(context, raw, self.signers))


@pytest.fixture(scope="session")
def maker():
    return Maker()


@pytest.fixture(scope="session")
def small(maker):
    """Return (bundle bytes, manifest) of a bundle with three payloads of a few blocks."""
    return maker.bundle()


@pytest.fixture(scope="session")
def builtins(small):
    """The manifest's members as plain values, to be changed."""
    return lambda: cbor.decode(small[1].encode(), limit_bytes=32_768)


@pytest.fixture(scope="session")
def in_memory():
    return MemorySource


@pytest.fixture(scope="session")
def code_of():
    def code_of(call, *arguments, **named):
        with pytest.raises(TidegateError) as caught:
            call(*arguments, **named)
        return caught.value.code

    return code_of
