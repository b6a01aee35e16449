"""A core dump of a process with an open vault, searched: no key of the vault, and after closing no content it read.

The keys' own pages cannot be read by a debugger where the kernel has memfd_secret; what is searched for here are the
copies elsewhere: in Python's objects, OpenSSL's heap, freed memory, stacks.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import textwrap

import pytest

from tidegate.crypto.aead import Secret, hkdf_sha256
from tidegate.crypto.kem import kem_public, kem_wrap
from tidegate.crypto.memory import ProtectedSecret
from tidegate.keys.software import Argon2Cost
from tidegate.vault import format as format_module
from tidegate.vault import record as record_module
from tidegate.vault.store import Vault
from tidegate.vault.unlockers import PassphraseUnlocker

PASSPHRASE = b"correct horse battery staple"
ITEMS = ("borrowed", "streamed", "edited")
CONTROL = b"control: " + hashlib.sha256(b"this has to be found").hexdigest().encode()
FAST = Argon2Cost(memory_kib=64, iterations=1, lanes=1)

pytestmark = [
    pytest.mark.root,
    pytest.mark.timeout(60),
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root to look into a process that is not dumpable"),
    pytest.mark.skipif(shutil.which("gcore") is None, reason="needs gcore (Debian package gdb)"),
]

# The marks are made in the child from numbers, so that no text of its program holds them.
CHILD = """
import hashlib, sys
from tidegate.crypto.aead import Secret
from tidegate.keys.software import Argon2Cost
from tidegate.vault.store import Vault
from tidegate.vault.unlockers import PassphraseUnlocker

def tell(what):
    print(what, flush=True)
    sys.stdin.readline()

control = b"control: " + hashlib.sha256(b"this has to be found").hexdigest().encode()
unlocker = PassphraseUnlocker(Secret(sys.stdin.readline().strip().encode()))
vault = Vault.open(sys.argv[1], unlocker)
reader = vault.open_item("streamed")
"""

STEPS = {
    "borrow": """
        with vault.borrow("borrowed") as content:
            size = len(content)
            tell("open")
    """,
    "stream": """
        size = 0
        pieces = reader.iter_content()
        size += len(next(pieces))
        tell("open")
        for piece in pieces:
            size += len(piece)
        pieces.close()
    """,
    "ranges": """
        target = bytearray(10_000)
        size = reader.read_into(20_000, memoryview(target))
        tell("open")
        target[:] = bytes(len(target))
    """,
    "records": """
        table = vault.records("sessions")
        tell("open")
        size = len(list(table))
    """,
    "edit": """
        stream = vault.open_file("edited", "r+")
        stream.seek(20_000)
        stream.write(b"x")
        tell("open")
        stream.flush()
        size = stream.tell()
        stream.close()
    """,
    "write": """
        with vault.open_item("borrowed") as source, vault.open_file("copy", "w") as target:
            for piece in source.iter_content():
                target.write(piece)
        size = vault.stat("copy").size_bytes
        tell("open")
    """,
    "application key": """
        key = vault.application_key("database")
        tell("open")
        size = len(key)
        key.wipe()
    """,
    "add an unlocker": """
        other = PassphraseUnlocker(Secret(b"another one"), cost=Argon2Cost(memory_kib=64, iterations=1, lanes=1))
        slot = vault.add_unlocker(other)
        size = slot.number
        tell("open")
    """,
}

END = """
assert size
reader.close()
vault.close()
tell("closed")
"""


LINES = 24_000


def mark(name):
    """Return what every line of a content begins with: not derivable from what the child's program holds."""
    return hashlib.sha256(f"mark of {name}".encode()).digest()[:16]


def content_of(name):
    """Return lines of 64 bytes, 1.5 MB: several batches of reading."""
    return b"".join(mark(name) + b"%048d" % number for number in range(LINES))


@pytest.fixture
def folder(tmp_path):
    """A vault whose items hold marks, made by another process than the one that is looked into: this one."""
    with Vault.create(tmp_path / "vault", PassphraseUnlocker(Secret(PASSPHRASE), cost=FAST)) as vault:
        for name in ITEMS:
            vault.write(name, content_of(name))
        vault.records("sessions")["1"] = b"session"
        vault.application_key("database").wipe()
    return tmp_path / "vault"


