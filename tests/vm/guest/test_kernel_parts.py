"""What needs another kernel than a test machine's: a device mapper, f2fs, a TPM behind the kernel's driver.

Runs in a guest alone (tests/vm/test_guest.py starts it): it overwrites the guest's disk.
"""

import os
from pathlib import Path

import pytest

from tidegate.base.errors import TidegateError
from tidegate.base.program import run_program
from tidegate.crypto.aead import Secret
from tidegate.keys.store import KeyPolicy, KeyPurpose, KeySpec
from tidegate.testing.guest import guest_disk, is_guest
from tidegate.vault.fscrypt import EncryptedDirectory
from tidegate.vault.store import Vault
from tidegate.vault.unlockers import KeyStoreUnlocker

pytestmark = [pytest.mark.root, pytest.mark.skipif(not is_guest(), reason="runs in a guest: make test-vm")]

MARKER = b"Jane Roe, born 1970-01-01, diagnosis Z21. "


def on_disk(disk, *needles):
    """Return which of these bytes are on the raw disk."""
    run_program(["sync"])
    Path("/proc/sys/vm/drop_caches").write_text("3")
    raw = disk.read_bytes()
    return [needle for needle in needles if needle in raw]


def test_directory_on_f2fs(tmp_path):
    disk, mount = guest_disk(0), tmp_path / "mount"
    mount.mkdir()
    run_program(["mkfs.f2fs", "-f", "-q", "-O", "encrypt", str(disk)])
    run_program(["mount", str(disk), str(mount)])
    try:
        key = Secret(os.urandom(64))
        directory = EncryptedDirectory.create(mount / "patients", key)
        (mount / "patients" / "jane-roe").write_bytes(MARKER * 1000)
        (mount / "plain").write_bytes(b"control: this one is found")
        directory.lock()
        assert not directory.status().unlocked
        assert [path.name for path in (mount / "patients").iterdir()] != ["jane-roe"]
        EncryptedDirectory(mount / "patients").unlock(key)
        assert (mount / "patients" / "jane-roe").read_bytes() == MARKER * 1000
        directory.lock()
    finally:
        run_program(["umount", str(mount)])
    assert on_disk(disk, MARKER, b"jane-roe", bytes(key.view())) == []
    assert on_disk(disk, b"control: this one is found")


@pytest.mark.parametrize("device", ["/dev/tpmrm0", "/dev/tpm0"])
def test_vault_under_a_tpm_of_the_kernel(tmp_path, device):
    """The resource manager in the kernel, which is our default, and the bare device."""
    from tidegate.keys.tpm2 import DEFAULT_TCTI, Tpm2KeyStore

    assert DEFAULT_TCTI == "device:/dev/tpmrm0"
    keys = Tpm2KeyStore.create(tmp_path / "keys", f"device:{device}")
    keys.generate("vault", KeySpec(purpose=KeyPurpose.SEAL, policy=KeyPolicy(revocable=True, pcrs=frozenset({16}))))
    folder, unlocker = tmp_path / "vault", KeyStoreUnlocker(keys, "vault")
    with Vault.create(folder, unlocker) as vault:
        vault.write("card", MARKER)
    with Vault.open(folder, unlocker) as vault:
        assert vault.read("card") == MARKER
    keys.extend(16, bytes(32))
    with pytest.raises(TidegateError) as caught:
        Vault.open(folder, unlocker)
    assert caught.value.code == "keys.pcr.mismatch"
    keys.close()
