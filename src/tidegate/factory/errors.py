"""What the factory refuses, and why."""

from tidegate.base.errors import Misuse


class DeviceNotBlank(Misuse):
    code = "factory.device.not-blank"
    advice = "The factory works on blank devices only; provision a new storage, or update the device."
