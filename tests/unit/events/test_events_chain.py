"""A row per attack on the log: each is refused with the code that names it and the place where it happened."""

import json
from dataclasses import dataclass, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tidegate.base.errors import Rejected
from tidegate.crypto.signing import SignatureAlgorithm
from tidegate.crypto.trust import TrustPolicy
from tidegate.events import catalogue
from tidegate.events.chain import VerifiedLog, verify_chain, verify_segment
from tidegate.events.checkpoint import Checkpoint, sign_checkpoint
from tidegate.events.lines import NO_HEAD, StoredLine, encode_gap, first_link, hash_gaps, hash_line, parse_line
from tidegate.events.model import EventId, Link, encode_canonical, encode_line
from tidegate.keys.software import DeviceSecretUnlock, SoftwareKeyStore
from tidegate.keys.store import KeyPurpose, KeySpec

DEVICE = "dev-1"


@pytest.fixture(scope="module")
def signers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("keys")
    secret = folder / "secret"
    secret.touch(mode=0o600)
    secret.write_bytes(bytes(32))
    store = SoftwareKeyStore.create(folder / "store", DeviceSecretUnlock(secret))
    for name in ("device", "stranger"):
        store.generate(name, KeySpec(purpose=KeyPurpose.SIGN, algorithm=SignatureAlgorithm.ED25519))
    return store.signer("device"), store.signer("stranger")


@pytest.fixture
def trust(signers):
    return TrustPolicy(keys=(signers[0].public_key,), threshold=1, required_classes=frozenset())


@dataclass
class Log:
    """A log in memory, to be tampered with: lines and checkpoints as bytes, the keys to make more."""

    signer: object
    stranger: object
    lines: list
    checkpoints: list

    def verify(self, trust):
        lines = [StoredLine(file="00000001.events", number=n, raw=raw) for n, raw in enumerate(self.lines, 1)]
        statements = [
            StoredLine(file="00000001.checkpoints", number=n, raw=r) for n, r in enumerate(self.checkpoints, 1)
        ]
        return verify_chain(lines, statements, trust=trust)


def write_boot(boot, count, signer, *, device=DEVICE, before=(None, NO_HEAD), every=4, tail=0, event=None):
    """Return the lines and checkpoints of one boot; the last ``tail`` lines are newer than the last checkpoint."""
    link = first_link(device, boot, previous_boot=before[0], previous_head=before[1])
    lines, checkpoints, start = [], [], 1
    for sequence in range(1, count + 1):
        happened = event(sequence) if event else catalogue.update_progress(version="1", step=f"{boot} {sequence}")
        identity = EventId(device=device, boot=boot, sequence=sequence)
        lines.append(encode_line(happened, identity=identity, link=link, time_ms=1_700_000_000_000 + sequence))
        link = Link(prev=hash_line(lines[-1]))
        if (sequence % every == 0 and sequence <= count - tail) or sequence == count - tail:
            statement = Checkpoint(device=device, boot=boot, first=start, last=sequence, head=link.prev)
            checkpoints.append(sign_checkpoint(statement, [signer]))
            start = sequence + 1
    return lines, checkpoints


@pytest.fixture
def log(signers):
    """Two boots of 10 and 6 events; the last two of the second are not signed yet."""
    first, first_points = write_boot("b1", 10, signers[0])
    second, second_points = write_boot("b2", 8, signers[0], before=("b1", hash_line(first[-1])), tail=2)
    return Log(signers[0], signers[1], first + second, first_points + second_points)


def change(raw, **members):
    document = json.loads(raw)
    document.update(members)
    return encode_canonical(document)


# -- what is right ----------------------------------------------------------------------------------------------------


def test_whole_log(log, trust):
    verified = log.verify(trust)
    assert (verified.device, verified.boots) == (DEVICE, ("b1", "b2"))
    assert (verified.signed, verified.unsigned_tail, verified.removed) == (16, 2, 0)
    assert (verified.last_boot, verified.last_sequence, verified.head) == ("b2", 8, hash_line(log.lines[-1]))


