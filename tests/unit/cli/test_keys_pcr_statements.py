"""An update and its statement by the command line: maker's bench, device, and options that do not go together."""

import hashlib
import json
import re

import pytest

from tidegate.cli.main import main
from tidegate.testing.swtpm import SwTpm

VALUE = hashlib.sha256(b"a system").hexdigest()


class Bench:
    """The maker's authority in a software store."""

    def __init__(self, root, capsys) -> None:
        self.root, self.capsys = root, capsys
        (root / "device-secret").touch(mode=0o600)
        (root / "device-secret").write_bytes(bytes(32))
        self.must("keys", "create-store", self.uri())
        self.must("keys", "generate", self.uri("pcr"), "--algorithm", "ecdsa-p256")
        self.must("keys", "public", self.uri("pcr"), "--format", "pem", "-o", root / "pcr.pem")
        self.must("keys", "public", self.uri("pcr"), "-o", root / "pcr.cose")

    def uri(self, key=""):
        named = f"key={key}&" if key else ""
        return f"file:{self.root}/maker?{named}device-secret={self.root}/device-secret"

    def run(self, *words):
        self.capsys.readouterr()
        status = main([str(word) for word in words])
        out, err = self.capsys.readouterr()
        return status, out, err

    def must(self, *words):
        status, out, err = self.run(*words, "--json")
        assert status == 0, out + err
        return json.loads(out)

    def code(self, *words):
        status, _, err = self.run(*words)
        found = re.search(r"\[([a-z0-9.-]+)\]\n", err)
        assert found, err
        assert status in {2, 3, 4}
        return found[1]

    def sign(self, *words, key="pcr", product="box"):
        signing = ["keys", "pcr-sign", "--key", self.uri(key), "--product", product]
        return [*signing, *words, "-o", self.root / "statement"]


@pytest.fixture
def bench(tmp_path, capsys):
    return Bench(tmp_path, capsys)


def test_an_update_from_the_bench_to_the_device(bench, tmp_path):
    (tmp_path / "words").touch(mode=0o600)
    (tmp_path / "words").write_bytes(b"the vault's key")
    with SwTpm(tmp_path / "tpm") as tpm:
        store, key = f"tpm2:{tmp_path}/keys?tcti={tpm.tcti}", f"tpm2:{tmp_path}/keys?key=box&tcti={tpm.tcti}"
        bench.must("keys", "create-store", store)
        follow = ["--pcrs", "7,16", "--pcr-authority", tmp_path / "pcr.pem", "--product", "box"]
        bench.must("keys", "generate", key, "--algorithm", "seal", *follow)
        (tmp_path / "keys" / "statements").mkdir()
        sealing = ["keys", "seal", key, tmp_path / "words", "-o", tmp_path / "sealed"]
        assert bench.code(*sealing) == "keys.pcr.no-statement"
        told = bench.must(*bench.sign("--current", "7,16", "--store", store))
        (tmp_path / "statement").rename(tmp_path / "keys" / "statements" / "first")
        bench.must(*sealing)
        shown = bench.must("keys", "show", key)["policy"]
        assert shown == f"PCRs 7,16 as key {told['key_id']} signs for box, revocable"
        assert bench.must("keys", "capabilities", store)["follow_a_pcr_authority"] is True
        from tidegate.keys.uri import open_store, parse_key_uri

        open_store(parse_key_uri(store)).extend(7, bytes.fromhex(VALUE))
        unsealing = ["keys", "unseal", key, tmp_path / "sealed", "-o", tmp_path / "opened"]
        assert bench.code(*unsealing) == "keys.pcr.no-statement"
        next_value = hashlib.sha256(bytes.fromhex(told["pcrs"]["7"] + VALUE)).hexdigest()
        bench.must(*bench.sign("--pcrs", f"7={next_value},16={told['pcrs']['16']}"))
        (tmp_path / "statement").rename(tmp_path / "keys" / "statements" / "second")
        assert main([str(word) for word in unsealing]) == 0
        assert (tmp_path / "opened").read_bytes() == b"the vault's key"


