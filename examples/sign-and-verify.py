"""Sign a document with two keys and verify it: COSE_Sign, both classes of algorithm required.

Run: python examples/sign-and-verify.py
"""

import tempfile
from pathlib import Path

from tidegate.base.errors import Rejected
from tidegate.crypto.aead import Secret
from tidegate.crypto.cose import sign_envelope, verify_envelope
from tidegate.crypto.signing import parse_algorithm
from tidegate.crypto.trust import hybrid_trust
from tidegate.keys.software import PassphraseUnlock, SoftwareKeyStore
from tidegate.keys.store import KeyPurpose, KeySpec

ROLE = "example.greeting.v1"

with tempfile.TemporaryDirectory() as folder:
    store = SoftwareKeyStore.create(Path(folder) / "keys", PassphraseUnlock(Secret(b"correct horse battery staple")))
    for name in ("ed25519", "ml-dsa-65"):
        store.generate(name, KeySpec(purpose=KeyPurpose.SIGN, algorithm=parse_algorithm(name)))
    signers = [store.signer("ed25519"), store.signer("ml-dsa-65")]
    trust = hybrid_trust(signer.public_key for signer in signers)

    envelope = sign_envelope(ROLE, b"the tide is out", signers)
    print("verified:", verify_envelope(envelope, context=ROLE, trust=trust).payload.decode())

    attacks = {
        "altered": envelope.replace(b"tide is out", b"tide is in!"),
        "one signature only": sign_envelope(ROLE, b"the tide is out", signers[:1]),
        "signed for another role": sign_envelope("example.farewell.v1", b"the tide is out", signers),
    }
    for what, attack in attacks.items():
        try:
            verify_envelope(attack, context=ROLE, trust=trust)
        except Rejected as error:
            print(f"refused ({what}): {error.code}")
