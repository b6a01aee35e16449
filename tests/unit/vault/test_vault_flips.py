"""Every byte of a whole small vault, closed: flipped, cut off, appended, removed or exchanged, it is refused."""

import itertools
import os
import shutil

import pytest

from tidegate.base.errors import Rejected
from tidegate.crypto.aead import Secret
from tidegate.keys.software import Argon2Cost
from tidegate.vault.store import Vault
from tidegate.vault.unlockers import PassphraseUnlocker

UNLOCKER = PassphraseUnlocker(Secret(b"correct horse"), cost=Argon2Cost(memory_kib=64, iterations=1, lanes=1))
RECORDS = {b"1": b"one", b"2": b"two " * 10}
ITEMS = {"small": b"secret", "edited": b"changed" + bytes(17_000)}
SLOT = 4096
PARTS = ["vault.cbor", "manifest", "snapshot", "journal", "small", "edited"]
# the lock holds nothing, is not read, and is made anew where it is not there
UNREAD = {"lock"}


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    """A vault with an old and a new journal, items and records, one item changed in place, closed."""
    folder = tmp_path_factory.mktemp("flips") / "vault"
    with Vault.create(folder, UNLOCKER) as vault:
        vault.write("small", b"secret")
        vault.records("sessions")["1"] = b"one"
        vault.table.merge()
        vault.records("sessions")["2"] = b"two " * 10
        vault.write("edited", bytes(17_007))
        with vault.open_file("edited", "r+") as stream:
            stream.write(b"changed")
    return folder


@pytest.fixture
def folder(pristine, tmp_path):
    return shutil.copytree(pristine, tmp_path / "vault")


def look(vault):
    """Look at everything there is; return it."""
    items = {}
    for name in vault:
        vault.verify(name)
        items[name] = vault.read(name)
    records = dict(vault.records("sessions").items())
    vault.verify_folder()
    return items, records


def refuses(folder):
    """Return whether the vault in ``folder`` is refused; what is not refused has to be what it was."""
    try:
        with Vault.open(folder, UNLOCKER) as vault:
            assert look(vault) == (ITEMS, RECORDS)
    except Rejected:
        return True
    return False


def files_of(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.name not in UNREAD)


def path_of(folder, part):
    if part in ("vault.cbor", "manifest"):
        return folder / part
    if part in ("snapshot", "journal"):
        return next((folder / "table").glob(f"*.{part}"))
    sizes = sorted((folder / "items").iterdir(), key=lambda path: path.stat().st_size)
    return sizes[part == "edited"]


def offsets_of(part, size):
    """Return every offset, but of what is encrypted in a header a share: it is one block under one tag."""
    if part not in ("snapshot", "small", "edited"):
        return range(size)
    stride = 5 if part == "small" else 29
    head = [at for at in range(SLOT) if at < 260 or at >= SLOT - 16 or at % stride == 0]
    return [*head, *(SLOT + at for at in head), *range(2 * SLOT, size, 31 if part == "edited" else 1)]


def test_untouched_vault_is_accepted(folder):
    assert not refuses(folder)
    assert len(files_of(folder)) == len(PARTS)


@pytest.mark.parametrize("share", range(4))
@pytest.mark.parametrize("part", PARTS[:4])
def test_flipped_byte_of_what_opening_reads(folder, part, share):
    path = path_of(folder, part)
    whole, undetected = path.read_bytes(), []
    for offset in list(offsets_of(part, len(whole)))[share::4]:
        flipped = bytearray(whole)
        flipped[offset] ^= 1 << offset % 8
        path.write_bytes(flipped)
        if not refuses(folder):
            undetected.append(offset)
    path.write_bytes(whole)
    assert undetected == []
    assert not refuses(folder)  # and being refused changed nothing


@pytest.mark.parametrize("part", PARTS[4:])
def test_flipped_byte_of_an_item(folder, part):
    """Opening does not read items: they are read each time anew."""
    path = path_of(folder, part)
    whole, undetected = path.read_bytes(), []
    with Vault.open(folder, UNLOCKER) as vault:
        for offset in offsets_of(part, len(whole)):
            path.write_bytes(whole[:offset] + bytes([whole[offset] ^ (1 << offset % 8)]) + whole[offset + 1 :])
            try:
                vault.verify(part)
            except Rejected:
                continue
            undetected.append(offset)
        path.write_bytes(whole)
        assert look(vault) == (ITEMS, RECORDS)
    assert undetected == []


@pytest.mark.parametrize("part", PARTS)
def test_cut_off_at_any_length(folder, part):
    path = path_of(folder, part)
    whole, undetected = path.read_bytes(), []
    step = 1 if len(whole) < 600 else 7 if len(whole) < 5000 else 41
    for size in {*range(0, len(whole), step), *range(len(whole) - 40, len(whole))}:
        path.write_bytes(whole[:size])
        if not refuses(folder):
            undetected.append(size)
    path.write_bytes(whole)
    assert undetected == []
    assert not refuses(folder)


@pytest.mark.parametrize("part", PARTS)
def test_appended(folder, part):
    path = path_of(folder, part)
    whole = path.read_bytes()
    for more in (b"\0", b"\xff" * 28, os.urandom(500), whole):
        path.write_bytes(whole + more)
        assert refuses(folder), len(more)
    path.write_bytes(whole)
    assert not refuses(folder)


def test_removed(pristine, tmp_path):
    for number, path in enumerate(files_of(pristine)):
        copy = shutil.copytree(pristine, tmp_path / str(number))
        (copy / path.relative_to(pristine)).unlink()
        if path.name == "vault.cbor":
            continue  # then it is no vault: base.storage.missing, below
        assert refuses(copy), path.name


def test_without_its_record_it_is_no_vault(folder):
    (folder / "vault.cbor").unlink()
    with pytest.raises(Exception, match="no vault") as caught:
        Vault.open(folder, UNLOCKER)
    assert caught.value.code == "base.storage.missing"


def test_any_two_exchanged(pristine, tmp_path):
    names = [path.relative_to(pristine) for path in [*files_of(pristine), pristine / "lock"]]
    for number, (one, other) in enumerate(itertools.combinations(names, 2)):
        copy = shutil.copytree(pristine, tmp_path / str(number))
        (copy / one).rename(copy / "held")
        (copy / other).rename(copy / one)
        (copy / "held").rename(copy / other)
        assert refuses(copy), (one, other)


def test_files_of_another_copy_of_the_vault_mixed_in(pristine, tmp_path):
    """Of two copies that went on apart, no file of the one fits the other: all are authentic, for their own state."""
    changed = shutil.copytree(pristine, tmp_path / "changed")
    with Vault.open(changed, UNLOCKER) as vault:
        vault.write("small", b"SECRET")
        with vault.open_file("edited", "r+") as stream:
            stream.write(b"CHANGED")
    for number, path in enumerate(files_of(changed)):
        name = path.relative_to(changed)
        if (pristine / name).exists() and (pristine / name).read_bytes() != path.read_bytes():
            copy = shutil.copytree(pristine, tmp_path / str(number))
            shutil.copy(path, copy / name)
            assert refuses(copy), name
