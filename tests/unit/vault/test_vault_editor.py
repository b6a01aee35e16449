"""Items as files: changed in place like a bytearray, whole or not at all, one at a time."""

import contextlib
import errno
import gc
import io
import itertools
import os
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tidegate.base.errors import Fault, Misuse, StorageFailed, StorageFull, TidegateError
from tidegate.crypto.aead import AeadAlgorithm, Secret
from tidegate.keys.software import Argon2Cost
from tidegate.vault import editor as editor_module
from tidegate.vault.beside import Beside
from tidegate.vault.errors import FileModeUnknown, ItemBusy, ItemUnknown
from tidegate.vault.extents import MAX_EXTENTS, Extent, check_extents, mark_written, sequence_of
from tidegate.vault.listing import file_name
from tidegate.vault.store import Vault
from tidegate.vault.unlockers import PassphraseUnlocker

UNLOCKER = PassphraseUnlocker(Secret(b"correct horse"), cost=Argon2Cost(memory_kib=64, iterations=1, lanes=1))
CHUNK = 1 << 14
PADDINGS = ["none", "padme", "4096", "100000"]


@pytest.fixture
def vault(tmp_path):
    with Vault.create(tmp_path / "vault", UNLOCKER) as vault:
        yield vault


@pytest.fixture(params=PADDINGS)
def padded(request, tmp_path):
    with Vault.create(tmp_path / "padded", UNLOCKER, padding=request.param) as vault:
        yield vault


def file_of(vault, name):
    return vault.folder / "items" / file_name(vault.engine.find(name))


# -- against a bytearray ----------------------------------------------------------------------------------------------

NEAR = [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 3 * CHUNK - 1, 3 * CHUNK, 100_000, 100_001]
PLACES = st.one_of(st.sampled_from(NEAR), st.integers(0, 120_000))
SIZES = st.one_of(st.integers(0, 40), st.sampled_from([CHUNK - 1, CHUNK, CHUNK + 1, 40_000]))
STEPS = st.one_of(
    st.tuples(st.just("write"), PLACES, SIZES),
    st.tuples(st.just("append"), st.just(0), SIZES),
    st.tuples(st.just("truncate"), PLACES, st.just(0)),
    st.tuples(st.just("read"), PLACES, SIZES),
    st.tuples(st.sampled_from(["flush", "close", "reopen", "drop", "cut"]), st.just(0), st.just(0)),
)


def write_at(model, place, data):
    if data and len(model) < place:
        model.extend(bytes(place - len(model)))
    model[place : place + len(data)] = data


class Driver:
    """A vault and what it should be: ``model`` with what waits, ``kept`` what counts."""

    def __init__(self, folder, padding, algorithm, size):
        self.folder = folder
        self.vault = Vault.create(folder, UNLOCKER, padding=padding, algorithm=algorithm)
        self.kept = bytearray(os.urandom(size))
        self.model = bytearray(self.kept)
        self.vault.write("a", self.kept)
        self.stream = self.vault.open_file("a", "r+")

    def step(self, kind, place, size):
        getattr(self, kind)(place, size)
        assert self.stream.seek(0, io.SEEK_END) == len(self.model)

    def write(self, place, size):
        data = os.urandom(size or 1)
        size = len(data)
        self.stream.seek(place)
        assert self.stream.write(data) == size
        write_at(self.model, place, data)

    def append(self, place, size):
        data = os.urandom(size)
        if not self.stream._editor.is_dirty:
            self.close(0, 0, mode="a")
            self.stream.write(data)
            self.model += data
            self.close(0, 0)

    def truncate(self, place, size):
        assert self.stream.truncate(place) == place
        del self.model[place:]
        self.model.extend(bytes(place - len(self.model)))

    def read(self, place, size):
        self.stream.seek(place)
        assert self.stream.read(size) == self.model[place : place + size]

    def flush(self, place, size):
        self.stream.flush()
        self.kept = bytearray(self.model)

    def close(self, place, size, mode="r+"):
        self.stream.close()
        self.kept = bytearray(self.model)
        assert self.vault.read("a") == self.kept
        self.stream = self.vault.open_file("a", mode)

    def drop(self, place, size):
        """End by an exception: what waits is gone."""
        with pytest.raises(ZeroDivisionError), self.stream:
            raise ZeroDivisionError
        self.model = bytearray(self.kept)
        self.stream = self.vault.open_file("a", "r+")

    def reopen(self, place, size):
        self.stream.close()
        self.kept = bytearray(self.model)
        self.vault.close()
        self.vault = Vault.open(self.folder, UNLOCKER)
        self.vault.verify_folder()
        self.stream = self.vault.open_file("a", "r+")

    def cut(self, place, size):
        """The power goes: what waits is gone, what counted is there."""
        self.vault._release()
        self.vault = Vault.open(self.folder, UNLOCKER)
        self.model = bytearray(self.kept)
        self.stream._editor.forget()
        self.stream = self.vault.open_file("a", "r+")

    def end(self):
        self.reopen(0, 0)
        self.stream.close()
        assert self.vault.read("a") == self.model
        self.vault.verify("a")
        self.vault.close()


