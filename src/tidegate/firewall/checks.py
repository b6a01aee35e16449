"""What can be seen wrong with a ruleset before any kernel sees it.

Pure. An *error* finding keeps a ruleset from being applied; a *warning* is for the operator to read. What cannot be
seen here (a management network that is well written but the wrong one) is what the armed rollback is for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

from tidegate.base.errors import Rejected
from tidegate.firewall.compile import plan_port_groups
from tidegate.firewall.errors import ManagementCut, SessionCut, SetBudget
from tidegate.firewall.model import Packet, PeerGroup, PortSpan, Ruleset, Service, Verdict, evaluate_packet
from tidegate.firewall.section import Mode


class Severity(StrEnum):
    """Whether a finding stops the ruleset."""

    ERROR = "error"
    WARNING = "warning"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing found; ``code`` of an error is that of the exception that ``verify_ruleset`` raises."""

    severity: Severity
    code: str
    subject: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedRuleset:
    """A ruleset without error findings. Made by ``verify_ruleset`` alone; ``commit`` accepts nothing else."""

    ruleset: Ruleset
    warnings: tuple[Finding, ...]


_ERRORS: dict[str, type[Rejected]] = {kind.code: kind for kind in (ManagementCut, SessionCut, SetBudget)}


def verify_ruleset(ruleset: Ruleset, *, must_pass: Sequence[Packet] = ()) -> VerifiedRuleset:
    """Return ``ruleset`` as one that may be applied, or raise the first error found.

    ``must_pass`` are packets that have to be accepted, above all those of the session from which the policy is
    applied. Raises ``firewall.check.management-cut``, ``firewall.check.session-cut``, ``firewall.check.set-budget``.
    """
    findings = check_ruleset(ruleset, must_pass=must_pass)
    for finding in findings:
        if finding.severity is Severity.ERROR:
            raise _ERRORS[finding.code](finding.message, subject=finding.subject)
    return VerifiedRuleset(ruleset=ruleset, warnings=tuple(findings))


def check_ruleset(ruleset: Ruleset, *, must_pass: Sequence[Packet] = ()) -> list[Finding]:
    """Return all findings, errors first."""
    findings = [
        *_check_management(ruleset),
        *_check_sessions(ruleset, must_pass),
        *_check_budget(ruleset),
        *_check_overlaps(ruleset.services),
        *_check_families(ruleset),
    ]
    return sorted(findings, key=lambda finding: finding.severity is not Severity.ERROR)


def count_elements(ruleset: Ruleset) -> int:
    """Return how many set elements the ruleset can hold at most in the kernel, fixed and dynamic."""
    total = 2 * ruleset.ban_max + _prefix_count(ruleset.never)
    if ruleset.management is not None:
        total += 2 * _prefix_count(ruleset.management.peers)
    for service in (*ruleset.services, *ruleset.egress):
        total += _prefix_count(service.peers) + len(service.spans)
        if service.threshold is not None:
            kinds = (service.threshold.new_per_s, service.threshold.connections)
            total += 2 * service.threshold.sources * sum(kind is not None for kind in kinds)
    return total


def _check_management(ruleset: Ruleset) -> Iterator[Finding]:
    management = ruleset.management
    if management is None:
        yield _error(ManagementCut, "management", "the policy names no management path")
        return
    if management.peers.empty:
        yield _error(ManagementCut, "management", "the management path has no peers")
    if management.egress is not None and management.egress.peers.empty:
        yield _error(ManagementCut, management.egress.name, "the way out to the manager has no peers")
    if management.peers.everyone:
        text = "everyone is a management peer: none of them is limited there, and a ban can hit the operator"
        yield _warning("firewall.check.management-any", "management", text)


def _check_sessions(ruleset: Ruleset, must_pass: Sequence[Packet]) -> Iterator[Finding]:
    for packet in must_pass:
        if ruleset.mode is not Mode.OBSERVE and evaluate_packet(ruleset, packet) is not Verdict.ACCEPT:
            text = f"the policy refuses {packet.source} on port {packet.port}, by which this device is being managed"
            yield _error(SessionCut, str(packet.source), text)


def _check_budget(ruleset: Ruleset) -> Iterator[Finding]:
    total = count_elements(ruleset)
    if total > ruleset.set_budget:
        text = f"the policy's sets can hold {total} elements, the budget is {ruleset.set_budget}"
        yield _error(SetBudget, "set_budget", text)


def _check_overlaps(services: Sequence[Service]) -> Iterator[Finding]:
    """A packet passes when some service allows it, so a service inside an unlimited one decides nothing."""
    by_name = {service.name: service for service in services}
    # Whoever contains a service also answers on its first port: one look at the map instead of every pair.
    neighbours = {(group.protocol, group.first): group.services for group in plan_port_groups(services)}
    for service in services:
        for name in neighbours[service.protocol.value, service.spans[0].first]:
            other = by_name[name]
            if service is other or not _contains(other, service):
                continue
            if _contains(service, other) and service.threshold == other.threshold:
                if service.name > other.name:
                    text = f"service {service.name} says the same as {other.name}"
                    yield _warning("firewall.check.duplicate", service.name, text)
            elif other.threshold is None:
                text = f"service {service.name} decides nothing: {other.name} allows all of it without a limit"
                yield _warning("firewall.check.shadowed", service.name, text)


def _contains(outer: Service, inner: Service) -> bool:
    """Return whether every packet for ``inner`` is one for ``outer``."""
    return (
        outer.protocol == inner.protocol
        and all(any(_spans(mine, theirs) for mine in outer.spans) for theirs in inner.spans)
        and (not outer.interfaces or (bool(inner.interfaces) and set(inner.interfaces) <= set(outer.interfaces)))
        and outer.peers.covers(inner.peers)
    )


def _spans(outer: PortSpan, inner: PortSpan) -> bool:
    return outer.first <= inner.first and inner.last <= outer.last


def _check_families(ruleset: Ruleset) -> Iterator[Finding]:
    """A list that names one family only is often half a thought: the other family is refused."""
    managed = ruleset.management.service.name if ruleset.management is not None else ""
    for service in (*ruleset.services, *ruleset.egress):
        peers = service.peers
        if peers.empty:
            if service.name != managed:  # there, only the management peers may be meant
                text = f"service {service.name} has no peers: nobody can use it"
                yield _warning("firewall.check.no-peers", service.name, text)
        elif not peers.everyone and bool(peers.v4) != bool(peers.v6):
            missing = "IPv6" if peers.v4 else "IPv4"
            text = f"service {service.name} has no {missing} peer: all {missing} is refused there"
            yield _warning("firewall.check.family-parity", service.name, text)


def _prefix_count(peers: PeerGroup) -> int:
    return len(peers.v4) + len(peers.v6)


def _error(kind: type[Rejected], subject: str, message: str) -> Finding:
    return Finding(severity=Severity.ERROR, code=kind.code, subject=subject, message=message)


def _warning(code: str, subject: str, message: str) -> Finding:
    return Finding(severity=Severity.WARNING, code=code, subject=subject, message=message)
