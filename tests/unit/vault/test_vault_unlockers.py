"""What opens a vault: k of n, escrow, several slots, keys that are given up; Shamir's division."""

import itertools
import shutil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tidegate.base.errors import Rejected, TidegateError
from tidegate.crypto.aead import Secret
from tidegate.crypto.memory import ProtectedSecret
from tidegate.crypto.shamir import join_shares, split_secret
from tidegate.keys.software import Argon2Cost, DeviceSecretUnlock, SoftwareKeyStore
from tidegate.keys.store import KeyPurpose, KeySpec
from tidegate.vault.escrow import (
    EscrowUnlocker,
    fingerprint,
    read_escrow_private,
    read_escrow_public,
    write_escrow_pair,
)
from tidegate.vault.keyring import read_slots
from tidegate.vault.record import MAX_SLOTS
from tidegate.vault.rotation import is_pending, rekey
from tidegate.vault.store import Vault
from tidegate.vault.threshold import ThresholdUnlocker
from tidegate.vault.unlockers import KeyStoreUnlocker, PassphraseUnlocker

FAST = Argon2Cost(memory_kib=64, iterations=1, lanes=1)


def by_passphrase(text):
    return PassphraseUnlocker(Secret(text), cost=FAST)


@pytest.fixture
def vault(tmp_path):
    with Vault.create(tmp_path / "vault", by_passphrase(b"first"), label="owner") as vault:
        vault.write("a", b"secret")
        yield vault


@pytest.fixture
def keys(tmp_path):
    secret = tmp_path / "device-secret"
    secret.touch(mode=0o600)
    secret.write_bytes(bytes(32))
    store = SoftwareKeyStore.create(tmp_path / "keys", DeviceSecretUnlock(secret))
    store.generate("vault", KeySpec(purpose=KeyPurpose.SEAL))
    return store


def opens(folder, unlocker):
    try:
        with Vault.open(folder, unlocker) as vault:
            return vault.read("a") == b"secret"
    except TidegateError as error:
        return error.code


# -- shares -----------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(secret=st.binary(min_size=1, max_size=40), need=st.integers(1, 6), more=st.integers(0, 4), data=st.data())
def test_any_k_shares_give_the_secret_and_fewer_do_not(secret, need, more, data):
    coefficients = data.draw(st.binary(min_size=(need - 1) * len(secret), max_size=(need - 1) * len(secret)))
    shares = split_secret(Secret(secret), need=need, count=need + more, coefficients=Secret(coefficients))
    chosen = data.draw(st.permutations(shares))[:need]
    assert bytes(join_shares(chosen).view()) == secret
    assert len({bytes(share.view())[0] for share in shares}) == need + more


def test_one_share_too_few_fits_every_secret():
    """For each byte that the secret might be there is a polynomial through the shares that one has."""
    seen = {
        (bytes(share.view()), secret)
        for secret in range(256)
        for coefficient in range(256)
        for share in split_secret(
            Secret(bytes([secret])), need=2, count=1 + 1, coefficients=Secret(bytes([coefficient]))
        )[:1]
    }
    assert len({secret for share, secret in seen if share == bytes([1, 77])}) == 256


@pytest.mark.parametrize(
    "shares",
    [[], [b"\1a", b"\1b"], [b"\0a"], [b"\1a", b"\2ab"], [b"\1"]],
    ids=["none", "twice", "zero", "size", "empty"],
)
def test_shares_that_do_not_belong_together(shares):
    with pytest.raises(Rejected) as caught:
        join_shares([Secret(share) for share in shares])
    assert caught.value.code == "crypto.shares.malformed"


# -- slots ------------------------------------------------------------------------------------------------------------


def test_each_of_several_unlockers_opens(vault, keys):
    vault.add_unlocker(KeyStoreUnlocker(keys, "vault"), label="device")
    vault.add_unlocker(by_passphrase(b"second"))
    vault.close()
    assert opens(vault.folder, by_passphrase(b"first")) is True
    assert opens(vault.folder, by_passphrase(b"second")) is True
    assert opens(vault.folder, KeyStoreUnlocker(keys, "vault")) is True
    assert opens(vault.folder, by_passphrase(b"third")) == "vault.unlock.refused"
    assert [(slot.number, slot.kind, slot.label) for slot in read_slots(vault.folder).slots] == [
        (1, "passphrase", "owner"),
        (2, "keystore", "device"),
        (3, "passphrase", ""),
    ]


def test_the_counter_counts_from_the_slot_that_has_one_and_changes_by_others_do_not_lock_it_out(vault, keys, tmp_path):
    counting = KeyStoreUnlocker(keys, "vault")
    vault.add_unlocker(counting)
    vault.write("b", b"1")
    vault.close()
    with Vault.open(vault.folder, by_passphrase(b"first")) as other:  # does not count
        other.write("b", b"2")
    with Vault.open(vault.folder, counting) as again:
        assert again.read("b") == b"2"
        shutil.copytree(vault.folder, tmp_path / "copy")
        again.write("b", b"3")
    shutil.rmtree(vault.folder)
    (tmp_path / "copy").rename(vault.folder)
    assert opens(vault.folder, counting) == "vault.manifest.rollback"


@pytest.mark.parametrize("given", list(itertools.combinations([b"a", b"b", b"c"], 2)))
def test_two_of_three(vault, given):
    vault.add_unlocker(ThresholdUnlocker(2, [by_passphrase(text) for text in (b"a", b"b", b"c")]))
    vault.close()
    assert opens(vault.folder, ThresholdUnlocker(2, [by_passphrase(text) for text in given])) is True
    assert opens(vault.folder, ThresholdUnlocker(2, [by_passphrase(given[0])])) == "vault.unlock.threshold"
    wrong = ThresholdUnlocker(2, [by_passphrase(given[0]), by_passphrase(b"x")])
    assert opens(vault.folder, wrong) == "vault.unlock.threshold"


