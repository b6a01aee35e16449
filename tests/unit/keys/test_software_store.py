"""The software provider against a thief, a clumsy administrator and a hostile storage."""

import os
import stat

import pytest

from tidegate.base.errors import Misuse, Rejected, TidegateError
from tidegate.crypto import cbor
from tidegate.crypto.aead import Secret
from tidegate.crypto.signing import parse_public_key
from tidegate.keys.errors import KeyExists, KeyMissing, KeyPurposeWrong, StoreClosed
from tidegate.keys.software import Argon2Cost, DeviceSecretUnlock, SoftwareKeyStore
from tidegate.keys.store import KeyPolicy, KeyPurpose, KeySpec

CHEAP = Argon2Cost(memory_kib=64, iterations=1, lanes=1)

LABELS = ["ed25519", "ecdsa-p256", "ecdsa-p384", "ml-dsa-65", "ml-dsa-87", "rsa-pss"]


def code_of(call, *arguments, **named):
    with pytest.raises(TidegateError) as caught:
        call(*arguments, **named)
    return caught.value.code


def document(path):
    return cbor.decode(path.read_bytes(), limit_bytes=10_000)


@pytest.mark.parametrize("label", LABELS)
def test_keys_sign_across_openings(bench, label):
    info = bench.store.generate("maker", bench.signing(label))
    assert info.spec.algorithm.label == label
    again = bench.reopen()
    assert again.public_key("maker") == info.public_key
    assert again.list_keys() == [info]
    for number in range(8):
        message = bytes(number)
        info.public_key.verify(again.signer("maker").sign(message), message)
        with pytest.raises(Rejected):
            info.public_key.verify(again.signer("maker").sign(message), message + b"x")


def test_files_are_private_whatever_the_umask(bench):
    before = os.umask(0)
    try:
        store = SoftwareKeyStore.create(bench.root / "open", bench.unlock())
        store.generate("a", bench.signing())
        store.counter_increment("c")
    finally:
        os.umask(before)
    assert stat.S_IMODE((bench.root / "open").stat().st_mode) == 0o700
    for path in (bench.root / "open").iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path.name


def test_the_files_hold_no_private_key(bench):
    store = bench.store
    store.generate("seal", bench.sealing())
    store.generate("sign", bench.signing())
    secrets = []
    for name, purpose in (("seal", bench.sealing().purpose), ("sign", bench.signing().purpose)):
        with store._private(name, purpose) as private:
            secrets.append(bytes(private.view()))
    for path in bench.folder.iterdir():
        for secret in secrets:
            assert secret not in path.read_bytes()


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o620, 0o601, 0o666, 0o777])
@pytest.mark.parametrize("name", ["store.cbor", "maker.key", "tide.counter"])
def test_files_open_to_others(bench, name, mode):
    bench.store.generate("maker", bench.signing())
    bench.store.counter_increment("tide")
    (bench.folder / name).chmod(mode)

    def use():
        store = bench.reopen()
        store.counter_read("tide")
        store.signer("maker").sign(b"x")

    assert code_of(use) == "base.permissions.unsafe"


@pytest.mark.parametrize("mode", [0o755, 0o750, 0o705, 0o770, 0o711])
def test_folder_open_to_others(bench, mode):
    signer = (bench.store.generate("maker", bench.signing()), bench.store.signer("maker"))[1]
    bench.folder.chmod(mode)
    assert code_of(bench.reopen) == "base.permissions.unsafe"
    assert code_of(signer.sign, b"x") == "base.permissions.unsafe", "checked at every use"
    bench.folder.chmod(0o700)
    signer.sign(b"x")


def test_device_secret_open_to_others(bench):
    bench.secret.chmod(0o640)
    assert code_of(bench.reopen) == "base.permissions.unsafe"


@pytest.mark.parametrize("name", ["store.cbor", "maker.key", "tide.counter"])
def test_files_that_are_symbolic_links(bench, name):
    bench.store.generate("maker", bench.signing())
    bench.store.counter_increment("tide")
    path = bench.folder / name
    path.rename(bench.root / "elsewhere")
    path.symlink_to(bench.root / "elsewhere")

    def use():
        store = bench.reopen()
        store.counter_read("tide")
        store.signer("maker").sign(b"x")

    assert code_of(use) == "base.permissions.unsafe"


