"""Verbs of ``tidegate keys`` that use a key: sign, certificates, counters, random, quotes, transfer, self-test."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from tidegate.cli.main import add_verb
from tidegate.cli.output import Output

if TYPE_CHECKING:
    from tidegate.crypto.aead import Secret
    from tidegate.keys.store import Quote

_MAX_SIGNED_BYTES = 1 << 26  # signed in one piece; what is larger is signed by its digest in a manifest
_MAX_SIGNATURE_BYTES = 8192
_MAX_QUOTE_BYTES = 8192  # 24 registers and two signatures' worth
_QUOTE_FORMAT = "tidegate.quote.v1"


def build(verbs: argparse._SubParsersAction[argparse.ArgumentParser], *, key: str, store: str) -> None:
    """Add the verbs."""
    sign = add_verb(verbs, "sign", "sign a file: the raw signature goes into a file of its own")
    sign.add_argument("key", help=key)
    sign.add_argument("file", type=Path, help="file to sign")
    sign.add_argument("-o", "--output", type=Path, required=True, help="file to write the raw signature to")
    sign.set_defaults(run=sign_file)
    verify = add_verb(verbs, "verify", "verify the raw signature of a file")
    verify.add_argument("file", type=Path, help="file that was signed")
    verify.add_argument("signature", type=Path, help="file with the raw signature")
    verify.add_argument("--public", type=Path, required=True, help="public key (tidegate keys public)")
    verify.set_defaults(run=verify_file)
    chain = add_verb(verbs, "certificates", "show the certificates kept beside a key, or keep others there")
    chain.add_argument("key", help=key)
    chain.add_argument("--keep", type=Path, help="PEM file with a chain to keep, the key's own certificate first")
    chain.add_argument("-o", "--output", type=Path, help="file to write the chain to, in PEM")
    chain.set_defaults(run=certificates)
    counter = add_verb(verbs, "counter", "read a counter of a provider, or add one to it")
    counter.add_argument("counter", help="like a key's URI; the name is the counter's")
    counter.add_argument("--increment", action="store_true", help="add one first; nothing takes it away again")
    counter.set_defaults(run=count)
    random = add_verb(verbs, "random", "print bytes of the provider's own generator, in hexadecimal")
    random.add_argument("store", help=store)
    random.add_argument("count", type=int, help="how many, 1 to 4096")
    random.set_defaults(run=random_bytes)
    _build_transfer(verbs, key)
    _build_quotes(verbs, key)
    selftest = add_verb(verbs, "selftest", "run the conformance suite of providers against a store")
    selftest.add_argument("store", help=f"{store}; keys named selftest-… are made in it and destroyed")
    selftest.set_defaults(run=run_selftest)


def _build_transfer(verbs: argparse._SubParsersAction[argparse.ArgumentParser], key: str) -> None:
    export = add_verb(verbs, "export", "write the private half of an exportable key to a private file")
    export.add_argument("key", help=key)
    export.add_argument("-o", "--output", type=Path, required=True, help="new file to write (PKCS#8 in PEM, mode 600)")
    how = export.add_mutually_exclusive_group()
    how.add_argument("--passphrase-file", help="private file (or /dev/fd/N) with the passphrase; asked without")
    how.add_argument("--unencrypted", action="store_true", help="write it without a passphrase")
    export.set_defaults(run=export_private)
    bring = add_verb(verbs, "import", "take a private key from a private PKCS#8 file; it counts as exportable for ever")
    bring.add_argument("key", help=key)
    bring.add_argument("file", type=Path, help="PEM or DER file, mode 600; destroy it afterwards")
    bring.add_argument("--passphrase-file", help="private file (or /dev/fd/N) with the passphrase; asked without")
    bring.set_defaults(run=import_private)


def _build_quotes(verbs: argparse._SubParsersAction[argparse.ArgumentParser], key: str) -> None:
    quote = add_verb(verbs, "quote", "have the platform's measurements signed by an attestation key (TPM)")
    quote.add_argument("key", help=key)
    quote.add_argument("--nonce", required=True, help="the verifier's nonce, 8 to 32 bytes in hexadecimal")
    quote.add_argument("--pcrs", required=True, help="registers, e.g. 0,2,7")
    quote.add_argument("-o", "--output", type=Path, required=True, help="file to write")
    quote.set_defaults(run=make_quote)
    check = add_verb(verbs, "verify-quote", "verify a quote and print the registers it vouches for")
    check.add_argument("quote", type=Path, help="file of tidegate keys quote")
    check.add_argument("--public", type=Path, required=True, help="the attestation key's public half")
    check.add_argument("--nonce", required=True, help="the nonce that was asked with, in hexadecimal")
    check.add_argument(
        "--expect", action="append", default=[], help="PCR=HEX that has to hold; repeat it; without, judge yourself"
    )
    check.set_defaults(run=check_quote)


def sign_file(arguments: argparse.Namespace, output: Output) -> int:
    """Sign one file."""
    from tidegate.base.durable import read_file_bounded, write_file_atomic
    from tidegate.cli.keyuri import open_key

    message = read_file_bounded(arguments.file, limit_bytes=_MAX_SIGNED_BYTES)
    signer = open_key(arguments.key)
    signature = signer.sign(message)
    write_file_atomic(arguments.output, signature)
    public = signer.public_key
    output.line(f"wrote {arguments.output}: {public.algorithm.label}, key id {public.key_id}")
    output.result(
        {"file": str(arguments.output), "algorithm": public.algorithm.label, "key_id": str(public.key_id)},
    )
    return 0


def verify_file(arguments: argparse.Namespace, output: Output) -> int:
    """Verify one signature."""
    from tidegate.base.durable import read_file_bounded
    from tidegate.crypto.signing import MAX_PUBLIC_KEY_BYTES, parse_public_key

    public = parse_public_key(read_file_bounded(arguments.public, limit_bytes=MAX_PUBLIC_KEY_BYTES))
    signature = read_file_bounded(arguments.signature, limit_bytes=_MAX_SIGNATURE_BYTES)
    public.verify(signature, read_file_bounded(arguments.file, limit_bytes=_MAX_SIGNED_BYTES))
    output.line(f"the signature is that of key {public.key_id}")
    output.result({"verified": True, "key_id": str(public.key_id)})
    return 0


def certificates(arguments: argparse.Namespace, output: Output) -> int:
    """Keep or show a chain."""
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import Encoding

    from tidegate.base.durable import read_file_bounded, write_file_atomic
    from tidegate.cli.keyuri import open_keys
    from tidegate.pki.certificate import MAX_PEM_BYTES, encode_pem, parse_pem_chain
    from tidegate.pki.errors import CertificateMalformed
    from tidegate.pki.keyadapter import public_key_of

    store, name = open_keys(arguments.key)
    if arguments.keep is not None:
        given = parse_pem_chain(read_file_bounded(arguments.keep, limit_bytes=MAX_PEM_BYTES))
        if public_key_of(given[0].public_key()) != store.public_key(name):
            raise CertificateMalformed(f"the first certificate in {arguments.keep} is of another key than {name!r}")
        store.keep_certificates(name, [one.public_bytes(Encoding.DER) for one in given])
    try:
        chain = [x509.load_der_x509_certificate(one) for one in store.certificates(name)]
    except ValueError as error:
        raise CertificateMalformed(f"what is kept beside {name!r} is no certificate: {error}") from error
    if arguments.output is not None:
        write_file_atomic(arguments.output, encode_pem(*chain))
    rows = [
        (one.subject.rfc4514_string(), one.issuer.rfc4514_string(), one.not_valid_after_utc.isoformat())
        for one in chain
    ]
    output.table(("subject", "issuer", "until"), rows)
    output.result({"certificates": [dict(zip(("subject", "issuer", "until"), row, strict=True)) for row in rows]})
    return 0


def count(arguments: argparse.Namespace, output: Output) -> int:
    """Read or increment a counter."""
    from tidegate.cli.keyuri import open_keys

    store, name = open_keys(arguments.counter)
    value = store.counter_increment(name) if arguments.increment else store.counter_read(name)
    output.line(str(value))
    output.result({"counter": name, "value": value})
    return 0


def random_bytes(arguments: argparse.Namespace, output: Output) -> int:
    """Print random bytes."""
    from tidegate.cli.keyuri import open_keys

    text = open_keys(arguments.store)[0].random(arguments.count).hex()
    output.line(text)
    output.result({"random": text})
    return 0


def export_private(arguments: argparse.Namespace, output: Output) -> int:
    """Write a private key, encrypted by a passphrase unless it is said otherwise."""
    from cryptography.hazmat.primitives import serialization

    from tidegate.base.durable import write_file_new
    from tidegate.cli.keyuri import ask_twice, open_keys
    from tidegate.keys.errors import KeyExists
    from tidegate.keys.uri import read_pin

    if arguments.output.exists():
        raise KeyExists(f"{arguments.output} is there already")
    store, name = open_keys(arguments.key)
    with store.export_key(name) as private:
        key = serialization.load_der_private_key(bytes(private.view()), password=None)
        encryption: serialization.KeySerializationEncryption = serialization.NoEncryption()
        if not arguments.unencrypted:
            with read_pin(arguments.passphrase_file, ask_twice, "the passphrase of the file") as passphrase:
                encryption = serialization.BestAvailableEncryption(bytes(passphrase.view()))
        pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)
    try:
        write_file_new(arguments.output, pem, mode=0o600)
    except FileExistsError as error:
        raise KeyExists(f"{arguments.output} is there already") from error
    output.line(f"wrote {arguments.output}: the private half of {name}; whoever opens it has the key")
    output.result({"file": str(arguments.output), "key": name, "encrypted": not arguments.unencrypted})
    return 0


def import_private(arguments: argparse.Namespace, output: Output) -> int:
    """Take a private key from a file."""
    from tidegate.cli.keyuri import open_keys
    from tidegate.keys.software_keys import parse_pkcs8
    from tidegate.keys.store import KeyPolicy, KeyPurpose, KeySpec

    with _read_private(arguments.file, arguments.passphrase_file) as private:
        algorithm = parse_pkcs8(bytes(private.view()))[1].algorithm
        store, name = open_keys(arguments.key)
        spec = KeySpec(purpose=KeyPurpose.SIGN, algorithm=algorithm, policy=KeyPolicy(exportable=True))
        info = store.import_key(name, private.view(), spec)
    key_id = str(info.public_key.key_id) if info.public_key else None
    output.line(f"imported {name} ({algorithm.label}), key id {key_id}; destroy {arguments.file}")
    output.result({"name": name, "algorithm": algorithm.label, "key_id": key_id})
    return 0


def _read_private(path: Path, passphrase_file: str | None) -> Secret:
    """Return the PKCS#8 DER of a private file in PEM or DER, decrypted."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization

    from tidegate.base.durable import read_file_bounded, require_private
    from tidegate.cli.keyuri import ask_on_terminal
    from tidegate.crypto.aead import Secret
    from tidegate.keys.errors import ImportRefused
    from tidegate.keys.software_keys import MAX_PKCS8_BYTES
    from tidegate.keys.uri import read_pin

    require_private(path)
    raw = read_file_bounded(path, limit_bytes=2 * MAX_PKCS8_BYTES)
    load = serialization.load_pem_private_key if raw.startswith(b"-----") else serialization.load_der_private_key
    password: bytes | None = None
    if b"-----BEGIN ENCRYPTED" in raw or passphrase_file is not None:
        with read_pin(passphrase_file, ask_on_terminal, f"the passphrase of {path}") as passphrase:
            password = bytes(passphrase.view())
    try:
        key = load(raw, password)
    except (ValueError, TypeError, UnsupportedAlgorithm):  # cause suppressed: libraries quote what they could not read
        raise ImportRefused(f"{path} is no private key in PKCS#8 that this passphrase opens", path=str(path)) from None
    return Secret(
        key.private_bytes(serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )


def make_quote(arguments: argparse.Namespace, output: Output) -> int:
    """Have the platform vouch for its registers."""
    from tidegate.base.durable import write_file_atomic
    from tidegate.cli.keyuri import open_keys
    from tidegate.crypto import cbor

    store, name = open_keys(arguments.key)
    quote = store.quote(name, _hex(arguments.nonce, "nonce"), parse_pcrs(arguments.pcrs))
    document = {
        "format": _QUOTE_FORMAT,
        "attest": quote.attest,
        "signature": quote.signature,
        "pcrs": dict(quote.pcrs),
    }
    write_file_atomic(arguments.output, cbor.encode(document))
    _show_registers(quote.pcrs, output)
    output.result({"file": str(arguments.output), "pcrs": {pcr: value.hex() for pcr, value in quote.pcrs.items()}})
    return 0


def check_quote(arguments: argparse.Namespace, output: Output) -> int:
    """Verify a quote."""
    from tidegate.base.durable import read_file_bounded
    from tidegate.crypto.signing import MAX_PUBLIC_KEY_BYTES, parse_public_key
    from tidegate.keys.attest import verify_quote
    from tidegate.keys.errors import QuoteInvalid

    public = parse_public_key(read_file_bounded(arguments.public, limit_bytes=MAX_PUBLIC_KEY_BYTES))
    quote = _parse_quote(read_file_bounded(arguments.quote, limit_bytes=_MAX_QUOTE_BYTES))
    expected: dict[int, bytes] = {}
    for text in arguments.expect:
        pcr, _, value = text.partition("=")
        if not pcr.isdecimal() or min(parse_pcrs(pcr)) in expected:
            raise QuoteInvalid(f"--expect takes one register and its value, each once, not {text[:80]!r}", check="pcrs")
        expected[min(parse_pcrs(pcr))] = _hex(value, "register value")
    nonce = _hex(arguments.nonce, "nonce")
    verified = verify_quote(quote, key=public, nonce=nonce, expected=expected or None)
    _show_registers(verified.pcrs, output)
    output.result({"verified": True, "pcrs": {pcr: value.hex() for pcr, value in verified.pcrs.items()}})
    return 0


def _parse_quote(raw: bytes) -> Quote:
    from tidegate.base.errors import Rejected
    from tidegate.crypto import cbor
    from tidegate.keys.errors import QuoteInvalid
    from tidegate.keys.store import Quote

    try:
        document = cbor.decode(raw, limit_bytes=_MAX_QUOTE_BYTES)
    except Rejected as error:
        raise QuoteInvalid(f"the file holds no quote: {error.message}", check="format") from error
    if not isinstance(document, dict) or len(document) != 4:
        raise QuoteInvalid("the file holds no quote of this version", check="format")
    match document:
        case {
            "format": str() as form,
            "attest": bytes() as attest,
            "signature": bytes() as signature,
            "pcrs": dict() as told,
        }:
            pcrs = {pcr: value for pcr, value in told.items() if isinstance(pcr, int) and isinstance(value, bytes)}
            if form == _QUOTE_FORMAT and len(pcrs) == len(told):
                return Quote(attest=attest, signature=signature, pcrs=pcrs)
    raise QuoteInvalid("the file holds no quote of this version", check="format")


def _show_registers(pcrs: dict[int, bytes], output: Output) -> None:
    output.table(("PCR", "SHA-256 bank"), [(pcr, pcrs[pcr].hex()) for pcr in sorted(pcrs)])


def run_selftest(arguments: argparse.Namespace, output: Output) -> int:
    """Judge a provider; the exit code is 1 if a test failed."""
    from tidegate.base.errors import TidegateError
    from tidegate.cli.keyuri import ask_on_terminal
    from tidegate.crypto.aead import Secret
    from tidegate.keys.store import KeyStore
    from tidegate.keys.uri import open_store, parse_key_uri
    from tidegate.testing.keystores import KeyStoreConformance, run_conformance

    uri = parse_key_uri(arguments.store)
    answers: dict[str, Secret] = {}

    def ask(what: str) -> Secret:  # once a question: the suite opens the store many times
        if what not in answers:
            answers[what] = ask_on_terminal(what)
        return Secret(bytes(answers[what].view()))

    class Suite(KeyStoreConformance):
        """The suite over the store of the URI."""

        def make_store(self) -> KeyStore:
            return open_store(uri, ask=ask)

        def reopen(self, store: KeyStore) -> KeyStore:  # noqa: ARG002  # the suite's form
            return open_store(uri, ask=ask)

    suite = Suite()
    suite.make_store().close()  # a store that does not open is an error of its own, not a row of the table
    outcomes = run_conformance(suite, tell=lambda one: output.progress(f"{one.verdict}: {one.test}"))
    store = suite.make_store()
    for name in suite.made:
        try:
            store.destroy(name)
        except TidegateError as error:
            if error.code != "keys.key.missing":
                output.line(f"could not destroy {name}: {error.message} [{error.code}]")
    output.progress("")
    output.table(("verdict", "test", "why"), [(one.verdict, one.test, one.why) for one in outcomes])
    failed = [one.test for one in outcomes if one.verdict == "failed"]
    output.result(
        {
            "provider": store.capabilities().provider,
            "failed": failed,
            "tests": [{"test": one.test, "verdict": one.verdict, "why": one.why} for one in outcomes],
        }
    )
    return 1 if failed else 0


def parse_pcrs(text: str) -> frozenset[int]:
    """Return the registers that a list like ``0,2,7`` names, or raise ``keys.capability.missing``."""
    from tidegate.keys.errors import CapabilityMissing
    from tidegate.keys.store import MAX_PCR

    words = text.split(",")
    if not all(word.isdecimal() and word.isascii() and len(word) <= 2 and int(word) <= MAX_PCR for word in words):
        raise CapabilityMissing(f"registers are numbers from 0 to {MAX_PCR} with commas between, not {text[:40]!r}")
    return frozenset(int(word) for word in words)


def _hex(text: str, what: str) -> bytes:
    from tidegate.keys.errors import QuoteInvalid

    try:
        return bytes.fromhex(text)
    except ValueError as error:
        raise QuoteInvalid(f"the {what} is not written in hexadecimal", check=what) from error
