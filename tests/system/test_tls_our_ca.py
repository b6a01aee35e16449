"""Our own CA and TLS together: every key in a token, from a certificate's birth to the refusal after its revocation."""

from __future__ import annotations

import datetime
import ssl

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from tidegate.base.clock import SystemClock, SystemEntropy
from tidegate.crypto.signing import SignatureAlgorithm
from tidegate.keys.store import KeyPurpose, KeySpec
from tidegate.keys.uri import open_store
from tidegate.pki.authority import Authority, Grant
from tidegate.pki.ca_store import CaStore, Reason
from tidegate.pki.profiles import PROFILES, SERIAL_BYTES, Order, Subject, draw_serial, sign_certificate
from tidegate.testing.tokens import MODULE, SoftHsm
from tidegate.tls.context import client_context, server_context
from tidegate.tls.failures import last_failure
from tidegate.tls.revocation import RevocationLists
from tidegate.tls.selfcheck import shake_hands
from tidegate.tls.staple import OcspRule, Stapler

pytestmark = pytest.mark.skipif(not MODULE.exists(), reason="softhsm2 is not installed")


def der(certificate):
    return certificate.public_bytes(Encoding.DER)


class Factory:
    """A root and an issuing CA, a gateway (server) and a device (client); all keys in one token."""

    def __init__(self, store, folder, algorithm):
        self.store, self.algorithm = store, algorithm
        now = datetime.datetime.now(tz=datetime.UTC).replace(microsecond=0) - datetime.timedelta(hours=1)

        def ca(name, issuer):
            signer = self.key(name)
            order = Order(
                profile=PROFILES["issuing-ca" if issuer else "root-ca"],
                subject=Subject(common_name=f"Example {name}", organization="Example Maker"),
                public_key=signer.public_key,
                now=now,
                serial=draw_serial(SystemEntropy().random_bytes(SERIAL_BYTES)),
            )
            return signer, sign_certificate(order, issuer, self.root_key if issuer else signer)

        self.root_key, self.root = ca("root", None)
        issuing_key, issuing = ca("issuing", self.root)
        self.authority = Authority(
            [issuing, self.root],
            issuing_key,
            CaStore(folder, create=True),
            clock=SystemClock(),
            entropy=SystemEntropy(),
            report=lambda _: None,
        )
        self.gateway = self.issue("gateway", "server", names=(x509.DNSName("gateway.example"),))
        self.device = self.issue("device", "ldevid", serial_number="SN-0001")
        self.anchors = [der(self.root)]

    def key(self, name):
        self.store.generate(name, KeySpec(purpose=KeyPurpose.SIGN, algorithm=self.algorithm))
        return self.store.signer(name)

    def issue(self, name, profile, **subject):
        signer = self.key(name)
        subject = Subject(common_name=f"{name}.example", **subject)
        made = self.authority.issue(Grant(profile=PROFILES[profile], subject=subject, public_key=signer.public_key))
        return signer, made, [der(made), der(self.authority.certificate)]


ALGORITHMS = [SignatureAlgorithm.ECDSA_P256, SignatureAlgorithm.ECDSA_P384, SignatureAlgorithm.ED25519]


@pytest.fixture(params=ALGORITHMS, ids=lambda one: one.label)
def factory(tmp_path, request):
    with SoftHsm(tmp_path / "hsm") as hsm:
        hsm.make_token("factory")
        store = open_store(hsm.uri("factory"))
        made = Factory(store, tmp_path / "ca", request.param)
        yield made
        made.authority.store.close()
        store.close()


def test_from_birth_to_refusal(factory) -> None:
    """The gateway staples, the device demands; the device's certificate is looked up in the list; then each is revoked.

    The signatures of certificates, answers, lists and handshakes are all the token's.
    """
    authority = factory.authority
    gateway_key, gateway, gateway_chain = factory.gateway
    device_key, device, device_chain = factory.device
    lists = RevocationLists([der(authority.certificate)])
    stapler = Stapler(lambda: authority.staple_for(gateway), gateway_chain)
    server = server_context(gateway_key, gateway_chain, clients=factory.anchors, lists=lists, stapler=stapler)
    client = client_context(device_key, device_chain, anchors=factory.anchors, ocsp=OcspRule.REQUIRE)

    with pytest.raises(ssl.SSLCertVerificationError, match="unable to get certificate CRL"):
        shake_hands(server, client, "gateway.example")
    lists.update(authority.crl())
    server_end, client_end = shake_hands(server, client, "gateway.example")
    assert server_end.getpeercert(binary_form=True) == der(device)
    assert client_end.getpeercert(binary_form=True) == der(gateway)

    authority.revoke(device.serial_number, Reason.KEY_COMPROMISE)
    shake_hands(server, client, "gateway.example")  # not before the list says so
    lists.update(authority.crl())
    with pytest.raises(ssl.SSLCertVerificationError, match="certificate revoked"):
        shake_hands(server, client, "gateway.example")

    authority.revoke(gateway.serial_number, Reason.KEY_COMPROMISE)

    class Honest:
        def current(self):
            return authority.staple_for(gateway)

    open_server = server_context(gateway_key, gateway_chain, clients=None, stapler=Honest())
    with pytest.raises(ssl.SSLError):
        shake_hands(open_server, client, "gateway.example")
    assert last_failure(client).code == "pki.certificate.revoked"
    silent = server_context(gateway_key, gateway_chain, clients=None)  # as a thief with the key would
    with pytest.raises(ssl.SSLError):
        shake_hands(silent, client, "gateway.example")
    assert last_failure(client).code == "tls.staple.missing"
