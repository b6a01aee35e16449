"""Who may get which certificate: a row for each attack, and what has to go on working beside it."""

import base64
import dataclasses
import datetime

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import AttributeOID, NameOID

from tidegate.base.clock import SystemEntropy
from tidegate.base.errors import TidegateError
from tidegate.cli.ca_serve import _Lists as MakersLists
from tidegate.crypto.aead import Secret
from tidegate.pki.authority import Authority, Grant
from tidegate.pki.ca_store import CaStore, Reason
from tidegate.pki.errors import CrlStale
from tidegate.pki.est_server import Application
from tidegate.pki.keyadapter import private_key_for
from tidegate.pki.profiles import PROFILES, Subject
from tidegate.pki.rate import Rate
from tidegate.pki.registrar import CaRegistrar, Conditions
from tidegate.pki.revocation import verify_crl
from tidegate.pki.tokens import issue_token
from tidegate.testing.ca import Lab
from tidegate.testing.identity import SetClock

DAY = datetime.timedelta(days=1)
KEY = ec.generate_private_key(ec.SECP256R1())
BINDING = b"of this connection"


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lab")
    folder.chmod(0o700)
    return Lab(folder)


class Office:
    """A registrar on a store of its own; ``ask`` sends it an application."""

    def __init__(self, lab, folder, **conditions):
        self.lab, self.clock = lab, SetClock(datetime.datetime.now(tz=datetime.UTC).timestamp() + 2)
        self.store, self.reports = CaStore(folder, create=True), []
        self.authority = Authority(
            [lab.issuing, lab.root],
            lab.keys.signer("issuing"),
            self.store,
            clock=self.clock,
            entropy=SystemEntropy(),
            report=self.reports.append,
        )
        conditions = {"idevid_anchors": (der(lab.factory),), "rate": Rate(burst=1000, per_minute=1)} | conditions
        self.registrar = CaRegistrar(self.authority, clock=self.clock, conditions=Conditions(**conditions))

    def ask(self, request, *, chain=(), token=None, renew=False, binding=BINDING):
        return self.registrar.enrol(
            Application(
                label="",
                request=request,
                renew=renew,
                chain=tuple(der(one) for one in chain),
                token=token,
                binding=binding,
                address="192.0.2.1",
            )
        )

    def change(self, **conditions):
        self.registrar._conditions = dataclasses.replace(self.registrar._conditions, **conditions)

    def token(self, device="SN-1", lifetime_s=3600):
        secret = issue_token(
            self.store, device, now_s=self.clock.now_s(), entropy=SystemEntropy(), lifetime_s=lifetime_s
        )
        return device, secret


@pytest.fixture
def make_office(lab, tmp_path):
    offices = []

    def make(**conditions):
        offices.append(Office(lab, tmp_path / f"store-{len(offices)}", **conditions))
        return offices[-1]

    yield make
    for office in offices:
        office.store.close()


@pytest.fixture
def office(make_office):
    return make_office()


def der(certificate):
    return certificate.public_bytes(Encoding.DER)


def request(serial="SN-1", *, key=KEY, common_name=None, names=(), password=None, extra=()):
    attributes = [x509.NameAttribute(NameOID.SERIAL_NUMBER, serial)] if serial else []
    if common_name:
        attributes.append(x509.NameAttribute(NameOID.COMMON_NAME, common_name))
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([*attributes, *extra]))
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    if password:
        builder = builder.add_attribute(AttributeOID.CHALLENGE_PASSWORD, password)
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.DER)


def refused(code, call, *arguments, **options):
    with pytest.raises(TidegateError) as caught:
        call(*arguments, **options)
    assert caught.value.code == code


# -- what works


def test_birth_certificate_gets_a_working_one(office, lab):
    _, idevid = lab.idevid("SN-1")
    certificate = office.ask(request(), chain=[idevid])
    assert certificate.subject == Subject(organization="Example Owner", serial_number="SN-1").name()
    assert certificate.public_key() == KEY.public_key()
    assert office.ask(request(), chain=[idevid]) == certificate  # signed anew, asked again: the same
    assert office.ask(request(common_name="SN-1"), chain=[idevid]) != certificate
    other = office.ask(request(key=ec.generate_private_key(ec.SECP256R1())), chain=[idevid])
    assert other.serial_number != certificate.serial_number
    assert len(office.reports) == 3