def test_folder_or_secret_that_is_a_symbolic_link(bench):
    link = bench.root / "link"
    link.symlink_to(bench.folder)
    assert code_of(SoftwareKeyStore, link, bench.unlock()) == "base.permissions.unsafe"
    assert code_of(SoftwareKeyStore.create, link, bench.unlock()) == "base.permissions.unsafe"
    other = bench.root / "secret-link"
    other.symlink_to(bench.secret)
    assert code_of(SoftwareKeyStore, bench.folder, DeviceSecretUnlock(other)) == "base.permissions.unsafe"


def test_destroying_does_not_follow_a_symbolic_link(bench):
    victim = bench.root / "victim"
    victim.write_bytes(b"precious")
    victim.chmod(0o600)
    (bench.folder / "a.key").symlink_to(victim)
    assert code_of(bench.store.destroy, "a") == "base.permissions.unsafe"
    assert victim.read_bytes() == b"precious"


@pytest.mark.root
def test_store_of_another_user(bench):
    if os.geteuid() != 0:
        pytest.skip("needs root to give a file away")
    os.chown(bench.folder / "store.cbor", 65534, 65534)
    assert code_of(bench.reopen) == "base.permissions.unsafe"


# ---- unlocking -----------------------------------------------------------------------------------------------------


def test_wrong_passphrase(bench):
    folder = bench.root / "words"
    SoftwareKeyStore.create(folder, bench.passphrase())
    SoftwareKeyStore(folder, bench.passphrase())
    for wrong in (b"", b"correct hors", b"correct horse ", b"Correct horse", b"correct horse\n"):
        assert code_of(SoftwareKeyStore, folder, bench.passphrase(wrong)) == "keys.unlock.refused"


def test_cost_changes_lock_nobody_out(bench):
    folder = bench.root / "words"
    SoftwareKeyStore.create(folder, bench.passphrase()).generate("a", bench.signing())
    dearer = bench.passphrase(cost=Argon2Cost(memory_kib=128, iterations=2, lanes=2))
    assert SoftwareKeyStore(folder, dearer).list_keys()


def test_wrong_device_secret(bench):
    bench.secret.write_bytes(bytes(range(31)) + b"x")
    assert code_of(bench.reopen) == "keys.unlock.refused"


@pytest.mark.parametrize(
    ("content", "code"),
    [(b"", "keys.unlock.refused"), (bytes(31), "keys.unlock.refused"), (bytes(33), "base.input.too-large")],
)
def test_device_secret_of_another_length(bench, content, code):
    bench.secret.write_bytes(content)
    assert code_of(bench.reopen) == code


def test_device_secret_missing(bench):
    bench.secret.unlink()
    assert code_of(bench.reopen) == "base.storage.missing"


def test_unlocker_of_another_kind(bench):
    assert code_of(SoftwareKeyStore, bench.folder, bench.passphrase()) == "keys.unlock.refused"
    folder = bench.root / "words"
    SoftwareKeyStore.create(folder, bench.passphrase())
    assert code_of(SoftwareKeyStore, folder, bench.unlock()) == "keys.unlock.refused"


def test_two_stores_of_one_secret_do_not_share_keys(bench):
    other = SoftwareKeyStore.create(bench.root / "other", bench.unlock())
    other.generate("a", bench.signing())
    bench.rewrite("a.key", (bench.root / "other" / "a.key").read_bytes())
    assert code_of(lambda: bench.store.signer("a").sign(b"x")) == "keys.unlock.refused"


@pytest.mark.parametrize(
    "change",
    [
        {"memory": 1 << 21},
        {"memory": 2**63},
        {"memory": 0},
        {"memory": -1},
        {"iterations": 17},
        {"iterations": 2**32},
        {"iterations": 0},
        {"lanes": 0},
        {"lanes": 17},
        {"lanes": 16},  # needs 128 KiB of memory, the store says 64
        {"memory": "64"},
        {"memory": None},
        {"iterations": True},
        {"lanes": True},
        {"extra": 1},
    ],
)
def test_hostile_argon2_cost(bench, change):
    folder = bench.root / "words"
    SoftwareKeyStore.create(folder, bench.passphrase())
    stored = document(folder / "store.cbor")
    stored["parameters"] = {**stored["parameters"], **change}
    (folder / "store.cbor").write_bytes(cbor.encode(stored))
    assert code_of(SoftwareKeyStore, folder, bench.passphrase()) == "keys.store.malformed"


