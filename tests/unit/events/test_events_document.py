"""A second verifier, written from docs/formats/events.md alone: it shares no code with the event log."""

import base64
import hashlib
import json

import cbor2
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from tidegate.crypto.signing import SignatureAlgorithm
from tidegate.events import catalogue
from tidegate.events.spool import EventLog, SpoolLimits
from tidegate.keys.software import DeviceSecretUnlock, SoftwareKeyStore
from tidegate.keys.store import KeyPurpose, KeySpec


def sha256(raw):
    return hashlib.sha256(raw).hexdigest()


def genesis(device, boot, head):
    parts = [b"tidegate.events.genesis.v1", device.encode(), boot.encode(), bytes.fromhex(head)]
    return sha256(b"".join(len(part).to_bytes(4, "big") + part for part in parts))


def read_folder(folder):
    """Return lines and checkpoints of a log in order."""
    lines, points = [], []
    for path in sorted(path for path in folder.iterdir() if path.suffix in (".events", ".thinned")):
        rows = path.read_bytes().splitlines()
        lines += [row for row in rows if not row.startswith(b'{"boot":')]
        points += [row for row in rows if row.startswith(b'{"boot":')]
        if path.suffix == ".events":
            points += path.with_suffix(".checkpoints").read_bytes().splitlines()
    return lines, points


def walk(lines):
    """Check every link; return (boot, first, last) -> head for each line, and the gap records by boot."""
    heads, gaps, before = {}, {}, None
    for raw in lines:
        document = json.loads(raw)
        assert raw == json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
        if "gap" in document:
            place = document["gap"]
            first, last, head = place["first"], place["last"], place["head"]
            gaps.setdefault(place["boot"], []).append((first, last, raw))
        else:
            place = document["unmapped"]["tidegate"]
            first, last, head = place["seq"], place["seq"], sha256(raw)
            assert document["metadata"]["uid"] == f"{place['device']}/{place['boot']}/{first}"
        if first == 1:
            previous = place["previous"]
            assert place["prev"] == genesis(place["device"], place["boot"], previous["head"])
            if before:
                assert (previous["boot"], previous["head"]) == before[:2]
            else:
                assert (previous["boot"], previous["head"]) == (None, "00" * 32)
        else:
            assert (place["boot"], place["prev"], first) == (before[0], before[1], before[2] + 1)
        before = (place["boot"], head, last)
        heads[place["boot"], last] = head
    return heads, gaps


def check_point(raw, key, heads, gaps):
    line = json.loads(raw)
    body, unprotected, payload, ((protected, other, signature),) = cbor2.loads(base64.b64decode(line["envelope"])).value
    assert (unprotected, other) == ({}, {})
    assert cbor2.loads(body) == {16: "tidegate.checkpoint.v1"}
    key.verify(signature, cbor2.dumps(["Signature", body, protected, b"", payload], canonical=True))
    said = cbor2.loads(payload)
    assert set(said) == {"device", "boot", "first_seq", "last_seq", "head", "gaps"}
    assert (line["boot"], line["last"]) == (said["boot"], said["last_seq"])
    assert heads[said["boot"], said["last_seq"]] == said["head"].hex()
    inside = [gap for first, last, gap in gaps.get(said["boot"], []) if said["first_seq"] <= first <= said["last_seq"]]
    assert said["gaps"] == (hashlib.sha256(b"\n".join(inside)).digest() if inside else b"")


def test_document_is_enough_to_verify_a_log(tmp_path):
    secret = tmp_path / "secret"
    secret.touch(mode=0o600)
    secret.write_bytes(bytes(32))
    store = SoftwareKeyStore.create(tmp_path / "keys", DeviceSecretUnlock(secret))
    store.generate("device", KeySpec(purpose=KeyPurpose.SIGN, algorithm=SignatureAlgorithm.ED25519))
    limits = SpoolLimits(total_bytes=32_768, segment_bytes=8_192, checkpoint_every_events=16)
    for boot in ("b1", "b2"):
        signer = store.signer("device")
        with EventLog(tmp_path / "log", device_id="dev-1", boot_id=boot, signer=signer, limits=limits) as log:
            for count in range(60):
                alert = catalogue.firewall_banned(address="192.0.2.9", duration_s=0.1 + count, reason="Prüfung ✓")
                log.append(catalogue.agent_started() if count % 30 else alert)
    lines, points = read_folder(tmp_path / "log")
    heads, gaps = walk(lines)
    assert gaps
    key = Ed25519PublicKey.from_public_bytes(store.public_key("device").raw)
    for point in points:
        check_point(point, key, heads, gaps)
    assert len(points) > 4
