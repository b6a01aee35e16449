"""Debian's age and age-keygen read what we write, and we read what they write."""

import io
import os
import pty
import select
import shutil
import subprocess
import time

import pytest

from tidegate.base.errors import Rejected
from tidegate.crypto.aead import Secret
from tidegate.vault.age import decrypt, decrypt_secret, encrypt, encrypt_secret
from tidegate.vault.age_recipients import (
    ScryptIdentity,
    ScryptRecipient,
    X25519Identity,
    parse_identities,
    parse_recipient,
)

pytestmark = pytest.mark.skipif(
    shutil.which("age") is None or shutil.which("age-keygen") is None, reason="Debian's package age is not installed"
)

CHUNK = 64 << 10
SIZES = [0, 1, 15, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK, 5 * CHUNK + 777]
PASSPHRASE = b"correct horse battery staple"
TERMINAL_S = 15  # scrypt with age's own work factor takes one or two


def content(size):
    return bytes(number * 31 % 251 for number in range(min(size, 4096))) * (size // 4096 + 1) if size else b""


def run(*arguments, data=b"", check=True):
    return subprocess.run([*map(str, arguments)], input=data, capture_output=True, check=check, timeout=TERMINAL_S)


def run_at_terminal(*arguments, answer):
    """Run a program that asks at its terminal, and answer each time; return its exit status and what it showed."""
    master, slave = pty.openpty()
    command = ["setsid", "--ctty", "--wait", *map(str, arguments)]  # age reads /dev/tty, not its standard input
    process = subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave)
    os.close(slave)
    shown, asked, deadline = b"", 0, time.monotonic() + TERMINAL_S
    try:
        while time.monotonic() < deadline:
            if not select.select([master], [], [], 0.1)[0]:
                continue
            try:
                shown += os.read(master, 4096)
            except OSError:  # EIO: the other side is closed
                break
            if shown.count(b"assphrase") > asked and shown.rstrip().endswith(b":"):
                asked = shown.count(b"assphrase")
                os.write(master, answer + b"\n")
        return process.wait(timeout=max(deadline - time.monotonic(), 1)), shown
    finally:
        process.kill()
        process.wait()
        os.close(master)


@pytest.fixture
def peer(tmp_path):
    """An identity that age-keygen made: its file, and its recipient as age-keygen says it."""
    file = tmp_path / "peer.txt"
    run("age-keygen", "-o", file)
    return file, run("age-keygen", "-y", file).stdout.decode().strip()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("armored", [False, True], ids=["binary", "armored"])
def test_age_reads_ours(peer, size, armored):
    file, recipient = peer
    plain, target = content(size)[:size], io.BytesIO()
    encrypt(io.BytesIO(plain), target, [parse_recipient(recipient)], armored=armored)
    assert run("age", "-d", "-i", file, data=target.getvalue()).stdout == plain


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("armored", [False, True], ids=["binary", "armored"])
def test_we_read_age_s(peer, size, armored):
    file, recipient = peer
    plain = content(size)[:size]
    options = ["-a"] if armored else []
    sealed = run("age", *options, "-r", recipient, data=plain).stdout
    identities = parse_identities(file.read_bytes())
    assert b"".join(decrypt(io.BytesIO(sealed), identities, armored=armored)) == plain


def test_age_keygen_agrees_about_our_identities(tmp_path):
    ours = X25519Identity.generate()
    file = tmp_path / "ours.txt"
    file.write_bytes(b"# made here\n\n" + ours.encode().view() + b"\n")
    assert run("age-keygen", "-y", file).stdout.decode().strip() == ours.recipient().encode()


def test_several_recipients_each_open_both_ways(peer, tmp_path):
    file, recipient = peer
    others = [X25519Identity.generate() for _ in range(3)]
    recipients = [others[0].recipient(), parse_recipient(recipient), others[1].recipient(), others[2].recipient()]
    target = io.BytesIO()
    encrypt(io.BytesIO(b"for four"), target, recipients)
    assert run("age", "-d", "-i", file, data=target.getvalue()).stdout == b"for four"

    names = [argument for one in recipients for argument in ("-r", one.encode())]
    sealed = run("age", *names, data=b"from age").stdout
    for identity in (*others, *parse_identities(file.read_bytes())):
        assert b"".join(decrypt(io.BytesIO(sealed), [identity])) == b"from age"


def test_both_refuse_a_byte_that_changed(peer):
    """The header's and the payload's every 7th byte: age agrees with us that nothing of it is right."""
    file, recipient = peer
    target = io.BytesIO()
    encrypt(io.BytesIO(b"untouched"), target, [parse_recipient(recipient)])
    sealed, identities = target.getvalue(), parse_identities(file.read_bytes())
    for position in range(0, len(sealed), 7):
        changed = bytearray(sealed)
        changed[position] ^= 1
        assert run("age", "-d", "-i", file, data=changed, check=False).returncode != 0
        with pytest.raises(Rejected) as refused:
            b"".join(decrypt(io.BytesIO(changed), identities, armored=False))
        assert refused.value.code.startswith("vault.age.")


def test_age_reads_our_passphrase(tmp_path):
    sealed, opened = tmp_path / "ours.age", tmp_path / "opened"
    with sealed.open("wb") as target:
        encrypt(io.BytesIO(b"behind a passphrase"), target, [ScryptRecipient(Secret(PASSPHRASE), work_factor=14)])
    status, shown = run_at_terminal("age", "-d", "-o", opened, sealed, answer=PASSPHRASE)
    assert status == 0, shown
    assert opened.read_bytes() == b"behind a passphrase"


def test_age_refuses_another_passphrase_for_ours(tmp_path):
    """So that the test above is one: the answer at the terminal does decide."""
    sealed, opened = tmp_path / "ours.age", tmp_path / "opened"
    with sealed.open("wb") as target:
        encrypt(io.BytesIO(b"behind a passphrase"), target, [ScryptRecipient(Secret(PASSPHRASE), work_factor=10)])
    status, shown = run_at_terminal("age", "-d", "-o", opened, sealed, answer=b"another one")
    assert status != 0, shown


def test_we_read_age_s_passphrase(peer, tmp_path):
    """An identity file under a passphrase, as age recommends to keep one, opens a file in two steps."""
    file, recipient = peer
    locked = tmp_path / "locked.age"
    status, shown = run_at_terminal("age", "-p", "-a", "-o", locked, file, answer=PASSPHRASE)
    assert status == 0, shown
    with (
        locked.open("rb") as source,
        decrypt_secret(source, [ScryptIdentity(Secret(PASSPHRASE))], limit_bytes=4096) as text,
    ):
        identities = parse_identities(text.view())
    assert bytes(identities[0].encode().view()) in file.read_bytes()
    sealed = run("age", "-r", recipient, data=b"second step").stdout
    assert b"".join(decrypt(io.BytesIO(sealed), identities)) == b"second step"


def test_age_reads_a_secret_of_ours(peer):
    file, recipient = peer
    target = io.BytesIO()
    encrypt_secret(Secret(b"k" * 32), target, [parse_recipient(recipient)], armored=True)
    assert run("age", "-d", "-i", file, data=target.getvalue()).stdout == b"k" * 32
