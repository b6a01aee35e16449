"""Secret memory: wiped, reused, gone in forked children, and safe to lose at any moment."""

import ctypes
import faulthandler
import gc
import os
import pickle
import threading

import pytest
from cryptography.exceptions import InvalidTag
from hypothesis import given, settings
from hypothesis import strategies as st

from tidegate.crypto import memory
from tidegate.crypto.aead import (
    AeadAlgorithm,
    fastest_aead,
    hkdf_sha256,
    hkdf_sha256_into,
    overwrite_bytes,
    seal_aes256gcm,
)
from tidegate.crypto.errors import SecretForked, SecretMemoryShort, SecretWiped
from tidegate.crypto.memory import ARENA_BYTES, ProtectedSecret, Protection, protection, take_bytes


@pytest.fixture
def fresh(monkeypatch):
    """Start without arenas, so that tests see their own alone."""
    monkeypatch.setattr(memory, "_arenas", [])
    memory._given_back.clear()
    return memory._arenas


def free_bytes(arenas):
    ProtectedSecret.random(1).wipe()  # takes back what was given
    while memory._given_back:
        arena, start, slots = memory._given_back.popleft()
        arena.give(start, slots)
    return sum(count for arena in arenas for _, count in arena.free) * 64


def test_round_trip_and_wipe():
    secret = ProtectedSecret(b"k" * 32)
    view = secret.view()
    assert bytes(view) == b"k" * 32
    secret.wipe()
    secret.wipe()
    assert not any(view)
    with pytest.raises(SecretWiped):  # zeros would pass for a key
        secret.view()
    assert len(secret) == 32


def test_with_block_wipes():
    with ProtectedSecret(b"k" * 32) as secret:
        view = secret.view()
    assert not any(view)


def test_it_is_a_key_for_the_library():
    with ProtectedSecret(bytes(32)) as secret:
        assert seal_aes256gcm(secret.view(), bytes(12), b"x", b"") == seal_aes256gcm(bytes(32), bytes(12), b"x", b"")


def test_it_does_not_show_compare_or_pickle():
    secret = ProtectedSecret(b"correct horse")
    assert "horse" not in repr(secret)
    for operation in (lambda: secret == secret, lambda: hash(secret), lambda: pickle.dumps(secret)):  # noqa: PLR0124
        with pytest.raises(TypeError):
            operation()


def test_random_ones_differ_and_fill_their_length():
    secrets = [ProtectedSecret.random(32) for _ in range(50)]
    assert len({bytes(secret.view()) for secret in secrets}) == 50
    long = ProtectedSecret.random(5000)
    assert any(long.view()[-16:])


def test_fill_that_fails_leaves_nothing(fresh):
    seen = []

    def write(target):
        target[:] = b"k" * 32
        seen.append(target)
        raise KeyError

    with pytest.raises(KeyError):
        ProtectedSecret.fill(32, write)
    assert not any(seen.pop())
    assert free_bytes(fresh) == ARENA_BYTES


def test_dropped_secret_is_wiped_with_its_last_view(fresh):
    secret = ProtectedSecret(b"k" * 32)
    view = secret.view()[8:]
    del secret
    others = [ProtectedSecret(b"o" * 32) for _ in range(5)]
    assert bytes(view) == b"k" * 24  # not somebody else's memory by now
    del view
    assert not any(fresh[0].view[:64])
    for other in others:
        other.wipe()
    assert free_bytes(fresh) == ARENA_BYTES


def test_wiped_secret_does_not_give_its_memory_to_another_while_it_is_viewed(fresh):
    secret = ProtectedSecret(b"k" * 32)
    view = secret.view()
    secret.wipe()
    other = ProtectedSecret(b"o" * 32)
    assert not any(view)
    assert bytes(other.view()) == b"o" * 32