def test_a_cost_that_could_not_be_opened_is_not_recorded(bench):
    folder = bench.root / "words"
    code_of(SoftwareKeyStore.create, folder, bench.passphrase(cost=Argon2Cost(memory_kib=1 << 21)))
    assert not (folder / "store.cbor").exists()


@pytest.mark.parametrize(
    "change",
    [
        {"format": "tidegate.keystore.v2"},
        {"format": None},
        {"kdf": None},
        {"salt": b""},
        {"salt": bytes(7)},
        {"salt": bytes(31)},
        {"salt": "text"},
        {"check": b""},
        {"check": bytes(12)},
        {"check": None},
        {"parameters": None},
        {"parameters": []},
        {"extra": 1},
    ],
)
@pytest.mark.parametrize("kind", ["device", "words"])
def test_hostile_store_document(bench, change, kind):
    folder, unlock = (bench.folder, bench.unlock()) if kind == "device" else (bench.root / "w", bench.passphrase())
    if kind == "words":
        SoftwareKeyStore.create(folder, unlock)
    stored = {**document(folder / "store.cbor"), **change}
    (folder / "store.cbor").write_bytes(cbor.encode(stored))
    expected = "keys.unlock.refused" if isinstance(change.get("check"), bytes) else "keys.store.malformed"
    assert code_of(SoftwareKeyStore, folder, unlock) == expected


def test_a_device_secret_has_no_parameters(bench):
    stored = {**document(bench.folder / "store.cbor"), "parameters": {"memory": 1}}
    bench.rewrite("store.cbor", cbor.encode(stored))
    assert code_of(bench.reopen) == "keys.store.malformed"


@pytest.mark.parametrize("raw", [b"", b"\0", b"\xa0", b"\xf6", bytes(8193), b"\xff" * 100])
def test_store_document_of_rubbish(bench, raw):
    bench.rewrite("store.cbor", raw)
    assert code_of(bench.reopen) in {"keys.store.malformed", "base.input.too-large"}


def test_each_byte_of_the_store_document_altered(bench):
    raw = (bench.folder / "store.cbor").read_bytes()
    for position in range(len(raw)):
        for mask in (0x01, 0x10, 0x80):
            bench.rewrite("store.cbor", raw[:position] + bytes([raw[position] ^ mask]) + raw[position + 1 :])
            assert code_of(bench.reopen).split(".")[0] in {"keys", "base"}


def test_no_store_and_a_second_store(bench):
    assert code_of(SoftwareKeyStore, bench.root / "none", bench.unlock()) == "base.storage.missing"
    (bench.root / "empty").mkdir(mode=0o700)
    assert code_of(SoftwareKeyStore, bench.root / "empty", bench.unlock()) == "base.storage.missing"
    assert code_of(SoftwareKeyStore.create, bench.folder, bench.unlock()) == "keys.key.exists"


# ---- altered and exchanged key files --------------------------------------------------------------------------------


@pytest.mark.parametrize("label", ["ed25519", "ecdsa-p256"])
def test_each_byte_of_a_key_file_altered(bench, label):
    bench.store.generate("maker", bench.signing(label))
    raw = (bench.folder / "maker.key").read_bytes()
    for position in range(len(raw)):
        for mask in (0x01, 0x80):
            bench.rewrite("maker.key", raw[:position] + bytes([raw[position] ^ mask]) + raw[position + 1 :])
            code_of(lambda: bench.store.signer("maker").sign(b"x"))


def test_truncated_and_extended_key_files(bench):
    bench.store.generate("maker", bench.signing())
    raw = (bench.folder / "maker.key").read_bytes()
    for altered in [raw[:length] for length in range(len(raw))] + [raw + b"\0", raw + raw]:
        bench.rewrite("maker.key", altered)
        assert code_of(bench.store.public_key, "maker") == "keys.store.malformed"


