"""Revocable keys against a TPM in software: what is destroyed stays dead, whoever has copies and the TPM itself."""

import contextlib
import shutil
from dataclasses import replace

import pytest
from tpm2_pytss import ESAPI, TSS2_Exception
from tpm2_pytss.constants import ESYS_TR, TPM2_ALG, TPM2_EO, TPM2_SE, TPMA_NV
from tpm2_pytss.types import TPM2B_NV_PUBLIC, TPM2B_OPERAND, TPM2B_SENSITIVE_CREATE, TPMS_NV_PUBLIC

from tidegate.base.errors import StorageFailed, StorageMissing, TidegateError
from tidegate.crypto.aead import Secret
from tidegate.crypto.signing import SignatureAlgorithm
from tidegate.keys import tpm2, tpm2_revocation
from tidegate.keys.store import KeyPolicy, KeyPurpose, KeySpec
from tidegate.keys.tpm2 import SRK_HANDLE, Tpm2KeyStore, Tpm2Pins
from tidegate.keys.tpm2_device import Chip, _Patient, public_of, tpm_at
from tidegate.keys.tpm2_files import PRIMARY_TEMPLATE, parse_pem, parse_public_area
from tidegate.keys.tpm2_folder import Tpm2Folder
from tidegate.keys.tpm2_nvpolicy import COUNT_ATTRIBUTES
from tidegate.keys.tpm2_records import REVOCATION_INDICES, encode_lifeline, parse_lifeline, parse_record
from tidegate.testing.errors import PowerCut
from tidegate.testing.swtpm import SwTpm

OWNER = b"the owner"


def sealing(**policy):
    return KeySpec(purpose=KeyPurpose.SEAL, policy=KeyPolicy(revocable=True, **policy))


def signing(**policy):
    policy = KeyPolicy(revocable=True, **policy)
    return KeySpec(purpose=KeyPurpose.SIGN, algorithm=SignatureAlgorithm.ECDSA_P256, policy=policy)


def pins(owner=None, key=b"2580"):
    return Tpm2Pins(key=lambda what: Secret(key), owner=owner and (lambda: Secret(owner)))


def refusal(call, *arguments):
    with pytest.raises(TidegateError) as caught:
        call(*arguments)
    return caught.value


@pytest.fixture
def own(tmp_path):
    with SwTpm(tmp_path / "tpm") as tpm:
        yield tpm


@pytest.fixture
def store(own, tmp_path):
    return Tpm2KeyStore.create(tmp_path / "keys", own.tcti, pins=pins())


def indices(tpm):
    """Return the indices of revocable keys that the TPM has."""
    with ESAPI(tpm.tcti) as esys:
        _, answer = esys.get_capability(1, 0x01000000, 254)
        return {int(handle) for handle in answer.data.handles} & {*REVOCATION_INDICES}


def record_of(store, name):
    return parse_record((store._folder.path / f"{name}.key").read_bytes(), name)


@pytest.mark.parametrize("pin", [False, True], ids=["no pin", "pin"])
@pytest.mark.parametrize("pcrs", [frozenset(), frozenset({0, 16})], ids=["no pcrs", "pcrs"])
def test_a_copy_of_a_destroyed_key_is_dead_too(store, own, tmp_path, pcrs, pin):
    policy = {"pcrs": pcrs, "user_auth": pin}
    info = store.generate("k", sealing(**policy))
    assert info.spec.policy.revocable
    assert info in store.list_keys()
    store.generate("s", signing(**policy))
    sealed = store.seal("k", b"secret", b"c")
    with store.unseal("k", sealed, b"c") as opened:
        assert bytes(opened.view()) == b"secret"
    store.signer("s").sign(b"m")
    shutil.copytree(store._folder.path, tmp_path / "copy")
    for name in ("k", "s"):
        store.destroy(name)
    assert indices(own) == set()
    thief = Tpm2KeyStore(tmp_path / "copy", own.tcti, pins=pins())
    assert refusal(thief.unseal, "k", sealed, b"c").code == "keys.key.missing"
    assert refusal(thief.seal, "k", b"s", b"c").code == "keys.key.missing"
    assert refusal(lambda: thief.signer("s").sign(b"m")).code == "keys.key.missing"
    thief.destroy("k")  # harmless