@pytest.mark.parametrize("padding", PADDINGS)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    size=st.one_of(st.sampled_from(NEAR), st.integers(0, 100_000)),
    algorithm=st.sampled_from(AeadAlgorithm),
    steps=st.lists(STEPS, max_size=14),
)
def test_changed_in_place_like_a_bytearray(tmp_path, padding, size, algorithm, steps):
    driver = Driver(tmp_path / os.urandom(8).hex(), padding, algorithm, size)
    for step in steps:
        driver.step(*step)
    driver.end()
    shutil.rmtree(driver.folder)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(STEPS, min_size=3, max_size=14))
def test_edit_that_flushes_by_itself(tmp_path, steps):
    """As above with the buffer of two chunks: most steps flush in the middle, and some write the item anew."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(editor_module, "MAX_DIRTY_CHUNKS", 2)
        driver = Driver(tmp_path / os.urandom(8).hex(), "none", None, 50_000)
        for kind, place, size in steps:
            if kind in ("drop", "cut"):  # what of it had counted by then is the vault's to say
                driver.flush(0, 0)
            driver.step(kind, place, size)
        driver.end()
        shutil.rmtree(driver.folder)


def test_many_scattered_changes_are_written_anew(vault):
    """More extents than a header takes: the item gets a new file under a new key."""
    content = bytearray(2 * (MAX_EXTENTS // 2 + 10) * CHUNK)
    vault.write("a", content)
    generations, keys = set(), set()
    with vault.open_file("a", "r+") as stream:
        for number in range(MAX_EXTENTS // 2 + 10):
            at = 2 * number * CHUNK + number
            stream.seek(at)
            stream.write(b"!%d" % number)
            write_at(content, at, b"!%d" % number)
            stream.flush()
            generations.add(vault.stat("a").generation)
            keys.add(bytes(stream._editor._reader.file_key.view()))
    assert generations == {1, 2}
    assert len(keys) == 2
    assert vault.read("a") == content
    assert len(list((vault.folder / "items").iterdir())) == 1
    vault.verify_folder()


def test_key_that_was_used_too_often_is_replaced(vault, monkeypatch):
    vault.write("a", bytes(3 * CHUNK))
    monkeypatch.setattr(editor_module, "MAX_CHUNK_WRITES", 5)
    generations = []
    with vault.open_file("a", "r+") as stream:
        for _ in range(6):
            stream.seek(0)
            stream.write(b"x")
            stream.flush()
            generations.append(vault.stat("a").generation)
    assert generations == [1, 1, 2, 2, 2, 3]  # writing anew writes three


def test_change_in_place_writes_what_changed_and_no_more(vault):
    vault.write("a", bytes(10 * CHUNK))
    path = file_of(vault, "a")
    before = path.read_bytes()
    with vault.open_file("a", "r+") as stream:
        stream.seek(5 * CHUNK + 7)
        stream.write(b"x")
    after = path.read_bytes()
    assert len(after) == len(before)
    stride = CHUNK + 28
    changed = {at for at in range(10) if before[8192 + at * stride :][:stride] != after[8192 + at * stride :][:stride]}
    assert changed == {5}
    assert file_of(vault, "a") == path
    assert not (vault.folder / "redo").exists()


def test_cut_off_content_is_gone_from_padding(padded):
    """What lay behind the new end is not behind it in the padding: the stored bytes there are zeros."""
    padded.write("a", b"s" * 90_000)
    with padded.open_file("a", "r+") as stream:
        stream.truncate(80_000)
        stream.flush()
        stream.truncate(70_000)
    with padded.open_item("a") as reader:
        reader.header = reader.header.__class__(
            **{
                **{name: getattr(reader.header, name) for name in reader.header.__dataclass_fields__},
                "length_bytes": reader.header.stored_bytes,
            }
        )
        whole = b"".join(bytes(piece) for piece in reader.iter_content())
    assert whole[:70_000] == b"s" * 70_000
    assert not any(whole[70_000:])


def test_writing_nothing_changes_nothing(vault):
    vault.write("a", b"abc")
    with vault.open_file("a", "r+") as stream:
        stream.seek(10)
        assert stream.write(b"") == 0
    assert vault.read("a") == b"abc"
    assert vault.stat("a").generation == 1


def test_text_through_pythons_own_wrappers(vault):
    with io.TextIOWrapper(io.BufferedWriter(vault.open_file("notes", "w")), encoding="utf-8") as stream:
        stream.write("Größe\nzwei\n")
    with io.TextIOWrapper(io.BufferedReader(vault.open_file("notes")), encoding="utf-8") as stream:
        assert stream.readlines() == ["Größe\n", "zwei\n"]
    with io.BufferedRandom(vault.open_file("notes", "r+")) as stream:
        stream.seek(0, io.SEEK_END)
        stream.write(b"drei\n")
    assert vault.read("notes").decode() == "Größe\nzwei\ndrei\n"


def test_what_each_mode_can(vault):
    vault.write("a", b"abc")
    table = {"r": (True, False, True), "w": (False, True, False), "r+": (True, True, True), "a": (True, True, True)}
    for mode, able in table.items():
        with vault.open_file("b" if mode == "w" else "a", mode) as stream:
            assert (stream.readable(), stream.writable(), stream.seekable()) == able
            assert (stream.name, stream.mode) == ("b" if mode == "w" else "a", mode)
        with pytest.raises(ValueError, match="closed"):
            stream.read(1) if able[0] else stream.write(b"x")
    for mode in ("x", "rb", "", "w+"):
        with pytest.raises(FileModeUnknown):
            vault.open_file("a", mode)
    with vault.open_file("a", "r+") as stream:
        for offset, whence in ((-1, 0), (-4, 2), (0, 9)):
            with pytest.raises(ValueError, match=r"before|whence"):
                stream.seek(offset, whence)


def test_append_creates_and_always_writes_at_the_end(vault):
    with vault.open_file("log", "a") as stream:
        stream.write(b"one\n")
        stream.seek(0)
        stream.write(b"two\n")
    with vault.open_file("log", "a") as stream:
        assert stream.tell() == 8
        stream.write(b"three\n")
    assert vault.read("log") == b"one\ntwo\nthree\n"


@pytest.mark.parametrize("mode", ["r", "r+"])
def test_unknown_item(vault, mode):
    with pytest.raises(ItemUnknown):
        vault.open_file("nothing", mode)


# -- one at a time ----------------------------------------------------------------------------------------------------


def busy(call):
    with pytest.raises(ItemBusy):
        call()


def test_reader_keeps_editors_out(vault):
    vault.write("a", b"abc")
    first, second = vault.open_file("a"), vault.open_file("a")
    for stream in (first, second):
        busy(lambda: vault.open_file("a", "r+"))
        busy(lambda: vault.open_file("a", "a"))
        stream.close()
    vault.open_file("a", "r+").close()


def test_reader_of_another_item_does_not(vault):
    vault.write("a", b"abc")
    vault.write("b", b"abc")
    with vault.open_file("a"), vault.open_file("b", "r+") as stream:
        stream.write(b"x")
    assert vault.read("b") == b"xbc"


def test_item_reader_keeps_editors_out(vault):
    vault.write("a", bytes(100_000))
    with vault.open_item("a") as reader:
        reader.read_range(0, 10)
        busy(lambda: vault.open_file("a", "r+"))


def test_streaming_keeps_editors_out(vault):
    vault.write("a", bytes(3_000_000))
    with vault.open_item("a") as reader:
        pieces = reader.iter_content()
        next(pieces)
        busy(lambda: vault.open_file("a", "r+"))
        assert sum(len(piece) for piece in pieces)


def test_editor_keeps_everybody_else_out(vault):
    vault.write("a", b"abc")
    with vault.open_file("a", "r+"):
        for call in (
            lambda: vault.open_file("a"),
            lambda: vault.open_file("a", "r+"),
            lambda: vault.open_file("a", "a"),
            lambda: vault.open_file("a", "w"),
            lambda: vault.open_item("a"),
            lambda: vault.read("a"),
            lambda: vault.write("a", b""),
            lambda: vault.write_from("a", io.BytesIO()),
            lambda: vault.delete("a"),
            lambda: vault.verify("a"),
        ):
            busy(call)
    assert vault.read("a") == b"abc"
    vault.delete("a")


def test_two_writers_of_one_item(vault):
    vault.write("a", b"old")
    with vault.open_file("a", "w") as stream:
        stream.write(b"new")
        busy(lambda: vault.open_file("a", "w"))
        busy(lambda: vault.write("a", b"other"))
        assert vault.read("a") == b"old"
    assert vault.read("a") == b"new"
    vault.write("a", b"other")


def test_writer_and_editor(vault):
    """The writer came first; when it ends, the item is being changed in place, and it is the writer that is refused."""
    vault.write("a", b"old")
    writer = vault.open_file("a", "w")
    writer.write(b"new")
    with vault.open_file("a", "r+") as stream:
        stream.write(b"x")
        busy(writer.close)
    assert vault.read("a") == b"xld"
    vault.verify_folder()
    vault.write("a", b"goes on")


def test_reader_goes_on_in_what_it_opened(vault):
    vault.write("a", b"old" * 50_000)
    with vault.open_file("a") as stream:
        vault.write("a", b"new")
        assert stream.read() == b"old" * 50_000
    vault.write("a", b"once more")
    with vault.open_file("a") as stream:
        vault.delete("a")
        assert stream.read() == b"once more"


def test_editor_that_is_not_closed_lets_go(vault):
    vault.write("a", b"abc")
    stream = vault.open_file("a", "r+")
    stream.write(b"x")
    del stream
    gc.collect()
    assert vault.read("a") == b"abc"


# -- what does not count ----------------------------------------------------------------------------------------------


def test_exception_drops_what_waits(vault):
    vault.write("a", b"abc")
    with pytest.raises(ZeroDivisionError), vault.open_file("a", "r+") as stream:
        stream.write(b"x")
        stream.flush()
        stream.write(b"y")
        raise ZeroDivisionError
    assert vault.read("a") == b"xbc"


def test_new_content_counts_at_its_end_alone(vault):
    vault.write("a", b"old")
    with pytest.raises(ZeroDivisionError), vault.open_file("a", "w") as stream:
        stream.write(b"x" * 2_000_000)
        raise ZeroDivisionError
    assert vault.read("a") == b"old"
    stream = vault.open_file("a", "w")
    stream.write(b"x")
    stream.abandon()
    assert vault.read("a") == b"old"
    stream = vault.open_file("a", "w")
    stream.write(b"x")
    del stream
    gc.collect()
    assert vault.read("a") == b"old"
    stream = vault.open_file("a", "w")
    stream.write(b"new")
    vault.verify("a")
    stream.close()
    stream.close()
    assert vault.read("a") == b"new"
    assert list((vault.folder / "new").iterdir()) == []


def test_files_that_outlive_the_vault_change_nothing(tmp_path):
    vault = Vault.create(tmp_path / "vault", UNLOCKER)
    vault.write("a", b"old")
    vault.write("b", b"old")
    writer, editor = vault.open_file("a", "w"), vault.open_file("b", "r+")
    writer.write(b"new")
    editor.write(b"new")
    vault.close()
    for stream in (writer, editor):
        with pytest.raises(Misuse) as caught:
            stream.close()
        assert caught.value.code == "vault.folder.closed"
    with Vault.open(tmp_path / "vault", UNLOCKER) as vault:
        assert [vault.read(name) for name in "ab"] == [b"old", b"old"]
        vault.verify_folder()


def test_item_of_more_than_the_format_takes_is_refused(vault):
    vault.write("a", b"abc")
    with vault.open_file("a", "r+") as stream:
        for call in (lambda: stream.truncate((1 << 40) + 1), lambda: stream.write(b"xy")):
            stream.seek((1 << 40) - 1)
            with pytest.raises(Misuse) as caught:
                call()
            assert caught.value.code == "vault.item.size"
    assert vault.read("a") == b"abc"


# -- storage that fails -----------------------------------------------------------------------------------------------


def fail(*arguments, **options):
    raise OSError(errno.EIO, "no")


def test_full_disk_is_noticed_before_a_change_in_place_counts(vault, monkeypatch):
    vault.write("a", b"old" * 10_000)
    with monkeypatch.context() as patch:
        patch.setattr("tidegate.vault.redo._reserve", lambda path, size: (_ for _ in ()).throw(StorageFull("full")))
        stream = vault.open_file("a", "r+")
        stream.write(b"new")
        with pytest.raises(StorageFull):
            stream.flush()
    stream.flush()
    stream.close()
    assert vault.read("a")[:6] == b"newold"


def test_failing_journal_takes_a_change_in_place_back(vault, monkeypatch):
    vault.write("a", b"old" * 10_000)
    stream = vault.open_file("a", "r+")
    stream.write(b"new")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", fail)
        with pytest.raises(StorageFailed):
            stream.flush()
    with pytest.raises(ZeroDivisionError), stream:
        raise ZeroDivisionError
    assert vault.read("a") == b"old" * 10_000
    assert not (vault.folder / "redo").exists()


@pytest.mark.parametrize("afterwards", ["close", "another change"])
@pytest.mark.parametrize("writes", [0, 1, 2])
def test_failing_write_of_a_change_that_counts(vault, monkeypatch, writes, afterwards):
    """The transaction stands in the journal, the item's file is half written: the redo file has to survive."""
    vault.write("a", b"o" * 40_000)
    stream = vault.open_file("a", "r+")
    stream.seek(10_000)
    stream.write(b"n" * 10_000)
    count = [0]
    real = os.pwrite

    def pwrite(descriptor, data, offset):
        if Path(f"/proc/self/fd/{descriptor}").readlink().parent.name == "items":
            count[0] += 1
            if count[0] > writes:
                raise OSError(errno.EIO, "no")
        return real(descriptor, data, offset)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", pwrite)
        with pytest.raises(StorageFailed):
            stream.flush()
    assert count[0] == writes + 1
    stream._editor.forget()
    stream.close()
    if afterwards == "another change":
        with contextlib.suppress(Fault):  # good: the vault says that it has to be opened again
            vault.records("a")["k"] = b"v"
    vault.close()
    with Vault.open(vault.folder, UNLOCKER) as again:
        assert again.read("a") in (b"o" * 40_000, b"o" * 10_000 + b"n" * 10_000 + b"o" * 20_000)