def test_token_is_good_for_one_request_asked_as_often_as_need_be(office):
    token = office.token()
    first = office.ask(request(), token=token)
    assert office.ask(request(), token=token, binding=b"another connection") == first
    second = office.ask(request(), token=office.token())
    assert second.serial_number != first.serial_number
    assert office.store.count() == 2


def test_renewal_with_a_new_key_and_with_the_old_one(office):
    old = office.ask(request(), token=office.token())
    new_key = ec.generate_private_key(ec.SECP256R1())
    new = office.ask(request(key=new_key), chain=[old], renew=True)
    assert new.public_key() == new_key.public_key()
    assert office.ask(request(key=new_key), chain=[old], renew=True) == new
    same_key = office.ask(request(), chain=[old], renew=True)
    assert same_key.public_key() == old.public_key()
    assert same_key.serial_number != old.serial_number
    full = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Example Owner")]
    assert office.ask(request(extra=full), chain=[new], renew=True).subject == old.subject


def test_certificate_that_ran_out_is_followed_by_another(office, lab):
    _, idevid = lab.idevid("SN-1")
    first = office.ask(request(), chain=[idevid])
    office.clock.time_s += 30 * 86_400
    second = office.ask(request(), chain=[idevid])
    assert second.not_valid_before_utc > first.not_valid_after_utc
    assert office.ask(request(), chain=[idevid]) == second


def test_bound_requests(make_office):
    office = make_office(binding_required=True)
    bound = request(password=base64.b64encode(BINDING))
    assert office.ask(bound, token=office.token()).public_key() == KEY.public_key()


def test_renewal_after_the_ca_got_a_new_key_and_name(office, lab):
    old = office.ask(request(), token=office.token())
    above = (lab.root, "root")
    successor = lab.certify("issuing-ca", "successor", Subject(common_name="Example Issuing CA 2"), above=above)
    parts = {"clock": office.clock, "entropy": SystemEntropy(), "report": office.reports.append}
    authority = Authority([successor, lab.root], lab.keys.signer("successor"), office.store, **parts)
    office.registrar = CaRegistrar(authority, clock=office.clock, extra=[lab.factory], previous=[lab.issuing])
    new = office.ask(request(extra=list(old.subject.rdns[0])), chain=[old], renew=True)
    assert new.issuer == successor.subject
    assert lab.factory in office.registrar.authorities()
    office.registrar = CaRegistrar(authority, clock=office.clock)
    refused("pki.path.untrusted", office.ask, request(), chain=[old], renew=True)


def test_approval(make_office):
    approved = set()
    office = make_office(approve=lambda device, request: device in approved)
    token = office.token()
    refused("pki.est.pending", office.ask, request(), token=token)
    approved.add("SN-1")
    assert office.ask(request(), token=token)


def test_lifetime_is_the_owners(make_office):
    office = make_office(lifetime=datetime.timedelta(hours=6))
    certificate = office.ask(request(), token=office.token())
    assert certificate.not_valid_after_utc - certificate.not_valid_before_utc < datetime.timedelta(hours=7)


# -- what is refused


def replayed_token(office, lab):
    token = office.token()
    office.ask(request(), token=token)
    return {"request": request(key=ec.generate_private_key(ec.SECP256R1())), "token": token}


def others_token(office, lab):
    return {"request": request("SN-2"), "token": ("SN-2", office.token("SN-1")[1])}


def unknown_token(office, lab):
    return {"request": request(), "token": ("SN-1", Secret(b"guess"))}


def late_token(office, lab):
    token = office.token(lifetime_s=60)
    office.clock.time_s += 61
    return {"request": request(), "token": token}


def others_identity_by_token(office, lab):
    return {"request": request("SN-2"), "token": office.token("SN-1")}


def others_identity(office, lab):
    return {"request": request("SN-2"), "chain": [lab.idevid("SN-1")[1]]}


def others_common_name(office, lab):
    return {"request": request(common_name="server.example"), "chain": [lab.idevid("SN-1")[1]]}


