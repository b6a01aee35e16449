"""What the crypto room refuses, and why."""

from tidegate.base.errors import Fault, Misuse, Rejected


class CborMalformed(Rejected):
    code = "crypto.cbor.malformed"
    advice = "The bytes are not CBOR in our deterministic profile; make the file again with Tidegate's own tools."


class CborLimit(Rejected):
    code = "crypto.cbor.limit"
    advice = "The document is larger or deeper than any that Tidegate writes; check that it is the intended file."


class EnvelopeMalformed(Rejected):
    code = "crypto.envelope.malformed"
    advice = "The file is no Tidegate envelope (docs/formats/envelope.md); check that it is the intended file."


class EnvelopeContext(Rejected):
    code = "crypto.envelope.context"
    advice = "The signature was made for another kind of document; sign this document with its own command."


class AlgorithmUnknown(Rejected):
    code = "crypto.algorithm.unknown"
    advice = "Only the algorithms in docs/formats/envelope.md are accepted; sign with one of them."


class PublicKeyMalformed(Rejected):
    code = "crypto.key.malformed"
    advice = "Export the public key again with `tidegate keys public`."


class SignatureUnknownKey(Rejected):
    code = "crypto.signature.unknown-key"
    advice = "A key outside the trust anchors signed this; obtain it from the maker, or provision the maker's key."


class SignatureInvalid(Rejected):
    code = "crypto.signature.invalid"
    advice = "Content and signature do not belong together: the file was altered; obtain it again from the maker."


class SignatureMissingClass(Rejected):
    code = "crypto.signature.missing-class"
    advice = "Every class of algorithm that the trust policy names has to sign; sign with all of the maker's keys."


class SignatureThreshold(Rejected):
    code = "crypto.signature.threshold"
    advice = "Too few different trusted keys signed; have the other key holders sign as well."


class SignatureDuplicate(Rejected):
    code = "crypto.signature.duplicate"
    advice = "One key signed twice, which counts once; sign again with different keys."


class AeadFailed(Rejected):
    code = "crypto.aead.failed"
    advice = "The data was altered or the key is another one; restore the data or use the right key."


class TrustPolicyEmpty(Misuse):
    code = "crypto.trust.empty"
    advice = "Name at least one trusted key and a threshold that these keys can reach."


class EnvelopeSigners(Misuse):
    code = "crypto.envelope.signers"
    advice = "Sign with 1 to 8 keys, each named once."


class EnvelopeTooLarge(Misuse):
    code = "crypto.envelope.too-large"
    advice = "No device would accept an envelope of this size: say less, or sign with fewer keys."


class SecretForked(Misuse):
    code = "crypto.secret.forked"
    advice = "Secrets do not follow a fork; open the vault or the key store again in the child process."


class SecretWiped(Misuse):
    code = "crypto.secret.wiped"
    advice = "What held the secret was closed; open the vault or the key store again."


class SecretMemoryShort(Fault):
    code = "crypto.secret.memory"
    advice = (
        "Raise the limit on locked memory (LimitMEMLOCK= of the unit, `ulimit -l`), or keep larger data in an item."
    )


class KemRefused(Rejected):
    code = "crypto.kem.refused"
    advice = "The wrapped key was altered, or is wrapped for another recipient."


class SharesMalformed(Rejected):
    code = "crypto.shares.malformed"
    advice = "Give shares of one secret, each of them once."