def test_a_key_that_is_not_revocable_comes_back(store, own, tmp_path):
    """The control of the test above: without a counter the same copy opens."""
    store.generate("k", KeySpec(purpose=KeyPurpose.SEAL))
    sealed = store.seal("k", b"secret", b"c")
    shutil.copytree(store._folder.path, tmp_path / "copy")
    store.destroy("k")
    with Tpm2KeyStore(tmp_path / "copy", own.tcti).unseal("k", sealed, b"c") as opened:
        assert bytes(opened.view()) == b"secret"


def make_index(tpm, line, *, attributes=COUNT_ATTRIBUTES, write=None):
    """Make the index of a revocable key once more, as its owner could."""
    public = TPMS_NV_PUBLIC(
        nvIndex=line.index, nameAlg=TPM2_ALG.SHA256, attributes=TPMA_NV(attributes), authPolicy=line.label, dataSize=8
    )
    with ESAPI(tpm.tcti) as esys:
        index = esys.nv_define_space(line.auth, TPM2B_NV_PUBLIC(public))
        if write is None:
            esys.nv_increment(index, auth_handle=index)
        else:
            esys.nv_write(index, write.to_bytes(8, "big"), auth_handle=index)


def test_an_index_made_again_with_everything_known_opens_nothing(store, own, tmp_path):
    store.generate("k", sealing())
    store.generate("other", sealing())  # so that the highest count of the TPM is not the key's
    sealed, record = store.seal("k", b"secret", b"c"), record_of(store, "k")
    shutil.copytree(store._folder.path, tmp_path / "copy")
    store.destroy("k")
    make_index(own, record.revocation)
    thief = Tpm2KeyStore(tmp_path / "copy", own.tcti)
    error = refusal(thief.unseal, "k", sealed, b"c")
    assert (error.code, "went on" in error.message) == ("keys.key.missing", True)


def test_another_kind_of_index_with_the_right_number_in_it(store, own, tmp_path, monkeypatch):
    """The check in this code is left out: the TPM has to refuse, because the index has another name."""
    store.generate("k", sealing())
    sealed, record = store.seal("k", b"secret", b"c"), record_of(store, "k")
    shutil.copytree(store._folder.path, tmp_path / "copy")
    store.destroy("k")
    ordinary = COUNT_ATTRIBUTES & ~(1 << 4)
    make_index(own, record.revocation, attributes=ordinary, write=record.revocation.count)
    thief = Tpm2KeyStore(tmp_path / "copy", own.tcti)
    assert refusal(thief.unseal, "k", sealed, b"c").code == "keys.key.missing"
    monkeypatch.setattr(tpm2_revocation, "COUNT_ATTRIBUTES", ordinary)
    assert refusal(thief.unseal, "k", sealed, b"c").code == "keys.provider.failed"


def test_a_record_that_says_it_is_not_revocable(store, own, monkeypatch):
    """The policy is the object's: a record without the counter contradicts it, a session without it opens nothing."""
    store.generate("k", sealing())
    record = record_of(store, "k")
    plain = replace(record, spec=KeySpec(purpose=KeyPurpose.SEAL), revocation=None)
    store._folder.replace(plain)
    assert refusal(store.seal, "k", b"s", b"").code == "keys.store.malformed"
    later = replace(record, revocation=replace(record.revocation, count=record.revocation.count + 1))
    store._folder.replace(later)
    assert refusal(store.seal, "k", b"s", b"").code == "keys.store.malformed"
    store._folder.replace(record)
    store.seal("k", b"s", b"")
    with monkeypatch.context() as patch:
        patch.setattr(tpm2, "satisfy_lifeline", lambda *_: None)
        assert refusal(store.seal, "k", b"s", b"").code == "keys.provider.failed"


def test_the_digest_is_the_tpms(store, own):
    store.generate("k", sealing(user_auth=True))
    area = parse_public_area(parse_pem((store._folder.path / "k.pem").read_bytes()).public)
    revocation = record_of(store, "k").revocation
    with ESAPI(own.tcti) as esys:
        session = esys.start_auth_session(ESYS_TR.NONE, ESYS_TR.NONE, TPM2_SE.TRIAL, None, TPM2_ALG.SHA256)
        index = esys.tr_from_tpmpublic(revocation.index)
        esys.tr_set_auth(index, revocation.auth)
        bound = TPM2B_OPERAND(revocation.count.to_bytes(8, "big"))
        esys.policy_nv(index, index, session, bound, TPM2_EO.UNSIGNED_LE)
        esys.policy_auth_value(session)
        assert bytes(esys.policy_get_digest(session)) == area.auth_policy
        esys.flush_context(session)


