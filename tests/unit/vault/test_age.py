"""age files: what is written opens again, what was changed does not, and nothing leaves before it is authentic."""

import contextlib
import hashlib
import io
import pickle
import traceback
import tracemalloc

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tidegate.base.errors import Fault, Misuse, Rejected, TidegateError
from tidegate.crypto.aead import Secret
from tidegate.vault import age_errors, age_recipients
from tidegate.vault.age import decrypt, decrypt_secret, encrypt, encrypt_secret
from tidegate.vault.age_format import (
    CHUNK_BYTES,
    MAX_ARMOR_SPACE_BYTES,
    MAX_HEADER_BYTES,
    MAX_STANZAS,
    ArmorDecoder,
    ArmorEncoder,
    PayloadCipher,
    Stanza,
    decode_bech32,
    encode_bech32,
    encode_header,
)
from tidegate.vault.age_recipients import (
    MAX_KEY_FILE_BYTES,
    Company,
    HybridIdentity,
    ScryptIdentity,
    ScryptRecipient,
    X25519Identity,
    parse_identities,
    parse_recipient,
)

# the examples of the specification
X25519_SECRET = b"AGE-SECRET-KEY-1GFPYYSJZGFPYYSJZGFPYYSJZGFPYYSJZGFPYYSJZGFPYYSJZGFPQ4EGAEX"
X25519_PUBLIC = "age1zvkyg2lqzraa2lnjvqej32nkuu0ues2s82hzrye869xeexvn73equnujwj"
HYBRID_SECRET = b"AGE-SECRET-KEY-PQ-1XX76JRALNLXDMEW0CRK45QMCCH4X06SE84UN3VPM33W6HWDX0H3SK3ZQFR"
HYBRID_PUBLIC_SHA256 = "a091dd7e0ee9d62b75173dcc98441a0424baa941e66a8776e570a4ae60ff61ea"
IDENTITY, HYBRID = (parse_identities(text)[0] for text in (X25519_SECRET, HYBRID_SECRET))
STRANGER = X25519Identity(Secret(b"\x07" * 32))
PASSPHRASE = Secret(b"open sesame")
LOW_ORDER = [
    bytes(32),
    b"\x01" + bytes(31),
    bytes.fromhex("5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f11d7"),
]
PAIRS = {
    "x25519": (IDENTITY.recipient(), IDENTITY),
    "hybrid": (HYBRID.recipient(), HYBRID),
    "scrypt": (ScryptRecipient(PASSPHRASE, work_factor=2), ScryptIdentity(PASSPHRASE)),
}
SIZES = [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 2 * CHUNK_BYTES, 3 * CHUNK_BYTES + 5]


def content(size):
    return hashlib.shake_128(b"content").digest(size)


def sealed(plain=b"hello", *recipients, **options):
    target = io.BytesIO()
    encrypt(io.BytesIO(plain), target, recipients or [IDENTITY.recipient()], **options)
    return target.getvalue()


def opened(data, *identities, **options):
    return b"".join(decrypt(io.BytesIO(data), identities or [IDENTITY], **options))


def code_of(call, *arguments, **options):
    with pytest.raises(TidegateError) as caught:
        call(*arguments, **options)
    return caught.value.code


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("armored", [False, True], ids=["binary", "armored"])
@pytest.mark.parametrize("pair", PAIRS)
def test_what_is_sealed_opens(pair, armored, size):
    recipient, identity = PAIRS[pair]
    data = sealed(content(size), recipient, armored=armored)
    assert data.isascii() == armored
    assert opened(data, identity) == content(size)
    assert opened(data, STRANGER, ScryptIdentity(PASSPHRASE), HYBRID, IDENTITY, armored=armored) == content(size)
    assert decrypt_secret(io.BytesIO(data), [identity], limit_bytes=size).view() == content(size)


def test_nothing_repeats():
    """File key, nonce, share and salt are new for each file."""
    for recipient, _ in PAIRS.values():
        first, second = sealed(bytes(64), recipient), sealed(bytes(64), recipient)
        assert first.split(b"\n")[1] != second.split(b"\n")[1]
        assert first[-80:] != second[-80:]


def test_a_secret_needs_no_stream():
    target = io.BytesIO()
    encrypt_secret(Secret(content(CHUNK_BYTES + 9)), target, [HYBRID.recipient()])
    assert opened(target.getvalue(), HYBRID) == content(CHUNK_BYTES + 9)


# -- keys ------------------------------------------------------------------------------------------------------------


def test_keys_of_the_specification():
    assert IDENTITY.recipient().encode() == X25519_PUBLIC
    assert hashlib.sha256(HYBRID.recipient().encode().encode()).hexdigest() == HYBRID_PUBLIC_SHA256
    assert IDENTITY.encode().view() == X25519_SECRET
    assert HYBRID.encode().view() == HYBRID_SECRET
    assert parse_recipient(X25519_PUBLIC).encode() == X25519_PUBLIC
    assert parse_recipient(HYBRID.recipient().encode()).encode() == HYBRID.recipient().encode()


