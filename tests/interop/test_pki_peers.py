"""OpenSSL, GnuTLS and a strict DER parser beside our CA: what we emit they take, what they emit we judge."""

import datetime
import shutil
import subprocess

import pytest
from asn1crypto import crl as strict_crl
from asn1crypto import csr as strict_csr
from asn1crypto import ocsp as strict_ocsp
from asn1crypto import x509 as strict_x509
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from tidegate.base.clock import SystemClock, SystemEntropy
from tidegate.base.errors import Rejected
from tidegate.crypto.signing import SignatureAlgorithm
from tidegate.pki.authority import Authority, Grant
from tidegate.pki.ca_store import CaStore, Reason
from tidegate.pki.certificate import encode_pem
from tidegate.pki.ocsp import Responder
from tidegate.pki.path import PathRule, Purpose, verify_chain
from tidegate.pki.profiles import PROFILES, NameLimits, Order, Pointers, Subject, draw_serial, sign_certificate
from tidegate.pki.requests import Wish, encode_request, verify_request
from tidegate.pki.revocation import encode_ocsp_request, verify_crl, verify_ocsp
from tidegate.pki.rollover import make_rollover
from tidegate.testing.certificates import MemorySigner

pytestmark = pytest.mark.skipif(
    not all(map(shutil.which, ("openssl", "certtool", "ocsptool"))), reason="openssl or gnutls-bin is not installed"
)
ALGORITHMS = [SignatureAlgorithm.ECDSA_P256, SignatureAlgorithm.ECDSA_P384, SignatureAlgorithm.RSA_PSS]
P256 = SignatureAlgorithm.ECDSA_P256
NAMES = (x509.DNSName("gw.example.org"),)


def run(*words, ok=True):
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, check=False)
    assert (done.returncode == 0) == ok, done.stdout + done.stderr
    return done.stdout + done.stderr


def serial():
    return draw_serial(SystemEntropy().random_bytes(20))


class Site:
    """A root and an issuing CA with keys of one algorithm, everything written where peers read it."""

    def __init__(self, folder, algorithm) -> None:
        self.folder = folder
        self.root_key, self.issuing_key, self.device_key = (MemorySigner(algorithm) for _ in range(3))
        self.root = self.sign("root-ca", Subject(common_name="Root", organization="Owner"), self.root_key)
        limits = NameLimits(dns=("example.org",))
        issuing = Subject(common_name="Issuing", organization="Owner")
        self.issuing = self.sign("issuing-ca", issuing, self.issuing_key, (self.root, self.root_key), limits)
        self.authority = Authority(
            [self.issuing, self.root],
            self.issuing_key,
            CaStore(folder / "ca", create=True),
            clock=SystemClock(),
            entropy=SystemEntropy(),
            report=lambda _: None,
            pointers=Pointers(crl_url="http://ca.example.org/crl", ocsp_url="http://ca.example.org/ocsp"),
        )
        self.certificate = self.issue()
        self.write("root.pem", encode_pem(self.root))
        self.write("issuing.pem", encode_pem(self.issuing))
        self.write("both.pem", encode_pem(self.issuing, self.root))
        self.write("cert.pem", encode_pem(self.certificate))

    def sign(self, profile, subject, key, above=None, limits=None):
        issuer, signer = above or (None, key)
        order = Order(
            profile=PROFILES[profile],
            subject=subject,
            public_key=key.public_key,
            now=datetime.datetime.now(tz=datetime.UTC) - datetime.timedelta(hours=1),
            serial=serial(),
            limits=limits or NameLimits(),
        )
        return sign_certificate(order, issuer, signer)

    def issue(self, profile="server", key=None, names=NAMES):
        subject = Subject(common_name="gw", serial_number="SN-1", organization="Owner", names=names)
        public = (key or self.device_key).public_key
        return self.authority.issue(Grant(profile=PROFILES[profile], subject=subject, public_key=public))

    def write(self, name, raw):
        (self.folder / name).write_bytes(raw)
        return self.folder / name

    def crl_pem(self, raw):
        return self.write("crl.pem", x509.load_der_x509_crl(raw).public_bytes(Encoding.PEM))


@pytest.fixture(params=ALGORITHMS, ids=lambda one: one.label)
def site(request, tmp_path):
    site = Site(tmp_path, request.param)
    yield site
    site.authority.store.close()


@pytest.fixture
def p256(tmp_path):
    site = Site(tmp_path, P256)
    yield site
    site.authority.store.close()


