"""``tidegate vault`` for people: import, cat, edit, unlockers, rekey, age files, backup, doctor, erase."""

import json
import os
import shutil
import subprocess

import pytest

from tidegate.cli.main import main
from tidegate.keys.software import DeviceSecretUnlock, SoftwareKeyStore
from tidegate.keys.store import KeyPurpose, KeySpec


@pytest.fixture
def key(tmp_path):
    """Return the URI of a sealing key; ``events`` beside it signs."""
    secret = tmp_path / "secret"
    secret.touch(mode=0o600)
    secret.write_bytes(bytes(32))
    store = SoftwareKeyStore.create(tmp_path / "keys", DeviceSecretUnlock(secret))
    store.generate("vault", KeySpec(purpose=KeyPurpose.SEAL))
    return f"file:{tmp_path}/keys?key=vault&device-secret={secret}"


@pytest.fixture
def vault(tmp_path, key):
    source = tmp_path / "source"
    (source / "logs").mkdir(parents=True)
    (source / "a.txt").write_bytes(b"first\n")
    (source / "logs" / "b.txt").write_bytes(b"second\n")
    (source / "link").symlink_to("/etc/passwd")
    folder = str(tmp_path / "vault")
    assert main(["vault", "create", folder, "--padding", "padme", "--key", key]) == 0
    assert main(["vault", "import", folder, str(source), "--prefix", "in/", "--key", key]) == 0
    return folder


@pytest.fixture
def passphrase():
    """Return a function that gives a descriptor with a passphrase in it, as text for the command line."""
    opened = []

    def give(text=b"correct horse"):
        read, write = os.pipe()
        os.write(write, text + b"\n")
        os.close(write)
        opened.append(read)
        return str(read)

    yield give
    for number in opened:
        os.close(number)


def say(capsys, *words):
    """Run a command with ``--json`` and return its exit code and document."""
    capsys.readouterr()
    status = main([*words, "--json"])
    out = capsys.readouterr().out
    return status, json.loads(out) if out else None


def test_import_takes_files_and_no_links(vault, key, capsys):
    status, document = say(capsys, "vault", "ls", vault, "--key", key)
    assert status == 0
    assert [(item["name"], item["size"]) for item in document["items"]] == [("in/a.txt", 6), ("in/logs/b.txt", 7)]
    _, document = say(capsys, "vault", "ls", vault, "in/logs", "--key", key)
    assert len(document["items"]) == 1


def test_cat_writes_items_in_the_order_asked_for(vault, key, capfdbinary):
    capfdbinary.readouterr()
    assert main(["vault", "cat", vault, "in/logs/b.txt", "in/a.txt", "--key", key]) == 0
    assert capfdbinary.readouterr().out == b"second\nfirst\n"


@pytest.mark.parametrize("cipher", ["aes-256-gcm", "chacha20-poly1305"])
def test_create_with_a_cipher(tmp_path, key, capsys, cipher):
    status, document = say(capsys, "vault", "create", str(tmp_path / "new"), "--cipher", cipher, "--key", key)
    assert (status, document["cipher"]) == (0, cipher)


def test_create_with_a_padding_that_is_none(tmp_path, key, capsys):
    assert main(["vault", "create", str(tmp_path / "new"), "--padding", "some", "--key", key]) == 2
    assert "vault.padding.unknown" in capsys.readouterr().err


def test_edit(vault, key, tmp_path, capsys):
    editor = tmp_path / "editor"
    editor.write_text('#!/bin/sh\ncat "$1" > /dev/null && echo third >> "$1"\n')
    editor.chmod(0o755)
    status = main(["vault", "edit", vault, "in/a.txt", "--editor", str(editor), "--key", key])
    if status == 4 and "could be mounted" in capsys.readouterr().err:
        pytest.skip("neither root nor user namespaces here")
    assert status == 0
    capsys.readouterr()
    status, document = say(capsys, "vault", "edit", vault, "in/a.txt", "--editor", "true", "--key", key)
    assert (status, document["changed"], document["size"]) == (0, False, 12)
    status, document = say(capsys, "vault", "edit", vault, "made", "--editor", str(editor), "--key", key)
    assert (document["changed"], document["size"]) == (True, 6)


