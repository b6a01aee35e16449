"""From bytes to a VerifiedImage: everything that is not exactly what the maker signed for this device is refused."""

import itertools
import os
import resource
import subprocess
import sys
import time

import pytest

from tidegate.base.blockdev import BLOCK_BYTES, FileBlockDevice
from tidegate.base.errors import Rejected, TidegateError
from tidegate.crypto.cose import MAX_ENVELOPE_BYTES
from tidegate.crypto.trust import hybrid_trust
from tidegate.image.layout import HEAD_BYTES, encode_head, parse_head, plan_extents, total_bytes
from tidegate.image.verify import AcceptanceRule, VerifiedImage, read_payload, verify_head, verify_image


def test_a_true_bundle(maker, small, in_memory):
    bundle, manifest = small
    image = verify_image(in_memory(bundle), maker.rule(), exact_size=True)
    assert image.manifest == manifest
    assert len(image.signers) == 2
    assert len(bundle) == total_bytes(manifest)
    extent = image.extent("rootfs")
    read = b"".join(chunk for _, chunk in read_payload(in_memory(bundle), extent))
    assert read[: extent.payload.size] == bytes(range(256)) * 40
    assert not any(read[extent.payload.size :])


def test_the_same_input_gives_the_same_manifest(maker, small):
    assert maker.bundle()[1] == small[1]
    assert maker.bundle(version="1.2.4")[1] != small[1]


def test_a_slot_may_be_larger_but_a_bundle_may_not(maker, small, in_memory, code_of):
    slot = in_memory(small[0] + os.urandom(BLOCK_BYTES))
    verify_image(slot, maker.rule())
    assert code_of(verify_image, slot, maker.rule(), exact_size=True) == "image.layout.size"


# ---- who signed, for whom, how new ---------------


@pytest.mark.parametrize(
    ("who", "code"),
    [
        ("classical only", "crypto.signature.missing-class"),
        ("post-quantum only", "crypto.signature.missing-class"),
        ("stranger", "crypto.signature.unknown-key"),
        ("stranger too", "crypto.signature.unknown-key"),
    ],
)
def test_who_signed(maker, in_memory, code_of, who, code):
    stranger = type(maker)()
    signers = {
        "classical only": [maker.classical],
        "post-quantum only": [maker.post_quantum],
        "stranger": list(stranger.signers),
        "stranger too": [*maker.signers, stranger.classical],
    }[who]
    bundle, _ = maker.bundle(signers=signers)
    assert code_of(verify_image, in_memory(bundle), maker.rule()) == code


@pytest.mark.parametrize("context", ["tidegate.policy.v1", "tidegate.checkpoint.v1", "tidegate.image.v2"])
def test_a_document_of_another_role(maker, small, in_memory, code_of, context):
    head = maker.signed(small[1].encode(), context=context)
    assert code_of(verify_head, in_memory(head), maker.rule()) == "crypto.envelope.context"


def test_a_policy_is_no_image_and_an_image_no_policy(maker, small, in_memory, code_of):
    from tidegate.policy.document import parse_policy
    from tidegate.policy.sign import PolicyRule, sign_policy, verify_policy

    policy = sign_policy(parse_policy("[policy]\nversion = 1"), maker.signers)
    assert code_of(verify_head, in_memory(encode_head(policy)), maker.rule()) == "crypto.envelope.context"
    rule = PolicyRule(trust=maker.trust, device="d", min_version=1, now_s=0.0)
    assert code_of(verify_policy, parse_head(small[0][:HEAD_BYTES]), rule) == "crypto.envelope.context"


@pytest.mark.parametrize("hardware", ["board-r3", "board-r", "board-r11", "BOARD-R1", "", "*", "board-r1\n"])
def test_other_hardware(maker, small, in_memory, code_of, hardware):
    assert code_of(verify_head, in_memory(small[0]), maker.rule(hardware)) == "image.hardware.mismatch"


def test_security_floor(maker, small, in_memory, code_of):
    for floor in (0, 3, 4):
        verify_head(in_memory(small[0]), maker.rule(floor=floor))
    for floor in (5, 2**32):
        assert code_of(verify_head, in_memory(small[0]), maker.rule(floor=floor)) == "image.version.security-downgrade"


def test_signed_nonsense_is_still_nonsense(maker, builtins, in_memory, code_of):
    head = maker.signed({**builtins(), "unknown": 1})
    assert code_of(verify_head, in_memory(head), maker.rule()) == "image.manifest.malformed"


