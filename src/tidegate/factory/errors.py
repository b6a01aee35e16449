"""What the factory refuses, and why."""

from tidegate.base.errors import Fault, Misuse, Rejected


class DeviceNotBlank(Misuse):
    code = "factory.device.not-blank"
    advice = "The factory works on blank devices only; provision a new storage, or update the device."


class CeremonyPlanInvalid(Rejected):
    code = "factory.ceremony.plan"
    advice = "Correct the plan at the place named (docs/ceremony.md has a whole one)."


class TranscriptMalformed(Rejected):
    code = "factory.ceremony.transcript"
    advice = "The file is no ceremony transcript of this version, or its signers are not the keys that it lists."


class CeremonyProofFailed(Fault):
    code = "factory.ceremony.proof"
    advice = "The ceremony did not prove what it has to: destroy its keys, find out why, and hold it again."


class ShareMalformed(Rejected):
    code = "factory.share.malformed"
    advice = "The file is no share of a ceremony, or was damaged; use another operator's share."


class ShareRefused(Rejected):
    code = "factory.share.refused"
    advice = "The passphrase is not this operator's, or the share file was altered."


class SharesInsufficient(Rejected):
    code = "factory.shares.insufficient"
    advice = "Bring as many different shares of this one ceremony as its threshold says."


class SharesUnavailable(Fault):
    code = "factory.shares.unavailable"
    advice = "Install the extra: pip install 'tidegate[factory]'."