@pytest.mark.parametrize("version", [None, 3])
@pytest.mark.parametrize("form", ["pem", "cose"])
def test_what_a_statement_says(bench, tmp_path, form, version):
    signed = bench.must(*bench.sign("--pcrs", f"7={VALUE}", *([] if version is None else ["--version", version])))
    check = ["keys", "pcr-verify", tmp_path / "statement", "--pcr-authority", tmp_path / f"pcr.{form}"]
    told = bench.must(*check, "--product", "box")
    assert (told["verified"], told["pcrs"], told["key_id"]) == (True, {"7": VALUE}, signed["key_id"])
    assert told["version"] == signed["version"] == version
    assert VALUE in bench.run(*check, "--product", "box")[1]
    assert bench.code(*check, "--product", "cam") == "keys.pcr.statement"
    raw = (tmp_path / "statement").read_bytes()
    (tmp_path / "statement").write_bytes(raw[:-1])
    assert bench.code(*check, "--product", "box") == "keys.pcr.statement"


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["--pcrs", "7"], "keys.pcr.statement"),
        (["--pcrs", "7=xyz"], "keys.pcr.authority"),
        (["--pcrs", "7=00"], "keys.pcr.statement"),
        (["--pcrs", f"24={VALUE}"], "keys.capability.missing"),
        (["--pcrs", f"x={VALUE}"], "keys.capability.missing"),
        (["--pcrs", f"7={VALUE},7={VALUE}"], "keys.pcr.authority"),
        (["--pcrs", ""], "keys.capability.missing"),
        (["--current", "7"], "keys.pcr.authority"),
        (["--pcrs", f"7={VALUE}", "--version", "0"], "keys.pcr.statement"),
    ],
)
def test_values_that_are_none(bench, words, code):
    assert bench.code(*bench.sign(*words)) == code
    assert not (bench.root / "statement").exists()


def test_signers_that_are_no_authority(bench):
    bench.must("keys", "generate", bench.uri("ed"), "--algorithm", "ed25519")
    assert bench.code(*bench.sign("--pcrs", f"7={VALUE}", key="ed")) == "keys.capability.missing"
    assert bench.code(*bench.sign("--pcrs", f"7={VALUE}", product="Box")) == "keys.pcr.statement"
    assert bench.code(*bench.sign("--current", "7", "--store", bench.uri())) == "keys.capability.missing"


def test_options_that_belong_together(bench, tmp_path):
    pem = tmp_path / "pcr.pem"
    bench.must("keys", "generate", bench.uri("ed"), "--algorithm", "ed25519")
    bench.must("keys", "public", bench.uri("ed"), "--format", "pem", "-o", tmp_path / "ed.pem")
    (tmp_path / "none.pem").write_bytes(b"-----BEGIN PUBLIC KEY-----\n")
    generate = ["keys", "generate", bench.uri("k"), "--algorithm", "seal"]
    for words in (
        ["--pcr-authority", pem],
        ["--pcr-authority", pem, "--product", "box"],
        ["--product", "box", "--pcrs", "7"],
        ["--floor", "count", "--pcrs", "7"],
        ["--pcr-authority", pem, "--product", "box", "--pcrs", "7", "--floor", "Count"],
        ["--pcr-authority", pem, "--product", "Box", "--pcrs", "7"],
        ["--pcr-authority", tmp_path / "ed.pem", "--product", "box", "--pcrs", "7"],
        ["--pcr-authority", tmp_path / "none.pem", "--product", "box", "--pcrs", "7"],
    ):
        assert bench.code(*generate, *words) == "keys.pcr.authority"
    whole = [*generate, "--pcr-authority", pem, "--product", "box", "--pcrs", "7"]
    assert bench.code(*whole) == "keys.capability.missing", "software is bound to no register"
