"""``tidegate policy``: check, sign, verify, show."""

from __future__ import annotations

import argparse
from pathlib import Path

from tidegate.cli.main import add_verb
from tidegate.cli.output import Output


def build(parser: argparse.ArgumentParser) -> None:
    """Add the verbs."""
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    check = add_verb(verbs, "check", "check a policy: every key, every value, what each room says to it")
    check.add_argument("policy", type=Path, help="TOML file (docs/policy.md)")
    check.set_defaults(run=check_policy)
    sign = add_verb(verbs, "sign", "check and sign a policy")
    sign.add_argument("policy", type=Path, help="TOML file")
    sign.add_argument("--sign", action="append", required=True, metavar="KEY", help="key URI; once per key")
    sign.add_argument("-o", "--output", type=Path, required=True, help="signed policy to write")
    sign.set_defaults(run=sign_file)
    verify = add_verb(verbs, "verify", "verify a signed policy as a device would")
    verify.add_argument("policy", type=Path, help="signed policy")
    verify.add_argument("--anchors", type=Path, required=True, help="the owner's trust anchors")
    verify.add_argument("--device", required=True, help="device id")
    verify.add_argument("--min-version", type=int, default=1, help="newest version the device has seen (default 1)")
    verify.set_defaults(run=verify_file)


def check_policy(arguments: argparse.Namespace, output: Output) -> int:
    """Check one policy and show what the rooms found."""
    from tidegate.firewall.findings import Severity
    from tidegate.policy.check import check_text, verify_sections
    from tidegate.policy.places import with_lines

    text, name = read_text(arguments.policy), arguments.policy.name
    policy, found = check_text(text, name)
    findings = [f"line {line}: {finding.severity}: {finding.message} [{finding.code}]" for line, finding in found]
    for finding in findings:
        output.line(f"{name}: {finding}")
    if any(finding.severity is Severity.ERROR for _, finding in found):
        with with_lines(text, name=name):
            verify_sections(policy)
    sections = [name for name in ("firewall", "ids", "watch", "update", "vault") if getattr(policy, name) is not None]
    output.line(
        f"{arguments.policy}: policy version {policy.policy.version}, sections: {', '.join(sections) or 'none'}"
    )
    output.result({"version": policy.policy.version, "sections": sections, "findings": findings})
    return 0


def sign_file(arguments: argparse.Namespace, output: Output) -> int:
    """Check a policy and sign it."""
    from tidegate.base.durable import write_file_atomic
    from tidegate.cli.keyuri import open_key
    from tidegate.policy.check import check_text, verify_sections
    from tidegate.policy.places import with_lines
    from tidegate.policy.sign import sign_policy

    text = read_text(arguments.policy)
    policy, _ = check_text(text, arguments.policy.name)
    with with_lines(text, name=arguments.policy.name):
        verify_sections(policy)
    signers = [open_key(uri) for uri in arguments.sign]
    signed = sign_policy(policy, signers)
    write_file_atomic(arguments.output, signed)
    output.line(f"wrote {arguments.output}: policy version {policy.policy.version}, {len(signers)} signatures")
    output.result({"file": str(arguments.output), "version": policy.policy.version, "signatures": len(signers)})
    return 0


def verify_file(arguments: argparse.Namespace, output: Output) -> int:
    """Verify a signed policy."""
    import time

    from tidegate.crypto.cose import MAX_ENVELOPE_BYTES
    from tidegate.crypto.trust import MAX_TRUST_BYTES, parse_trust
    from tidegate.policy.sign import PolicyRule, verify_policy

    rule = PolicyRule(
        trust=parse_trust(_read(arguments.anchors, MAX_TRUST_BYTES)),
        device=arguments.device,
        min_version=arguments.min_version,
        now_s=time.time(),
    )
    verified = verify_policy(_read(arguments.policy, MAX_ENVELOPE_BYTES), rule)
    version = verified.policy.policy.version
    output.line(f"verified: policy version {version} for {arguments.device}, sha256 {verified.digest.hex()}")
    output.result({"verified": True, "version": version, "sha256": verified.digest.hex()})
    return 0


def read_text(path: Path) -> str:
    """Return a policy's text; raise ``policy.syntax`` where it is no UTF-8, with the line."""
    from tidegate.policy.document import MAX_POLICY_BYTES
    from tidegate.policy.errors import PolicySyntax

    raw = _read(path, MAX_POLICY_BYTES)
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise PolicySyntax(f"{path.name}: line {line}: byte {error.start} is not UTF-8", line=line) from error


def _read(path: Path, limit: int) -> bytes:
    from tidegate.base.durable import read_file_bounded

    return read_file_bounded(path, limit_bytes=limit)
