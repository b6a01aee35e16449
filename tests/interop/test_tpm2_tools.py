"""tpm2-tools, tpm2-tss and OpenSSL read what our TPM store makes, and we refuse what they say is false."""

import hashlib

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, utils
from tpm2_pytss.tsskey import TSSPrivKey

from tidegate.base.program import run_program
from tidegate.crypto import cbor
from tidegate.crypto.aead import Secret
from tidegate.crypto.signing import SignatureAlgorithm
from tidegate.keys.attest import verify_quote
from tidegate.keys.store import KeyPolicy, KeyPurpose, KeySpec, Quote
from tidegate.keys.tpm2 import Tpm2KeyStore, Tpm2Pins
from tidegate.keys.tpm2_files import parse_pem
from tidegate.testing.swtpm import SwTpm

P256, P384, RSA = SignatureAlgorithm.ECDSA_P256, SignatureAlgorithm.ECDSA_P384, SignatureAlgorithm.RSA_PSS
NONCE = b"0123456789abcdef"


class Bench:
    """A TPM, our store on it, and tpm2-tools run against it in a folder."""

    def __init__(self, tpm, root):
        self.tpm, self.root = tpm, root
        pins = Tpm2Pins(key=lambda what: Secret(b"2580"))
        self.store = Tpm2KeyStore.create(root / "keys", tpm.tcti, pins=pins)

    def pem(self, name):
        return self.root / "keys" / f"{name}.pem"

    def tool(self, *arguments, check=True):
        """Run one of tpm2-tools; it has the bare TPM for itself, so it finds it empty and leaves it so."""
        done = run_program([*map(str, arguments), "-T", self.tpm.tcti], check=check)
        run_program(["tpm2_flushcontext", "-t", "-T", self.tpm.tcti])
        return done

    def load(self, name):
        """Load a key of ours, given its file alone."""
        self.tool("tpm2_load", "-r", self.pem(name), "-c", self.root / f"{name}.ctx")

    def public_pem(self, key):
        numbers = ec.EllipticCurvePublicKey.from_encoded_point(
            {P256: ec.SECP256R1(), P384: ec.SECP384R1()}[key.algorithm], key.raw
        )
        path = self.root / "public.pem"
        path.write_bytes(
            numbers.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
        )
        return path


@pytest.fixture
def bench(tmp_path):
    with SwTpm(tmp_path / "tpm") as tpm:
        yield Bench(tpm, tmp_path)


def der(signature):
    half = len(signature) // 2
    return utils.encode_dss_signature(int.from_bytes(signature[:half], "big"), int.from_bytes(signature[half:], "big"))