@pytest.mark.parametrize("kind", [X25519Identity, HybridIdentity])
def test_new_identities_go_through_their_text(kind):
    made, other = kind.generate(), kind.generate()
    (read,) = parse_identities(made.encode().view())
    assert type(read) is kind
    assert read.recipient().encode() == made.recipient().encode() != other.recipient().encode()
    assert opened(sealed(b"x", made.recipient()), read) == b"x"


def test_a_file_of_identities():
    text = b"# made by a test\r\n\r\n" + X25519_SECRET + b"\r\n# another\n" + HYBRID_SECRET
    found = parse_identities(memoryview(text))
    assert [type(identity) for identity in found] == [X25519Identity, HybridIdentity]


FLIPPED = X25519_SECRET[:-1] + b"Y"
KEY_FILES = {
    "empty": (b"", "vault.age.key"),
    "comments": (b"# nothing\n\n", "vault.age.key"),
    "checksum": (FLIPPED, "vault.age.key"),
    "second line": (X25519_SECRET + b"\nAGE-SECRET-KEY-1\n", "vault.age.key"),
    "lower case": (X25519_SECRET.lower(), "vault.age.key"),
    "mixed case": (X25519_SECRET[:-1] + b"x", "vault.age.key"),
    "space": (X25519_SECRET + b" ", "vault.age.key"),
    "recipient": (X25519_PUBLIC.encode(), "vault.age.key"),
    "short": (encode_bech32(b"age-secret-key-", b"\x01" * 31).upper(), "vault.age.key"),
    "long": (encode_bech32(b"age-secret-key-pq-", b"\x01" * 33).upper(), "vault.age.key"),
    "zeros": (encode_bech32(b"age-secret-key-", bytes(32)).upper(), "vault.age.key"),
    "not ascii": (b"AGE-SECRET-KEY-\xff1QQQQQQ", "vault.age.key"),
    "too large": (b"#" * (MAX_KEY_FILE_BYTES + 1), "vault.age.key"),
    "too long": (b"A" * 3000, "vault.age.key"),
    "ssh": (b"-----BEGIN OPENSSH PRIVATE KEY-----\n", "vault.age.key-type"),
    "encrypted": (b"age-encryption.org/v1\n", "vault.age.key-type"),
    "plugin": (encode_bech32(b"age-plugin-yubikey-", b"\x01" * 8).upper(), "vault.age.key-type"),
}


@pytest.mark.parametrize("name", KEY_FILES)
def test_identities_that_are_none(name):
    text, code = KEY_FILES[name]
    assert code_of(parse_identities, text) == code


LATTICE = bytes(decode_bech32(bytearray(HYBRID.recipient().encode(), "ascii"))[1][:1184])
RECIPIENTS = {
    "empty": ("", "vault.age.key"),
    "cut": (X25519_PUBLIC[:-1], "vault.age.key"),
    "doubled character": (X25519_PUBLIC + "j", "vault.age.key"),
    "upper case": (X25519_PUBLIC.upper(), "vault.age.key"),
    "not ascii": (X25519_PUBLIC + "é", "vault.age.key"),
    "identity": (X25519_SECRET.decode(), "vault.age.key"),
    "short": (encode_bech32(b"age", b"\x09" * 31).decode(), "vault.age.key"),
    "hybrid of wrong length": (encode_bech32(b"age1pq", b"\x09" * 1215).decode(), "vault.age.key"),
    "hybrid of no key": (encode_bech32(b"age1pq", b"\xff" * 1184 + b"\x09" * 32).decode(), "vault.age.key"),
    "ssh": ("ssh-ed25519 AAAAC3NzaC1lZDI1NTE5", "vault.age.key-type"),
    "tag": (encode_bech32(b"age1tag", b"\x02" * 33).decode(), "vault.age.key-type"),
    "plugin": (encode_bech32(b"age1yubikey", b"\x02" * 33).decode(), "vault.age.key-type"),
    **{f"low order {n}": (encode_bech32(b"age", point).decode(), "vault.age.key") for n, point in enumerate(LOW_ORDER)},
    **{
        f"hybrid low order {n}": (
            encode_bech32(b"age1pq", LATTICE + point).decode(),
            "vault.age.key",
        )
        for n, point in enumerate(LOW_ORDER)
    },
}


@pytest.mark.parametrize("name", RECIPIENTS)
def test_recipients_that_are_none(name):
    text, code = RECIPIENTS[name]
    assert code_of(parse_recipient, text) == code


