"""C2SP's x509-limbo cases against our path validation and revocation lists.

A verdict that differs from the expected one is a failure unless it stands below with its reason, and so is a reason
that no case needs any more.
"""

import datetime
import json
import os
import ssl
import warnings
from collections import Counter
from pathlib import Path

import pytest
from cryptography.utils import CryptographyDeprecationWarning

from tidegate.base.errors import Rejected
from tidegate.pki.path import MAX_CERTIFICATES, PathRule, Purpose, verify_chain
from tidegate.pki.revocation import verify_crl

_DEFAULT = Path(__file__).resolve().parents[2].parent / "shared" / "corpora"
CORPORA = Path(os.environ.get("TIDEGATE_CORPORA", _DEFAULT))
VECTORS = CORPORA / "vectors" / "x509-limbo" / "limbo.json"

pytestmark = [
    pytest.mark.skipif(not VECTORS.is_file(), reason="no x509-limbo cases here (TIDEGATE_CORPORA names the folder)"),
    pytest.mark.filterwarnings("ignore::cryptography.utils.CryptographyDeprecationWarning"),  # serial numbers of 0
]

# where we say yes and limbo says no
LENIENT = {
    "key identifiers help to find a path and vouch for nothing; ours are always there": (
        "rfc5280::aki::leaf-missing-aki",
        "rfc5280::aki::intermediate-missing-aki",
        "rfc5280::aki::cross-signed-root-missing-aki",
        "rfc5280::ski::root-missing-ski",
        "rfc5280::ski::intermediate-missing-ski",
        "webpki::aki::root-with-aki-all-fields",
        "webpki::aki::root-with-aki-ski-mismatch",
    ),
    "name constraints are enforced whether they are critical or not": ("rfc5280::nc::permitted-dns-match-noncritical",),
    "certificate policies are not evaluated; where they are critical they are refused": (
        "rfc5280::pc::ica-noncritical-pc",
    ),
    "the web's rule for common names: we never compare them": (
        "webpki::cn::ipv4-hex-mismatch",
        "webpki::cn::ipv4-leading-zeros-mismatch",
        "webpki::cn::ipv6-uppercase-mismatch",
        "webpki::cn::ipv6-uncompressed-mismatch",
        "webpki::cn::ipv6-non-rfc5952-mismatch",
        "webpki::cn::punycode-not-in-san",
        "webpki::cn::utf8-vs-punycode-mismatch",
        "webpki::cn::not-in-san",
        "webpki::cn::case-mismatch",
    ),
    "the web's rule for issuers: another use, or a critical one, beside the right one harms nobody": (
        "webpki::eku::ee-anyeku",
        "webpki::eku::ee-critical-eku",
        "webpki::eku::root-has-eku",
    ),
    "there is no list of public suffixes on a device; our profiles issue no wildcards": (
        "webpki::san::public-suffix-wildcard-san",
        "webpki::san::public-suffix-multi-label-wildcard-san",
        "webpki::san::public-suffix-private-namespace-wildcard-san",
    ),
}
# where we say no and limbo says yes
STRICT = {
    "RSA keys of 2,048 bits are small here: 3,072 are the least": (
        "webpki::cryptographydotio-chain",
        "online::google.com",
        "online::aws.amazon.com",
        "online::microsoft.com",
        "online::facebook.com",
        "online::amazon.com",
        "online::s3.amazonaws.com",
        "online::storage.googleapis.com",
        "online::docs.python.org",
        "online::bing.com",
    ),
    "an anchor of the bundle has the serial number 0": ("online::fastly.com",),
    "a CA's certificate is no identity to work with": (
        "pathlen::validation-ignores-pathlen-in-leaf",
        "rfc5280::ca-as-leaf",
    ),
    "the library counts self-issued CAs, too; rollover.py verifies ours one by one": (
        "pathlen::self-issued-certs-pathlen",
        "pathlen::max-chain-depth-1-self-issued",
    ),
    "a server's certificate has to name that use": ("rfc5280::eku::ee-without-eku",),
    "a CA has to say what its key is for": ("crl::issuer-no-keyusage-extension",),
    "more certificates than a chain may have": ("cve::cve-2024-0567",),
}
# what is not judged at all
SET_ASIDE = {
    "the peer is expected under a directory name, which no use of ours does": ("rfc5280::nc::permitted-dn-match",),
}


def der(pem):
    return ssl.PEM_cert_to_DER_cert(pem.strip() + "\n")


