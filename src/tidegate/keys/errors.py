"""What the keys room refuses, and why."""

from tidegate.base.errors import Fault, Misuse, Rejected


class KeyUriMalformed(Misuse):
    code = "keys.uri.malformed"
    advice = "Write a key as file:/FOLDER?key=NAME&device-secret=/FILE or file:/FOLDER?key=NAME&passphrase-file=/FILE."


class ProviderUnknown(Misuse):
    code = "keys.provider.unknown"
    advice = "Use a provider that this build has: file:."


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
