"""``tidegate keys`` in every provider: others read what it writes, refusals have codes, what is typed is not shown."""

import datetime
import json
import os
import pty
import re
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tidegate.cli.main import main
from tidegate.testing.keyd import running_keyd
from tidegate.testing.swtpm import SwTpm
from tidegate.testing.tokens import SoftHsm


class Shell:
    def __init__(self, root, capsys) -> None:
        self.root = root
        self.capsys = capsys
        self.secret = self.private("secret", bytes(range(32)))
        self.store = f"file:{root}/store?device-secret={self.secret}"
        self.words = self.private("words", b"correct horse\n")
        self.must("keys", "create-store", self.store)

    def private(self, name, content):
        path = self.root / name
        path.write_bytes(content)
        path.chmod(0o600)
        return path

    def key(self, name):
        return f"file:{self.root}/store?key={name}&device-secret={self.secret}"

    def run(self, *words):
        self.capsys.readouterr()
        status = main([str(word) for word in words])
        out, err = self.capsys.readouterr()
        return status, out, err

    def must(self, *words):
        """Run a command in both forms of output if it only reads; return the JSON document."""
        status, out, err = self.run(*words, "--json")
        assert status == 0, out + err
        return json.loads(out)

    def code(self, *words):
        status, out, err = self.run(*words)
        found = re.search(r"\[([a-z0-9.-]+)\]\n", err)
        assert found, (status, out, err)
        assert status in {2, 3, 4}
        return found[1]


@pytest.fixture
def shell(tmp_path, capsys):
    return Shell(tmp_path, capsys)


def test_a_key_from_birth_to_its_end(shell):
    told = shell.must("keys", "generate", shell.key("a"), "--algorithm", "ecdsa-p256", "--exportable")
    shown = shell.must("keys", "show", shell.key("a"))
    assert (shown["key_id"], shown["policy"], shown["purpose"]) == (told["key_id"], "exportable", "sign")
    assert shell.must("keys", "list", shell.store)["keys"][0]["policy"] == "exportable"
    assert "exportable" in shell.run("keys", "list", shell.store)[1]
    assert shell.must("keys", "destroy", shell.key("a"), "--yes") == {"destroyed": "a"}
    assert shell.code("keys", "show", shell.key("a")) == "keys.key.missing"
    assert shell.code("keys", "show", shell.store) == "keys.name.invalid"


def test_what_a_provider_can_is_a_table(shell):
    able = shell.must("keys", "capabilities", shell.store)
    assert (able["provider"], able["hardware"], able["quote"], able["export"]) == ("software", False, False, True)
    assert "count resists rollback  no" in shell.run("keys", "capabilities", shell.store)[1]
    assert not able["revoke_copies_of_a_key"]


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("--purpose", "attest"), "keys.capability.missing"),
        (("--pcrs", "0,7"), "keys.capability.missing"),
        (("--pcrs", "0,24"), "keys.capability.missing"),
        (("--pcrs", "x"), "keys.capability.missing"),
        (("--user-auth",), "keys.pin.missing"),
        (("--purpose", "seal", "--algorithm", "ed25519"), "keys.key.purpose"),
        (("--purpose", "sign", "--algorithm", "seal"), "keys.key.purpose"),
    ],
)
def test_what_is_not_generated(shell, words, code):
    assert shell.code("keys", "generate", shell.key("a"), *words) == code
    assert shell.must("keys", "list", shell.store) == {"keys": []}


@pytest.mark.parametrize("words", [("--algorithm", "seal"), ("--purpose", "seal")])
def test_sealing_keys(shell, words):
    assert shell.must("keys", "generate", shell.key("a"), *words)["algorithm"] == "seal"