def test_shares_of_different_sorts(vault, keys):
    vault.add_unlocker(ThresholdUnlocker(2, [KeyStoreUnlocker(keys, "vault"), by_passphrase(b"a")]))
    vault.close()
    assert opens(vault.folder, ThresholdUnlocker(2, [by_passphrase(b"a"), KeyStoreUnlocker(keys, "vault")])) is True


def test_escrow(vault, tmp_path):
    said = write_escrow_pair(tmp_path / "private", tmp_path / "public")
    public = read_escrow_public(tmp_path / "public")
    assert said == fingerprint(public)
    assert (tmp_path / "private").stat().st_mode & 0o777 == 0o600
    vault.add_unlocker(EscrowUnlocker(public=public))
    rekey(vault)  # the private half is not here, and it still opens afterwards
    vault.close()
    assert opens(vault.folder, EscrowUnlocker(seed=read_escrow_private(tmp_path / "private"))) is True
    assert opens(vault.folder, EscrowUnlocker(public=public)) == "vault.escrow.offline"
    assert opens(vault.folder, EscrowUnlocker(seed=ProtectedSecret.random(32))) == "vault.unlock.refused"


@pytest.mark.parametrize("read", [read_escrow_private, read_escrow_public])
@pytest.mark.parametrize("text", ["", "tidegate-escrow-public:????", "TIDEGATE-ESCROW-PRIVATE:AAAA", "age1..."])
def test_escrow_file_is_refused(tmp_path, read, text):
    (tmp_path / "key").write_text(text)
    with pytest.raises(Rejected) as caught:
        read(tmp_path / "key")
    assert caught.value.code == "vault.escrow.malformed"


def test_a_removed_unlocker_opens_nothing_even_with_the_old_record(vault, tmp_path):
    vault.add_unlocker(by_passphrase(b"second"))
    old = (vault.folder / "vault.cbor").read_bytes()
    vault.remove_unlocker(1)
    rekey(vault)
    vault.close()
    assert opens(vault.folder, by_passphrase(b"first")) == "vault.unlock.refused"
    assert opens(vault.folder, by_passphrase(b"second")) is True
    (vault.folder / "vault.cbor").write_bytes(old)
    assert opens(vault.folder, by_passphrase(b"first")) == "vault.manifest.altered"  # it has the old epoch's key alone


def test_an_old_record_of_the_same_epoch_is_refused(vault):
    vault.add_unlocker(by_passphrase(b"second"))
    old = (vault.folder / "vault.cbor").read_bytes()
    vault.remove_unlocker(2)
    vault.close()
    (vault.folder / "vault.cbor").write_bytes(old)
    assert opens(vault.folder, by_passphrase(b"first")) == "vault.record.rollback"


@pytest.mark.parametrize(("number", "code"), [(7, "vault.unlockers.unknown"), (1, "vault.unlockers.last")])
def test_what_can_not_be_removed(vault, number, code):
    with pytest.raises(TidegateError) as caught:
        vault.remove_unlocker(number)
    assert caught.value.code == code


def test_slots_are_limited(vault):
    for _ in range(MAX_SLOTS - 1):
        vault.add_unlocker(by_passphrase(b"x"))
    with pytest.raises(TidegateError) as caught:
        vault.add_unlocker(by_passphrase(b"x"))
    assert caught.value.code == "vault.unlockers.full"


# -- new keys ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("contents", [False, True], ids=["headers", "contents"])
def test_rekey_changes_every_key_and_keeps_everything(vault, contents):
    for number in range(150):
        vault.write(f"item/{number:03}", bytes([number]) * number)
    vault.records("table")["key"] = b"value"
    with vault.application_key("application") as key:
        kept = bytes(key.view())
    before = {name: vault.read(name) for name in vault}
    bodies = {path.name: path.read_bytes()[8192:] for path in (vault.folder / "items").iterdir()}
    keys_before = {bytes(key.view()) for key in _keys_of(vault)}
    seen = []
    assert rekey(vault, contents=contents, report=seen.append) == 151
    assert (seen[-1].done, seen[-1].total) == (151, 151)
    assert not keys_before & {bytes(key.view()) for key in _keys_of(vault)}
    assert list(vault.keyring.keys) == [vault.keyring.record.epoch] == [2]
    vault.close()
    with Vault.open(vault.folder, by_passphrase(b"first")) as again:
        assert {name: again.read(name) for name in again} == before
        assert again.records("table")["key"] == b"value"
        with again.application_key("application", create=False) as key:
            assert bytes(key.view()) == kept
        again.verify_folder()
    after = {path.name: path.read_bytes()[8192:] for path in (vault.folder / "items").iterdir()}
    assert (after == bodies) is not contents


def _keys_of(vault):
    ring = vault.keyring
    return [ring.root, *(getattr(keys, name) for keys in ring.keys.values() for name in ("header", "manifest", "redo"))]


def test_an_interrupted_rekey_goes_on(vault, monkeypatch):
    for number in range(130):
        vault.write(f"item/{number:03}", b"x")
    with pytest.raises(RuntimeError):
        rekey(vault, report=lambda _: (_ for _ in ()).throw(RuntimeError("stop")))
    assert is_pending(vault)
    vault.close()
    with Vault.open(vault.folder, by_passphrase(b"first")) as again:
        assert is_pending(again)
        assert again.read("item/000") == again.read("item/129") == b"x"
        again.write("new", b"under the new epoch")
        assert rekey(again) == 131 - 64
        assert not is_pending(again)
        assert again.read("new") == b"under the new epoch"
