"""Key drills: a ceremony and the bad days after it, played on software tokens with the code that real tokens get.

Touches: a temporary folder with SoftHSM tokens, gone at the end. Every claim goes through ``require``.
"""

from __future__ import annotations

import datetime
import secrets
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from tidegate.base.clock import SystemClock, SystemEntropy
from tidegate.base.durable import read_file_bounded
from tidegate.base.errors import TidegateError
from tidegate.crypto.aead import Secret
from tidegate.crypto.cose import MAX_ENVELOPE_BYTES, sign_envelope, verify_envelope
from tidegate.crypto.signing import PublicKey, SignatureAlgorithm, Signer
from tidegate.crypto.trust import TrustPolicy
from tidegate.demo.report import require
from tidegate.factory.ceremony import CeremonyPlan, KeyPlan, Transcript, share_name, verify_transcript
from tidegate.factory.shares import MAX_SHARE_BYTES, join, open_share, pin_of
from tidegate.factory.token import TRANSCRIPT, CeremonyRoom, hold_ceremony, renew_shares
from tidegate.keys.pkcs11 import Pkcs11KeyStore, open_uri
from tidegate.keys.store import KeyPurpose, KeySpec
from tidegate.keys.uri import parse_key_uri
from tidegate.pki.authority import Authority, Grant
from tidegate.pki.ca_store import CaStore, Reason
from tidegate.pki.profiles import PROFILES, SERIAL_BYTES, Order, Subject, draw_serial, sign_certificate
from tidegate.pki.revocation import verify_crl
from tidegate.testing.tokens import SoftHsm

ROLE = "tidegate.drill.v1"
MESSAGE = b"release 1.0.0"
OPERATORS = ("Alice", "Bob", "Carol")
THRESHOLD = 2
LETTERS = 16

Tell = Callable[[str], None]


def run_drills(names: Sequence[str], tell: Tell) -> list[str]:
    """Play the drills called ``names`` (ceremony, rotation, revocation, loss); return the steps that held.

    Raises ``demo.step.failed`` at the first that does not, ``base.program.missing`` without SoftHSM.
    """
    steps: list[str] = []

    def held(step: str) -> None:
        steps.append(step)
        tell(f"  ok  {step}")

    with tempfile.TemporaryDirectory(prefix="tidegate-drill-") as folder, SoftHsm(Path(folder) / "hsm") as hsm:
        maker = Maker(hsm, Path(folder) / "ceremony")
        tell("a ceremony: two tokens, three operators, two of them needed")
        maker.hold(held)
        for name in names:
            if name != "ceremony":
                tell(name)
            _DRILLS[name](maker, held)
    return steps


class Maker:
    """A maker with two tokens, three operators with a passphrase each, and what the ceremony gave them."""

    def __init__(self, hsm: SoftHsm, folder: Path) -> None:
        self.hsm, self.folder = hsm, folder
        self.passphrases = {name: secrets.token_hex(8).encode() for name in OPERATORS}
        pins = {label: hsm.make_token(label) for label in ("maker", "backup")}
        uris = {label: f"pkcs11:token={label}?module-path={hsm.module}" for label in pins}
        self.plan = CeremonyPlan(
            maker="Drill",
            token=f"{uris['maker']}&pin-source={pins['maker']}",
            backup_token=f"{uris['backup']}&pin-source={pins['backup']}",
            threshold=THRESHOLD,
            operators=OPERATORS,
            pin_letters=LETTERS,
            keys=(
                KeyPlan(name="release", algorithm="ecdsa-p384", backup=True),
                KeyPlan(name="policy", algorithm="ecdsa-p256", backup=True),
            ),
        )

    def room(self, pin: Secret | None = None) -> CeremonyRoom:
        """Return the room with everybody in it; ``pin`` is what the tokens open with now."""

        def ask(what: str) -> Secret:
            for name, passphrase in self.passphrases.items():
                if what.endswith(name):
                    return Secret(passphrase)
            require(pin is not None, f"nobody knows {what}")
            return Secret(bytes(pin.view() if pin else b""))

        return CeremonyRoom(ask=ask, tell=lambda _: None, clock=SystemClock(), entropy=SystemEntropy())

    def hold(self, held: Callable[[str], None]) -> None:
        """Hold the ceremony."""
        done = hold_ceremony(self.plan, self.folder, self.room())
        keys = ", ".join(f"{key.name} ({key.public_key.algorithm.label})" for key in done.keys)
        held(f"keys made inside the first token, restored in the second, PIN divided: {keys}")

    @property
    def transcript(self) -> Transcript:
        """Return the verified transcript."""
        return verify_transcript(read_file_bounded(self.folder / TRANSCRIPT, limit_bytes=MAX_ENVELOPE_BYTES)).transcript

    def public(self, name: str) -> PublicKey:
        """Return a key of the transcript."""
        (key,) = [key for key in self.transcript.keys if key.name == name]
        return key.public_key

    def pin(self, *operators: str, folder: Path | None = None) -> Secret:
        """Return the PIN that these operators' shares make."""
        words = []
        for name in operators:
            raw = read_file_bounded((folder or self.folder) / share_name(name), limit_bytes=MAX_SHARE_BYTES)
            words.append(open_share(raw, Secret(self.passphrases[name]))[1])
        return pin_of(join(words), LETTERS)

    def open(self, label: str, pin: Secret) -> Pkcs11KeyStore:
        """Open a token."""
        uri = parse_key_uri(f"pkcs11:token={label}?module-path={self.hsm.module}")
        return open_uri(uri, create=False, ask=lambda _: Secret(bytes(pin.view())))