def test_boot_that_ended_without_a_checkpoint_is_covered_by_the_next(log, trust):
    del log.checkpoints[:3]
    assert log.verify(trust).signed == 16


def test_last_line_that_a_power_cut_tore_counts_as_not_written(log, trust):
    lines = [StoredLine(file="f", number=n, raw=raw) for n, raw in enumerate(log.lines, 1)]
    lines.append(StoredLine(file="f", number=19, raw=log.lines[-1][:40], complete=False))
    points = [StoredLine(file="c", number=n, raw=raw) for n, raw in enumerate(log.checkpoints, 1)]
    assert verify_chain(lines, points, trust=trust).unsigned_tail == 2


# -- attacks: name, code, line that is named, what the attacker does ---------------------------------------------------

ATTACKS = []


def attack(code, line=None):
    def register(function):
        ATTACKS.append(pytest.param(function, code, line, id=function.__name__))
        return function

    return register


@attack("events.chain.altered", 1)
def alter_the_first_event(log):
    log.lines[0] = change(log.lines[0], message="all is well")


@attack("events.chain.altered", 5)
def alter_an_event_in_the_middle(log):
    log.lines[4] = change(log.lines[4], message="all is well")


@attack("events.chain.altered", 10)
def alter_the_last_event_of_a_boot(log):
    log.lines[9] = change(log.lines[9], message="all is well")


@attack("events.chain.altered", 16)
def alter_the_last_signed_event_and_drop_the_tail(log):
    log.lines[15] = change(log.lines[15], message="all is well")
    del log.lines[16:]


@attack("events.chain.altered", 6)
def alter_the_link_of_an_event(log):
    document = json.loads(log.lines[5])
    document["unmapped"]["tidegate"]["prev"] = "00" * 32
    log.lines[5] = encode_canonical(document)


@attack("events.chain.altered", 4)
def rewrite_everything_behind_an_altered_event(log):
    """Recompute every hash: the checkpoints do not move with it."""
    log.lines[2] = change(log.lines[2], message="all is well")
    for index in range(3, 10):
        document = json.loads(log.lines[index])
        document["unmapped"]["tidegate"]["prev"] = hash_line(log.lines[index - 1]).hex()
        log.lines[index] = encode_canonical(document)
    document = json.loads(log.lines[10])
    document["unmapped"]["tidegate"]["previous"]["head"] = hash_line(log.lines[9]).hex()
    link = first_link(DEVICE, "b2", previous_boot="b1", previous_head=hash_line(log.lines[9]))
    document["unmapped"]["tidegate"]["prev"] = link.prev.hex()
    log.lines[10] = encode_canonical(document)
    for index in range(11, 18):
        document = json.loads(log.lines[index])
        document["unmapped"]["tidegate"]["prev"] = hash_line(log.lines[index - 1]).hex()
        log.lines[index] = encode_canonical(document)


@attack("events.chain.altered", 11)
def alter_what_a_boot_continues(log):
    document = json.loads(log.lines[10])
    document["unmapped"]["tidegate"]["prev"] = "11" * 32
    log.lines[10] = encode_canonical(document)


@attack("events.chain.malformed", 3)
def spread_an_event_over_spaces(log):
    log.lines[2] = log.lines[2].replace(b'":', b'": ', 1)


@attack("events.chain.malformed", 3)
def let_two_members_disagree(log):
    log.lines[2] = log.lines[2].replace(b'{"activity_id":8', b'{"activity_id":8,"activity_id":8', 1)


@attack("events.chain.malformed", 3)
def renumber_an_event(log):
    log.lines[2] = log.lines[2].replace(b'"seq":3', b'"seq":9')


@attack("events.chain.malformed", 3)
def write_something_else(log):
    log.lines[2] = b"Nov 23 kernel: nothing to see"


@attack("events.chain.malformed", 3)
def nest_without_end(log):
    log.lines[2] = b"[" * 5000 + b"]" * 5000