def test_key_files_exchanged_between_names(bench):
    for name in ("one", "two"):
        bench.store.generate(name, bench.signing())
    for name in ("three", "four"):
        bench.store.generate(name, bench.sealing())
    sealed = bench.store.seal("three", b"secret", b"context")
    for first, second in (("one", "two"), ("three", "four")):
        raws = [(bench.folder / f"{name}.key").read_bytes() for name in (first, second)]
        bench.rewrite(f"{first}.key", raws[1])
        bench.rewrite(f"{second}.key", raws[0])
    assert code_of(lambda: bench.store.signer("one").sign(b"x")) == "keys.unlock.refused"
    assert code_of(bench.store.seal, "three", b"x", b"context") == "keys.unlock.refused"
    assert code_of(bench.store.unseal, "four", sealed, b"context") == "keys.unlock.refused"


def test_public_half_exchanged(bench):
    """Whoever can write the file could else have his own key exported as the maker's trust anchor."""
    bench.store.generate("maker", bench.signing())
    bench.store.generate("thief", bench.signing())
    stored = document(bench.folder / "maker.key")
    stored["public"] = document(bench.folder / "thief.key")["public"]
    assert parse_public_key(stored["public"]) == bench.store.public_key("thief")
    bench.rewrite("maker.key", cbor.encode(stored))
    assert code_of(bench.store.public_key, "maker") == "keys.unlock.refused"
    assert code_of(lambda: bench.store.signer("maker").sign(b"x")) == "keys.unlock.refused"
    assert code_of(bench.store.list_keys) == "keys.unlock.refused"


@pytest.mark.parametrize(
    "change", [{"purpose": "sign"}, {"public": b""}, {"sealed": b""}, {"sealed": None}, {"purpose": "wrap"}, {"x": 1}]
)
def test_hostile_key_document(bench, change):
    bench.store.generate("box", bench.sealing())
    stored = {**document(bench.folder / "box.key"), **change}
    bench.rewrite("box.key", cbor.encode(stored))
    assert code_of(bench.store.seal, "box", b"x", b"") in {"keys.store.malformed", "keys.unlock.refused"}


def test_a_key_file_too_large_to_be_one(bench):
    bench.rewrite("maker.key", bytes(9000))
    assert code_of(bench.store.public_key, "maker") == "base.input.too-large"


# ---- names, purposes, life ------------------------------------------------------------------------------------------

BAD_NAMES = [
    "", ".", "..", "../x", "a/b", "/etc/shadow", "a\0b", "-a", "_a", ".a", "A", "a b", "a\n", "\u00e4", "a" * 65,
    "a\\b", "a:b", "a*", "~",
]  # fmt: skip


@pytest.mark.parametrize("name", BAD_NAMES)
def test_names_that_reach_elsewhere(bench, name):
    before = sorted(bench.root.rglob("*"))
    for use in (
        lambda: bench.store.generate(name, bench.signing()),
        lambda: bench.store.public_key(name),
        lambda: bench.store.signer(name),
        lambda: bench.store.seal(name, b"x", b""),
        lambda: bench.store.unseal(name, b"x", b""),
        lambda: bench.store.counter_read(name),
        lambda: bench.store.counter_increment(name),
        lambda: bench.store.destroy(name),
    ):
        assert code_of(use) == "keys.name.invalid"
    assert sorted(bench.root.rglob("*")) == before


@pytest.mark.parametrize("name", ["a", "0", "a.b", "a-b_c.d", "a..b", "a" * 64, "store.cbor", "a.key", "a.counter"])
def test_names_that_are_names(bench, name):
    bench.store.generate(name, bench.sealing())
    assert bench.store.counter_increment(name) == 1
    assert [info.name for info in bench.reopen().list_keys()] == [name]


def test_a_key_is_never_replaced(bench):
    first = bench.store.generate("a", bench.signing()).public_key
    with pytest.raises(KeyExists):
        bench.store.generate("a", bench.signing())
    with pytest.raises(KeyExists):
        bench.store.generate("a", bench.sealing())
    assert bench.store.public_key("a") == first


def test_purposes_are_not_confused(bench):
    bench.store.generate("sign", bench.signing())
    bench.store.generate("seal", bench.sealing())
    for use in (
        lambda: bench.store.seal("sign", b"x", b""),
        lambda: bench.store.unseal("sign", b"x" * 40, b""),
        lambda: bench.store.public_key("seal"),
        lambda: bench.store.signer("seal"),
    ):
        with pytest.raises(KeyPurposeWrong):
            use()


