"""What the pki room refuses, and why."""

from tidegate.base.errors import Fault, Misuse, Rejected


class CertificateMalformed(Rejected):
    code = "pki.certificate.malformed"
    advice = "The file holds no single X.509 certificate in PEM; export it again."


class KeyUnsupported(Misuse):
    code = "pki.key.unsupported"
    advice = "Certificates carry ECDSA, Ed25519 and RSA keys: generate one with `--algorithm ecdsa-p256`, for example."


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


class RequestMalformed(Rejected):
    code = "pki.request.malformed"
    advice = "The file is no PKCS#10 request in DER or PEM of sensible size; make it with `tidegate ca request`."


class RequestForged(Rejected):
    code = "pki.request.forged"
    advice = "Whoever made the request does not have its private key, or it was altered; make it anew on the device."


class KeyNotAllowed(Rejected):
    code = "pki.key.not-allowed"
    advice = "Use ECDSA P-256 or P-384, Ed25519, or RSA of 3,072 or 4,096 bits, signed with SHA-256 or better."


class ProfileRefused(Rejected):
    code = "pki.profile.refused"
    advice = "The profile does not allow that name, key or lifetime; `tidegate ca profiles` shows what each allows."


class RequestConflict(Rejected):
    code = "pki.request.conflict"
    advice = "The request id was used for another request already; draw a new one."


class SerialUnknown(Misuse):
    code = "pki.serial.unknown"
    advice = "No certificate of this CA has that serial number; list them with `tidegate ca list`."


class CaStoreBusy(Fault):
    code = "pki.ca-store.busy"
    advice = "Another process keeps the CA's database locked: try again, and look for a command that hangs."


class CaStoreCorrupt(Rejected):
    code = "pki.ca-store.corrupt"
    advice = "The CA's database is damaged or of another version; restore it from its backup."


class TokenUnknown(Rejected):
    code = "pki.token.unknown"
    advice = "Nobody issued this enrolment token here; issue one with `tidegate ca token`."


class TokenExpired(Rejected):
    code = "pki.token.expired"
    advice = "The enrolment token's time is over; issue a new one."


class TokenWrongDevice(Rejected):
    code = "pki.token.device"
    advice = "The enrolment token was issued for another device; somebody mixed them up, or tries to."


class TokenReplayed(Rejected):
    code = "pki.token.replayed"
    advice = "The enrolment token was used already; if not by this device, revoke what was issued for it."


class CertificateRevoked(Rejected):
    code = "pki.certificate.revoked"
    advice = "The issuer took the certificate back; the device has to enrol anew, or is to be distrusted."


class CrlMalformed(Rejected):
    code = "pki.crl.malformed"
    advice = "The file is no CRL of the profile that we read; fetch it again from its issuer."


class CrlForged(Rejected):
    code = "pki.crl.forged"
    advice = "The CRL is not signed by the issuer of the certificate; fetch it from the right place."


class CrlStale(Rejected):
    code = "pki.crl.stale"
    advice = "The CRL is out of date or not valid yet: fetch the present one, and check the clock."


class OcspMalformed(Rejected):
    code = "pki.ocsp.malformed"
    advice = "The bytes are no OCSP message of the profile that we read; check who answered."


class OcspForged(Rejected):
    code = "pki.ocsp.forged"
    advice = "The OCSP answer is not signed by the issuer or a responder that it named."


class OcspStale(Rejected):
    code = "pki.ocsp.stale"
    advice = "The OCSP answer is out of date or not valid yet: get a fresh one, and check the clock."


class OcspOther(Rejected):
    code = "pki.ocsp.other"
    advice = "The OCSP answer speaks of another certificate, or answers another question (nonce)."


class OcspUnsuccessful(Rejected):
    code = "pki.ocsp.unsuccessful"
    advice = "The responder answered with an error and no status; ask again later, and look at its own log."


class OcspResponderRefused(Rejected):
    code = "pki.ocsp.responder"
    advice = "The issuer did not authorise whoever signed the answer: issue it an ocsp-responder certificate, in date."


class OcspNonceMismatch(Rejected):
    code = "pki.ocsp.nonce"
    advice = "The answer does not repeat the question's nonce, so it may be a replay; ask a responder that does."


class OcspStatusUnknown(Rejected):
    code = "pki.ocsp.unknown"
    advice = "The issuer knows of no such certificate: it was never issued there, or the responder is another CA's."


class CrlIssuerMismatch(Rejected):
    code = "pki.crl.issuer"
    advice = "The list is another CA's, or its signer may sign no lists; fetch this issuer's own."


class CrlExtensionRefused(Rejected):
    code = "pki.crl.extension"
    advice = (
        "The list is partial, indirect, or has a critical extension that is not understood; it cannot be relied on."
    )


class CrlDeltaMismatch(Rejected):
    code = "pki.crl.delta"
    advice = "The delta list does not continue the full list at hand; fetch the newest full list."


class PathMalformed(Rejected):
    code = "pki.path.malformed"
    advice = "Give X.509 certificates in DER, the one in question first."


class PathLimit(Rejected):
    code = "pki.path.limit"
    advice = "Give fewer and smaller certificates; no chain of ours has more than a root and two below it."


class PathUntrusted(Rejected):
    code = "pki.path.untrusted"
    advice = "No path leads from the certificate to a trust anchor; check the anchors and the certificates between."


class PathExpired(Rejected):
    code = "pki.path.expired"
    advice = "A certificate of the chain is out of date, or the clock is wrong; renew the one that is named."


class PathNotCa(Rejected):
    code = "pki.path.not-ca"
    advice = "A certificate that is no CA's issued another one; distrust whoever holds it."


class PathTooLong(Rejected):
    code = "pki.path.length"
    advice = "A CA stands below one that may have no CA below it; issue from the CA that was meant to."


class PathNameRefused(Rejected):
    code = "pki.path.name"
    advice = "A name is outside what its CA was allowed, or not the one expected; issue within the name constraints."


class PathUsageRefused(Rejected):
    code = "pki.path.usage"
    advice = "The certificate is for another use; issue one of the profile that this use needs."


class PathExtensionRefused(Rejected):
    code = "pki.path.extension"
    advice = "A certificate has a critical extension that is not understood, or breaks RFC 5280's rules for one."


class PathKeyRefused(Rejected):
    code = "pki.path.key"
    advice = "A key of the chain is too small or of another kind; use ECDSA P-256 or better, or RSA of 3072 bits."


class PathSignatureRefused(Rejected):
    code = "pki.path.signature"
    advice = "A certificate is signed with an outdated algorithm such as SHA-1, or its signature does not hold."


class RolloverRefused(Rejected):
    code = "pki.rollover.refused"
    advice = "The new anchor is not vouched for by one that is held; bring it to the device by another way."


class ProfileUnknown(Misuse):
    code = "pki.profile.unknown"
    advice = "Use a profile that `tidegate ca profiles` shows."


class CaStoreExists(Misuse):
    code = "pki.ca-store.exists"
    advice = "Name an empty folder; a CA's records are never written over."


class EntropyRepeated(Fault):
    code = "pki.entropy.repeated"
    advice = "The random generator repeats itself: stop issuing and examine the machine before going on."