def no_identity(office, lab):
    return {"request": request(serial="", common_name="SN-1"), "chain": [lab.idevid("SN-1")[1]]}


def names_of_others(office, lab):
    return {"request": request(names=[x509.DNSName("bank.example")]), "chain": [lab.idevid("SN-1")[1]]}


def expired_idevid(office, lab):
    start = datetime.datetime.now(tz=datetime.UTC) - 30 * DAY
    factory = lab.certify("issuing-ca", "old-factory", Subject(common_name="Old"), now=start)
    above = (factory, "old-factory")
    old = lab.certify("ldevid", "idevid", Subject(serial_number="SN-1"), above=above, now=start, lifetime=DAY)
    office.change(idevid_anchors=(der(factory),))
    return {"request": request(), "chain": [old]}


def revoked_idevid(office, lab):
    _, idevid = lab.idevid("SN-1")
    now = datetime.datetime.now(tz=datetime.UTC)
    one = x509.RevokedCertificateBuilder(idevid.serial_number, now).build()
    ski = lab.factory.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    crl = (
        x509.CertificateRevocationListBuilder(lab.factory.subject, now, now + DAY)
        .add_revoked_certificate(one)
        .add_extension(x509.CRLNumber(1), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(ski), critical=False)
    )
    raw = crl.sign(private_key_for(lab.keys.signer("factory")), hashes.SHA256()).public_bytes(Encoding.DER)
    lists = [verify_crl(raw, issuer=lab.factory, now=now)]
    office.change(lists=lambda: lists)
    return {"request": request(), "chain": [idevid]}


def idevid_below_a_revoked_ca(office, lab):
    """The makers' lists count for their CAs between as well."""
    maker = lab.certify("root-ca", "maker", Subject(common_name="Maker Root", organization="Example Maker"))
    line = lab.certify("issuing-ca", "line", Subject(common_name="Line 2"), above=(maker, "maker"))
    public = lab.idevid("SN-1")[0].public_key
    idevid = lab.sign("idevid", public, Subject(serial_number="SN-1"), (line, "line"), lifetime=DAY)
    office.change(idevid_anchors=(der(maker),))
    assert office.ask(request("SN-1", key=ec.generate_private_key(ec.SECP256R1())), chain=[idevid, line])
    now = datetime.datetime.now(tz=datetime.UTC)
    crl = (
        x509.CertificateRevocationListBuilder(maker.subject, now, now + DAY)
        .add_revoked_certificate(x509.RevokedCertificateBuilder(line.serial_number, now).build())
        .add_extension(x509.CRLNumber(1), critical=False)
    )
    raw = crl.sign(private_key_for(lab.keys.signer("maker")), hashes.SHA256()).public_bytes(Encoding.DER)
    lists = [verify_crl(raw, issuer=maker, now=now)]
    office.change(lists=lambda: lists)
    return {"request": request(), "chain": [idevid, line]}


def foreign_idevid(office, lab, name="Another Factory"):
    factory = lab.certify("factory-ca", "foreign", Subject(common_name=name, organization="Example Maker"))
    stranger = lab.certify("idevid", "idevid", Subject(serial_number="SN-1"), above=(factory, "foreign"))
    return {"request": request(), "chain": [stranger]}


def idevid_of_a_namesake(office, lab):
    return foreign_idevid(office, lab, "Example Factory")


def servers_certificate(office, lab):
    return {"request": request("localhost"), "chain": [lab.server]}


def operators_certificate(office, lab):
    """A person's certificate of this CA, whose subject happens to have a serial number."""
    subject = Subject(common_name="Operator", serial_number="SN-1")
    key = lab.keys.public_key("server")
    grant = Grant(profile=PROFILES["operator"], subject=subject, public_key=key)
    return {"request": request(), "chain": [office.authority.issue(grant)]}


def unrecorded_certificate(office, lab):
    forged = lab.certify("ldevid", "idevid", Subject(serial_number="SN-1"), above=(lab.issuing, "issuing"))
    return {"request": request(), "chain": [forged], "renew": True}


def revoked_ldevid(office, lab):
    old = office.ask(request(), token=office.token())
    office.authority.revoke(old.serial_number, Reason.KEY_COMPROMISE)
    return {"request": request(), "chain": [old], "renew": True}