def test_refusals_come_in_the_order_of_the_duties(maker, in_memory, code_of):
    """An attacker who is not trusted learns nothing of what the device is."""
    stranger = type(maker)()
    bundle, _ = stranger.bundle(hardware=("other",), security_version=0)
    assert code_of(verify_head, in_memory(bundle), maker.rule(floor=9)) == "crypto.signature.unknown-key"
    bundle, _ = maker.bundle(hardware=("other",), security_version=0)
    assert code_of(verify_head, in_memory(bundle), maker.rule(floor=9)) == "image.hardware.mismatch"


def test_nobody_else_makes_a_verified_image(small, maker, in_memory):
    image = verify_head(in_memory(small[0]), maker.rule())
    with pytest.raises(TypeError):
        VerifiedImage(small[1], image.digest, image.signers, image.head, object())
    with pytest.raises(TypeError):
        VerifiedImage(small[1], image.digest, image.signers, image.head, None)


# ---- the layout ---------------


@pytest.mark.parametrize(
    "change",
    [
        lambda head: bytes(HEAD_BYTES),
        lambda head: b"TGIMAGE2" + head[8:],
        lambda head: b"\xff" * HEAD_BYTES,
        lambda head: b"tgimage1" + head[8:],
        lambda head: head[:8] + bytes(4) + head[12:],
        lambda head: head[:8] + b"\xff\xff\xff\xff" + head[12:],
        lambda head: head[:8] + (MAX_ENVELOPE_BYTES + 1).to_bytes(4, "big") + head[12:],
        lambda head: head[:8] + (int.from_bytes(head[8:12], "big") - 1).to_bytes(4, "big") + head[12:],
        lambda head: head[:-1] + b"\1",
        lambda head: head[:60_000] + b"\1" + head[60_001:],
    ],
)
def test_heads_that_are_none(maker, small, in_memory, code_of, change):
    head = change(small[0][:HEAD_BYTES])
    assert len(head) == HEAD_BYTES
    source = in_memory(head + small[0][HEAD_BYTES:])
    assert code_of(verify_image, source, maker.rule()) == "image.layout.malformed"


@pytest.mark.parametrize("more", [1, 10, 1000])
def test_a_length_that_takes_in_what_lies_behind(maker, small, in_memory, code_of, more):
    head = small[0][:HEAD_BYTES]
    longer = head[:8] + (int.from_bytes(head[8:12], "big") + more).to_bytes(4, "big") + head[12:]
    source = in_memory(longer + small[0][HEAD_BYTES:])
    assert code_of(verify_image, source, maker.rule()) == "crypto.cbor.malformed"


def test_the_first_byte_behind_the_envelope(maker, small, in_memory, code_of):
    head = bytearray(small[0])
    head[12 + int.from_bytes(head[8:12], "big")] = 1
    assert code_of(verify_image, in_memory(head), maker.rule()) == "image.layout.malformed"


def test_one_byte_more_or_less(maker, small, in_memory, code_of):
    for altered in (small[0][:-1], small[0] + b"\0"):
        assert code_of(verify_image, in_memory(altered), maker.rule(), exact_size=True) == "image.layout.size"
    assert code_of(verify_image, in_memory(small[0][:-1]), maker.rule()) == "image.layout.size"


def test_truncated_at_many_points(maker, small, in_memory, code_of):
    bundle = small[0]
    borders = {0, 1, 8, 11, 12, 13, HEAD_BYTES}
    for extent in plan_extents(small[1]):
        borders |= {extent.tree_offset, extent.data_offset, extent.end}
    cuts = {cut + delta for cut in borders for delta in (-1, 0, 1)} | set(range(0, len(bundle), 1777))
    for cut in sorted(cut for cut in cuts if 0 <= cut < len(bundle)):
        code = code_of(verify_image, in_memory(bundle[:cut]), maker.rule(), exact_size=True)
        assert code == ("base.input.truncated" if cut < HEAD_BYTES else "image.layout.size")


@pytest.mark.parametrize("hostile", ["zeros", "head with zeros behind it", "someone else's head"])
def test_a_sparse_file_of_3_gib(maker, small, tmp_path, code_of, hostile):
    path = tmp_path / "bundle"
    head = {"zeros": b"", "head with zeros behind it": small[0][:HEAD_BYTES]}.get(hostile)
    path.write_bytes(type(maker)().bundle()[0][:HEAD_BYTES] if head is None else head)
    os.truncate(path, 3 << 30)
    expected = {
        "zeros": "image.layout.malformed",
        "head with zeros behind it": "image.layout.size",
        "someone else's head": "crypto.signature.unknown-key",
    }[hostile]
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    with FileBlockDevice(path) as source:
        assert code_of(verify_image, source, maker.rule(), exact_size=True) == expected
    assert time.monotonic() - started < 2
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 16 * 1024