def test_sealed_bytes_belong_to_key_and_context(bench):
    bench.store.generate("one", bench.sealing())
    bench.store.generate("two", bench.sealing())
    sealed = bench.store.seal("one", b"secret", b"context")
    assert bench.store.seal("one", b"secret", b"context") != sealed
    with bench.reopen().unseal("one", sealed, b"context") as secret:
        assert bytes(secret.view()) == b"secret"
    for name, raw, context in (
        ("one", sealed, b"contexu"),
        ("one", sealed, b""),
        ("two", sealed, b"context"),
        ("one", b"", b"context"),
        ("one", sealed[:11], b"context"),
        ("one", sealed[:-1], b"context"),
        ("one", sealed + b"\0", b"context"),
        *(("one", sealed[:at] + bytes([sealed[at] ^ 1]) + sealed[at + 1 :], b"context") for at in range(len(sealed))),
    ):
        assert code_of(bench.store.unseal, name, raw, context) == "keys.sealed.malformed"


def test_destroyed_keys_are_gone(bench):
    bench.store.generate("a", bench.signing())
    bench.store.generate("b", bench.sealing())
    signer = bench.store.signer("a")
    for name in ("a", "b"):
        bench.store.destroy(name)
        assert not (bench.folder / f"{name}.key").exists()
    for use in (
        lambda: signer.sign(b"x"),
        lambda: bench.store.signer("a"),
        lambda: bench.store.public_key("a"),
        lambda: bench.store.seal("b", b"x", b""),
        lambda: bench.store.destroy("a"),
    ):
        with pytest.raises(KeyMissing):
            use()
    assert bench.store.list_keys() == []


def test_destroying_overwrites_before_it_removes(bench):
    bench.store.generate("a", bench.signing())
    path = bench.folder / "a.key"
    os.link(path, bench.root / "kept")
    bench.store.destroy("a")
    assert not any((bench.root / "kept").read_bytes())


def test_a_damaged_key_can_still_be_destroyed(bench):
    bench.store.generate("a", bench.signing())
    bench.rewrite("a.key", b"\xff" + (bench.folder / "a.key").read_bytes()[1:])
    bench.store.destroy("a")
    assert not (bench.folder / "a.key").exists()


def test_nothing_works_after_close(bench):
    """A wiped key is 32 zeros: whatever was still sealed under it would be open to everybody."""
    bench.store.generate("a", bench.signing())
    bench.store.generate("b", bench.sealing())
    signer = bench.store.signer("a")
    bench.store.close()
    bench.store.close()
    before = sorted(path.name for path in bench.folder.iterdir())
    for use in (
        lambda: signer.sign(b"x"),
        lambda: bench.store.generate("c", bench.signing()),
        lambda: bench.store.generate("d", bench.sealing()),
        lambda: bench.store.seal("b", b"x", b""),
        lambda: bench.store.unseal("b", b"x" * 40, b""),
        lambda: bench.store.counter_increment("n"),
    ):
        with pytest.raises(StoreClosed):
            use()
    assert sorted(path.name for path in bench.folder.iterdir()) == before
    assert bench.reopen().signer("a").sign(b"x")


# ---- counters -------------------------------------------------------------------------------------------------------


def test_counters_count_apart_and_survive(bench):
    assert bench.store.counter_read("a") == 0
    assert [bench.store.counter_increment("a") for _ in range(3)] == [1, 2, 3]
    assert bench.store.counter_increment("b") == 1
    assert bench.reopen().counter_read("a") == 3


def test_counters_altered_or_exchanged(bench):
    bench.store.counter_increment("a")
    bench.store.counter_increment("b")
    raw = (bench.folder / "a.counter").read_bytes()
    for altered in (
        (bench.folder / "b.counter").read_bytes(),
        b"",
        raw[:-1],
        raw + b"\0",
        bytes(64),
        *(raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :] for at in range(len(raw))),
    ):
        bench.rewrite("a.counter", altered)
        assert code_of(bench.store.counter_read, "a") == "keys.unlock.refused"
        assert code_of(bench.store.counter_increment, "a") == "keys.unlock.refused"
    bench.rewrite("a.counter", bytes(65))
    assert code_of(bench.store.counter_read, "a") == "base.input.too-large"


