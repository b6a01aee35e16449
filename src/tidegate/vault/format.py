"""The vault file format: header slots and chunks. Pure; docs/formats/vault.md has every byte.

A file is two header slots of 4 KiB, then the chunks. Both slots hold the header in force; an update writes them one
after the other, the slot ``sequence % 2`` first. Each chunk is a nonce, the ciphertext and the tag; the associated data
bind it to its file, its position, the write that made it, the end of the file and the item's path.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from dataclasses import dataclass, field, replace

from cryptography.exceptions import InvalidTag

from tidegate.crypto.aead import (
    KEY_BYTES,
    NONCE_BYTES,
    TAG_BYTES,
    AeadAlgorithm,
    AeadObject,
    Secret,
    hkdf_sha256_into,
    open_aes256gcm_into,
    seal_aes256gcm,
)
from tidegate.crypto.errors import AeadFailed
from tidegate.crypto.memory import ProtectedSecret
from tidegate.vault.errors import (
    ChunkAltered,
    ChunkReordered,
    ChunkRolledBack,
    FileExtended,
    FilePathChanged,
    FileRolledBack,
    FileSwapped,
    FileTruncated,
    HeaderAltered,
    HeaderUnsupported,
    ItemNameInvalid,
)
from tidegate.vault.extents import EXTENT_BYTES, MAX_EXTENTS, Extent, check_extents, sequence_of

SLOT_BYTES = 4096
SLOTS = 2
BODY_OFFSET = SLOTS * SLOT_BYTES
ID_BYTES = 16
HASH_BYTES = 32
CHUNK_LOG2 = 14  # 16 KiB: 0.17 % overhead, and one random read decrypts at most this much
_CHUNK_LOG2_RANGE = range(12, 21)  # a page to 1 MiB, which is what one read may take of memory
MAX_FILE_BYTES = 1 << 40  # keeps the chunks under one key below 2^28
MAX_CHUNK_WRITES = 1 << 31  # of random nonces under one key, half of what NIST SP 800-38D §8.3 allows
CHUNK_OVERHEAD = NONCE_BYTES + TAG_BYTES
MAX_NAME_BYTES = 1024
_DIAGNOSIS = 256  # positions and writes tried to tell what an unfitting chunk is

_MAGIC = b"TGVAULT2"
_VERSION = 2
# magic, version, algorithm, chunk log2, epoch, file id, generation, sequence
_PLAIN = struct.Struct(">8sHBBI16sQQ")
# behind the file key: path hash, length, stored length, chunk writes, extents
_SEALED = struct.Struct(">32sQQQH")
_EXTENTS_AT = KEY_BYTES + _SEALED.size
_EXTENT = struct.Struct(">IQ")
_SEALED_BYTES = SLOT_BYTES - _PLAIN.size - NONCE_BYTES - TAG_BYTES
_ASSOCIATED = struct.Struct(">16sQQB32s")


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """What a header says. ``length_bytes`` is that of the content, ``stored_bytes`` that with its padding."""

    file_id: bytes
    generation: int
    sequence: int
    length_bytes: int
    stored_bytes: int
    path_hash: bytes
    epoch: int
    algorithm: AeadAlgorithm
    chunk_log2: int = CHUNK_LOG2
    writes: int = 0
    extents: tuple[Extent, ...] = field(default=(Extent(first=0, sequence=0),))

    @property
    def chunk_bytes(self) -> int:
        """Return the content of a full chunk."""
        return 1 << self.chunk_log2

    @property
    def chunks(self) -> int:
        """Return how many chunks there are; an empty file has one empty chunk."""
        return max(1, -(-self.stored_bytes // self.chunk_bytes))

    @property
    def file_bytes(self) -> int:
        """Return the size of the whole file."""
        return BODY_OFFSET + self.stored_bytes + self.chunks * CHUNK_OVERHEAD

    def chunk_offset(self, index: int) -> int:
        """Return where chunk ``index`` begins in the file."""
        return BODY_OFFSET + index * (self.chunk_bytes + CHUNK_OVERHEAD)

    def chunk_size(self, index: int) -> int:
        """Return how many bytes of the file chunk ``index`` takes."""
        return min(self.chunk_bytes, self.stored_bytes - index * self.chunk_bytes) + CHUNK_OVERHEAD


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """What the listing says about an item's file. ``tag`` is that of the header in force."""

    file_id: bytes
    generation: int
    sequence: int
    tag: bytes
    length_bytes: int
    stored_bytes: int
    epoch: int
    modified_s: int