def test_every_wrong_character_of_a_key_is_noticed():
    for position in range(len(X25519_PUBLIC)):
        for other in "qz5":
            text = X25519_PUBLIC[:position] + other + X25519_PUBLIC[position + 1 :]
            assert text == X25519_PUBLIC or code_of(parse_recipient, text).startswith("vault.age.key")


@given(name=st.sampled_from([b"age", b"age1pq", b"x"]), data=st.binary(min_size=1, max_size=80))
def test_bech32_goes_both_ways(name, data):
    text = encode_bech32(name, data)
    assert decode_bech32(text) == (name, data)
    assert decode_bech32(text.upper()) == (name.upper(), data)


def test_bits_behind_the_end_of_a_key_are_refused():
    """A second text for the same key: BIP 173 wants the padding to be zeros and short."""
    good = encode_bech32(b"age", b"\x01" * 32)
    alphabet = "qpzry9x8gf2tvdw0s3jn54khce6mua7l"
    for change in range(1, 16):  # 52 characters hold 260 bits: four are padding
        values = [alphabet.index(chr(code)) for code in good[4:-6]]
        values[-1] ^= change
        body = bytearray("".join(alphabet[value] for value in values), "ascii")
        text = _with_checksum(b"age", body, alphabet)
        assert code_of(decode_bech32, text) == "vault.age.key"


def _with_checksum(name, body, alphabet):
    """An independent checksum: try nothing, compute BIP 173's with a table of its own."""
    checksum = 1
    values = [code >> 5 for code in name] + [0] + [code & 31 for code in name]
    values += [alphabet.index(chr(code)) for code in body] + [0] * 6
    for value in values:
        top, checksum = checksum >> 25, (checksum & 0x1FFFFFF) << 5 ^ value
        for bit, generator in enumerate((0x3B6A57B2, 0x26508E6D, 0x1EA119FA, 0x3D4233DD, 0x2A1462B3)):
            checksum ^= generator * (top >> bit & 1)
    checksum ^= 1
    return bytearray(name + b"1" + body) + bytes(ord(alphabet[checksum >> 5 * (5 - n) & 31]) for n in range(6))


# -- who may share a file --------------------------------------------------------------------------------------------


class Made:
    """A recipient whose stanzas a test made."""

    company = Company.CLASSICAL

    def __init__(self, *stanzas):
        self.stanzas = stanzas

    def wrap(self, file_key):
        return list(self.stanzas)


MIXTURES = {
    "none": [],
    "quantum computers": [PAIRS["x25519"][0], PAIRS["hybrid"][0]],
    "passphrase and key": [PAIRS["scrypt"][0], PAIRS["x25519"][0]],
    "passphrase and hybrid": [PAIRS["scrypt"][0], PAIRS["hybrid"][0]],
    "two passphrases": [PAIRS["scrypt"][0], PAIRS["scrypt"][0]],
    "too many": [PAIRS["x25519"][0]] * (MAX_STANZAS + 1),
    "space in an argument": [Made(Stanza(kind="example.com/x", arguments=("a b",)))],
    "line feed in a kind": [Made(Stanza(kind="x\n-> X25519"))],
    "empty argument": [Made(Stanza(kind="example.com/x", arguments=("",)))],
}


@pytest.mark.parametrize("name", MIXTURES)
def test_recipients_that_may_not_share_a_file(name):
    target = io.BytesIO()
    assert code_of(encrypt, io.BytesIO(b""), target, MIXTURES[name]) == "vault.age.recipients"
    assert target.getvalue() == b""


def test_misuse_of_settings():
    cases = [
        lambda: decrypt(io.BytesIO(sealed()), []),
        lambda: ScryptRecipient(Secret(b"")),
        lambda: ScryptIdentity(Secret(b"")),
        lambda: ScryptRecipient(PASSPHRASE, work_factor=0),
        lambda: ScryptRecipient(PASSPHRASE, work_factor=21),
        lambda: ScryptIdentity(PASSPHRASE, max_work_factor=31),
    ]
    assert {code_of(case) for case in cases} == {"vault.age.setting"}


def test_a_wiped_key_does_not_become_a_key_of_zeros():
    made, hybrid, phrase = X25519Identity.generate(), HybridIdentity.generate(), Secret(b"phrase")
    locker, opener = ScryptRecipient(phrase, work_factor=1), ScryptIdentity(phrase)
    file = sealed(b"", locker)
    for wiped in (made, hybrid, phrase):
        wiped.wipe()
    cases = [made.recipient, made.encode, hybrid.recipient, hybrid.encode]
    cases += [lambda: sealed(b"", locker), lambda: opened(file, opener), lambda: opened(sealed(), made)]
    assert {code_of(case) for case in cases} == {"vault.age.setting"}


# -- a row per refusal -----------------------------------------------------------------------------------------------


