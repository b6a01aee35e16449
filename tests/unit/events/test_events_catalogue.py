"""Every constructor's event is valid OCSF 1.8.0, judged by a validator that is not ours."""

import json

import pytest

from tidegate.base.errors import StorageFull
from tidegate.events import catalogue
from tidegate.events.errors import EventInvalid, IdentityInvalid
from tidegate.events.model import (
    Event,
    EventId,
    Link,
    OcsfClass,
    Severity,
    check_identifier,
    encode_canonical,
    encode_line,
)

ERROR = StorageFull("no room", path="/data", errno=28)
EVENTS = [
    catalogue.firewall_denied(source="10.0.0.9", destination="10.0.0.1", protocol="tcp", port=23, rule="default"),
    catalogue.firewall_denied(source="10.0.0.9", destination="10.0.0.1", protocol="icmp", port=None, rule="x", count=7),
    catalogue.firewall_banned(address="10.0.0.9", duration_s=60.0, reason="scan"),
    catalogue.firewall_unbanned(address="10.0.0.9", reason="operator"),
    catalogue.firewall_rolled_back(reason="management path lost"),
    catalogue.firewall_lockdown(on=True, reason="operator"),
    catalogue.firewall_lockdown(on=False, reason="operator"),
    catalogue.firewall_field_refused(
        source="10.0.0.9", destination="10.0.0.1", port=502, rule="fields.plc", what="modbus function 6", passed=False
    ),
    catalogue.firewall_field_refused(
        source="10.0.0.9", destination="10.0.0.1", port=None, rule="fields.plc", what="modbus function 6", passed=True
    ),
    catalogue.firewall_names_changed(name="cloud.example.com", addresses=["192.0.2.1", "2001:db8::1"], gone=[]),
    catalogue.firewall_names_changed(
        name="x" * 2000, addresses=[f"2001:db8:1:2:3:4444:5555:{n:04x}" for n in range(900)], gone=["y" * 999] * 900
    ),
    catalogue.firewall_names_changed(name="cloud.example.com", addresses=[], gone=["192.0.2.1"]),
    catalogue.firewall_tampered(
        what="rule deleted in tidegate", program="nft", pid=7, digest_before="00" * 32, digest_after="11" * 32,
        restored=True,
    ),
    catalogue.firewall_tampered(
        what="changed", program="", pid=0, digest_before="00" * 32, digest_after="11" * 32, restored=False
    ),
    catalogue.ids_detected(rule="scan.syn", title="SYN scan", source="10.0.0.9"),
    catalogue.ids_detected(
        rule="flood.syn", title="SYN flood", source="10.0.0.9", destination="10.0.0.1", severity=Severity.LOW,
        evidence={"rate": 5000}, occurred_ms=1,
    ),
    catalogue.file_changed(path="/etc/passwd", change="modified"),
    catalogue.file_changed(path="/", change="something new"),
    catalogue.boot_stage_verified(stage="os", version="2", digest="00" * 32),
    catalogue.boot_stage_refused(stage="os", error=ERROR),
    catalogue.boot_fell_back(from_slot="b", to_slot="a", reason="three tries"),
    catalogue.update_progress(version="2", step="written"),
    catalogue.update_refused(source="bundle.tgb", error=ERROR),
    catalogue.update_confirmed(version="2", slot="b"),
    catalogue.update_rolled_back(version="3", to_version="2", reason="probe"),
    catalogue.policy_applied(version=4, digest="00" * 32),
    catalogue.policy_refused(error=ERROR),
    catalogue.policy_rolled_back(version=4, reason="not confirmed"),
    catalogue.vault_opened(vault="data", user="app"),
    catalogue.vault_refused(vault="data", user="app", error=ERROR),
    catalogue.vault_locked(on=True, trigger="tamper", reason="x", failed=["/x: vault.directory.busy"]),
    catalogue.vault_erased(vault="00" * 16, trigger="end-of-life", reason="sold", files=3, receipt="00" * 32),
    catalogue.key_operation(operation="generate", key="id", provider="file"),
    catalogue.key_operation(operation="sign", key="id", provider="file", error=ERROR),
    catalogue.certificate_act(act="issued", serial="4f", profile="ldevid", subject="CN=x"),
    catalogue.certificate_act(act="revoked", serial="4f", profile="ldevid", subject="CN=x", detail="key-compromise"),
    catalogue.certificate_act(act="listed", serial="", profile="crl", subject="CN=ca", detail="number 7"),
    catalogue.enrolment_refused(operation="simpleenroll", source="10.0.0.9", code="pki.token.replayed", message="no"),
    catalogue.identity_changed(kind="renewed", state="active", generation=2, message="renewed"),
    catalogue.identity_changed(kind="renewed", state="active", generation=None, message="no", code="pki.est.refused"),
    catalogue.agent_started(),
    catalogue.agent_stopped(reason="signal"),
    catalogue.agent_failed(part="sensor", error=ERROR),
    catalogue.log_recovered(file="00000001.events", cut_bytes=9, damaged_lines=0),
    catalogue.log_recovered(file="00000001.events", cut_bytes=0, damaged_lines=1),
    catalogue.log_lost(count=3, reason="disk full"),
    catalogue.log_thinned(segment=1, count=3),
    catalogue.log_dropped(segment=1, count=3, head="00" * 32),
]  # fmt: skip
IDENTITY = EventId(device="dev-1", boot="b1", sequence=1)
LINK = Link(prev=bytes(32), previous_boot=None, previous_head=bytes(32))


