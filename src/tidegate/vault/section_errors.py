# ruff: noqa: D101  # an error class is its code and its advice
"""What the vault refuses in the policy's ``[vault]`` section, and why."""

from tidegate.base.errors import Rejected


class VaultSectionInvalid(Rejected):
    code = "vault.policy.invalid"
    advice = "Correct the named place of [vault]; docs/policy.md has every key, docs/agent.md how grants are written."
