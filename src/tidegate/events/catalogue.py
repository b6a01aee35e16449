"""A constructor for every kind of event that Tidegate reports. Pure.

Each returns an ``Event`` whose OCSF class and attributes validate against schema 1.8.0 (docs/formats/events.md has the
table). A refusal carries the error's permanent code as ``status_code``. Arguments must hold no secret.
"""

from __future__ import annotations

from collections.abc import Sequence

from tidegate.base.errors import TidegateError
from tidegate.events.model import Event, Json, OcsfClass, Outcome, Severity

_SECURITY = ("host", "security_control")
_ACTION_DENIED, _ACTION_OBSERVED = 2, 3  # OCSF action_id
_DISPOSITION_BLOCKED, _DISPOSITION_DETECTED = 2, 15  # OCSF disposition_id
_STATE_POLICY_MISMATCH, _STATE_FAILED_BOOT_VERIFY = 2, 14  # OCSF security_state.state_id
_DIRECTION_INBOUND = 1
_FILE_REGULAR = 1
_ACTOR: dict[str, Json] = {"app_name": "tidegate"}
_FILE_ACTIVITIES = {"created": 1, "modified": 3, "deleted": 4, "renamed": 5, "permissions": 7}
_MAX_LISTED, _MAX_ADDRESS = 128, 39  # addresses of one name: 64 of each family; characters of the longest
_MAX_NAMED = 8  # short texts of one event
_MAX_TEXT = 1024  # characters of a text that came from outside; the line's own limit is 16 KiB


# -- firewall ---------------------------------------------------------------------------------------------------------


def firewall_denied(
    *, source: str, destination: str, protocol: str, port: int | None, rule: str, count: int = 1
) -> Event:
    """``count`` packets were dropped by the rule called ``rule``."""
    target: dict[str, Json] = {"ip": destination}
    if port is not None:
        target["port"] = port
    return Event(
        kind="firewall.denied",
        ocsf_class=OcsfClass.NETWORK_ACTIVITY,
        activity=5,  # Refuse
        severity=Severity.LOW,
        message=f"{protocol} from {source} to {destination}{'' if port is None else f' port {port}'} denied by {rule}",
        attributes={
            "src_endpoint": {"ip": source},
            "dst_endpoint": target,
            "connection_info": {"protocol_name": protocol, "direction_id": _DIRECTION_INBOUND},
            "firewall_rule": {"name": rule},
            "action_id": _ACTION_DENIED,
            "disposition_id": _DISPOSITION_BLOCKED,
            "count": count,
        },
        profiles=_SECURITY,
    )


def firewall_field_refused(
    *, source: str, destination: str, port: int | None, rule: str, what: str, passed: bool
) -> Event:
    """A message broke a content rule; ``passed`` where the rule only observes. Parts of ``what`` are the sender's."""
    target: dict[str, Json] = {"ip": destination}
    if port is not None:
        target["port"] = port
    verb = "would be refused" if passed else "refused"
    return Event(
        kind="firewall.field-refused",
        ocsf_class=OcsfClass.NETWORK_ACTIVITY,
        activity=5,  # Refuse
        severity=Severity.MEDIUM,
        message=f"{_clip(what)} from {source} to {destination} {verb} by {rule}",
        attributes={
            "src_endpoint": {"ip": source},
            "dst_endpoint": target,
            "connection_info": {"direction_id": _DIRECTION_INBOUND},
            "firewall_rule": {"name": rule},
            "action_id": _ACTION_OBSERVED if passed else _ACTION_DENIED,
            "disposition_id": _DISPOSITION_DETECTED if passed else _DISPOSITION_BLOCKED,
        },
        profiles=_SECURITY,
    )


def firewall_banned(*, address: str, duration_s: float, reason: str) -> Event:
    """``address`` is dropped in the kernel for ``duration_s``."""
    return _ban("firewall.banned", 1, address, f"{address} banned for {duration_s:g} s: {_clip(reason)}", duration_s)


def firewall_unbanned(*, address: str, reason: str) -> Event:
    """The ban of ``address`` ended before its time."""
    return _ban("firewall.unbanned", 3, address, f"ban of {address} lifted: {_clip(reason)}", None)


def firewall_rolled_back(*, reason: str) -> Event:
    """A new rule set was not confirmed, so the one before is in force again."""
    return _device_state("firewall.rolled-back", Severity.HIGH, f"firewall rolled back: {_clip(reason)}", failed=True)


