"""A MUD file's detached CMS signature (RFC 8520 §13), verified and made.

Touches: the ``openssl`` program and a private folder for its arguments, because the cryptography library makes such
signatures but does not verify them.
"""

from __future__ import annotations

import datetime
import re
import tempfile
from pathlib import Path
from typing import Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import pkcs7
from cryptography.x509.oid import ObjectIdentifier

from tidegate.base.errors import ProgramFailed
from tidegate.base.program import run_program
from tidegate.firewall.errors import MudExport, MudSignatureBad, MudSignerRefused
from tidegate.firewall.mud import MAX_MUD_BYTES

MUD_SIGNER = ObjectIdentifier("1.3.6.1.5.5.7.1.30")  # id-pe-mudsigner, RFC 8520 §11
MAX_SIGNATURE_BYTES = 65_536  # a signature and a chain of RSA-4096 certificates have 8 KB
MAX_ANCHOR_BYTES = 1_048_576  # a system's whole list of authorities has 220 KB
TIMEOUT_S = 10.0
_DIGESTS = frozenset({"sha256", "sha384", "sha512", "sha3-256", "sha3-384", "sha3-512"})
_DIGEST = re.compile(rb"digestAlgorithm:\s+algorithm: (\S+)")
_WEAKEST = "2"  # OpenSSL's security level: keys and digests of at least 112 bits

_PRIVATE = object()


class VerifiedMud:
    """The bytes of a MUD file whose signature was verified; made by ``verify_mud`` alone."""

    __slots__ = ("raw", "signer")

    def __init__(self, raw: bytes, signer: str, *, made_by: object) -> None:
        if made_by is not _PRIVATE:
            raise TypeError("only verify_mud makes one")
        self.raw = raw
        self.signer = signer

    @classmethod
    def _make(cls, raw: bytes, signer: str) -> Self:
        return cls(raw, signer, made_by=_PRIVATE)


def verify_mud(
    raw: bytes, signature: bytes, *, anchors: bytes, now: datetime.datetime, idevid: x509.Certificate | None = None
) -> VerifiedMud:
    """Return the file as verified, with its signer's name, or raise.

    1. ``signature`` (DER) is one of CMS over exactly ``raw``, by digests that are not broken.
    2. The signer's certificate leads to one of ``anchors`` (PEM) and to no other, every certificate valid at ``now``.
    3. One signer, whose key usage is there and has digitalSignature.
    4. The signer is the one that ``idevid``, the device's certificate, names in its MUDsigner extension, if it has one.

    Raises ``firewall.mud.signature`` (1, 2), ``firewall.mud.signer`` (3, 4), ``base.program.missing``. Not checked:
    revocation; whether ``idevid`` is the device's and genuine, which the caller has to know; names are compared as
    encoded, without RFC 5280's rules for upper and lower case.
    """
    if len(raw) > MAX_MUD_BYTES or len(signature) > MAX_SIGNATURE_BYTES or len(anchors) > MAX_ANCHOR_BYTES:
        raise MudSignatureBad("file, signature or trust anchors are larger than any genuine ones")
    signers = _run_openssl(raw, signature, anchors, now)
    if len(signers) != 1:
        raise MudSignerRefused(f"{len(signers)} signers instead of one", count=len(signers))
    _check_usage(signers[0])
    if idevid is not None:
        _check_named(signers[0], idevid)
    return VerifiedMud._make(raw, signers[0].subject.rfc4514_string())


def sign_mud(raw: bytes, *, key_pem: bytes, certificate_pem: bytes) -> bytes:
    """Return the detached signature of ``raw`` in DER, with SHA-256 and the certificates of the chain in it.

    ``certificate_pem``: the signer's certificate first, then those that lead to the trust anchor. Raises
    ``firewall.mud.export`` when they are no such key and certificate.
    """
    try:
        key = serialization.load_pem_private_key(key_pem, password=None)
        chain = x509.load_pem_x509_certificates(certificate_pem)
    except (ValueError, TypeError) as error:
        raise MudExport(f"no private key or certificate in PEM: {error}") from error
    if not isinstance(key, (rsa.RSAPrivateKey, ec.EllipticCurvePrivateKey)):
        raise MudExport("MUD signatures are made with RSA or elliptic curve keys")
    if key.public_key() != chain[0].public_key():
        raise MudExport("the key is not that of the first certificate")
    builder = pkcs7.PKCS7SignatureBuilder().set_data(raw).add_signer(chain[0], key, hashes.SHA256())
    for certificate in chain[1:]:
        builder = builder.add_certificate(certificate)
    options = [pkcs7.PKCS7Options.DetachedSignature, pkcs7.PKCS7Options.Binary]
    return builder.sign(serialization.Encoding.DER, options)


def _run_openssl(raw: bytes, signature: bytes, anchors: bytes, now: datetime.datetime) -> list[x509.Certificate]:
    """Return the certificates of all signers after duties 1 and 2."""
    with tempfile.TemporaryDirectory(prefix="tidegate-mud-") as name:
        folder = Path(name)
        for file, content in (("mud", raw), ("signature", signature), ("anchors", anchors)):
            (folder / file).write_bytes(content)
        taken = ["-inform", "DER", "-in", str(folder / "signature")]
        try:
            shown = run_program(["openssl", "cms", "-cmsout", "-print", "-noout", *taken], timeout_s=TIMEOUT_S)
            found = {digest.decode(errors="replace") for digest in _DIGEST.findall(shown.stdout)}
            if not found or not found <= _DIGESTS:
                raise MudSignatureBad(f"signed with {', '.join(sorted(found - _DIGESTS)) or 'nothing'}")
            trust = ["-CAfile", str(folder / "anchors"), "-no-CApath", "-no-CAstore", "-purpose", "any"]
            trust += ["-auth_level", _WEAKEST, "-attime", str(int(now.timestamp()))]
            files = ["-content", str(folder / "mud"), "-signer", str(folder / "signers"), "-out", str(folder / "out")]
            run_program(["openssl", "cms", "-verify", "-binary", *taken, *trust, *files], timeout_s=TIMEOUT_S)
            return x509.load_pem_x509_certificates((folder / "signers").read_bytes())
        except ProgramFailed as error:
            said = error.message.rpartition("status")[2].replace(str(folder), "")
            raise MudSignatureBad(f"the signature does not hold: status {said.strip()}") from error
        except (ValueError, OSError) as error:
            raise MudSignatureBad(f"the signer's certificate cannot be read: {error}") from error


def _check_usage(certificate: x509.Certificate) -> None:
    try:
        usage = certificate.extensions.get_extension_for_class(x509.KeyUsage).value
    except (x509.ExtensionNotFound, ValueError) as error:
        raise MudSignerRefused("the signer's certificate does not say what its key is for") from error
    if not usage.digital_signature:
        raise MudSignerRefused("the signer's key is not for signatures")


def _check_named(signer: x509.Certificate, idevid: x509.Certificate) -> None:
    try:
        extension = idevid.extensions.get_extension_for_oid(MUD_SIGNER).value
    except x509.ExtensionNotFound:
        return  # RFC 8520 §13.2 asks for it when it is there
    except ValueError as error:
        raise MudSignerRefused("the device's certificate cannot be read") from error
    named = extension.value if isinstance(extension, x509.UnrecognizedExtension) else b""
    if named != signer.subject.public_bytes():
        text = f"the device's certificate names another signer than {signer.subject.rfc4514_string()}"
        raise MudSignerRefused(text)
