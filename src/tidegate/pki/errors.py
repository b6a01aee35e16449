"""What the pki room refuses, and why."""

from tidegate.base.errors import Fault, Misuse, Rejected


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


class EstBodyMalformed(Rejected):
    code = "pki.est.body-malformed"
    advice = "EST bodies are base64 of a PKCS#10 request or of certificates-only CMS; compare with RFC 7030 and 8951."


class EstTooLarge(Rejected):
    code = "pki.est.too-large"
    advice = "No request or answer of EST is that large; check what the peer really is."


class EstContentTypeWrong(Rejected):
    code = "pki.est.content-type"
    advice = "Send requests as application/pkcs10; an answer of another type comes from something else than EST."


class EstOperationUnknown(Rejected):
    code = "pki.est.operation-unknown"
    advice = "Ask below /.well-known/est with a label that the server has and an operation of RFC 7030."


class EstMethodWrong(Rejected):
    code = "pki.est.method"
    advice = "cacerts and csrattrs are asked with GET, everything else with POST."


class EstOperationRefused(Rejected):
    code = "pki.est.operation-refused"
    advice = "The server makes no keys and takes no full CMC requests: make the key on the device, use simpleenroll."


class EstUnauthenticated(Rejected):
    code = "pki.est.unauthenticated"
    advice = "Enrol with the device's IDevID or a one-time token, renew with the certificate that is to be renewed."


class EstIdentityMismatch(Rejected):
    code = "pki.est.identity"
    advice = "A device may only ask for a certificate in its own serial number, a renewal only for the same names."


class EstRenewalRefused(Rejected):
    code = "pki.est.renewal"
    advice = "Only certificates of this CA are renewed; enrol with the IDevID or a token instead."


class EstBindingMismatch(Rejected):
    code = "pki.est.binding"
    advice = "The request was made for another TLS connection, or for none: put this connection's binding into it."


class EstRateExceeded(Rejected):
    code = "pki.est.rate"
    advice = "This device or address asked too often; wait for the time that the answer names."


class EstPending(Fault):
    code = "pki.est.pending"
    advice = "A person has to approve the request; ask again with the same one after the time that the answer names."


class EstUnavailable(Fault):
    code = "pki.est.unavailable"
    advice = "The EST server is out of reach or failed; the device tries again by itself, later each time."


class EstRefused(Rejected):
    code = "pki.est.refused"
    advice = "The EST server refused; its own events say why. Check the IDevID or token, and the serial number."


class EstAnswerWrong(Rejected):
    code = "pki.est.answer"
    advice = "The answer is not the certificate that was asked for; check which CA answers at this address."


class IdentityMissing(Fault):
    code = "pki.identity.missing"
    advice = "The device has no usable certificate: `tidegate identity enrol` with its IDevID or a new token."


class IdentityTransition(Misuse):
    code = "pki.identity.transition"
    advice = "The device's identity is in another state than this step needs; `tidegate identity status` shows it."


class IdentityCorrupt(Rejected):
    code = "pki.identity.corrupt"
    advice = "The identity's journal was altered: `tidegate identity reset`, then enrol anew with the IDevID."


class IdentityBusy(Fault):
    code = "pki.identity.busy"
    advice = "Another process works on this identity, probably its service; ask that one, or stop it first."


class EstUrlMalformed(Misuse):
    code = "pki.est.url"
    advice = "Write an EST server as https://HOST, https://HOST:PORT or https://HOST:PORT/LABEL, and give its anchors."
