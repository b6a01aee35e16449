"""What the keys room refuses, and why."""

from tidegate.base.errors import Fault, Misuse, Rejected


class KeyUriMalformed(Misuse):
    code = "keys.uri.malformed"
    advice = (
        "Write it as file:/FOLDER?key=NAME&…, pkcs11:token=…;object=NAME?… or tpm2:/FOLDER?key=NAME&… (docs/keys.md)."
    )


class ProviderUnknown(Misuse):
    code = "keys.provider.unknown"
    advice = "Use a provider that is there: file:, pkcs11:, tpm2:, keyd:, or one that an installed package adds."


class KeyNameInvalid(Misuse):
    code = "keys.name.invalid"
    advice = "Name keys with 1 to 64 of the characters a-z, 0-9, '-', '_' and '.', beginning with a letter or digit."


class KeyExists(Misuse):
    code = "keys.key.exists"
    advice = "Choose another name, or destroy the key first; a key is never replaced silently."


class KeyPurposeWrong(Misuse):
    code = "keys.key.purpose"
    advice = "Keys sign or seal, not both; generate a key for this purpose."


class CapabilityMissing(Misuse):
    code = "keys.capability.missing"
    advice = "This provider cannot do that (`tidegate keys capabilities`); use a TPM or a token that can."


class KeyMissing(Fault):
    code = "keys.key.missing"
    advice = "List the store with `tidegate keys list`; the key may have been destroyed."


class StoreMalformed(Rejected):
    code = "keys.store.malformed"
    advice = "The key store's files were altered or are of another version; restore them from the backup."


class UnlockRefused(Rejected):
    code = "keys.unlock.refused"
    advice = "The passphrase or device secret is another one, or the key file was altered; nothing was opened."


class SealedMalformed(Rejected):
    code = "keys.sealed.malformed"
    advice = "The sealed bytes are damaged or belong to another key or purpose; restore them from the backup."


class StoreClosed(Misuse):
    code = "keys.store.closed"
    advice = "The program used a key store after closing it; open the store again."


class PinRefused(Rejected):
    code = "keys.pin.refused"
    advice = "The PIN is another one; each further wrong try brings the token nearer to locking itself."


class PinLocked(Fault):
    code = "keys.pin.locked"
    advice = (
        "Too many wrong PINs: the hardware refuses every PIN now; wait for the time named, or unlock it by its owner."
    )


class PinMissing(Misuse):
    code = "keys.pin.missing"
    advice = "Name where the PIN comes from: pin-source=/FILE, pin-source=/dev/fd/3 or pin-source=credential:NAME."


class PcrMismatch(Rejected):
    code = "keys.pcr.mismatch"
    advice = "The named registers hold other values than at sealing: boot the system it was made for, or make it anew."


class PcrStatementMissing(Rejected):
    code = "keys.pcr.no-statement"
    advice = (
        "No statement of the key's PCR authority allows the registers' present values: put the one that was shipped "
        "with this system into the store's folder 'statements', or boot a system that has one."
    )


class PcrStatementRefused(Rejected):
    code = "keys.pcr.statement"
    advice = "The statement was altered, or is of another authority, product or set of registers: fetch the right one."


class PcrAuthorityUnusable(Misuse):
    code = "keys.pcr.authority"
    advice = (
        "Name a PCR authority's public key (ECDSA P-256 or P-384, RSA 3072 or 4096) together with --product and the "
        "registers, written as 7,11; where values are asked for, as 7=HEX,11=HEX."
    )


class TokenMissing(Fault):
    code = "keys.token.missing"
    advice = "Plug in the token or start the TPM's service, and check token label, module path or TCTI in the key URI."


class ProviderAbsent(Fault):
    code = "keys.provider.absent"
    advice = "Install what the message names; `tidegate doctor` lists all that is missing."


class ProviderFailed(Fault):
    code = "keys.provider.failed"
    advice = "The token or its library failed as quoted; try again, and look into the token's own log if it stays so."


class NotExportable(Misuse):
    code = "keys.key.not-exportable"
    advice = "The key was made to stay where it is; generate a new one as exportable if that is really meant."


class ImportRefused(Rejected):
    code = "keys.import.refused"
    advice = "Import an unencrypted PKCS#8 key in DER of an allowed algorithm, named as exportable."


class QuoteInvalid(Rejected):
    code = "keys.quote.invalid"
    advice = "The quote is not this platform's answer to this nonce: ask again, and distrust the device if it stays so."


class GrantRefused(Rejected):
    code = "keys.grant.refused"
    advice = "The key process grants this user no such operation on this key; the maker of its grants file can add it."


class KeydConfigInvalid(Rejected):
    code = "keys.keyd.config"
    advice = "Mend the key process's file at the named place; deploy/keyd.toml is an example."


class KeydMessageMalformed(Rejected):
    code = "keys.keyd.malformed"
    advice = "The other end of the key process's socket speaks another version or is no key process; restart both."


class KeydUnreachable(Fault):
    code = "keys.keyd.unreachable"
    advice = "Start tidegate-keyd, and check the socket's path and that this user may open it."


class KeydBusy(Fault):
    code = "keys.keyd.busy"
    advice = "The key process has as many clients as it may have; close some, or raise its limits."
