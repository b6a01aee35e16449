"""LUKS2 volumes as Debian's ``cryptsetup`` makes, reads and refuses them, on files and on a loop device."""

import json
import os
import shutil
from pathlib import Path

import pytest

from tidegate.base.errors import Fault, TidegateError
from tidegate.base.program import find_program, run_program
from tidegate.crypto.aead import Secret
from tidegate.vault import luks
from tidegate.vault.luks_layout import VolumeToken

pytestmark = [
    pytest.mark.skipif(
        shutil.which("cryptsetup", path=os.environ["PATH"] + ":/usr/sbin:/sbin") is None,
        reason="cryptsetup is not installed (Debian package cryptsetup-bin)",
    )
]
SIZE = 8 << 20


@pytest.fixture
def device(tmp_path):
    path = tmp_path / "device"
    with path.open("wb") as stream:
        stream.truncate(SIZE)
    return path


@pytest.fixture
def key():
    return Secret(os.urandom(64))


@pytest.fixture
def volume(device, key):
    luks.format_volume(device, key)
    return device


def code_of(call, *arguments, **named):
    with pytest.raises(TidegateError) as caught:
        call(*arguments, **named)
    return caught.value.code


def cryptsetup(*arguments, stdin=None):
    return run_program(["cryptsetup", *map(str, arguments)], stdin=stdin, check=False)


def test_format_and_dump(device, key):
    identifier = luks.format_volume(device, key, label="--key-file=/dev/null")
    header = luks.dump(device)
    assert (header.cipher, header.offset_bytes, header.keyslots) == ("aes-xts-plain64", 1 << 20, ("0",))
    assert header.tokens == header.foreign_tokens == ()
    assert luks.volume_id(device) == identifier
    assert luks.open_mappings(identifier) == ()
    assert cryptsetup("isLuks", "--type", "luks2", device).returncode == 0
    document = json.loads(cryptsetup("luksDump", "--dump-json-metadata", device).stdout)
    slot = document["keyslots"]["0"]
    assert (slot["kdf"]["type"], slot["kdf"]["iterations"], slot["key_size"]) == ("pbkdf2", 1000, 64)


def test_the_key_opens_the_slot_and_no_other_does(volume, key):
    luks.check_key(volume, key)
    done = cryptsetup("open", "--test-passphrase", "--key-file", "-", volume, stdin=bytes(key.view()))
    assert done.returncode == 0, "the peer, called as anybody would, disagrees"
    assert code_of(luks.check_key, volume, Secret(os.urandom(64))) == "vault.volume.wrong-key"
    changed = bytearray(key.view())
    changed[63] ^= 1
    assert code_of(luks.check_key, volume, Secret(changed)) == "vault.volume.wrong-key"


def test_a_key_with_line_ends_and_zeros(device):
    key = Secret(b"\n\0\r\n" * 16)
    luks.format_volume(device, key)
    luks.check_key(device, key)


def test_the_key_is_not_on_the_device(volume, key):
    raw = volume.read_bytes()
    assert b"LUKS\xba\xbe" in raw, "the search would find nothing at all"
    assert bytes(key.view())[:16] not in raw
    assert bytes(key.view())[48:] not in raw


def test_tokens(volume):
    token = VolumeToken(vault_id="00112233445566778899aabbccddeeff", key_name="volume/data")
    luks.add_token(volume, token)
    assert luks.dump(volume).tokens == (token,)
    expected = {"type": "tidegate", "keyslots": ["0"], "vault": token.vault_id, "key": token.key_name}
    assert json.loads(luks.export_token(volume, 0)) == expected
    assert json.loads(cryptsetup("token", "export", "--token-id", "0", volume).stdout) == expected
    assert code_of(luks.export_token, volume, 1) == "base.program.failed"
    foreign = b'{"type": "clevis", "keyslots": ["0"]}'
    assert cryptsetup("token", "import", "--json-file", "-", volume, stdin=foreign).returncode == 0
    header = luks.dump(volume)
    assert (header.tokens, header.foreign_tokens) == ((token,), ("clevis",))


def test_a_token_that_somebody_broke(volume):
    broken = b'{"type": "tidegate", "keyslots": ["0"], "vault": "../..", "key": "k"}'
    assert cryptsetup("token", "import", "--json-file", "-", volume, stdin=broken).returncode == 0
    assert code_of(luks.dump, volume) == "vault.volume.malformed"


def test_header_backup_restores_an_erased_volume(volume, key, tmp_path):
    backup = tmp_path / "backup"
    luks.header_backup(volume, backup)
    assert backup.stat().st_mode & 0o777 == 0o400
    assert code_of(luks.header_backup, volume, backup) == "vault.volume.backup-exists"
    luks.erase_volume(volume)
    assert luks.dump(volume).keyslots == ()
    assert code_of(luks.check_key, volume, key) == "vault.volume.erased"
    done = cryptsetup("luksHeaderRestore", "--batch-mode", "--header-backup-file", backup, volume)
    assert done.returncode == 0, done.stderr
    luks.check_key(volume, key)


def test_what_is_not_erased_is_not_overwritten(device, key):
    run_program(["mkfs.ext4", "-q", str(device)])
    before = device.read_bytes()
    assert code_of(luks.format_volume, device, key) == "vault.volume.not-blank"
    assert device.read_bytes() == before
    luks.format_volume(device, key, overwrite=True)
    luks.check_key(device, key)
    assert code_of(luks.format_volume, device, key) == "vault.volume.not-blank"