def firewall_lockdown(*, on: bool, reason: str) -> Event:
    """The device was locked down (``on``), or the lockdown was lifted."""
    word = "locked down" if on else "lockdown lifted"
    severity = Severity.HIGH if on else Severity.MEDIUM
    return _device_state("firewall.lockdown", severity, f"{word}: {_clip(reason)}", data={"on": on})


def firewall_tampered(
    *, what: str, program: str, pid: int, digest_before: str, digest_after: str, restored: bool
) -> Event:
    """Somebody else changed our tables; ``program`` and ``pid`` as the kernel names them (empty and 0: it does not)."""
    who = f"{_clip(program)} (process {pid})" if pid else "an unknown process"
    return _device_state(
        "firewall.tampered",
        Severity.CRITICAL,
        f"firewall changed by {who}: {_clip(what)}{'; put back' if restored else ''}",
        failed=True,
        state=_STATE_POLICY_MISMATCH,
        data={
            "what": _clip(what),
            "program": _clip(program),
            "pid": pid,
            "digest_before": digest_before,
            "digest_after": digest_after,
            "restored": restored,
        },
    )


def firewall_names_changed(*, name: str, addresses: Sequence[str], gone: Sequence[str]) -> Event:
    """Rules with the DNS name ``name`` are open for ``addresses`` now (none: closed), and no more for ``gone``."""
    listed, ended = ([_clip(one[:_MAX_ADDRESS]) for one in given[:_MAX_LISTED]] for given in (addresses, gone))
    more = "" if len(addresses) <= 4 else f" and {len(addresses) - 4} more"
    stands_for = f"stands for {', '.join(listed[:4])}{more}" if addresses else "stands for no address: closed"
    return _device_state(
        "firewall.names-changed",
        Severity.INFORMATIONAL if addresses else Severity.MEDIUM,
        f"{_clip(name)} {stands_for}",
        data={"name": _clip(name), "addresses": list(listed), "gone": list(ended)},
    )


# -- network sensor ---------------------------------------------------------------------------------------------------


def ids_detected(  # a finding is who, whom, what and how sure
    *,
    rule: str,
    title: str,
    source: str,
    destination: str | None = None,
    severity: Severity = Severity.HIGH,
    evidence: dict[str, Json] | None = None,
    occurred_ms: int | None = None,
) -> Event:
    """The sensor's detector or signature rule ``rule`` found ``source`` at work."""
    data: dict[str, Json] = {"source": source, **(evidence or {})}
    observables: list[Json] = [{"name": "src_endpoint.ip", "type_id": 2, "value": source}]
    if destination is not None:
        data["destination"] = destination
        observables.append({"name": "dst_endpoint.ip", "type_id": 2, "value": destination})
    return Event(
        kind="ids.detected",
        ocsf_class=OcsfClass.DETECTION_FINDING,
        activity=1,  # Create
        severity=severity,
        message=f"{_clip(title)} from {source}",
        attributes={
            "finding_info": {"uid": rule, "title": _clip(title)},
            "is_alert": severity >= Severity.MEDIUM,
            "observables": observables,
            "action_id": _ACTION_OBSERVED,
            "disposition_id": _DISPOSITION_DETECTED,
        },
        data=data,
        profiles=_SECURITY,
        occurred_ms=occurred_ms,
    )


def file_changed(*, path: str, change: str) -> Event:
    """A watched file changed; ``change`` is created, modified, deleted, renamed or permissions."""
    return Event(
        kind="ids.file-changed",
        ocsf_class=OcsfClass.FILE_SYSTEM_ACTIVITY,
        activity=_FILE_ACTIVITIES.get(change, 99),
        severity=Severity.HIGH,
        message=f"watched file {_clip(path)}: {change}",
        attributes={
            "file": {"name": _clip(path).rsplit("/", 1)[-1] or "/", "path": _clip(path), "type_id": _FILE_REGULAR},
            "actor": {"app_name": "unknown"},
        },
    )


# -- boot -------------------------------------------------------------------------------------------------------------


def boot_stage_verified(*, stage: str, version: str, digest: str) -> Event:
    """A boot stage was verified and may run; ``digest`` is its measurement in hexadecimal."""
    return _device_state(
        "boot.stage.verified",
        Severity.INFORMATIONAL,
        f"boot stage {stage} version {version} verified",
        data={"stage": stage, "version": version, "digest": digest},
    )


def boot_stage_refused(*, stage: str, error: TidegateError) -> Event:
    """A boot stage was not allowed to run."""
    return _device_state(
        "boot.stage.refused",
        Severity.CRITICAL,
        f"boot stage {stage} refused: {_clip(error.message)}",
        failed=True,
        code=error.code,
        state=_STATE_FAILED_BOOT_VERIFY,
        data={"stage": stage, **_error_data(error)},
    )


