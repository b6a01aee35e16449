"""OpenSC's pkcs11-tool, GnuTLS's p11tool and certtool, and OpenSSL use our objects on a token; we use theirs."""

import hashlib
import subprocess

import pytest

from tidegate.base.program import find_program
from tidegate.crypto.signing import SignatureAlgorithm
from tidegate.keys.store import KeyPurpose, KeySpec
from tidegate.keys.uri import open_store
from tidegate.testing.tokens import SoftHsm

PIN = "258036"
CURVES = {SignatureAlgorithm.ECDSA_P256: "sha256", SignatureAlgorithm.ECDSA_P384: "sha384"}


@pytest.fixture
def hsm(tmp_path):
    with SoftHsm(tmp_path / "softhsm") as helper:
        helper.make_token("one", pin=PIN)
        yield helper


@pytest.fixture
def store(hsm):
    opened = open_store(hsm.uri("one"))
    yield opened
    opened.close()


def run(hsm, program, *arguments):
    environment = {**hsm.environment, "TOOL_PIN": PIN, "GNUTLS_PIN": PIN}
    done = subprocess.run(
        [find_program(program), *arguments], env=environment, capture_output=True, stdin=subprocess.DEVNULL, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode()


def pkcs11_tool(hsm, *arguments):
    login = ["--module", str(hsm.module), "--token-label", "one", "--login", "--pin", "env:TOOL_PIN"]
    return run(hsm, "pkcs11-tool", *login, *arguments)


def p11tool(hsm, *arguments):
    return run(hsm, "p11tool", "--provider", str(hsm.module), "--login", *arguments)


def public_pem(hsm, folder):
    """Return the public half of "device" as GnuTLS reads it (OpenSC 0.23 reads no P-384 ones)."""
    path = folder / "public.pem"
    p11tool(hsm, "--export-pubkey", "--outfile", str(path), "pkcs11:token=one;object=device;type=public")
    return path


def signing(algorithm):
    return KeySpec(purpose=KeyPurpose.SIGN, algorithm=algorithm)


def test_pkcs11_tool_sees_a_key_that_cannot_leave(hsm, store):
    store.generate("device", signing(SignatureAlgorithm.ECDSA_P256))
    shown = pkcs11_tool(hsm, "--list-objects", "--type", "privkey")
    assert "label:      device" in shown
    assert "sensitive, always sensitive, never extractable, local" in shown
    assert "Usage:      sign\n" in shown


@pytest.mark.parametrize("algorithm", CURVES, ids=lambda algorithm: algorithm.label)
def test_pkcs11_tool_signs_with_our_key_and_openssl_verifies(hsm, store, tmp_path, algorithm):
    store.generate("device", signing(algorithm))
    message, digest = tmp_path / "message", tmp_path / "digest"
    message.write_bytes(b"what both sign")
    digest.write_bytes(hashlib.new(CURVES[algorithm], b"what both sign").digest())
    theirs, public = tmp_path / "theirs", public_pem(hsm, tmp_path)
    files = ["--input-file", str(digest), "--output-file", str(theirs)]
    pkcs11_tool(hsm, "--sign", "--mechanism", "ECDSA", "--label", "device", "--signature-format", "openssl", *files)
    check = ["dgst", f"-{CURVES[algorithm]}", "-verify", str(public), "-signature", str(theirs)]
    assert "Verified OK" in run(hsm, "openssl", *check, str(message))
    raw = tmp_path / "raw"
    raw.write_bytes(store.signer("device").sign(b"what both sign"))
    verify = ["--verify", "--mechanism", "ECDSA", "--label", "device", "--signature-file", str(raw)]
    assert "Signature is valid" in pkcs11_tool(hsm, *verify, "--input-file", str(digest))


def test_openssl_verifies_our_rsa_pss(hsm, store, tmp_path):
    store.generate("device", signing(SignatureAlgorithm.RSA_PSS))
    message, signature, public = tmp_path / "message", tmp_path / "signature", public_pem(hsm, tmp_path)
    message.write_bytes(b"firmware")
    signature.write_bytes(store.signer("device").sign(b"firmware"))
    padding = ["-sigopt", "rsa_padding_mode:pss", "-sigopt", "rsa_pss_saltlen:32", "-sigopt", "rsa_mgf1_md:sha256"]
    check = ["dgst", "-sha256", *padding, "-verify", str(public), "-signature", str(signature)]
    assert "Verified OK" in run(hsm, "openssl", *check, str(message))


@pytest.mark.parametrize("label", ["ecdsa-p256", "ecdsa-p384", "ed25519", "rsa-pss"])
def test_p11tool_pairs_the_halves(hsm, store, label):
    store.generate("device", signing(next(one for one in SignatureAlgorithm if one.label == label)))
    shown = p11tool(hsm, "--list-all", "pkcs11:token=one;object=device")
    assert "type=private" in shown
    assert "CKA_NEVER_EXTRACTABLE" in shown


def test_p11tool_signs_and_certtool_certifies_and_the_chain_is_found_by_the_key(hsm, store, tmp_path):
    store.generate("device", signing(SignatureAlgorithm.ECDSA_P256))
    p11tool(hsm, "--test-sign", "pkcs11:token=one;object=device")
    template, der = tmp_path / "template", tmp_path / "device.der"
    template.write_text('cn = "device"\nexpiration_days = 2\n')
    key = ["--load-privkey", "pkcs11:token=one;object=device;type=private", "--provider", str(hsm.module)]
    output = ["--template", str(template), "--outder", "--outfile", str(der)]
    run(hsm, "certtool", "--generate-self-signed", *key, *output)
    run(hsm, "openssl", "verify", "-CAfile", str(_pem(hsm, der)), str(_pem(hsm, der)))
    store.keep_certificates("device", [der.read_bytes(), b"an issuer"])
    shown = p11tool(hsm, "--list-all", "pkcs11:token=one")
    identifiers = [line.split("ID: ")[1] for line in shown.splitlines() if "ID: " in line]
    assert sorted(identifiers.count(one) for one in set(identifiers)) == [1, 3]  # an issuer; key, public half, its own
    pkcs11_tool(hsm, "--read-object", "--type", "cert", "--label", "device", "--output-file", str(tmp_path / "read"))
    assert (tmp_path / "read").read_bytes() == der.read_bytes()


def _pem(hsm, der):
    pem = der.with_suffix(".pem")
    run(hsm, "openssl", "x509", "-inform", "DER", "-in", str(der), "-out", str(pem))
    return pem


def test_a_key_of_pkcs11_tool_with_only_a_certificate_signs_here(hsm, store, tmp_path):
    pkcs11_tool(hsm, "--keypairgen", "--key-type", "EC:prime256v1", "--label", "theirs", "--id", "0a", "--usage-sign")
    template, der = tmp_path / "template", tmp_path / "theirs.der"
    template.write_text('cn = "theirs"\n')
    key = ["--load-privkey", "pkcs11:token=one;object=theirs;type=private", "--provider", str(hsm.module)]
    output = ["--template", str(template), "--outder", "--outfile", str(der)]
    run(hsm, "certtool", "--generate-self-signed", *key, *output)
    pkcs11_tool(hsm, "--write-object", str(der), "--type", "cert", "--label", "theirs", "--id", "0a")
    pkcs11_tool(hsm, "--delete-object", "--type", "pubkey", "--id", "0a")
    signer = store.signer("theirs")
    signer.public_key.verify(signer.sign(b"m"), b"m")
    assert store.certificates("theirs") == (der.read_bytes(),)