def test_a_mark_at_the_end_counts_too(device, key):
    with device.open("r+b") as stream:
        stream.seek(-4096, os.SEEK_END)
        stream.write(b"\xfc\x4e\x2b\xa9")  # an md superblock
    assert code_of(luks.format_volume, device, key) == "vault.volume.not-blank"


def test_erased_flash_is_blank(device, key):
    device.write_bytes(b"\xff" * SIZE)
    luks.format_volume(device, key)
    luks.check_key(device, key)


def test_too_small(tmp_path, key):
    small = tmp_path / "small"
    small.write_bytes(bytes((2 << 20) - 1))
    assert code_of(luks.format_volume, small, key) == "vault.volume.too-small"
    small.write_bytes(bytes(2 << 20))
    luks.format_volume(small, key)


def test_no_volume(device, key, tmp_path):
    for call in (luks.dump, luks.volume_id, luks.erase_volume):
        assert code_of(call, device) == "vault.volume.malformed"
    assert code_of(luks.open_volume, device, "name", key) == "vault.volume.malformed"
    assert code_of(luks.dump, tmp_path / "absent") == "base.storage.missing"
    assert code_of(luks.format_volume, tmp_path / "absent", key) == "base.storage.missing"


def test_damaged_headers(volume, key):
    """cryptsetup has two copies of the header and repairs one; both gone is malformed."""
    with volume.open("r+b") as stream:
        stream.seek(0)
        stream.write(bytes(512))
        stream.seek(16 << 10)
        stream.write(bytes(512))
    assert code_of(luks.dump, volume) == "vault.volume.malformed"


def test_three_slots_for_keys(volume, key, tmp_path):
    """As the documentation says of a header of 1 MiB; the peer's own command adds them."""
    new = tmp_path / "new"  # test data, no secret
    results = []
    for _ in range(3):
        new.write_bytes(os.urandom(64))
        done = cryptsetup("luksAddKey", "--batch-mode", "--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000",
                          "--key-file", "-", volume, new, stdin=bytes(key.view()))  # fmt: skip
        results.append(done.returncode)
    assert results == [0, 0, 1]
    assert luks.dump(volume).keyslots == ("0", "1", "2")


@pytest.mark.skipif(luks.device_mapper_present(), reason="this kernel has a device mapper")
def test_without_device_mapper(volume, key):
    assert code_of(luks.open_volume, volume, "tidegate-test", key) == "vault.volume.no-device-mapper"
    assert code_of(luks.close_volume, "tidegate-test") == "vault.volume.no-device-mapper"


@pytest.mark.root
@pytest.mark.skipif(not luks.device_mapper_present(), reason="this kernel has no device mapper")
def test_open_and_close(volume, key):
    name = f"tidegate-test-{os.getpid()}"
    assert code_of(luks.open_volume, volume, name, Secret(os.urandom(64))) == "vault.volume.wrong-key"
    mapping = luks.open_volume(volume, name, key)
    try:
        assert luks.open_mappings(luks.volume_id(volume)) == (name,)
        mapping.write_bytes(b"marker" * 100)
        assert code_of(luks.open_volume, volume, name, key) == "vault.volume.busy"
    finally:
        luks.close_volume(name)
    assert code_of(luks.close_volume, name) == "vault.volume.not-open"
    assert b"marker" not in volume.read_bytes()


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="a loop device needs root")
def test_a_block_device_in_use(device, key, tmp_path):
    try:
        loop = run_program(["losetup", "--find", "--show", str(device)]).stdout.decode().strip()
    except Fault as fault:
        pytest.skip(f"no loop device here: {fault.message}")
    mount = tmp_path / "mount"
    mount.mkdir()
    block = Path(loop)
    try:
        run_program(["mkfs.ext4", "-q", loop])
        run_program(["mount", loop, str(mount)])
        try:
            assert code_of(luks.format_volume, block, key, overwrite=True) == "vault.volume.busy"
        finally:
            run_program(["umount", str(mount)])
        luks.format_volume(block, key, overwrite=True)
        luks.check_key(block, key)
    finally:
        run_program(["losetup", "--detach", loop])


def test_the_key_is_in_no_argument_environment_or_temporary_file(volume, key, tmp_path, monkeypatch):
    """A cryptsetup that writes down what it is given: the key is on its standard input alone."""
    record = tmp_path / "record"
    record.mkdir()
    fake = tmp_path / "bin" / "cryptsetup"
    fake.parent.mkdir()
    fake.write_text(
        "#!/bin/sh\n"
        f'printf "%s\\0" "$@" > {record}/argv.$$; tr "\\0" "\\n" < /proc/$$/environ > {record}/environ.$$\n'
        f'exec {find_program("cryptsetup")} "$@"\n'
    )
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{fake.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    luks.check_key(volume, key)
    written = b"".join(path.read_bytes() for path in record.iterdir())
    assert b"--test-passphrase" in written, "the search would find nothing at all"
    assert bytes(key.view()) not in written
    assert key.view().hex().encode() not in written
    assert list((tmp_path / "temporary").iterdir()) == []