def boot_fell_back(*, from_slot: str, to_slot: str, reason: str) -> Event:
    """The bootloader gave up on one slot and starts the other."""
    return _device_state(
        "boot.fell-back",
        Severity.HIGH,
        f"boot falls back from slot {from_slot} to {to_slot}: {_clip(reason)}",
        failed=True,
        data={"from": from_slot, "to": to_slot},
    )


# -- update -----------------------------------------------------------------------------------------------------------


def update_progress(*, version: str, step: str) -> Event:
    """An update reached ``step`` (opened, written, verified, tried, …)."""
    return _application("update.progress", 8, Severity.INFORMATIONAL, f"update to {version}: {step}", version=version)


def update_refused(*, source: str, error: TidegateError) -> Event:
    """A bundle was discarded; the running system is as it was."""
    return _application(
        "update.refused",
        8,
        Severity.HIGH,
        f"update from {_clip(source)} refused: {_clip(error.message)}",
        error=error,
    )


def update_confirmed(*, version: str, slot: str) -> Event:
    """The new version proved itself and stays."""
    return _application(
        "update.confirmed", 8, Severity.INFORMATIONAL, f"update to {version} confirmed in slot {slot}", version=version
    )


def update_rolled_back(*, version: str, to_version: str, reason: str) -> Event:
    """The new version failed its trial; the one before runs again."""
    return _application(
        "update.rolled-back",
        8,
        Severity.HIGH,
        f"update to {version} rolled back to {to_version}: {_clip(reason)}",
        version=version,
        failed=True,
    )


# -- policy -----------------------------------------------------------------------------------------------------------


def policy_applied(*, version: int, digest: str) -> Event:
    """Policy ``version`` is in force; ``digest`` is the hash of what is effective."""
    return _device_state(
        "policy.applied",
        Severity.INFORMATIONAL,
        f"policy version {version} applied",
        data={"version": version, "digest": digest},
    )


def policy_refused(*, error: TidegateError) -> Event:
    """A policy was not accepted; the one before stays in force."""
    return _device_state(
        "policy.refused",
        Severity.HIGH,
        f"policy refused: {_clip(error.message)}",
        failed=True,
        code=error.code,
        state=_STATE_POLICY_MISMATCH,
        data=_error_data(error),
    )


def policy_rolled_back(*, version: int, reason: str) -> Event:
    """Policy ``version`` was applied and taken back by the armed rollback."""
    return _device_state(
        "policy.rolled-back",
        Severity.HIGH,
        f"policy version {version} rolled back: {_clip(reason)}",
        failed=True,
        state=_STATE_POLICY_MISMATCH,
        data={"version": version},
    )


# -- vault and keys ---------------------------------------------------------------------------------------------------


def vault_opened(*, vault: str, user: str, warnings: Sequence[str] = ()) -> Event:
    """``user`` unlocked the vault called ``vault``; ``warnings`` are of how this machine keeps secrets in RAM."""
    return _vault("vault.opened", vault, user, None, warnings)


def vault_refused(*, vault: str, user: str, error: TidegateError) -> Event:
    """The vault did not open, somebody may not have what he asked for, or something in it was not authentic."""
    return _vault("vault.refused", vault, user, error)


def vault_locked(*, on: bool, trigger: str, reason: str, failed: Sequence[str] = ()) -> Event:
    """Directories were locked and keys wiped (``on``), or applications may have the vault again.

    ``failed`` names directories that are not locked as they should be.
    """
    left = f"; not locked: {len(failed)}" if failed else ""
    return _device_state(
        "vault.locked",
        Severity.HIGH if on else Severity.MEDIUM,
        f"vault {'locked' if on else 'free again'} ({trigger}): {_clip(reason)}{left}",
        failed=bool(failed),
        data={"on": on, "trigger": trigger, "failed": [_clip(one[:256]) for one in failed[:_MAX_NAMED]]},
    )


def vault_erased(*, vault: str, trigger: str, reason: str, files: int, receipt: str) -> Event:
    """The vault's keys were destroyed and its files erased; ``receipt`` is the hash (hexadecimal) of the receipt."""
    return _device_state(
        "vault.erased",
        Severity.CRITICAL,
        f"vault {vault} erased for ever ({trigger}): {_clip(reason)}",
        data={"vault": vault, "trigger": trigger, "files": files, "receipt": receipt},
    )