def test_signatures_that_openssl_verifies(shell):
    shell.must("keys", "generate", shell.key("a"))
    message, signature = shell.root / "message", shell.root / "signature"
    message.write_bytes(b"hello" * 1000)
    shell.must("keys", "sign", shell.key("a"), message, "-o", signature)
    shell.must("keys", "public", shell.key("a"), "-o", shell.root / "pub")
    shell.must("keys", "public", shell.key("a"), "-o", shell.root / "pem", "--format", "pem")
    assert shell.must("keys", "verify", message, signature, "--public", shell.root / "pub")["verified"]
    command = ["openssl", "pkeyutl", "-verify", "-rawin", "-pubin", "-inkey", shell.root / "pem"]
    subprocess.run([*command, "-in", message, "-sigfile", signature], check=True, capture_output=True)
    message.write_bytes(b"other")
    assert (
        shell.code("keys", "verify", message, signature, "--public", shell.root / "pub") == "crypto.signature.invalid"
    )


def test_random_and_counters(shell):
    assert len(shell.must("keys", "random", shell.store, 33)["random"]) == 66
    assert shell.code("keys", "random", shell.store, 0) == "keys.capability.missing"
    assert shell.must("keys", "counter", shell.key("n"))["value"] == 0
    assert shell.must("keys", "counter", shell.key("n"), "--increment")["value"] == 1
    assert shell.run("keys", "counter", shell.key("n"))[1] == "1\n"


