"""The vectors of C2SP's CCTV for age: each file opens, or fails for the reason that it was made for."""

import hashlib
import io
import os
import zlib
from collections import Counter
from pathlib import Path

import pytest

from tidegate.base.errors import Rejected
from tidegate.crypto.aead import Secret
from tidegate.vault.age import decrypt, encrypt
from tidegate.vault.age_format import ArmorDecoder, ArmorEncoder, encode_header, parse_header
from tidegate.vault.age_recipients import Company, ScryptIdentity, parse_identities

_DEFAULT = Path(__file__).resolve().parents[2].parent / "shared" / "corpora"
CORPORA = Path(os.environ.get("TIDEGATE_CORPORA", _DEFAULT))
VECTORS = CORPORA / "vectors" / "cctv-age" / "testdata"
FILES = sorted(VECTORS.iterdir()) if VECTORS.is_dir() else []
EXPECTED = {  # how many files of each kind the corpus has
    "success": 26,
    "no match": 13,
    "HMAC failure": 1,
    "header failure": 62,
    "payload failure": 19,
    "armor failure": 22,
}
KINDS = {
    "vault.age.armor": "armor failure",
    "vault.age.header": "header failure",
    "vault.age.version": "header failure",
    "vault.age.stanza": "header failure",
    "vault.age.work-factor": "header failure",
    "vault.age.no-match": "no match",
    "vault.age.mac": "HMAC failure",
    "vault.age.payload": "payload failure",
    "vault.age.truncated": "payload failure",
    "vault.age.extended": "payload failure",
}
FIELDS = {"expect", "compressed", "payload", "identity", "passphrase", "armored", "file key", "comment"}
STRANGER = b"AGE-SECRET-KEY-1GFPYYSJZGFPYYSJZGFPYYSJZGFPYYSJZGFPYYSJZGFPYYSJZGFPQ4EGAEX"

pytestmark = pytest.mark.skipif(
    not FILES, reason="no CCTV age vectors here (TIDEGATE_CORPORA names the folder of corpora)"
)


class Vector:
    """A file of the corpus, in its two parts."""

    def __init__(self, path):
        head, _, self.data = path.read_bytes().partition(b"\n\n")
        self.fields = [tuple(line.split(": ", 1)) for line in head.decode().split("\n")]
        assert {name for name, _ in self.fields} <= FIELDS  # by its README, another field means a newer kind of file
        if self.values("compressed"):
            assert self.values("compressed") == ["zlib"]
            self.data = zlib.decompress(self.data)
        (self.expect,) = self.values("expect")
        self.armored = self.values("armored") == ["yes"]

    def values(self, name):
        return [value for field, value in self.fields if field == name]

    def identities(self):
        found = [identity for text in self.values("identity") for identity in parse_identities(text.encode())]
        found += [ScryptIdentity(Secret(text.encode())) for text in self.values("passphrase")]
        return found or parse_identities(STRANGER)


def outcome(vector, armored):
    """Return how decrypting ends, and the hash of all that came out before."""
    digest = hashlib.sha256()
    try:
        for piece in decrypt(io.BytesIO(vector.data), vector.identities(), armored=armored):
            digest.update(piece)
    except Rejected as error:
        return KINDS[error.code], digest.hexdigest()
    return "success", digest.hexdigest()


@pytest.mark.parametrize("path", FILES, ids=[path.name for path in FILES])
def test_vector(path):
    vector = Vector(path)
    kind, digest = outcome(vector, vector.armored)
    assert kind == vector.expect
    assert digest == (vector.values("payload") or [hashlib.sha256().hexdigest()])[0]


@pytest.mark.parametrize("path", FILES, ids=[path.name for path in FILES])
def test_vector_whose_form_is_found_out(path):
    """The form is recognised; only of garbage that stands before armor nobody can know what it should have been."""
    vector = Vector(path)
    expected = "header failure" if path.name == "armor_garbage_leading" else vector.expect
    assert outcome(vector, None)[0] == expected


def test_all_vectors_are_there():
    assert Counter(Vector(path).expect for path in FILES) == EXPECTED
    assert len(FILES) == 143


def test_headers_are_written_as_they_were():
    """What parses encodes to the same bytes, its MAC under the vector's file key included."""
    seen = 0
    for path in FILES:
        vector = Vector(path)
        if vector.armored or vector.expect in {"header failure", "HMAC failure"}:
            continue
        stream = io.BytesIO(vector.data)
        header = parse_header(stream.readline)
        (key,) = vector.values("file key")
        assert encode_header(header.stanzas, Secret(bytes.fromhex(key))) == vector.data[: stream.tell()]
        seen += 1
    assert seen == 49


def test_armor_is_written_as_it_was():
    seen = 0
    for path in FILES:
        vector = Vector(path)
        if not vector.armored or vector.expect == "armor failure":
            continue
        decoder, encoder = ArmorDecoder(), ArmorEncoder()
        binary = decoder.feed(vector.data) + decoder.finish()
        text = encoder.feed(binary) + encoder.finish()
        assert text.strip() == vector.data.replace(b"\r\n", b"\n").strip()
        seen += 1
    assert seen == 11


class Recorded:
    """Randomness that was drawn before."""

    def __init__(self, *pieces):
        self.pieces = list(pieces)

    def random_bytes(self, count):
        piece = self.pieces.pop(0)
        assert len(piece) == count
        return piece


class Verbatim:
    """A recipient whose stanzas are those of a file."""

    company = Company.CLASSICAL

    def __init__(self, stanzas):
        self.stanzas = stanzas

    def wrap(self, file_key):
        return list(self.stanzas)


def test_files_are_written_as_they_were():
    """With the file key, nonce and stanzas of a vector we write exactly its bytes."""
    seen = 0
    for path in FILES:
        vector = Vector(path)
        if vector.armored or vector.expect != "success":
            continue
        stream = io.BytesIO(vector.data)
        stanzas = parse_header(stream.readline).stanzas
        plain = io.BytesIO(b"".join(decrypt(io.BytesIO(vector.data), vector.identities())))
        randomness = Recorded(stream.read(16), bytes.fromhex(vector.values("file key")[0]))
        target = io.BytesIO()
        encrypt(plain, target, [Verbatim(stanzas)], entropy=randomness)
        assert target.getvalue() == vector.data
        seen += 1
    assert seen == 19
