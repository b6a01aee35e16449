"""Encrypted directories on a real ext4: what a thief, a late process, another user and a wrong key get."""

import contextlib
import errno
import multiprocessing
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tidegate.base.errors import Fault, TidegateError
from tidegate.base.program import run_program
from tidegate.crypto.aead import Secret
from tidegate.testing.loopfs import mounted_ext4
from tidegate.vault import fscrypt
from tidegate.vault.fscrypt import EncryptedDirectory, lock_directories
from tidegate.vault.fscrypt_layout import KeyState, key_identifier

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="mounting an image needs root"),
]

MARKER = b"Jane Roe, born 1970-01-01, diagnosis Z21. "
NAME = "jane-roe-diagnosis"
NOBODY = 65534


@contextlib.contextmanager
def mounted(folder, *features):
    """An ext4 image below ``folder``, mounted; yields the mount and the image."""
    with contextlib.ExitStack() as stack:
        try:
            pair = stack.enter_context(mounted_ext4(folder, features=features))
        except Fault as fault:
            pytest.skip(f"an ext4 image cannot be mounted here: {fault.message}")
        yield pair


@pytest.fixture
def disk(tmp_path):
    with mounted(tmp_path, "encrypt") as (mount, image):
        try:
            fscrypt.status(mount)
        except Fault as fault:
            pytest.skip(f"no encrypted directories on this kernel: {fault.message}")
        yield mount, image


@pytest.fixture
def mount(disk):
    return disk[0]


def new_key():
    return Secret(os.urandom(64))


def code_of(call, *arguments, **named):
    with pytest.raises(TidegateError) as caught:
        call(*arguments, **named)
    return caught.value.code


def test_life_of_a_directory(mount):
    key = new_key()
    directory = EncryptedDirectory.create(mount / "patients", key)
    state = directory.status()
    assert state.unlocked
    assert state.policy.identifier == key_identifier(key)
    (mount / "patients" / NAME).write_bytes(MARKER * 1000)
    directory.lock()
    directory.lock()  # harmless
    state = directory.status()
    assert (state.unlocked, state.key.state) == (False, KeyState.ABSENT)
    (hidden,) = (entry.name for entry in (mount / "patients").iterdir())
    assert hidden != NAME
    for path, flags in ((mount / "patients" / hidden, os.O_RDONLY), (mount / "patients" / "new", os.O_CREAT)):
        with pytest.raises(OSError) as caught:
            os.open(path, flags)
        assert caught.value.errno == errno.ENOKEY
    directory.unlock(key)
    directory.unlock(key)  # harmless
    assert (mount / "patients" / NAME).read_bytes() == MARKER * 1000


def test_the_image_of_a_locked_directory_holds_neither_content_nor_names(tmp_path):
    with mounted(tmp_path, "encrypt") as (mount, image):
        key = new_key()
        directory = EncryptedDirectory.create(mount / "patients", key)
        (mount / "control").write_bytes(b"this is in the clear" * 100)
        (mount / "patients" / NAME).write_bytes(MARKER * 1000)
        (mount / "patients" / "short").write_bytes(MARKER)
        (mount / "patients" / NAME).rename(mount / "patients" / (NAME + "-2"))
        (mount / "patients" / "link").symlink_to(MARKER[:20].decode())
        directory.lock()
    raw = image.read_bytes()
    assert b"this is in the clear" in raw, "the search would find nothing at all"
    for secret in (MARKER, MARKER[:20], NAME.encode(), bytes(key.view()), bytes(key.view())[:32]):
        assert secret not in raw


def test_a_wrong_key_reaches_nothing_and_not_even_the_kernel(mount):
    key, wrong = new_key(), new_key()
    directory = EncryptedDirectory.create(mount / "d", key)
    directory.lock()
    assert code_of(directory.unlock, wrong) == "vault.directory.wrong-key"
    assert fscrypt.key_status(mount, key_identifier(wrong)).state is KeyState.ABSENT
    assert not directory.status().unlocked
    assert code_of(directory.unlock, Secret(bytes(32))) == "vault.directory.key-size"