def test_unlockers_and_rekey(vault, key, tmp_path, capsys, passphrase):
    private, public = str(tmp_path / "esc"), str(tmp_path / "esc.pub")
    assert main(["vault", "escrow-key", private, public]) == 0
    add = ["vault", "unlockers", "add", vault, "--key", key]
    assert main([*add, "--new-escrow-key", public, "--label", "safe"]) == 0
    assert main([*add, "--new-passphrase-fd", passphrase()]) == 0
    both = ["--new-need", "2", "--new-passphrase-fd", passphrase(b"one"), "--new-passphrase-fd", passphrase(b"two")]
    assert main([*add, *both]) == 0
    capsys.readouterr()
    status, document = say(capsys, "vault", "unlockers", "list", vault)
    assert status == 0
    assert [(slot["number"], slot["kind"], slot["label"], slot["anchors"]) for slot in document["unlockers"]] == [
        (1, "keystore", "", True),
        (2, "escrow", "safe", False),
        (3, "passphrase", "", False),
        (4, "threshold", "", False),
    ]
    assert document["unlockers"][3]["detail"] == "2 of 2: passphrase, passphrase"
    status, document = say(capsys, "vault", "rekey", vault, "--escrow-key", private)
    assert (status, document) == (0, {"epoch": 2, "items": 2, "contents": False})
    status, document = say(capsys, "vault", "rekey", vault, "--contents", "--passphrase-fd", passphrase())
    assert (status, document["epoch"]) == (0, 3)
    status, document = say(capsys, "vault", "unlockers", "remove", vault, "3", "--key", key)
    assert (status, document["kind"], document["items"]) == (0, "passphrase", 2)
    assert main(["vault", "ls", vault, "--passphrase-fd", passphrase()]) == 3
    given = ["--need", "2", "--passphrase-fd", passphrase(b"two"), "--passphrase-fd", passphrase(b"one")]
    assert main(["vault", "verify", vault, *given]) == 0


def test_several_unlockers_need_a_number(vault, key, capsys, passphrase):
    assert main(["vault", "ls", vault, "--key", key, "--passphrase-fd", passphrase()]) == 2
    assert main(["vault", "ls", vault]) == 2
    assert main(["vault", "ls", vault, "--tang", "http://127.0.0.1:1"]) == 2
    assert capsys.readouterr().err.count("vault.unlock.missing") == 3


def test_age_files(vault, key, tmp_path, capsys):
    identity, exported = str(tmp_path / "age.key"), str(tmp_path / "a.age")
    _, document = say(capsys, "vault", "age-key", identity, "--classical")
    assert (tmp_path / "age.key").stat().st_mode & 0o777 == 0o600
    export = ["vault", "export", vault, "in/a.txt", "-r", document["recipient"], "-o", exported, "--key", key]
    assert main([*export, "--armor"]) == 0
    assert (tmp_path / "a.age").read_bytes().startswith(b"-----BEGIN AGE ENCRYPTED FILE-----")
    assert main(export) == 4  # is not overwritten
    assert main(["vault", "import-age", vault, "again", exported, "-i", identity, "--key", key]) == 0
    capsys.readouterr()
    _, document = say(capsys, "vault", "ls", vault, "again", "--key", key)
    assert document["items"][0]["size"] == 6
    if age := shutil.which("age"):
        done = subprocess.run([age, "-d", "-i", identity, exported], capture_output=True, check=True)
        assert done.stdout == b"first\n"


def test_export_to_a_recipient_that_is_none_leaves_nothing(vault, key, tmp_path, capsys):
    target = tmp_path / "x.age"
    assert main(["vault", "export", vault, "in/a.txt", "-r", "age1nonsense", "-o", str(target), "--key", key]) == 3
    assert not target.exists()


