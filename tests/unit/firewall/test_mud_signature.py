"""Detached signatures of MUD files: a row per attack, made with real certificates and checked by OpenSSL."""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import pkcs7
from cryptography.x509.oid import NameOID

from tidegate.base.program import run_program
from tidegate.firewall.errors import MudExport, MudSignatureBad, MudSignerRefused
from tidegate.firewall.mud import MAX_MUD_BYTES
from tidegate.firewall.mud_signature import MAX_SIGNATURE_BYTES, MUD_SIGNER, VerifiedMud, sign_mud, verify_mud

NOW = datetime.datetime(2025, 6, 1, tzinfo=datetime.UTC)
DAY = datetime.timedelta(days=1)
RAW = (Path(__file__).parent / "mud" / "plc.json").read_bytes()
LEAF = {"digital_signature": True}


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """A key and its certificate."""

    key: Any
    certificate: x509.Certificate

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    @property
    def key_pem(self) -> bytes:
        encryption = serialization.NoEncryption()
        return self.key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)


def make(
    name: str,
    issuer: Holder | None = None,
    *,
    ca: bool | None = False,
    usage: dict[str, bool] | None = None,
    **more: Any,
) -> Holder:
    """Return a holder whose certificate ``issuer`` signed, or itself; ``ca`` None: no basic constraints."""
    key = more.get("key") or ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    first, last = more.get("valid", (NOW - 30 * DAY, NOW + 30 * DAY))
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.certificate.subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(first)
        .not_valid_after(last)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    if ca is not None:
        builder = builder.add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
    for extension in more.get("extensions", ()):
        builder = builder.add_extension(extension, critical=False)
    if usage is not None:
        builder = builder.add_extension(x509.KeyUsage(**(_NO_USAGE | usage)), critical=True)
    if issuer is not None:
        identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.key.public_key())
        builder = builder.add_extension(identifier, critical=False)
    return Holder(key=key, certificate=builder.sign((issuer.key if issuer else key), hashes.SHA256()))


_NO_USAGE = dict.fromkeys(
    (
        "digital_signature",
        "content_commitment",
        "key_encipherment",
        "data_encipherment",
        "key_agreement",
        "key_cert_sign",
        "crl_sign",
        "encipher_only",
        "decipher_only",
    ),
    False,
)
CA_USAGE = {"key_cert_sign": True, "crl_sign": True}
ROOT = make("Example MUD root", ca=True, usage=CA_USAGE)
ISSUING = make("Example MUD issuing", ROOT, ca=True, usage=CA_USAGE)
SIGNER = make("Example MUD signer", ISSUING, usage=LEAF)


def sign(signer: Holder = SIGNER, *chain: Holder, raw: bytes = RAW) -> bytes:
    return sign_mud(raw, key_pem=signer.key_pem, certificate_pem=signer.pem + b"".join(one.pem for one in chain))


def verify(signature: bytes, raw: bytes = RAW, **changes: Any) -> VerifiedMud:
    return verify_mud(raw, signature, **({"anchors": ROOT.pem, "now": NOW} | changes))


def test_a_file_as_it_was_signed_is_taken_and_its_signer_named() -> None:
    verified = verify(sign(SIGNER, ISSUING))
    assert verified.raw == RAW
    assert verified.signer == "CN=Example MUD signer"


def test_rsa_signers_are_taken_too() -> None:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    assert verify(sign(make("RSA signer", ROOT, usage=LEAF, key=key))).signer == "CN=RSA signer"


def test_a_signature_of_the_openssl_program_is_taken(tmp_path: Path) -> None:
    """As manufacturers make it: the command of RFC 8520 §13.1."""
    assert verify(_openssl_sign(tmp_path)).signer == "CN=Example MUD signer"


def test_only_the_verifier_makes_a_verified_file() -> None:
    with pytest.raises(TypeError):
        VerifiedMud(RAW, "CN=nobody", made_by=object())


def _openssl_sign(folder: Path, *options: str, raw: bytes = RAW) -> bytes:
    for name, content in (("mud", raw), ("key", SIGNER.key_pem), ("cert", SIGNER.pem), ("chain", ISSUING.pem)):
        (folder / name).write_bytes(content)
    command = ["openssl", "cms", "-sign", "-signer", str(folder / "cert"), "-inkey", str(folder / "key")]
    command += ["-in", str(folder / "mud"), "-binary", "-outform", "DER", "-certfile", str(folder / "chain"), *options]
    return run_program(command).stdout


