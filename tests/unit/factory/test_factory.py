"""The maker's bench: descriptions, provisioning whole or not at all, nothing secret outside its store."""

from __future__ import annotations

import datetime
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from cryptography import x509

from tidegate.agent.home import DeviceHome
from tidegate.base.clock import SystemClock, SystemEntropy
from tidegate.base.errors import TidegateError
from tidegate.boot.chain import choose_slot
from tidegate.boot.control import RecordBootControl
from tidegate.boot.slots import SlotState
from tidegate.boot.storage import STATE_BYTES, DeviceStorage, StorageSizes
from tidegate.crypto.signing import SignatureAlgorithm
from tidegate.factory.describe import parse_description
from tidegate.factory.provision import (
    DeviceOrder,
    FactoryCa,
    install_first_image,
    mounted_data,
    provision_identity,
)
from tidegate.image.manifest import PayloadKind
from tidegate.keys.store import KeyPurpose, KeySpec
from tidegate.keys.uri import open_store, parse_key_uri
from tidegate.pki.certificate import Issuance, issue_factory_ca
from tidegate.policy.document import parse_policy
from tidegate.policy.sign import sign_policy
from tidegate.testing.maker import TEST_HARDWARE, TestMaker, TestRelease
from tidegate.testing.tokens import SoftHsm

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounting the data image needs root")
needs_mkfs = pytest.mark.skipif(
    shutil.which("mkfs.ext4", path="/usr/sbin:/sbin:/usr/bin:/bin") is None, reason="mkfs.ext4 (e2fsprogs) is missing"
)

GOOD = """
vendor = "Example Maker"
product = "Gateway"
hardware = ["gateway-r1", "gateway-r2"]
version = "1.0.0"
security_version = 1
[[payload]]
name = "stage2"
kind = "stage2"
[[payload]]
name = "rootfs"
kind = "rootfs"
file = "rootfs.sqfs"
[[payload]]
name = "service"
kind = "application"
file = "service.sqfs"
start = ["/apps/service/start"]
"""


def test_a_description_says_what_it_says() -> None:
    description = parse_description(GOOD.encode(), name="image.toml")
    assert description.hardware == ("gateway-r1", "gateway-r2")
    assert [payload.kind for payload in description.payload] == list(PayloadKind)
    assert description.identity(None).version == "1.0.0"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "vendor = ",
        "\x00",
        GOOD.replace('version = "1.0.0"', "version = 1"),
        GOOD.replace('kind = "rootfs"', 'kind = "kernel"'),
        GOOD.replace('product = "Gateway"', ""),
        GOOD + "\nunknown = 1\n",
        GOOD.replace('vendor = "', 'vender = "'),
        GOOD[: GOOD.index("[[payload]]")],
        GOOD[: GOOD.index("[[payload]]")] + "payload = []",
        GOOD.replace("security_version = 1", 'security_version = "1"'),
        GOOD.replace('hardware = ["gateway-r1", "gateway-r2"]', 'hardware = "gateway-r1"'),
    ],
)
def test_a_bad_description_is_refused_and_named(text: str) -> None:
    with pytest.raises(TidegateError) as caught:
        parse_description(text.encode(), name="image.toml")
    assert caught.value.code == "image.build.description"
    assert "image.toml" in caught.value.message


class Bench:
    def __init__(self, folder: Path) -> None:
        self.maker, self.owner, self.ca = (TestMaker(folder / name) for name in ("maker", "owner", "ca"))
        self.ca.store.generate("ca", KeySpec(purpose=KeyPurpose.SIGN, algorithm=SignatureAlgorithm.ECDSA_P256))
        signer = self.ca.store.signer("ca")
        issuance = Issuance(not_before=datetime.datetime(2025, 1, 1, tzinfo=datetime.UTC), serial=1)
        self.authority = FactoryCa(
            certificate=issue_factory_ca(signer, organization="Test", issuance=issuance), signer=signer
        )

    def storage(self, folder: Path) -> DeviceStorage:
        return DeviceStorage.provision(
            folder,
            StorageSizes(slot=1 << 20, data=0),
            maker=self.maker.trust,
            owner=self.owner.trust,
            hardware=TEST_HARDWARE,
            entropy=SystemEntropy(),
        )

    def policy(self, *, signers=None, text: str = "[policy]\nversion = 1\n") -> bytes:
        return sign_policy(parse_policy(text), signers or self.owner.signers)

    def provision(self, storage: DeviceStorage, policy: bytes):
        return provision_identity(
            storage,
            DeviceOrder(device="gateway-1", policy=policy),
            self.authority,
            clock=SystemClock(),
            entropy=SystemEntropy(),
        )


@pytest.fixture(scope="module")
def bench(tmp_path_factory) -> Bench:
    return Bench(tmp_path_factory.mktemp("bench"))


