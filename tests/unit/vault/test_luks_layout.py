"""LUKS2 headers as JSON: what is understood, what is refused; and that no command carries a key."""

import json
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate.base.errors import Rejected, TidegateError
from tidegate.crypto.aead import Secret
from tidegate.vault import luks, luks_layout
from tidegate.vault.luks_layout import VolumeToken

TOKEN = {"type": "tidegate", "keyslots": ["0"], "vault": "00ff", "key": "volume/one"}


def header(**changes):
    document = {
        "keyslots": {"0": {"type": "luks2"}},
        "tokens": {"0": TOKEN, "1": {"type": "clevis", "keyslots": ["1"], "jwe": {}}},
        "segments": {
            "0": {
                "type": "crypt",
                "offset": "1048576",
                "size": "dynamic",
                "iv_tweak": "0",
                "encryption": "aes-xts-plain64",
                "sector_size": 512,
            }
        },
        "digests": {},
        "config": {"json_size": "12288"},
    }
    return json.dumps(document | changes).encode()


def segment(**changes):
    return {"0": json.loads(header())["segments"]["0"] | changes}


def code_of(call, *arguments, **named):
    with pytest.raises(TidegateError) as caught:
        call(*arguments, **named)
    return caught.value.code


def test_header():
    parsed = luks_layout.parse_header(header())
    assert (parsed.cipher, parsed.sector_bytes, parsed.offset_bytes) == ("aes-xts-plain64", 512, 1 << 20)
    assert parsed.keyslots == ("0",)
    assert parsed.tokens == (VolumeToken(vault_id="00ff", key_name="volume/one"),)
    assert parsed.foreign_tokens == ("clevis",)


def test_which_key_opens():
    parsed = luks_layout.parse_header(header(tokens={"0": TOKEN, "1": TOKEN | {"vault": "aa", "key": "other"}}))
    assert parsed.key_name("00ff") == "volume/one"
    assert parsed.key_name("aa") == "other"
    assert code_of(parsed.key_name, "bb") == "vault.volume.no-token"


def test_token_there_and_back():
    token = VolumeToken(vault_id="00ff", key_name="volume/one", keyslots=("0", "2"))
    document = json.loads(luks_layout.encode_token(token))
    assert document == TOKEN | {"keyslots": ["0", "2"]}
    assert luks_layout.parse_header(header(tokens={"3": document})).tokens == (token,)


@pytest.mark.parametrize(
    "change",
    [
        {"keyslots": []},
        {"keyslots": [0]},
        {"keyslots": ["../0"]},
        {"keyslots": ["0"] * 33},
        {"vault": ""},
        {"vault": "xyz"},
        {"vault": "00" * 33},
        {"vault": 1},
        {"key": ""},
        {"key": "a\nb"},
        {"key": "k" * 1025},
        {"key": None},
        {"more": 1},
    ],
)
def test_malformed_token(change):
    assert code_of(luks_layout.parse_header, header(tokens={"0": TOKEN | change})) == "vault.volume.malformed"


def test_token_that_would_not_be_read_is_not_written():
    for token in (VolumeToken(vault_id="", key_name="k"), VolumeToken(vault_id="00", key_name="\x1b[2J")):
        assert code_of(luks_layout.encode_token, token) == "vault.volume.malformed"


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"[]", id="list"),
        pytest.param(b"\xff{}", id="not UTF-8"),
        pytest.param(header()[:-1], id="cut"),
        pytest.param(b'{"keyslots":' * 100_000, id="deep"),
        pytest.param(header(segments={}), id="no segment"),
        pytest.param(header(segments=segment() | {"1": segment()["0"]}), id="two segments"),
        pytest.param(header(segments=segment(type="linear")), id="not encrypted"),
        pytest.param(header(segments=segment(offset="-1")), id="offset below zero"),
        pytest.param(header(segments=segment(offset="\u0661")), id="offset in other digits"),
        pytest.param(header(keyslots={str(number): {} for number in range(33)}), id="many slots"),
        pytest.param(header(tokens={str(number): TOKEN for number in range(33)}), id="many tokens"),
        pytest.param(b" " * ((4 << 20) + 1), id="large"),
    ],
)
def test_malformed_header(raw):
    assert code_of(luks_layout.parse_header, raw) == "vault.volume.malformed"


@given(raw=st.binary(max_size=100))
def test_parser_raises_only_rejected(raw):
    with pytest.raises(Rejected):
        luks_layout.parse_header(raw)


@pytest.mark.parametrize("name", ["", "-x", "a/b", "..", "a" * 65, "a b", "a\n", "ä"])
def test_names_of_mappings(name):
    for call in (luks_layout.require_name, luks.close_volume):
        assert code_of(call, name) == "vault.volume.name"
    luks_layout.require_name("data-1.x_Y")


@pytest.mark.parametrize("size", [0, 32, 63, 65])
def test_key_of_another_size(size, tmp_path):
    key = Secret(bytes(size))
    for call in (luks.format_volume, luks.check_key):
        assert code_of(call, tmp_path / "device", key) == "vault.volume.key-size"
    assert code_of(luks.open_volume, tmp_path / "device", "name", key) == "vault.volume.key-size"


def test_commands_take_the_key_from_standard_input_and_nothing_else():
    for command in (
        luks_layout.plan_format("/dev/x", volume_id="u", label="l"),
        luks_layout.plan_check("/dev/x"),
        luks_layout.plan_open("/dev/x", "n"),
    ):
        place = command.index("--key-file")
        assert command[place : place + 4] == ["--key-file", "-", "--keyfile-size", "64"]


def test_open_mappings(tmp_path):
    volume = UUID("11111111-2222-4333-8444-555555555555")
    for number, uuid in enumerate(
        (f"CRYPT-LUKS2-{volume.hex}-data", f"CRYPT-LUKS2-{'0' * 32}-other", f"LVM-{volume.hex}-x", "")
    ):
        folder = tmp_path / f"dm-{number}" / "dm"
        folder.mkdir(parents=True)
        (folder / "uuid").write_text(uuid + "\n")
        (folder / "name").write_text(f"name{number}\n")
    (tmp_path / "sda").mkdir()
    assert luks.open_mappings(volume, blocks=tmp_path) == ("name0",)


@pytest.mark.parametrize("label", ["", "a" * 48, "a\nb", "ä" * 24])
def test_labels(label):
    assert code_of(luks_layout.require_label, label) == "vault.volume.name"
    luks_layout.require_label("-data of patients-")
