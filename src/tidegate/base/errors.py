"""The error families: whose fault it is, a permanent code, and what to do.

``Misuse``: the calling code is wrong. ``Rejected``: outside data is not acceptable. ``Fault``: the machine or a peer
failed and may heal. Every leaf class fixes a dotted ``code`` that never changes its meaning and an ``advice`` sentence
for the person who meets it. A room keeps its leaves in its own ``errors.py``.
"""

from __future__ import annotations

from typing import ClassVar


class TidegateError(Exception):
    """Root of every error that Tidegate raises on purpose."""

    code: ClassVar[str] = ""
    advice: ClassVar[str] = ""
    exit_status: ClassVar[int] = 1

    def __init__(self, message: str, **fields: str | int | None) -> None:
        """``message`` says what happened, in one sentence; ``fields`` are machine-readable and hold no secret."""
        super().__init__(message)
        self.message = message
        self.fields = fields

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        code = cls.__dict__.get("code", "")
        if not code:
            return
        taken = _REGISTRY.get(code, cls)  # the same class again is its module, reloaded
        if (taken.__module__, taken.__qualname__) != (cls.__module__, cls.__qualname__):
            raise RuntimeError(f"error code {code!r} is already taken by {taken.__module__}.{taken.__qualname__}")
        _REGISTRY[code] = cls

    def describe(self) -> dict[str, object]:
        """Return the error as plain values for ``--json`` output and for events."""
        return {"code": self.code, "message": self.message, "advice": self.advice, "fields": dict(self.fields)}


class Misuse(TidegateError):
    """The caller's code or command line is wrong."""

    exit_status = 2


class Rejected(TidegateError):
    """Outside data is not acceptable: malformed, badly signed, too old, against policy."""

    exit_status = 3


class Fault(TidegateError):
    """The machine or a peer failed; trying again later may help."""

    exit_status = 4


_REGISTRY: dict[str, type[TidegateError]] = {}


def registered_codes() -> dict[str, type[TidegateError]]:
    """Return every code whose room has been imported, with its class."""
    return dict(_REGISTRY)


class StorageFull(Fault):
    code = "base.storage.full"
    advice = "Free space on the named file system, then run the command again; nothing was left half written."


class StorageFailed(Fault):
    code = "base.storage.failed"
    advice = "Read the system's message; check the device, its mount and its permissions."


class StorageMissing(Fault):
    code = "base.storage.missing"
    advice = "Check the path; create what is missing with the command that provisions it."


class RecordCorrupt(Rejected):
    code = "base.record.corrupt"
    advice = "Neither copy of the record is intact: provision the device again or restore the partition."


class InputTooLarge(Rejected):
    code = "base.input.too-large"
    advice = "The input is larger than its format allows; check that it is the intended file."


class InputTruncated(Rejected):
    code = "base.input.truncated"
    advice = "The input ends early; fetch or copy it again."


class UnsafePermissions(Rejected):
    code = "base.permissions.unsafe"
    advice = "Make the file private to its owner: chmod 600 for files, chmod 700 for folders."


class ProgramMissing(Fault):
    code = "base.program.missing"
    advice = "Install the named Debian package; `tidegate doctor` lists all that is missing."


class ProgramFailed(Fault):
    code = "base.program.failed"
    advice = "Read the program's own message above; `tidegate doctor` checks versions and permissions."


class NotRoot(Fault):
    code = "base.privilege.missing"
    advice = "Run the command as root (or with the capability it names)."
