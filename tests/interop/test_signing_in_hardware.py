"""One URI changed, and the maker's classical key is in a token, a TPM or behind the key process: image, policy, CA."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tidegate.base.program import run_program
from tidegate.cli.main import main
from tidegate.testing.keyd import running_keyd
from tidegate.testing.swtpm import SwTpm
from tidegate.testing.tokens import SoftHsm

IMAGE = """
vendor = "Maker"
product = "Gateway"
hardware = ["board-r1"]
version = "1.0.0"
security_version = 2
[[payload]]
name = "stage2"
kind = "stage2"
file = "stage2"
[[payload]]
name = "rootfs"
kind = "rootfs"
file = "rootfs"
"""
KEYD = '[keyd]\nsocket = "{socket}"\nstore = "{store}"\nmode = 0o600\n[[grant]]\nuser = {uid}\nkeys = ["*"]\n'
KEYD += 'operations = ["list", "public", "generate", "sign"]\n'


def private(path: Path, text: str) -> Path:
    path.touch(mode=0o600)
    path.write_text(text)
    return path


def pkcs11(root: Path) -> Iterator[tuple[str, str]]:
    with SoftHsm(root / "hsm") as hsm:
        pin = hsm.make_token("maker")
        yield f"pkcs11:token=maker;object=classical?module-path={hsm.module}&pin-source={pin}", "ecdsa-p256"


def tpm2(root: Path) -> Iterator[tuple[str, str]]:
    with SwTpm(root / "tpm") as tpm:
        assert main(["keys", "create-store", f"tpm2:{root}/tpm-keys?tcti={tpm.tcti}"]) == 0
        yield f"tpm2:{root}/tpm-keys?key=classical&tcti={tpm.tcti}", "ecdsa-p256"


def keyd(root: Path) -> Iterator[tuple[str, str]]:
    secret = private(root / "device-secret", "s" * 32)
    store = f"file:{root}/behind?device-secret={secret}"
    assert main(["keys", "create-store", store]) == 0
    config = private(root / "keyd.toml", KEYD.format(socket=root / "keyd.sock", store=store, uid=os.getuid()))
    with running_keyd(config):
        yield f"keyd:{root}/keyd.sock?key=classical", "ecdsa-p384"


class Maker:
    def __init__(self, root: Path, hardware: tuple[str, str], capsys) -> None:
        self.root, self._capsys = root, capsys
        capsys.readouterr()  # of making the store
        secret = private(root / "secret", "x" * 32)
        software = f"file:{root}/software?device-secret={secret}"
        self.classical, algorithm = hardware
        self.quantum = f"file:{root}/software?key=quantum&device-secret={secret}"
        self.must("keys", "create-store", software)
        self.must("keys", "generate", self.classical, "--algorithm", algorithm)
        self.must("keys", "generate", self.quantum, "--algorithm", "ml-dsa-65")
        for name, key in (("classical", self.classical), ("quantum", self.quantum)):
            self.must("keys", "public", key, "-o", root / f"{name}.pub")
        self.must("keys", "anchors", root / "classical.pub", root / "quantum.pub", "-o", root / "anchors")

    def must(self, *words) -> dict:
        assert main([*map(str, words), "--json"]) == 0, self._capsys.readouterr()
        return json.loads(self._capsys.readouterr().out or "{}")

    @property
    def signing(self) -> tuple[str, ...]:
        return ("--sign", self.classical, "--sign", self.quantum)


@pytest.fixture(params=[pkcs11, tpm2, keyd], ids=["pkcs11", "tpm2", "keyd"])
def maker(request, tmp_path, capsys):
    hardware = request.param(tmp_path)
    yield Maker(tmp_path, next(hardware), capsys)
    next(hardware, None)


def test_an_image(maker):
    for name in ("stage2", "rootfs"):
        (maker.root / name).write_bytes(name.encode() * 1000)
    (maker.root / "image.toml").write_text(IMAGE)
    maker.must("image", "build", maker.root / "image.toml", *maker.signing, "-o", maker.root / "bundle")
    maker.must("image", "verify", maker.root / "bundle", "--anchors", maker.root / "anchors", "--hardware", "board-r1")


def test_a_policy(maker):
    (maker.root / "policy.toml").write_text('[policy]\nversion = 3\ndevices = ["gw-*"]\n')
    signed = maker.root / "policy.cose"
    maker.must("policy", "sign", maker.root / "policy.toml", *maker.signing, "-o", signed)
    maker.must("policy", "verify", signed, "--anchors", maker.root / "anchors", "--device", "gw-1")


def test_a_ca_and_its_event_log(maker):
    """The CA's certificate, a certificate from it, its CRL, and the checkpoints of its event log."""
    store, at = maker.root / "ca", ("--key", maker.classical, "--event-key", maker.classical)
    names = ("--organization", "Owner", "--common-name", "Root")
    maker.must("ca", "init-root", "--store", store, *at, *names)
    maker.must("ca", "crl", "--store", store, *at, "-o", maker.root / "crl.der")
    maker.must("events", "verify", store / "events", "--trust", maker.root / "classical.pub")
    root = store / "chain.pem"
    said = run_program(["openssl", "verify", "-CAfile", str(root), str(root)]).stdout.decode()
    assert said.strip().endswith("OK")
