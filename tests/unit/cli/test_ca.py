"""``tidegate ca`` from a root to a revoked certificate, through its rollover; every act in the event log."""

import json
import re
import socket

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from tidegate.cli.main import main
from tidegate.pki.revocation import encode_ocsp_request


class Shell:
    def __init__(self, root, capsys) -> None:
        self.root, self.capsys = root, capsys
        secret = root / "secret"
        secret.touch(mode=0o600)
        secret.write_bytes(bytes(range(32)))
        self.secret = secret
        self.must("keys", "create-store", f"file:{root}/keys?device-secret={secret}")
        for name in ("root", "issuing", "new", "device"):
            self.must("keys", "generate", self.key(name), "--algorithm", "ecdsa-p256")
        self.must("keys", "generate", self.key("plain"), "--algorithm", "ed25519")

    def key(self, name):
        return f"file:{self.root}/keys?device-secret={self.secret}&key={name}"

    def ca(self, verb, *words, store="ca", key="issuing"):
        return ["ca", verb, *words, "--store", self.root / store, "--key", self.key(key)]

    def run(self, *words):
        self.capsys.readouterr()
        status = main([str(word) for word in words])
        out, err = self.capsys.readouterr()
        return status, out, err

    def must(self, *words):
        status, out, err = self.run(*words, "--json")
        assert status == 0, out + err
        return json.loads(out)

    def code(self, *words):
        status, _, err = self.run(*words)
        assert status in {2, 3, 4}
        return re.search(r"\[([a-z0-9.-]+)\]\n", err)[1]

    def events(self, store="ca"):
        lines = [
            json.loads(line)
            for path in sorted((self.root / store / "events").glob("*"))
            if path.is_file()
            for line in path.read_bytes().splitlines()
            if line.startswith(b"{") and b"pki." in line
        ]
        return [re.search(r'"(pki\.[a-z]+)"', json.dumps(line))[1] for line in lines]


@pytest.fixture
def shell(tmp_path, capsys):
    shell = Shell(tmp_path, capsys)
    shell.must(*shell.ca("init-root", "--organization", "Owner", "--common-name", "Root", store="root-ca", key="root"))
    shell.must("ca", "request", "--key", shell.key("issuing"), "--common-name", "Issuing", "-o", tmp_path / "csr")
    shell.must(
        *shell.ca(
            "sign-ca", tmp_path / "csr", "--permit-dns", "example.org", "-o", tmp_path / "chain", store="root-ca"
        ),
        *("--key", shell.key("root")),
    )
    shell.must(*shell.ca("init-issuing", "--chain", tmp_path / "chain"))
    return shell


def issue(shell, *words, name="cert.pem"):
    return shell.must(*shell.ca("issue", *words, "--subject-key", shell.key("device"), "-o", shell.root / name))


def test_from_birth_to_revocation(shell, tmp_path):
    server = issue(shell, "server", "--common-name", "gw", "--dns", "gw.example.org")
    anchors = ("--anchors", tmp_path / "root-ca" / "chain.pem")
    verify = ["ca", "verify", tmp_path / "cert.pem", *anchors, "--purpose", "server", "--name", "gw.example.org"]
    assert shell.must(*verify)["path"][0].startswith("CN=gw")
    shown = shell.must("ca", "show", server["serial"], "--store", tmp_path / "ca")
    assert (shown["profile"], shown["revoked"]) == ("server", None)
    listed = shell.must("ca", "list", "--store", tmp_path / "ca")["certificates"]
    assert [one["serial"] for one in listed] == [server["serial"]]
    shell.must("ca", "export", server["serial"], "--store", tmp_path / "ca", "-o", tmp_path / "again.pem")
    assert (tmp_path / "cert.pem").read_bytes().startswith((tmp_path / "again.pem").read_bytes())
    shell.must(*shell.ca("crl", "-o", tmp_path / "crl"))
    assert shell.must(*verify, "--crl", tmp_path / "crl")["revocation"] == ["CRL"]
    shell.must(*shell.ca("revoke", server["serial"], "--reason", "key-compromise"))
    shell.must(*shell.ca("crl", "--delta", "-o", tmp_path / "delta"))
    shell.must(*shell.ca("crl", "-o", tmp_path / "crl"))
    assert shell.code(*verify, "--crl", tmp_path / "crl") == "pki.certificate.revoked"
    chain = x509.load_pem_x509_certificates((tmp_path / "cert.pem").read_bytes())
    (tmp_path / "question").write_bytes(encode_ocsp_request(*chain))
    for words in (("--question", tmp_path / "question"), ("--certificate", tmp_path / "cert.pem")):
        shell.must(*shell.ca("ocsp", *words, "-o", tmp_path / "answer"))
        assert shell.code(*verify, "--ocsp", tmp_path / "answer") == "pki.certificate.revoked"
    assert shell.events() == ["pki.issued", "pki.listed", "pki.revoked", "pki.listed", "pki.listed"]
    assert shell.events("root-ca") == ["pki.issued", "pki.issued"]