class VaultKeys:
    """The keys of one epoch, derived from its vault key, one per purpose; wiped together."""

    def __init__(self, vault_key: Secret, vault_id: bytes) -> None:
        def derive(purpose: str) -> ProtectedSecret:
            info = f"tidegate.vault.v2 {purpose}".encode()
            return ProtectedSecret.fill(
                KEY_BYTES, lambda target: hkdf_sha256_into(vault_key.view(), salt=vault_id, info=info, target=target)
            )

        self.header = derive("header")
        self.manifest = derive("manifest")
        self.redo = derive("redo")

    def wipe(self) -> None:
        """Overwrite every key; harmless when repeated."""
        for key in (self.header, self.manifest, self.redo):
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


def hash_path(vault_id: bytes, name: str) -> bytes:
    """Return what binds a file to its vault and its path; it is nowhere stored but inside what is encrypted."""
    return hashlib.sha256(b"tidegate.vault.v2 path\0" + vault_id + name.encode()).digest()


# -- header slots -----------------------------------------------------------------------------------------------------


def encode_slot(header: Header, *, file_key: Secret, nonce: bytes, keys: VaultKeys) -> bytes:
    """Return the slot of 4 KiB that holds ``header`` and the file's key, encrypted under the vault's header key."""
    plain = _PLAIN.pack(
        _MAGIC,
        _VERSION,
        header.algorithm.value,
        header.chunk_log2,
        header.epoch,
        header.file_id,
        header.generation,
        header.sequence,
    )
    sealed = bytearray(_SEALED_BYTES)
    try:
        _SEALED.pack_into(
            sealed,
            KEY_BYTES,
            header.path_hash,
            header.length_bytes,
            header.stored_bytes,
            header.writes,
            len(header.extents),
        )
        sealed[:KEY_BYTES] = file_key.view()
        for number, extent in enumerate(header.extents):
            _EXTENT.pack_into(sealed, _EXTENTS_AT + number * EXTENT_BYTES, extent.first, extent.sequence)
        return plain + nonce + seal_aes256gcm(keys.header.view(), nonce, memoryview(sealed), plain)
    finally:
        sealed[:] = bytes(len(sealed))


def slot_tag(slot: bytes) -> bytes:
    """Return the tag that the listing keeps for a slot."""
    return slot[-TAG_BYTES:]


def verify_slots(slots: bytes, *, expected: Expected, path_hash: bytes, keys: VaultKeys) -> tuple[Header, Secret]:
    """Return the header in force and the file's key; the caller wipes the key.

    Duties: 1. both slots are authentic for this vault (``vault.file.truncated``, ``vault.header.unsupported``,
    ``vault.header.altered``) and the same; 2. they are those of the item's file (``vault.file.swapped``), written under
    the item's path (``vault.file.path``); 3. the listing names them, and no other generation (``vault.file.rollback``).
    """
    if len(slots) < BODY_OFFSET:  # 1
        raise FileTruncated(f"the file ends in its header, at byte {len(slots)}", size=len(slots))
    slot = slots[:SLOT_BYTES]
    header, key = open_slot(slot, keys)
    try:
        if slots[SLOT_BYTES:BODY_OFFSET] != slot:
            raise HeaderAltered("the second header slot is not as this vault wrote it")
        if header.file_id != expected.file_id:  # 2
            raise FileSwapped("the file belongs to another item")
        if not hmac.compare_digest(header.path_hash, path_hash):
            raise FilePathChanged("the file was written for another path")
        current = (header.generation, header.sequence) == (expected.generation, expected.sequence)
        if not current or not hmac.compare_digest(slot_tag(slot), expected.tag):  # 3
            raise FileRolledBack(
                f"the file is of generation {header.generation}.{header.sequence}, "
                f"the vault's listing of {expected.generation}.{expected.sequence}",
                found=header.generation,
                expected=expected.generation,
            )
    except BaseException:
        key.wipe()
        raise
    return header, key


