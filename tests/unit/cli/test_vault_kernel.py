"""The verbs of encrypted directories and volumes, with a vault that only keeps keys, on real file systems."""

import argparse
import contextlib
import json
import os
import shutil

import pytest

import tidegate.cli.vault_unlock
from tidegate.base.errors import Fault, TidegateError
from tidegate.cli.output import Output
from tidegate.cli.vault_kernel import build_kernel
from tidegate.crypto.aead import Secret
from tidegate.testing.loopfs import mounted_ext4
from tidegate.vault import fscrypt, luks

needs_cryptsetup = pytest.mark.skipif(
    shutil.which("cryptsetup", path=os.environ["PATH"] + ":/usr/sbin:/sbin") is None,
    reason="cryptsetup is not installed (Debian package cryptsetup-bin)",
)


class KeysOnly:
    """A vault as far as these verbs know one."""

    vault_id = bytes(range(16)).hex()

    def __init__(self):
        self.keys = {}

    def application_key(self, name, *, size_bytes, create):
        if create:
            self.keys.setdefault(name, os.urandom(size_bytes))
        return Secret(self.keys[name])


@pytest.fixture
def vault(monkeypatch):
    keys = KeysOnly()

    @contextlib.contextmanager
    def open_vault(arguments):
        assert arguments.folder is not None
        yield keys

    def add_unlock_options(parser):
        parser.add_argument("--test-unlock")

    monkeypatch.setattr(tidegate.cli.vault_unlock, "open_vault", open_vault, raising=False)
    monkeypatch.setattr(tidegate.cli.vault_unlock, "add_unlock_options", add_unlock_options, raising=False)
    return keys


@pytest.fixture
def run(vault, capsys):
    parser = argparse.ArgumentParser()
    build_kernel(parser.add_subparsers(required=True))

    def call(*words, status=0):
        arguments = parser.parse_args([str(word) for word in words])
        capsys.readouterr()
        assert arguments.run(arguments, Output(as_json=True)) == status
        return json.loads(capsys.readouterr().out)

    call.parser = parser
    return call


def code_of(call, *words):
    with pytest.raises(TidegateError) as caught:
        call(*words)
    return caught.value.code


@pytest.mark.parametrize(
    "words",
    [
        ["dir-create", "d"],
        ["dir-create", "--vault", "v"],
        ["dir-unlock"],
        ["lock"],
        ["dir-status"],
        ["volume-format", "d"],
        ["volume-open", "d", "--vault", "v"],
        ["volume-open", "d", "n"],
        ["volume-close"],
        ["volume-status"],
        ["lock", "d", "--vault", "v"],
    ],
)
def test_incomplete_or_wrong_words(run, words, capsys):
    with pytest.raises(SystemExit) as caught:
        run.parser.parse_args(words)
    assert caught.value.code == 2


def test_words(run):
    parsed = run.parser.parse_args(["lock", "a", "b", "--json"])
    assert [str(path) for path in parsed.directories] == ["a", "b"]
    assert parsed.json
    parsed = run.parser.parse_args(
        ["volume-open", "/dev/x", "data", "--vault", "v", "--key-name", "k", "--test-unlock", "u"]
    )
    assert (str(parsed.device), parsed.name, str(parsed.folder), parsed.key_name) == ("/dev/x", "data", "v", "k")


def test_unlock_without_any_key(run, tmp_path):
    assert code_of(run, "dir-unlock", tmp_path) == "vault.unlock.missing"


@needs_cryptsetup
def test_volume(run, vault, tmp_path):
    device = tmp_path / "device"
    device.write_bytes(bytes(4 << 20))
    made = run("volume-format", device, "--vault", "v", "--label", "data")
    assert list(vault.keys) == [made["key_name"]] == [f"volume/{made['volume']}"]
    luks.check_key(device, Secret(vault.keys[made["key_name"]]))
    shown = run("volume-status", device)
    assert (shown["volume"], shown["open_as"]) == (made["volume"], [])
    assert shown["tokens"] == [{"vault": vault.vault_id, "key": made["key_name"]}]
    assert code_of(run, "volume-format", device, "--vault", "v") == "vault.volume.not-blank"
    assert len(vault.keys) == 1, "no key is made for a device that is refused"
    if not luks.device_mapper_present():
        assert code_of(run, "volume-open", device, "tidegate-test", "--vault", "v") == "vault.volume.no-device-mapper"
        assert code_of(run, "volume-close", "tidegate-test") == "vault.volume.no-device-mapper"
    vault.vault_id = "00" * 16
    assert code_of(run, "volume-open", device, "tidegate-test", "--vault", "v") == "vault.volume.no-token"


@pytest.fixture
def mount(tmp_path):
    if os.geteuid() != 0:
        pytest.skip("mounting an image needs root")
    with contextlib.ExitStack() as stack:
        try:
            place, _ = stack.enter_context(mounted_ext4(tmp_path, features=["encrypt"]))
            fscrypt.status(place)
        except Fault as fault:
            pytest.skip(f"no encrypted directories can be had here: {fault.message}")
        yield place


@pytest.fixture
def raw_key_fd(tmp_path):
    descriptors = []

    def make(raw):
        path = tmp_path / "raw"
        path.write_bytes(raw)
        descriptors.append(os.open(path, os.O_RDONLY))
        return descriptors[-1]

    yield make
    for descriptor in descriptors:
        os.close(descriptor)


@pytest.mark.root
def test_directory(run, vault, mount):
    made = run("dir-create", mount / "d", "--vault", "v")
    assert made["unlocked"]
    assert list(vault.keys) == [made["key_name"]] == [f"directory{mount}/d"]
    (mount / "d" / "file").write_bytes(b"content")
    assert run("lock", mount / "d") == {"locked": [str(mount / "d")]}
    assert run("dir-status", mount / "d")["key_state"] == "absent"
    assert run("dir-unlock", mount / "d", "--vault", "v")["unlocked"]
    assert (mount / "d" / "file").read_bytes() == b"content"
    assert run("dir-status", mount, status=1) == {"encrypted": False}
    other = run("dir-create", mount / "e", "--vault", "v")
    assert other["key"] != made["key"], "one key for two directories would lock both"
    assert code_of(run, "dir-unlock", mount / "d", "--vault", "v", "--key-name", other["key_name"]) == (
        "vault.directory.wrong-key"
    )


@pytest.mark.root
def test_lock_goes_on_and_fails_as_the_first(run, mount, capsys):
    for name in ("a", "b"):
        run("dir-create", mount / name, "--vault", "v")
    assert code_of(run, "lock", mount, mount / "a", mount / "b") == "vault.directory.plain"
    assert [run("dir-status", mount / name)["unlocked"] for name in ("a", "b")] == [False, False]


@pytest.mark.root
def test_raw_key_of_the_fscrypt_tool(run, mount, raw_key_fd):
    raw = os.urandom(32)
    made = run("dir-create", mount / "d", "--vault", "v", "--raw-key-fd", raw_key_fd(raw))
    assert (mount / ".fscrypt" / "protectors" / made["protector"]).is_file()
    run("lock", mount / "d")
    for wrong, code in ((os.urandom(32), "vault.fscrypt.refused"), (raw[:-1], "vault.directory.key-size"),
                        (raw + b"\n", "vault.directory.key-size"), (b"", "vault.directory.key-size")):  # fmt: skip
        assert code_of(run, "dir-unlock", mount / "d", "--raw-key-fd", raw_key_fd(wrong)) == code
    assert run("dir-unlock", mount / "d", "--raw-key-fd", raw_key_fd(raw))["unlocked"]
