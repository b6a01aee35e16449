"""The vault file format: header slots and chunks. Pure; docs/formats/vault.md has every byte.

A file is two header slots of 4 KiB, then the chunks. The header with sequence ``s`` stands in slot ``s % 2``, so that
a new header never overwrites the one in force. Each chunk is a nonce, the ciphertext and the tag of AES-256-GCM; the
associated data bind it to its file, its position, the end of the file and the item's path.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from dataclasses import dataclass

from tidegate.crypto.aead import NONCE_BYTES, TAG_BYTES, Secret, hkdf_sha256, open_aes256gcm, seal_aes256gcm
from tidegate.crypto.errors import AeadFailed
from tidegate.vault.errors import (
    ChunkAltered,
    ChunkReordered,
    FileExtended,
    FilePathChanged,
    FileRolledBack,
    FileSwapped,
    FileTruncated,
    HeaderAltered,
    HeaderUnsupported,
    ItemNameInvalid,
)

SLOT_BYTES = 4096
SLOTS = 2
BODY_OFFSET = SLOTS * SLOT_BYTES
ID_BYTES = 16
KEY_BYTES = 32
MAC_BYTES = 32
HASH_BYTES = 32
CHUNK_LOG2 = 14  # 16 KiB: 0.17 % overhead, and one random read decrypts at most this much
_CHUNK_LOG2_RANGE = range(12, 21)  # a page to 1 MiB, which is what one read may take of memory
MAX_FILE_BYTES = 1 << 40  # keeps the chunks under one key below 2^28, far from the 2^32 of random 96-bit nonces
CHUNK_OVERHEAD = NONCE_BYTES + TAG_BYTES
MAX_NAME_BYTES = 1024
_DIAGNOSIS_CHUNKS = 256  # positions tried to tell an exchanged chunk from an altered one

_MAGIC = b"TGVAULT1"
_VERSION = 1
_ALGORITHM_AES_256_GCM = 1
# magic, version, algorithm, chunk log2, flags, file id, generation, sequence, length, path hash
_FIXED = struct.Struct(">8sHBBI16sQQQ32s")
_WRAPPED = struct.Struct(f">{NONCE_BYTES}s{KEY_BYTES + TAG_BYTES}s")
_MAC_OFFSET = SLOT_BYTES - MAC_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """What a header slot says; ``length_bytes`` is that of the content."""

    file_id: bytes
    generation: int
    sequence: int
    length_bytes: int
    path_hash: bytes
    chunk_log2: int = CHUNK_LOG2

    @property
    def chunk_bytes(self) -> int:
        """Return the content of a full chunk."""
        return 1 << self.chunk_log2

    @property
    def chunks(self) -> int:
        """Return how many chunks there are; an empty file has one empty chunk."""
        return max(1, -(-self.length_bytes // self.chunk_bytes))

    @property
    def file_bytes(self) -> int:
        """Return the size of the whole file."""
        return BODY_OFFSET + self.length_bytes + self.chunks * CHUNK_OVERHEAD

    def chunk_offset(self, index: int) -> int:
        """Return where chunk ``index`` begins in the file."""
        return BODY_OFFSET + index * (self.chunk_bytes + CHUNK_OVERHEAD)

    def chunk_size(self, index: int) -> int:
        """Return how many bytes of the file chunk ``index`` takes."""
        content = min(self.chunk_bytes, self.length_bytes - index * self.chunk_bytes)
        return content + CHUNK_OVERHEAD


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """What the manifest says about an item's file."""

    file_id: bytes
    generation: int
    sequence: int
    length_bytes: int
    mac: bytes


class VaultKeys:
    """The keys derived from the vault key, one per purpose; wiped together."""

    def __init__(self, vault_key: Secret, vault_id: bytes) -> None:
        def derive(purpose: str) -> Secret:
            info = f"tidegate.vault.v1 {purpose}".encode()
            return Secret(hkdf_sha256(vault_key.view(), salt=vault_id, info=info, length=KEY_BYTES))

        self.wrapping = derive("wrapping")
        self.header = derive("header")
        self.manifest = derive("manifest")
        self.name = derive("name")

    def wipe(self) -> None:
        """Overwrite every key; harmless when repeated."""
        for key in (self.wrapping, self.header, self.manifest, self.name):
            key.wipe()


