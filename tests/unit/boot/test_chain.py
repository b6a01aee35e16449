"""The chain of trust in one process: what each stage refuses, what starts instead, what the log says of it."""

from __future__ import annotations

import hashlib
import io
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tidegate.base.errors import StorageFailed, TidegateError
from tidegate.boot.chain import choose_slot, load_payload, verify_stage2, verify_system
from tidegate.boot.control import RecordBootControl
from tidegate.boot.log import MAX_LOG_BYTES, BootLog
from tidegate.boot.measure import Began, Measurement, Refusal, Started, replay
from tidegate.boot.slots import SlotState
from tidegate.boot.stage1 import sealed_memory
from tidegate.boot.stage2_build import build_stage2
from tidegate.image.layout import plan_extents
from tidegate.image.verify import AcceptanceRule, verify_head
from tidegate.testing.maker import TEST_HARDWARE, TestMaker, TestRelease
from tidegate.testing.power import PowerSupply, SimulatedBlockDevice

SLOT_BYTES = 192 << 10


@pytest.fixture(scope="module")
def maker(tmp_path_factory) -> TestMaker:
    return TestMaker(tmp_path_factory.mktemp("maker"))


@pytest.fixture(scope="module")
def bundles(maker) -> dict[str, bytes]:
    return {version: maker.build(TestRelease(version=version)) for version in ("1.0.0", "2.0.0")}


def rule_of(maker: TestMaker, floor: int = 0) -> AcceptanceRule:
    return AcceptanceRule(trust=maker.trust, hardware=TEST_HARDWARE, security_floor=floor)


class Device:
    """Version 1 confirmed in slot a, version 2 pending in slot b."""

    def __init__(self, bundles: dict[str, bytes]) -> None:
        self.slots = {
            name: SimulatedBlockDevice(bundles[version].ljust(SLOT_BYTES, b"\0"), PowerSupply())
            for name, version in (("a", "1.0.0"), ("b", "2.0.0"))
        }
        self.control = RecordBootControl.provision(SimulatedBlockDevice(bytes(8192), PowerSupply()))
        for name, version in (("a", "1.0.0"), ("b", "2.0.0")):
            self.control.begin_write(name)
            self.control.mark_written(name, version=version, security_version=1)
            self.control.activate(name, tries=2)
            if name == "a":
                self.control.boot_attempt(name)
                self.control.confirm(name)
        self.log: list = []

    def choose(self, rule: AcceptanceRule) -> str:
        return choose_slot(self.control, self.slots, rule, self.log.append)[0]


def flip(device: SimulatedBlockDevice, offset: int) -> None:
    device.write_at(offset, bytes([device.read_at(offset, 1)[0] ^ 1]))


@pytest.mark.parametrize("name", ["stage2", "rootfs", "service"])
@pytest.mark.parametrize("where", ["first", "middle", "last", "padding", "tree"])
def test_a_flipped_bit_anywhere_in_a_payload_has_the_code_of_its_kind(maker, bundles, name: str, where: str) -> None:
    device = SimulatedBlockDevice(bundles["1.0.0"], PowerSupply())
    image = verify_head(device, rule_of(maker))
    extent = image.extent(name)
    offsets = {
        "first": extent.data_offset,
        "middle": extent.data_offset + extent.payload.size // 2,
        "last": extent.data_offset + extent.payload.size - 1,
        "padding": extent.end - 1,
        "tree": extent.tree_offset + 5,
    }
    flip(device, offsets[where])
    code = {"stage2": "boot.stage2.corrupt", "rootfs": "boot.os.corrupt", "service": "boot.application.corrupt"}[name]
    with pytest.raises(TidegateError) as caught:
        load_payload(device, image, name)
    assert caught.value.code == code
    others = [extent.payload.name for extent in plan_extents(image.manifest) if extent.payload.name != name]
    for other in others:
        assert load_payload(device, image, other)


