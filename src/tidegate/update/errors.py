"""What the update room refuses, and why."""

from tidegate.base.errors import Fault, Rejected


class VersionDowngrade(Rejected):
    code = "update.version.downgrade"
    advice = "The bundle is not newer than what runs; install a newer release, or roll back to the other slot."


class SlotTooSmall(Rejected):
    code = "update.slot.too-small"
    advice = "The image does not fit the slot of this device; ask the maker for an image of this product."


class ReadBackFailed(Fault):
    code = "update.slot.read-back"
    advice = "The slot does not hold what was written: its storage is failing; the running system is untouched."


class UpdateBusy(Fault):
    code = "update.busy"
    advice = "Another update is being written; wait for it or end it."