def check_name(name: str) -> str:
    """Return ``name`` if it may name an item, else raise ``vault.item.name``."""
    try:
        size = len(name.encode())
    except UnicodeEncodeError as error:
        raise ItemNameInvalid("the item's name is no Unicode text") from error
    parts = name.split("/")
    if not 1 <= size <= MAX_NAME_BYTES or not name.isprintable() or {"", ".", ".."} & set(parts):
        raise ItemNameInvalid(f"{name[:80]!r} is no name for an item")
    return name


def hash_path(keys: VaultKeys, name: str) -> bytes:
    """Return the keyed hash that stands for the item's name; without the key it tells nothing about the name."""
    return hmac.digest(keys.name.view(), name.encode(), hashlib.sha256)


# -- header slots -----------------------------------------------------------------------------------------------------


def encode_slot(header: Header, *, file_key: Secret, nonce: bytes, keys: VaultKeys) -> bytes:
    """Return the slot of 4 KiB that holds ``header`` and the file's key, wrapped and authenticated."""
    fixed = _FIXED.pack(
        _MAGIC,
        _VERSION,
        _ALGORITHM_AES_256_GCM,
        header.chunk_log2,
        0,
        header.file_id,
        header.generation,
        header.sequence,
        header.length_bytes,
        header.path_hash,
    )
    wrapped = seal_aes256gcm(keys.wrapping.view(), nonce, file_key.view(), fixed)
    body = (fixed + _WRAPPED.pack(nonce, wrapped)).ljust(_MAC_OFFSET, b"\0")
    return body + hmac.digest(keys.header.view(), body, hashlib.sha256)


def slot_mac(slot: bytes) -> bytes:
    """Return the code that the manifest keeps for a slot."""
    return slot[_MAC_OFFSET:]


def verify_slots(slots: bytes, *, expected: Expected, path_hash: bytes, keys: VaultKeys) -> tuple[Header, Secret]:
    """Return the header in force and the file's key; the caller wipes the key.

    Duties: 1. both slots are authentic for this vault (``vault.file.truncated``, ``vault.header.unsupported``,
    ``vault.header.altered``); 2. they are those of the item's file (``vault.file.swapped``), written under the item's
    path (``vault.file.path``); 3. the manifest names one of them, and no other generation (``vault.file.rollback``).
    """
    if len(slots) < BODY_OFFSET:  # 1
        raise FileTruncated(f"the file ends in its header, at byte {len(slots)}", size=len(slots))
    pair = [slots[:SLOT_BYTES], slots[SLOT_BYTES:BODY_OFFSET]]
    headers = [_verify_slot(slot, keys) for slot in pair]
    for header in headers:  # 2
        if header.file_id != expected.file_id:
            raise FileSwapped("the file belongs to another item")
        if not hmac.compare_digest(header.path_hash, path_hash):
            raise FilePathChanged("the file was written for another path")
    for index, (slot, header) in enumerate(zip(pair, headers, strict=True)):  # 3
        current = header.sequence == expected.sequence and header.generation == expected.generation
        if current and index == header.sequence % SLOTS and hmac.compare_digest(slot_mac(slot), expected.mac):
            return header, _unwrap(slot, keys)
    raise FileRolledBack(
        f"the file is of generation {headers[0].generation}, the vault's listing of {expected.generation}",
        found=headers[0].generation,
        expected=expected.generation,
    )