def test_stages_measure_before_they_hand_over(maker, bundles) -> None:
    device, log = SimulatedBlockDevice(bundles["1.0.0"], PowerSupply()), []
    image, program = verify_stage2(device, rule_of(maker), log.append)
    assert hashlib.sha256(program).digest() == image.manifest.payloads[0].sha256
    _, loaded = verify_system(device, rule_of(maker), log.append)
    assert [entry.register for entry in log] == [8, 4, 9, 9]
    assert set(loaded) == {"rootfs", "service"}
    registers = replay([Began(), *log])
    other = SimulatedBlockDevice(bundles["2.0.0"], PowerSupply())
    second: list = []
    verify_stage2(other, rule_of(maker), second.append)
    verify_system(other, rule_of(maker), second.append)
    assert registers.keys() == replay(second).keys() == {4, 8, 9}
    assert all(registers[number] != replay(second)[number] for number in registers)
    assert replay([*second, Began(), *log]) == registers, "a reset clears the registers"


def test_the_register_is_extended_as_a_tpm_extends_a_pcr() -> None:
    digest = "ab" * 32
    entry = Measurement(stage="stage1", register=8, what="x", digest=digest)
    once = hashlib.sha256(bytes(32) + bytes.fromhex(digest)).digest()
    assert replay([entry]) == {8: once.hex()}
    assert replay([entry, entry]) == {8: hashlib.sha256(once + bytes.fromhex(digest)).hexdigest()}


def test_the_pending_slot_is_tried_first_and_counted(maker, bundles) -> None:
    device = Device(bundles)
    assert device.choose(rule_of(maker)) == "b"
    assert device.control.state().slots["b"].tries_left == 1
    assert device.control.state().started == "b"


def test_a_slot_that_does_not_verify_is_failed_for_good_and_the_other_starts(maker, bundles) -> None:
    device = Device(bundles)
    flip(device.slots["b"], verify_head(device.slots["b"], rule_of(maker)).extent("stage2").data_offset)
    assert device.choose(rule_of(maker)) == "a"
    assert [entry.code for entry in device.log if isinstance(entry, Refusal)] == ["boot.stage2.corrupt"]
    device.log.clear()
    assert device.choose(rule_of(maker)) == "a"
    assert not any(isinstance(entry, Refusal) for entry in device.log)
    assert device.control.state().slots["b"].state is SlotState.FAILED


def test_the_floor_is_the_higher_one_of_rom_and_state(maker, bundles) -> None:
    for rom, stored in ((2, 0), (0, 2)):
        device = Device(bundles)
        state = device.control.state()
        device.control._store(type(state)(**{**state_fields(state), "security_floor": stored}))
        with pytest.raises(TidegateError) as caught:
            device.choose(rule_of(maker, floor=rom))
        assert caught.value.code == "boot.slot.none-bootable"
        codes = {entry.code for entry in device.log if isinstance(entry, Refusal)}
        assert codes == {"image.version.security-downgrade"}


def state_fields(state) -> dict:
    return {name: getattr(state, name) for name in state.__struct_fields__}


@pytest.mark.parametrize("raw", [b"", b"x" * 100, bytes(SLOT_BYTES), b"TGIMAGE1" + b"\xff" * 70_000])
def test_a_slot_with_rubbish_or_nothing_is_passed_by(maker, bundles, raw: bytes) -> None:
    device = Device(bundles)
    device.slots["b"] = SimulatedBlockDevice(raw, PowerSupply())
    assert device.choose(rule_of(maker)) == "a"
    (refusal,) = (entry for entry in device.log if isinstance(entry, Refusal))
    assert refusal.code in {"image.layout.malformed", "base.input.truncated"}


class BadBlocks(SimulatedBlockDevice):
    """Flash that answers reads with EIO."""

    def read_at(self, offset: int, count: int) -> bytes:
        raise StorageFailed("Input/output error", errno=5)


def test_a_slot_whose_storage_does_not_answer_does_not_stop_the_boot(maker, bundles) -> None:
    device = Device(bundles)
    device.slots["b"] = BadBlocks(bytes(SLOT_BYTES), PowerSupply())
    assert device.choose(rule_of(maker)) == "a"
    assert [entry.code for entry in device.log if isinstance(entry, Refusal)] == ["base.storage.failed"]


def test_used_up_tries_are_reported(maker, bundles) -> None:
    device = Device(bundles)
    assert [device.choose(rule_of(maker)) for _ in range(3)] == ["b", "b", "a"]
    refusals = [(entry.slot, entry.code) for entry in device.log if isinstance(entry, Refusal)]
    assert refusals == [("b", "boot.slot.exhausted")]


