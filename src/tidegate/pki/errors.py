"""What the pki room refuses, and why."""

from tidegate.base.errors import Misuse, Rejected


class CertificateMalformed(Rejected):
    code = "pki.certificate.malformed"
    advice = "The file holds no single X.509 certificate in PEM; export it again."


class KeyUnsupported(Misuse):
    code = "pki.key.unsupported"
    advice = "Certificates carry ECDSA keys: generate one with `--algorithm ecdsa-p256` or ecdsa-p384."


class IssuerMismatch(Misuse):
    code = "pki.issuer.mismatch"
    advice = "Give the CA's certificate together with the key it was issued for (`tidegate factory ca`)."


class NameInvalid(Misuse):
    code = "pki.name.invalid"
    advice = "Use 1 to 64 printable characters for a device's serial number, 1 to 53 for the maker's name."
