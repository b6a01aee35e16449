"""What the pki room refuses, and why."""

from tidegate.base.errors import Rejected


class CertificateMalformed(Rejected):
    code = "pki.certificate.malformed"
    advice = "The file holds no single X.509 certificate in PEM; export it again."