def openssl_verify(site, *words, ok=True):
    f = site.folder
    return run(
        *("openssl", "verify", "-x509_strict", "-CAfile", f / "root.pem", "-untrusted", f / "issuing.pem"),
        *words,
        f / "cert.pem",
        ok=ok,
    )


def test_openssl_takes_our_chain(site):
    openssl_verify(site, "-purpose", "sslserver", "-verify_hostname", "gw.example.org")
    assert "hostname mismatch" in openssl_verify(site, "-verify_hostname", "other.example.org", ok=False)
    openssl_verify(site, "-purpose", "sslclient", ok=False)


def test_openssl_keeps_our_name_constraints(p256):
    p256.write("cert.pem", encode_pem(p256.issue(names=(x509.DNSName("gw.example.com"),))))
    assert "permitted subtree violation" in openssl_verify(p256, ok=False)


@pytest.mark.parametrize("profile", ["idevid", "ldevid", "operator", "code-signing", "ocsp-responder"])
def test_openssl_takes_every_profile(p256, profile):
    above = (p256.root, p256.root_key)
    if profile == "idevid":
        key = MemorySigner(P256)
        above = (p256.sign("factory-ca", Subject(common_name="Factory"), key), key)
        p256.write("root.pem", encode_pem(above[0]))
    made = p256.sign(profile, Subject(serial_number="SN-1"), p256.device_key, above)
    p256.write("cert.pem", encode_pem(made))
    openssl_verify(p256)


def test_gnutls_takes_our_chain(site):
    f = site.folder
    chain = site.write("chain.pem", encode_pem(site.certificate, site.issuing, site.root))
    said = run(*("certtool", "--verify", "--load-ca-certificate", f / "root.pem", "--infile", chain))
    assert "The certificate is trusted" in said


def test_openssl_reads_our_lists(site):
    f = site.folder
    path = site.crl_pem(site.authority.crl())
    openssl_verify(site, "-crl_check", "-CRLfile", path)
    site.authority.revoke(site.certificate.serial_number, Reason.KEY_COMPROMISE)
    path = site.crl_pem(site.authority.crl())
    assert "verify OK" in run("openssl", "crl", "-in", path, "-noout", "-CAfile", f / "both.pem")
    assert "certificate revoked" in openssl_verify(site, "-crl_check", "-CRLfile", path, ok=False)


def test_openssl_combines_our_deltas(p256):
    base = p256.authority.crl()
    p256.authority.revoke(p256.certificate.serial_number, Reason.SUPERSEDED)
    both = b"".join(
        x509.load_der_x509_crl(one).public_bytes(Encoding.PEM) for one in (base, p256.authority.delta_crl())
    )
    path = p256.write("crls.pem", both)
    openssl_verify(p256, "-crl_check", "-CRLfile", p256.crl_pem(base))
    # a base that names no place for its deltas is combined by nobody; ours is read as a list of its own
    assert run("openssl", "crl", "-in", path, "-noout", "-text").count("X509v3 CRL Number") == 1


def test_gnutls_reads_our_lists(site):
    f = site.folder
    site.authority.revoke(site.certificate.serial_number, Reason.SUPERSEDED)
    path = site.crl_pem(site.authority.crl())
    run("certtool", "--verify-crl", "--load-ca-certificate", f / "issuing.pem", "--infile", path)


def ask_openssl(site, *words):
    question = site.folder / "question"
    f = site.folder
    run(
        *("openssl", "ocsp", "-issuer", f / "issuing.pem", *words, "-cert", f / "cert.pem", "-reqout", question),
    )
    return question.read_bytes()


def read_by_openssl(site, answer, *words):
    """Let OpenSSL verify signature and nonce first, then look up the certificate's status."""
    f = site.folder
    path = site.write("answer", answer)
    trust = ("-CAfile", f / "root.pem", "-verify_other", f / "issuing.pem", "-respin", path)
    said = run("openssl", "ocsp", "-reqin", f / "question", *trust)
    assert "Response verify OK" in said
    assert "nonce" not in said.lower()
    question = ("-no_nonce", "-issuer", f / "issuing.pem", *words, "-cert", f / "cert.pem")
    return run("openssl", "ocsp", *question, *trust)