def with_stanzas(*stanzas):
    """A file whose header is right but for the stanzas."""
    return encode_header(stanzas, Secret(b"k" * 16)) + bytes(32)


def changed(data, old, new):
    assert data.count(old) == 1
    return data.replace(old, new)


def chunks(*marks):
    """A file of full chunks of zeros, each marked as the last or not."""
    key, nonce = b"k" * 16, b"n" * 16
    cipher = PayloadCipher(Secret(key), nonce)._cipher
    stanza = IDENTITY.recipient().wrap(Secret(key))
    body = b"".join(
        cipher.encrypt(index.to_bytes(11, "big") + bytes([mark]), bytes(CHUNK_BYTES), None)
        for index, mark in enumerate(marks)
    )
    return encode_header(stanza, Secret(key)) + nonce + body


SEALED = sealed(b"hello")
ARMORED = sealed(b"hello", armored=True)
SHARE = "A" * 43
X = Stanza(kind="X25519", arguments=(SHARE,), body=bytes(32))
S = Stanza(kind="scrypt", arguments=("A" * 22, "10"), body=bytes(32))
H = Stanza(kind="mlkem768x25519", arguments=("A" * 1494,), body=bytes(32))
MAC_LINE = next(line for line in SEALED.split(b"\n") if line.startswith(b"--- "))