def test_what_the_provider_cannot_do_is_said_before(bench):
    capabilities = bench.store.capabilities()
    assert not capabilities.hardware
    assert not capabilities.counter_resists_rollback
    assert not capabilities.can_quote
    with pytest.raises(Misuse) as caught:
        bench.store.quote("a", bytes(16), frozenset({0}))
    assert caught.value.code == "keys.capability.missing"


def test_foreign_files_in_the_folder_do_not_stop_the_list(bench):
    bench.store.generate("a", bench.signing())
    (bench.folder / ".a.key.123.new").write_bytes(b"left by a power cut")
    (bench.folder / "notes.txt").write_bytes(b"")
    assert [info.name for info in bench.store.list_keys()] == ["a"]


# ---- policies, certificates, another unlocker ------------------------------------------------------------------------


def spec_with(bench, label="ecdsa-p256", **policy):
    return KeySpec(purpose=KeyPurpose.SIGN, algorithm=bench.signing(label).algorithm, policy=KeyPolicy(**policy))


def with_pin(bench, pin):
    return SoftwareKeyStore(bench.folder, bench.unlock(), key_pin=lambda what: Secret(pin), pin_cost=CHEAP)


def test_a_policy_cannot_be_taken_off_or_put_on(bench):
    """Who writes the file must not make a key exportable, nor spare himself the PIN."""
    bench.store.generate("kept", spec_with(bench))
    bench.store.generate("free", spec_with(bench, exportable=True))
    with_pin(bench, b"1").generate("pin", spec_with(bench, user_auth=True))
    kept, free, pin = (document(bench.folder / f"{name}.key") for name in ("kept", "free", "pin"))
    for name, altered in (
        ("kept", {**kept, "policy": free["policy"]}),
        ("free", {part: value for part, value in free.items() if part != "policy"}),
        ("pin", {**pin, "policy": {**pin["policy"], "pin": None}}),
        ("pin", {**pin, "policy": {**pin["policy"], "exportable": True}}),
        ("pin", {**pin, "policy": {**pin["policy"], "pin": {**pin["policy"]["pin"], "iterations": 2}}}),
        ("pin", {part: value for part, value in pin.items() if part != "policy"}),
    ):
        bench.rewrite(f"{name}.key", cbor.encode(altered))
        assert code_of(bench.store.public_key, name) == "keys.unlock.refused"
        assert code_of(with_pin(bench, b"1").export_key, name) == "keys.unlock.refused"
    for broken in (None, {}, {"exportable": 1, "pin": None}, {"exportable": True, "pin": None, "x": 1}, {"pin": None}):
        bench.rewrite("free.key", cbor.encode({**free, "policy": broken}))
        assert code_of(bench.store.public_key, "free") == "keys.store.malformed"


def test_keys_from_before_there_were_policies_open(bench):
    """A key with the default policy is written as it always was."""
    bench.store.generate("old", bench.signing())
    assert set(document(bench.folder / "old.key")) == {"purpose", "public", "sealed"}


def test_a_key_with_a_pin_of_its_own(bench):
    info = with_pin(bench, b"right").generate("a", spec_with(bench, user_auth=True, exportable=True))
    assert bench.reopen().list_keys() == [info], "the public half needs no PIN"
    assert code_of(lambda: bench.store.signer("a").sign(b"m")) == "keys.pin.missing"
    assert code_of(lambda: with_pin(bench, b"wrong").signer("a").sign(b"m")) == "keys.pin.refused"
    assert code_of(with_pin(bench, b"wrong").export_key, "a") == "keys.pin.refused"
    info.public_key.verify(with_pin(bench, b"right").signer("a").sign(b"m"), b"m")
    assert code_of(bench.store.generate, "b", spec_with(bench, user_auth=True)) == "keys.pin.missing"
    assert not (bench.folder / "b.key").exists()


def test_pins_of_sealing_keys(bench):
    spec = KeySpec(purpose=KeyPurpose.SEAL, policy=KeyPolicy(user_auth=True))
    with_pin(bench, b"right").generate("box", spec)
    sealed = with_pin(bench, b"right").seal("box", b"secret", b"")
    assert code_of(with_pin(bench, b"wrong").unseal, "box", sealed, b"") == "keys.pin.refused"
    with with_pin(bench, b"right").unseal("box", sealed, b"") as secret:
        assert bytes(secret.view()) == b"secret"
    exportable = KeySpec(purpose=KeyPurpose.SEAL, policy=KeyPolicy(exportable=True))
    assert code_of(bench.store.generate, "free", exportable) == "keys.capability.missing"  # before, not at its export
    assert code_of(bench.store.export_key, "box") in {"keys.key.purpose", "keys.key.not-exportable"}
    assert code_of(bench.store.import_key, "new", b"", exportable) == "keys.import.refused"