def test_openssl_asks_us_over_ocsp(p256):
    answer = p256.authority.answer_ocsp(ask_openssl(p256))
    assert ": good" in read_by_openssl(p256, answer)
    p256.authority.revoke(p256.certificate.serial_number, Reason.KEY_COMPROMISE)
    said = read_by_openssl(p256, p256.authority.answer_ocsp(ask_openssl(p256, "-sha256")), "-sha256")
    assert ": revoked" in said
    assert "keyCompromise" in said


def test_openssl_takes_our_delegate(p256):
    key = MemorySigner(P256)
    delegate = p256.issue("ocsp-responder", key, names=())
    authority = p256.authority
    authority._responder = Responder(issuer=p256.issuing, certificate=delegate, signer=key)
    assert ": good" in read_by_openssl(p256, authority.answer_ocsp(ask_openssl(p256)))


def test_gnutls_asks_us_over_ocsp(p256):
    f = p256.folder
    run(
        *("ocsptool", "--generate-request", "--load-cert", f / "cert.pem", "--load-issuer", f / "issuing.pem"),
        *("--outfile", f / "question"),
    )
    path = p256.write("answer", p256.authority.answer_ocsp((f / "question").read_bytes()))
    said = run("ocsptool", "--verify-response", "--load-signer", f / "issuing.pem", "--infile", path)
    assert "Verifying OCSP Response: Success" in said
    assert "Certificate Status: good" in run("ocsptool", "--response-info", "--infile", path)


def test_we_judge_openssl_s_answers(p256):
    """A responder run from an index file, signed by the issuing CA's key."""
    f = p256.folder
    p256.write("issuing.key", p256.issuing_key.pem())
    ends = f"{p256.certificate.not_valid_after_utc:%y%m%d%H%M%SZ}"
    name = "/O=Owner/CN=gw/serialNumber=SN-1"
    index = f"V\t{ends}\t\t{p256.certificate.serial_number:X}\tunknown\t{name}\n"
    p256.write("index", index.encode())
    p256.write("index.attr", b"unique_subject = no\n")
    ask_openssl(p256)
    run(
        *("openssl", "ocsp", "-index", f / "index", "-CA", f / "issuing.pem", "-rsigner", f / "issuing.pem"),
        *("-rkey", f / "issuing.key", "-reqin", f / "question", "-respout", f / "answer", "-ndays", "1"),
    )
    now = datetime.datetime.now(tz=datetime.UTC)
    raw = (f / "answer").read_bytes()
    assert verify_ocsp(raw, certificate=p256.certificate, issuer=p256.issuing, now=now)
    with pytest.raises(Rejected):
        verify_ocsp(raw, certificate=p256.issuing, issuer=p256.root, now=now)


def test_we_judge_openssl_s_certificates_and_lists(tmp_path):
    f = tmp_path
    (f / "conf").write_text(
        "[ca]\ndatabase="
        + str(f / "index")
        + "\nserial="
        + str(f / "serial")
        + "\ncrlnumber="
        + str(f / "number")
        + "\n"
        "default_md=sha256\npolicy=any\nnew_certs_dir=" + str(f) + "\nx509_extensions=leaf\ncrl_extensions=crl\n"
        "default_crl_days=1\ndefault_days=30\n[any]\ncommonName=optional\nserialNumber=optional\n"
        "[req]\ndistinguished_name=dn\n[dn]\n[root]\nbasicConstraints=critical,CA:TRUE,pathlen:0\n"
        "keyUsage=critical,keyCertSign,cRLSign\nsubjectKeyIdentifier=hash\n"
        "[leaf]\nbasicConstraints=critical,CA:FALSE\nkeyUsage=critical,digitalSignature\n"
        "extendedKeyUsage=clientAuth\nsubjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid\n"
        "[crl]\nauthorityKeyIdentifier=keyid\n"
    )
    (f / "index").touch()
    (f / "serial").write_text("1234567890ABCDEF\n")
    (f / "number").write_text("01\n")
    new = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-noenc", "-config", f / "conf")
    run(
        *("openssl", "req", "-x509", *new, "-extensions", "root", "-subj", "/CN=Theirs", "-days", "30"),
        *("-keyout", f / "ca.key", "-out", f / "ca.pem"),
    )
    run("openssl", "req", *new, "-subj", "/serialNumber=SN-7", "-keyout", f / "key", "-out", f / "csr")
    signing = ("openssl", "ca", "-config", f / "conf", "-name", "ca", "-keyfile", f / "ca.key", "-cert", f / "ca.pem")
    run(*signing, "-in", f / "csr", "-out", f / "cert.pem", "-batch", "-notext")
    root, made = (x509.load_pem_x509_certificate((f / name).read_bytes()) for name in ("ca.pem", "cert.pem"))
    now = datetime.datetime.now(tz=datetime.UTC)
    rule = PathRule(anchors=[root.public_bytes(Encoding.DER)], now=now, purpose=Purpose.CLIENT)
    assert verify_chain([made.public_bytes(Encoding.DER)], rule).certificate == made

    def listed():
        run(*signing, "-gencrl", "-out", f / "crl.pem")
        raw = x509.load_pem_x509_crl((f / "crl.pem").read_bytes()).public_bytes(Encoding.DER)
        return verify_crl(raw, issuer=root, now=now + datetime.timedelta(seconds=5))

    listed().require_good(made)
    run(*signing, "-revoke", f / "cert.pem")
    with pytest.raises(Rejected) as caught:
        listed().require_good(made)
    assert caught.value.code == "pki.certificate.revoked"


