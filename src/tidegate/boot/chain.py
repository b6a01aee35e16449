"""What each stage verifies before it starts anything. Pure: slots, trust and a log come in as parameters."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

from tidegate.base.errors import Fault, Rejected
from tidegate.boot.control import RecordBootControl
from tidegate.boot.errors import ApplicationCorrupt, NoBootableSlot, OsCorrupt, Stage2Corrupt, TrialExhausted
from tidegate.boot.measure import BootLogEntry, Measurement, Refusal
from tidegate.boot.slots import boot_order
from tidegate.image.errors import PayloadCorrupt, TreeCorrupt
from tidegate.image.manifest import PayloadKind
from tidegate.image.verify import AcceptanceRule, ImageSource, VerifiedImage, read_payload, verify_head

Log = Callable[[BootLogEntry], None]

_CORRUPT: dict[PayloadKind, type[Rejected]] = {
    PayloadKind.STAGE2: Stage2Corrupt,
    PayloadKind.ROOTFS: OsCorrupt,
    PayloadKind.APPLICATION: ApplicationCorrupt,
}


def load_payload(source: ImageSource, image: VerifiedImage, name: str) -> bytes:
    """Return a payload of ``image``, every block of it verified.

    Raises ``boot.stage2.corrupt``, ``boot.os.corrupt`` or ``boot.application.corrupt`` by the payload's kind, and
    ``base.input.truncated`` if the slot ends early.
    """
    extent = image.extent(name)
    try:
        data = b"".join(chunk for _, chunk in read_payload(source, extent))
    except (PayloadCorrupt, TreeCorrupt) as error:
        kind = extent.payload.kind
        raise _CORRUPT[kind](f"{kind.value} {name}: {error.message}", payload=name) from error
    return data[: extent.payload.size]


def verify_stage2(source: ImageSource, rule: AcceptanceRule, log: Log) -> tuple[VerifiedImage, bytes]:
    """First stage's duty: return the verified manifest and the second stage's bytes, both measured."""
    image = verify_head(source, rule)
    (payload,) = image.manifest.of_kind(PayloadKind.STAGE2)
    program = load_payload(source, image, payload.name)
    log(Measurement(stage="stage1", register=8, what=f"manifest {image.manifest.version}", digest=image.digest.hex()))
    log(Measurement(stage="stage1", register=4, what=payload.name, digest=hashlib.sha256(program).hexdigest()))
    return image, program


def verify_system(source: ImageSource, rule: AcceptanceRule, log: Log) -> tuple[VerifiedImage, dict[str, bytes]]:
    """Second stage's duty: return the manifest and the bytes of the OS and of every application, all measured."""
    image = verify_head(source, rule)
    loaded = {}
    for kind in (PayloadKind.ROOTFS, PayloadKind.APPLICATION):
        for payload in image.manifest.of_kind(kind):
            loaded[payload.name] = load_payload(source, image, payload.name)
            digest = payload.verity_root.hex()
            log(Measurement(stage="stage2", register=9, what=f"{kind.value} {payload.name}", digest=digest))
    return image, loaded


def choose_slot(
    control: RecordBootControl, slots: dict[str, ImageSource], rule: AcceptanceRule, log: Log
) -> tuple[str, VerifiedImage, bytes]:
    """First stage: return the first slot in boot order that verifies, its attempt counted and durable.

    A slot that does not verify is logged with its code, marked failed, and never tried again. One whose storage does
    not answer is logged and passed by this time only: the fault may be gone at the next boot. One whose tries are used
    up is logged (``boot.slot.exhausted``) and passed by. The security floor is the higher one of ``rule`` and
    the boot state. Raises ``boot.slot.none-bootable`` when none is left.
    """
    for name in control.settle():
        message = "the tries are used up and nobody confirmed the system"
        log(Refusal(stage="stage1", slot=name, code=TrialExhausted.code, message=message))
    floor = max(rule.security_floor, control.state().security_floor)
    rule = AcceptanceRule(trust=rule.trust, hardware=rule.hardware, security_floor=floor)
    for name in boot_order(control.state()):
        try:
            image, program = verify_stage2(slots[name], rule, log)
        except (Rejected, Fault) as error:
            log(Refusal(stage="stage1", slot=name, code=error.code, message=error.message))
            if isinstance(error, Rejected):
                control.refuse(name)
            continue
        control.boot_attempt(name)
        return name, image, program
    raise NoBootableSlot("neither slot holds an image that verifies")