def test_keys_live_and_die_alone(store, own):
    for name in ("a", "b", "c"):
        store.generate(name, sealing())
    store.counter_increment("count")
    sealed = {name: store.seal(name, name.encode(), b"") for name in ("a", "c")}
    store.destroy("b")
    store.generate("b", sealing())
    own.restart()
    for name, raw in sealed.items():
        with store.unseal(name, raw, b"") as opened:
            assert bytes(opened.view()) == name.encode()
    assert len(indices(own)) == 3


def test_a_wrong_pin_is_still_a_wrong_pin(store, own, tmp_path):
    store.generate("k", sealing(user_auth=True))
    guessing = Tpm2KeyStore(tmp_path / "keys", own.tcti, pins=pins(key=b"1111"))
    assert refusal(guessing.seal, "k", b"s", b"").code == "keys.pin.refused"
    store.seal("k", b"s", b"")


def test_other_registers_are_named(store, own):
    store.generate("k", sealing(pcrs=frozenset({16})))
    store.extend(16, bytes(32))
    assert refusal(store.seal, "k", b"s", b"").code == "keys.pcr.mismatch"


def test_a_persistent_key_is_dead_as_well(store, own, tmp_path):
    store.generate("k", signing())
    store.persist("k", 0x81000100)
    store.signer("k").sign(b"m")
    shutil.copytree(store._folder.path, tmp_path / "copy")
    store.destroy("k")
    assert refusal(lambda: Tpm2KeyStore(tmp_path / "copy", own.tcti).signer("k").sign(b"m")).code == "keys.key.missing"


# ---- without the owner ---------------------------------------------------------------------------------------


def owned(tpm, tmp_path, source=lambda: Secret(OWNER)):
    """A store over a TPM with an owner; ``source`` says what his authorisation is."""
    with ESAPI(tpm.tcti) as esys:
        key = esys.create_primary(TPM2B_SENSITIVE_CREATE(), public_of(PRIMARY_TEMPLATE))[0]
        esys.evict_control(ESYS_TR.OWNER, key, SRK_HANDLE)  # else whoever loads the storage key has to be the owner
        esys.flush_context(key)
        esys.hierarchy_change_auth(ESYS_TR.OWNER, OWNER)
    return Tpm2KeyStore.create(tmp_path / "keys", tpm.tcti, pins=Tpm2Pins(owner=source))


def nobody():
    raise StorageMissing("the file with the owner's authorisation is gone")


@pytest.mark.parametrize("source", [lambda: Secret(b"somebody else"), nobody, None], ids=["wrong", "gone", "empty"])
def test_who_is_not_the_owner_ends_it_all_the_same(own, tmp_path, source):
    store = owned(own, tmp_path)
    store.generate("k", sealing())
    sealed = store.seal("k", b"secret", b"")
    shutil.copytree(store._folder.path, tmp_path / "copy")
    Tpm2KeyStore(tmp_path / "keys", own.tcti, pins=Tpm2Pins(owner=source)).destroy("k")
    assert len(indices(own)) == 1, "without the owner the index stays"
    thief = Tpm2KeyStore(tmp_path / "copy", own.tcti, pins=pins(owner=OWNER))
    assert refusal(thief.unseal, "k", sealed, b"").code == "keys.key.missing"
    thief.destroy("k")
    assert indices(own) == set()


def test_what_an_interruption_left_is_not_forgotten_without_the_owner(own, tmp_path, monkeypatch):
    answers = [OWNER]
    store = owned(own, tmp_path, lambda: Secret(answers[0]))
    with monkeypatch.context() as cut:
        cut.setattr(Chip, "create", lambda *_, **__: (_ for _ in ()).throw(PowerCut()))
        with pytest.raises(PowerCut):
            store.generate("k", sealing())
    answers[0] = b"somebody else"
    assert refusal(store.generate, "k", sealing()).code == "keys.pin.refused"
    assert (tmp_path / "keys" / "k.making").exists()
    answers[0] = OWNER
    store.generate("k", KeySpec(purpose=KeyPurpose.SEAL))  # not revocable: what was left goes all the same
    assert (indices(own), (tmp_path / "keys" / "k.making").exists()) == (set(), False)


def test_destroying_takes_away_what_an_interruption_left(own, store, monkeypatch):
    with monkeypatch.context() as cut:
        cut.setattr(Chip, "create", lambda *_, **__: (_ for _ in ()).throw(PowerCut()))
        with pytest.raises(PowerCut):
            store.generate("k", sealing())
    assert len(indices(own)) == 1
    assert refusal(store.destroy, "k").code == "keys.key.missing"
    assert indices(own) == set()


