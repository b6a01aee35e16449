"""Our hash trees are those of ``veritysetup``, and it accepts ours, around every border between levels."""

import hashlib
import shutil

import pytest

from tidegate.base.program import run_program
from tidegate.image.verity import VerityVerifier, build_tree, tree_bytes

BLOCK = 4096
SALT = hashlib.sha256(b"salt").digest()

needs_veritysetup = pytest.mark.skipif(
    shutil.which("veritysetup", path="/usr/sbin:/sbin:/usr/bin:/bin") is None,
    reason="veritysetup is not installed (Debian package cryptsetup-bin)",
)
pytestmark = needs_veritysetup


def write_parts(folder, count):
    """Write data and our tree; return their paths, the root digest and the tree."""
    blocks = [hashlib.sha256(number.to_bytes(4, "big")).digest() * (BLOCK // 32) for number in range(count)]
    root, tree = build_tree(blocks, SALT)
    data, hashes = folder / "data", folder / "hashes"
    data.write_bytes(b"".join(blocks))
    hashes.write_bytes(tree or bytes(BLOCK))  # a file to open where the tree is empty
    return data, hashes, root, tree


def veritysetup(verb, *arguments, check=True):
    return run_program(
        ["veritysetup", verb, "--no-superblock", "--data-block-size=4096", "--hash-block-size=4096", *arguments],
        check=check,
    )


# 128 digests fill a hash block: one, two and three levels and their borders
COUNTS = [1, 2, 3, 127, 128, 129, 255, 256, 257, 128 * 128 - 1, 128 * 128, 128 * 128 + 1]


@pytest.mark.parametrize("count", COUNTS)
def test_veritysetup_accepts_our_tree(tmp_path, count):
    data, hashes, root, _ = write_parts(tmp_path, count)
    options = [f"--salt={SALT.hex()}", f"--data-blocks={count}"]
    veritysetup("verify", *options, str(data), str(hashes), root.hex())
    altered = bytearray(root)
    altered[0] ^= 1
    refused = veritysetup("verify", *options, str(data), str(hashes), altered.hex(), check=False)
    assert refused.returncode != 0


@pytest.mark.parametrize("count", COUNTS)
def test_veritysetup_makes_our_tree(tmp_path, count):
    data, _, root, tree = write_parts(tmp_path, count)
    theirs = tmp_path / "theirs"
    theirs.touch()
    said = veritysetup("format", f"--salt={SALT.hex()}", f"--data-blocks={count}", str(data), str(theirs)).stdout
    line = next(line for line in said.decode().splitlines() if line.startswith("Root hash:"))
    assert line.split()[-1] == root.hex()
    assert theirs.read_bytes()[: len(tree)] == tree
    VerityVerifier(root=root, salt=SALT, data_blocks=count, tree=theirs.read_bytes()[: tree_bytes(count)])


@pytest.mark.parametrize("which", ["data", "hashes"])
def test_veritysetup_refuses_what_we_refuse(tmp_path, which):
    data, hashes, root, tree = write_parts(tmp_path, 300)
    path = data if which == "data" else hashes
    content = bytearray(path.read_bytes())
    content[2 * BLOCK + 5] ^= 1
    path.write_bytes(content)
    options = [f"--salt={SALT.hex()}", "--data-blocks=300"]
    assert veritysetup("verify", *options, str(data), str(hashes), root.hex(), check=False).returncode != 0
    assert len(tree) == 4 * BLOCK