def mounts_and_loops(storage: DeviceStorage) -> list[str]:
    loops = subprocess.run(["/sbin/losetup", "-a"], capture_output=True, text=True, check=True).stdout.splitlines()
    mounts = Path("/proc/mounts").read_text().splitlines()
    return [line for line in [*loops, *mounts] if str(storage.folder) in line or "tidegate-data-" in line]


@pytest.mark.root
@needs_root
@needs_mkfs
class TestProvisioning:
    def test_a_device_leaves_the_factory_whole(self, bench, tmp_path) -> None:
        storage = bench.storage(tmp_path / "device")
        made = bench.provision(storage, bench.policy())
        assert made.certificate.issuer == bench.authority.certificate.subject
        with mounted_data(storage) as data:
            home = DeviceHome(storage=storage, data=data, run=tmp_path)
            assert home.device_id() == "gateway-1"
            keys = home.open_keys()
            assert {key.name for key in keys.list_keys()} == {"identity", "events", "vault"}
            assert keys.public_key("events") == made.event_key
            keys.close()
            certificate = x509.load_pem_x509_certificate((home.folder / "identity.pem").read_bytes())
            assert certificate == made.certificate
            assert oct(home.folder.stat().st_mode & 0o777) == "0o700"
        assert not [line for line in mounts_and_loops(storage) if str(storage.folder) in line]

    def test_the_secret_that_opens_the_keys_is_not_on_the_data_image(self, bench, tmp_path) -> None:
        storage = bench.storage(tmp_path / "device")
        bench.provision(storage, bench.policy())
        secret = (storage.rom / "device-secret").read_bytes()
        raw = storage.data_path.read_bytes()
        assert len(secret) == 32
        assert secret not in raw
        assert secret.hex().encode() not in raw

    def test_no_two_devices_are_alike(self, bench, tmp_path) -> None:
        first, second = (bench.storage(tmp_path / name) for name in ("first", "second"))
        made = [bench.provision(storage, bench.policy()) for storage in (first, second)]
        assert made[0].event_key != made[1].event_key
        assert made[0].certificate.serial_number != made[1].certificate.serial_number
        assert (first.rom / "device-secret").read_bytes() != (second.rom / "device-secret").read_bytes()

    @pytest.mark.parametrize(
        ("title", "code"),
        [
            ("signed by the maker", "crypto.signature.unknown-key"),
            ("for other devices", "policy.device.mismatch"),
            ("expired", "policy.expired"),
            ("rubbish", "crypto.cbor.malformed"),
        ],
    )
    def test_a_policy_that_the_device_would_refuse_is_refused_before_anything_is_written(
        self, bench, tmp_path, title: str, code: str
    ) -> None:
        storage = bench.storage(tmp_path / "device")
        before = storage.data_path.read_bytes()
        policy = {
            "signed by the maker": bench.policy(signers=bench.maker.signers),
            "for other devices": bench.policy(text="[policy]\nversion = 1\ndevices = ['pump-*']\n"),
            "expired": bench.policy(text="[policy]\nversion = 1\nexpires = 2020-01-01T00:00:00Z\n"),
            "rubbish": b"rubbish",
        }[title]
        with pytest.raises(TidegateError) as caught:
            bench.provision(storage, policy)
        assert caught.value.code == code
        assert storage.data_path.read_bytes() == before
        bench.provision(storage, bench.policy())

    def test_a_device_is_not_provisioned_twice(self, bench, tmp_path) -> None:
        storage = bench.storage(tmp_path / "device")
        made = bench.provision(storage, bench.policy())
        with pytest.raises(TidegateError) as caught:
            bench.provision(storage, bench.policy())
        assert caught.value.code == "boot.device.id-burnt"
        with mounted_data(storage) as data:
            keys = DeviceHome(storage=storage, data=data, run=tmp_path).open_keys()
            assert keys.public_key("events") == made.event_key
            keys.close()

    def test_the_mount_goes_whatever_happens_inside(self, bench, tmp_path) -> None:
        storage = bench.storage(tmp_path / "device")
        with pytest.raises(ZeroDivisionError), mounted_data(storage) as data:
            assert os.statvfs(data).f_flag & os.ST_NOEXEC
            raise ZeroDivisionError
        assert not [line for line in mounts_and_loops(storage) if str(storage.folder) in line]

    def test_the_raw_state_is_outside_the_file_system(self, bench, tmp_path) -> None:
        storage = bench.storage(tmp_path / "device")
        before = storage.data_path.read_bytes()[:STATE_BYTES]
        with mounted_data(storage) as data:
            (data / "filler").write_bytes(b"\xff" * 100_000)
        assert storage.data_path.read_bytes()[:STATE_BYTES] == before