def test_secrets_do_not_overlap_and_memory_is_reused(fresh):
    slots = ARENA_BYTES // 64
    secrets = [ProtectedSecret(bytes([number % 251]) * 64) for number in range(slots)]
    assert len(fresh) == 1
    assert all(set(secret.view()) == {number % 251} for number, secret in enumerate(secrets))
    for secret in secrets[::2]:
        secret.wipe()
    again = [ProtectedSecret(b"\xff" * 64) for _ in secrets[::2]]
    assert len(fresh) == 1
    assert all(set(secret.view()) == {(2 * n + 1) % 251} for n, secret in enumerate(secrets[1::2]))
    assert all(set(secret.view()) == {0xFF} for secret in again)
    more = ProtectedSecret(b"x")
    assert len(fresh) == 2
    more.wipe()


def test_runs_are_joined_again(fresh):
    secrets = [ProtectedSecret.random(64) for _ in range(ARENA_BYTES // 64)]
    for secret in [*secrets[1::2], *secrets[::2]]:
        secret.wipe()
    whole = ProtectedSecret.random(ARENA_BYTES)
    assert len(fresh) == 1
    whole.wipe()


def test_secret_larger_than_an_arena_is_refused():
    with pytest.raises(SecretMemoryShort):
        ProtectedSecret.random(ARENA_BYTES + 1)


@settings(max_examples=50, deadline=None)
@given(steps=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3000)), max_size=60))
def test_behaves_like_buffers_of_its_own(steps):
    held = {}
    for place, size in steps:
        if place in held:
            secret, content = held.pop(place)
            assert bytes(secret.view()) == content
            secret.wipe()
        content = os.urandom(size)
        held[place] = (ProtectedSecret(content), content)
    assert all(bytes(secret.view()) == content for secret, content in held.values())


def test_garbage_collected_while_memory_is_handed_out(monkeypatch):
    """The collector runs wherever something is allocated; once that stopped a process for good."""
    take, collected = memory._Arena.take, []
    gc.disable()
    ring = [ProtectedSecret(b"r" * 32)]
    ring.append(ring)

    def collect_first(self, slots):
        collected.append(gc.collect())
        return take(self, slots)

    with monkeypatch.context() as patch:
        patch.setattr(memory._Arena, "take", collect_first)
        del ring
        other = ProtectedSecret(b"k" * 32)
    gc.enable()
    assert collected
    third = ProtectedSecret(b"l" * 32)
    assert [bytes(secret.view()) for secret in (other, third)] == [b"k" * 32, b"l" * 32]


def test_threads_share_the_arenas():
    errors = []

    def work(seed):
        for number in range(300):
            content = bytes([seed, number % 256]) * 40
            with ProtectedSecret(content) as secret:
                if bytes(secret.view()) != content:
                    errors.append((seed, number))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