def certificate_for(key):
    now = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "gateway")])
    ca = ec.generate_private_key(ec.SECP256R1())
    builder = x509.CertificateBuilder(name, name, key, 7, now, now + datetime.timedelta(days=9))
    return builder.sign(ca, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def test_certificates_beside_a_key(shell):
    shell.must("keys", "generate", shell.key("a"))
    shell.must("keys", "public", shell.key("a"), "-o", shell.root / "pem", "--format", "pem")
    chain = shell.root / "chain.pem"
    chain.write_bytes(certificate_for(serialization.load_pem_public_key((shell.root / "pem").read_bytes())))
    kept = shell.must("keys", "certificates", shell.key("a"), "--keep", chain, "-o", shell.root / "again.pem")
    assert [one["subject"] for one in kept["certificates"]] == ["CN=gateway"]
    assert (shell.root / "again.pem").read_bytes() == chain.read_bytes()
    assert shell.must("keys", "show", shell.key("a"))["certificates"] == 1
    chain.write_bytes(certificate_for(ec.generate_private_key(ec.SECP256R1()).public_key()))
    assert shell.code("keys", "certificates", shell.key("a"), "--keep", chain) == "pki.certificate.malformed"
    assert shell.must("keys", "certificates", shell.key("a")) == kept


def test_private_keys_leave_encrypted_and_come_back(shell):
    for algorithm in ("ed25519", "rsa-pss", "ml-dsa-65"):
        first = shell.must("keys", "generate", shell.key(algorithm), "--algorithm", algorithm, "--exportable")
        file = shell.root / f"{algorithm}.pem"
        told = shell.must("keys", "export", shell.key(algorithm), "-o", file, "--passphrase-file", shell.words)
        assert told["encrypted"]
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert file.read_bytes().startswith(b"-----BEGIN ENCRYPTED PRIVATE KEY-----")
        new = shell.key(f"{algorithm}-2")
        assert shell.code("keys", "import", new, file) == "keys.pin.missing"
        wrong = shell.private("wrong", b"battery staple")
        assert shell.code("keys", "import", new, file, "--passphrase-file", wrong) == "keys.import.refused"
        second = shell.must("keys", "import", new, file, "--passphrase-file", shell.words)
        assert second["key_id"] == first["key_id"]
        assert shell.code("keys", "export", shell.key(algorithm), "-o", file) == "keys.key.exists"
        file.chmod(0o644)
        assert shell.code("keys", "import", new, file) == "base.permissions.unsafe"


def test_private_keys_of_others(shell):
    """What openssl made is imported, and what we export unencrypted openssl reads."""
    file = shell.root / "openssl.pem"
    command = ["openssl", "genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-384", "-out", str(file)]
    subprocess.run(command, check=True, capture_output=True)
    file.chmod(0o600)
    assert shell.must("keys", "import", shell.key("a"), file)["algorithm"] == "ecdsa-p384"
    assert shell.code("keys", "import", shell.key("a"), file) == "keys.key.exists"
    plain = shell.root / "plain.pem"
    shell.must("keys", "export", shell.key("a"), "-o", plain, "--unencrypted")
    command = ["openssl", "pkey", "-in", plain, "-check", "-noout"]
    subprocess.run(command, check=True, capture_output=True)
    for content in (b"", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", b"0" * 40):
        assert shell.code("keys", "import", shell.key("b"), shell.private("bad", content)) == "keys.import.refused"


def test_a_key_that_may_not_leave(shell):
    shell.must("keys", "generate", shell.key("a"))
    assert shell.code("keys", "export", shell.key("a"), "-o", shell.root / "x") == "keys.key.not-exportable"
    assert not (shell.root / "x").exists()


def test_another_passphrase(shell):
    shell.must("keys", "generate", shell.key("a"))
    new = f"file:{shell.root}/store?passphrase-file={shell.words}"
    assert shell.code("keys", "change-passphrase", shell.store, f"file:{shell.root}/other") == "keys.uri.malformed"
    shell.must("keys", "change-passphrase", shell.store, new)
    assert shell.code("keys", "list", shell.store) == "keys.unlock.refused"
    assert [key["name"] for key in shell.must("keys", "list", new)["keys"]] == ["a"]


def test_the_selftest(shell):
    status, out, _ = shell.run("keys", "selftest", shell.store, "--json")
    told = json.loads(out)
    assert (status, told["failed"]) == (0, [])
    assert {test["verdict"] for test in told["tests"]} == {"passed", "skipped"}
    assert shell.must("keys", "list", shell.store) == {"keys": []}


# ---- tokens, TPMs, the key process -----------------------------------------------------------------------


def test_the_same_words_for_a_token(shell):
    with SoftHsm(shell.root / "hsm") as hsm:
        pin = hsm.make_token("maker")
        query = f"?module-path={hsm.module}&pin-source={pin}"
        key = f"pkcs11:token=maker;object=release{query}"
        shell.must("keys", "generate", key, "--algorithm", "ecdsa-p256")
        assert shell.must("keys", "show", key)["hardware"] in {True, False}
        (shell.root / "m").write_bytes(b"m")
        shell.must("keys", "sign", key, shell.root / "m", "-o", shell.root / "s")
        shell.must("keys", "public", key, "-o", shell.root / "p")
        assert shell.must("keys", "verify", shell.root / "m", shell.root / "s", "--public", shell.root / "p")
        shell.must("keys", "destroy", key, "--yes")
        assert shell.must("keys", "list", f"pkcs11:token=maker{query}") == {"keys": []}
        assert shell.code("keys", "list", f"pkcs11:token=maker?module-path={hsm.module}") == "keys.pin.missing"


def test_keys_and_quotes_of_a_tpm(shell):
    with SwTpm(shell.root / "tpm") as tpm:
        store = f"tpm2:{shell.root}/tpm-store?tcti={tpm.tcti}"
        key = f"tpm2:{shell.root}/tpm-store?key=ak&tcti={tpm.tcti}"
        shell.must("keys", "create-store", store)
        for name, words, policy in (
            ("vault", ("--purpose", "seal"), "revocable"),
            ("plain", ("--purpose", "seal", "--no-revocable"), "-"),
            ("a", ("--algorithm", "ecdsa-p256"), "-"),
            ("b", ("--algorithm", "ecdsa-p256", "--revocable"), "revocable"),
        ):
            shell.must("keys", "generate", key.replace("=ak", f"={name}"), *words)
            assert shell.must("keys", "show", key.replace("=ak", f"={name}"))["policy"] == policy
        refused = shell.code("keys", "generate", shell.key("v"), "--purpose", "seal", "--revocable")
        assert refused == "keys.capability.missing"
        shell.must("keys", "generate", key, "--purpose", "attest")
        shell.must("keys", "public", key, "-o", shell.root / "ak")
        quote, nonce = shell.root / "quote", "00" * 16
        told = shell.must("keys", "quote", key, "--nonce", nonce, "--pcrs", "0,7", "-o", quote)
        check = ("keys", "verify-quote", quote, "--public", shell.root / "ak", "--nonce")
        assert shell.must(*check, nonce)["pcrs"] == told["pcrs"]
        assert shell.must(*check, nonce, "--expect", "7=" + "00" * 32)["verified"]
        for words in ((("11" * 16),), (nonce, "--expect", "7=" + "11" * 32), ("xyz",), (nonce, "--expect", "7=z")):
            assert shell.code(*check, *words) == "keys.quote.invalid"
        zeros = "00" * 32  # a register that is named besides another one, or twice, would not be looked at
        for words in (("--expect", f"0,7={zeros}"), ("--expect", "7=" + "11" * 32, "--expect", f"7={zeros}")):
            assert shell.code(*check, nonce, *words) == "keys.quote.invalid"
        raw = quote.read_bytes()
        for altered in (b"", raw[:-1], raw[:90] + bytes([raw[90] ^ 1]) + raw[91:], b"\xa0"):
            quote.write_bytes(altered)
            assert shell.code(*check, nonce) == "keys.quote.invalid"
        assert shell.code("keys", "quote", shell.key("a"), "--nonce", nonce, "--pcrs", "0", "-o", quote) in {
            "keys.capability.missing",
            "keys.key.missing",
        }


def test_through_the_key_process(shell):
    folder = Path(tempfile.mkdtemp(prefix="tidegate-"))
    config = folder / "keyd.toml"
    config.write_text(
        f'[keyd]\nsocket = "{folder}/s"\nstore = "{shell.store}"\n'
        f'[[grant]]\nuser = {os.getuid()}\nkeys = ["dev-*"]\noperations = ["sign", "generate", "list"]\n'
    )
    with running_keyd(config):
        shell.must("keys", "generate", f"keyd:{folder}/s?key=dev-a")
        assert shell.code("keys", "generate", f"keyd:{folder}/s?key=other") == "keys.grant.refused"
        assert shell.code("keys", "destroy", f"keyd:{folder}/s?key=dev-a", "--yes") == "keys.grant.refused"
        assert [key["name"] for key in shell.must("keys", "list", f"keyd:{folder}/s")["keys"]] == ["dev-a"]
    shutil.rmtree(folder)


# ---- asking a person -------------------------------------------------------------------------------------


def on_terminal(words, answers):
    """Run the command with a terminal, type ``answers`` when asked, return (exit code, what the terminal showed)."""
    child, terminal = pty.fork()
    if child == 0:
        os.execv(sys.executable, [sys.executable, "-m", "tidegate.cli.main", *map(str, words)])  # noqa: S606
    shown, left, deadline = b"", list(answers), time.monotonic() + 15
    while time.monotonic() < deadline:
        try:
            piece = os.read(terminal, 4096)
        except OSError:
            break
        if not piece:
            break
        shown += piece
        if shown.endswith(b": ") and left:
            os.write(terminal, left.pop(0) + b"\n")
            shown += b"\n"
    os.close(terminal)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), shown.decode()


def test_a_person_is_asked_and_what_he_types_is_not_shown(shell):
    store, key = f"file:{shell.root}/asked", f"file:{shell.root}/asked?key=a"
    status, shown = on_terminal(("keys", "create-store", store), [b"battery", b"batteri"])
    assert status == 3
    assert "keys.unlock.refused" in shown
    assert not (shell.root / "asked").exists()
    assert on_terminal(("keys", "create-store", store), [b"battery"] * 2)[0] == 0
    assert on_terminal(("keys", "generate", key), [b"battery"])[0] == 0
    status, shown = on_terminal(("keys", "list", store), [b"wrong"])
    assert status == 3
    status, shown = on_terminal(("keys", "list", store), [b"battery"])
    assert status == 0
    assert "The passphrase of" in shown
    assert "batter" not in shown
    assert shell.code("keys", "list", store) == "keys.pin.missing", "and without a terminal nobody"
