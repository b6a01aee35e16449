"""Vault: streams against ``openssl speed``, age and a mounted gocryptfs; small things against SQLCipher and SQLite.

Streams are on a tmpfs of our own with huge pages (root; else on the system's), so that the disk is not what is
measured; the rest is on the system's. ``openssl speed`` encrypts one buffer again and again and touches no file; what
it leaves out (files, keys, Python) is our overhead and stands in the ratio. gocryptfs's files lie on the same tmpfs,
behind FUSE, as its users have them.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from bench.machine import row
from tidegate.base.errors import Fault
from tidegate.base.program import run_program
from tidegate.crypto.aead import Secret
from tidegate.keys.software import Argon2Cost
from tidegate.vault.format import CHUNK_LOG2
from tidegate.vault.sqlite import open_database
from tidegate.vault.store import Vault
from tidegate.vault.unlockers import PassphraseUnlocker

SIZE_MIB = 256
REPEATS = 9  # the best of them: the others measured the neighbours
RANDOM_READS = 20_000
RECORDS = 10_000
SMALL_ITEMS = 2_000
MANY_ITEMS = 100_000
SPARSE_BYTES = 10 << 30
_PIECE = 1 << 20
_TMPFS = Path("/dev/shm")  # noqa: S108  # a folder of our own is made in it


def run() -> list[dict[str, object]]:
    """Return the figures; the peers run on the same machine in the same minute."""
    with _ram(huge_pages=True) as folder:
        rows = _streams(folder, os.urandom(SIZE_MIB << 20))
    with _ram(huge_pages=False) as folder:
        return [*rows, *_small_things(folder), *_memory(folder)]


def unlocker() -> PassphraseUnlocker:
    """Return what opens the vaults here; its cost is not what is measured."""
    return PassphraseUnlocker(Secret(b"bench"), cost=Argon2Cost(memory_kib=64, iterations=1, lanes=1))


# -- streams ----------------------------------------------------------------------------------------------------------


def _streams(folder: Path, data: bytes) -> list[dict[str, object]]:
    with Vault.create(folder / "vault", unlocker()) as vault:
        openssl = _openssl_mib_s()
        writing = SIZE_MIB / _best(lambda: vault.write("item", data))
        reading = SIZE_MIB / _best(lambda: vault.verify("item"))
        openssl = max(openssl, _openssl_mib_s())  # of before and after: the neighbours change
        ours_4k = _random_reads(vault, len(data))
    shutil.rmtree(folder / "vault")
    age_in, age_out = _age_mib_s(folder, data)
    with _gocryptfs(folder) as mounted:
        go_in, go_out, go_4k = _plain_figures(mounted / "file", data)
    speed = "openssl speed aes-256-gcm 16 KiB"
    return [
        _mib("vault write, streaming", writing, speed, openssl),
        _mib("vault read, streaming", reading, speed, openssl),
        _mib("vault write, streaming", writing, "age -r", age_in),
        _mib("vault read, streaming", reading, "age -d", age_out),
        _mib("vault write, streaming", writing, "gocryptfs, mounted", go_in),
        _mib("vault read, streaming", reading, "gocryptfs, mounted", go_out),
        row(
            "vault read of 4 KiB at random",
            ours_4k,
            "reads/s",
            peer="gocryptfs, mounted",
            peer_value=go_4k,
            higher=True,
        ),
    ]


def _mib(name: str, ours: float, peer: str, value: float) -> dict[str, object]:
    return row(name, ours, "MiB/s", peer=peer, peer_value=value, higher=True)


def _best(call: Callable[[], object]) -> float:
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


def _random_reads(vault: Vault, size: int) -> float:
    offsets = [random.randrange(size - 4096) for _ in range(RANDOM_READS)]
    buffer = memoryview(bytearray(4096))
    with vault.open_item("item") as reader:
        return RANDOM_READS / _best(lambda: [reader.read_into(offset, buffer) for offset in offsets])


def _plain_figures(path: Path, data: bytes) -> tuple[float, float, float]:
    """Return MiB/s written and read, and random reads a second, of a file in a mounted file system."""

    def write() -> None:
        path.unlink(missing_ok=True)
        with path.open("wb", buffering=0) as stream:
            for offset in range(0, len(data), _PIECE):
                stream.write(memoryview(data)[offset : offset + _PIECE])
            os.fsync(stream.fileno())

    def read() -> None:
        _drop_cache(path)
        buffer = bytearray(_PIECE)
        with path.open("rb", buffering=0) as stream:
            while stream.readinto(buffer):
                pass

    def read_at_random() -> None:
        _drop_cache(path)
        for offset in offsets:
            os.pread(descriptor, 4096, offset)

    written, done = SIZE_MIB / _best(write), SIZE_MIB / _best(read)
    offsets = [random.randrange(len(data) - 4096) for _ in range(RANDOM_READS // 4)]
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return written, done, len(offsets) / _best(read_at_random)
    finally:
        os.close(descriptor)


def _drop_cache(path: Path) -> None:
    """Have the kernel forget the plaintext it keeps of a FUSE file: it would be read instead of decrypted."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def _age_mib_s(folder: Path, data: bytes) -> tuple[float, float]:
    plain, sealed, key = folder / "plain", folder / "sealed.age", folder / "key"
    plain.write_bytes(data)
    run_program(["age-keygen", "-o", str(key)])
    recipient = run_program(["age-keygen", "-y", str(key)]).stdout.decode().strip()

    def encrypt() -> None:
        sealed.unlink(missing_ok=True)
        run_program(["age", "-r", recipient, "-o", str(sealed), str(plain)])

    def decrypt() -> None:
        run_program(["age", "-d", "-i", str(key), "-o", "/dev/null", str(sealed)])

    figures = SIZE_MIB / _best(encrypt), SIZE_MIB / _best(decrypt)
    for path in (plain, sealed, key):
        path.unlink()
    return figures