def _verify_slot(slot: bytes, keys: VaultKeys) -> Header:
    """Duty 1 for one slot; nothing of it is believed before the code over all of it holds."""
    if not hmac.compare_digest(hmac.digest(keys.header.view(), slot[:_MAC_OFFSET], hashlib.sha256), slot_mac(slot)):
        if slot[:8] == _MAGIC and slot[8:10] != _VERSION.to_bytes(2, "big"):
            raise HeaderUnsupported(f"version {int.from_bytes(slot[8:10], 'big')} of the format is unknown here")
        raise HeaderAltered("a header slot is not as this vault wrote it")
    magic, version, algorithm, chunk_log2, flags, file_id, generation, sequence, length, path_hash = _FIXED.unpack(
        slot[: _FIXED.size]
    )
    supported = (magic, version, algorithm, flags) == (_MAGIC, _VERSION, _ALGORITHM_AES_256_GCM, 0)
    if not supported or chunk_log2 not in _CHUNK_LOG2_RANGE or length > MAX_FILE_BYTES:
        raise HeaderUnsupported("the header asks for something that this version does not know")
    return Header(
        file_id=file_id,
        generation=generation,
        sequence=sequence,
        length_bytes=length,
        path_hash=path_hash,
        chunk_log2=chunk_log2,
    )


def _unwrap(slot: bytes, keys: VaultKeys) -> Secret:
    nonce, wrapped = _WRAPPED.unpack(slot[_FIXED.size : _FIXED.size + _WRAPPED.size])
    try:
        return Secret(open_aes256gcm(keys.wrapping.view(), nonce, wrapped, slot[: _FIXED.size]))
    except AeadFailed as error:
        raise HeaderAltered("the file's key does not unwrap") from error


def verify_size(header: Header, size_bytes: int) -> None:
    """Return if a file of ``size_bytes`` is whole, else raise ``vault.file.truncated`` or ``vault.file.extended``."""
    if size_bytes < header.file_bytes:
        raise FileTruncated(f"the file has {size_bytes} of {header.file_bytes} bytes", size=size_bytes)
    if size_bytes > header.file_bytes:
        raise FileExtended(f"the file has {size_bytes} bytes, {header.file_bytes} are its own", size=size_bytes)


# -- chunks -----------------------------------------------------------------------------------------------------------


class ChunkCipher:
    """Encrypts and decrypts the chunks of one file."""

    def __init__(self, file_key: Secret, *, file_id: bytes, path_hash: bytes) -> None:
        self._key = file_key
        self._file_id = file_id
        self._path_hash = path_hash

    def encrypt(self, index: int, content: bytes | memoryview, *, nonce: bytes, final: bool) -> bytes:
        """Return chunk ``index`` as it stands in the file; ``nonce`` is random and new."""
        return nonce + seal_aes256gcm(self._key.view(), nonce, content, self._associated(index, final=final))

    def decrypt(self, index: int, chunk: bytes | memoryview, *, chunks: int) -> bytes:
        """Return the content of chunk ``index`` of ``chunks``.

        Raises ``vault.chunk.reordered`` if it belongs to another position of this file, else ``vault.chunk.altered``.
        """
        nonce, sealed = bytes(chunk[:NONCE_BYTES]), chunk[NONCE_BYTES:]
        try:
            return self._open(nonce, sealed, index, final=index == chunks - 1)
        except AeadFailed as error:
            if self._belongs_elsewhere(nonce, sealed, index, chunks):
                raise ChunkReordered(f"chunk {index} is another chunk of this file", chunk=index) from error
            raise ChunkAltered(f"chunk {index} is not as it was written", chunk=index) from error

    def _open(self, nonce: bytes, sealed: bytes | memoryview, index: int, *, final: bool) -> bytes:
        return open_aes256gcm(self._key.view(), nonce, sealed, self._associated(index, final=final))

    def _belongs_elsewhere(self, nonce: bytes, sealed: bytes | memoryview, index: int, chunks: int) -> bool:
        """Look around ``index``; only for the error's name, since the chunk is refused either way."""
        for other in range(max(0, index - _DIAGNOSIS_CHUNKS), min(chunks, index + _DIAGNOSIS_CHUNKS)):
            for final in (False, True):
                try:
                    self._open(nonce, sealed, other, final=final)
                except AeadFailed:
                    continue
                return True
        return False

    def _associated(self, index: int, *, final: bool) -> bytes:
        return self._file_id + index.to_bytes(8, "big") + (b"\1" if final else b"\0") + self._path_hash