@needs_mkfs
def test_the_first_image_is_tried_and_a_second_one_replaces_it_before_the_first_boot(bench, tmp_path) -> None:
    storage = bench.storage(tmp_path / "device")
    for version in ("1.0.0", "1.0.1", "1.0.0"):
        bundle = tmp_path / f"{version}.tgb"
        bundle.write_bytes(bench.maker.build(TestRelease(version=version)))
        assert install_first_image(storage, bundle).slot == "a"
    with storage.opened(writable=True) as parts:
        control = RecordBootControl(parts.state)
        assert control.state().slots["a"].state is SlotState.PENDING
        slot, image, _ = choose_slot(control, dict(parts.slots), storage.maker_rule(), lambda _: None)
    assert (slot, image.manifest.version) == ("a", "1.0.0")


@needs_mkfs
def test_a_first_image_of_another_maker_is_refused(bench, tmp_path) -> None:
    storage = bench.storage(tmp_path / "device")
    bundle = tmp_path / "stranger.tgb"
    bundle.write_bytes(bench.owner.build(TestRelease(version="1.0.0")))
    before = [path.read_bytes() for path in sorted(storage.folder.glob("*.img"))]
    with pytest.raises(TidegateError) as caught:
        install_first_image(storage, bundle)
    assert caught.value.code == "crypto.signature.unknown-key"
    assert [path.read_bytes() for path in sorted(storage.folder.glob("*.img"))] == before


@needs_root
@needs_mkfs
def test_where_the_keys_are_stands_in_the_rom(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    storage = bench.storage(tmp_path / "device")
    order = DeviceOrder(
        device="gateway-1",
        policy=bench.policy(),
        keystore="file:{data}/keys-elsewhere?device-secret={rom}/device-secret",
        keystore_in_use="keyd:/run/tidegate/keyd.sock",
    )
    provision_identity(storage, order, bench.authority, clock=SystemClock(), entropy=SystemEntropy())
    assert storage.keystore(Path("/data/tidegate")) == "keyd:/run/tidegate/keyd.sock"
    with mounted_data(storage) as data:
        assert (data / "tidegate" / "keys-elsewhere" / "vault.key").exists()
    with pytest.raises(TidegateError) as caught:
        storage.burn_keystore("file:/other")
    assert caught.value.code == "boot.device.id-burnt"


@needs_root
@needs_mkfs
def test_without_a_word_the_keys_are_software_keys(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    storage = bench.storage(tmp_path / "device")
    assert storage.keystore(Path("/data/a b")).startswith("file:/data/a%20b/keys?device-secret=")


@needs_root
@needs_mkfs
def test_keys_that_somebody_has_in_the_token_stay(tmp_path: Path) -> None:
    """A token that was named by mistake, or is left of a provisioning that was cut: nothing of it is destroyed."""
    bench = Bench(tmp_path)
    storage = bench.storage(tmp_path / "device")
    with SoftHsm(tmp_path / "hsm") as hsm:
        pin = hsm.make_token("shared")
        keystore = f"pkcs11:token=shared?module-path={hsm.module}&pin-source={pin}"
        store = open_store(parse_key_uri(keystore))
        spec = KeySpec(purpose=KeyPurpose.SIGN, algorithm=SignatureAlgorithm.ECDSA_P256)
        before = store.generate("identity", spec).public_key
        order = DeviceOrder(device="gateway-1", policy=bench.policy(), keystore=keystore)
        with pytest.raises(TidegateError) as caught:
            provision_identity(storage, order, bench.authority, clock=SystemClock(), entropy=SystemEntropy())
        assert caught.value.code == "keys.key.exists"
        assert [info.name for info in store.list_keys()] == ["identity"]
        assert store.public_key("identity") == before
        store.close()
    storage.require_blank()


@needs_root
@needs_mkfs
@pytest.mark.parametrize(
    ("keystore", "in_use", "code"),
    [
        ("nothing:{data}", None, "keys.provider.unknown"),
        ("file:{data}/keys?pin=1", None, "keys.uri.malformed"),
        ("file:{data}/keys?device-secret={rom}/device-secret", "keyd:", "keys.uri.malformed"),
        ("file:{data}/keys?device-secret={rom}/device-secret", "keyd:/" + "x" * 1024, "boot.device.keystore"),
    ],
)
def test_a_key_uri_that_is_none_is_not_burnt(tmp_path: Path, keystore: str, in_use: str | None, code: str) -> None:
    bench = Bench(tmp_path)
    storage = bench.storage(tmp_path / "device")
    order = DeviceOrder(device="gateway-1", policy=bench.policy(), keystore=keystore, keystore_in_use=in_use)
    with pytest.raises(TidegateError) as caught:
        provision_identity(storage, order, bench.authority, clock=SystemClock(), entropy=SystemEntropy())
    assert caught.value.code == code
    assert not (storage.rom / "keystore").exists()
    storage.require_blank()
