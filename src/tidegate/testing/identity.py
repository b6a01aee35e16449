"""A small world for identities: a clock to set, an EST server in memory that answers, refuses or dies, a device.

Promises: the real key store, identity store and keeper; only network and time are simulated, and nothing is random
but keys. Leaves to others: the real server (``tidegate ca serve``) and what travels on the wire.
"""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from tidegate.crypto.signing import PublicKey, SignatureAlgorithm, Signer
from tidegate.keys.software import DeviceSecretUnlock, SoftwareKeyStore
from tidegate.keys.store import KeyPurpose, KeySpec, KeyStore
from tidegate.pki import identity
from tidegate.pki.errors import EstRefused
from tidegate.pki.identity_flow import EnrolmentPeer, IdentityReport, Issued, Keeper
from tidegate.pki.identity_store import Credential, IdentityStore
from tidegate.pki.keyadapter import library_public_key

START_S = identity.BUILD_FLOOR_S + 86_400
LIFETIME_S = 90 * 86_400
ENDPOINT = identity.Endpoint(host="est.example", port=443, anchors=(b"anchor",))
ELSEWHERE = identity.Endpoint(host="other.example", port=443, anchors=(b"other",))


@dataclass
class SetClock:
    """A clock that stands until it is set."""

    time_s: float = float(START_S)

    def now_s(self) -> float:
        return self.time_s

    def monotonic_s(self) -> float:
        return self.time_s


class SteadyEntropy:
    """Always the middle, so that jitter is nought."""

    def random_bytes(self, count: int) -> bytes:
        return b"\x80" + bytes(count - 1)


@dataclass
class MemoryServer:
    """Issues one certificate for each key; asked with the same key again it answers with the same one.

    ``refusal`` is raised instead of answering; ``is_refused`` says which credentials it does not take; ``uses`` is
    what was asked of it: (operation, host, credential).
    """

    clock: SetClock
    refusal: Exception | None = None
    is_refused: Callable[[Credential], bool] = lambda _: False
    uses: list[tuple[str, str, Credential | None]] = field(default_factory=list)
    issued: dict[PublicKey, x509.Certificate] = field(default_factory=dict)
    key: ec.EllipticCurvePrivateKey = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()))

    @contextlib.contextmanager
    def connect(self, endpoint: identity.Endpoint, credential: Credential | None) -> Iterator[EnrolmentPeer]:
        """Answer as ``identity_flow.Connect``."""
        if self.refusal:
            raise self.refusal
        if credential is not None and self.is_refused(credential):
            raise EstRefused("not with this certificate")
        yield _Peer(self, endpoint.host, credential)

    def certify(self, public: PublicKey) -> x509.Certificate:
        """Return the certificate of a key, issued now unless it was before."""
        if public not in self.issued:
            start = datetime.datetime.fromtimestamp(int(self.clock.now_s()), tz=datetime.UTC)
            name = x509.Name([x509.NameAttribute(NameOID.SERIAL_NUMBER, "device")])
            builder = x509.CertificateBuilder(
                name,
                name,
                library_public_key(public),
                x509.random_serial_number(),
                start,
                start + datetime.timedelta(seconds=LIFETIME_S),
            )
            self.issued[public] = builder.sign(self.key, hashes.SHA256())
        return self.issued[public]


@dataclass
class _Peer:
    server: MemoryServer
    host: str
    credential: Credential | None

    def enrol(self, signer: Signer, *, renew: bool) -> Issued:
        self.server.uses.append(("renew" if renew else "enrol", self.host, self.credential))
        certificate = self.server.certify(signer.public_key)
        return Issued(
            chain=(certificate.public_bytes(Encoding.DER),),
            not_before_s=int(certificate.not_valid_before_utc.timestamp()),
            not_after_s=int(certificate.not_valid_after_utc.timestamp()),
        )

    def prove(self) -> float:
        self.server.uses.append(("prove", self.host, self.credential))
        return self.server.clock.now_s()


class Device:
    """One device with its storage below ``root``; the secret that unlocks its keys lies outside, as if in fuses."""

    def __init__(
        self,
        root: Path,
        keys: KeyStore | Path,
        *,
        clock: SetClock | None = None,
        server: MemoryServer | None = None,
    ) -> None:
        """``keys`` is a provider, or the secret of a software store below ``root``."""
        self.root = root
        if isinstance(keys, Path):
            kind = SoftwareKeyStore if (root / "keys").exists() else SoftwareKeyStore.create
            keys = kind(root / "keys", DeviceSecretUnlock(keys))
        self.keys = keys
        if "idevid" not in self.key_names():
            self.keys.generate("idevid", KeySpec(purpose=KeyPurpose.SIGN, algorithm=SignatureAlgorithm.ECDSA_P256))
        self.clock = clock or SetClock()
        self.server = server or MemoryServer(self.clock)
        self.reports: list[IdentityReport] = []
        self.idevid = Credential(signer=self.keys.signer("idevid"), chain=(b"idevid",))

    @contextlib.contextmanager
    def keeper(self) -> Iterator[tuple[Keeper, IdentityStore]]:
        """Open the identity, as a start of its service does."""
        with IdentityStore(self.root / "identity", self.keys) as store:
            keeper = Keeper(
                store,
                self.server.connect,
                endpoint=ENDPOINT,
                bootstrap=self.idevid,
                clock=self.clock,
                entropy=SteadyEntropy(),
                report=self.reports.append,
            )
            yield keeper, store

    def settle(self, keeper: Keeper) -> float:
        """Take steps until there is nothing to do, and return for how long."""
        for _ in range(20):
            if wait := keeper.step():
                return wait
        raise RuntimeError("it does not settle")

    def key_names(self) -> set[str]:
        """Return the names of all keys there are."""
        return {info.name for info in self.keys.list_keys()}

    def prove(self, found: Credential) -> None:
        """Raise unless the credential's key signs and its certificate is for that key."""
        if found != self.idevid:
            certificate = x509.load_der_x509_certificate(found.chain[0])
            if certificate.public_key() != library_public_key(found.signer.public_key):
                raise RuntimeError("the certificate is another key's")
        found.signer.public_key.verify(found.signer.sign(b"proof"), b"proof")
