"""The strict profile of CBOR: a row per encoding that another decoder might let pass."""

import pytest

from tidegate.base.errors import Rejected
from tidegate.crypto import cbor

MALFORMED = {
    "nothing": "",
    "0 in two bytes": "1800",
    "23 in two bytes": "1817",
    "255 in three bytes": "1900ff",
    "65535 in five bytes": "1a0000ffff",
    "2^32-1 in nine bytes": "1b00000000ffffffff",
    "-1 in two bytes": "3800",
    "-256 in three bytes": "3900ff",
    "length of bytes not shortest": "580161",
    "length of text not shortest": "780161",
    "length of array not shortest": "980100",
    "length of map not shortest": "b8010000",
    "tag not shortest": "d81700",
    "tag 98 in three bytes": "d9006200",
    "indefinite bytes": "5f4161ff",
    "indefinite text": "7f6161ff",
    "indefinite array": "9f00ff",
    "indefinite map": "bf0000ff",
    "indefinite integer": "1f",
    "indefinite tag": "df00",
    "break alone": "ff",
    "break in an array": "81ff",
    "reserved length 28": "1c",
    "reserved length 29": "5d",
    "reserved length 30": "9e",
    "reserved simple": "fc",
    "half float": "f93c00",
    "single float": "fa3f800000",
    "double float": "fb3ff0000000000000",
    "not a number": "f97e00",
    "infinity": "f97c00",
    "undefined": "f7",
    "simple 0": "e0",
    "simple 19": "f3",
    "simple 32": "f820",
    "false as two bytes": "f814",
    "keys unsorted": "a202000100",
    "keys unsorted by length": "a2616200010a",
    "text key before integer key": "a2616100" + "0100",
    "longer key first": "a262616100" + "616200",
    "key twice": "a201000100",
    "text key twice": "a2616100616101",
    "key that is true": "a1f500",
    "key that is false": "a1f400",
    "key that is null": "a1f600",
    "key that is an array": "a1800",
    "key that is an array of one": "a1810000",
    "key that is a map": "a1a000",
    "key that is tagged": "a1c10000",
    "key that is a float": "a1f93c0000",
    "array too short": "820000"[:-2],
    "map without a value": "a101",
    "bytes too short": "4361",
    "text too short": "636161",
    "bytes of 2^64-1": "5bffffffffffffffff",
    "text of 2^63": "7b8000000000000000",
    "head cut": "19",
    "head cut in its number": "1a0000",
    "tag without a value": "c1",
    "text that is not UTF-8": "61ff",
    "text that is an overlong NUL": "62c080",
    "text with a surrogate": "63eda080",
    "text above U+10FFFF": "64f4908080",
    "text cut in a character": "61c3",
    "two values": "0000",
    "a value and a break": "00ff",
}


@pytest.mark.parametrize("name", MALFORMED)
def test_what_the_profile_does_not_have(name):
    text = MALFORMED[name]
    with pytest.raises(Rejected) as caught:
        cbor.decode(bytes.fromhex(text if len(text) % 2 == 0 else text + "0"), limit_bytes=1000)
    assert caught.value.code == "crypto.cbor.malformed"
    assert isinstance(caught.value.fields["offset"], int)


# RFC 8949, appendix A: the examples that fall in our profile
EXAMPLES = [
    (0, "00"),
    (23, "17"),
    (24, "1818"),
    (100, "1864"),
    (1000, "1903e8"),
    (1_000_000, "1a000f4240"),
    (1_000_000_000_000, "1b000000e8d4a51000"),
    (2**64 - 1, "1bffffffffffffffff"),
    (-(2**64), "3bffffffffffffffff"),
    (-1, "20"),
    (-100, "3863"),
    (-1000, "3903e7"),
    (False, "f4"),
    (True, "f5"),
    (None, "f6"),
    (b"", "40"),
    (b"\1\2\3\4", "4401020304"),
    ("", "60"),
    ("IETF", "6449455446"),
    ('"\\', "62225c"),
    ("\u00fc", "62c3bc"),
    ("\u6c34", "63e6b0b4"),
    ("\U00010151", "64f0908591"),
    ([], "80"),
    ([1, [2, 3], [4, 5]], "8301820203820405"),
    (list(range(1, 26)), "98190102030405060708090a0b0c0d0e0f101112131415161718181819"),
    ({}, "a0"),
    ({1: 2, 3: 4}, "a201020304"),
    ({"a": 1, "b": [2, 3]}, "a26161016162820203"),
    (["a", {"b": "c"}], "826161a161626163"),
    (cbor.Tagged(tag=1, value=1363896240), "c11a514b67b0"),
    (cbor.Tagged(tag=98, value=[]), "d86280"),
]


@pytest.mark.parametrize(("value", "text"), EXAMPLES)
def test_examples_of_the_standard(value, text):
    raw = bytes.fromhex(text)
    assert cbor.encode(value) == raw
    decoded = cbor.decode(raw, limit_bytes=1000)
    assert decoded == value
    assert type(decoded) is type(value)


def test_maps_are_sorted_by_their_encoded_keys():
    """RFC 8949 §4.2.1: 10, 100, -1, "z", "aa" is the order of the bytes, not of the lengths."""
    value = {"aa": 4, -1: 2, 100: 1, "z": 3, 10: 0, b"x": 5}
    assert cbor.encode(value).hex() == "a6" + "0a00" + "186401" + "2002" + "417805" + "617a03" + "62616104"
    assert cbor.decode(cbor.encode(value), limit_bytes=100) == value


@pytest.mark.parametrize("value", [1.0, float("nan"), object(), {1.5: 1}, {1, 2}, [object()], 2**64, -(2**64) - 1])
def test_types_outside_the_profile_are_not_written(value):
    with pytest.raises(TypeError):
        cbor.encode(value)


@pytest.mark.parametrize("key", [None, True, (1, 2), cbor.Tagged(tag=1, value=1)])
def test_keys_that_no_decoder_of_ours_reads_are_not_written(key):
    with pytest.raises(TypeError):
        cbor.encode({key: 1})


@pytest.mark.parametrize("opener", [b"\x81", b"\xc1", b"\xa1\x01", b"\xa1\x61a"])
def test_depth(opener):
    whole = opener * (cbor.MAX_DEPTH - 1) + b"\x00"
    cbor.decode(whole, limit_bytes=1000)
    with pytest.raises(Rejected) as caught:
        cbor.decode(opener + whole, limit_bytes=1000)
    assert caught.value.code == "crypto.cbor.limit"


def test_depth_bomb():
    with pytest.raises(Rejected) as caught:
        cbor.decode(b"\x81" * 1_000_000, limit_bytes=2_000_000)
    assert caught.value.code == "crypto.cbor.limit"


@pytest.mark.parametrize("text", ["9a00010001", "ba00010001", "9bffffffffffffffff", "bb7fffffffffffffff"])
def test_too_many_elements_are_refused_before_they_are_read(text):
    with pytest.raises(Rejected) as caught:
        cbor.decode(bytes.fromhex(text), limit_bytes=1000)
    assert caught.value.code == "crypto.cbor.limit"


def test_size():
    raw = cbor.encode(bytes(100))
    assert cbor.decode(raw, limit_bytes=len(raw)) == bytes(100)
    with pytest.raises(Rejected) as caught:
        cbor.decode(raw, limit_bytes=len(raw) - 1)
    assert caught.value.code == "crypto.cbor.limit"


def test_the_place_of_the_fault_is_named():
    with pytest.raises(Rejected) as caught:
        cbor.decode(bytes.fromhex("8301021817"), limit_bytes=100)
    assert caught.value.fields["offset"] == 5