@pytest.mark.parametrize("algorithm", [*ALGORITHMS, SignatureAlgorithm.ED25519], ids=lambda one: one.label)
def test_requests_both_ways(tmp_path, algorithm):
    raw = encode_request(MemorySigner(algorithm), Wish(serial_number="SN-1", names=(x509.DNSName("a.example"),)))
    (tmp_path / "csr").write_bytes(raw)
    said = run("openssl", "req", "-inform", "DER", "-in", tmp_path / "csr", "-verify", "-noout", "-text")
    assert "verify OK" in said
    assert "DNS:a.example" in said
    pem = x509.load_der_x509_csr(raw).public_bytes(Encoding.PEM)
    (tmp_path / "csr.pem").write_bytes(pem)
    if algorithm is not SignatureAlgorithm.ED25519:
        assert "serialNumber=SN-1" in run("certtool", "--crq-info", "--infile", tmp_path / "csr.pem")
    key = ("ec", "-pkeyopt", "ec_paramgen_curve:P-384")
    run(
        *(
            "openssl",
            "req",
            "-new",
            "-newkey",
            *key,
            "-noenc",
            "-keyout",
            tmp_path / "key",
            "-subj",
            "/serialNumber=SN-8",
        ),
        *("-addext", "subjectAltName=DNS:b.example,IP:10.0.0.9", "-outform", "DER", "-out", tmp_path / "theirs"),
    )
    request = verify_request((tmp_path / "theirs").read_bytes())
    assert (request.serial_number, len(request.names)) == ("SN-8", 2)


def test_openssl_follows_our_rollover(p256):
    f = p256.folder
    new_key = MemorySigner(P256)
    now = datetime.datetime.now(tz=datetime.UTC)
    made = make_rollover(p256.root, p256.root_key, new_key, now=now, serials=[serial() for _ in range(3)])
    p256.write("new.pem", encode_pem(made.new_root))
    old_side = p256.write("old-side.pem", encode_pem(p256.issuing, made.old_with_new))
    run("openssl", "verify", "-CAfile", f / "new.pem", "-untrusted", old_side, f / "cert.pem")
    cross = p256.write("cross.pem", encode_pem(made.new_with_old))
    run("openssl", "verify", "-CAfile", f / "root.pem", cross)


def test_everything_we_emit_is_strict_der(site):
    key = MemorySigner(P256)
    delegate = site.issue("ocsp-responder", key, names=())
    site.authority._responder = Responder(issuer=site.issuing, certificate=delegate, signer=key)
    site.authority.revoke(site.issue().serial_number, Reason.KEY_COMPROMISE)
    question = encode_ocsp_request(site.certificate, site.issuing, b"n" * 16)
    emitted = [
        *((strict_x509.Certificate, one.public_bytes(Encoding.DER)) for one in (site.root, site.issuing, delegate)),
        (strict_x509.Certificate, site.certificate.public_bytes(Encoding.DER)),
        (strict_crl.CertificateList, site.authority.crl()),
        (strict_crl.CertificateList, site.authority.delta_crl()),
        (strict_ocsp.OCSPRequest, question),
        (strict_ocsp.OCSPResponse, site.authority.answer_ocsp(question)),
        (strict_ocsp.OCSPResponse, site.authority.answer_ocsp(b"")),
        (strict_csr.CertificationRequest, encode_request(key, Wish(serial_number="1"), challenge_password=b"x")),
    ]
    for kind, raw in emitted:
        parsed = kind.load(raw, strict=True)
        _ = parsed.native  # parses everything inside
        assert parsed.dump(force=True) == raw, kind
