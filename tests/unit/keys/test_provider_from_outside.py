"""A provider in another package: one file and an entry point, and the suite and the command line take it."""

from __future__ import annotations

import importlib
import sys

import pytest

from tidegate.base.errors import TidegateError
from tidegate.cli.main import main
from tidegate.keys.uri import open_store, parse_key_uri

PROVIDER = '''
"""A provider of keys as somebody else writes it: here over a software store, its secret found by itself."""

from pathlib import Path

from tidegate.keys.software import DeviceSecretUnlock, SoftwareKeyStore

URI_OPTIONS = ("slot",)


def open_uri(uri, *, create, ask):
    folder = Path(uri.location) / uri.options.get("slot", "0")
    unlock = DeviceSecretUnlock(Path(uri.location) / "secret")
    return SoftwareKeyStore.create(folder, unlock) if create else SoftwareKeyStore(folder, unlock)
'''


@pytest.fixture
def vault(tmp_path, monkeypatch):
    """Install the package into a folder of its own, as pip would."""
    site = tmp_path / "site"
    (site / "acme_keys-1.0.dist-info").mkdir(parents=True)
    (site / "acme_keys.py").write_text(PROVIDER)
    (site / "acme_keys-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-keys\nVersion: 1.0\n")
    (site / "acme_keys-1.0.dist-info" / "entry_points.txt").write_text("[tidegate.keys]\nacme = acme_keys\n")
    monkeypatch.syspath_prepend(str(site))
    importlib.invalidate_caches()
    (tmp_path / "acme").mkdir()
    secret = tmp_path / "acme" / "secret"
    secret.touch(mode=0o600)
    secret.write_bytes(bytes(32))
    yield f"acme:{tmp_path / 'acme'}"
    sys.modules.pop("acme_keys", None)


def test_it_is_found_used_and_judged(vault, capsys):
    assert main(["keys", "create-store", f"{vault}?slot=1"]) == 0
    assert main(["keys", "generate", f"{vault}?key=k&slot=1", "--algorithm", "ecdsa-p256"]) == 0
    uri = parse_key_uri(f"{vault}?key=k&slot=1")
    signer = open_store(uri).signer(uri.name)
    signer.public_key.verify(signer.sign(b"m"), b"m")


def test_the_suite_takes_it(vault, capsys):
    assert main(["keys", "create-store", vault]) == 0
    assert main(["keys", "selftest", vault]) == 0


def test_its_options_alone_are_taken(vault):
    with pytest.raises(TidegateError) as caught:
        parse_key_uri(f"{vault}?key=k&device-secret=/x")
    assert caught.value.code == "keys.uri.malformed"
