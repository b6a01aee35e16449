"""Sealing by the command line, in software and in a TPM."""

from __future__ import annotations

import io
import json
import sys

import pytest

from tidegate.cli.main import main
from tidegate.testing.swtpm import SwTpm

SECRET = b"the passphrase of something"


@pytest.fixture
def software(tmp_path):
    secret = tmp_path / "device-secret"
    secret.touch(mode=0o600)
    secret.write_bytes(bytes(32))

    def uri(key=""):
        return f"file:{tmp_path}/keys?{f'key={key}&' if key else ''}device-secret={secret}"

    assert main(["keys", "create-store", uri()]) == 0
    assert main(["keys", "generate", uri("box"), "--algorithm", "seal"]) == 0
    return uri


@pytest.fixture
def secret(tmp_path):
    path = tmp_path / "secret"
    path.touch(mode=0o600)
    path.write_bytes(SECRET)
    return path


def run(capsys, *words):
    """Return status, output and error code."""
    capsys.readouterr()
    status = main([str(word) for word in words])
    said = capsys.readouterr()
    return status, said.out, said.err


def test_there_and_back(software, secret, tmp_path, capsys):
    sealed, opened = tmp_path / "sealed", tmp_path / "opened"
    assert main(["keys", "seal", software("box"), str(secret), "--context", "a", "-o", str(sealed)]) == 0
    assert SECRET not in sealed.read_bytes()
    assert main(["keys", "unseal", software("box"), str(sealed), "--context", "a", "-o", str(opened)]) == 0
    assert opened.read_bytes() == SECRET
    assert opened.stat().st_mode & 0o777 == 0o600
    status, _, err = run(capsys, "keys", "unseal", software("box"), sealed, "--context", "a", "-o", opened)
    assert (status, "base.storage.failed" in err) == (4, True)


@pytest.mark.parametrize("context", ["", "b"])
def test_another_context(software, secret, tmp_path, capsys, context):
    sealed = tmp_path / "sealed"
    assert main(["keys", "seal", software("box"), str(secret), "--context", "a", "-o", str(sealed)]) == 0
    words = ("keys", "unseal", software("box"), sealed, "--context", context, "-o", tmp_path / "opened")
    status, _, err = run(capsys, *words)
    assert (status, "keys.sealed.malformed" in err) == (3, True)
    assert not (tmp_path / "opened").exists()


def test_a_secret_that_others_can_read_is_none(software, secret, tmp_path, capsys):
    secret.chmod(0o644)
    status, _, err = run(capsys, "keys", "seal", software("box"), secret, "-o", tmp_path / "sealed")
    assert (status, "base.permissions.unsafe" in err) == (3, True)


def test_from_standard_input_within_its_limit(software, tmp_path, capsys, monkeypatch):
    for size, expected in ((65_536, 0), (65_537, 3)):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(bytes(size))))
        status, _, _ = run(capsys, "keys", "seal", software("box"), "-", "-o", tmp_path / f"sealed-{size}")
        assert status == expected


def test_only_a_tpm_has_handles(software, capsys):
    status, _, err = run(capsys, "keys", "persist", software("box"), "0x81000010")
    assert (status, "keys.capability.missing" in err) == (2, True)
    status, _, err = run(capsys, "keys", "persist", software("box"), "here")
    assert (status, "keys.name.invalid" in err) == (2, True)


def test_in_a_tpm(tmp_path, secret, capsys):
    with SwTpm(tmp_path / "tpm") as tpm:
        store = f"tpm2:{tmp_path}/keys?tcti={tpm.tcti}"
        named = store.replace("?", "?key={}&")
        assert main(["keys", "create-store", store]) == 0
        assert main(["keys", "generate", named.format("box"), "--algorithm", "seal", "--pcrs", "7"]) == 0
        assert main(["keys", "seal", named.format("box"), str(secret), "-o", str(tmp_path / "sealed")]) == 0
        opened = tmp_path / "opened"
        assert main(["keys", "unseal", named.format("box"), str(tmp_path / "sealed"), "-o", str(opened)]) == 0
        assert opened.read_bytes() == SECRET
        assert main(["keys", "generate", named.format("k"), "--algorithm", "ecdsa-p256"]) == 0
        status, out, _ = run(capsys, "keys", "persist", named.format("k"), "0x81000010", "--json")
        assert (status, json.loads(out)["handle"]) == (0, "0x81000010")
        signed = ["keys", "sign", named.format("0x81000010"), str(secret), "-o", str(tmp_path / "signature")]
        assert main(signed) == 0
