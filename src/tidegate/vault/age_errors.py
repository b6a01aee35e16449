# ruff: noqa: D101  # an error class is its code and its advice
"""What the age reader and writer refuse, and why."""

from tidegate.base.errors import Fault, Misuse, Rejected


class AgeRecipientsWrong(Misuse):
    code = "vault.age.recipients"
    advice = "Name 1 to 1024 recipients: all classical, all post-quantum, or one passphrase alone."


class AgeSettingWrong(Misuse):
    code = "vault.age.setting"
    advice = "Give at least one identity, a passphrase that is not empty, a work factor in range and blocking streams."


class AgeMemoryShort(Fault):
    code = "vault.age.memory"
    advice = (
        "Open the file on a machine with more free memory; scrypt takes 1 KiB times the work factor's power of two."
    )


class AgeArmorMalformed(Rejected):
    code = "vault.age.armor"
    advice = "The text form of the file was altered on its way (mail, editor); transfer it again as it was written."


class AgeHeaderMalformed(Rejected):
    code = "vault.age.header"
    advice = "The file is no age file, or its beginning was altered or cut; obtain it again."


class AgeVersionUnknown(Rejected):
    code = "vault.age.version"
    advice = "The file is of another version of the age format than v1; convert it with the tool that wrote it."


class AgeStanzaMalformed(Rejected):
    code = "vault.age.stanza"
    advice = "A recipient's entry in the file breaks the rules of its type; whoever made the file has to make it again."


class AgeWorkFactorTooHigh(Rejected):
    code = "vault.age.work-factor"
    advice = "The passphrase's cost is above the limit; raise the limit if the file is trusted and the memory is there."


class AgeNoMatch(Rejected):
    code = "vault.age.no-match"
    advice = "The file is for other keys or another passphrase; use an identity of one of its recipients."


class AgeMacWrong(Rejected):
    code = "vault.age.mac"
    advice = "The file's header was altered after it was written; obtain the file again."


class AgePayloadAltered(Rejected):
    code = "vault.age.payload"
    advice = "The file's content was altered or cut; discard what was read of it and obtain the file again."


class AgePayloadTruncated(Rejected):
    code = "vault.age.truncated"
    advice = "The end of the file is missing; discard what was read of it and obtain the file again."


class AgePayloadExtended(Rejected):
    code = "vault.age.extended"
    advice = "Something was appended to the file; discard what was read of it and obtain the file again."


class AgeKeyMalformed(Rejected):
    code = "vault.age.key"
    advice = "Copy the recipient (age1…) or the identity (AGE-SECRET-KEY-…) again, whole and without changes."


class AgeKeyUnsupported(Rejected):
    code = "vault.age.key-type"
    advice = "Use a key that begins with age1…, age1pq1…, AGE-SECRET-KEY-1… or AGE-SECRET-KEY-PQ-1…."