@pytest.mark.parametrize("algorithm", [P256, P384, RSA])
def test_tools_load_our_key_and_sign_with_it(bench, algorithm):
    info = bench.store.generate("k", KeySpec(purpose=KeyPurpose.SIGN, algorithm=algorithm))
    bench.load("k")
    shown = bench.tool("tpm2_readpublic", "-c", bench.root / "k.ctx").stdout.decode()
    x = info.public_key.raw[1 : 1 + len(info.public_key.raw) // 2] if algorithm is not RSA else info.public_key.raw
    assert x.hex() in shown
    for word in ("fixedtpm", "fixedparent", "sensitivedataorigin", "userwithauth", "sign", "noda"):
        assert word in shown
    assert "decrypt" not in shown
    (bench.root / "m").write_bytes(b"message")
    scheme, hashed = (
        ("rsapss", "sha256") if algorithm is RSA else ("ecdsa", {P256: "sha256", P384: "sha384"}[algorithm])
    )
    out = bench.root / "sig"
    bench.tool(
        "tpm2_sign", "-c", bench.root / "k.ctx", "-g", hashed, "-s", scheme, "-f", "plain", "-o", out, bench.root / "m"
    )
    raw = out.read_bytes()
    if algorithm is not RSA:
        size = len(info.public_key.raw) // 2
        r, s = utils.decode_dss_signature(raw)
        raw = r.to_bytes(size, "big") + s.to_bytes(size, "big")
    info.public_key.verify(raw, b"message")


def test_our_parent_is_what_our_page_says(bench):
    """tpm2-tools make the storage key from the words of docs/formats/tpm2.md, and our key loads under it."""
    bench.store.generate("k", KeySpec(purpose=KeyPurpose.SIGN, algorithm=P256))
    parent, key = bench.root / "parent.ctx", parse_pem(bench.pem("k").read_bytes())
    attributes = "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|noda|restricted|decrypt"
    bench.tool(
        "tpm2_createprimary", "-C", "o", "-G", "ecc256:aes128cfb", "-g", "sha256", "-a", attributes, "-c", parent
    )
    for name, raw in (("pub", key.public), ("priv", key.private)):
        (bench.root / name).write_bytes(len(raw).to_bytes(2, "big") + raw)
    pair = ["-u", bench.root / "pub", "-r", bench.root / "priv", "-c", bench.root / "k.ctx"]
    bench.tool("tpm2_load", "-C", parent, *pair)
    other = attributes.replace("noda|", "")
    bench.tool("tpm2_createprimary", "-C", "o", "-G", "ecc256:aes128cfb", "-g", "sha256", "-a", other, "-c", parent)
    assert bench.tool("tpm2_load", "-C", parent, *pair, check=False).returncode != 0


def test_the_tss_reads_our_files(bench):
    for name, policy in (("plain", KeyPolicy()), ("pin", KeyPolicy(user_auth=True))):
        bench.store.generate(name, KeySpec(purpose=KeyPurpose.SIGN, algorithm=P256, policy=policy))
        read = TSSPrivKey.from_pem(bench.pem(name).read_bytes())
        assert read.empty_auth is not policy.user_auth
        assert read.to_pem() == bench.pem(name).read_bytes()


def test_openssl_accepts_our_signatures(bench):
    for algorithm, hashed in ((P256, "sha256"), (P384, "sha384")):
        info = bench.store.generate(algorithm.label, KeySpec(purpose=KeyPurpose.SIGN, algorithm=algorithm))
        (bench.root / "m").write_bytes(b"message")
        (bench.root / "sig").write_bytes(der(bench.store.signer(algorithm.label).sign(b"message")))
        public = bench.public_pem(info.public_key)
        run_program(
            ["openssl", "dgst", f"-{hashed}", "-verify", str(public), "-signature", str(bench.root / "sig"),
             str(bench.root / "m")]
        )  # fmt: skip


def test_the_tool_unseals_what_we_sealed_under_registers(bench):
    """The sealed AES key opens for tpm2_unseal under the same policy, and for nobody after the register changed."""
    spec = KeySpec(purpose=KeyPurpose.SEAL, policy=KeyPolicy(pcrs=frozenset({0, 16})))
    bench.store.generate("k", spec)
    bench.load("k")
    unseal = ["tpm2_unseal", "-c", bench.root / "k.ctx", "-p", "pcr:sha256:0,16"]
    assert len(bench.tool(*unseal).stdout) == 32
    assert bench.tool("tpm2_unseal", "-c", bench.root / "k.ctx", check=False).returncode != 0
    bench.tool("tpm2_pcrextend", f"16:sha256={hashlib.sha256(b'x').hexdigest()}")
    assert bench.tool(*unseal, check=False).returncode != 0


def write_quote(bench, quote):
    """Write a quote as tpm2_checkquote reads it: statement, DER signature, and the values as tpm2_pcrread has them."""
    (bench.root / "attest").write_bytes(quote.attest)
    (bench.root / "sig").write_bytes(der(quote.signature))
    pcrs = ",".join(map(str, sorted(quote.pcrs)))
    bench.tool("tpm2_pcrread", f"sha256:{pcrs}", "-o", bench.root / "values", "-F", "values")
    return pcrs


def test_the_tool_checks_our_quote(bench):
    info = bench.store.generate("ak", KeySpec(purpose=KeyPurpose.ATTEST, algorithm=P256))
    bench.store.extend(16, hashlib.sha256(b"x").digest())
    quote = bench.store.quote("ak", NONCE, frozenset({0, 7, 16}))
    public, pcrs = bench.public_pem(info.public_key), write_quote(bench, quote)
    command = ["tpm2_checkquote", "-u", str(public), "-m", str(bench.root / "attest"), "-s", str(bench.root / "sig")]
    command += ["-f", str(bench.root / "values"), "-F", "values", "-l", f"sha256:{pcrs}", "-g", "sha256"]
    run_program([*command, "-q", NONCE.hex()])
    assert run_program([*command, "-q", "00" * 16], check=False).returncode != 0


def test_we_check_the_tools_quote(bench):
    info = bench.store.generate("ak", KeySpec(purpose=KeyPurpose.ATTEST, algorithm=P256))
    bench.load("ak")
    bench.tool(
        "tpm2_quote", "-c", bench.root / "ak.ctx", "-l", "sha256:0,7", "-q", NONCE.hex(),
        "-m", bench.root / "attest", "-s", bench.root / "sig", "-f", "plain",
    )  # fmt: skip
    r, s = utils.decode_dss_signature((bench.root / "sig").read_bytes())
    quote = Quote(
        attest=(bench.root / "attest").read_bytes(),
        signature=r.to_bytes(32, "big") + s.to_bytes(32, "big"),
        pcrs=bench.store.pcr_values(frozenset({0, 7})),
    )
    assert verify_quote(quote, key=info.public_key, nonce=NONCE, expected=quote.pcrs).pcrs == quote.pcrs


def test_an_attestation_key_signs_nothing_that_it_is_handed(bench):
    """The TPM itself refuses, whoever asks it with which program."""
    bench.store.generate("ak", KeySpec(purpose=KeyPurpose.ATTEST, algorithm=P256))
    bench.load("ak")
    forged = bench.root / "forged"
    forged.write_bytes(bytes.fromhex("ff5443478018") + bytes(60))
    sign = ["tpm2_sign", "-c", bench.root / "ak.ctx", "-g", "sha256", "-o", bench.root / "sig", forged]
    assert bench.tool(*sign, check=False).returncode != 0


def test_the_tool_reads_our_counter(bench):
    for _ in range(5):
        bench.store.counter_increment("a")
    record = cbor.decode((bench.root / "keys" / "a.counter").read_bytes(), limit_bytes=512)
    read = [
        int.from_bytes(bench.tool("tpm2_nvread", hex(index), "-C", hex(index)).stdout, "big")
        for index in (record["index"], record["index"] + 1)
    ]
    assert read[0] - read[1] == 5
    assert read[1] == record["base"]
    shown = bench.tool("tpm2_nvreadpublic", hex(record["index"])).stdout.decode()
    assert "nt=0x1" in shown
    shown = bench.tool("tpm2_nvreadpublic", hex(record["index"] + 1)).stdout.decode()
    assert "writelocked" in shown
    (bench.root / "zero").write_bytes(bytes(8))
    for index in (record["index"], record["index"] + 1):
        write = ["tpm2_nvwrite", hex(index), "-C", hex(index), "-i", bench.root / "zero"]
        assert bench.tool(*write, check=False).returncode != 0
    bench.tool("tpm2_nvincrement", hex(record["index"]), "-C", hex(record["index"]))
    assert bench.store.counter_read("a") == 6


def test_a_pin_of_ours_is_an_auth_value_of_theirs(bench):
    info = bench.store.generate("k", KeySpec(purpose=KeyPurpose.SIGN, algorithm=P256, policy=KeyPolicy(user_auth=True)))
    bench.load("k")
    (bench.root / "m").write_bytes(b"message")
    sign = ["tpm2_sign", "-c", bench.root / "k.ctx", "-g", "sha256", "-f", "plain", "-o", bench.root / "sig"]
    (bench.root / "pin").write_bytes(b"2580")
    assert bench.tool(*sign, "-p", "wrong", bench.root / "m", check=False).returncode != 0
    bench.tool(*sign, "-p", f"file:{bench.root}/pin", bench.root / "m")
    r, s = utils.decode_dss_signature((bench.root / "sig").read_bytes())
    info.public_key.verify(r.to_bytes(32, "big") + s.to_bytes(32, "big"), b"message")


def test_a_persistent_key_is_theirs_too(bench):
    bench.store.generate("k", KeySpec(purpose=KeyPurpose.SIGN, algorithm=P256))
    bench.store.persist("k", 0x81000400)
    assert "0x81000400" in bench.tool("tpm2_getcap", "handles-persistent").stdout.decode().lower()
    bench.store.destroy("k")
    assert "0x81000400" not in bench.tool("tpm2_getcap", "handles-persistent").stdout.decode().lower()


def test_over_tcp_as_well(tmp_path):
    with SwTpm(tmp_path / "tpm", tcp=True) as tpm:
        store = Tpm2KeyStore.create(tmp_path / "keys", tpm.tcti)
        info = store.generate("k", KeySpec(purpose=KeyPurpose.SIGN, algorithm=P256))
        tpm.restart()
        info.public_key.verify(store.signer("k").sign(b"m"), b"m")
        assert len(run_program(["tpm2_getrandom", "-T", tpm.tcti, "4", "--hex"]).stdout) == 8