REFUSED = {
    "empty": (b"", "vault.age.header"),
    "another file": (b"\x7fELF" + bytes(500), "vault.age.header"),
    "no line feed": (b"age-encryption.org/v1", "vault.age.header"),
    "version 2": (changed(SEALED, b"/v1\n", b"/v2\n"), "vault.age.version"),
    "version of nothing": (changed(SEALED, b"/v1\n", b"/\n"), "vault.age.header"),
    "version with a space": (changed(SEALED, b"/v1\n", b"/v1 \n"), "vault.age.header"),
    "no stanza": (b"age-encryption.org/v1\n" + MAC_LINE + b"\n", "vault.age.header"),
    "header without end": (SEALED[: SEALED.index(b"---")], "vault.age.header"),
    "mac in another mark": (changed(SEALED, b"\n--- ", b"\n-=- "), "vault.age.header"),
    "mac of 31 bytes": (changed(SEALED, MAC_LINE, b"--- " + b"A" * 42), "vault.age.header"),
    "mac of zeros": (changed(SEALED, MAC_LINE, b"--- " + b"A" * 43), "vault.age.mac"),
    "mac with padding": (changed(SEALED, MAC_LINE, MAC_LINE + b"="), "vault.age.header"),
    "nonce cut": (SEALED[: SEALED.index(MAC_LINE) + len(MAC_LINE) + 10], "vault.age.header"),
    "stanzas without end": (b"age-encryption.org/v1\n" + b"-> x\n\n" * (MAX_STANZAS + 1), "vault.age.header"),
    "line without end": (b"age-encryption.org/v1\n-> " + b"x" * MAX_HEADER_BYTES, "vault.age.header"),
    "body without end": (b"age-encryption.org/v1\n-> x\n" + (b"A" * 64 + b"\n") * 40_000, "vault.age.header"),
    "share of zeros": (with_stanzas(X), "vault.age.stanza"),
    "share too short": (with_stanzas(Stanza(kind="X25519", arguments=("AAAA",), body=bytes(32))), "vault.age.stanza"),
    "no share": (with_stanzas(Stanza(kind="X25519", body=bytes(32))), "vault.age.stanza"),
    "long body": (with_stanzas(Stanza(kind="X25519", arguments=(SHARE,), body=bytes(33))), "vault.age.stanza"),
    "hybrid of low order": (with_stanzas(H), "vault.age.stanza"),
    "hybrid too short": (with_stanzas(Stanza(kind=H.kind, arguments=(SHARE,), body=bytes(32))), "vault.age.stanza"),
    "hybrid with a long body": (
        with_stanzas(Stanza(kind=H.kind, arguments=H.arguments, body=bytes(33))),
        "vault.age.stanza",
    ),
    "passphrase beside a key": (with_stanzas(S, X), "vault.age.stanza"),
    "passphrase twice": (with_stanzas(S, S), "vault.age.stanza"),
    "passphrase beside an unknown": (with_stanzas(Stanza(kind="x-grease"), S), "vault.age.stanza"),
    "work factor in hexadecimal": (
        with_stanzas(Stanza(kind="scrypt", arguments=("A" * 22, "a"), body=bytes(32))),
        "vault.age.stanza",
    ),
    "work factor 21": (
        with_stanzas(Stanza(kind="scrypt", arguments=("A" * 22, "21"), body=bytes(32))),
        "vault.age.work-factor",
    ),
    "work factor of 300 digits": (
        with_stanzas(Stanza(kind="scrypt", arguments=("A" * 22, "9" * 300), body=bytes(32))),
        "vault.age.work-factor",
    ),
    "for another": (sealed(b"", STRANGER.recipient()), "vault.age.no-match"),
    "for another's hybrid": (sealed(b"", HybridIdentity(Secret(b"\x05" * 32)).recipient()), "vault.age.no-match"),
    "another passphrase": (sealed(b"", ScryptRecipient(Secret(b"x"), work_factor=1)), "vault.age.no-match"),
    "unknown stanza alone": (with_stanzas(Stanza(kind="x-grease")), "vault.age.no-match"),
    "stanza put in": (changed(SEALED, b"/v1\n", b"/v1\n-> x-grease\n\n"), "vault.age.mac"),
    "no payload": (chunks(), "vault.age.truncated"),
    "last chunk missing": (chunks(False, False), "vault.age.truncated"),
    "chunk behind the last": (chunks(True, True), "vault.age.extended"),
    "byte behind the last full": (chunks(False, True) + b"x", "vault.age.extended"),
    "byte behind a short last": (SEALED + b"x", "vault.age.payload"),
    "cut in a chunk": (SEALED[:-1], "vault.age.payload"),
    "cut in a tag": (SEALED[:-20], "vault.age.payload"),
    "byte changed": (SEALED[:-1] + bytes([SEALED[-1] ^ 1]), "vault.age.payload"),
    "armor without end": (ARMORED[: ARMORED.index(b"-----END")], "vault.age.armor"),
    "armor cut in its end": (ARMORED.rstrip()[:-1], "vault.age.armor"),
    "armor of another label": (ARMORED.replace(b"AGE ENCRYPTED FILE", b"CERTIFICATE"), "vault.age.armor"),
    "garbage behind the armor": (ARMORED + b"x", "vault.age.armor"),
    "armor twice": (ARMORED * 2, "vault.age.armor"),
    "space before the armor": (b"\n" * (MAX_ARMOR_SPACE_BYTES + 1) + ARMORED, "vault.age.armor"),
    "space behind the armor": (ARMORED + b" " * MAX_ARMOR_SPACE_BYTES, "vault.age.armor"),
    "armor's line too long": (b"-----BEGIN AGE ENCRYPTED FILE-----\n" + b"A" * 100_000, "vault.age.armor"),
    "armor's line of 68": (ARMORED.replace(b"\n", b"\nAAAA", 1), "vault.age.armor"),
    "armor with a space": (ARMORED.replace(b"\n", b"\n ", 1), "vault.age.armor"),
    "armor's line ends in CR CR": (ARMORED.replace(b"\n", b"\r\r\n"), "vault.age.armor"),
    "space only": (b" \n", "vault.age.armor"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    data, code = REFUSED[name]
    assert code_of(opened, data, IDENTITY, HYBRID, ScryptIdentity(PASSPHRASE)) == code


def test_each_code_has_a_row():
    rows = [code for table in (REFUSED, KEY_FILES, RECIPIENTS) for _, code in table.values()]
    rejected = {
        kind.code
        for kind in vars(age_errors).values()
        if isinstance(kind, type) and issubclass(kind, Rejected) and kind.code
    }
    assert rejected == set(rows)


def test_the_form_can_be_demanded():
    assert code_of(opened, SEALED, armored=True) == "vault.age.armor"
    assert code_of(opened, ARMORED, armored=False) == "vault.age.header"


def test_space_around_armor_and_carriage_returns_are_read():
    padding = b" \t\r\n" * (MAX_ARMOR_SPACE_BYTES // 4)
    assert opened(padding + ARMORED.replace(b"\n", b"\r\n") + padding[:-2]) == b"hello"
    assert opened(ARMORED.rstrip()) == b"hello"
    assert opened(ARMORED.rstrip() + b"   ") == b"hello"


def test_unknown_stanzas_are_skipped():
    key = Secret(b"k" * 16)
    grease = Stanza(kind="x-grease", arguments=("!", "~"), body=bytes(96))
    stanzas = [grease, *STRANGER.recipient().wrap(key), *IDENTITY.recipient().wrap(key), grease]
    sealing = PayloadCipher(key, b"n" * 16).seal_chunks(io.BytesIO(b"found").read)
    assert opened(encode_header(stanzas, key) + b"n" * 16 + b"".join(sealing)) == b"found"


def test_the_work_factor_s_limit_is_the_reader_s():
    data = sealed(b"", ScryptRecipient(PASSPHRASE, work_factor=4))
    assert code_of(opened, data, ScryptIdentity(PASSPHRASE, max_work_factor=3)) == "vault.age.work-factor"
    assert opened(data, ScryptIdentity(PASSPHRASE, max_work_factor=4)) == b""


def test_too_little_memory_is_a_fault(monkeypatch):
    def scrypt(**parameters):
        raise MemoryError

    data = sealed(b"", ScryptRecipient(PASSPHRASE, work_factor=1))
    monkeypatch.setattr(age_recipients, "Scrypt", scrypt)
    with pytest.raises(Fault) as caught:
        opened(data, ScryptIdentity(PASSPHRASE))
    assert caught.value.code == "vault.age.memory"


# -- streams ---------------------------------------------------------------------------------------------------------


class Trickle(io.RawIOBase):
    """A raw stream that gives and takes a few bytes at a time."""

    def __init__(self, data=b"", step=997):
        self.data, self.position, self.step, self.taken = data, 0, step, bytearray()

    def readable(self):
        return True

    def writable(self):
        return True

    def read(self, size=-1):
        piece = self.data[self.position : self.position + min(size, self.step)]
        self.position += len(piece)
        return piece

    def write(self, data):
        self.taken += bytes(data[: self.step])
        return min(len(data), self.step)


@pytest.mark.parametrize("armored", [False, True], ids=["binary", "armored"])
def test_streams_may_give_and_take_little(armored):
    plain = content(2 * CHUNK_BYTES + 3)
    target = Trickle()
    encrypt(Trickle(plain), target, [IDENTITY.recipient()], armored=armored)
    assert b"".join(decrypt(Trickle(bytes(target.taken), step=11), [IDENTITY])) == plain


class NotReady(io.RawIOBase):
    """A stream in non-blocking mode that has nothing, and takes nothing."""

    def readable(self):
        return True

    def writable(self):
        return True

    def read(self, size=-1):
        return None

    def write(self, data):
        return None


def test_streams_that_do_not_block_are_refused():
    """None is not the end: taken for it, a file would be sealed without its rest."""
    recipients = [IDENTITY.recipient()]
    assert code_of(encrypt, NotReady(), io.BytesIO(), recipients) == "vault.age.setting"
    assert code_of(encrypt, io.BytesIO(), NotReady(), recipients) == "vault.age.setting"
    assert code_of(decrypt, NotReady(), [IDENTITY]) == "vault.age.setting"


class Endless:
    """A source of a beginning and then the same again and again, which knows how much was taken of it."""

    def __init__(self, size, start=b"", pattern=b"\0"):
        self.ready, self.pattern, self.left, self.taken = start, pattern, size, 0

    def read(self, size):
        while len(self.ready) < size and self.left > 0:
            self.ready += self.pattern * CHUNK_BYTES
            self.left -= len(self.pattern) * CHUNK_BYTES
        piece, self.ready = self.ready[:size], self.ready[size:]
        self.taken += len(piece)
        return piece


ENDLESS = {
    "no line feed": (b"", b"a", 3 * CHUNK_BYTES, "vault.age.header"),
    "header line": (b"age-encryption.org/v1\n-> ", b"x", MAX_HEADER_BYTES + 3 * CHUNK_BYTES, "vault.age.header"),
    "header": (b"age-encryption.org/v1\n-> x", b"\n-> x\n", 3 * CHUNK_BYTES, "vault.age.header"),
    "body": (
        b"age-encryption.org/v1\n-> x\n",
        b"A" * 64 + b"\n",
        MAX_HEADER_BYTES + 3 * CHUNK_BYTES,
        "vault.age.header",
    ),
    "armor line": (b"-----BEGIN AGE ENCRYPTED FILE-----\n", b"A", 3 * CHUNK_BYTES, "vault.age.armor"),
    "armor space": (b"", b" ", 3 * CHUNK_BYTES, "vault.age.armor"),
}


@pytest.mark.parametrize("name", ENDLESS)
def test_little_is_read_of_what_has_no_end(name):
    start, pattern, limit, code = ENDLESS[name]
    source = Endless(32 << 20, start, pattern)
    assert code_of(decrypt, source, [IDENTITY]) == code
    assert source.taken <= limit


def test_as_many_recipients_as_are_allowed_and_no_more():
    key, grease = Secret(b"k" * 16), Stanza(kind="x-grease")
    stanzas = [*[grease] * (MAX_STANZAS - 1), *IDENTITY.recipient().wrap(key)]
    payload = b"n" * 16 + b"".join(PayloadCipher(key, b"n" * 16).seal_chunks(io.BytesIO(b"found").read))
    assert opened(encode_header(stanzas, key) + payload) == b"found"
    assert code_of(opened, encode_header([grease, *stanzas], key) + payload) == "vault.age.header"


@pytest.mark.parametrize("armored", [False, True], ids=["binary", "armored"])
def test_memory_is_constant(armored, tmp_path):
    size = 24 << 20
    path = tmp_path / "file.age"
    tracemalloc.start()
    try:
        with path.open("wb") as target:
            encrypt(Endless(size), target, [IDENTITY.recipient()], armored=armored)
        with path.open("rb") as source:
            assert sum(map(len, decrypt(source, [IDENTITY]))) == size
        assert tracemalloc.get_traced_memory()[1] < 2 << 20
    finally:
        tracemalloc.stop()


def test_the_first_piece_comes_before_the_end_is_read():
    source = io.BytesIO(sealed(content(8 * CHUNK_BYTES)))
    pieces = decrypt(source, [IDENTITY])
    assert next(pieces) == content(8 * CHUNK_BYTES)[:CHUNK_BYTES]
    assert source.tell() < 5 * CHUNK_BYTES


def test_the_header_is_judged_at_once():
    """Not only when somebody asks for the first piece."""
    assert code_of(decrypt, io.BytesIO(SEALED), [STRANGER]) == "vault.age.no-match"


def released(data, identities):
    """Return what comes out before the end or an error, and the error's code."""
    pieces = []
    try:
        for piece in decrypt(io.BytesIO(data), identities):
            pieces.append(piece)  # noqa: PERF402  # what came before an error counts
    except Rejected as error:
        return b"".join(pieces), error.code
    return b"".join(pieces), None


@pytest.mark.parametrize("bad", [0, 1, 2])
def test_what_is_given_is_a_beginning(bad):
    plain = content(2 * CHUNK_BYTES + 10)
    data = bytearray(sealed(plain))
    data[len(data) - (len(plain) + 3 * 16) + bad * (CHUNK_BYTES + 16)] ^= 1
    assert released(data, [IDENTITY]) == (plain[: bad * CHUNK_BYTES], "vault.age.payload")


def test_chunks_in_another_order_are_refused():
    plain = content(3 * CHUNK_BYTES)
    data = sealed(plain)
    size = CHUNK_BYTES + 16
    head, body = data[: -3 * size], data[-3 * size :]
    swapped = head + body[size : 2 * size] + body[:size] + body[2 * size :]
    doubled = head + body[:size] + body[:size] + body[2 * size :]
    dropped = head + body[size:]
    assert released(swapped, [IDENTITY]) == (b"", "vault.age.payload")
    assert released(doubled, [IDENTITY]) == (plain[:CHUNK_BYTES], "vault.age.payload")
    assert released(dropped, [IDENTITY]) == (b"", "vault.age.payload")


def test_a_payload_of_another_file_is_refused():
    """Header and payload belong together, even where both are for the same recipient."""
    first, second = sealed(b"one"), sealed(b"two")
    cut = first.index(b"\n--- ") + 1 + len(MAC_LINE) + 1
    assert released(first[:cut] + second[-(16 + 16 + 3) :], [IDENTITY]) == (b"", "vault.age.payload")


# -- secrets ---------------------------------------------------------------------------------------------------------


def test_secrets_neither_print_nor_pickle():
    seed = IDENTITY.encode().view()
    for thing in (IDENTITY, HYBRID, ScryptIdentity(PASSPHRASE), ScryptRecipient(PASSPHRASE), IDENTITY.encode()):
        assert bytes(seed).decode() not in repr(thing)
        assert "sesame" not in repr(thing) + str(thing)
        with pytest.raises(TypeError):
            pickle.dumps(thing)


def test_a_refused_key_is_in_no_message():
    with pytest.raises(Rejected) as caught:
        parse_identities(FLIPPED)
    error = caught.value
    told = "".join(traceback.format_exception(error)) + repr(error.describe())
    assert FLIPPED.decode()[16:40] not in told


def test_more_than_was_asked_for_is_not_collected():
    assert code_of(decrypt_secret, io.BytesIO(SEALED), [IDENTITY], limit_bytes=4) == "base.input.too-large"


def test_a_secret_is_whole_or_not_there():
    data = bytearray(sealed(content(CHUNK_BYTES + 5)))
    data[-1] ^= 1
    assert code_of(decrypt_secret, io.BytesIO(data), [IDENTITY], limit_bytes=1 << 20) == "vault.age.payload"


def test_a_forged_chunk_leaves_nothing_behind():
    """The library decrypts before it knows; the buffer is clean when the error arrives."""
    key = Secret(b"k" * 16)
    cipher = PayloadCipher(key, b"n" * 16)
    piece = bytearray(b"".join(cipher.seal_chunks(io.BytesIO(b"A" * 100).read)))
    piece[-1] ^= 1
    buffer = memoryview(bytearray(100))
    assert not cipher._open_chunk(0, bytes(piece), buffer, final=True)
    assert not any(buffer)


def test_the_plaintext_s_buffer_is_clean_at_the_end():
    cipher = PayloadCipher(Secret(b"k" * 16), b"n" * 16)
    payload = b"".join(cipher.seal_chunks(io.BytesIO(b"A" * 100).read))
    views = list(cipher.open_chunks(io.BytesIO(payload).read))
    assert [len(view) for view in views] == [100]
    assert not any(views[0])


def test_all_of_the_misuse_is_misuse():
    kinds = {
        kind.code: kind for kind in vars(age_errors).values() if isinstance(kind, type) and getattr(kind, "code", "")
    }
    assert {code for code, kind in kinds.items() if issubclass(kind, Misuse)} == {
        "vault.age.recipients",
        "vault.age.setting",
    }


# -- properties ------------------------------------------------------------------------------------------------------

SETTINGS = settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
SMALL = content(200)
BASES = {
    "x25519": sealed(SMALL),
    "two": sealed(SMALL, STRANGER.recipient(), IDENTITY.recipient()),
    "scrypt": sealed(SMALL, PAIRS["scrypt"][0]),
    "hybrid": sealed(SMALL, PAIRS["hybrid"][0]),
    "armored": sealed(SMALL, armored=True),
    "chunks": sealed(content(CHUNK_BYTES + 200)),
}
READERS = [IDENTITY, HYBRID, ScryptIdentity(PASSPHRASE, max_work_factor=8)]


@st.composite
def mutations(draw, data):
    """One to three of: a byte set, bytes put in, a range taken out, a range doubled, the end cut."""
    for _ in range(draw(st.integers(1, 3))):
        position = draw(st.integers(0, len(data)))
        length = draw(st.integers(1, 70))
        how = draw(st.sampled_from(["set", "insert", "delete", "double", "cut"]))
        if how == "set":
            data = data[:position] + draw(st.binary(min_size=1, max_size=2)) + data[position + 1 :]
        elif how == "insert":
            data = data[:position] + draw(st.binary(min_size=1, max_size=4)) + data[position:]
        elif how == "delete":
            data = data[:position] + data[position + length :]
        elif how == "double":
            data = data[: position + length] + data[position:]
        else:
            data = data[:position]
    return data


@pytest.mark.parametrize("base", BASES)
def test_a_mutation_is_refused_or_changes_nothing(base):
    """Of binary files each mutation is refused; armor has space and line ends that mean nothing."""
    original = BASES[base]
    plain = opened(original, *READERS)

    @SETTINGS
    @given(mutations(original))
    def run(data):
        given, code = released(data, READERS)
        assert plain.startswith(given)
        assert len(given) % CHUNK_BYTES == 0 or code is None
        if data == original:
            return
        if code is None:
            assert base == "armored"
            assert data.split() == original.split()
        else:
            assert code.startswith("vault.age.")

    run()


@pytest.mark.parametrize("base", ["x25519", "scrypt", "armored"])
def test_every_single_flipped_bit_is_refused(base):
    original = BASES[base]
    for position in range(len(original)):
        for bit in range(8) if base != "scrypt" else [0, 5]:
            data = bytearray(original)
            data[position] ^= 1 << bit
            given, code = released(bytes(data), READERS)
            if code is None:  # a line feed of the armor's surroundings that became a space, or the like
                assert base == "armored"
                assert data.split() == original.split()
                assert given == SMALL
            else:
                assert given == b""


@SETTINGS
@given(st.binary(max_size=300) | st.binary(max_size=300).map(lambda tail: b"age-encryption.org/v1\n-> " + tail))
def test_arbitrary_bytes_are_refused(data):
    for armored in (None, False, True):
        with contextlib.suppress(Rejected):
            assert opened(data, *READERS, armored=armored) is None


@SETTINGS
@given(data=st.binary(max_size=400), steps=st.lists(st.integers(1, 90), min_size=1, max_size=12))
def test_armor_is_the_same_in_pieces_of_any_size(data, steps):
    encoder, decoder, text, back = ArmorEncoder(), ArmorDecoder(), b"", b""
    for piece in pieces_of(data, steps):
        text += encoder.feed(piece)
    text += encoder.finish()
    assert max(map(len, text.split(b"\n"))) <= 64
    for piece in pieces_of(text, steps[::-1]):
        back += decoder.feed(piece)
    assert back + decoder.finish() == data
    whole = ArmorDecoder()
    assert whole.feed(text) + whole.finish() == data


def pieces_of(data, steps):
    position, number = 0, 0
    while position < len(data):
        step = steps[number % len(steps)]
        yield data[position : position + step]
        position, number = position + step, number + 1


@SETTINGS
@given(mutations(ARMORED + sealed(bytes(300), armored=True)), st.lists(st.integers(1, 200), min_size=1, max_size=5))
def test_mutated_armor_is_judged_the_same_in_pieces(text, steps):
    def judge(pieces):
        decoder, decoded = ArmorDecoder(), b""
        try:
            for piece in pieces:
                decoded += decoder.feed(piece)
            return decoded + decoder.finish()
        except Rejected as error:
            return error.code

    assert judge([text]) == judge(pieces_of(text, steps))