def test_an_issuing_ca_that_the_root_took_back(shell, tmp_path):
    issue(shell, "operator", "--common-name", "A")
    root = ("--store", tmp_path / "root-ca", "--key", shell.key("root"))
    shell.must("ca", "crl", *root, "-o", tmp_path / "crl")
    verify = ["ca", "verify", tmp_path / "cert.pem", "--anchors", tmp_path / "root-ca" / "chain.pem"]
    (said,) = shell.must(*verify, "--crl", tmp_path / "crl")["revocation"]
    assert said.startswith("CRL of ")
    listed = shell.must("ca", "list", "--store", tmp_path / "root-ca")["certificates"]
    (issuing,) = (one["serial"] for one in listed if one["profile"] == "issuing-ca")
    shell.must("ca", "revoke", issuing, "--reason", "ca-compromise", *root)
    shell.must("ca", "crl", *root, "-o", tmp_path / "crl")
    assert shell.code(*verify, "--crl", tmp_path / "crl") == "pki.certificate.revoked"
    (tmp_path / "crl").write_bytes(b"none")
    assert shell.code(*verify, "--crl", tmp_path / "crl") == "pki.crl.malformed"


def test_requests_and_their_ids(shell, tmp_path):
    shell.must("ca", "request", "--key", shell.key("device"), "--serial-number", "SN-1", "-o", tmp_path / "device.csr")
    words = shell.ca(
        "issue", "ldevid", "--request", tmp_path / "device.csr", "--request-id", "abc", "-o", tmp_path / "d"
    )
    assert shell.must(*words)["serial"] == shell.must(*words)["serial"]
    shell.must("ca", "request", "--key", shell.key("device"), "--serial-number", "SN-2", "-o", tmp_path / "device.csr")
    assert shell.code(*words) == "pki.request.conflict"
    der = (tmp_path / "device.csr").read_bytes()
    pem = x509.load_der_x509_csr(der).public_bytes(Encoding.PEM)
    (tmp_path / "device.csr").write_bytes(pem)
    words[words.index("abc")] = "abd"
    assert shell.must(*words)["subject"].endswith("SN-2,O=Owner")


def test_a_token_is_shown_once_and_kept_nowhere(shell, tmp_path):
    told = shell.must("ca", "token", "SN-1", "--store", tmp_path / "ca", "--lifetime-s", "60")
    assert len(told["token"]) == 43
    held = b"".join(path.read_bytes() for path in (tmp_path / "ca").glob("*") if path.is_file())
    assert told["token"].encode() not in held


def test_name_constraints_reach_the_verifier(shell, tmp_path):
    issue(shell, "server", "--common-name", "gw", "--dns", "gw.example.com")
    anchors = ("--anchors", tmp_path / "root-ca" / "chain.pem")
    verify = ["ca", "verify", tmp_path / "cert.pem", *anchors, "--purpose", "server", "--name", "gw.example.com"]
    assert shell.code(*verify) == "pki.path.name"


def test_a_responder_answers_for_the_ca(shell, tmp_path):
    issue(shell, "server", "--common-name", "gw", "--dns", "gw.example.org")
    named = ("--subject-key", shell.key("plain"), "--common-name", "Responder", "-o", tmp_path / "responder.pem")
    shell.must(*shell.ca("issue", "ocsp-responder", *named))
    ask = shell.ca("ocsp", "--certificate", tmp_path / "cert.pem", "-o", tmp_path / "answer")
    key, certificate = ("--responder-key", shell.key("plain")), ("--responder-certificate", tmp_path / "responder.pem")
    shell.must(*ask, *key, *certificate)
    anchors = ("--anchors", tmp_path / "root-ca" / "chain.pem")
    verify = ["ca", "verify", tmp_path / "cert.pem", *anchors, "--purpose", "server", "--name", "gw.example.org"]
    assert shell.must(*verify, "--ocsp", tmp_path / "answer")["revocation"] == ["OCSP"]
    assert shell.code(*ask, *key) == "pki.issuer.mismatch"
    assert shell.code(*ask, "--responder-key", shell.key("device"), *certificate) == "pki.issuer.mismatch"