def key_operation(*, operation: str, key: str, provider: str, error: TidegateError | None = None) -> Event:
    """A key was generated, used, sealed with or destroyed; ``operation`` names it."""
    activities = {"generate": 1, "import": 1, "read": 2, "destroy": 4}
    said = "" if error is None else f" refused: {_clip(error.message)}"
    return Event(
        kind="keys.operation" if error is None else "keys.refused",
        ocsf_class=OcsfClass.API_ACTIVITY,
        activity=activities.get(operation, 99),
        severity=Severity.INFORMATIONAL if error is None else Severity.HIGH,
        message=f"key {key}: {operation}{said}",
        outcome=Outcome.SUCCESS if error is None else Outcome.FAILURE,
        code=None if error is None else error.code,
        attributes={
            "api": {"operation": operation, "service": {"name": "keys"}},
            "actor": _ACTOR,
            "src_endpoint": {"svc_name": "tidegate"},
        },
        data={"key": key, "provider": provider} if error is None else {"key": key, **_error_data(error)},
    )


# -- certificates -----------------------------------------------------------------------------------------------------


def certificate_act(*, act: str, serial: str, profile: str, subject: str, detail: str = "") -> Event:
    """A CA ``issued`` or ``revoked`` a certificate, or ``listed`` the revoked ones; a revocation is an alert."""
    activities = {"issued": 1, "revoked": 3}
    return _certificate(
        f"pki.{act}",
        activities.get(act, 99),
        Severity.MEDIUM if act == "revoked" else Severity.INFORMATIONAL,
        f"{act}: {profile} {serial} for {_clip(subject)}" + (f" ({_clip(detail)})" if detail else ""),
        data={"serial": serial, "profile": profile, "subject": _clip(subject), "detail": _clip(detail)},
    )


def enrolment_refused(*, operation: str, source: str, code: str, message: str) -> Event:
    """An EST server did not give ``source`` what it asked for."""
    return _certificate(
        "pki.refused",
        99,
        Severity.HIGH,
        f"enrolment refused to {source}: {_clip(message)}",
        code=code,
        source=source,
        data={"operation": _clip(operation), "source": source},
    )


def identity_changed(*, kind: str, state: str, generation: int | None, message: str, code: str | None = None) -> Event:
    """The device's own certificate took a step; with ``code`` it failed to."""
    return _certificate(
        "identity.changed" if code is None else "identity.refused",
        3,
        Severity.INFORMATIONAL if code is None else Severity.HIGH,
        _clip(message),
        code=code,
        data={"step": kind, "state": state, "generation": generation},
    )


# -- agent and the log itself -----------------------------------------------------------------------------------------


def agent_started() -> Event:
    """The device daemon runs."""
    return _application("agent.started", 3, Severity.INFORMATIONAL, "agent started")


def agent_stopped(*, reason: str) -> Event:
    """The device daemon ends in an orderly way."""
    return _application("agent.stopped", 4, Severity.LOW, f"agent stopped: {_clip(reason)}")


def agent_failed(*, part: str, error: TidegateError) -> Event:
    """A part of the agent ended with ``error``; the others go on without it."""
    message = f"agent goes on without its {part}: {_clip(error.message)}"
    return _application("agent.failed", 4, Severity.HIGH, message, failed=True, error=error)


def log_recovered(*, file: str, cut_bytes: int, damaged_lines: int) -> Event:
    """After a crash or power cut the log's end was torn (``cut_bytes`` removed) or damaged (left in place)."""
    severity = Severity.HIGH if damaged_lines else Severity.LOW
    message = f"event log recovered: {cut_bytes} bytes of a torn line removed, {damaged_lines} damaged lines in {file}"
    return _log("events.recovered", severity, message, {"file": file, "cut": cut_bytes, "damaged": damaged_lines})


def log_lost(*, count: int, reason: str) -> Event:
    """``count`` events could not be written."""
    return _log("events.lost", Severity.HIGH, f"{count} events lost: {_clip(reason)}", {"count": count})


def log_thinned(*, segment: int, count: int) -> Event:
    """``count`` events below alert level of a segment gave way; a checkpoint accounts for the gap they leave."""
    data: dict[str, Json] = {"segment": segment, "count": count}
    return _log("events.thinned", Severity.LOW, f"{count} old events below alert level removed for space", data)


def log_dropped(*, segment: int, count: int, head: str) -> Event:
    """The oldest segment was removed; ``head`` is the hash of its last line, to which the rest is tied."""
    data: dict[str, Json] = {"segment": segment, "count": count, "head": head}
    return _log("events.dropped", Severity.MEDIUM, f"the oldest {count} events removed for space", data)


