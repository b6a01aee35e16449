"""The manifest: every field has limits, and a signature does not make nonsense acceptable."""

import pytest

from tidegate.base.errors import TidegateError
from tidegate.crypto import cbor
from tidegate.image.manifest import MAX_PAYLOAD_BYTES, PayloadKind, Version, parse_manifest


def changed(document, path, value):
    """Set or (``...``) drop one member of a nested value."""
    *way, last = path
    place = document
    for step in way:
        place = place[step]
    if value is ...:
        del place[last]
    else:
        place[last] = value
    return document


def test_round_trip(small):
    manifest = small[1]
    assert parse_manifest(manifest.encode()) == manifest
    assert [payload.name for payload in manifest.of_kind(PayloadKind.APPLICATION)] == ["service"]
    assert str(manifest.release) == "1.2.3"


WRONG = [
    (("unknown",), 1),
    (("Version",), "1.2.3"),
    (("payloads", 0, "unknown"), 1),
    (("vendor",), ...),
    (("product",), ...),
    (("hardware",), ...),
    (("version",), ...),
    (("security_version",), ...),
    (("payloads",), ...),
    (("payloads", 1, "size"), ...),
    (("payloads", 1, "sha256"), ...),
    (("payloads", 1, "verity_root"), ...),
    (("payloads", 1, "verity_salt"), ...),
    (("vendor",), ""),
    (("vendor",), "x" * 129),
    (("vendor",), b"Maker"),
    (("vendor",), "Maker\x1b[2J"),
    (("product",), "Gate\nway"),
    (("product",), "Gateway\0"),
    (("product",), "Gate\x9bway"),
    (("hardware",), []),
    (("hardware",), "board-r1"),
    (("hardware",), ["board-r1"] * 65),
    (("hardware",), ["Board"]),
    (("hardware",), ["board-r1\n"]),
    (("hardware",), [""]),
    (("hardware",), [1]),
    (("security_version",), -1),
    (("security_version",), 2**32),
    (("security_version",), "4"),
    (("security_version",), True),
    (("security_version",), None),
    (("payloads",), []),
    (("payloads",), {}),
    (("payloads", 0), None),
    (("payloads", 0, "name"), "../etc"),
    (("payloads", 0, "name"), "a/b"),
    (("payloads", 0, "name"), ".hidden"),
    (("payloads", 0, "name"), "a\0"),
    (("payloads", 0, "name"), "stage2\n"),
    (("payloads", 0, "name"), "A"),
    (("payloads", 0, "name"), "a" * 65),
    (("payloads", 0, "name"), ""),
    (("payloads", 0, "name"), "rootfs"),  # a second one
    (("payloads", 0, "kind"), "rootfs"),  # two of them, no second stage
    (("payloads", 0, "kind"), "kernel"),
    (("payloads", 0, "kind"), "application"),
    (("payloads", 2, "kind"), "rootfs"),
    (("payloads", 2, "kind"), "stage2"),
    (("payloads", 0, "size"), 0),
    (("payloads", 0, "size"), -1),
    (("payloads", 0, "size"), MAX_PAYLOAD_BYTES + 1),
    (("payloads", 0, "size"), 2**64 - 1),
    (("payloads", 0, "size"), "100"),
    (("payloads", 0, "size"), True),
    (("payloads", 0, "sha256"), bytes(31)),
    (("payloads", 0, "sha256"), bytes(33)),
    (("payloads", 0, "sha256"), "00" * 32),
    (("payloads", 0, "verity_root"), b""),
    (("payloads", 0, "verity_salt"), bytes(64)),
    (("payloads", 0, "start"), ["/sbin/init"]),  # only applications are started
    (("payloads", 1, "start"), ["/sbin/init"]),
    (("payloads", 2, "start"), "/start"),
    (("payloads", 2, "start"), ["x"] * 33),
    (("payloads", 2, "start"), [1]),
    (("payloads", 2, "start"), ["/start\0x"]),
    (("payloads", 2, "start"), [""]),
    (("sbom_sha256",), bytes(31)),
    (("sbom_sha256",), "text"),
]


@pytest.mark.parametrize(("path", "value"), WRONG, ids=lambda value: repr(value)[:40])
def test_each_field(builtins, path, value, code_of):
    raw = cbor.encode(changed(builtins(), path, value))
    assert code_of(parse_manifest, raw) == "image.manifest.malformed"


VERSIONS = [
    "", "1", "1.2", "1.2.3.4", "1.2.3-rc1", "1.2.3+build", "v1.2.3", "01.2.3", "1.02.3", "1.2.03", "1..3", "-1.2.3",
    "1.2.3 ", " 1.2.3", "1.2.3\n", "1.2.x", "1.2.\u0663", "1,2,3", "1.2.1000000000", "9" * 5000 + ".0.0", "1.2.3\0",
    "0x1.2.3", "1e3.0.0", "1_0.0.0",
]  # fmt: skip


@pytest.mark.parametrize("text", VERSIONS, ids=lambda text: repr(text)[:20])
def test_version_grammar(builtins, text, code_of):
    assert code_of(parse_manifest, cbor.encode(changed(builtins(), ("version",), text))) == "image.manifest.malformed"
    assert code_of(Version.parse, text) == "image.manifest.malformed"


def test_versions_are_ordered_by_numbers():
    ordered = ["0.0.0", "0.0.9", "0.0.10", "0.9.0", "0.10.0", "1.0.0", "1.0.999999999", "2.0.0", "10.0.0"]
    versions = [Version.parse(text) for text in ordered]
    assert versions == sorted(versions)
    assert [str(version) for version in versions] == ordered


def test_number_of_payloads(builtins, code_of):
    document = builtins()
    application = document["payloads"][2]
    document["payloads"] += [{**application, "name": f"app{number}"} for number in range(29)]
    assert len(parse_manifest(cbor.encode(document)).payloads) == 32
    document["payloads"].append({**application, "name": "one-too-many"})
    assert code_of(parse_manifest, cbor.encode(document)) == "image.manifest.malformed"


@pytest.mark.parametrize("value", [None, [], 0, b"", "", {}, {1: 2}, cbor.Tagged(tag=1, value={}), [[[]]]])
def test_values_that_are_no_manifest(value, code_of):
    assert code_of(parse_manifest, cbor.encode(value)) == "image.manifest.malformed"


def test_tags_and_other_keys_inside(builtins, code_of):
    for value in (cbor.Tagged(tag=0, value="Maker"), {}, []):
        assert code_of(parse_manifest, cbor.encode({**builtins(), "vendor": value})) == "image.manifest.malformed"
    assert code_of(parse_manifest, cbor.encode({**builtins(), 1: 1})) == "image.manifest.malformed"
    assert code_of(parse_manifest, cbor.encode({**builtins(), b"vendor": 1})) == "image.manifest.malformed"


def test_manifest_too_large(code_of):
    assert code_of(parse_manifest, bytes(32_769)) == "crypto.cbor.limit"


def test_every_bit_of_a_manifest_gives_another_manifest_or_a_refusal(small):
    raw = small[1].encode()
    for at in range(len(raw)):
        for bit in range(8):
            flipped = bytearray(raw)
            flipped[at] ^= 1 << bit
            try:
                assert parse_manifest(bytes(flipped)).encode() == bytes(flipped)
            except TidegateError as error:
                assert error.code in {"image.manifest.malformed", "crypto.cbor.malformed", "crypto.cbor.limit"}
