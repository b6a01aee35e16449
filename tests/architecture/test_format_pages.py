"""The format pages are true: files written by the code, read with another CBOR library and the pages' own offsets."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cbor2
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA65PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from tidegate.base.blockdev import FileBlockDevice, create_device_file
from tidegate.boot.control import RecordBootControl
from tidegate.boot.log import BootLog
from tidegate.boot.measure import Began, Measurement, Started, replay
from tidegate.boot.stage2_build import build_stage2
from tidegate.crypto.aead import Secret
from tidegate.crypto.signing import PublicKey, SignatureAlgorithm
from tidegate.keys.software import Argon2Cost, DeviceSecretUnlock, PassphraseUnlock, SoftwareKeyStore
from tidegate.keys.store import KeyPurpose, KeySpec
from tidegate.policy.document import parse_policy
from tidegate.policy.sign import sign_policy
from tidegate.testing.maker import TestMaker, TestRelease
from tidegate.update.journal import Progress, UpdateJournal

POLICY = '[policy]\nversion = 7\ndevices = ["gw-*"]\nexpires = 2030-01-01T00:00:00Z\n[update]\n'
CHEAP = Argon2Cost(memory_kib=64, iterations=1, lanes=1)


def plain(value: Any) -> Any:
    """Return what a CBOR library decoded as lists and dictionaries."""
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def load(raw: bytes) -> Any:
    return plain(cbor2.loads(raw))


@pytest.fixture
def maker(tmp_path: Path) -> TestMaker:
    return TestMaker(tmp_path / "maker")


def open_envelope(raw: bytes, role: str, keys: list[PublicKey]) -> bytes:
    """Read an envelope as docs/formats/envelope.md describes it; return the payload."""
    document = cbor2.loads(raw)
    assert document.tag == 98
    body, unprotected, payload, signatures = plain(document.value)
    assert load(body) == {16: role}
    assert unprotected == {}
    assert len(signatures) == len(keys)
    for (protected, empty, signature), key in zip(signatures, keys, strict=True):
        assert empty == {}
        assert load(protected) == {1: int(key.algorithm), 4: key_id(key.encode())}
        signed = cbor2.dumps(["Signature", body, protected, b"", payload], canonical=True)
        loader = Ed25519PublicKey if key.algorithm == -19 else MLDSA65PublicKey
        loader.from_public_bytes(key.raw).verify(signature, signed)
    return bytes(payload)


def key_id(cose_key: bytes) -> bytes:
    """RFC 9679: the required members, the algorithm among them for ML-DSA only."""
    members = load(cose_key)
    if members[1] != 7:
        del members[3]
    return hashlib.sha256(cbor2.dumps(members, canonical=True)).digest()


def test_envelope_and_policy(maker: TestMaker) -> None:
    keys = [signer.public_key for signer in maker.signers]
    raw = sign_policy(parse_policy(POLICY), maker.signers)
    assert raw.startswith(bytes.fromhex("d8628455a11072") + b"tidegate.policy.v1" + bytes.fromhex("a058"))
    policy = load(open_envelope(raw, "tidegate.policy.v1", keys))
    assert policy == {
        "policy": {"version": 7, "devices": ["gw-*"], "description": "", "expires": "2030-01-01T00:00:00Z"},
        "firewall": None,
        "ids": None,
        "watch": None,
        "update": {"tries": 3, "deadline_s": 60, "http": []},
    }


def test_trust_anchors(maker: TestMaker) -> None:
    anchors = load(maker.trust.encode())
    assert sorted(anchors) == ["classes", "keys", "threshold"]
    assert [load(key)[3] for key in anchors["keys"]] == [-19, -49]
    assert (sorted(anchors["classes"]), anchors["threshold"]) == (["classical", "post-quantum"], 2)


@pytest.mark.parametrize(
    ("algorithm", "members", "public", "signature"),
    [
        ("ed25519", {1: 1, 3: -19, -1: 6, -2: 32}, 32, 64),
        ("ecdsa-p256", {1: 2, 3: -9, -1: 1, -2: 32, -3: 32}, 65, 64),
        ("ecdsa-p384", {1: 2, 3: -51, -1: 2, -2: 48, -3: 48}, 97, 96),
        ("ml-dsa-65", {1: 7, 3: -49, -1: 1952}, 1952, 3309),
        ("ml-dsa-87", {1: 7, 3: -50, -1: 2592}, 2592, 4627),
    ],
)
def test_public_keys(tmp_path: Path, algorithm: str, members: dict[int, int], public: int, signature: int) -> None:
    store = SoftwareKeyStore.create(tmp_path / "keys", PassphraseUnlock(Secret(b"pass"), CHEAP))
    spec = KeySpec(purpose=KeyPurpose.SIGN, algorithm=next(one for one in SignatureAlgorithm if one.label == algorithm))
    store.generate("key", spec)
    key = store.public_key("key")
    read = {name: len(value) if isinstance(value, bytes) else value for name, value in load(key.encode()).items()}
    assert read == members
    assert (len(key.raw), len(store.signer("key").sign(b"message"))) == (public, signature)
    assert key.key_id.digest == key_id(key.encode())


def test_image(maker: TestMaker) -> None:
    raw = maker.build(TestRelease(version="1.2.3", rootfs_bytes=700_000, applications={"service": 100}))
    assert raw[:8] == b"TGIMAGE1"
    length = int.from_bytes(raw[8:12], "big")
    assert not any(raw[12 + length : 65_536])
    keys = [signer.public_key for signer in maker.signers]
    manifest = load(open_envelope(raw[12 : 12 + length], "tidegate.image.v1", keys))
    assert set(manifest) == {
        "vendor", "product", "hardware", "version", "security_version", "payloads", "sbom_sha256",
    }  # fmt: skip
    offset = 65_536
    for payload in manifest["payloads"]:
        assert set(payload) == {"name", "kind", "size", "sha256", "verity_root", "verity_salt", "start"}
        offset = read_payload(raw, payload, offset)
    assert offset == len(raw)


def read_payload(raw: bytes, payload: dict[str, Any], offset: int) -> int:
    """Read one payload as docs/formats/image.md describes it; return the offset behind it."""
    blocks = -(-payload["size"] // 4096)
    levels = []
    while not levels or levels[-1] > 1:
        levels.append(-(-(levels[-1] if levels else blocks) // 128))
    if blocks == 1:
        levels = []
    tree = raw[offset : offset + sum(levels) * 4096]
    start = offset + len(tree)
    data = raw[start : start + payload["size"]]
    padded = raw[start : start + blocks * 4096]
    assert padded == data.ljust(blocks * 4096, b"\0")
    assert hashlib.sha256(data).digest() == payload["sha256"]
    assert hashlib.sha256(b"tidegate verity salt" + payload["sha256"]).digest() == payload["verity_salt"]
    expected, place = payload["verity_root"], 0
    for count in [*reversed(levels), blocks]:
        nodes = tree[place : place + count * 4096] if place < len(tree) else padded
        for number in range(count):
            node = nodes[number * 4096 : (number + 1) * 4096]
            digest = hashlib.sha256(payload["verity_salt"] + node).digest()
            assert digest == expected[number * 32 : number * 32 + 32]
        expected, place = nodes, place + count * 4096
    return start + blocks * 4096


def test_second_stage(maker: TestMaker) -> None:
    with zipfile.ZipFile(io.BytesIO(build_stage2(maker.trust))) as archive:
        names = archive.namelist()
        assert names == sorted(names)
        assert {entry.date_time for entry in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
        assert archive.read("tidegate/boot/anchors.cbor") == maker.trust.encode()
    rooms = {name.split("/")[1] for name in names if name.count("/") == 2}
    assert rooms == {"base", "crypto", "image", "boot"}
    assert {"__main__.py", "tidegate/__init__.py"} < set(names)


def read_record(raw: bytes, magic: bytes) -> tuple[int, bytes]:
    """Read a record as docs/formats/record.md describes it; return the newest sequence and body."""
    found = []
    for copy in (raw[:4096], raw[4096:8192]):
        length = int.from_bytes(copy[16:20], "big")
        body = copy[52 : 52 + length]
        if copy[:8] == magic and copy[20:52] == hashlib.sha256(copy[8:20] + body).digest():
            assert not any(copy[52 + length :])
            found.append((int.from_bytes(copy[8:16], "big"), body))
    return max(found)


def test_records(tmp_path: Path) -> None:
    path = tmp_path / "data.img"
    create_device_file(path, 1 << 20)
    with FileBlockDevice(path, writable=True) as device:
        control = RecordBootControl.provision(device)
        control.begin_write("a")
        control.mark_written("a", version="1.0.0", security_version=4)
        control.activate("a", tries=3)
        journal = UpdateJournal(device, 65_536)
        journal.write(Progress(image_digest=bytes(32), slot="b", verified_bytes=65_536))
        raw = path.read_bytes()
        journal.clear()
    sequence, body = read_record(raw, b"TGBOOTST")
    empty = {"state": "empty", "tries_left": 0, "version": "", "security_version": 0}
    assert sequence == 4
    assert load(body) == {
        "slots": {"a": {"state": "pending", "tries_left": 3, "version": "1.0.0", "security_version": 4}, "b": empty},
        "preferred": "a",
        "started": None,
        "security_floor": 0,
    }
    _, body = read_record(raw[65_536:], b"TGUPDJNL")
    assert load(body) == {"digest": bytes(32), "slot": "b", "verified": 65_536}
    assert read_record(path.read_bytes()[65_536:], b"TGUPDJNL") == (2, b"\xf6")


def test_boot_log(tmp_path: Path) -> None:
    log = BootLog(tmp_path)
    digest = "5a" * 32
    for entry in (Began(), Measurement(stage="stage1", register=8, what="manifest 1.0.0", digest=digest)):
        log(entry)
    log(Started(stage="stage2", slot="a", version="1.0.0"))
    lines = [json.loads(line) for line in log.path.read_text().splitlines()]
    assert lines == [
        {"type": "began", "stage": "stage1"},
        {"type": "measured", "stage": "stage1", "register": 8, "what": "manifest 1.0.0", "digest": digest},
        {"type": "started", "stage": "stage2", "slot": "a", "version": "1.0.0"},
    ]
    assert replay(log.read()) == {8: hashlib.sha256(bytes(32) + bytes.fromhex(digest)).hexdigest()}


def test_key_store(tmp_path: Path) -> None:
    folder = tmp_path / "keys"
    store = SoftwareKeyStore.create(folder, PassphraseUnlock(Secret(b"pass"), CHEAP))
    document = load((folder / "store.cbor").read_bytes())
    assert document["format"] == "tidegate.keystore.v1"
    assert (document["kdf"], document["parameters"]) == ("argon2id", {"memory": 64, "iterations": 1, "lanes": 1})
    key = Argon2id(salt=document["salt"], length=32, iterations=1, lanes=1, memory_cost=64).derive(b"pass")
    assert unseal(key, document["check"], b"check") == b""
    store.generate("maker", KeySpec(purpose=KeyPurpose.SIGN, algorithm=SignatureAlgorithm.ED25519))
    store.generate("vault", KeySpec(purpose=KeyPurpose.SEAL))
    store.counter_increment("count")
    store.counter_increment("count")
    assert unseal(key, (folder / "count.counter").read_bytes(), b"counter count") == (2).to_bytes(8, "big")
    assert open_key(folder, key, "maker") == (store.public_key("maker").encode(), 32)
    assert open_key(folder, key, "vault") == (None, 32)
    sealed = store.seal("vault", b"secret", b"context")
    raw = load((folder / "vault.key").read_bytes())["sealed"]
    context = cbor2.dumps(["tidegate.key.v1", "vault", {"public": None, "purpose": "seal"}], canonical=True)
    assert unseal(unseal(key, raw, context), sealed, b"context") == b"secret"


def test_key_store_with_device_secret(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(bytes(range(32)))
    secret.chmod(0o400)
    SoftwareKeyStore.create(tmp_path / "keys", DeviceSecretUnlock(secret))
    document = load((tmp_path / "keys" / "store.cbor").read_bytes())
    assert (document["kdf"], document["parameters"]) == ("device-secret", {})
    info = b"tidegate keystore device-secret"
    key = HKDF(algorithm=SHA256(), length=32, salt=document["salt"], info=info).derive(bytes(range(32)))
    assert unseal(key, document["check"], b"check") == b""


def open_key(folder: Path, key: bytes, name: str) -> tuple[bytes | None, int]:
    """Return the public half and the size of the private one."""
    document = load((folder / f"{name}.key").read_bytes())
    head = {"public": document["public"], "purpose": document["purpose"]}
    context = cbor2.dumps(["tidegate.key.v1", name, head], canonical=True)
    return document["public"], len(unseal(key, document["sealed"], context))


def unseal(key: bytes, sealed: bytes, context: bytes) -> bytes:
    return AESGCM(key).decrypt(sealed[:12], sealed[12:], context)