def test_no_attestation_keys_and_none_bound_to_registers(bench):
    algorithm = bench.signing().algorithm
    for spec in (
        KeySpec(purpose=KeyPurpose.ATTEST, algorithm=algorithm),
        spec_with(bench, pcrs=frozenset({7})),
    ):
        assert code_of(bench.store.generate, "a", spec) == "keys.capability.missing"
        assert code_of(bench.store.import_key, "a", b"", spec) in {"keys.capability.missing", "keys.import.refused"}
    assert bench.store.list_keys() == []


def test_certificates_altered_or_of_another_key(bench):
    for name in ("a", "b"):
        bench.store.generate(name, bench.signing())
        bench.store.keep_certificates(name, [name.encode()])
    raw = (bench.folder / "a.certs").read_bytes()
    for altered in ((bench.folder / "b.certs").read_bytes(), b"", raw[:-1], raw[:20] + bytes([raw[20] ^ 1]) + raw[21:]):
        bench.rewrite("a.certs", altered)
        assert code_of(bench.store.certificates, "a") == "keys.unlock.refused"
    bench.rewrite("a.certs", raw)
    (bench.folder / "a.certs").chmod(0o644)
    assert code_of(bench.store.certificates, "a") == "base.permissions.unsafe"
    bench.store.destroy("a")
    assert not (bench.folder / "a.certs").exists()
    bench.store.generate("a", bench.signing())
    bench.rewrite("a.certs", raw)
    assert code_of(bench.store.certificates, "a") == "keys.unlock.refused", "they were an earlier key's"


def test_another_passphrase(bench):
    """The keys stay, the old passphrase opens nothing, the new one does; twice, and from one kind to the other."""
    public = bench.store.generate("a", bench.signing()).public_key
    bench.store.counter_increment("n")
    current = bench.unlock()
    for new in (bench.passphrase(b"first"), bench.passphrase(b"second"), bench.unlock()):
        opened = SoftwareKeyStore(bench.folder, current)
        opened.change_unlock(new)
        if new.kind != current.kind or new.kind == "argon2id":
            assert code_of(SoftwareKeyStore, bench.folder, current) == "keys.unlock.refused"
        for store in (opened, SoftwareKeyStore(bench.folder, new)):
            public.verify(store.signer("a").sign(b"m"), b"m")
            assert store.counter_read("n") == 1
        current = new
    raw = (bench.folder / "store.cbor").read_bytes()
    for position in range(0, len(raw), 3):
        bench.rewrite("store.cbor", raw[:position] + bytes([raw[position] ^ 1]) + raw[position + 1 :])
        assert code_of(bench.reopen).split(".")[0] in {"keys", "base"}


def test_a_cut_while_the_passphrase_changes(bench, monkeypatch):
    """Whatever write fails: one of the two opens the store."""
    bench.store.generate("a", bench.signing())
    for broken in ("write_all", "sync_folder"):
        with monkeypatch.context() as patch:
            patch.setattr(f"tidegate.base.durable.{broken}", lambda *_: (_ for _ in ()).throw(OSError(5, "cut")))
            assert code_of(bench.store.change_unlock, bench.passphrase()) == "base.storage.failed"
        opened = []
        for unlock in (bench.unlock(), bench.passphrase()):
            try:
                opened.append(SoftwareKeyStore(bench.folder, unlock).signer("a").sign(b"m"))
            except TidegateError as error:
                assert error.code == "keys.unlock.refused"
        assert len(opened) == 1


def test_processes_count_without_losing_one(bench):
    children = []
    for _ in range(4):
        child = os.fork()
        if child == 0:
            for _ in range(5):
                bench.store.counter_increment("n")
            os._exit(0)
        children.append(child)
    for child in children:
        assert os.waitpid(child, 0)[1] == 0
    assert bench.store.counter_read("n") == 20