@attack("events.chain.malformed", 3)
def write_a_line_without_end(log):
    log.lines[2] = change(log.lines[2], message="x" * 20_000)


@attack("events.chain.missing", 1)
def drop_the_first_event(log):
    del log.lines[0]


@attack("events.chain.missing", 5)
def drop_an_event_in_the_middle(log):
    del log.lines[4]


@attack("events.chain.missing", 10)
def drop_the_last_event_of_a_boot(log):
    del log.lines[9]


@attack("events.chain.truncated")
def drop_the_last_signed_event_and_the_tail(log):
    del log.lines[15:]


@attack("events.chain.truncated")
def drop_every_event(log):
    log.lines.clear()


@attack("events.chain.missing", 1)
def drop_the_first_boot(log):
    del log.lines[:10]
    del log.checkpoints[:3]


@attack("events.chain.missing", 11)
def drop_a_boot_in_the_middle(log):
    third, points = write_boot("b3", 4, log.signer, before=("b2", hash_line(log.lines[-1])))
    log.lines[10:] = third
    log.checkpoints[3:] = points


@attack("events.chain.reordered", 5)
def swap_two_events(log):
    log.lines[4], log.lines[5] = log.lines[5], log.lines[4]


@attack("events.chain.reordered", 1)
def put_the_first_event_last(log):
    log.lines.append(log.lines.pop(0))


@attack("events.chain.reordered", 1)
def swap_two_boots(log):
    log.lines = log.lines[10:] + log.lines[:10]


@attack("events.chain.duplicated", 6)
def repeat_an_event(log):
    log.lines.insert(5, log.lines[4])


@attack("events.chain.duplicated", 19)
def replay_an_earlier_boot_at_the_end(log):
    log.lines.extend(log.lines[:10])


@attack("events.chain.altered", 6)
def put_another_event_in_a_taken_place(log):
    log.lines.insert(5, change(log.lines[4], message="also"))


@attack("events.chain.foreign", 6)
def put_in_an_event_of_another_boot(log):
    other, _ = write_boot("b7", 6, log.signer)
    log.lines.insert(5, other[5])


@attack("events.chain.foreign", 6)
def put_in_an_event_of_another_device(log):
    other, _ = write_boot("b1", 6, log.signer, device="dev-2")
    log.lines[5] = other[5]


@attack("events.chain.foreign")
def put_in_a_checkpoint_of_another_device(log):
    log.checkpoints[1] = write_boot("b1", 8, log.signer, device="dev-2")[1][1]


@attack("events.chain.altered", 8)
def put_in_a_checkpoint_of_the_same_boot_of_a_device_with_the_same_key(log):
    log.checkpoints[1] = write_boot("b1", 8, log.signer, event=lambda n: catalogue.agent_started())[1][1]


@attack("events.chain.truncated")
def put_in_a_checkpoint_of_an_unknown_boot(log):
    log.checkpoints.append(write_boot("b9", 4, log.signer)[1][0])


@attack("events.checkpoint.invalid", 2)
def forge_a_checkpoint_with_another_key(log):
    log.checkpoints[1] = write_boot("b1", 8, log.stranger)[1][1]


@attack("events.checkpoint.invalid", 2)
def alter_a_checkpoint(log):
    document = json.loads(log.checkpoints[1])
    letters = list(document["envelope"])
    letters[40] = "A" if letters[40] != "A" else "B"
    document["envelope"] = "".join(letters)
    log.checkpoints[1] = encode_canonical(document)


@attack("events.checkpoint.invalid", 2)
def alter_the_plain_number_of_a_checkpoint(log):
    log.checkpoints[1] = change(log.checkpoints[1], last=7)


@attack("events.checkpoint.invalid", 2)
def cut_a_checkpoint(log):
    log.checkpoints[1] = log.checkpoints[1][:-20]


