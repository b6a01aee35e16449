"""What the policy room refuses, and why."""

from tidegate.base.errors import Rejected


class PolicySyntax(Rejected):
    code = "policy.syntax"
    advice = "Correct the TOML at the place that the message names."


class PolicyUnknownKey(Rejected):
    code = "policy.key.unknown"
    advice = "Use the suggested key, or look it up in docs/policy.md; an unknown key is never ignored."


class PolicyValue(Rejected):
    code = "policy.value.invalid"
    advice = "Correct the value at the line that the message names; docs/policy.md has every key's range."


class PolicyRollback(Rejected):
    code = "policy.version.rollback"
    advice = "The device has seen a newer policy: raise the version in [policy] and sign it again."


class PolicyExpired(Rejected):
    code = "policy.expired"
    advice = "The policy is past its expiry: sign one with a later date."


class PolicyWrongDevice(Rejected):
    code = "policy.device.mismatch"
    advice = "The policy is for other devices: name this one in `devices`, by id or by a pattern with *."
