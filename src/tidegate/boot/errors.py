"""What the boot room refuses, and why."""

from tidegate.base.errors import Fault, Misuse, Rejected


class Stage2Corrupt(Rejected):
    code = "boot.stage2.corrupt"
    advice = "The second stage differs from what the maker signed; the other slot is tried, then install an update."


class OsCorrupt(Rejected):
    code = "boot.os.corrupt"
    advice = "The operating system differs from what the maker signed; the other slot is tried, then install an update."


class ApplicationCorrupt(Rejected):
    code = "boot.application.corrupt"
    advice = "An application differs from what the maker signed; the other slot is tried, then install an update."


class NoBootableSlot(Rejected):
    code = "boot.slot.none-bootable"
    advice = "No slot holds an authentic image: recover the device with the maker's factory image."


class SlotTransition(Misuse):
    code = "boot.slot.transition"
    advice = "The slot is not in a state that allows this; look with `tidegate boot status`."


class TrialUnconfirmed(Misuse):
    code = "boot.slot.trial-unconfirmed"
    advice = "The other slot is the only fall-back of a system on trial: confirm it, or reboot if it was rejected."


class TrialExhausted(Rejected):
    code = "boot.slot.exhausted"
    advice = "The new system never proved healthy in the boots it had; read its log, then install a corrected release."


class NotProvisioned(Fault):
    code = "boot.device.not-provisioned"
    advice = "Provision the device's storage first with `tidegate boot provision`."


class MountFailed(Fault):
    code = "boot.mount.failed"
    advice = "The kernel could not mount the verified image; `tidegate doctor` says what it lacks."


class StateMalformed(Rejected):
    code = "boot.state.malformed"
    advice = "The boot state is of another version; provision the device again."


class DeviceKeystoreInvalid(Misuse):
    code = "boot.device.keystore"
    advice = "Give the device's key URI in at most 1,024 ASCII characters; percent-encode others (docs/keys.md)."


class DeviceNameInvalid(Misuse):
    code = "boot.device.name"
    advice = "Name hardware with 1 to 64 of a-z, 0-9, '.', '_' and '-', beginning with a letter or digit."


class DeviceSizeInvalid(Misuse):
    code = "boot.device.size"
    advice = "Give a slot at least 1 MiB, and room for the largest image that the product will have."


class DeviceIdBurnt(Misuse):
    code = "boot.device.id-burnt"
    advice = "A device gets its id once, at the factory; provision a blank storage."