@attack("events.checkpoint.invalid", 2)
def write_no_base64(log):
    log.checkpoints[1] = change(log.checkpoints[1], envelope="?")


@attack("events.checkpoint.invalid", 1)
def make_a_checkpoint_without_end(log):
    log.checkpoints[0] = change(log.checkpoints[0], envelope="A" * 100_000)


@attack("events.checkpoint.invalid", 3)
def repeat_a_checkpoint(log):
    log.checkpoints.insert(2, log.checkpoints[1])


@attack("events.checkpoint.missing", 2)
def remove_a_checkpoint(log):
    del log.checkpoints[1]


@attack("events.checkpoint.missing", 1)
def remove_the_first_checkpoint(log):
    del log.checkpoints[0]


@attack("events.chain.unsigned", 1)
def remove_every_checkpoint(log):
    log.checkpoints.clear()


@attack("events.log.empty")
def remove_everything(log):
    log.lines.clear()
    log.checkpoints.clear()


@attack("events.chain.missing", 5)
def pass_a_removal_off_as_a_gap(log):
    entries = [parse_line(StoredLine(file="f", number=1, raw=raw)) for raw in log.lines[4:7]]
    log.lines[4:7] = [encode_gap(entries)]


@attack("events.chain.missing", 5)
def widen_a_gap_that_was_accounted_for(log):
    """The key signed a gap of two events; the attacker lets it swallow the alert behind it."""
    entries = [parse_line(StoredLine(file="f", number=1, raw=raw)) for raw in log.lines[4:7]]
    small, wide = encode_gap(entries[:2]), encode_gap(entries)
    account = hash_gaps([parse_line(StoredLine(file="f", number=1, raw=small))])
    statement = Checkpoint(device=DEVICE, boot="b1", first=5, last=8, head=hash_line(log.lines[7]), gaps=account)
    log.checkpoints[1] = sign_checkpoint(statement, [log.signer])
    log.lines[4:7] = [wide]


@attack("events.chain.missing", 5)
def account_for_a_gap_under_another_checkpoint(log):
    gap = encode_gap([parse_line(StoredLine(file="f", number=1, raw=raw)) for raw in log.lines[4:7]])
    account = hash_gaps([parse_line(StoredLine(file="f", number=1, raw=gap))])
    statement = Checkpoint(device=DEVICE, boot="b1", first=9, last=10, head=hash_line(log.lines[9]), gaps=account)
    log.checkpoints[2] = sign_checkpoint(statement, [log.signer])
    log.lines[4:7] = [gap]


@attack("events.chain.missing", 17)
def hide_the_unsigned_tail_behind_a_gap(log):
    log.lines[16:] = [encode_gap([parse_line(StoredLine(file="f", number=1, raw=raw)) for raw in log.lines[16:]])]


@pytest.mark.parametrize(("tamper", "code", "line"), ATTACKS)
def test_attack_is_refused(log, trust, tamper, code, line):
    tamper(log)
    with pytest.raises(Rejected) as caught:
        log.verify(trust)
    assert caught.value.code == code
    if line is not None:
        assert caught.value.fields["line"] == line


def test_every_code_of_the_chain_has_an_attack():
    from tidegate.events import errors

    codes = {value.code for value in vars(errors).values() if isinstance(value, type) and issubclass(value, Rejected)}
    assert codes - {""} == {param.values[1] for param in ATTACKS}


# -- what may be absent -----------------------------------------------------------------------------------------------


def test_gap_that_a_checkpoint_accounts_for(signers, trust):
    lines, points = write_boot("b1", 9, signers[0])
    gap = encode_gap([parse_line(StoredLine(file="f", number=1, raw=raw)) for raw in lines[1:3]])
    account = hash_gaps([parse_line(StoredLine(file="f", number=1, raw=gap))])
    statement = Checkpoint(device=DEVICE, boot="b1", first=1, last=4, head=hash_line(lines[3]), gaps=account)
    points[0] = sign_checkpoint(statement, [signers[0]])
    lines[1:3] = [gap]
    verified = Log(*signers, lines, points).verify(trust)
    assert (verified.signed, verified.removed) == (7, 2)
    for index in (0, 2):
        altered = [*lines[:index], change(lines[index], message="all is well"), *lines[index + 1 :]]
        with pytest.raises(Rejected) as caught:
            Log(*signers, altered, points).verify(trust)
        assert (caught.value.code, caught.value.fields["line"]) == ("events.chain.altered", index + 1)