def test_the_kernel_knows_a_key_by_the_identifier_that_we_compute(mount):
    key = new_key()
    assert fscrypt.add_key(mount, key) == key_identifier(key)
    fscrypt.remove_key(mount, key_identifier(key))
    assert fscrypt.key_status(mount, key_identifier(key)).state is KeyState.ABSENT


def test_a_full_directory_is_refused_and_the_key_taken_out_again(mount):
    key = new_key()
    (mount / "full").mkdir()
    (mount / "full" / "file").write_bytes(b"x")
    assert code_of(EncryptedDirectory.create, mount / "full", key) == "vault.directory.not-empty"
    assert fscrypt.key_status(mount, key_identifier(key)).state is KeyState.ABSENT
    assert fscrypt.status(mount / "full").policy is None


def test_a_directory_is_encrypted_once(mount):
    key = new_key()
    EncryptedDirectory.create(mount / "d", key)
    (mount / "d" / "file").write_bytes(b"x")
    assert code_of(EncryptedDirectory.create, mount / "d", key) == "vault.directory.encrypted"
    assert code_of(EncryptedDirectory.create, mount / "d", new_key()) == "vault.directory.encrypted"
    assert code_of(fscrypt.set_policy, mount / "d", key_identifier(key)) == "vault.directory.encrypted"
    assert fscrypt.status(mount / "d").unlocked, "the refusal must not lock what is open"
    (mount / "d" / "inner").mkdir()
    assert code_of(EncryptedDirectory.create, mount / "d" / "inner", new_key()) == "vault.directory.encrypted"


def test_a_policy_needs_its_key(mount):
    """Root may set a policy before the key is there; others may not."""
    (mount / "d").mkdir()
    os.chown(mount / "d", NOBODY, NOBODY)
    identifier = key_identifier(new_key())
    assert as_nobody("set_policy", mount / "d", identifier.hex()) == "vault.directory.locked"


def test_a_plain_directory_in_its_place_is_noticed(mount):
    key = new_key()
    EncryptedDirectory.create(mount / "d", key).lock()
    (mount / "d").rename(mount / "taken")
    (mount / "d").mkdir()
    assert code_of(EncryptedDirectory(mount / "d").unlock, key) == "vault.directory.plain"
    assert code_of(EncryptedDirectory(mount / "d").lock) == "vault.directory.plain"
    (mount / "d").rmdir()
    (mount / "d").symlink_to(mount / "taken")
    assert code_of(EncryptedDirectory(mount / "d").unlock, key) == "base.storage.missing"  # ENOTDIR
    assert code_of(fscrypt.status, mount / "absent") == "base.storage.missing"


def test_busy_files_are_reported_with_their_process_and_the_next_lock_ends_them(mount):
    key = new_key()
    directory = EncryptedDirectory.create(mount / "d", key)
    (mount / "d" / "file").write_bytes(MARKER)
    (mount / "d" / "other").write_bytes(MARKER)
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys; f = open(sys.argv[1]); print(flush=True); sys.stdin.read()",
            mount / "d/file",
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        holder.stdout.readline()
        with pytest.raises(TidegateError) as caught:
            directory.lock()
        assert caught.value.code == "vault.directory.busy"
        assert caught.value.fields["processes"] == str(holder.pid)
        state = directory.status()
        assert (state.unlocked, state.key.state) == (False, KeyState.INCOMPLETELY_REMOVED)
        with pytest.raises(OSError) as refused:
            (mount / "d" / "new").write_bytes(b"")
        assert refused.value.errno == errno.ENOKEY
    finally:
        holder.communicate()
    directory.lock()
    assert directory.status().key.state is KeyState.ABSENT
    directory.unlock(key)
    assert (mount / "d" / "file").read_bytes() == MARKER