def open_slot(slot: bytes, keys: VaultKeys) -> tuple[Header, Secret]:
    """Return what one slot says, or raise ``vault.header.unsupported`` or ``vault.header.altered``.

    Nothing of it is believed before the tag over all of it holds. Whether it is the slot in force is not checked here.
    """
    plain, sealed = slot[: _PLAIN.size], slot[_PLAIN.size :]
    magic, version, algorithm, chunk_log2, epoch, file_id, generation, sequence = _PLAIN.unpack(plain)
    opened = bytearray(_SEALED_BYTES)
    try:
        try:
            open_aes256gcm_into(
                keys.header.view(), sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], plain, memoryview(opened)
            )
        except AeadFailed as error:
            if magic == _MAGIC and version != _VERSION:
                raise HeaderUnsupported(f"version {version} of the format is unknown here") from error
            raise HeaderAltered("a header slot is not as this vault wrote it") from error
        path_hash, length, stored, writes, extents = _SEALED.unpack_from(opened, KEY_BYTES)
        if algorithm not in (1, 2) or chunk_log2 not in _CHUNK_LOG2_RANGE or extents > MAX_EXTENTS:
            raise HeaderUnsupported("the header asks for something that this version does not know")
        header = Header(
            file_id=file_id,
            generation=generation,
            sequence=sequence,
            length_bytes=length,
            stored_bytes=stored,
            path_hash=path_hash,
            epoch=epoch,
            algorithm=AeadAlgorithm(algorithm),
            chunk_log2=chunk_log2,
            writes=writes,
            extents=tuple(
                Extent(*_EXTENT.unpack_from(opened, _EXTENTS_AT + number * EXTENT_BYTES)) for number in range(extents)
            ),
        )
        if not length <= stored <= MAX_FILE_BYTES or not check_extents(header.extents, header.chunks):
            raise HeaderUnsupported("the header contradicts itself")
        return header, ProtectedSecret(memoryview(opened)[:KEY_BYTES])
    finally:
        opened[:] = bytes(len(opened))


def reseal(header: Header, *, epoch: int) -> Header:
    """Return the header as it is written anew under the keys of ``epoch``."""
    return replace(header, epoch=epoch, sequence=header.sequence + 1)


def verify_size(header: Header, size_bytes: int) -> None:
    """Return if a file of ``size_bytes`` is whole, else raise ``vault.file.truncated`` or ``vault.file.extended``."""
    if size_bytes < header.file_bytes:
        raise FileTruncated(f"the file has {size_bytes} of {header.file_bytes} bytes", size=size_bytes)
    if size_bytes > header.file_bytes:
        raise FileExtended(f"the file has {size_bytes} bytes, {header.file_bytes} are its own", size=size_bytes)


# -- chunks -----------------------------------------------------------------------------------------------------------