# ---- destroying means this TPM and this key ------------------------------------------------------------------


def test_a_hierarchy_that_is_switched_off_hides_no_key_from_its_end(own, store, tmp_path):
    """The counter is then not there, and comes back with the next start: that is no end."""
    store.generate("k", sealing())
    sealed = store.seal("k", b"secret", b"")
    with ESAPI(own.tcti) as esys:
        esys.hierarchy_control(ESYS_TR.OWNER, ESYS_TR.OWNER, False)
    assert refusal(store.destroy, "k").code == "keys.provider.failed"
    own.restart()
    with store.unseal("k", sealed, b"") as opened:
        assert bytes(opened.view()) == b"secret"
    store.destroy("k")


def test_another_tpm_in_its_place_is_no_end(own, store, tmp_path):
    store.generate("k", sealing())
    shutil.copytree(own.folder, tmp_path / "state")
    own.wipe()
    assert refusal(store.destroy, "k").code == "keys.unlock.refused"
    assert refusal(store.seal, "k", b"s", b"").code == "keys.unlock.refused"
    assert [key.name for key in store.list_keys()] == ["k"]


@pytest.mark.parametrize("harm", [lambda pem: pem.unlink(), lambda pem: pem.write_bytes(b"rubbish")])
def test_a_key_whose_file_is_gone_or_damaged_is_ended_too(own, store, tmp_path, harm):
    store.generate("k", sealing())
    sealed = store.seal("k", b"secret", b"")
    shutil.copytree(store._folder.path, tmp_path / "copy")
    harm(store._folder.path / "k.pem")
    with contextlib.suppress(TidegateError):
        store.destroy("k")
    assert indices(own) == set()
    thief = Tpm2KeyStore(tmp_path / "copy", own.tcti)
    assert refusal(thief.unseal, "k", sealed, b"").code == "keys.key.missing"


def test_a_folder_that_cannot_be_written_any_more(own, store, monkeypatch):
    """A file system that an error made read-only, in the middle of an erasure: the key dies, the failure is told."""
    store.generate("k", sealing())
    sealed = store.seal("k", b"secret", b"")

    def read_only(*_, **__):
        raise StorageFailed("read-only file system")

    with monkeypatch.context() as patch:
        patch.setattr(Tpm2Folder, "lock", read_only)
        assert refusal(store.destroy, "k").code == "base.storage.failed"
    assert refusal(store.unseal, "k", sealed, b"").code == "keys.key.missing"


def test_a_record_that_was_not_durable_leaves_no_dead_key(own, store, monkeypatch):
    real = Tpm2Folder.add

    def add(folder, *arguments):
        real(folder, *arguments)
        raise StorageFailed("the folder was not synchronised")

    with monkeypatch.context() as patch:
        patch.setattr(Tpm2Folder, "add", add)
        assert refusal(store.generate, "k", sealing()).code == "base.storage.failed"
    assert (store.list_keys(), indices(own)) == ([], set())


def test_a_session_from_before_lives_until_the_next_start(own, store, tmp_path):
    """A limit that the documentation names: the TPM compares when the session is made, not when it is used."""
    store.generate("k", sealing(user_auth=True))
    key = store._key("k")

    def prepare(chip):
        session = chip.session(None, policy=True)
        tpm2_revocation.satisfy_lifeline(chip, session, "k", key.record.revocation)
        chip.esys.policy_auth_value(session)
        chip._loaded.remove(session)
        return chip.esys.context_save(session)

    saved = store._run(prepare)
    store.destroy("k")

    def use(chip):
        handle = chip.load(key.wrapped, lambda: store._primary(chip))
        chip.esys.tr_set_auth(handle, b"2580")
        return len(bytes(chip.esys.unseal(handle, session1=chip.esys.context_load(saved))))

    assert store._run(use) == 32
    own.restart()
    with pytest.raises(TidegateError):
        store._run(use)


# ---- without room, without power -----------------------------------------------------------------------------


def fill_up(tpm):
    """Define NV indices until there is no room for another counter, for which a TPM keeps some back; return one."""
    index = first = 0x01800000
    ordinary = TPMA_NV.AUTHREAD | TPMA_NV.AUTHWRITE
    with ESAPI(tpm.tcti) as esys:
        for size, attributes in ((2048, ordinary), (8, ordinary), (8, TPMA_NV(COUNT_ATTRIBUTES))):
            with contextlib.suppress(TSS2_Exception):
                while True:
                    public = TPMS_NV_PUBLIC(
                        nvIndex=index, nameAlg=TPM2_ALG.SHA256, attributes=attributes, dataSize=size
                    )
                    esys.tr_close(esys.nv_define_space(b"", TPM2B_NV_PUBLIC(public)))
                    index += 1
    return first


