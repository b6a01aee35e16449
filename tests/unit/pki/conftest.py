"""A root, an issuing CA and its authority, with keys in memory and a clock that stands still."""

import datetime
import secrets

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from tidegate.base.clock import SystemEntropy
from tidegate.crypto.signing import SignatureAlgorithm
from tidegate.pki.authority import Authority, Grant
from tidegate.pki.ca_store import CaStore
from tidegate.pki.profiles import PROFILES, NameLimits, Order, Subject, draw_serial, sign_certificate
from tidegate.testing.certificates import MemorySigner

START = datetime.datetime(2027, 1, 2, 3, 4, 5, tzinfo=datetime.UTC)


class StillClock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = START

    def now_s(self):
        return self.now.timestamp()

    def monotonic_s(self):
        return self.now.timestamp()


class Bench:
    """``sign`` makes any certificate, ``issue`` lets the authority make one."""

    def __init__(self, folder) -> None:
        self.folder = folder
        self.clock = StillClock()
        self.root_key, self.issuing_key, self.device_key = (
            MemorySigner(SignatureAlgorithm.ECDSA_P256) for _ in range(3)
        )
        self.root = self.sign("root-ca", Subject(common_name="Root", organization="Owner"), self.root_key)
        self.issuing = self.sign(
            "issuing-ca",
            Subject(common_name="Issuing", organization="Owner"),
            self.issuing_key,
            above=(self.root, self.root_key),
        )
        self.store = CaStore(folder, create=True)
        self.acts = []
        self.authority = self.make_authority()

    def make_authority(self, report=None, **named):
        return Authority(
            [self.issuing, self.root],
            self.issuing_key,
            self.store,
            clock=self.clock,
            entropy=SystemEntropy(),
            report=report or self.acts.append,
            **named,
        )

    def sign(self, profile, subject, key, *, above=None, now=None, lifetime=None, limits=None):
        issuer, signer = above or (None, key)
        order = Order(
            profile=PROFILES[profile],
            subject=subject,
            public_key=key.public_key,
            now=now or self.clock.now - datetime.timedelta(days=1),
            serial=draw_serial(secrets.token_bytes(20)),
            lifetime=lifetime,
            limits=limits or NameLimits(),
        )
        return sign_certificate(order, issuer, signer)

    def grant(self, serial_number="SN-1", profile="ldevid", key=None, **named):
        return Grant(
            profile=PROFILES[profile],
            subject=Subject(serial_number=serial_number),
            public_key=(key or self.device_key).public_key,
            **named,
        )

    def issue(self, *arguments, **named):
        return self.authority.issue(self.grant(*arguments, **named))

    @property
    def now(self):
        return self.clock.now


@pytest.fixture
def bench(tmp_path):
    bench = Bench(tmp_path / "ca")
    yield bench
    bench.store.close()


@pytest.fixture
def der():
    return lambda certificate: certificate.public_bytes(Encoding.DER)


@pytest.fixture
def code_of():
    from tidegate.base.errors import TidegateError

    def code_of(call, *arguments, **named):
        with pytest.raises(TidegateError) as caught:
            call(*arguments, **named)
        return caught.value.code

    return code_of