def revoked_and_asked_again(office, lab):
    _, idevid = lab.idevid("SN-1")
    old = office.ask(request(), chain=[idevid])
    office.authority.revoke(old.serial_number, Reason.KEY_COMPROMISE)
    return {"request": request(), "chain": [idevid]}


def out_of_service(office, lab, *, renew=False):
    """A stolen device has its certificate of birth, and may have kept an older one of ours."""
    _, idevid = lab.idevid("SN-1")
    older = office.ask(request(), chain=[idevid])
    office.clock.time_s += 60
    newest = office.ask(request(key=ec.generate_private_key(ec.SECP256R1())), chain=[idevid])
    office.authority.revoke(newest.serial_number, Reason.PRIVILEGE_WITHDRAWN)
    fresh = request(key=ec.generate_private_key(ec.SECP256R1()))
    return {"request": fresh, "chain": [older if renew else idevid], "renew": renew}


def out_of_service_with_an_older_certificate(office, lab):
    return out_of_service(office, lab, renew=True)


def renewal_of_a_birth_certificate(office, lab):
    return {"request": request(), "chain": [lab.idevid("SN-1")[1]], "renew": True}


def renewal_by_token(office, lab):
    return {"request": request(), "token": office.token(), "renew": True}


def renewal_for_another(office, lab):
    return {"request": request("SN-2"), "chain": [office.ask(request(), token=office.token())], "renew": True}


def renewal_with_more_names(office, lab):
    old = office.ask(request(), token=office.token())
    return {"request": request(names=[x509.DNSName("bank.example")]), "chain": [old], "renew": True}


def renewal_with_fewer_names(office, lab):
    old = office.ask(request(common_name="SN-1"), token=office.token())
    return {"request": request(), "chain": [old], "renew": True}


def nobody(office, lab):
    return {"request": request()}


def broken_signature(office, lab):
    raw = bytearray(request())
    raw[-1] ^= 1
    return {"request": bytes(raw), "token": office.token()}


def nonsense(office, lab):
    return {"request": b"nonsense", "token": office.token()}


def weak_key(office, lab):
    return {"request": request(key=rsa.generate_private_key(65_537, 2048)), "token": office.token()}


def others_binding(office, lab):
    return {"request": request(password=base64.b64encode(b"of another")), "token": office.token()}


def binding_nobody_can_check(office, lab):
    return {"request": request(password=base64.b64encode(BINDING)), "token": office.token(), "binding": None}


ATTACKS = [
    (replayed_token, "pki.token.replayed"),
    (others_token, "pki.token.device"),
    (unknown_token, "pki.token.unknown"),
    (late_token, "pki.token.expired"),
    (others_identity_by_token, "pki.est.identity"),
    (others_identity, "pki.est.identity"),
    (others_common_name, "pki.est.identity"),
    (no_identity, "pki.est.identity"),
    (names_of_others, "pki.est.identity"),
    (expired_idevid, "pki.path.expired"),
    (revoked_idevid, "pki.certificate.revoked"),
    (idevid_below_a_revoked_ca, "pki.certificate.revoked"),
    (foreign_idevid, "pki.path.untrusted"),
    (idevid_of_a_namesake, "pki.path.signature"),
    (servers_certificate, "pki.path.usage"),
    (operators_certificate, "pki.est.identity"),
    (unrecorded_certificate, "pki.certificate.revoked"),
    (revoked_ldevid, "pki.certificate.revoked"),
    (revoked_and_asked_again, "pki.certificate.revoked"),
    (out_of_service, "pki.certificate.revoked"),
    (out_of_service_with_an_older_certificate, "pki.certificate.revoked"),
    (renewal_of_a_birth_certificate, "pki.est.renewal"),
    (renewal_by_token, "pki.est.unauthenticated"),
    (renewal_for_another, "pki.est.identity"),
    (renewal_with_more_names, "pki.est.identity"),
    (renewal_with_fewer_names, "pki.est.identity"),
    (nobody, "pki.est.unauthenticated"),
    (broken_signature, "pki.request.forged"),
    (nonsense, "pki.request.malformed"),
    (weak_key, "pki.key.not-allowed"),
    (others_binding, "pki.est.binding"),
    (binding_nobody_can_check, "pki.est.binding"),
]


