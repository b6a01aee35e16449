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


class VaultFailed(Fault):
    code = "vault.folder.failed"
    advice = "The storage failed under the vault; look at the kernel's log, then open the vault again: it recovers."


class ItemBusy(Fault):
    code = "vault.item.busy"
    advice = "The item is open for writing elsewhere in this program, or being read; close it there first."


class PaddingUnknown(Misuse):
    code = "vault.padding.unknown"
    advice = "Pad by `none`, `padme`, or a block size in bytes from 1 to 1073741824."


class RecordNameInvalid(Misuse):
    code = "vault.entry.name"
    advice = "A table has a printable name of 1 to 255 bytes, a key 1 to 1024 bytes."


class RecordTooLarge(Misuse):
    code = "vault.entry.size"
    advice = "A record has at most 65,536 bytes; store larger data as an item."


class TransactionTooLarge(Misuse):
    code = "vault.transaction.size"
    advice = "A transaction has at most 4 MiB; divide it."


class WriterEnded(Misuse):
    code = "vault.item.ended"
    advice = "After an error the new content is given up and the item stays as it was; open it and write anew."


class RangeInvalid(Misuse):
    code = "vault.item.range"
    advice = "Offsets are counted from 0, the beginning of the item."


class FileModeUnknown(Misuse):
    code = "vault.file.mode"
    advice = "Open an item as 'r', 'w' (a new content), 'r+' (change it) or 'a' (append)."


class UnlockerLast(Misuse):
    code = "vault.unlockers.last"
    advice = "Add another unlocker first: without any the vault could never be opened again."


class UnlockerUnknown(Misuse):
    code = "vault.unlockers.unknown"
    advice = "List the vault's unlockers with `tidegate vault unlockers list`; name one by its number."


class UnlockersFull(Misuse):
    code = "vault.unlockers.full"
    advice = "A vault has at most 32 unlockers; remove one that is not used."


class DriveMissing(Fault):
    code = "vault.drive.missing"
    advice = "Plug in the drive whose file system has this label, and no other one of that label."


class DriveKeyMissing(Fault):
    code = "vault.drive.key"
    advice = "The drive has not the key file that the vault was bound to; plug in the right one."


class EscrowOffline(Misuse):
    code = "vault.escrow.offline"
    advice = "Opening needs the private half of the escrow key, which is kept offline: `--escrow-key FILE`."


class EscrowKeyMalformed(Rejected):
    code = "vault.escrow.malformed"
    advice = "Name the file that `tidegate vault escrow-key` wrote: the public half to add, the private one to open."


class ThresholdMissed(Fault):
    code = "vault.unlock.threshold"
    advice = "Provide more of the parts: plug in the drive, reach the key server, give the passphrase."


class EraseIncomplete(Fault):
    code = "vault.erase.incomplete"
    advice = "Look at what the message names, mend it, and erase again: what was erased stays erased."


class EraseUnconfirmed(Misuse):
    code = "vault.erase.unconfirmed"
    advice = "There is no way back. Name the keys with --key, the signer with --sign and --receipt, and say --yes."


class ReceiptMalformed(Rejected):
    code = "vault.receipt.malformed"
    advice = "The file is no erasure receipt; name the one that `tidegate vault erase` wrote."


class EditFailed(Fault):
    code = "vault.edit.failed"
    advice = "Edit as root, or where the kernel allows user namespaces; name an editor with --editor that ends with 0."


class BackupMalformed(Rejected):
    code = "vault.backup.malformed"
    advice = "The file is no backup of a vault, or is damaged; restore another one."


class DatabaseLibraryMissing(Fault):
    code = "vault.database.library"
    advice = "Install Tidegate with the extra for databases: `pip install 'tidegate[sqlite]'`."


class DatabaseRefused(Rejected):
    code = "vault.database.refused"
    advice = "The file is no database of this vault's, or was altered; restore it from the backup."


class RekeyingPending(Misuse):
    code = "vault.rekey.pending"
    advice = "Finish what was begun with `tidegate vault rekey`, then go on."


class StreamNotReady(Misuse):
    code = "vault.stream.not-ready"
    advice = "The source gives nothing without waiting; hand over one that blocks until it has something."


class KeyUnknown(Fault):
    code = "vault.key.unknown"
    advice = "The vault has no application key of this name; create it first."


class RecordMalformed(Rejected):
    code = "vault.record.malformed"
    advice = "The vault's record (vault.cbor) was altered; restore it from the backup."


class RecordUnsupported(Rejected):
    code = "vault.record.unsupported"
    advice = "Export the items with the Tidegate that wrote the vault, and import them into a new vault of this one."


class RecordAltered(Rejected):
    code = "vault.record.altered"
    advice = (
        "Somebody changed the vault's record (vault.cbor); restore it from the backup, and look who could write it."
    )


class RecordRolledBack(Rejected):
    code = "vault.record.rollback"
    advice = "An older record (vault.cbor) was put back, with unlockers that were removed; restore the newest one."


class UnlockRefused(Rejected):
    code = "vault.unlock.refused"
    advice = "The passphrase or key is another one, or the vault's record was altered; nothing was opened."


class ManifestMissing(Rejected):
    code = "vault.manifest.missing"
    advice = "The vault's listing was removed; restore the vault from the backup."


class ManifestAltered(Rejected):
    code = "vault.manifest.altered"
    advice = "The vault's listing was altered or is of another vault; restore the vault from the backup."


class JournalMissing(Rejected):
    code = "vault.journal.missing"
    advice = "The vault's journal was removed; restore the vault from the backup."


class JournalTruncated(Rejected):
    code = "vault.journal.truncated"
    advice = "The vault's journal was cut off; restore the vault from the backup."


class JournalExtended(Rejected):
    code = "vault.journal.extended"
    advice = "Something was appended to the vault's journal; restore the vault from the backup."


class JournalAltered(Rejected):
    code = "vault.journal.altered"
    advice = "The vault's journal was altered; restore the vault from the backup."


class RedoAltered(Rejected):
    code = "vault.redo.altered"
    advice = "The change in flight (file redo) was altered or removed; restore the item from the backup."


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


class FileUnexpected(Rejected):
    code = "vault.file.unexpected"
    advice = "There is a file in the vault's folder that the vault did not write; look where it came from, remove it."


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


class ChunkRolledBack(Rejected):
    code = "vault.chunk.rollback"
    advice = "An older version of a part of an item's file was put back; restore the file from the backup."


class SwapInUse(Fault):
    code = "vault.machine.swap"
    advice = "Switch swap off (`swapoff -a`), encrypt it with a key of one boot, or allow it by the vault's rules."


class MemoryUnlocked(Fault):
    code = "vault.machine.memory"
    advice = "Raise the limit on locked memory (LimitMEMLOCK= of the unit, `ulimit -l`), or allow it by the rules."