def line_of(event: Event) -> bytes:
    return encode_line(event, identity=IDENTITY, link=LINK, time_ms=1_700_000_000_000)


@pytest.fixture(scope="module")
def ocsf():
    jsonschema = pytest.importorskip("jsonschema", reason="the validator jsonschema is not installed")
    schemas = pytest.importorskip("ocsf_json_schema", reason="the packaged OCSF schemas are not installed")
    embedded = schemas.OcsfJsonSchemaEmbedded(schemas.get_ocsf_schema(version="1.8.0"))

    def check(document: dict) -> list[str]:
        name = embedded.lookup_class_name_from_uid(document["class_uid"])
        schema = embedded.get_class_schema(name, document["metadata"]["profiles"])
        return [error.message for error in jsonschema.Draft202012Validator(schema).iter_errors(document)]

    return check


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: f"{event.kind}-{event.severity.name}")
def test_is_valid_ocsf(ocsf, event):
    assert ocsf(json.loads(line_of(event))) == []


def test_validator_sees_a_wrong_event(ocsf):
    document = json.loads(line_of(EVENTS[0]))
    del document["time"]
    document["severity_id"] = 77
    assert len(ocsf(document)) == 2


def test_every_constructor_is_tested():
    public = {name for name in vars(catalogue) if not name.startswith("_") and name.islower()} - {"annotations"}
    kinds = {event.kind for event in EVENTS}
    # key_operation and identity_changed have a kind for success and one for refusal, certificate_act has three
    assert len(kinds) == len(public) + 4


def test_refusal_carries_its_code():
    document = json.loads(line_of(catalogue.boot_stage_refused(stage="os", error=ERROR)))
    assert document["status_code"] == "base.storage.full"
    assert document["security_states"] == [{"state_id": 14}]
    assert document["unmapped"]["tidegate"]["data"] == {"stage": "os", "path": "/data", "errno": 28}
    assert document["metadata"]["uid"] == "dev-1/b1/1"


def test_alerts_are_those_that_somebody_must_act_on():
    alerts = {event.kind for event in EVENTS if event.is_alert}
    assert {"boot.stage.refused", "update.refused", "ids.detected", "firewall.banned", "events.lost"} <= alerts
    assert not alerts & {"firewall.denied", "agent.started", "update.progress", "boot.stage.verified"}


def test_line_is_canonical():
    line = line_of(EVENTS[0])
    assert line == encode_canonical(json.loads(line))
    assert b"\n" not in line


@pytest.mark.parametrize(
    "data", [{"x": "y" * 20_000}, {"x": object()}, {"x": "\ud800"}], ids=["too large", "no JSON", "no Unicode"]
)
def test_event_that_cannot_be_written_is_misuse(data):
    event = Event(
        kind="x", ocsf_class=OcsfClass.NETWORK_ACTIVITY, activity=1, severity=Severity.LOW, message="m", data=data
    )
    with pytest.raises(EventInvalid):
        line_of(event)


@pytest.mark.parametrize("name", ["", "a/b", "a b", "x" * 65, "ä", "a\n"])
def test_identifier_is_refused(name):
    with pytest.raises(IdentityInvalid):
        check_identifier(name)


def test_text_from_outside_is_bounded():
    event = catalogue.update_refused(source="x" * 100_000 + "\ud800", error=StorageFull("\ud800" * 50_000))
    assert len(line_of(event)) < 4096