def test_a_sparse_file_of_3_gib_on_the_command_line(maker, small, tmp_path):
    """Refused with exit code 3 in a process that may not have more than 512 MiB of address space."""
    path, anchors = tmp_path / "bundle", tmp_path / "anchors"
    path.write_bytes(small[0][:HEAD_BYTES])
    os.truncate(path, 3 << 30)
    anchors.write_bytes(maker.trust.encode())
    command = [
        "-m",
        "tidegate.cli.main",
        "image",
        "verify",
        str(path),
        "--anchors",
        str(anchors),
        "--hardware",
        "board-r1",
    ]
    done = subprocess.run(
        [sys.executable, *command],
        capture_output=True,
        check=False,
        timeout=15,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (512 << 20, 512 << 20)),
    )
    assert done.returncode == 3
    assert b"[image.layout.size]" in done.stderr


# ---- every bit ---------------


@pytest.fixture(scope="module")
def tiny(maker):
    """Two payloads: one of a single block, one of two, so that there is a tree."""
    return maker.bundle(maker.sources(stage2=b"s" * 100, rootfs=b"r" * 5000))


def test_every_bit_of_envelope_and_payloads(maker, tiny, in_memory):
    """Every bit that the format gives a meaning; bits in padding and beyond are sampled."""
    bundle, manifest = tiny
    envelope_end = 12 + int.from_bytes(bundle[8:12], "big")
    rule = maker.rule()
    payload_starts = [(extent.data_offset, 120) for extent in plan_extents(manifest)]
    tree_starts = [(extent.tree_offset, min(64, extent.tree_size)) for extent in plan_extents(manifest)]
    checked = itertools.chain(
        range(12 * 8),
        range(12 * 8, envelope_end * 8, 31),
        range(envelope_end * 8, HEAD_BYTES * 8, 4001),
        *(range(start * 8, (start + count) * 8, 3) for start, count in payload_starts + tree_starts),
        range(HEAD_BYTES * 8, len(bundle) * 8, 997),
    )
    for bit in checked:
        flipped = bytearray(bundle)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(Rejected):
            verify_image(in_memory(flipped), rule, exact_size=True)


def test_every_bit_of_the_manifest_inside_its_envelope(maker, tiny, in_memory):
    """The signed bytes themselves, each bit of them, with the signature left as it was."""
    bundle, manifest = tiny
    start = bundle.index(manifest.encode())
    for bit in range(start * 8, (start + len(manifest.encode())) * 8):
        flipped = bytearray(bundle[:HEAD_BYTES])
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(Rejected) as caught:
            verify_head(in_memory(flipped), maker.rule())
        assert caught.value.code == "crypto.signature.invalid"


# ---- payloads and trees ---------------


@pytest.fixture(scope="module")
def large(maker):
    """A root file system of 200 blocks: two leaf hash blocks and a root one, four chunks to read."""
    return maker.bundle(maker.sources(rootfs=os.urandom(200 * BLOCK_BYTES - 100)))


def extent_of(bundle, name):
    return next(extent for extent in plan_extents(bundle[1]) if extent.payload.name == name)


