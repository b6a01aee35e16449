"""Threads, forks, processes and pulled tokens under the PKCS#11 provider."""

import os
import subprocess
import sys
import threading

from tests.unit.keys.pkcs11_shared import code_of, sealing, signing

from tidegate.keys.pkcs11_session import load_module
from tidegate.keys.uri import open_store
from tidegate.testing.tokens import MODULE


def test_eight_threads_sign_seal_and_list(store):
    store.generate("key", signing())
    store.generate("seal", sealing())
    signer, failures = store.signer("key"), []

    def work(number):
        try:
            for turn in range(200):
                message = b"%d %d" % (number, turn)
                signer.public_key.verify(signer.sign(message), message)
                if turn % 20 == 0:
                    sealed = store.seal("seal", message, b"c")
                    if bytes(store.unseal("seal", sealed, b"c").view()) != message:
                        failures.append(number)
                    store.list_keys()
        except BaseException as error:
            failures.append(error)
            raise

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def _in_child(work):
    """Run ``work`` in a forked child and return whether it ended well."""
    return _ended_well(_start_child(work))


def _ended_well(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def _start_child(work):
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    return pid


def test_parent_and_child_both_sign_after_a_fork(store):
    store.generate("key", signing())
    signer = store.signer("key")

    def sign():
        for message in (b"a", b"b"):
            signer.public_key.verify(signer.sign(message), message)

    assert _in_child(sign)
    sign()
    assert _in_child(lambda: (sign(), _in_child(sign) or os._exit(1)))
    running = [_start_child(sign) for _ in range(4)]
    sign()
    assert all(_ended_well(pid) for pid in running)
    assert _in_child(lambda: (store.close(), code_of(signer.sign, b"")))
    sign()


def test_a_fork_waits_until_no_thread_is_inside_the_module(store):
    store.generate("key", signing())
    signer = store.signer("key")
    stop = threading.Event()

    def busy():
        while not stop.is_set():
            signer.sign(b"busy")

    threads = [threading.Thread(target=busy) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(5):
            assert _in_child(lambda: signer.public_key.verify(signer.sign(b"m"), b"m"))
    finally:
        stop.set()
        for thread in threads:
            thread.join()


RACE = """
import sys
from tidegate.base.errors import TidegateError
from tidegate.crypto.signing import SignatureAlgorithm
from tidegate.keys.store import KeyPurpose, KeySpec
from tidegate.keys.uri import open_store, parse_key_uri
store = open_store(parse_key_uri(sys.argv[1]))
made = 0
UNDECIDED = "keys.store.malformed", "keys.provider.failed"  # two of one name; SoftHSM: one half gone
for number in range(10):
    try:
        store.generate(f"key{number}", KeySpec(purpose=KeyPurpose.SIGN, algorithm=SignatureAlgorithm.ECDSA_P256))
        made += 1
    except TidegateError as error:
        if error.code not in ("keys.key.exists", *UNDECIDED):
            raise
    try:
        for info in store.list_keys():
            info.public_key.verify(store.signer(info.name).sign(b"m"), b"m")
    except TidegateError as error:
        if error.code not in ("keys.key.missing", *UNDECIDED):
            raise
print(made)
"""


def _text(uri):
    options = "&".join(f"{name}={value}" for name, value in uri.options.items() if name != "token")
    return f"pkcs11:token={uri.location}?{options}"


def test_processes_race_for_names_and_no_name_means_two_keys(hsm):
    """SoftHSM may show a process another one's new key late: then both made one, and the name is refused from then."""
    command = [sys.executable, "-c", RACE, _text(hsm.uri("one"))]
    running = [
        subprocess.Popen(command, env=hsm.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(3)
    ]
    done = [process.communicate(timeout=18) for process in running]
    assert [process.returncode for process in running] == [0, 0, 0], b"".join(err for _, err in done).decode()
    store = open_store(hsm.uri("one"))
    made = sum(int(out) for out, _ in done)
    names = [info.name for info in store.list_keys()]
    assert len(names) + store.skipped_keys == made
    for name in {f"key{number}" for number in range(10)} - set(names):
        assert code_of(store.signer, name) in ("keys.store.malformed", "keys.key.missing")
    store.close()


def test_a_lost_session_is_opened_again(hsm, store):
    store.generate("key", signing())
    store.generate("seal", sealing())
    signer = store.signer("key")
    sealed = store.seal("seal", b"s", b"c")
    calls = [
        lambda: signer.public_key.verify(signer.sign(b"m"), b"m"),
        lambda: store.unseal("seal", sealed, b"c"),
        store.list_keys,
        lambda: store.random(8),
    ]
    for number, call in enumerate(calls):
        load_module(MODULE).restart()
        call()
        store._login._session.close()  # the session and the login are gone; nobody told the store
        call()
        store._login._session.close()
        store.generate(f"new{number}", signing())
    assert len(store.list_keys()) == 2 + len(calls)


def test_a_pulled_token_is_missing_and_works_again_once_it_is_back(hsm, store):
    store.generate("key", signing())
    signer = store.signer("key")
    (hsm.folder / "tokens").rename(hsm.folder / "pulled")
    (hsm.folder / "tokens").mkdir()
    load_module(MODULE).restart()
    assert code_of(signer.sign, b"") == "keys.token.missing"
    assert code_of(signer.sign, b"") == "keys.token.missing"
    (hsm.folder / "tokens").rmdir()
    (hsm.folder / "pulled").rename(hsm.folder / "tokens")
    signer.public_key.verify(signer.sign(b"m"), b"m")