@contextlib.contextmanager
def _gocryptfs(folder: Path) -> Iterator[Path]:
    """Give a mounted gocryptfs with AES-256-GCM whose ciphertext lies in ``folder``."""
    sealed, mounted = folder / "gocryptfs", folder / "mounted"
    for place in (sealed, mounted):
        place.mkdir()
    run_program(["gocryptfs", "-q", "-init", "-scryptn", "10", "-extpass", "echo bench", str(sealed)])
    run_program(["gocryptfs", "-q", "-extpass", "echo bench", str(sealed), str(mounted)])
    try:
        yield mounted
    finally:
        run_program(["umount", str(mounted)])
        shutil.rmtree(sealed)


def _openssl_mib_s() -> float:
    chunk = 1 << CHUNK_LOG2
    done = run_program(["openssl", "speed", "-evp", "aes-256-gcm", "-bytes", str(chunk), "-seconds", "2"])
    match = re.search(r"^AES-256-GCM\s+([0-9.]+)k", done.stdout.decode(), re.MULTILINE)
    if match is None:
        raise RuntimeError("openssl speed answered in another form")
    return float(match[1]) * 1000 / (1 << 20)


# -- small things -----------------------------------------------------------------------------------------------------


def _small_things(folder: Path) -> list[dict[str, object]]:
    """Each is durable before the next begins: a transaction a record, synchronous FULL."""
    value = os.urandom(1024)
    with Vault.create(folder / "small", unlocker()) as vault:
        records = vault.records("bench")
        start = time.perf_counter()
        for number in range(RECORDS):
            records[number.to_bytes(8, "big")] = value
        ours = RECORDS / (time.perf_counter() - start)
        start = time.perf_counter()
        for number in range(SMALL_ITEMS):
            vault.write(f"item/{number}", value)
        items = SMALL_ITEMS / (time.perf_counter() - start)
        cipher = _inserts(open_database(vault, folder / "cipher.db"), value)
    plain = sqlite3.connect(folder / "plain.db")
    plain.execute("PRAGMA journal_mode = WAL")
    plain.execute("PRAGMA synchronous = FULL")
    plainly = _inserts(plain, value)
    shutil.rmtree(folder / "small")
    name = "vault records of 1 KiB, each durable"
    return [
        row(name, ours, "records/s", peer="SQLCipher, WAL, FULL", peer_value=cipher, higher=True),
        row(name, ours, "records/s", peer="SQLite, plain, WAL, FULL", peer_value=plainly, higher=True),
        row("vault items of 1 KiB (files), each durable", items, "items/s", higher=True),
    ]