def test_start_that_a_signed_event_accounts_for(signers, trust):
    lines, _ = write_boot("b1", 6, signers[0])
    head = hash_line(lines[2]).hex()

    def event(sequence):
        if sequence == 8:
            return catalogue.log_dropped(segment=1, count=3, head=head)
        return catalogue.update_progress(version="1", step=f"b1 {sequence}")

    lines, points = write_boot("b1", 9, signers[0], event=event)
    assert Log(*signers, lines[3:], points).verify(trust).signed == 6
    with pytest.raises(Rejected) as caught:
        Log(*signers, lines[4:], points).verify(trust)
    assert caught.value.code == "events.chain.missing"


# -- properties -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small(signers):
    lines, points = write_boot("b1", 3, signers[0])
    trust = TrustPolicy(keys=(signers[0].public_key,), threshold=1, required_classes=frozenset())
    return b"\n".join(lines), points, trust


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_any_flipped_bit_is_refused(small, data):
    raw, points, trust = small
    bit = data.draw(st.integers(0, len(raw) * 8 - 1))
    flipped = bytearray(raw)
    flipped[bit // 8] ^= 1 << bit % 8
    lines = [StoredLine(file="f", number=n, raw=line) for n, line in enumerate(bytes(flipped).split(b"\n"), 1)]
    with pytest.raises(Rejected):
        verify_chain(lines, [StoredLine(file="c", number=1, raw=point) for point in points], trust=trust)


@settings(max_examples=200, deadline=None)
@given(order=st.permutations(range(3)), kept=st.integers(1, 3))
def test_only_the_written_order_is_accepted(small, order, kept):
    raw, points, trust = small
    written = raw.split(b"\n")
    lines = [StoredLine(file="f", number=1, raw=written[index]) for index in order[:kept]]
    statements = [StoredLine(file="c", number=1, raw=point) for point in points]
    if order == [0, 1, 2] and kept == 3:
        assert verify_chain(lines, statements, trust=trust).signed == 3
    else:
        with pytest.raises(Rejected):
            verify_chain(lines, statements, trust=trust)


@settings(max_examples=200, deadline=None)
@given(raw=st.binary(max_size=400))
def test_parser_raises_only_rejected(raw):
    with pytest.raises(Rejected):
        parse_line(StoredLine(file="f", number=1, raw=raw))


def test_segment_is_consistent_in_itself(log, trust):
    """What a writer checks before it replaces a part of the log by a shorter one and signs that."""
    lines = [StoredLine(file="f", number=n, raw=raw) for n, raw in enumerate(log.lines[4:10], 1)]
    points = [StoredLine(file="c", number=n, raw=raw) for n, raw in enumerate(log.checkpoints[1:3], 1)]
    assert len(verify_segment(lines, points, trust=trust)) == 6
    assert len(verify_segment(lines, [], trust=None)) == 6
    for altered in (lines[1:3] + lines[4:], [replace(lines[0], raw=change(lines[0].raw, message="x")), *lines[1:]]):
        with pytest.raises(Rejected):
            verify_segment(altered, points, trust=trust)
        with pytest.raises(Rejected):
            verify_segment(altered, [], trust=None)


def test_verified_log_cannot_be_made_by_hand(log, trust):
    verified = log.verify(trust)
    with pytest.raises(TypeError):
        VerifiedLog(**{name: getattr(verified, name) for name in VerifiedLog.__slots__ if name != "proof"}, proof=None)
    with pytest.raises(TypeError):
        replace(verified, proof=object())
