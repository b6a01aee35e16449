"""dm-verity hash trees (version 1, SHA-256, 4 KiB blocks), byte for byte as the kernel and ``veritysetup`` make them.

Source: the kernel's Documentation/admin-guide/device-mapper/verity.rst. A digest is SHA-256 over salt and block; 128
digests fill a hash block; levels are stored from the root's side down to the leaves, without a superblock.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from tidegate.base.blockdev import BLOCK_BYTES
from tidegate.image.errors import PayloadCorrupt, TreeCorrupt

_DIGEST_BYTES = 32
_FANOUT = BLOCK_BYTES // _DIGEST_BYTES


def count_blocks(size_bytes: int) -> int:
    """Return how many blocks hold ``size_bytes``, the last one padded."""
    return -(-size_bytes // BLOCK_BYTES)


def level_blocks(data_blocks: int) -> list[int]:
    """Return the hash blocks of each level, leaves first; a single data block needs none."""
    levels = []
    blocks = data_blocks
    while blocks > 1:
        blocks = -(-blocks // _FANOUT)
        levels.append(blocks)
    return levels


def tree_bytes(data_blocks: int) -> int:
    """Return the size of the whole tree on storage."""
    return sum(level_blocks(data_blocks)) * BLOCK_BYTES


class _Hasher:
    """SHA-256 with the salt taken in once."""

    def __init__(self, salt: bytes) -> None:
        self._seed = hashlib.sha256(salt)

    def digest(self, block: bytes | memoryview) -> bytes:
        state = self._seed.copy()
        state.update(block)
        return state.digest()


def build_tree(blocks: Iterable[bytes], salt: bytes) -> tuple[bytes, bytes]:
    """Return (root digest, tree) over full blocks of 4 KiB; there must be at least one."""
    hasher = _Hasher(salt)
    digests = [hasher.digest(block) for block in blocks]
    if not digests:
        raise ValueError("a hash tree needs at least one block")
    levels: list[bytes] = []
    while len(digests) > 1:
        level = b"".join(digests)
        level = level.ljust(-(-len(level) // BLOCK_BYTES) * BLOCK_BYTES, b"\0")
        levels.append(level)
        view = memoryview(level)
        digests = [hasher.digest(view[start : start + BLOCK_BYTES]) for start in range(0, len(level), BLOCK_BYTES)]
    return digests[0], b"".join(reversed(levels))


class VerityVerifier:
    """Checks single blocks against a root digest. Made only from a tree that itself holds against the root.

    Keeps the leaf digests in memory: 0.8 % of the data. Raises ``image.payload.tree-corrupt`` when made.
    """

    def __init__(self, *, root: bytes, salt: bytes, data_blocks: int, tree: bytes) -> None:
        self._hasher = _Hasher(salt)
        self.data_blocks = data_blocks
        if len(tree) != tree_bytes(data_blocks):
            raise TreeCorrupt(f"the hash tree has {len(tree)} bytes, not {tree_bytes(data_blocks)}")
        expected, offset = root, 0
        for level, blocks in enumerate(reversed(level_blocks(data_blocks))):
            nodes = tree[offset : offset + blocks * BLOCK_BYTES]
            for number in range(blocks):
                node = nodes[number * BLOCK_BYTES : (number + 1) * BLOCK_BYTES]
                if self._hasher.digest(node) != expected[number * _DIGEST_BYTES : (number + 1) * _DIGEST_BYTES]:
                    raise TreeCorrupt(f"hash block {number} of level {level} does not hold", level=level, block=number)
            expected, offset = nodes, offset + len(nodes)
        self._leaves = expected

    def verify_block(self, number: int, block: bytes | memoryview) -> None:
        """Return if data block ``number`` is what was signed, else raise ``image.payload.corrupt``."""
        expected = self._leaves[number * _DIGEST_BYTES : (number + 1) * _DIGEST_BYTES]
        if number >= self.data_blocks or self._hasher.digest(block) != expected:
            raise PayloadCorrupt(f"data block {number} does not hold", block=number)