@pytest.mark.parametrize(("attack", "code"), ATTACKS, ids=[attack.__name__ for attack, _ in ATTACKS])
def test_attacks(office, lab, attack, code):
    arguments = attack(office, lab)
    before = office.store.count()
    refused(code, office.ask, arguments.pop("request"), **arguments)
    assert office.store.count() == before


def test_unbound_requests_where_binding_is_required(make_office):
    office = make_office(binding_required=True)
    refused("pki.est.binding", office.ask, request(), token=office.token())


def test_refused_token_is_not_used_up(office):
    token = office.token()
    refused("pki.est.identity", office.ask, request("SN-2"), token=token)
    assert office.ask(request(), token=token)


def test_one_device_cannot_have_it_all(make_office, lab):
    office = make_office(rate=Rate(burst=2, per_minute=1))
    _, idevid = lab.idevid("SN-1")
    for _ in range(2):
        office.ask(request(), chain=[idevid])
    refused("pki.est.rate", office.ask, request(), chain=[idevid])
    assert office.ask(request("SN-2"), token=office.token("SN-2"))  # others are not held up


def test_nobody_spends_anothers_allowance(make_office):
    office = make_office(rate=Rate(burst=1, per_minute=1))
    for _ in range(5):
        refused("pki.token.unknown", office.ask, request(), token=("SN-1", Secret(b"guess")))
        refused("pki.token.device", office.ask, request(), token=("SN-1", office.token("SN-2")[1]))
    assert office.ask(request(), token=office.token())


def test_a_makers_stale_list_stops_enrolments_and_no_renewals(office, lab):
    _, idevid = lab.idevid("SN-1")
    working = office.ask(request(), chain=[idevid])

    def stale():
        raise CrlStale("a week old")

    office.change(lists=stale)
    fresh = request(key=ec.generate_private_key(ec.SECP256R1()))
    refused("pki.crl.stale", office.ask, fresh, chain=[idevid])
    assert office.ask(fresh, chain=[working], renew=True)


def test_out_of_service_and_back(office, lab):
    _, idevid = lab.idevid("SN-1")
    for reason in (Reason.KEY_COMPROMISE, Reason.SUPERSEDED, Reason.UNSPECIFIED):  # of a key, not of the device
        last = office.ask(request(key=ec.generate_private_key(ec.SECP256R1())), chain=[idevid])
        office.authority.revoke(last.serial_number, reason)
        office.clock.time_s += 60
    last = office.ask(request(key=ec.generate_private_key(ec.SECP256R1())), chain=[idevid])
    office.authority.revoke(last.serial_number, Reason.CESSATION_OF_OPERATION)
    refused("pki.certificate.revoked", office.ask, request(), chain=[idevid])
    office.clock.time_s += 60
    back = office.ask(request(), token=office.token())
    assert office.ask(request(key=ec.generate_private_key(ec.SECP256R1())), chain=[back], renew=True)
    assert office.ask(request(key=ec.generate_private_key(ec.SECP256R1())), chain=[idevid])


def test_every_list_of_every_key_counts(lab, tmp_path):
    """A maker's CA that got a new key keeps its name; and no list is left out, however many there are."""
    name = Subject(common_name="Example Factory", organization="Example Maker")
    namesake = lab.certify("factory-ca", "factory-2", name)
    now, paths = datetime.datetime.now(tz=datetime.UTC), []
    for number in range(17):
        crl = (
            x509.CertificateRevocationListBuilder(namesake.subject, now, now + DAY)
            .add_revoked_certificate(x509.RevokedCertificateBuilder(number + 1, now).build())
            .add_extension(x509.CRLNumber(1), critical=False)
        )
        paths.append(tmp_path / f"{number}.crl")
        signed = crl.sign(private_key_for(lab.keys.signer("factory-2")), hashes.SHA256())
        paths[-1].write_bytes(signed.public_bytes(Encoding.DER))
    found = MakersLists(paths, [lab.factory, namesake])()
    assert {serial for one in found for serial in one.revoked} == set(range(1, 18))
    refused("pki.crl.forged", MakersLists, paths, [lab.factory])