def test_two_threads_wipe_one_secret_once(fresh):
    for _ in range(200):
        secret = ProtectedSecret.random(64)
        threads = [threading.Thread(target=secret.wipe) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert free_bytes(fresh) == ARENA_BYTES


def in_child(work):
    """Return the exit status of ``work()`` in a forked child."""
    child = os.fork()
    if child == 0:
        faulthandler.disable()  # some of them are meant to crash
        status = 99
        try:
            status = work()
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_forked_child_has_neither_the_secret_nor_its_memory():
    secret = ProtectedSecret(b"k" * 32)

    def work():
        try:
            secret.view()
        except SecretForked:
            return 7
        return 1

    assert in_child(work) == 7

    def touch():
        return secret._buffer[0]  # the pages are not mapped there

    assert in_child(touch) == -11
    assert bytes(secret.view()) == b"k" * 32


def test_forked_child_makes_secrets_of_its_own():
    secret = ProtectedSecret(b"k" * 32)

    def work():
        secret.wipe()  # harmless: it is the parent's
        own = ProtectedSecret(b"c" * 32)
        good = bytes(own.view()) == b"c" * 32
        own.wipe()
        return 7 if good else 1

    assert in_child(work) == 7
    assert bytes(secret.view()) == b"k" * 32


def test_fork_while_another_thread_takes_memory():
    stop = threading.Event()

    def work():
        while not stop.is_set():
            ProtectedSecret.random(32).wipe()

    thread = threading.Thread(target=work)
    thread.start()
    try:
        for _ in range(40):
            assert in_child(lambda: 7 if len(ProtectedSecret.random(32)) == 32 else 1) == 7
    finally:
        stop.set()
        thread.join()


def test_protection_is_known_and_true():
    found = protection()
    if found is not Protection.HIDDEN:
        pytest.skip(f"no memfd_secret here, but {found.value}")
    with ProtectedSecret(b"k" * 32) as secret, open("/proc/self/mem", "rb", buffering=0) as own:  # noqa: PTH123
        own.seek(ctypes.addressof(ctypes.c_char.from_buffer(secret.view())))
        with pytest.raises(OSError, match="Input/output error"):
            own.read(32)


def test_without_memfd_secret_the_next_best_is_taken(fresh, monkeypatch):
    monkeypatch.setattr(memory, "_SYS_MEMFD_SECRET", 100_000)  # no such call
    with ProtectedSecret(b"k" * 32) as secret:
        assert fresh[0].protection in (Protection.LOCKED, Protection.PLAIN)
        assert bytes(secret.view()) == b"k" * 32
        assert in_child(lambda: secret._buffer[0]) == -11


def test_bytes_of_a_library_are_moved():
    data = bytes(bytearray(b"returned by a library"))
    with take_bytes(data) as secret:
        assert bytes(secret.view()) == b"returned by a library"
        assert data == bytes(21)
    long = os.urandom(100_000)
    with pytest.raises(SecretMemoryShort):
        take_bytes(long)


@pytest.mark.parametrize("data", [b"", b"x", bytes([7])])
def test_bytes_that_everybody_shares_are_left_alone(data):
    before = bytes(bytearray(data))
    overwrite_bytes(data)
    assert data == before
    assert bytes([7]) == b"\x07"


@pytest.mark.parametrize(("salt", "info"), [(b"", b""), (b"s", b"i"), (bytes(range(100)), bytes(range(200)))])
@pytest.mark.parametrize("size", [1, 16, 32])
def test_hkdf_by_hand_is_the_librarys(salt, info, size):
    key, target = os.urandom(32), bytearray(size)
    hkdf_sha256_into(memoryview(key), salt=salt, info=info, target=memoryview(target))
    assert bytes(target) == hkdf_sha256(key, salt=salt, info=info, length=size)
    with pytest.raises(ValueError, match="one block"):
        hkdf_sha256_into(key, salt=salt, info=info, target=memoryview(bytearray(33)))


@pytest.mark.parametrize("algorithm", AeadAlgorithm)
def test_cipher_object_is_the_librarys(algorithm):
    key, nonce, sealed, opened = os.urandom(32), os.urandom(12), bytearray(116), bytearray(100)
    cipher = algorithm.use(memoryview(key))
    assert cipher.encrypt_into(nonce, bytes(100), b"aad", sealed) == 116
    assert bytes(sealed) == cipher.encrypt(nonce, bytes(100), b"aad")
    assert cipher.decrypt(nonce, sealed, b"aad") == bytes(100)
    assert cipher.decrypt_into(nonce, sealed, b"aad", opened) == 100
    sealed[0] ^= 1
    with pytest.raises(InvalidTag):
        cipher.decrypt_into(nonce, sealed, b"aad", opened)


def test_fastest_cipher_is_one_of_ours():
    assert fastest_aead() in set(AeadAlgorithm)


@pytest.mark.parametrize("algorithm", AeadAlgorithm)
@pytest.mark.parametrize("size", [0, 16, 24, 31, 33])
def test_ciphers_take_256_bit_keys_alone(algorithm, size):
    with pytest.raises(ValueError, match="key"):
        algorithm.use(bytes(size))