class ChunkCipher:
    """Encrypts and decrypts the chunks of one file, many in one call, from and into the caller's memory.

    The library's cipher object, which holds copies of the key, lives for one call.
    """

    def __init__(self, file_key: Secret, header: Header) -> None:
        self._key = file_key
        self._header = header
        self._size = header.chunk_bytes

    def encrypt(
        self, first: int, content: memoryview, target: memoryview, *, nonces: bytes, sequence: int, ends: bool
    ) -> int:
        """Encrypt ``content`` as chunks from ``first`` on into ``target`` and return how many bytes of it they take.

        ``nonces`` are 12 random bytes for each. With ``ends`` the last of them is the file's last.
        """
        cipher = self._header.algorithm.use(self._key.view())
        encrypt, pack, size = cipher.encrypt_into, _ASSOCIATED.pack, self._size
        file_id, path_hash = self._header.file_id, self._header.path_hash
        length = len(content)
        last = first + max(0, length - 1) // size if ends else -1
        given, index, drawn = 0, first, 0
        for start in range(0, length or 1, size):  # the loop that streaming spends its time in
            piece = content[start : start + size]
            nonce = nonces[drawn : drawn + NONCE_BYTES]
            body = given + NONCE_BYTES
            stop = body + len(piece) + TAG_BYTES
            target[given:body] = nonce
            encrypt(nonce, piece, pack(file_id, index, sequence, index == last, path_hash), target[body:stop])
            given, index, drawn = stop, index + 1, drawn + NONCE_BYTES
        return given

    def decrypt(self, first: int, sealed: memoryview, target: memoryview, *, header: Header) -> int:
        """Decrypt whole chunks from ``first`` on into ``target`` and return how many bytes they give.

        Raises ``vault.chunk.reordered`` for a chunk of another position, ``vault.chunk.rollback`` for an older one,
        else ``vault.chunk.altered``; ``target`` then holds nothing of it.
        """
        cipher = header.algorithm.use(self._key.view())
        decrypt, pack = cipher.decrypt_into, _ASSOCIATED.pack
        file_id, path_hash, last = header.file_id, header.path_hash, header.chunks - 1
        single = header.extents[0].sequence if len(header.extents) == 1 else None
        full, end = self._size + CHUNK_OVERHEAD, len(sealed)
        given, index = 0, first
        try:
            for start in range(0, end, full):  # the loop that streaming spends its time in
                sequence = sequence_of(header.extents, index) if single is None else single
                associated = pack(file_id, index, sequence, index == last, path_hash)
                stop = min(end, start + full)
                size = stop - start - CHUNK_OVERHEAD
                body = start + NONCE_BYTES
                decrypt(sealed[start:body], sealed[body:stop], associated, target[given : given + size])
                given, index = given + size, index + 1
        except (InvalidTag, ValueError) as error:
            target[:] = bytes(len(target))
            start = (index - first) * full
            raise self._explain(cipher, sealed[start : start + full], index, header) from error
        return given

    def _explain(
        self, cipher: AeadObject, chunk: memoryview, index: int, header: Header
    ) -> ChunkReordered | ChunkRolledBack | ChunkAltered:
        """Look around for what it is; only for the error's name, since the chunk is refused either way."""
        nonce, sealed = bytes(chunk[:NONCE_BYTES]), chunk[NONCE_BYTES:]

        def fits(position: int, sequence: int) -> bool:
            for final in (False, True):
                try:
                    cipher.decrypt(nonce, sealed, self._associated(position, sequence, final=final))
                except (InvalidTag, ValueError):
                    continue
                return True
            return False

        for other in range(max(0, index - _DIAGNOSIS), min(header.chunks, index + _DIAGNOSIS)):
            if other != index and fits(other, sequence_of(header.extents, other)):
                return ChunkReordered(f"chunk {index} is another chunk of this file", chunk=index)
        for sequence in range(max(0, header.sequence - _DIAGNOSIS), header.sequence + 1):
            if fits(index, sequence):
                return ChunkRolledBack(f"chunk {index} is an older one of this place", chunk=index)
        return ChunkAltered(f"chunk {index} is not as it was written", chunk=index)

    def _associated(self, index: int, sequence: int, *, final: bool) -> bytes:
        return _ASSOCIATED.pack(self._header.file_id, index, sequence, final, self._header.path_hash)
