"""OpenSSL reads our certificates strictly, follows our chain, and refuses it under another authority."""

import datetime
import shutil

import pytest

from tidegate.base.program import run_program
from tidegate.crypto.signing import SignatureAlgorithm
from tidegate.keys.software import DeviceSecretUnlock, SoftwareKeyStore
from tidegate.keys.store import KeyPurpose, KeySpec
from tidegate.pki.certificate import Issuance, encode_pem, issue_factory_ca, issue_idevid

pytestmark = pytest.mark.skipif(
    shutil.which("openssl") is None, reason="openssl is not installed (Debian package openssl)"
)
START = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
CURVES = {"p256": SignatureAlgorithm.ECDSA_P256, "p384": SignatureAlgorithm.ECDSA_P384}


@pytest.fixture(scope="module", params=CURVES)
def chain(request, tmp_path_factory):
    """Return the folder with ca.pem, other.pem (another CA of the same name) and device.pem, of each curve."""
    root = tmp_path_factory.mktemp("chain")
    (root / "secret").write_bytes(bytes(32))
    (root / "secret").chmod(0o600)
    store = SoftwareKeyStore.create(root / "store", DeviceSecretUnlock(root / "secret"))
    for name in ("ca", "other", "device"):
        store.generate(name, KeySpec(purpose=KeyPurpose.SIGN, algorithm=CURVES[request.param]))
    for serial, name in enumerate(("ca", "other"), start=1):
        issuance = Issuance(not_before=START, serial=serial)
        certificate = issue_factory_ca(store.signer(name), organization="Example Maker", issuance=issuance)
        (root / f"{name}.pem").write_bytes(encode_pem(certificate))
        if name == "ca":
            device = issue_idevid(
                certificate,
                store.signer("ca"),
                store.public_key("device"),
                serial_number="SN-0001",
                issuance=Issuance(not_before=START, serial=2**126 + 1),
            )
            (root / "device.pem").write_bytes(encode_pem(device))
    return root


def verify(chain, authority, certificate="device.pem", *options):
    return run_program(
        [
            "openssl",
            "verify",
            "-x509_strict",
            "-check_ss_sig",
            "-CAfile",
            str(chain / authority),
            *options,
            str(chain / certificate),
        ],
        check=False,
    )


def test_the_chain_holds_in_strict_mode(chain):
    done = verify(chain, "ca.pem")
    assert done.returncode == 0, done.stdout + done.stderr
    assert verify(chain, "ca.pem", "ca.pem").returncode == 0


def test_the_chain_holds_for_ever(chain):
    """An IDevID has no well-defined end; 4070908800 is the year 2099, 253402214400 the last day of 9999."""
    for moment in ("4070908800", "253402214400"):
        assert verify(chain, "ca.pem", "device.pem", "-attime", moment).returncode == 0


def test_not_before_its_time(chain):
    assert verify(chain, "ca.pem", "device.pem", "-attime", str(int(START.timestamp()) - 1)).returncode != 0


def test_another_ca_of_the_same_name(chain):
    assert verify(chain, "other.pem").returncode != 0


def test_a_device_is_no_ca(chain):
    """A device that signs with its identity must not be taken for an authority."""
    assert verify(chain, "device.pem", "other.pem").returncode != 0


def test_an_altered_certificate(chain, tmp_path):
    der = run_program(["openssl", "x509", "-in", str(chain / "device.pem"), "-outform", "DER"]).stdout
    at = der.index(b"SN-0001")
    (tmp_path / "altered.der").write_bytes(der[:at] + b"SN-0002" + der[at + 7 :])
    altered = run_program(["openssl", "x509", "-inform", "DER", "-in", str(tmp_path / "altered.der")]).stdout
    (tmp_path / "altered.pem").write_bytes(altered)
    done = run_program(
        ["openssl", "verify", "-CAfile", str(chain / "ca.pem"), str(tmp_path / "altered.pem")], check=False
    )
    assert done.returncode != 0


def test_openssl_reads_the_profile(chain):
    text = run_program(["openssl", "x509", "-in", str(chain / "device.pem"), "-noout", "-text"]).stdout.decode()
    for part in (
        "Version: 3 (0x2)",
        "CA:FALSE",
        "X509v3 Basic Constraints: critical",
        "X509v3 Key Usage: critical",
        "Digital Signature",
        "X509v3 Subject Key Identifier",
        "X509v3 Authority Key Identifier",
        "Not After : Dec 31 23:59:59 9999 GMT",
        "serialNumber = SN-0001",
    ):
        assert part in text, part
    text = run_program(["openssl", "x509", "-in", str(chain / "ca.pem"), "-noout", "-text"]).stdout.decode()
    for part in ("CA:TRUE, pathlen:0", "Certificate Sign, CRL Sign"):
        assert part in text, part


def test_certificates_in_der_are_parsed_whole(chain):
    for name in ("ca", "other", "device"):
        run_program(["openssl", "asn1parse", "-in", str(chain / f"{name}.pem")])
