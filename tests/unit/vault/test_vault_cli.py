"""``tidegate vault``: put, get, list, delete, verify, and the exit codes."""

import io
import json
import os
from pathlib import Path

import pytest

from tidegate.cli.main import main
from tidegate.keys.software import DeviceSecretUnlock, SoftwareKeyStore
from tidegate.keys.store import KeyPurpose, KeySpec

CONTENT = b"patient record " * 5000


@pytest.fixture
def key(tmp_path):
    """Return the URI of a sealing key."""
    secret = tmp_path / "secret"
    secret.touch(mode=0o600)
    secret.write_bytes(bytes(32))
    store = SoftwareKeyStore.create(tmp_path / "keys", DeviceSecretUnlock(secret))
    for name in ("vault", "other"):
        store.generate(name, KeySpec(purpose=KeyPurpose.SEAL))
    return f"file:{tmp_path}/keys?key=vault&device-secret={secret}"


@pytest.fixture
def vault(tmp_path, key):
    folder = str(tmp_path / "vault")
    (tmp_path / "record").write_bytes(CONTENT)
    assert main(["vault", "create", folder, "--key", key]) == 0
    assert main(["vault", "put", folder, "patients/17", str(tmp_path / "record"), "--key", key]) == 0
    return folder


def test_get_to_standard_output(vault, key, capfdbinary):
    assert main(["vault", "get", vault, "patients/17", "--key", key]) == 0
    assert capfdbinary.readouterr().out == CONTENT


def test_get_to_a_private_file(vault, key, tmp_path):
    target = tmp_path / "plain"
    assert main(["vault", "get", vault, "patients/17", "-o", str(target), "--key", key]) == 0
    assert target.read_bytes() == CONTENT
    assert target.stat().st_mode & 0o777 == 0o600
    assert main(["vault", "get", vault, "patients/17", "-o", str(target), "--key", key]) == 4  # is not overwritten


def test_get_of_a_damaged_item_leaves_no_plaintext(vault, key, tmp_path, capsys):
    damage(vault)
    target = tmp_path / "plain"
    assert main(["vault", "get", vault, "patients/17", "-o", str(target), "--key", key]) == 3
    assert "vault.chunk.altered" in capsys.readouterr().err
    assert not target.exists()


def damage(vault):
    for path in Path(vault).glob("items/*"):
        content = bytearray(path.read_bytes())
        content[-5] ^= 1
        path.write_bytes(content)


def test_put_from_standard_input(vault, key, monkeypatch, capfdbinary):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"piped")))
    assert main(["vault", "put", vault, "notes", "--key", key]) == 0
    capfdbinary.readouterr()
    assert main(["vault", "get", vault, "notes", "--key", key]) == 0
    assert capfdbinary.readouterr().out == b"piped"


def test_list_and_delete(vault, key, capsys):
    assert main(["vault", "ls", vault, "--json", "--key", key]) == 0
    listed = json.loads(capsys.readouterr().out)["items"]
    assert listed[0].pop("modified") > 1_700_000_000
    assert listed == [{"name": "patients/17", "size": len(CONTENT), "generation": 1}]
    assert main(["vault", "rm", vault, "patients/17", "--key", key]) == 0
    assert main(["vault", "rm", vault, "patients/17", "--key", key]) == 4
    assert "vault.item.unknown" in capsys.readouterr().err


def test_verify(vault, key, capsys):
    assert main(["vault", "verify", vault, "--key", key]) == 0
    assert "1 of 1 items are as they were written" in capsys.readouterr().out
    damage(vault)
    assert main(["vault", "verify", vault, "--json", "--key", key]) == 3
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["code"] == "vault.chunk.altered"
    assert error["fields"]["item"] == "patients/17"


@pytest.mark.parametrize(
    ("unlock", "status", "code"),
    [
        ([], 2, "vault.unlock.missing"),
        (["--key", "KEY-other"], 3, "vault.unlock.refused"),
        (["--key", "parsec:x"], 2, "keys.provider.unknown"),
        (["--key", "pkcs11:token=x"], 2, "keys.uri.malformed"),
    ],
)
def test_unlocking(vault, key, capsys, unlock, status, code):
    words = [word.replace("KEY-other", key.replace("key=vault", "key=other")) for word in unlock]
    assert main(["vault", "ls", vault, *words]) == status
    assert code in capsys.readouterr().err


def test_passphrase_comes_through_a_descriptor(tmp_path, capsys):
    folder = str(tmp_path / "vault")

    def run(passphrase, *words):
        reader, writer = os.pipe()
        os.write(writer, passphrase + b"\n")
        os.close(writer)
        try:
            return main(["vault", *words, "--passphrase-fd", str(reader)])
        finally:
            os.close(reader)

    assert run(b"correct horse", "create", folder) == 0
    assert run(b"correct horse", "ls", folder) == 0
    assert run(b"battery staple", "ls", folder) == 3
    assert "vault.unlock.refused" in capsys.readouterr().err


def test_no_vault_there(tmp_path, key):
    tmp_path.chmod(0o700)
    assert main(["vault", "ls", str(tmp_path / "nothing"), "--key", key]) == 4
