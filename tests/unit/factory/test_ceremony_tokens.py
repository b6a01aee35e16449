"""A ceremony that goes wrong on real tokens: what was there before stays, what it made goes."""

from __future__ import annotations

import pytest

from tidegate.base.clock import SystemClock, SystemEntropy
from tidegate.base.errors import TidegateError
from tidegate.crypto.aead import Secret
from tidegate.crypto.signing import SignatureAlgorithm
from tidegate.factory.ceremony import parse_plan
from tidegate.factory.token import CeremonyRoom, hold_ceremony
from tidegate.keys.store import KeyPolicy, KeyPurpose, KeySpec
from tidegate.keys.uri import open_store, parse_key_uri
from tidegate.testing.tokens import SoftHsm

PLAN = """
maker = "Example Maker"
token = "{first}"
backup_token = "{second}"
threshold = 2
operators = ["Alice", "Bob"]
[[keys]]
name = "policy"
algorithm = "ecdsa-p256"
backup = true
[[keys]]
name = "release"
algorithm = "ecdsa-p256"
backup = true
"""
SPEC = KeySpec(purpose=KeyPurpose.SIGN, algorithm=SignatureAlgorithm.ECDSA_P256, policy=KeyPolicy(exportable=True))


class Bench:
    def __init__(self, hsm: SoftHsm, folder) -> None:
        pins = {label: hsm.make_token(label) for label in ("maker", "backup")}
        self.uris = {
            label: f"pkcs11:token={label}?module-path={hsm.module}&pin-source={pin}" for label, pin in pins.items()
        }
        self.plan = parse_plan(
            PLAN.format(first=self.uris["maker"], second=self.uris["backup"]).encode(), name="plan.toml"
        )
        self.folder = folder

    def open(self, label: str):
        return open_store(parse_key_uri(self.uris[label]))

    def names(self, label: str) -> list[str]:
        store = self.open(label)
        try:
            return [info.name for info in store.list_keys()]
        finally:
            store.close()

    def hold(self, ask) -> None:
        room = CeremonyRoom(ask=ask, tell=lambda _: None, clock=SystemClock(), entropy=SystemEntropy())
        hold_ceremony(self.plan, self.folder / "out", room)


@pytest.fixture
def bench(tmp_path):
    with SoftHsm(tmp_path / "hsm") as hsm:
        yield Bench(hsm, tmp_path)


def test_a_key_that_the_backup_token_had_before_survives_a_ceremony_that_fails(bench) -> None:
    store = bench.open("backup")
    before = store.generate("release", SPEC).public_key
    store.close()
    with pytest.raises(TidegateError) as caught:
        bench.hold(lambda _: Secret(b"words"))
    assert caught.value.code == "keys.key.exists"
    assert bench.names("maker") == []
    assert bench.names("backup") == ["release"]
    store = bench.open("backup")
    assert store.public_key("release") == before
    store.close()


def test_a_key_that_the_first_token_had_before_survives_a_ceremony_that_fails(bench) -> None:
    store = bench.open("maker")
    store.generate("release", SPEC)
    store.close()
    with pytest.raises(TidegateError) as caught:
        bench.hold(lambda _: Secret(b"words"))
    assert caught.value.code == "keys.key.exists"
    assert bench.names("maker") == ["release"]
    assert bench.names("backup") == []


def test_a_ceremony_that_is_interrupted_leaves_no_keys(bench) -> None:
    def ask(what: str) -> Secret:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bench.hold(ask)
    assert bench.names("maker") == []
    assert bench.names("backup") == []