# -- shapes shared by the constructors above --------------------------------------------------------------------------


def _clip(text: str) -> str:
    """Bound a text from outside and replace what JSON has no place for."""
    return text[:_MAX_TEXT].encode(errors="replace").decode()


def _error_data(error: TidegateError) -> dict[str, Json]:
    return {name: _clip(value) if isinstance(value, str) else value for name, value in error.fields.items()}


def _ban(kind: str, activity: int, address: str, message: str, duration_s: float | None) -> Event:
    return Event(
        kind=kind,
        ocsf_class=OcsfClass.NETWORK_REMEDIATION_ACTIVITY,
        activity=activity,
        severity=Severity.MEDIUM,
        message=message,
        attributes={
            "command_uid": f"ban:{address}",
            "connection_info": {"direction_id": _DIRECTION_INBOUND},
        },
        data={"address": address} if duration_s is None else {"address": address, "duration_s": duration_s},
    )


def _device_state(  # one shape for three rooms
    kind: str,
    severity: Severity,
    message: str,
    *,
    failed: bool = False,
    code: str | None = None,
    state: int | None = None,
    data: dict[str, Json] | None = None,
) -> Event:
    return Event(
        kind=kind,
        ocsf_class=OcsfClass.DEVICE_CONFIG_STATE_CHANGE,
        activity=1,  # Log
        severity=severity,
        message=message,
        outcome=Outcome.FAILURE if failed else Outcome.SUCCESS,
        code=code,
        attributes={} if state is None else {"security_states": [{"state_id": state}]},
        data=data or {},
    )


def _application(  # one shape for two rooms
    kind: str,
    activity: int,
    severity: Severity,
    message: str,
    *,
    version: str | None = None,
    failed: bool = False,
    error: TidegateError | None = None,
) -> Event:
    app: dict[str, Json] = {"name": kind.split(".", 1)[0]}
    if version is not None:
        app["version"] = version
    return Event(
        kind=kind,
        ocsf_class=OcsfClass.APPLICATION_LIFECYCLE,
        activity=activity,
        severity=severity,
        message=message,
        outcome=Outcome.FAILURE if failed or error else Outcome.SUCCESS,
        code=None if error is None else error.code,
        attributes={"app": app},
        data={} if error is None else _error_data(error),
    )


def _certificate(  # one shape for both ends of an enrolment
    kind: str,
    activity: int,
    severity: Severity,
    message: str,
    *,
    code: str | None = None,
    source: str | None = None,
    data: dict[str, Json],
) -> Event:
    return Event(
        kind=kind,
        ocsf_class=OcsfClass.API_ACTIVITY,
        activity=activity,
        severity=severity,
        message=message,
        outcome=Outcome.SUCCESS if code is None else Outcome.FAILURE,
        code=code,
        attributes={
            "api": {"operation": kind, "service": {"name": kind.partition(".")[0]}},
            "actor": _ACTOR,
            "src_endpoint": {"svc_name": "tidegate"} if source is None else {"ip": source},
        },
        data=data,
    )


def _vault(kind: str, vault: str, user: str, error: TidegateError | None, warnings: Sequence[str] = ()) -> Event:
    warned: dict[str, Json] = {"warnings": [_clip(one[:256]) for one in warnings[:_MAX_NAMED]]} if warnings else {}
    said = "opened by" if error is None else "refused to"
    return Event(
        kind=kind,
        ocsf_class=OcsfClass.AUTHORIZE_SESSION,
        activity=1,  # Assign Privileges
        severity=Severity.INFORMATIONAL if error is None else Severity.HIGH,
        message=f"vault {vault} {said} {user}{'' if error is None else ': ' + _clip(error.message)}",
        outcome=Outcome.SUCCESS if error is None else Outcome.FAILURE,
        code=None if error is None else error.code,
        attributes={"user": {"name": user}, "privileges": [f"vault:{vault}"]},
        data=warned if error is None else _error_data(error),
    )


def _log(kind: str, severity: Severity, message: str, data: dict[str, Json]) -> Event:
    activities = {"events.dropped": 2, "events.thinned": 2}
    return Event(
        kind=kind,
        ocsf_class=OcsfClass.EVENT_LOG_ACTIVITY,
        activity=activities.get(kind, 99),
        severity=severity,
        message=message,
        attributes={"log_name": "tidegate"},
        data=data,
    )