@pytest.mark.parametrize("how", ["cwd", "map"])
def test_a_working_directory_and_a_mapping_are_busy_too(mount, how):
    directory = EncryptedDirectory.create(mount / "d", new_key())
    (mount / "d" / "file").write_bytes(MARKER)
    program = {
        "cwd": "import os, sys; os.chdir(os.path.dirname(sys.argv[1]))",
        "map": "import mmap, sys; f = open(sys.argv[1], 'rb'); m = mmap.mmap(f.fileno(), 0, prot=1); f.close()",
    }[how]
    holder = subprocess.Popen(
        [sys.executable, "-c", program + "; print(flush=True); sys.stdin.read()", mount / "d/file"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        holder.stdout.readline()
        with pytest.raises(TidegateError) as caught:
            directory.lock()
        assert (caught.value.code, caught.value.fields["processes"]) == ("vault.directory.busy", str(holder.pid))
    finally:
        holder.communicate()
    directory.lock()


def test_unlocking_again_while_files_are_busy(mount):
    key = new_key()
    directory = EncryptedDirectory.create(mount / "d", key)
    with (mount / "d" / "file").open("wb"):
        assert code_of(directory.lock) == "vault.directory.busy"
        directory.unlock(key)
        assert directory.status().unlocked
    directory.lock()
    assert directory.status().key.state is KeyState.ABSENT


def test_locking_many_goes_on_behind_a_failure(mount, tmp_path):
    names = ("a", "b", "c")
    for name in names:
        EncryptedDirectory.create(mount / name, new_key())
    (mount / "plain").mkdir()
    with (mount / "a" / "file").open("wb"):
        outcomes = lock_directories([mount / "a", mount / "plain", tmp_path / "absent", mount / "b", mount / "c"])
    assert [outcome.error and outcome.error.code for outcome in outcomes] == [
        "vault.directory.busy",
        "vault.directory.plain",
        "base.storage.missing",
        None,
        None,
    ]
    assert not any(fscrypt.status(mount / name).unlocked for name in names)


def as_nobody(function, path, value):
    """Call ``fscrypt.<function>`` as user nobody and return the code of its error, or ""."""
    parent, child = multiprocessing.get_context("fork").Pipe()

    def run():
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
        raw = bytes.fromhex(value)
        try:
            if function == "lock":
                EncryptedDirectory(path).lock()
            elif function == "create":
                EncryptedDirectory.create(path, Secret(raw))
            else:
                getattr(fscrypt, function)(path, Secret(raw) if len(raw) == 64 else raw)
        except TidegateError as error:
            child.send(error.code)
        else:
            child.send("")

    # the temporary folder is closed to others; nobody comes in by the mount alone
    process = multiprocessing.get_context("fork").Process(target=run)
    folders = []
    for folder in path.parents:
        if folder.stat().st_mode & 0o005 != 0o005:
            folders.append((folder, folder.stat().st_mode))
            folder.chmod(folder.stat().st_mode | 0o005)
    try:
        process.start()
        assert parent.poll(10)
        return parent.recv()
    finally:
        process.join(10)
        for folder, mode in folders:
            folder.chmod(mode)


def test_a_key_of_several_users(mount):
    key = new_key()
    identifier = key_identifier(key)
    directory = EncryptedDirectory.create(mount / "d", key)
    assert as_nobody("add_key", mount, bytes(key.view()).hex()) == ""
    assert directory.status().key.users == 2
    assert code_of(fscrypt.remove_key, mount, identifier) == "vault.directory.shared"
    assert directory.status().unlocked
    # Now it is nobody's key alone: to root's claim the kernel says that there is none.
    assert code_of(fscrypt.remove_key, mount, identifier) == "vault.directory.shared"
    directory.lock()  # as root, for all
    assert directory.status().key.state is KeyState.ABSENT


def test_another_user_cannot_lock_what_is_not_his(mount):
    key = new_key()
    directory = EncryptedDirectory.create(mount / "d", key)
    assert as_nobody("remove_key", mount, key_identifier(key).hex()) == "vault.directory.shared"
    assert directory.status().unlocked


def test_a_user_locks_his_own_directory(mount):
    """Without any right, with a key that is his alone."""
    (mount / "his").mkdir()
    os.chown(mount / "his", NOBODY, NOBODY)
    key = new_key()
    assert as_nobody("create", mount / "his", bytes(key.view()).hex()) == ""
    assert fscrypt.status(mount / "his").key.added_by_us is False
    assert fscrypt.status(mount / "his").unlocked
    assert as_nobody("lock", mount / "his", "") == ""
    assert fscrypt.status(mount / "his").key.state is KeyState.ABSENT


def test_file_systems_that_cannot(tmp_path):
    with mounted(tmp_path) as (mount, _image):
        assert code_of(EncryptedDirectory.create, mount / "d", new_key()) == "vault.directory.unsupported"
        assert not (mount / "d").exists(), "an empty plain directory would be taken for an encrypted one"
    assert code_of(EncryptedDirectory.create, tmp_path / "mount" / "x" / "y", new_key()) == "base.storage.missing"


def test_the_file_system_of_the_kernels_own_files_cannot():
    assert code_of(fscrypt.status, Path("/proc")) == "vault.directory.unsupported"


def test_mount_top(mount):
    (mount / "a" / "b").mkdir(parents=True)
    assert fscrypt.mount_top(mount / "a" / "b") == mount
    assert fscrypt.mount_top(mount) == mount


UNIT = Path(__file__).parents[2] / "deploy" / "tidegate-vault-lock.service"


def test_the_unit_for_suspend_is_what_systemd_understands(tmp_path):
    """The program is not installed here, so another stands in its place; everything else is as delivered."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("no systemd-analyze here")
    copy = tmp_path / UNIT.name
    copy.write_text(UNIT.read_text().replace("/usr/bin/tidegate", "/bin/true"))
    done = run_program(["systemd-analyze", "verify", "--man=no", str(copy)], check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    copy.write_text(copy.read_text().replace("Before=", "Bifore="))
    done = run_program(["systemd-analyze", "verify", "--man=no", str(copy)], check=False)
    assert b"Bifore" in done.stderr, "the check would find nothing at all"


def test_locking_with_the_rights_of_the_unit_on_a_read_only_view(mount):
    """With the unit's capabilities, no new privileges, everything mounted read-only, as ProtectSystem=strict does."""
    (rights,) = (line for line in UNIT.read_text().splitlines() if line.startswith("CapabilityBoundingSet="))
    names = [name.removeprefix("CAP_").lower() for name in rights.partition("=")[2].split()]
    assert names == ["sys_admin", "dac_read_search", "sys_ptrace"]
    kept = ",".join(["-all", *(f"+{name}" for name in names)])
    (mount / "private").mkdir()
    os.chown(mount / "private", NOBODY, NOBODY)
    (mount / "private").chmod(0o700)
    key = new_key()
    directory = EncryptedDirectory.create(mount / "private" / "d", key)
    as_nobody("add_key", mount, bytes(key.view()).hex())
    program = (
        "import sys; from pathlib import Path; from tidegate.vault.fscrypt import lock_directories\n"
        "(outcome,) = lock_directories([Path(sys.argv[1])])\n"
        "print(outcome.error and (outcome.error.code, outcome.error.fields))"
    )
    script = (
        'mount --make-rprivate / && mount -o remount,bind,ro "$1" && '
        'exec setpriv --no-new-privs --bounding-set "$2" --inh-caps "$2" "$3" -c "$4" "$1/private/d"'
    )
    command = ["unshare", "--mount", "sh", "-c", script, "sh", str(mount), kept, sys.executable, program]
    with (mount / "private" / "d" / "file").open("wb"):
        said = run_program(command).stdout.decode()
        assert "vault.directory.busy" in said
        assert f"'processes': '{os.getpid()}'" in said
    directory.unlock(key)
    as_nobody("add_key", mount, bytes(key.view()).hex())
    less = [word.replace("+sys_admin,", "") for word in command]
    assert b"vault.directory.shared" in run_program(less).stdout, "without the right it would not do"
    assert run_program(command).stdout == b"None\n"
    assert directory.status().key.state is KeyState.ABSENT


def test_a_bind_mount_keeps_a_directory_busy_without_a_process(mount, tmp_path):
    """As the documentation says of containers; when it is gone the next lock finishes."""
    directory = EncryptedDirectory.create(mount / "d", new_key())
    (mount / "d" / "file").write_bytes(b"x")  # only a directory that was used has a key that could stay
    other = tmp_path / "other"
    other.mkdir()
    run_program(["mount", "--bind", str(mount / "d"), str(other)])
    try:
        with pytest.raises(TidegateError) as caught:
            directory.lock()
        assert (caught.value.code, caught.value.fields["processes"]) == ("vault.directory.busy", "")
        assert not directory.status().unlocked
    finally:
        run_program(["umount", str(other)])
    directory.lock()
    assert directory.status().key.state is KeyState.ABSENT
