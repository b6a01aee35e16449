"""The signed policy: no older one, no other device's, no other document."""

import datetime

import pytest

from tidegate.crypto import cbor
from tidegate.crypto.cose import sign_envelope
from tidegate.policy.document import parse_policy
from tidegate.policy.sign import PolicyRule, VerifiedPolicy, sign_policy, verify_policy


def signed(owner, extra="", version=5, signers=None):
    return sign_policy(parse_policy(f"[policy]\nversion = {version}\n{extra}"), signers or owner.signers)


def rule(owner, **changes):
    return PolicyRule(**{"trust": owner.trust, "device": "gw-17", "min_version": 5, "now_s": 1_800_000_000.0} | changes)


def test_accepted(owner):
    text = 'devices = ["gw-*"]\n[firewall.services.ssh]\nprotocol = "tcp"\nports = [22, "80-90"]\npeers = ["any"]\n'
    verified = verify_policy(signed(owner, text), rule(owner))
    assert verified.policy == parse_policy(f"[policy]\nversion = 5\n{text}")
    assert len(verified.digest) == 32


def test_the_same_policy_signs_to_the_same_payload(owner):
    first, second = signed(owner), signed(owner)
    assert verify_policy(first, rule(owner)).digest == verify_policy(second, rule(owner)).digest


def test_who_signed(owner, code_of):
    stranger = type(owner)()
    for signers, code in (
        (owner.signers[:1], "crypto.signature.missing-class"),
        (owner.signers[1:], "crypto.signature.missing-class"),
        (stranger.signers, "crypto.signature.unknown-key"),
    ):
        assert code_of(verify_policy, signed(owner, signers=signers), rule(owner)) == code


@pytest.mark.parametrize("context", ["tidegate.image.v1", "tidegate.checkpoint.v1", "tidegate.policy.v2", ""])
def test_another_role(owner, code_of, context):
    raw = sign_envelope(context, cbor.encode({"policy": {"version": 5}}), owner.signers)
    assert code_of(verify_policy, raw, rule(owner)) == "crypto.envelope.context"


def test_versions(owner, code_of):
    for version, accepted in ((4, False), (5, True), (6, True), (2**32 - 1, True), (1, False)):
        if accepted:
            verify_policy(signed(owner, version=version), rule(owner))
        else:
            assert code_of(verify_policy, signed(owner, version=version), rule(owner)) == "policy.version.rollback"


@pytest.mark.parametrize(
    ("devices", "device", "accepted"),
    [
        ('["*"]', "gw-17", True),
        ('["gw-17"]', "gw-17", True),
        ('["gw-*"]', "gw-", True),
        ('["gw-1*7"]', "gw-17", True),
        ('["x", "gw-17"]', "gw-17", True),
        ('["gw-1"]', "gw-17", False),
        ('["gw-171"]', "gw-17", False),
        ('["GW-17"]', "gw-17", False),
        ('["gw-*"]', "xgw-17", False),
        ('["gw-*x"]', "gw-17", False),
        ('["gw.17"]', "gw-17", False),
        ('["gw-17"]', "gw-17\\n", False),
        ('["gw-17"]', "", False),
    ],
)
def test_devices(owner, code_of, devices, device, accepted):
    raw = signed(owner, f"devices = {devices}")
    if accepted:
        verify_policy(raw, rule(owner, device=device))
    else:
        assert code_of(verify_policy, raw, rule(owner, device=device)) == "policy.device.mismatch"


@pytest.mark.parametrize(
    "expires",
    ["2027-01-01T00:00:00Z", "2027-01-01T00:00:00", "2027-01-01 01:00:00+01:00", "2026-12-31T16:00:00-08:00"],
)
def test_expiry_is_a_moment_whatever_the_zone(owner, code_of, expires):
    raw = signed(owner, f"expires = {expires}")
    moment = datetime.datetime(2027, 1, 1, tzinfo=datetime.UTC).timestamp()
    verify_policy(raw, rule(owner, now_s=moment - 0.001))
    for late in (0, 0.001, 1e9, 1e12):
        assert code_of(verify_policy, raw, rule(owner, now_s=moment + late)) == "policy.expired"


@pytest.mark.parametrize("expires", ["0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59", "1970-01-01T00:00:00Z"])
def test_expiry_at_the_ends_of_time(owner, code_of, expires):
    raw = signed(owner, f"expires = {expires}")
    if expires.startswith("9999"):
        verify_policy(raw, rule(owner))
    else:
        assert code_of(verify_policy, raw, rule(owner)) == "policy.expired"


PAYLOADS = [
    {},
    {"policy": {}},
    {"policy": {"version": 0}},
    {"policy": {"version": "5"}},
    {"policy": {"version": True}},
    {"policy": {"version": 5, "unknown": 1}},
    {"policy": {"version": 5}, "unknown": {}},
    {"policy": {"version": 5}, "firewall": 1},
    {"policy": {"version": 5}, "firewall": {"mode": "off"}},
    {"policy": {"version": 5, "expires": 5}},
    {"policy": {"version": 5, "expires": "soon"}},
    {"policy": {"version": 5, "devices": []}},
    {"policy": {"version": 5}, 1: 1},
    {"policy": cbor.Tagged(tag=1, value={"version": 5})},
    {"policy": {"version": b"5"}},
    [],
    None,
    5,
]


@pytest.mark.parametrize("payload", PAYLOADS)
def test_signed_nonsense_is_still_nonsense(owner, code_of, payload):
    raw = sign_envelope("tidegate.policy.v1", cbor.encode(payload), owner.signers)
    assert code_of(verify_policy, raw, rule(owner)) == "policy.value.invalid"


@pytest.mark.parametrize("payload", [b"", b"\xff", b"\xa0\0", b"{}"])
def test_signed_bytes_that_are_no_cbor(owner, code_of, payload):
    raw = sign_envelope("tidegate.policy.v1", payload, owner.signers)
    assert code_of(verify_policy, raw, rule(owner)) in {"crypto.cbor.malformed", "policy.value.invalid"}


def test_altered_anywhere(owner, code_of):
    raw = signed(owner, "[ids]\n")
    for at in range(0, len(raw), 3):
        code_of(verify_policy, raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :], rule(owner))


def test_oversize(owner, code_of):
    assert code_of(verify_policy, bytes(61_441), rule(owner)) == "crypto.cbor.limit"


def test_a_policy_that_no_device_would_accept_is_not_signed(owner, code_of):
    """The text may be larger than what an envelope has room for."""
    peers = ", ".join(f'"10.{number // 256}.{number % 256}.0/24"' for number in range(9_000))
    text = f"[firewall.services.ssh]\nprotocol = 'tcp'\nports = [22]\npeers = [{peers}]\n"
    assert code_of(signed, owner, text) == "crypto.envelope.too-large"


def test_nobody_else_makes_a_verified_policy(owner):
    policy = parse_policy("[policy]\nversion = 1")
    with pytest.raises(TypeError):
        VerifiedPolicy(policy, b"", object())


def test_refusals_come_in_the_order_of_the_duties(owner, code_of):
    raw = signed(owner, "devices = ['x']\nexpires = 1990-01-01T00:00:00Z", version=1)
    assert code_of(verify_policy, raw, rule(owner)) == "policy.device.mismatch"
    assert code_of(verify_policy, raw, rule(owner, device="x")) == "policy.version.rollback"
    assert code_of(verify_policy, raw, rule(owner, device="x", min_version=1)) == "policy.expired"