def _inserts(connection: Any, value: bytes) -> float:
    connection.isolation_level = None
    connection.execute("CREATE TABLE bench (name BLOB PRIMARY KEY, value BLOB) WITHOUT ROWID")
    start = time.perf_counter()
    for number in range(RECORDS):
        connection.execute("INSERT INTO bench VALUES (?, ?)", (number.to_bytes(8, "big"), value))
    rate = RECORDS / (time.perf_counter() - start)
    connection.close()
    return rate


# -- memory -----------------------------------------------------------------------------------------------------------

_CHILD = """
import json, resource, sys, time
from bench.vault import unlocker
from tidegate.vault.store import Vault
def rss():
    pages = int(open("/proc/self/statm").read().split()[1])
    return pages * resource.getpagesize()
folder, what = sys.argv[1], sys.argv[2]
before = rss()
start = time.perf_counter()
vault = Vault.open(folder, unlocker())
opened = time.perf_counter() - start
after = rss()
if what != "-":
    with open(what, "rb", buffering=0) as stream:
        vault.write_from("sparse", stream)
    vault.verify("sparse")
status = open("/proc/self/status").read()  # not ru_maxrss: that begins with what the parent had
peak = int(status.partition("VmHWM:")[2].split()[0]) * 1024
print(json.dumps({"opened_s": opened, "grown": after - before, "peak": peak}))
"""


def _memory(folder: Path) -> list[dict[str, object]]:
    rows = []
    place = folder / "many"
    with Vault.create(place, unlocker()) as vault:
        for number in range(MANY_ITEMS):
            vault.write(f"folder-{number % 100:02}/record-{number:06}", b"x")
    figures = [_child(place, "-") for _ in range(REPEATS)]
    shutil.rmtree(place)
    rows.append(row("opening a vault of 100,000 items", 1000 * min(f["opened_s"] for f in figures), "ms", higher=False))
    rows.append(row("memory that opening it takes", min(f["grown"] for f in figures) / (1 << 20), "MiB", higher=False))
    small, large = folder / "sparse-small", folder / "sparse-large"
    free = shutil.disk_usage(folder).free
    size = min(SPARSE_BYTES, free * 9 // 10)
    for path, length in ((small, 64 << 20), (large, size)):
        with path.open("wb") as stream:
            stream.truncate(length)
    peaks = []
    for path in (small, large):
        Vault.create(folder / "stream", unlocker()).close()
        peaks.append(_child(folder / "stream", str(path))["peak"] / (1 << 20))
        shutil.rmtree(folder / "stream")
    label = f"peak memory while {size / (1 << 30):.1f} GiB stream in and out"
    rows.append(row(label, peaks[1], "MiB", peer="the same with 64 MiB", peer_value=peaks[0], higher=False))
    return rows


def _child(folder: Path, what: str) -> dict[str, float]:
    done = subprocess.run([sys.executable, "-c", _CHILD, str(folder), what], capture_output=True, check=True, text=True)
    answer: dict[str, float] = json.loads(done.stdout)
    return answer


@contextlib.contextmanager
def _ram(*, huge_pages: bool) -> Iterator[Path]:
    """Give a folder in RAM; with huge pages, if we are root, so that page faults are not what is measured."""
    with tempfile.TemporaryDirectory(dir=_TMPFS if _TMPFS.is_dir() else None) as place:
        folder = Path(place)
        mounted = False
        if huge_pages and os.geteuid() == 0:
            with contextlib.suppress(Fault):
                run_program(["mount", "-t", "tmpfs", "-o", "huge=always,size=70%,mode=700", "bench", str(folder)])
                mounted = True
        try:
            yield folder
        finally:
            if mounted:
                run_program(["umount", str(folder)])


if __name__ == "__main__":
    print(json.dumps(run(), indent=2))
