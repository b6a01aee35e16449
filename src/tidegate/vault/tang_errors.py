"""What the network key server's client refuses, and why."""

from tidegate.base.errors import Fault, Misuse, Rejected


class TangSettingInvalid(Misuse):
    """The address, the thumbprint or the time limit is none."""

    code = "vault.tang.setting"
    advice = (
        "Give http:// or https:// with a host, at most a port and a path; the 43-character SHA-256 thumbprint that "
        "`tang-show-keys` prints; and a time limit of up to 300 s."
    )


class TangUnreachable(Fault):
    """Nobody answers there, or only that the service is out of order."""

    code = "vault.tang.unreachable"
    advice = "Check that tangd runs and that the device reaches it (`curl URL/adv`); the slot is not harmed, try again."


class TangSlow(Fault):
    """The answer was not complete within the time limit."""

    code = "vault.tang.slow"
    advice = "Check the network and the server's load, or allow more time; the slot is not harmed, try again."


class TangKeyGone(Fault):
    """The server has no exchange key of the slot's thumbprint, not even a retired one."""

    code = "vault.tang.key-gone"
    advice = (
        "Ask the server's administrator whether the retired key was deleted (then this slot never opens again: use "
        "another unlocker) or whether this is another server."
    )


class TangUntrusted(Rejected):
    """The advertisement is signed by keys of which none is the trusted one."""

    code = "vault.tang.untrusted"
    advice = (
        "Compare the thumbprints with `tang-show-keys` on the server itself; if the keys were rotated, trust the new "
        "one; otherwise somebody stands in the server's place."
    )


class TangSignatureInvalid(Rejected):
    """A key in the advertisement did not sign it."""

    code = "vault.tang.signature"
    advice = "The advertisement was altered on the way, or the server is none of Tang's; nothing was bound to it."


class TangCertificateInvalid(Rejected):
    """The https certificate of the server is not acceptable."""

    code = "vault.tang.certificate"
    advice = "Give the TLS context that trusts the server's authority, or http: Tang needs no TLS for its secrecy."


class TangAnswerMalformed(Rejected):
    """The answer is none of Tang's protocol, or larger than any."""

    code = "vault.tang.answer"
    advice = "Check that the URL leads to tangd itself and not to a portal, a proxy's error page or a redirection."


class TangSlotMalformed(Rejected):
    """The slot is no JWE that Tidegate or clevis writes for Tang."""

    code = "vault.tang.slot"
    advice = "The slot was altered or is of another version; restore the vault's record from the backup."


class TangRefused(Rejected):
    """What the server answered does not open the slot, or the slot is bound to something else."""

    code = "vault.tang.refused"
    advice = (
        "The slot or the server's answer was altered, or the slot was moved here from another vault; try from another "
        "network, then restore the vault's record from the backup."
    )


class JoseMalformed(Rejected):
    """Text that should be JSON, a JWK or a JWE is something else."""

    code = "vault.jose.malformed"
    advice = "The key or message was altered, or uses an algorithm outside docs/vault-network-key.md."
