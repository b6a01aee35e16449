"""The redo file: what a change in place is about to write, so that it can be finished after a power cut.

Touches: ``redo`` in the vault's folder, and the item files that it names. The file is durable before the transaction
that carries its digest; writing it out again does no harm. docs/formats/vault.md.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tidegate.base.durable import read_file_bounded, sync_folder, translate_os_errors, write_file_atomic
from tidegate.base.errors import Rejected, TidegateError
from tidegate.crypto import cbor
from tidegate.crypto.aead import NONCE_BYTES, open_aes256gcm, seal_aes256gcm
from tidegate.vault.errors import RedoAltered
from tidegate.vault.files import open_regular, pwrite_all, write_headers
from tidegate.vault.format import SLOT_BYTES, VaultKeys
from tidegate.vault.journal import NO_DIGEST

MAX_REDO_BYTES = 32 << 20  # an editor's 4 MiB of chunks, or the headers of a few hundred files
_MAGIC = b"TGREDO02"
_KEEP_SIZE = 1  # FALLOC_FL_KEEP_SIZE
_HEAD_BYTES = len(_MAGIC) + 4 + NONCE_BYTES  # magic, epoch, nonce


@dataclass(frozen=True, slots=True, kw_only=True)
class FileChange:
    """What becomes of one item file: ``pieces`` at their offsets, the header ``slot``, the size at the end."""

    name: str
    slot: bytes
    sequence: int
    size_bytes: int
    pieces: tuple[tuple[int, bytes], ...] = ()


def write_redo(folder: Path, changes: Sequence[FileChange], *, keys: VaultKeys, epoch: int) -> bytes:
    """Reserve what files will grow by, write the redo file, durable, and return its digest for the transaction."""
    document = [
        [change.name, change.slot, change.sequence, change.size_bytes, [list(piece) for piece in change.pieces]]
        for change in changes
    ]
    nonce = os.urandom(NONCE_BYTES)
    head = _MAGIC + epoch.to_bytes(4, "big") + nonce
    raw = head + seal_aes256gcm(keys.redo.view(), nonce, cbor.encode(document), head)
    try:
        for change in changes:
            if change.pieces:
                _reserve(folder / "items" / change.name, change.size_bytes)
        write_file_atomic(folder / "redo", raw, mode=0o600)
    except BaseException:
        release_room(folder, changes)
        raise
    return hashlib.sha256(raw).digest()


def release_room(folder: Path, changes: Sequence[FileChange]) -> None:
    """Give back what ``write_redo`` reserved for changes that do not come to count; does what it can."""
    for change in changes:
        with contextlib.suppress(OSError, TidegateError):
            descriptor = open_regular(folder / "items" / change.name, os.O_RDWR)
            try:
                os.ftruncate(descriptor, os.fstat(descriptor).st_size)  # frees what is behind the end
            finally:
                os.close(descriptor)


def apply_redo(folder: Path, changes: Sequence[FileChange]) -> None:
    """Write the changes out, durable, and remove the redo file. Raises ``base.storage.*``; then it stays."""
    for change in changes:
        path = folder / "items" / change.name
        descriptor = open_regular(path, os.O_RDWR)
        try:
            with translate_os_errors(path):
                for offset, data in change.pieces:
                    pwrite_all(descriptor, memoryview(data), offset)
                os.ftruncate(descriptor, change.size_bytes)
                write_headers(descriptor, change.slot, change.sequence)
        finally:
            os.close(descriptor)
    discard_redo(folder)


def discard_redo(folder: Path) -> None:
    """Remove the redo file; harmless where there is none."""
    with translate_os_errors(folder), contextlib.suppress(FileNotFoundError):
        path = folder / "redo"
        if path.is_dir() and not path.is_symlink():
            path.rmdir()  # somebody's, and empty
        else:
            path.unlink()
        sync_folder(folder)


def recover_redo(folder: Path, digest: bytes, keys: Mapping[int, VaultKeys]) -> int:
    """Finish what the last transaction, whose redo digest this is, left undone; return how many files that were.

    A redo file of no transaction never came to count and is removed. Without the file the change was finished before
    the power cut, or somebody removed it: reading the item tells. Raises ``vault.redo.altered``, ``base.storage.*``.
    """
    path = folder / "redo"
    if not os.path.lexists(path):
        return 0
    raw = _read(path) if digest != NO_DIGEST else b""
    if hashlib.sha256(raw).digest() != digest:
        discard_redo(folder)
        return 0
    changes = _parse(raw, keys)
    apply_redo(folder, changes)
    return len(changes)


def _read(path: Path) -> bytes:
    """Return the file, or nothing where something else is in its place, or more than we ever write."""
    if not path.is_file() or path.is_symlink() or path.stat().st_size > MAX_REDO_BYTES:
        return b""
    return read_file_bounded(path, limit_bytes=MAX_REDO_BYTES)


def _reserve(path: Path, size_bytes: int) -> None:
    """Make room for ``size_bytes`` without changing the size: a full disk is noticed before anything counts."""
    descriptor = open_regular(path, os.O_RDWR)
    try:
        library = ctypes.CDLL(None, use_errno=True)
        call = getattr(library, "fallocate64", library.fallocate)  # the plain one takes 32 bits on old systems
        done = call(descriptor, _KEEP_SIZE, ctypes.c_int64(0), ctypes.c_int64(size_bytes))
        number = ctypes.get_errno()
        if done != 0 and number not in (errno.EOPNOTSUPP, errno.ENOSYS):
            with translate_os_errors(path):
                raise OSError(number, os.strerror(number))
    finally:
        os.close(descriptor)


def _parse(raw: bytes, keys: Mapping[int, VaultKeys]) -> list[FileChange]:
    head, epoch = raw[:_HEAD_BYTES], int.from_bytes(raw[len(_MAGIC) : len(_MAGIC) + 4], "big")
    if not raw.startswith(_MAGIC) or epoch not in keys:
        raise RedoAltered("the redo file is none of this vault")
    try:
        opened = open_aes256gcm(keys[epoch].redo.view(), head[-NONCE_BYTES:], raw[_HEAD_BYTES:], head)
        document = cbor.decode(opened, limit_bytes=MAX_REDO_BYTES)
    except Rejected as error:
        raise RedoAltered("the redo file is not as it was written") from error
    if not isinstance(document, list):
        raise RedoAltered("the redo file is malformed")
    return [_parse_change(value) for value in document]


def _parse_change(value: cbor.Value) -> FileChange:
    match value:
        case [str() as name, bytes() as slot, int() as sequence, int() as size, [*pieces]] if len(slot) == SLOT_BYTES:
            pairs = [(piece[0], piece[1]) for piece in pieces if isinstance(piece, list) and len(piece) == 2]
            good = all(isinstance(offset, int) and isinstance(data, bytes) for offset, data in pairs)
            if good and len(pairs) == len(pieces):
                return FileChange(
                    name=name,
                    slot=slot,
                    sequence=sequence,
                    size_bytes=size,
                    pieces=tuple(pairs),  # type: ignore[arg-type]  # looked at above
                )
    raise RedoAltered("a change in the redo file is malformed")
