"""Writes one bundle into the idle slot, safely at every single write. Touches only the devices it is given.

Order on storage, each step durable before the next: slot marked *writing* (the bootloader passes it by) → old head
erased → trees and data, block by block, each verified just before it is written, the journal following → new head, its
first block last → everything read back and verified → slot marked *written*. ``activate`` is a step of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from tidegate.base.blockdev import BLOCK_BYTES, BlockDevice
from tidegate.base.errors import Rejected
from tidegate.image.layout import HEAD_BYTES, Extent, plan_extents, total_bytes
from tidegate.image.manifest import Version
from tidegate.image.verify import (
    AcceptanceRule,
    ImageSource,
    VerifiedImage,
    read_payload,
    read_tree,
    verify_image,
)
from tidegate.update.errors import ReadBackFailed, SlotTooSmall, VersionDowngrade
from tidegate.update.journal import Progress, UpdateJournal

JOURNAL_EVERY_BYTES = 1 << 20  # at most this much is written again after a power cut

Observer = Callable[[str, int, int], None]


class BootControl(Protocol):
    """What the installer needs of a bootloader's slot states; ``boot.control`` has one."""

    def idle_slot(self) -> str:
        """Return the slot that an update may write."""
        ...

    def begin_write(self, slot: str) -> None:
        """Make ``slot`` unbootable, durably."""
        ...

    def mark_written(self, slot: str, *, version: str, security_version: int) -> None:
        """Record that ``slot`` holds a whole, verified image, durably."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Where an update goes and what guards it."""

    slots: dict[str, BlockDevice]
    control: BootControl
    journal: UpdateJournal
    rule: AcceptanceRule
    running: Version | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Installed:
    """A slot that holds a whole, verified image."""

    slot: str
    image: VerifiedImage
    resumed_at: int


def verify_bundle(bundle: ImageSource, target: Target) -> VerifiedImage:
    """Return the image in ``bundle`` if this device would install it; nothing is written.

    Duties: 1. head, every block and the exact size hold (``image.*``, ``crypto.*``); 2. it is newer than what runs
    (``update.version.downgrade``); 3. it fits the idle slot (``update.slot.too-small``).
    """
    image = verify_image(bundle, target.rule, exact_size=True)  # 1
    if target.running is not None and image.manifest.release <= target.running:  # 2
        raise VersionDowngrade(
            f"version {image.manifest.version} is not newer than the running {target.running}",
            version=image.manifest.version,
            running=str(target.running),
        )
    needed, room = total_bytes(image.manifest), target.slots[target.control.idle_slot()].size_bytes
    if needed > room:  # 3
        raise SlotTooSmall(f"the image needs {needed} bytes, the slot has {room}", need=needed, have=room)
    return image


def install_bundle(bundle: ImageSource, target: Target, observe: Observer = lambda *_: None) -> Installed:
    """Return once the idle slot holds exactly the image of ``bundle``, verified by reading it back.

    Called again after an interruption with the same bundle, it goes on where the journal says. ``observe`` is told
    (step, bytes done, bytes in all). Raises what ``verify_bundle`` raises, with nothing written; ``base.storage.*``
    or ``update.slot.read-back`` with the idle slot unbootable and the running one untouched.
    """
    image = verify_bundle(bundle, target)
    name = target.control.idle_slot()
    slot = target.slots[name]
    resumed_at = _resume_offset(target, name, image)
    target.control.begin_write(name)
    if resumed_at == 0:
        slot.write_at(0, bytes(BLOCK_BYTES))
        slot.flush()
        target.journal.write(Progress(image_digest=image.digest, slot=name, verified_bytes=HEAD_BYTES))
    writer = _Writer(bundle, slot, target.journal, image, name, observe)
    writer.copy_payloads(max(resumed_at, HEAD_BYTES))
    writer.write_head()
    observe("verify", 0, total_bytes(image.manifest))
    try:
        verify_image(slot, target.rule)
    except Rejected as error:
        target.journal.clear()
        raise ReadBackFailed(f"slot {name} reads back differently: {error.message}", slot=name) from error
    target.control.mark_written(name, version=image.manifest.version, security_version=image.manifest.security_version)
    target.journal.clear()
    return Installed(slot=name, image=image, resumed_at=resumed_at)


def _resume_offset(target: Target, name: str, image: VerifiedImage) -> int:
    """Return how far an interrupted update of the same image into the same slot is durable, or 0."""
    progress = target.journal.read()
    if progress is None or progress.image_digest != image.digest or progress.slot != name:
        return 0
    return min(progress.verified_bytes, total_bytes(image.manifest))


class _Writer:
    """Copies one image, verified block by verified block."""

    def __init__(  # all of one hand-over, made in one place
        self,
        bundle: ImageSource,
        slot: BlockDevice,
        journal: UpdateJournal,
        image: VerifiedImage,
        name: str,
        observe: Observer,
    ) -> None:
        self._bundle, self._slot, self._journal, self._image = bundle, slot, journal, image
        self._name, self._observe = name, observe
        self._total = total_bytes(image.manifest)
        self._durable = 0

    def copy_payloads(self, start: int) -> None:
        """Write every tree and payload from byte ``start`` on."""
        self._durable = start
        for extent in plan_extents(self._image.manifest):
            if extent.end > start:
                self._copy_extent(extent, start)
        self._make_durable(self._total)

    def write_head(self) -> None:
        """Write the head so that its first block, which carries the magic number, comes last."""
        self._slot.write_at(BLOCK_BYTES, self._image.head[BLOCK_BYTES:])
        self._slot.flush()
        self._slot.write_at(0, self._image.head[:BLOCK_BYTES])
        self._slot.flush()

    def _copy_extent(self, extent: Extent, start: int) -> None:
        if start < extent.data_offset:
            tree, _ = read_tree(self._bundle, extent)
            self._slot.write_at(extent.tree_offset, tree)
        first = max(0, start - extent.data_offset) // BLOCK_BYTES
        for offset, chunk in read_payload(self._bundle, extent, start_block=first):
            self._slot.write_at(offset, chunk)
            self._observe("write", offset + len(chunk), self._total)
            if offset + len(chunk) - self._durable >= JOURNAL_EVERY_BYTES:
                self._make_durable(offset + len(chunk))

    def _make_durable(self, end: int) -> None:
        self._slot.flush()
        self._journal.write(Progress(image_digest=self._image.digest, slot=self._name, verified_bytes=end))
        self._durable = end