def test_a_tpm_without_room(own, store):
    store.generate("k", sealing())
    filler = fill_up(own)
    error = refusal(store.generate, "l", sealing())
    assert (error.code, "no room" in error.message) == ("keys.provider.failed", True)
    assert refusal(store.seal, "l", b"", b"").code == "keys.key.missing"
    assert len(indices(own)) == 1
    store.seal("k", b"s", b"")
    with ESAPI(own.tcti) as esys:
        esys.nv_undefine_space(esys.tr_from_tpmpublic(filler))
    store.generate("l", sealing())


STEPS = [
    (Chip, "create"),
    *((Tpm2Folder, name) for name in ("begin_making", "add", "end_making")),
    *((_Patient, name) for name in ("nv_define_space", "nv_increment")),
]


@pytest.mark.parametrize("before", [True, False], ids=["before", "behind"])
@pytest.mark.parametrize("step", range(len(STEPS)), ids=[name for _, name in STEPS])
def test_a_power_cut_while_it_is_made_leaves_nothing_for_long(own, store, tmp_path, monkeypatch, step, before):
    place, name = STEPS[step]
    with monkeypatch.context() as cut:
        real = getattr(place, name, None) or (lambda esys, *args, **named: getattr(esys._esys, name)(*args, **named))

        def until(*arguments, **named):
            if not before:
                real(*arguments, **named)
            raise PowerCut

        cut.setattr(place, name, until, raising=False)
        with pytest.raises(PowerCut):
            store.generate("k", sealing())
    again = Tpm2KeyStore(tmp_path / "keys", own.tcti)
    if [key.name for key in again.list_keys()] == ["k"]:  # whole
        again.seal("k", b"s", b"")
        again.destroy("k")
    again.generate("k", sealing())
    again.seal("k", b"s", b"")
    assert len(indices(own)) == 1
    assert not list((tmp_path / "keys").glob("*.making"))


@pytest.mark.parametrize("step", ["nv_undefine_space", "remove"])
def test_a_power_cut_while_it_is_destroyed(own, store, monkeypatch, step):
    store.generate("k", sealing())
    if step == "remove":
        monkeypatch.setattr(Tpm2Folder, "remove", lambda *_: (_ for _ in ()).throw(PowerCut()))
    else:
        monkeypatch.setattr(_Patient, step, lambda *_, **__: (_ for _ in ()).throw(PowerCut()), raising=False)
    with pytest.raises(PowerCut):
        store.destroy("k")
    monkeypatch.undo()
    assert refusal(store.seal, "k", b"s", b"").code == "keys.key.missing"
    store.destroy("k")
    assert (store.list_keys(), indices(own)) == ([], set())


def test_an_index_of_somebody_else_in_its_place(own, store):
    """Nothing of another's is incremented or removed, though the folder says that it is ours."""
    store.generate("k", sealing())
    line = record_of(store, "k").revocation
    with ESAPI(own.tcti) as esys:
        esys.nv_undefine_space(esys.tr_from_tpmpublic(line.index))
        public = TPMS_NV_PUBLIC(
            nvIndex=line.index, nameAlg=TPM2_ALG.SHA256, attributes=TPMA_NV(COUNT_ATTRIBUTES), dataSize=8
        )
        esys.nv_define_space(b"", TPM2B_NV_PUBLIC(public))
    assert refusal(store.seal, "k", b"s", b"").code == "keys.key.missing"
    store.destroy("k")
    assert indices(own) == {line.index}


def test_places_that_are_taken(own, store, monkeypatch):
    store.generate("a", sealing())
    monkeypatch.setattr(tpm2_revocation, "REVOCATION_INDICES", [record_of(store, "a").revocation.index])
    assert refusal(store.generate, "b", sealing()).code == "keys.provider.failed"
    assert [key.name for key in store.list_keys()] == ["a"]


def test_notes_of_making_that_are_none(store):
    line = store._tpm.run(lambda chip: tpm2_revocation.choose_lifeline(chip, store._entropy))
    assert parse_lifeline(encode_lifeline(line)) == line
    for raw in (b"", encode_lifeline(line)[:-1], encode_lifeline(line).replace(b"lifeline", b"lifelong")):
        assert refusal(parse_lifeline, raw).code == "keys.store.malformed"
    assert tpm_at(store._tpm.tcti) is store._tpm
