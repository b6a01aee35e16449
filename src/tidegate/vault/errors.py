"""What the vault refuses, and why."""

from tidegate.base.errors import Fault, Misuse, Rejected


class VaultExists(Misuse):
    code = "vault.folder.exists"
    advice = "Choose an empty folder; a vault is never created over other files."


class VaultClosed(Misuse):
    code = "vault.folder.closed"
    advice = "Open the vault again; its keys were wiped when it was closed."


class UnlockerMissing(Misuse):
    code = "vault.unlock.missing"
    advice = "Give --key URI of a sealing key, or --passphrase-fd N (`… --passphrase-fd 3 3</run/secret`)."


class ItemNameInvalid(Misuse):
    code = "vault.item.name"
    advice = (
        "Name items like relative paths: parts between single '/', no '.' or '..', 1 to 1024 bytes, no control codes."
    )


class ItemTooLarge(Misuse):
    code = "vault.item.size"
    advice = "Split the data; an item has at most 1 TiB."


class ItemUnknown(Fault):
    code = "vault.item.unknown"
    advice = "List the vault with `tidegate vault ls`; nothing is stored under this name."


class VaultBusy(Fault):
    code = "vault.folder.busy"
    advice = "Another process has the vault open; close it there or try again."


class VaultFull(Fault):
    code = "vault.folder.full"
    advice = "The vault holds as many items as one manifest lists; delete some or create a second vault."


class RecordMalformed(Rejected):
    code = "vault.record.malformed"
    advice = "The vault's record (vault.cbor) was altered or is of another version; restore it from the backup."


class UnlockRefused(Rejected):
    code = "vault.unlock.refused"
    advice = "The passphrase or key is another one, or the vault's record was altered; nothing was opened."


class ManifestMissing(Rejected):
    code = "vault.manifest.missing"
    advice = "The vault's listing was removed; restore the vault from the backup."


class ManifestAltered(Rejected):
    code = "vault.manifest.altered"
    advice = "The vault's listing was altered or is of another vault; restore the vault from the backup."


class VaultRolledBack(Rejected):
    code = "vault.manifest.rollback"
    advice = "Somebody put an older copy of the vault back; the counter in the key store has moved on."


class AnchorMismatch(Rejected):
    code = "vault.anchor.mismatch"
    advice = "The key store's counter is behind the vault: the key store was restored from an old copy, or exchanged."


class FileMissing(Rejected):
    code = "vault.file.missing"
    advice = "An item's file was removed from the storage; restore it from the backup."


class FileTruncated(Rejected):
    code = "vault.file.truncated"
    advice = "An item's file was cut off; restore it from the backup."


class FileExtended(Rejected):
    code = "vault.file.extended"
    advice = "Something was appended to an item's file; restore it from the backup."


class FileSwapped(Rejected):
    code = "vault.file.swapped"
    advice = "Another item's file was put in this one's place; restore it from the backup."


class FileRolledBack(Rejected):
    code = "vault.file.rollback"
    advice = "An older copy of the item's file was put back; restore the newest from the backup."


class FilePathChanged(Rejected):
    code = "vault.file.path"
    advice = "The item's file was written under another name; restore it from the backup."


class HeaderAltered(Rejected):
    code = "vault.header.altered"
    advice = "The header of an item's file was altered or is of another vault; restore the file from the backup."


class HeaderUnsupported(Rejected):
    code = "vault.header.unsupported"
    advice = "The file is of a newer version of the format, or no vault file; use the Tidegate that wrote it."


class ChunkAltered(Rejected):
    code = "vault.chunk.altered"
    advice = "The content of an item's file was altered; restore the file from the backup."


class ChunkReordered(Rejected):
    code = "vault.chunk.reordered"
    advice = "Parts of an item's file were exchanged; restore the file from the backup."