def test_nothing_starts_when_nothing_verifies(maker, bundles) -> None:
    device = Device(bundles)
    for name in device.slots:
        flip(device.slots[name], 100)
    with pytest.raises(TidegateError) as caught:
        device.choose(rule_of(maker))
    assert caught.value.code == "boot.slot.none-bootable"
    assert {slot.state for slot in device.control.state().slots.values()} == {SlotState.FAILED}


# -- the second stage as a file ---------------------------------------------------------------------------------------


def test_second_stage_is_reproducible_and_carries_the_anchors(maker) -> None:
    first, second = build_stage2(maker.trust), build_stage2(maker.trust)
    assert first == second
    with zipfile.ZipFile(io.BytesIO(first)) as archive:
        assert archive.read("tidegate/boot/anchors.cbor") == maker.trust.encode()
        assert {entry.date_time for entry in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
        rooms = {name.split("/")[1] for name in archive.namelist() if name.count("/") == 2}
    assert rooms == {"base", "boot", "crypto", "image"}


def test_second_stage_runs_from_the_archive_alone(maker, tmp_path) -> None:
    """As the first stage starts it: isolated, from sealed memory."""
    descriptor = sealed_memory("stage2", build_stage2(maker.trust))
    command = [sys.executable, "-I", "-B", f"/proc/self/fd/{descriptor}", "--help"]
    done = subprocess.run(command, cwd=tmp_path, pass_fds=(descriptor,), capture_output=True, text=True, check=False)
    os.close(descriptor)
    assert done.returncode == 0, done.stderr
    assert "--manifest" in done.stdout


def test_sealed_memory_can_not_be_changed_even_by_its_owner() -> None:
    descriptor = sealed_memory("test", b"verified")
    try:
        for change in (
            lambda: os.pwrite(descriptor, b"x", 0),
            lambda: os.ftruncate(descriptor, 0),
            lambda: os.ftruncate(descriptor, 100),
            lambda: os.pwrite(os.open(f"/proc/self/fd/{descriptor}", os.O_RDWR), b"x", 0),
        ):
            with pytest.raises(PermissionError):
                change()
        assert os.pread(descriptor, 100, 0) == b"verified"
    finally:
        os.close(descriptor)


# -- the boot log -----------------------------------------------------------------------------------------------------


def test_the_log_returns_what_the_stages_wrote(tmp_path) -> None:
    log = BootLog(tmp_path)
    assert log.read() == []
    entries = [
        Began(),
        Measurement(stage="stage1", register=8, what="manifest 1.0.0", digest="0" * 64),
        Refusal(stage="stage2", slot="b", code="boot.os.corrupt", message='quoted " and\nbroken'),
        Started(stage="stage2", slot="a", version="1.0.0"),
    ]
    for entry in entries:
        log(entry)
    assert log.read() == entries


def test_a_board_that_resets_for_days_does_not_fill_its_memory(tmp_path) -> None:
    log = BootLog(tmp_path)
    refusal = Refusal(stage="stage1", slot="b", code="boot.stage2.corrupt", message="x" * 200)
    for _ in range(1500):
        log(Began())
        log(refusal)
    assert log.path.stat().st_size <= MAX_LOG_BYTES
    assert log.read()[-1] == refusal


@pytest.mark.parametrize(
    "line",
    [
        b"{}",
        b"[]",
        b'{"type":"other"}',
        b"\xff\xfe",
        b'{"type":"measured","stage":"stage1","register":24,"what":"","digest":"%s"}' % (b"0" * 64),
        b'{"type":"measured","stage":"stage1","register":1,"what":"","digest":"zz"}',
        b'{"type":"began","stage":"stage3"}',
    ],
)
def test_a_damaged_log_is_refused(tmp_path: Path, line: bytes) -> None:
    log = BootLog(tmp_path)
    log(Began())
    with log.path.open("ab") as stream:
        stream.write(line + b"\n")
    with pytest.raises(TidegateError) as caught:
        log.read()
    assert caught.value.code == "boot.state.malformed"
