"""Debian's tool ``fscrypt`` (google/fscrypt) opens what we made, and we open what it made."""

import contextlib
import os
import shutil
import subprocess

import pytest

from tidegate.base.errors import Fault, TidegateError
from tidegate.crypto.aead import Secret
from tidegate.testing.loopfs import mounted_ext4
from tidegate.vault import fscrypt, fscrypt_tool
from tidegate.vault.fscrypt import EncryptedDirectory

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="mounting an image needs root"),
    pytest.mark.skipif(shutil.which("fscrypt") is None, reason="the tool is not installed (Debian package fscrypt)"),
]

CONTENT = b"Jane Roe, born 1970-01-01, diagnosis Z21"
CONFIGURATION = """{"source": "raw_key", "hash_costs": {"time": "1", "memory": "1024", "parallelism": "1"},
"options": {"padding": "32", "contents": "AES_256_XTS", "filenames": "AES_256_CTS", "policy_version": "2"}}"""


class Tool:
    """The tool with a configuration of its own, so that the machine's stays as it is."""

    def __init__(self, folder):
        self.raw_key_file = folder / "raw-key"
        self.raw_key = os.urandom(32)
        self.raw_key_file.write_bytes(self.raw_key)
        (folder / "fscrypt.conf").write_text(CONFIGURATION)
        self.environment = os.environ | {"FSCRYPT_CONF": str(folder / "fscrypt.conf")}

    def run(self, *arguments):
        return subprocess.run(
            [shutil.which("fscrypt"), *map(str, arguments)],
            env=self.environment,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=5,
            check=False,
        )

    def answer(self, *arguments):
        done = self.run(*arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture
def tool(tmp_path):
    return Tool(tmp_path)


@pytest.fixture
def mount(tmp_path):
    with contextlib.ExitStack() as stack:
        try:
            place, _ = stack.enter_context(mounted_ext4(tmp_path, features=["encrypt"]))
            fscrypt.status(place)
        except Fault as fault:
            pytest.skip(f"no encrypted directories can be had here: {fault.message}")
        yield place


def code_of(call, *arguments, **named):
    with pytest.raises(TidegateError) as caught:
        call(*arguments, **named)
    return caught.value.code


def test_the_tool_shows_unlocks_and_locks_what_we_made(tool, mount):
    key = Secret(os.urandom(64))
    directory = EncryptedDirectory.create(mount / "d", key)
    protector = fscrypt_tool.publish(mount / "d", key, Secret(tool.raw_key), name="recovery")
    (mount / "d" / "file").write_bytes(CONTENT)

    said = tool.answer("status", mount / "d")
    assert directory.status().policy.identifier.hex() in said
    assert "padding:32 contents:AES_256_XTS filenames:AES_256_CTS policy_version:2" in said
    assert "Unlocked: Yes" in said
    assert f'{protector}  No      raw key protector "recovery"' in said

    directory.lock()
    assert "Unlocked: No" in tool.answer("status", mount / "d")
    tool.raw_key_file.write_bytes(bytes(32))
    with pytest.raises(subprocess.TimeoutExpired):  # the tool reads the same wrong file again and again
        tool.run("unlock", mount / "d", f"--key={tool.raw_key_file}")
    assert not directory.status().unlocked
    tool.raw_key_file.write_bytes(tool.raw_key)
    tool.answer("unlock", mount / "d", f"--key={tool.raw_key_file}")
    assert directory.status().unlocked
    assert (mount / "d" / "file").read_bytes() == CONTENT
    tool.answer("lock", mount / "d")
    assert not directory.status().unlocked


def test_without_metadata_the_tool_still_sees_the_policy(tool, mount):
    """It says which policy, and that nothing is there to open it; so the policy itself is one that it understands."""
    key = Secret(os.urandom(64))
    identifier = EncryptedDirectory.create(mount / "d", key).status().policy.identifier.hex()
    tool.answer("setup", mount, "--quiet")
    done = tool.run("status", mount / "d")
    assert identifier in done.stdout + done.stderr


def test_the_tool_exchanges_our_protector(tool, mount):
    """What the tool rewrites is still ours to read: first with two protectors, then with the tool's own alone."""
    key = Secret(os.urandom(64))
    directory = EncryptedDirectory.create(mount / "d", key)
    ours = fscrypt_tool.publish(mount / "d", key, Secret(tool.raw_key), name="ours")
    raw_key = f"--key={tool.raw_key_file}"
    tool.answer("metadata", "create", "protector", mount, "--source=raw_key", "--name=theirs", raw_key, "--quiet")
    (theirs,) = {path.name for path in (mount / ".fscrypt" / "protectors").iterdir()} - {ours}
    policy = f"--policy={mount}:{directory.status().policy.identifier.hex()}"
    protector = f"--protector={mount}:{theirs}"
    unlock_with = f"--unlock-with={mount}:{ours}"
    tool.answer("metadata", "add-protector-to-policy", protector, policy, unlock_with, raw_key, "--quiet")
    (mount / ".fscrypt" / "protectors" / ours).rename(mount / "away")
    with fscrypt_tool.recover_key(mount / "d", Secret(tool.raw_key)) as recovered:
        assert bytes(recovered.view()) == bytes(key.view())
    (mount / "away").rename(mount / ".fscrypt" / "protectors" / ours)
    protector = f"--protector={mount}:{ours}"
    tool.answer("metadata", "remove-protector-from-policy", protector, policy, "--force", "--quiet")
    with fscrypt_tool.recover_key(mount / "d", Secret(tool.raw_key)) as recovered:
        assert bytes(recovered.view()) == bytes(key.view())


def make_with_the_tool(tool, mount):
    tool.answer("setup", mount, "--quiet")
    (mount / "d").mkdir()
    tool.answer("encrypt", mount / "d", "--source=raw_key", f"--key={tool.raw_key_file}", "--name=k", "--quiet")
    (mount / "d" / "file").write_bytes(CONTENT)
    tool.answer("lock", mount / "d")


def test_we_unlock_what_the_tool_made(tool, mount):
    make_with_the_tool(tool, mount)
    directory = EncryptedDirectory(mount / "d")
    assert not directory.status().unlocked
    with fscrypt_tool.recover_key(mount / "d", Secret(tool.raw_key)) as key:
        directory.unlock(key)
    assert (mount / "d" / "file").read_bytes() == CONTENT
    assert "Unlocked: Yes" in tool.answer("status", mount / "d")
    directory.lock()
    assert "Unlocked: No" in tool.answer("status", mount / "d")


def test_a_wrong_raw_key(tool, mount):
    make_with_the_tool(tool, mount)
    assert code_of(fscrypt_tool.recover_key, mount / "d", Secret(os.urandom(32))) == "vault.fscrypt.refused"
    assert code_of(fscrypt_tool.recover_key, mount / "d", Secret(bytes(31))) == "vault.directory.key-size"


def test_a_second_raw_key_protector_of_the_tool(tool, mount, tmp_path):
    """Two directories, two protectors: each raw key opens its own only."""
    make_with_the_tool(tool, mount)
    other = os.urandom(32)
    (tmp_path / "other").write_bytes(other)
    (mount / "e").mkdir()
    tool.answer("encrypt", mount / "e", "--source=raw_key", f"--key={tmp_path}/other", "--name=e", "--quiet")
    with fscrypt_tool.recover_key(mount / "e", Secret(other)) as key:
        assert code_of(EncryptedDirectory(mount / "d").unlock, key) == "vault.directory.wrong-key"
    assert code_of(fscrypt_tool.recover_key, mount / "e", Secret(tool.raw_key)) == "vault.fscrypt.refused"


def test_metadata_that_somebody_touched(tool, mount):
    make_with_the_tool(tool, mount)
    raw_key = Secret(tool.raw_key)
    (policy,) = (mount / ".fscrypt" / "policies").iterdir()
    (protector,) = (mount / ".fscrypt" / "protectors").iterdir()
    for file in (policy, protector):
        good = file.read_bytes()
        file.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
        assert code_of(fscrypt_tool.recover_key, mount / "d", raw_key) == "vault.fscrypt.refused"
        file.write_bytes(good[:-1])
        assert code_of(fscrypt_tool.recover_key, mount / "d", raw_key) == "vault.fscrypt.malformed"
        file.write_bytes(good + bytes(1 << 20))
        assert code_of(fscrypt_tool.recover_key, mount / "d", raw_key) == "vault.fscrypt.malformed"
        file.unlink()
        os.mkfifo(file)
        assert code_of(fscrypt_tool.recover_key, mount / "d", raw_key) == "vault.fscrypt.malformed"
        file.unlink()
        file.write_bytes(good)
    policy.unlink()
    assert code_of(fscrypt_tool.recover_key, mount / "d", raw_key) == "vault.fscrypt.missing"


def test_published_once(tool, mount):
    key = Secret(os.urandom(64))
    EncryptedDirectory.create(mount / "d", key)
    fscrypt_tool.publish(mount / "d", key, Secret(tool.raw_key), name="a")
    assert code_of(fscrypt_tool.publish, mount / "d", key, Secret(tool.raw_key), name="b") == "vault.fscrypt.exists"
    (mount / "plain").mkdir()
    assert (
        code_of(fscrypt_tool.publish, mount / "plain", key, Secret(tool.raw_key), name="c") == "vault.directory.plain"
    )
    assert code_of(fscrypt_tool.recover_key, mount / "plain", Secret(tool.raw_key)) == "vault.directory.plain"
