"""What the events room refuses, and why."""

from tidegate.base.errors import Fault, Misuse, Rejected


class EventInvalid(Misuse):
    code = "events.event.invalid"
    advice = "Correct the calling code: the event is too large, or holds a value that JSON has no place for."


class IdentityInvalid(Misuse):
    code = "events.identity.invalid"
    advice = "Write device and boot identifiers with 1 to 64 of the characters A-Z, a-z, 0-9, '.', '_', ':' and '-'."


class SpoolBusy(Fault):
    code = "events.spool.busy"
    advice = "Another process writes this log; send the event through it, or try again when it has closed the log."


class LogEmpty(Rejected):
    code = "events.log.empty"
    advice = "The folder holds no event; check that it is the folder of an event log."


class LineMalformed(Rejected):
    code = "events.chain.malformed"
    advice = "The named line is no event of ours: the log was altered there; treat the device as tampered with."


class ChainAltered(Rejected):
    code = "events.chain.altered"
    advice = "The named event was changed after it was written; treat the device as tampered with."


class ChainMissing(Rejected):
    code = "events.chain.missing"
    advice = "Events were removed at the named place, and no signed record accounts for it; look for another copy."


class ChainReordered(Rejected):
    code = "events.chain.reordered"
    advice = "Events stand in another order than they were written in; look for another copy of the log."


class ChainDuplicated(Rejected):
    code = "events.chain.duplicated"
    advice = "An event stands twice in the log; look for another copy of the log."


class ChainForeign(Rejected):
    code = "events.chain.foreign"
    advice = "An event of another device or another boot was put into this log; look for another copy."


class ChainTruncated(Rejected):
    code = "events.chain.truncated"
    advice = "A signed checkpoint names later events than the log holds: its end was cut off; look for another copy."


class ChainUnsigned(Rejected):
    code = "events.chain.unsigned"
    advice = "No checkpoint covers these events, so nothing proves them; let the device sign (`EventLog(signer=…)`)."


class CheckpointInvalid(Rejected):
    code = "events.checkpoint.invalid"
    advice = "A checkpoint is damaged, forged or of an untrusted key; check which public key you trust for this device."


class CheckpointMissing(Rejected):
    code = "events.checkpoint.missing"
    advice = "A checkpoint between two others was removed; look for another copy of the log."