@pytest.mark.parametrize("place", [0, 1, len(RAW) // 2, len(RAW) - 1])
def test_a_file_with_one_byte_changed_is_refused(place: int) -> None:
    changed = bytearray(RAW)
    changed[place] ^= 1
    with pytest.raises(MudSignatureBad):
        verify(sign(SIGNER, ISSUING), bytes(changed))


def test_a_file_with_something_at_its_end_or_without_is_refused() -> None:
    signature = sign(SIGNER, ISSUING)
    for raw in (RAW + b" ", RAW + b"\n", RAW[:-1], RAW.replace(b"\n", b"\r\n"), b""):
        with pytest.raises(MudSignatureBad):
            verify(signature, raw)


def test_a_signature_cut_or_emptied_is_refused() -> None:
    signature = sign(SIGNER, ISSUING)
    for length in (0, 1, 10, len(signature) // 2, len(signature) - 1):
        with pytest.raises(MudSignatureBad):
            verify(signature[:length])


def test_a_signature_with_one_bit_changed_is_refused_or_says_the_same() -> None:
    """Some bits, the content type's, are nobody's business; no change makes another file or another signer of it."""
    signature = sign(SIGNER, ISSUING)
    refused = 0
    for place in range(0, len(signature), 23):
        changed = bytearray(signature)
        changed[place] ^= 1
        try:
            verified = verify(bytes(changed))
        except (MudSignatureBad, MudSignerRefused):
            refused += 1
        else:
            assert (verified.raw, verified.signer) == (RAW, "CN=Example MUD signer")
    assert refused > 40


def test_a_signature_that_holds_another_content_speaks_for_none(tmp_path: Path) -> None:
    """Content inside of the signature must not be what is verified while the file beside it is what is used."""
    other = _openssl_sign(tmp_path, "-nodetach", raw=b"something else")
    with pytest.raises(MudSignatureBad):
        verify(other)


def test_certificates_alone_are_no_signature(tmp_path: Path) -> None:
    """A CMS message with no signer at all verifies vacuously in careless readers."""
    message = pkcs7.serialize_certificates([SIGNER.certificate, ISSUING.certificate], serialization.Encoding.DER)
    with pytest.raises((MudSignatureBad, MudSignerRefused)):
        verify(message)


def test_a_broken_digest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MudSignatureBad):
        verify(_openssl_sign(tmp_path, "-md", "sha1"))


def test_two_signers_are_refused(tmp_path: Path) -> None:
    second = make("Second signer", ISSUING, usage=LEAF)
    (tmp_path / "both").write_bytes(second.pem + second.key_pem)
    with pytest.raises(MudSignerRefused):
        verify(_openssl_sign(tmp_path, "-signer", str(tmp_path / "both")))


PATHS = {
    "a chain with a certificate missing": lambda: sign(SIGNER),
    "another root of the same name": lambda: sign(
        make("x", make("Example MUD root", ca=True, usage=CA_USAGE), usage=LEAF)
    ),
    "itself": lambda: sign(make("self", usage=LEAF)),
    "expired": lambda: sign(make("x", ROOT, usage=LEAF, valid=(NOW - 9 * DAY, NOW - DAY))),
    "not valid yet": lambda: sign(make("x", ROOT, usage=LEAF, valid=(NOW + DAY, NOW + 9 * DAY))),
    "issued by a signer": lambda: sign(make("x", SIGNER, usage=LEAF), SIGNER, ISSUING),
    "issued by one who may not issue": lambda: _by_issuer(ca=True, usage=LEAF),
    "issued by one without constraints": lambda: _by_issuer(ca=None, usage=None),
    "issued by one who expired": lambda: _by_issuer(ca=True, usage=CA_USAGE, valid=(NOW - 9 * DAY, NOW - DAY)),
    "weak": lambda: sign(
        make("x", ROOT, usage=LEAF, key=rsa.generate_private_key(public_exponent=65537, key_size=1024))  # noqa: S505 - the attack
    ),
}


def _by_issuer(**about: Any) -> bytes:
    issuer = make("Between", ROOT, **about)
    return sign(make("x", issuer, usage=LEAF), issuer)


@pytest.mark.parametrize("case", PATHS)
def test_a_signer_that_does_not_lead_to_the_anchor_is_refused(case: str) -> None:
    with pytest.raises(MudSignatureBad):
        verify(PATHS[case]())


def test_a_root_of_the_system_is_no_anchor() -> None:
    with pytest.raises(MudSignatureBad):
        verify(sign(SIGNER, ISSUING), anchors=b"")


@pytest.mark.parametrize("usage", [None, {"key_encipherment": True}, CA_USAGE, {"content_commitment": True}])
def test_a_key_that_is_not_for_signatures_is_refused(usage: dict[str, bool] | None) -> None:
    with pytest.raises(MudSignerRefused):
        verify(sign(make("x", ROOT, usage=usage)))


def test_the_devices_certificate_names_its_signer() -> None:
    signature = sign(SIGNER, ISSUING)

    def device(*extensions: x509.ExtensionType) -> x509.Certificate:
        return make("device", ROOT, usage=LEAF, extensions=extensions).certificate

    named = x509.UnrecognizedExtension(MUD_SIGNER, SIGNER.certificate.subject.public_bytes())
    other = x509.UnrecognizedExtension(MUD_SIGNER, ISSUING.certificate.subject.public_bytes())
    assert verify(signature, idevid=device(named)).signer == verify(signature, idevid=device()).signer
    with pytest.raises(MudSignerRefused):
        verify(signature, idevid=device(other))


def test_what_is_too_large_is_not_even_looked_at() -> None:
    for raw, signature in ((b" " * (MAX_MUD_BYTES + 1), b""), (RAW, b"0" * (MAX_SIGNATURE_BYTES + 1))):
        with pytest.raises(MudSignatureBad):
            verify(signature, raw)


@pytest.mark.parametrize(
    "given",
    [
        {"key_pem": b"no key"},
        {"certificate_pem": b"no certificate"},
        {"certificate_pem": ISSUING.pem},
        {"key_pem": make("x").key_pem},
        {"key_pem": Holder(key=ed25519.Ed25519PrivateKey.generate(), certificate=SIGNER.certificate).key_pem},
    ],
)
def test_a_key_that_makes_no_signature_is_refused(given: dict[str, bytes]) -> None:
    with pytest.raises(MudExport):
        sign_mud(RAW, **({"key_pem": SIGNER.key_pem, "certificate_pem": SIGNER.pem} | given))
