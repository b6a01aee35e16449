"""Keys in their hardware: what our stores add to the bare libraries, beside the vendors' and distributions' tools.

Each provider has a function that returns its rows; ``run`` asks all of them. A provider's emulator (SoftHSM, swtpm) is
no hardware: the figures say what our code costs, not what a token can do.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.machine import row
from tidegate.base.program import find_program
from tidegate.crypto.signing import SignatureAlgorithm
from tidegate.keys.store import KeyPurpose, KeySpec, KeyStore
from tidegate.keys.uri import open_store, parse_key_uri
from tidegate.testing.swtpm import SwTpm
from tidegate.testing.tokens import SoftHsm

SIGNATURES = 3_000
SEALS = 2_000
OPENINGS = 20
TPM_USES = 400
REPEATS = 3  # the best of them: the others measured the neighbours
_PIN = "258036"
_MESSAGE = bytes(32)


def run() -> list[dict[str, Any]]:
    """Return the figures of every provider; the peers run on the same machine in the same minute."""
    return [*_pkcs11(), *_tpm2()]


def per_second(call: Callable[[], object], count: int) -> float:
    """Return how often ``call`` is done in a second, the best of a few rounds of ``count``."""
    best = 0.0
    for _ in range(REPEATS):
        start = time.perf_counter()
        for _ in range(count):
            call()
        best = max(best, count / (time.perf_counter() - start))
    return best


def make_keys(store: KeyStore) -> None:
    """Make ``ecdsa-p256`` and ``seal`` in an empty store."""
    store.generate("ecdsa-p256", KeySpec(purpose=KeyPurpose.SIGN, algorithm=SignatureAlgorithm.ECDSA_P256))
    store.generate("seal", KeySpec(purpose=KeyPurpose.SEAL))


def _pkcs11() -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as place, SoftHsm(Path(place) / "softhsm") as hsm:
        hsm.make_token("bench", pin=_PIN)
        uri = hsm.uri("bench")
        store = open_store(uri)
        make_keys(store)
        signer = store.signer("ecdsa-p256")
        signing = per_second(lambda: signer.sign(_MESSAGE), SIGNATURES)
        sealing = per_second(lambda: store.seal("seal", _MESSAGE, b"context"), SEALS)
        store.close()

        def open_and_sign() -> None:
            opened = open_store(uri)
            opened.signer("ecdsa-p256").sign(_MESSAGE)
            opened.close()

        opening = per_second(open_and_sign, OPENINGS)
        tool = per_second(lambda: _tool_signs(hsm, Path(place)), OPENINGS)
        bare_signing, bare_sealing = _bare_pkcs11(hsm)
    bare = "python-pkcs11 by itself, one session"
    return [
        row("PKCS#11 (SoftHSM) P-256 signatures", signing, "1/s", peer=bare, peer_value=bare_signing, higher=True),
        row("PKCS#11 (SoftHSM) seal 32 bytes", sealing, "1/s", peer=bare, peer_value=bare_sealing, higher=True),
        row(
            "PKCS#11 (SoftHSM) log in, find, prove, sign, log out",
            opening,
            "1/s",
            peer="pkcs11-tool --sign, a process for each: it signs once a session",
            peer_value=tool,
            higher=True,
        ),
    ]


def _tool_signs(hsm: SoftHsm, folder: Path) -> None:
    digest = folder / "digest"
    digest.write_bytes(hashlib.sha256(_MESSAGE).digest())
    tool = [find_program("pkcs11-tool"), "--module", str(hsm.module), "--token-label", "bench", "--login"]
    key = ["--pin", "env:BENCH_PIN", "--sign", "--mechanism", "ECDSA", "--label", "ecdsa-p256"]
    files = ["--input-file", str(digest), "--output-file", str(folder / "signature")]
    subprocess.run(
        [*tool, *key, *files],
        env={**hsm.environment, "BENCH_PIN": _PIN},
        check=True,
        capture_output=True,
    )


def _bare_pkcs11(hsm: SoftHsm) -> tuple[float, float]:
    """Return signatures and sealings a second by the library that we build on, in one session, without our checks."""
    import pkcs11

    library = pkcs11.lib(str(hsm.module.resolve()))
    token = next(one for one in library.get_tokens() if one.label == "bench")
    with token.open(user_pin=_PIN) as session:
        keys: dict[str, Any] = {
            name: session.get_key(object_class=kind, label=name)
            for name, kind in (
                ("ecdsa-p256", pkcs11.ObjectClass.PRIVATE_KEY),
                ("seal", pkcs11.ObjectClass.SECRET_KEY),
            )
        }
        mechanism = pkcs11.Mechanism

        def sign() -> None:
            keys["ecdsa-p256"].sign(hashlib.sha256(_MESSAGE).digest(), mechanism=mechanism.ECDSA)

        def seal() -> None:
            parameters = pkcs11.GCMParams(os.urandom(12), b"context", 128)
            keys["seal"].encrypt(_MESSAGE, mechanism=mechanism.AES_GCM, mechanism_param=parameters)

        return per_second(sign, SIGNATURES), per_second(seal, SEALS)


def _tpm2() -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as place, SwTpm(Path(place) / "tpm") as tpm:
        folder = Path(place)
        store = open_store(parse_key_uri(f"tpm2:{folder}/keys?tcti={tpm.tcti}"), create=True)
        make_keys(store)
        store.generate("ak", KeySpec(purpose=KeyPurpose.ATTEST, algorithm=SignatureAlgorithm.ECDSA_P256))
        signer, sealed = store.signer("ecdsa-p256"), store.seal("seal", _MESSAGE, b"context")
        pcrs = frozenset({0, 7})
        ours = [
            per_second(lambda: signer.sign(_MESSAGE), TPM_USES),
            per_second(lambda: store.unseal("seal", sealed, b"context"), TPM_USES),
            per_second(lambda: store.quote("ak", bytes(16), pcrs), TPM_USES),
            per_second(lambda: store.counter_increment("bench"), TPM_USES),
        ]
        peers = [per_second(use, OPENINGS) for use in _tpm2_tools(tpm, folder)]
        bare = _bare_tpm2(tpm, folder)
    names = ["P-256 signatures", "unseal 32 bytes", "quote of two registers", "increment a counter"]
    tools = ["tpm2_sign", "tpm2_unseal", "tpm2_quote", "tpm2_nvincrement"]
    rows = [
        row(f"TPM (swtpm) {name}", our, "1/s", peer=f"{tool}, a process for each", peer_value=peer, higher=True)
        for name, tool, our, peer in zip(names, tools, ours, peers, strict=True)
    ]
    by_itself = "tpm2-pytss by itself, the key loaded all the time"
    rows.append(row("TPM (swtpm) P-256 signatures", ours[0], "1/s", peer=by_itself, peer_value=bare, higher=True))
    return rows


def _tpm2_tools(tpm: SwTpm, folder: Path) -> list[Callable[[], object]]:
    """Return uses of tpm2-tools against the same TPM, with our keys made persistent: what is fastest for them."""

    def run_tool(*arguments: str) -> None:
        command = [find_program(arguments[0]), *arguments[1:], "-T", tpm.tcti]
        subprocess.run(command, check=True, capture_output=True)

    digest, index, out = folder / "digest", "0x1500ff0", str(folder / "out")
    digest.write_bytes(hashlib.sha256(_MESSAGE).digest())
    handles = {"ecdsa-p256": "0x81000500", "ak": "0x81000501", "seal": "0x81000502"}
    for name, handle in handles.items():
        run_tool("tpm2_load", "-r", f"{folder}/keys/{name}.pem", "-c", out)
        run_tool("tpm2_flushcontext", "-t")
        run_tool("tpm2_evictcontrol", "-c", out, handle)
        run_tool("tpm2_flushcontext", "-t")
    run_tool("tpm2_nvdefine", index, "-a", "nt=counter|authread|authwrite|no_da")
    sign = ("tpm2_sign", "-c", handles["ecdsa-p256"], "-g", "sha256", "-d", "-f", "plain", "-o", out, str(digest))
    return [
        lambda: run_tool(*sign),
        lambda: run_tool("tpm2_unseal", "-c", handles["seal"], "-o", out),
        lambda: run_tool("tpm2_quote", "-c", handles["ak"], "-l", "sha256:0,7", "-q", "00" * 16, "-m", out, "-s", out),
        lambda: run_tool("tpm2_nvincrement", index, "-C", index),
    ]


def _bare_tpm2(tpm: SwTpm, folder: Path) -> float:
    """Return signatures a second by the library that we build on, with one key loaded once, without our checks."""
    from tidegate.keys.tpm2_device import tss

    key = importlib.import_module("tpm2_pytss.tsskey").TSSPrivKey.from_pem(
        (folder / "keys/ecdsa-p256.pem").read_bytes()
    )
    details = tss.TPMU_SIG_SCHEME(ecdsa=tss.TPMS_SCHEME_HASH(hashAlg=tss.TPM2_ALG.SHA256))
    scheme = tss.TPMT_SIG_SCHEME(scheme=tss.TPM2_ALG.ECDSA, details=details)
    ticket = tss.TPMT_TK_HASHCHECK(tag=tss.TPM2_ST.HASHCHECK, hierarchy=tss.TPM2_RH.NULL)
    with tss.ESAPI(tpm.tcti) as esys:
        handle = key.load(esys)

        def sign() -> None:
            esys.sign(handle, tss.TPM2B_DIGEST(hashlib.sha256(_MESSAGE).digest()), scheme, ticket)

        done = per_second(sign, TPM_USES)
        esys.flush_context(handle)
    return done


if __name__ == "__main__":
    print(json.dumps(run(), indent=2))