@pytest.mark.parametrize("block", [0, 1, 63, 64, 127, 128, 199])
def test_a_bad_block_is_not_handed_out(large, in_memory, block):
    extent = extent_of(large, "rootfs")
    altered = bytearray(large[0])
    altered[extent.data_offset + block * BLOCK_BYTES + 77] ^= 0x10
    handed_out = []
    with pytest.raises(TidegateError) as caught:
        handed_out.extend(offset for offset, _ in read_payload(in_memory(altered), extent))
    assert caught.value.code == "image.payload.corrupt"
    assert caught.value.fields["block"] == block
    assert handed_out == [extent.data_offset + first * BLOCK_BYTES for first in range(0, block // 64 * 64, 64)]


def test_blocks_exchanged_within_a_payload(large, in_memory, maker, code_of):
    extent = extent_of(large, "rootfs")
    altered = bytearray(large[0])
    one, two = (slice(extent.data_offset + n * BLOCK_BYTES, extent.data_offset + (n + 1) * BLOCK_BYTES) for n in (3, 9))
    altered[one], altered[two] = altered[two], altered[one]
    assert code_of(verify_image, in_memory(altered), maker.rule()) == "image.payload.corrupt"


def test_payloads_exchanged(maker, in_memory, code_of):
    bundle = maker.bundle(maker.sources(first=b"a" * 4096, second=b"b" * 4096))
    one, two = extent_of(bundle, "first"), extent_of(bundle, "second")
    altered = bytearray(bundle[0])
    altered[one.data_offset : one.end], altered[two.data_offset : two.end] = b"b" * 4096, b"a" * 4096
    assert code_of(verify_image, in_memory(altered), maker.rule()) == "image.payload.corrupt"


@pytest.mark.parametrize("at", [0, 31, 32, 64, 100, BLOCK_BYTES - 1, BLOCK_BYTES, 2 * BLOCK_BYTES, 3 * BLOCK_BYTES - 1])
def test_each_part_of_a_tree(large, in_memory, maker, code_of, at):
    """Padding in hash blocks included: the digests above cover it."""
    extent = extent_of(large, "rootfs")
    assert extent.tree_size == 3 * BLOCK_BYTES
    altered = bytearray(large[0])
    altered[extent.tree_offset + at] ^= 1
    assert code_of(verify_image, in_memory(altered), maker.rule()) == "image.payload.tree-corrupt"


def test_tree_and_data_replaced_together(large, maker, in_memory, code_of):
    """A tree that fits the altered data does not fit the signed root."""
    other = maker.bundle(maker.sources(rootfs=os.urandom(200 * BLOCK_BYTES - 100)))
    extent = extent_of(large, "rootfs")
    altered = large[0][: extent.tree_offset] + other[0][extent.tree_offset :]
    assert code_of(verify_image, in_memory(altered), maker.rule()) == "image.payload.tree-corrupt"


def test_a_resumed_read_is_verified_as_well(large, in_memory, code_of):
    extent = extent_of(large, "rootfs")
    offsets = [offset for offset, _ in read_payload(in_memory(large[0]), extent, start_block=130)]
    assert offsets[0] == extent.data_offset + 130 * BLOCK_BYTES
    altered = bytearray(large[0])
    altered[extent.data_offset + 150 * BLOCK_BYTES] ^= 1
    assert code_of(list, read_payload(in_memory(altered), extent, start_block=130)) == "image.payload.corrupt"


def test_digest_and_root_must_agree(maker, builtins, small, in_memory, code_of):
    """A maker's own mistake: a true tree over other bytes than the digest says."""
    document = builtins()
    document["payloads"][1]["sha256"] = bytes(32)
    bundle = maker.signed(document) + small[0][HEAD_BYTES:]
    assert code_of(verify_image, in_memory(bundle), maker.rule()) == "image.payload.corrupt"


def test_reads_are_bounded(large, maker, in_memory):
    source = in_memory(large[0])
    verify_image(source, maker.rule())
    assert source.largest_read <= 64 * BLOCK_BYTES


def test_a_claimed_size_is_not_believed(maker, builtins, small, in_memory, code_of):
    """2 GiB in a signed manifest need a source of that size before a tree of 16 MiB is read."""
    document = builtins()
    document["payloads"][0]["size"] = 2 << 30
    source = in_memory(maker.signed(document) + small[0][HEAD_BYTES:])
    assert code_of(verify_image, source, maker.rule()) == "image.layout.size"
    assert source.largest_read == HEAD_BYTES


def test_a_policy_of_other_keys(small, in_memory, code_of, maker):
    stranger = type(maker)()
    rule = AcceptanceRule(
        trust=hybrid_trust([maker.classical.public_key, stranger.post_quantum.public_key]),
        hardware="board-r1",
        security_floor=0,
    )
    assert code_of(verify_image, in_memory(small[0]), rule) == "crypto.signature.unknown-key"


def test_an_envelope_of_another_bundle(maker, small, in_memory, code_of):
    """A true head of another release before these payloads."""
    other, _ = maker.bundle(maker.sources(service=b"applicatiom" * 9), version="9.9.9")
    mixed = other[:HEAD_BYTES] + small[0][HEAD_BYTES:]
    assert code_of(verify_image, in_memory(mixed), maker.rule()) == "image.payload.corrupt"


def test_reading_errors_keep_their_family(small, maker, code_of):
    class Failing:
        size_bytes = len(small[0])

        def read_at(self, offset, count):
            from tidegate.base.errors import StorageFailed

            raise StorageFailed("unreadable sector")

    assert code_of(verify_image, Failing(), maker.rule()) == "base.storage.failed"