@pytest.fixture
def keys(folder, monkeypatch):
    """Return every key of the vault by its name, taken here where they pass."""
    found = {}
    unwrap_vault_key, root_wrapping = record_module.unwrap_vault_key, record_module._root_wrapping_key

    def note_vault_key(record, root, epoch):
        key = unwrap_vault_key(record, root, epoch)
        found[f"vault key {epoch}"] = bytes(key.view())
        return key

    def note_wrapping(root, vault_id):
        key = root_wrapping(root, vault_id)
        found["wrapping key"] = bytes(key.view())
        return key

    with monkeypatch.context() as patch:
        patch.setattr("tidegate.vault.keyring.unwrap_vault_key", note_vault_key)
        patch.setattr(record_module, "_root_wrapping_key", note_wrapping)
        patch.setattr("tidegate.vault.unlockers.open_aes256gcm", _noting(found))
        with Vault.open(folder, PassphraseUnlocker(Secret(PASSPHRASE), cost=FAST)) as vault:
            found["root key"] = bytes(vault.keyring.root.view())
            for name in ("header", "manifest", "redo"):
                found[f"{name} key"] = bytes(getattr(vault.keyring.keys[1], name).view())
            found["journal key"] = bytes(vault.table._journal_key.view())
            found["key of the snapshot"] = bytes(vault.table._reader.file_key.view())
            for name in ITEMS:
                with vault.open_item(name) as reader:
                    found[f"key of {name}"] = bytes(reader.file_key.view())
            with vault.application_key("database") as key:
                found["application key"] = bytes(key.view())
    assert {"vault key 1", "wrapping key", "seed"} <= found.keys()
    assert all(len(key) == 32 for key in found.values())
    return found


def _noting(found):
    from tidegate.crypto.aead import open_aes256gcm

    def note(*arguments):
        opened = open_aes256gcm(*arguments)
        found["seed"] = bytes(bytearray(opened))  # a copy: what the library returned is overwritten
        return opened

    return note