def _drill_ceremony(maker: Maker, held: Callable[[str], None]) -> None:
    told = maker.transcript
    require([key.name for key in told.keys] == ["release", "policy"], "the transcript lists other keys")
    held(f"the transcript verifies: signed by {', '.join(str(key.public_key.key_id) for key in told.keys)}")
    raw = bytearray((maker.folder / TRANSCRIPT).read_bytes())
    raw[len(raw) // 3] ^= 1
    _refused(lambda: verify_transcript(bytes(raw)), "", held, "an altered transcript is refused")
    _refused(lambda: maker.pin("Bob"), "factory.shares.insufficient", held, "one operator alone does not get the PIN")
    share = (maker.folder / share_name("Alice")).read_bytes()
    wrong = Secret(maker.passphrases["Bob"])
    _refused(lambda: open_share(share, wrong), "factory.share.refused", held, "Bob does not open Alice's share")
    _refused(
        lambda: maker.open("maker", Secret(b"258036")), "keys.pin.refused", held, "the token's first PIN opens nothing"
    )
    for pair in (("Alice", "Bob"), ("Bob", "Carol"), ("Alice", "Carol")):
        store = maker.open("maker", maker.pin(*pair))
        _require_signs(store, "release", maker.public("release"))
        store.close()
    held("any two of the three open the token and sign")
    folder = maker.folder.with_name("reshared")
    renew_shares(maker.plan, folder, maker.room(maker.pin("Alice", "Carol")))
    old = maker.pin("Alice", "Bob")
    _refused(lambda: maker.open("maker", old), "keys.pin.refused", held, "after a reshare the old shares open nothing")
    maker.folder = folder
    store = maker.open("maker", maker.pin("Alice", "Bob"))
    _require_signs(store, "release", maker.public("release"))
    store.close()
    held("the new shares do, and the keys are the same")


def _drill_rotation(maker: Maker, held: Callable[[str], None]) -> None:
    store = maker.open("maker", maker.pin("Alice", "Bob"))
    spec = KeySpec(purpose=KeyPurpose.SIGN, algorithm=SignatureAlgorithm.ECDSA_P384)
    store.generate("release-2", spec)
    old, new = store.signer("release"), store.signer("release-2")
    before, between, after = (
        _trust(*keys) for keys in ((old.public_key,), (old.public_key, new.public_key), (new.public_key,))
    )
    first, both, last = (sign_envelope(ROLE, MESSAGE, signers) for signers in ([old], [old, new], [new]))
    for raw, trust in ((first, before), (first, between), (last, between), (both, between), (last, after)):
        verify_envelope(raw, context=ROLE, trust=trust)
    held("devices with the old anchors, with both, and with the new ones accept what is meant for them")
    unknown = "crypto.signature.unknown-key"
    _refused(lambda: verify_envelope(last, context=ROLE, trust=before), unknown, held, "old anchors refuse the new key")
    _refused(lambda: verify_envelope(first, context=ROLE, trust=after), unknown, held, "new anchors refuse the old key")
    store.destroy("release-2")
    _refused(lambda: store.signer("release-2"), "keys.key.missing", held, "a destroyed key does not sign any more")
    store.close()


def _drill_revocation(maker: Maker, held: Callable[[str], None]) -> None:
    store = maker.open("maker", maker.pin("Bob", "Carol"))
    release, policy = (store.signer(name) for name in ("release", "policy"))
    raw = sign_envelope(ROLE, MESSAGE, [release])
    verify_envelope(raw, context=ROLE, trust=_trust(release.public_key, policy.public_key))
    _refused(
        lambda: verify_envelope(raw, context=ROLE, trust=_trust(policy.public_key)),
        "crypto.signature.unknown-key",
        held,
        "anchors without the key refuse what it signs",
    )
    _revoke_certificate(maker, policy, release.public_key, held)
    store.close()


def _revoke_certificate(maker: Maker, signer: Signer, public: PublicKey, held: Callable[[str], None]) -> None:
    """Certify the release key, take the certificate back, and judge it by the list that says so."""
    clock, entropy = SystemClock(), SystemEntropy()
    now = datetime.datetime.fromtimestamp(int(clock.now_s()), tz=datetime.UTC)
    root = Order(
        profile=PROFILES["root-ca"],
        subject=Subject(organization="Drill", common_name="Drill root"),
        public_key=signer.public_key,
        now=now,
        serial=draw_serial(entropy.random_bytes(SERIAL_BYTES)),
    )
    ca = sign_certificate(root, None, signer)
    with CaStore(maker.folder.with_name("ca"), create=True) as store:
        authority = Authority([ca], signer, store, clock=clock, entropy=entropy, report=lambda _: None)
        subject = Subject(organization="Drill", common_name="release")
        granted = authority.issue(Grant(profile=PROFILES["code-signing"], subject=subject, public_key=public))
        verify_crl(authority.crl(), issuer=ca, now=now).require_good(granted)
        authority.revoke(granted.serial_number, Reason.KEY_COMPROMISE)
        listed = verify_crl(authority.crl(), issuer=ca, now=now)
    step = "its certificate is in the next list, and refused"
    _refused(lambda: listed.require_good(granted), "pki.certificate.revoked", held, step)


def _drill_loss(maker: Maker, held: Callable[[str], None]) -> None:
    pin, public = maker.pin("Alice", "Carol"), maker.public("release")
    first = maker.open("maker", pin)
    for name in ("release", "policy"):
        first.destroy(name)
    _refused(lambda: first.signer("release"), "keys.key.missing", held, "the first token has lost its keys")
    first.close()
    backup = maker.open("backup", pin)
    raw = sign_envelope(ROLE, MESSAGE, [backup.signer("release")])
    verify_envelope(raw, context=ROLE, trust=_trust(public))
    backup.close()
    held("the backup signs, and the anchors in the field accept it")


_DRILLS: dict[str, Callable[[Maker, Callable[[str], None]], None]] = {
    "ceremony": _drill_ceremony,
    "rotation": _drill_rotation,
    "revocation": _drill_revocation,
    "loss": _drill_loss,
}


def _trust(*keys: PublicKey) -> TrustPolicy:
    return TrustPolicy(keys=keys, threshold=1, required_classes=frozenset())


def _require_signs(store: Pkcs11KeyStore, name: str, public: PublicKey) -> None:
    message = datetime.datetime.now(tz=datetime.UTC).isoformat().encode()
    public.verify(store.signer(name).sign(message), message)


def _refused(call: Callable[[], object], code: str, held: Callable[[str], None], step: str) -> None:
    """Require that ``call`` is refused, with ``code`` if one is named."""
    try:
        call()
    except TidegateError as error:
        require(code in {"", error.code}, f"{step}: refused as {error.code}, not as {code}")
        held(f"{step} [{error.code}]")
        return
    require(condition=False, complaint=f"{step}: it was accepted")
