"""What a device demands of the certificate that it is given, and what it asks for."""

import datetime

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from tidegate.base.errors import TidegateError
from tidegate.crypto.aead import Secret
from tidegate.pki import est
from tidegate.pki.enrolment import EstEnrolment
from tidegate.pki.est_client import EstClient, Token
from tidegate.pki.profiles import Subject
from tidegate.pki.requests import verify_request
from tidegate.testing.ca import Lab
from tidegate.testing.identity import SetClock
from tidegate.tls.https import HttpAnswer

DAY = datetime.timedelta(days=1)
TOKEN = Token(device="SN-1", secret=Secret(b"token"))


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lab")
    folder.chmod(0o700)
    lab = Lab(folder)
    lab.certify("root-ca", "evil", Subject(common_name="Example Root", organization="Example Owner"))
    return lab


class Server:
    """A connection to an EST server that certifies with ``issue`` whatever it is asked."""

    def __init__(self, lab, issue, binding=b"binding"):
        self.lab, self.issue, self.bound, self.requests = lab, issue, binding, []

    def binding(self):
        return self.bound

    def request(self, method, path, *, headers, body=b"", limit_bytes):
        operation = est.parse_path(path)[1]
        if operation is est.Operation.CSR_ATTRS:
            raw = est.encode_csr_attributes(est.CsrAttributes())
            return answer(est.CSR_ATTRIBUTES, raw)
        if operation is est.Operation.CACERTS:
            return answer(est.CERTS_ONLY, est.encode_certificates([self.lab.issuing, self.lab.root]))
        self.requests.append((operation, verify_request(est.decode_body(body, limit_bytes=limit_bytes))))
        return answer(est.CERTS_ONLY, est.encode_certificates([self.issue(self.requests[-1][1])]))


def answer(content_type, raw):
    headers = {"content-type": content_type, "date": datetime.datetime.now(tz=datetime.UTC).strftime(DATE)}
    return HttpAnswer(status=200, headers=headers, body=est.encode_body(raw))


DATE = "%a, %d %b %Y %H:%M:%S GMT"


def enrol(lab, issue, *, chain=(), renew=False, now_s=None, binding=b"binding"):
    server = Server(lab, issue, binding)
    clock = SetClock(datetime.datetime.now(tz=datetime.UTC).timestamp() if now_s is None else now_s)
    anchors = [lab.root.public_bytes(Encoding.DER)]
    enrolment = EstEnrolment(
        EstClient(server), chain=chain, anchors=anchors, token=None if chain else TOKEN, clock=clock
    )
    if "device" not in {info.name for info in lab.keys.list_keys()}:
        lab.idevid("SN-1", "device")
    return server, enrolment.enrol(lab.keys.signer("device"), renew=renew)


def proper(lab):
    return lambda request: lab.sign(
        "ldevid", request.public_key, Subject(serial_number=request.serial_number), (lab.issuing, "issuing")
    )


def test_token_enrolment(lab):
    server, issued = enrol(lab, proper(lab))
    ((operation, request),) = server.requests
    assert operation is est.Operation.SIMPLE_ENROLL
    assert (request.serial_number, request.common_name, request.names) == ("SN-1", "", ())
    assert request.challenge_password == b"YmluZGluZw=="
    assert [x509.load_der_x509_certificate(one).issuer for one in issued.chain] == [
        lab.issuing.subject,
        lab.root.subject,
    ]
    assert issued.not_before_s < issued.not_after_s


def test_without_a_binding_none_is_sent(lab):
    server, _ = enrol(lab, proper(lab), binding=None)
    assert server.requests[0][1].challenge_password is None


def test_renewal_asks_for_the_same_names(lab):
    names = (x509.DNSName("one.example"),)
    subject = Subject(common_name="SN-1", serial_number="SN-1", organization="Example Owner", names=names)
    old = lab.certify("ldevid", "device", subject, above=(lab.issuing, "issuing"))
    again = Subject(common_name="SN-1", serial_number="SN-1", names=names)
    server, _ = enrol(
        lab,
        lambda request: lab.sign("ldevid", request.public_key, again, (lab.issuing, "issuing")),
        chain=[old.public_bytes(Encoding.DER)],
        renew=True,
    )
    ((operation, request),) = server.requests
    assert operation is est.Operation.SIMPLE_REENROLL
    assert (request.serial_number, request.common_name, request.names) == ("SN-1", "SN-1", names)


def test_device_in_1970_takes_a_certificate(lab):
    assert enrol(lab, proper(lab), now_s=0.0)[1]


def another_key(lab, request):
    return lab.sign("ldevid", lab.keys.public_key("root"), Subject(serial_number="SN-1"), (lab.issuing, "issuing"))


def another_name(lab, request):
    return lab.sign("ldevid", request.public_key, Subject(serial_number="SN-2"), (lab.issuing, "issuing"))


def another_root(lab, request):
    return lab.sign("ldevid", request.public_key, Subject(serial_number="SN-1"), (None, "evil"))


def expired(lab, request):
    ago = datetime.datetime.now(tz=datetime.UTC) - 30 * DAY
    old = lab.certify("issuing-ca", "old", Subject(common_name="Old"), above=None, now=ago)
    return lab.sign("ldevid", request.public_key, Subject(serial_number="SN-1"), (old, "old"), now=ago, lifetime=DAY)


def authority(lab, request):
    return lab.sign("issuing-ca", request.public_key, Subject(serial_number="SN-1"), (lab.root, "root"))


@pytest.mark.parametrize(
    ("issue", "codes"),
    [
        (another_key, {"pki.est.answer"}),
        (another_name, {"pki.est.answer"}),
        (another_root, {"pki.path.untrusted", "pki.path.signature"}),
        (expired, {"pki.path.expired", "pki.path.untrusted"}),
        (authority, {"pki.path.usage"}),
    ],
)
def test_certificates_that_are_not_ours(lab, issue, codes):
    with pytest.raises(TidegateError) as caught:
        enrol(lab, lambda request: issue(lab, request))
    assert caught.value.code in codes


def test_nothing_to_enrol_with(lab):
    enrolment = EstEnrolment(EstClient(Server(lab, proper(lab))), chain=(), anchors=(), token=None, clock=SetClock())
    with pytest.raises(TidegateError) as caught:
        enrolment.enrol(lab.keys.signer("root"), renew=False)
    assert caught.value.code == "pki.identity.missing"