@pytest.mark.parametrize(
    "afterwards",
    [
        "close",
        "a merge",
    ],
)
def test_failing_move_of_a_file_that_counts(vault, monkeypatch, afterwards):
    vault.write("a", b"old")
    with monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.rename", fail)
        with pytest.raises(StorageFailed):
            vault.write("a", b"new")
    if afterwards == "a merge":
        with contextlib.suppress(Fault):  # good: the vault says that it has to be opened again
            vault.table.merge()
    vault.close()
    with Vault.open(vault.folder, UNLOCKER) as again:
        assert again.read("a") in (b"old", b"new")


def test_failed_write_is_not_made_good_by_closing(vault, monkeypatch):
    vault.write("a", b"old")
    stream = vault.open_file("a", "w")
    with monkeypatch.context() as patch:
        patch.setattr(Beside, "wait", lambda _: fail())
        with pytest.raises(StorageFailed):
            for _ in range(16):  # a batch is written while the next one is filled
                stream.write(os.urandom(1 << 19))
    with contextlib.suppress(TidegateError):
        stream.close()
    assert vault.read("a") == b"old"


# -- extents ----------------------------------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(data=st.data(), chunks=st.integers(1, 12))
def test_extents_remember_each_chunks_write(data, chunks):
    extents, model = (Extent(0, 0),), [0] * chunks
    for sequence in range(1, data.draw(st.integers(1, 8)) + 1):
        new = data.draw(st.integers(1, 12))
        written = data.draw(st.sets(st.integers(0, new - 1), max_size=new)) | set(range(len(model), new))
        model = [sequence if at in written else model[at] for at in range(new)]
        extents = tuple(mark_written(extents, written, sequence=sequence, chunks=new))
        assert check_extents(extents, new)
        assert [sequence_of(extents, at) for at in range(new)] == model
        assert all(one.sequence != other.sequence for one, other in itertools.pairwise(extents))


@pytest.mark.parametrize(
    "extents",
    [
        (),
        (Extent(1, 0),),
        (Extent(0, 0), Extent(0, 1)),
        (Extent(0, 0), Extent(2, 1), Extent(1, 2)),
        (Extent(0, 0), Extent(3, 1)),
    ],
)
def test_extents_that_do_not_cover_the_file(extents):
    assert not check_extents(extents, 3)
