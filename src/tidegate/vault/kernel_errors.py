"""What the kernel's own encryption refuses: encrypted directories, their metadata, LUKS2 volumes."""
# ruff: noqa: D101  # an error class is its code and its advice

from tidegate.base.errors import Fault, Misuse, Rejected


class DirectoryNotEmpty(Misuse):
    code = "vault.directory.not-empty"
    advice = "Encryption begins with an empty directory: create a new one, then move the files into it."


class DirectoryEncrypted(Misuse):
    code = "vault.directory.encrypted"
    advice = "The directory is encrypted already; unlock it, or choose a new directory."


class DirectoryKeySize(Misuse):
    code = "vault.directory.key-size"
    advice = "Give a directory key of 64 random bytes, and a key for the fscrypt tool of 32."


class DirectoryUnsupported(Fault):
    code = "vault.directory.unsupported"
    advice = (
        "Use ext4 or f2fs with the feature `encrypt` (`mkfs.ext4 -O encrypt`, `tune2fs -O encrypt DEVICE`) "
        "on a kernel with CONFIG_FS_ENCRYPTION, AES, XTS, CTS and SHA-512."
    )


class DirectoryPermission(Fault):
    code = "vault.directory.permission"
    advice = "Run the command as root or as the directory's owner; locking for all users needs CAP_SYS_ADMIN."


class DirectoryLocked(Fault):
    code = "vault.directory.locked"
    advice = "The key is not in the kernel for this user; unlock the directory with `tidegate vault dir-unlock`."


class DirectoryBusy(Fault):
    code = "vault.directory.busy"
    advice = (
        "The key is gone, but files still open stay readable until they are closed: end the processes named (or found "
        "by `fuser -m`), leave the directory in every shell, then lock again."
    )


class DirectoryShared(Fault):
    code = "vault.directory.shared"
    advice = "Another user has added the same key, so the directory stays open; lock it as root, for all users."


class DirectoryPlain(Rejected):
    code = "vault.directory.plain"
    advice = "The directory is not encrypted. If it was, somebody put another in its place: write nothing into it."


class DirectoryPolicyUnknown(Rejected):
    code = "vault.directory.policy"
    advice = "The directory has an older or weaker kind of encryption: copy its files into a new encrypted directory."


class DirectoryKeyWrong(Rejected):
    code = "vault.directory.wrong-key"
    advice = "The directory was encrypted with another key; nothing was added to the kernel. Check vault and key name."


class MetadataExists(Misuse):
    code = "vault.fscrypt.exists"
    advice = "The fscrypt tool's metadata for this directory is there already; use `fscrypt metadata` to change it."


class MetadataMissing(Fault):
    code = "vault.fscrypt.missing"
    advice = "The file system holds no .fscrypt metadata for this directory; unlock it with the vault's key."


class MetadataMalformed(Rejected):
    code = "vault.fscrypt.malformed"
    advice = "A file below .fscrypt was altered or is of a newer version; restore .fscrypt from the backup."


class MetadataRefused(Rejected):
    code = "vault.fscrypt.refused"
    advice = "The raw key opens none of the directory's protectors, or its metadata was altered; check the key file."


class VolumeNotBlank(Misuse):
    code = "vault.volume.not-blank"
    advice = "The device holds data. Check its name; --overwrite destroys what is there."


class VolumeTooSmall(Misuse):
    code = "vault.volume.too-small"
    advice = "A volume needs 1 MiB for its header and at least as much for data; choose a larger device."


class VolumeKeySize(Misuse):
    code = "vault.volume.key-size"
    advice = "Give a volume key of 64 random bytes: the key slot's cheap derivation is safe only with those."


class VolumeNameInvalid(Misuse):
    code = "vault.volume.name"
    advice = (
        "Name a mapping with 1 to 64 of A-Z a-z 0-9 . _ - beginning with a letter or digit; a label has 1 to 47 bytes."
    )


class VolumeBackupExists(Misuse):
    code = "vault.volume.backup-exists"
    advice = "Choose a new file; a backup of a header never overwrites another."


class VolumeNoDeviceMapper(Fault):
    code = "vault.volume.no-device-mapper"
    advice = "The kernel has no device mapper: use one with CONFIG_BLK_DEV_DM and CONFIG_DM_CRYPT, or load dm_mod."


class VolumeBusy(Fault):
    code = "vault.volume.busy"
    advice = "The device or mapping is in use: unmount it, close what has it open, then try again."


class VolumeNotOpen(Fault):
    code = "vault.volume.not-open"
    advice = "No mapping of this name is open; `ls /dev/mapper` lists those that are."


class VolumeKeyWrong(Rejected):
    code = "vault.volume.wrong-key"
    advice = "No key slot opens with this key: check vault and key name, or restore the header from its backup."


class VolumeErased(Rejected):
    code = "vault.volume.erased"
    advice = "Every key slot was destroyed; only a backup of the header brings the volume back."


class VolumeMalformed(Rejected):
    code = "vault.volume.malformed"
    advice = "The device has no LUKS2 header that can be read; check its name, or restore the header from its backup."


class VolumeTokenMissing(Rejected):
    code = "vault.volume.no-token"
    advice = "The header does not say which vault key opens the volume; name it with --key-name."