def test_a_root_is_replaced(shell, tmp_path):
    words = ("--new-key", shell.key("new"), "--new-store", tmp_path / "new-ca", "-o", tmp_path / "over")
    shell.must(*shell.ca("rollover", *words, store="root-ca", key="root"))
    names = {path.name for path in (tmp_path / "over").iterdir()}
    assert names == {"new-root.pem", "new-with-old.pem", "old-with-new.pem"}
    held = tmp_path / "held.pem"
    held.write_bytes((tmp_path / "root-ca" / "chain.pem").read_bytes())
    over = tmp_path / "over"
    assert shell.code("ca", "follow", over / "new-root.pem", over / "old-with-new.pem", "--anchors", held) == (
        "pki.rollover.refused"
    )
    for _ in range(2):
        shell.must("ca", "follow", over / "new-root.pem", over / "new-with-old.pem", "--anchors", held)
    assert len(x509.load_pem_x509_certificates(held.read_bytes())) == 2
    assert shell.events("root-ca") == ["pki.issued"] * 3
    assert shell.events("new-ca") == ["pki.issued"] * 2
    shell.must(*shell.ca("crl", "-o", tmp_path / "crl", store="new-ca", key="new"))


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("issue", "no-such", "--common-name", "A"), "pki.profile.unknown"),
        (("issue", "ldevid", "--common-name", "A"), "pki.profile.refused"),
        (("issue", "ldevid", "--serial-number", "1", "--lifetime-days", "400"), "pki.profile.refused"),
        (("issue", "ldevid", "--serial-number", "1", "--lifetime-days", "1e300"), "pki.profile.refused"),
        (("issue", "ldevid", "--serial-number", "1", "--ip", "x"), "pki.name.invalid"),
        (("issue", "ldevid", "--serial-number", "1\n2"), "pki.name.invalid"),
        (("issue", "issuing-ca", "--common-name", "A", "--lifetime-days", "9"), "pki.profile.refused"),
        (("issue", "ldevid", "--serial-number", "1", "--request-id", "ab" * 65), "pki.request.malformed"),
    ],
)
def test_what_is_not_issued(shell, tmp_path, words, code):
    assert shell.code(*shell.ca(*words, "--subject-key", shell.key("device"), "-o", tmp_path / "x")) == code
    assert not (tmp_path / "x").exists()


def test_other_refusals(shell, tmp_path):
    init = ("init-root", "--organization", "O", "--common-name", "R")
    assert shell.code(*shell.ca(*init)) == "pki.ca-store.exists"
    assert shell.code(*shell.ca(*init, store="other", key="plain")) == "pki.key.unsupported"
    assert shell.code(*shell.ca("init-issuing", store="other")) == "pki.issuer.mismatch"
    assert shell.code(*shell.ca("init-issuing", "--chain", tmp_path / "chain", store="x", key="root")) == (
        "pki.issuer.mismatch"
    )
    assert shell.code(*shell.ca("revoke", "abc")) == "pki.serial.unknown"
    assert shell.code("ca", "show", "xyz", "--store", tmp_path / "ca") == "pki.serial.unknown"
    assert shell.code("ca", "show", "1", "--store", tmp_path / "ca") == "pki.serial.unknown"
    assert shell.code("ca", "list", "--after", "f" * 44, "--store", tmp_path / "ca") == "pki.serial.unknown"
    shell.must("ca", "list", "--limit", "9" * 30, "--store", tmp_path / "ca")
    (tmp_path / "csr").write_bytes(b"-----BEGIN CERTIFICATE REQUEST-----\n?\n")
    words = shell.ca("issue", "ldevid", "--request", tmp_path / "csr", "-o", tmp_path / "x")
    assert shell.code(*words) == "pki.request.malformed"


def serve(shell, *words):
    """``ca serve`` with a device's certificate as the server's own: nobody gets to see it."""
    own = shell.root / "own.pem"
    if not own.exists():
        words_of_own = ("--subject-key", shell.key("device"), "--common-name", "S", "--dns", "s.example", "-o", own)
        shell.must(*shell.ca("issue", "server", *words_of_own))
    return shell.ca("serve", "--tls-key", shell.key("device"), "--tls-chain", own, *words)


@pytest.mark.parametrize("days", ["nan", "-1", "0", "399", "1e300"])
def test_a_server_does_not_start_with_a_lifetime_that_no_device_gets(shell, days):
    assert shell.code(*serve(shell, "--listen", "127.0.0.1:0", "--lifetime-days", days)) == "pki.profile.refused"


@pytest.mark.parametrize("rate", ["0", "-1", "nan", "inf"])
def test_a_server_does_not_start_with_a_rate_that_is_none(shell, rate):
    for option in ("--device-rate", "--address-rate"):
        with pytest.raises(SystemExit) as caught:
            shell.run(*serve(shell, option, rate))
        assert caught.value.code == 2


def test_a_server_says_where_it_cannot_listen(shell):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        place = f"127.0.0.1:{taken.getsockname()[1]}"
        assert shell.code(*serve(shell, "--listen", place)) == "tls.http.unreachable"
    assert shell.code(*serve(shell, "--listen", "no.such.host.invalid:0")) == "tls.http.unreachable"


def test_profiles_are_shown(shell):
    status, out, _ = shell.run("ca", "profiles")
    assert status == 0
    assert "ldevid" in out