def crl_der(pem):
    lines = pem.strip().splitlines()
    return ssl.PEM_cert_to_DER_cert(
        "\n".join(["-----BEGIN CERTIFICATE-----", *lines[1:-1], "-----END CERTIFICATE-----"]) + "\n"
    )


def rule_of(case):
    now = case["validation_time"]
    is_server = case["validation_kind"] == "SERVER"
    depth = case["max_chain_depth"]
    return PathRule(
        anchors=[der(one) for one in case["trusted_certs"]],
        now=datetime.datetime.fromisoformat(now) if now else datetime.datetime.now(datetime.UTC),
        purpose=Purpose.SERVER if is_server else Purpose.CLIENT,
        server_name=case["expected_peer_name"]["value"] if is_server else None,
        depth=MAX_CERTIFICATES if depth is None else min(depth, MAX_CERTIFICATES),
    )


def judge(case):
    """Return the code of our refusal, None if we accept."""
    rule = rule_of(case)
    try:
        chain = verify_chain([der(case["peer_certificate"]), *map(der, case["untrusted_intermediates"])], rule)
        for raw in map(crl_der, case["crls"]):
            if chain.issuer.subject.public_bytes() in raw:  # a list of somebody else's says nothing
                verify_crl(raw, issuer=chain.issuer, now=rule.now).require_good(chain.certificate)
    except Rejected as error:
        return error.code
    return None


def reasons(table):
    return {case: reason for reason, cases in table.items() for case in cases}


@pytest.fixture(scope="module")
def verdicts():
    """Judge every case once: expected result and our code by name."""
    aside = reasons(SET_ASIDE)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CryptographyDeprecationWarning)
        cases = json.loads(VECTORS.read_text())["testcases"]
        return {case["id"]: (case["expected_result"], judge(case)) for case in cases if case["id"] not in aside}


def test_every_case_is_judged_or_has_its_reason(verdicts, capsys):
    lenient = {name for name, (wanted, code) in verdicts.items() if wanted == "FAILURE" and code is None}
    strict = {name for name, (wanted, code) in verdicts.items() if wanted == "SUCCESS" and code is not None}
    with capsys.disabled():
        agreed = len(verdicts) - len(lenient) - len(strict)
        print(f"\nx509-limbo: {agreed} of {len(verdicts)} verdicts agree;")  # noqa: T201  # to be read
        for reason, cases in {**LENIENT, **STRICT, **SET_ASIDE}.items():
            print(f"  {len(cases)}: {reason}")  # noqa: T201
    assert lenient == set(reasons(LENIENT))
    assert strict == set(reasons(STRICT))
    assert len(verdicts) + len(reasons(SET_ASIDE)) == 208


def test_refusals_are_told_apart(verdicts):
    codes = Counter(code for _, code in verdicts.values() if code)
    assert set(codes) >= {
        "pki.path.malformed",
        "pki.path.limit",
        "pki.path.usage",
        "pki.path.untrusted",
        "pki.path.expired",
        "pki.path.not-ca",
        "pki.path.length",
        "pki.path.name",
        "pki.path.extension",
        "pki.path.key",
        "pki.path.signature",
        "pki.certificate.revoked",
        "pki.crl.issuer",
        "pki.crl.malformed",
    }


@pytest.mark.parametrize(
    ("case", "code"),
    [
        ("rfc5280::unknown-critical-extension-ee", "pki.path.extension"),
        ("rfc5280::unknown-critical-extension-intermediate", "pki.path.extension"),
        ("rfc5280::intermediate-ca-without-ca-bit", "pki.path.not-ca"),
        ("pathlen::intermediate-violates-pathlen-0", "pki.path.length"),
        ("rfc5280::nc::permitted-ip-mismatch", "pki.path.name"),
        ("rfc5280::validity::expired-intermediate", "pki.path.expired"),
        ("rfc5280::chain-untrusted-root", "pki.path.untrusted"),
        ("webpki::forbidden-weak-rsa-in-leaf", "pki.path.key"),
        ("webpki::explicit-curve", "pki.path.key"),
        ("rfc5280::eku::ee-wrong-eku", "pki.path.usage"),
        ("crl::revoked-certificate-with-crl", "pki.certificate.revoked"),
    ],
)
def test_a_refusal_says_why(verdicts, case, code):
    assert verdicts[case] == ("FAILURE", code)
