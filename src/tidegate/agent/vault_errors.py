# ruff: noqa: D101  # an error class is its code and its advice
"""What the agent and its vault process refuse, and why; apart from ``errors.py`` for devices without a vault."""

from tidegate.base.errors import Fault, Misuse, Rejected


class VaultDenied(Rejected):
    code = "agent.vault.denied"
    advice = "The policy's [vault.grants] name who may use what; whether it exists is not told to others."


class VaultRequestMalformed(Rejected):
    code = "agent.vault.malformed"
    advice = "Send one JSON object a line, with an `op` and the members that docs/agent.md names for it."


class VaultRecordUnknown(Fault):
    code = "agent.vault.record-unknown"
    advice = "List the table by `record-list`; it has no record under this key."


class VaultLocked(Fault):
    code = "agent.vault.locked"
    advice = "Find out why it was locked, then ask for `vault-unlock`."


class VaultUnused(Misuse):
    code = "agent.vault.unused"
    advice = "The policy in force has no [vault] section; apply one that has."


class VaultEraseRefused(Rejected):
    code = "agent.vault.erase-refused"
    advice = "The policy in force does not allow it: add `end-of-life` to erase_on in [vault]."


class VaultUnlockRefused(Rejected):
    code = "agent.vault.unlock-refused"
    advice = "The cause goes on: lift the lockdown first. An erased vault does not open again."


class GrantUserUnknown(Fault):
    code = "agent.vault.user-unknown"
    advice = "Create the user on the device, or name another one in the grant; until then nobody has it."


class VaultConfinement(Fault):
    code = "agent.vault.confinement"
    advice = "The kernel did not let the vault's process give up its rights; the message says which."


class VaultRefusedThere(Fault):
    code = "agent.vault.refused"
    advice = "The message has the operation and the code that the vault's process gave; look that one up."
