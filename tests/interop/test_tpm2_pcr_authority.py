"""tpm2-tools and OpenSSL as device and as PCR authority: one policy, one statement, made here and used there."""

import hashlib

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import utils

from tidegate.base.program import run_program
from tidegate.crypto.signing import SignatureAlgorithm
from tidegate.keys.pcr_policy import (
    Statement,
    authority_area,
    authority_name,
    authorized_message,
    encode_statement,
    parse_statement,
    pcr_policy,
    policy_reference,
    sign_statement,
)
from tidegate.keys.software import DeviceSecretUnlock, SoftwareKeyStore
from tidegate.keys.store import KeyPolicy, KeyPurpose, KeySpec, PcrAuthority
from tidegate.keys.tpm2 import Tpm2KeyStore
from tidegate.keys.tpm2_files import parse_pem, parse_public_area
from tidegate.pki.keyadapter import library_public_key
from tidegate.testing.swtpm import SwTpm

P256 = SignatureAlgorithm.ECDSA_P256
PCRS = frozenset({7, 16})


class Bench:
    """A TPM, a store with a sealing key under an authority, and the tools."""

    def __init__(self, tpm, root):
        self.tpm, self.root = tpm, root
        (root / "secret").touch(mode=0o600)
        (root / "secret").write_bytes(bytes(32))
        self.maker = SoftwareKeyStore.create(root / "maker", DeviceSecretUnlock(root / "secret"))
        policy = KeyPolicy(exportable=True)
        self.public = self.maker.generate(
            "pcr", KeySpec(purpose=KeyPurpose.SIGN, algorithm=P256, policy=policy)
        ).public_key
        authority = PcrAuthority(key=self.public, product="box")
        self.store = Tpm2KeyStore.create(root / "keys", tpm.tcti)
        self.store.generate("k", KeySpec(purpose=KeyPurpose.SEAL, policy=KeyPolicy(pcrs=PCRS, pcr_authority=authority)))
        (root / "keys" / "statements").mkdir()

    def write(self, name, raw):
        (self.root / name).write_bytes(raw)
        return self.root / name

    def tool(self, *arguments, check=True):
        return run_program([*map(str, arguments), "-T", self.tpm.tcti], check=check)

    def empty(self):
        for kind in ("-t", "-s", "-l"):
            self.tool("tpm2_flushcontext", kind)


@pytest.fixture
def bench(tmp_path):
    with SwTpm(tmp_path / "tpm") as tpm:
        yield Bench(tpm, tmp_path)


def der(signature):
    half = len(signature) // 2
    return utils.encode_dss_signature(int.from_bytes(signature[:half], "big"), int.from_bytes(signature[half:], "big"))


def test_the_tools_open_our_key_with_our_statement(bench):
    """tpm2_loadexternal, tpm2_verifysignature, tpm2_policypcr, tpm2_policyauthorize, tpm2_unseal."""
    statement = parse_statement(sign_statement(bench.maker.signer("pcr"), "box", bench.store.pcr_values(PCRS)))
    area = authority_area(bench.public)
    public = bench.write("authority.pub", len(area).to_bytes(2, "big") + area)
    message = bench.write("message", authorized_message("box", statement.pcrs, None))
    signature = bench.write("signature", der(statement.signature))
    name, approved = bench.root / "authority.name", bench.write("approved", pcr_policy(statement.pcrs))
    session, key, ticket = bench.root / "session", bench.root / "authority.ctx", bench.root / "ticket"
    bench.store.close()
    bench.tool("tpm2_loadexternal", "-C", "o", "-u", public, "-c", key, "-n", name)
    assert name.read_bytes() == authority_name(bench.public)
    bench.tool(
        "tpm2_verifysignature", "-c", key, "-g", "sha256", "-m", message, "-s", signature, "-f", "ecdsa", "-t", ticket
    )
    bench.empty()
    bench.tool("tpm2_load", "-r", bench.root / "keys" / "k.pem", "-c", bench.root / "k.ctx")
    bench.tool("tpm2_flushcontext", "-t")

    def unseal(*, authorized):
        bench.tool("tpm2_startauthsession", "--policy-session", "-S", session)
        bench.tool("tpm2_policypcr", "-S", session, "-l", "sha256:7,16")
        digest = bench.root / "digest"
        if authorized:
            reference = bench.write("reference", policy_reference("box", PCRS, None))
            words = ["tpm2_policyauthorize", "-S", session, "-i", approved, "-q", reference, "-n", name, "-t", ticket]
            done = bench.tool(*words, "-L", digest, check=False)
            if done.returncode == 0:
                area = parse_public_area(parse_pem((bench.root / "keys" / "k.pem").read_bytes()).public)
                assert digest.read_bytes() == area.auth_policy
        done = bench.tool("tpm2_unseal", "-c", bench.root / "k.ctx", "-p", f"session:{session}", check=False)
        bench.tool("tpm2_flushcontext", session)
        bench.tool("tpm2_flushcontext", "-t")
        return done

    assert len(unseal(authorized=True).stdout) == 32
    assert unseal(authorized=False).returncode != 0
    bench.tool("tpm2_pcrextend", f"16:sha256={hashlib.sha256(b'x').hexdigest()}")
    assert unseal(authorized=True).returncode != 0


def test_openssl_is_the_authority(bench):
    """What is signed is plain ECDSA over 64 bytes: any signing service can do it."""
    values = bench.store.pcr_values(PCRS)
    with bench.maker.export_key("pcr") as private:
        key = serialization.load_der_private_key(bytes(private.view()), None)
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    assert library_public_key(bench.public) == key.public_key()
    message, private = bench.write("message", authorized_message("box", values, None)), bench.write("key.pem", pem)
    run_program(["openssl", "dgst", "-sha256", "-sign", str(private), "-out", str(bench.root / "sig"), str(message)])
    r, s = utils.decode_dss_signature((bench.root / "sig").read_bytes())
    raw = r.to_bytes(32, "big") + s.to_bytes(32, "big")
    statement = Statement(product="box", key_id=bench.public.key_id.digest, pcrs=values, signature=raw)
    bench.write("keys/statements/one", encode_statement(statement))
    assert bytes(bench.store.unseal("k", bench.store.seal("k", b"s", b""), b"").view()) == b"s"