def flip_the_last_bit(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def test_import_of_a_damaged_age_file_leaves_the_item(vault, key, tmp_path, capsys):
    identity, exported = str(tmp_path / "age.key"), tmp_path / "a.age"
    _, document = say(capsys, "vault", "age-key", identity)
    assert (
        main(["vault", "export", vault, "in/a.txt", "-r", document["recipient"], "-o", str(exported), "--key", key])
        == 0
    )
    flip_the_last_bit(exported)
    assert main(["vault", "import-age", vault, "in/a.txt", str(exported), "-i", identity, "--key", key]) == 3
    capsys.readouterr()
    _, document = say(capsys, "vault", "ls", vault, "in/a.txt", "--key", key)
    assert document["items"][0]["generation"] == 1


def test_backup_and_restore(vault, key, tmp_path, capsys):
    identity, backup, other = str(tmp_path / "age.key"), str(tmp_path / "backup.age"), str(tmp_path / "other")
    _, document = say(capsys, "vault", "age-key", identity)
    assert main(["vault", "backup", vault, "-r", document["recipient"], "-o", backup, "--key", key]) == 0
    assert main(["vault", "create", other, "--key", key]) == 0
    capsys.readouterr()
    status, document = say(capsys, "vault", "restore", other, backup, "-i", identity, "--key", key)
    assert (status, document) == (0, {"items": 2})
    (tmp_path / "age.key").chmod(0o644)
    assert main(["vault", "restore", other, backup, "-i", identity, "--key", key]) == 3  # readable for others


def test_verify_names_a_stranger(vault, key, tmp_path, capsys):
    (tmp_path / "vault" / "items" / "stranger").touch()
    assert main(["vault", "verify", vault, "--key", key]) == 3
    assert "vault.file.unexpected" in capsys.readouterr().err


def test_doctor(vault, capsys):
    status, document = say(capsys, "vault", "doctor", vault)
    found = {one["what"]: one["holds"] for one in document["findings"]}
    assert {
        "memory of keys",
        "swap",
        "core dumps",
        "hibernation",
        "cipher",
        "unlockers",
        "rollback",
        "re-keying",
    } == set(found)
    assert found["rollback"]
    assert not found["unlockers"]  # one alone
    assert status == 1
    assert "unlockers" in document["weak"]
    assert main(["vault", "doctor"]) in (0, 1)
    assert "memory of keys" in capsys.readouterr().out


def test_erase(vault, key, tmp_path, capsys):
    events, receipt, public = (
        key.replace("key=vault", "key=events"),
        str(tmp_path / "receipt"),
        str(tmp_path / "events.pub"),
    )
    assert main(["keys", "generate", events, "--algorithm", "ed25519"]) == 0
    assert main(["keys", "public", events, "-o", public]) == 0
    erase = ["vault", "erase", vault, "--key", key, "--reason", "stolen", "--sign", events, "--receipt", receipt]
    assert main(erase) == 2  # nobody said --yes
    assert main([*erase[:-2], "--yes"]) == 2  # signed, but to be written nowhere
    status, document = say(capsys, *erase, "--yes")
    assert (status, document["reason"], document["slots"][0]["state"]) == (0, "stolen", "destroyed")
    assert main(["vault", "ls", vault, "--key", key]) == 4
    assert say(capsys, "vault", "receipt", receipt, "--trust", public) == (0, document)
    flip_the_last_bit(tmp_path / "receipt")
    assert main(["vault", "receipt", receipt, "--trust", public]) == 3


def test_erase_says_what_a_key_was_good_for(vault, key, tmp_path, capsys):
    second = tmp_path / "second"
    second.touch(mode=0o600)
    second.write_bytes(b"2" * 32)
    other = SoftwareKeyStore.create(tmp_path / "others", DeviceSecretUnlock(second))
    other.generate("vault", KeySpec(purpose=KeyPurpose.SEAL))
    same = f"file:{tmp_path}/others?key=vault&device-secret={second}"
    never = key.replace("key=vault", "key=never")
    status, document = say(capsys, "vault", "erase", vault, "--key", key, "--key", same, "--key", never, "--yes")
    assert (status, document["record"]) == (0, "read")
    assert [(one["key"], one["state"]) for one in document["keys"]] == [
        ("vault", "destroyed"),
        ("vault", "destroyed"),
        ("never", "missing"),
    ]
    assert other.list_keys() == []


def test_erase_tells_of_keys_without_a_slot(vault, key, tmp_path, capsys):
    never = key.replace("key=vault", "key=never")
    capsys.readouterr()
    assert main(["vault", "erase", vault, "--key", never, "--yes"]) == 0
    out = capsys.readouterr().out
    assert "no unlocker of the vault names this key" in out
    assert "was not given" in out


def test_erase_of_a_mistyped_folder_costs_no_key(vault, key, tmp_path, capsys):
    assert main(["vault", "erase", str(tmp_path / "valt"), "--key", key, "--yes"]) == 4
    (tmp_path / "valt").mkdir(mode=0o700)
    assert main(["vault", "erase", str(tmp_path / "valt"), "--key", key, "--yes"]) == 4
    (tmp_path / "vault").chmod(0o777)
    assert main(["vault", "erase", vault, "--key", key, "--yes"]) == 3
    (tmp_path / "vault").chmod(0o700)
    assert main(["vault", "ls", vault, "--key", key]) == 0


def test_erase_that_is_incomplete_tells_what_was_done(vault, key, tmp_path, capsys):
    (tmp_path / "vault" / "items" / "deep" / "deeper").mkdir(parents=True)
    capsys.readouterr()
    assert main(["vault", "erase", vault, "--key", key, "--yes"]) == 4
    said = capsys.readouterr()
    assert "vault.erase.incomplete" in said.err
    assert "NOT DONE: deep" in said.out
    assert "destroyed" in said.out


def test_help_of_every_verb(capsys):
    with pytest.raises(SystemExit):
        main(["vault", "--help"])
    verbs = capsys.readouterr().out
    for verb in ("create", "unlockers", "rekey", "backup", "doctor", "erase", "dir-create", "volume-format", "lock"):
        assert verb in verbs
        with pytest.raises(SystemExit) as done:
            main(["vault", verb, "--help"])
        assert done.value.code == 0
        assert len(capsys.readouterr().out) > 100