class Child:
    """The process that is looked into."""

    def __init__(self, program, folder, tmp_path):
        self.tmp_path = tmp_path
        self.process = subprocess.Popen(
            [sys.executable, "-c", program, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
        )

    def tell(self, line):
        self.process.stdin.write(line + b"\n")

    def wait_for(self, what):
        line = self.process.stdout.readline().decode().strip()
        assert line == what, line

    def go_on(self):
        self.tell(b"")

    def dump(self):
        """Return every byte of the process's memory that a debugger reads."""
        subprocess.run(
            [shutil.which("gcore"), "-a", "-o", str(self.tmp_path / "core"), str(self.process.pid)],
            check=True,
            capture_output=True,
        )
        (path,) = self.tmp_path.glob("core.*")
        core = path.read_bytes()
        path.unlink()
        assert CONTROL in core, "the search finds nothing at all"
        return core

    def end(self):
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.kill()
        self.process.wait()


@pytest.fixture
def start(folder, tmp_path):
    children = []

    def start(step):
        children.append(Child(CHILD + textwrap.dedent(step) + END, folder, tmp_path))
        children[-1].tell(PASSPHRASE)
        return children[-1]

    yield start
    for child in children:
        child.end()


def found_keys(core, keys):
    """Return the names of the keys of which a half is there, and how often."""
    counts = {name: max(core.count(key[:16]), core.count(key[16:])) for name, key in keys.items()}
    return {name: count for name, count in counts.items() if count}


def found_marks(core):
    """Return how often each item's content is there; a line counts by 8 bytes of its mark, wherever they begin."""
    counts = {name: core.count(mark(name)[4:12]) for name in ITEMS}
    return {name: count for name, count in counts.items() if count}


@pytest.mark.parametrize("step", STEPS)
def test_dump_of_an_open_and_of_a_closed_vault(start, keys, step):
    child = start(STEPS[step])
    child.wait_for("open")
    opened = child.dump()
    child.go_on()
    child.wait_for("closed")
    closed = child.dump()
    assert found_keys(opened, keys) == {}
    assert found_keys(closed, keys) == {}
    if step == "borrow":
        assert found_marks(opened)["borrowed"] >= LINES  # it is being used
    assert found_marks(closed) == {}


def test_search_finds_what_is_there(folder, tmp_path, keys):
    """The same search, in a process that takes no care: all that would be found above if it were there is found."""
    careless = """
        everything = [bytes(vault.keyring.root.view()), bytes(reader.file_key.view())]
        whole = vault.read("borrowed")
        tell("open")
        size = len(whole)
    """
    child = Child(CHILD + textwrap.dedent(careless) + END, folder, tmp_path)
    child.tell(PASSPHRASE)
    try:
        child.wait_for("open")
        core = child.dump()
    finally:
        child.end()
    assert {"root key", "key of streamed"} <= found_keys(core, keys).keys()
    assert found_marks(core)["borrowed"] >= LINES


def pattern(number):
    """Return 32 bytes that the child makes by itself, without ever having them as ``bytes``."""
    return bytes(((at * 37 + 91 + number) ^ (at * at * 7)) & 0xFF for at in range(32))


ALONE = """
import contextlib, hashlib, sys
from cryptography.exceptions import InvalidTag
from tidegate.crypto import aead, kem
from tidegate.crypto.memory import ProtectedSecret

def fill(target, number=0):
    for at in range(32):
        target[at] = ((at * 37 + 91 + number) ^ (at * at * 7)) & 0xFF

def use(algorithm):
    cipher = algorithm.use(key.view())
    cipher.encrypt_into(nonce, bytes(90), b"", bytearray(106))
    with contextlib.suppress(InvalidTag):
        cipher.decrypt_into(nonce, bytes(106), b"", bytearray(90))

key = ProtectedSecret.fill(32, fill)
zeros, nonce = bytes(32), bytes(12)
control = b"control: " + hashlib.sha256(b"this has to be found").hexdigest().encode()
wrapped = bytes.fromhex(sys.stdin.readline())
"""
OPERATIONS = {
    "nothing": "",
    "AES-256-GCM": "use(aead.AeadAlgorithm.AES_256_GCM)",
    "ChaCha20-Poly1305": "use(aead.AeadAlgorithm.CHACHA20_POLY1305)",
    "seal": "aead.seal_aes256gcm(key.view(), nonce, bytes(90), b'')",
    "seal the key": "aead.seal_aes256gcm(zeros, nonce, key.view(), b'')",
    "open": "aead.open_aes256gcm(key.view(), nonce, aead.seal_aes256gcm(key.view(), nonce, bytes(90), b''), b'')",
    "open the key": (
        "sealed = aead.seal_aes256gcm(zeros, nonce, key.view(), b'')\n"
        "ProtectedSecret.fill(32, lambda target: aead.open_aes256gcm_into(zeros, nonce, sealed, b'', target))"
    ),
    "HKDF": "ProtectedSecret.fill(32, lambda to: aead.hkdf_sha256_into(key.view(), salt=b's', info=b'i', target=to))",
    "copy": "ProtectedSecret(key.view())",
    "Argon2id": "aead.argon2id(key.view(), salt=bytes(16), iterations=1, lanes=1, memory_kib=64)",
    "public half": "kem.kem_public(key)",
    "wrap": "kem.kem_wrap(kem.kem_public(aead.Secret(zeros)), key, b'info')",
    "unwrap": "kem.kem_unwrap(key, wrapped, b'info').wipe()",
    "wipe": "key.wipe()",
    "open a header": """
from tidegate.vault.format import Header, VaultKeys, encode_slot, open_slot
keys = VaultKeys(aead.Secret(zeros), bytes(16))
header = Header(file_id=bytes(16), generation=1, sequence=0, length_bytes=1, stored_bytes=1, path_hash=bytes(32),
    epoch=1, algorithm=aead.AeadAlgorithm.AES_256_GCM)
slot = encode_slot(header, file_key=key, nonce=nonce, keys=keys)
open_slot(slot, keys)[1].wipe()
""",
}


@pytest.mark.parametrize("operation", OPERATIONS)
def test_operation_alone_leaves_no_key(operation, tmp_path):
    """With nothing behind it that would write over what it left."""
    seed, root = Secret(pattern(0)), pattern(1)
    expanded = hashlib.shake_256(pattern(0)).digest(96)
    derived = hkdf_sha256(pattern(0), salt=b"s", info=b"i", length=32)
    needles = {"key": pattern(0), "root": root, "X25519": expanded[64:], "d": expanded[:32], "derived": derived}
    child = Child(
        ALONE + OPERATIONS[operation] + "\nprint('done', flush=True)\nsys.stdin.readline()", tmp_path, tmp_path
    )
    child.tell(kem_wrap(kem_public(seed), Secret(root), b"info").hex().encode())
    try:
        child.wait_for("done")
        core = child.dump()
    finally:
        child.end()
    assert found_keys(core, needles) == {}


def test_keys_pass_through_secret_memory_alone():
    """Every derived key of an epoch is a ProtectedSecret."""
    keys = format_module.VaultKeys(Secret(bytes(32)), bytes(16))
    assert all(isinstance(getattr(keys, name), ProtectedSecret) for name in ("header", "manifest", "redo"))
    keys.wipe()
