"""Write events into a chained, signed log, verify it, alter one, see the place named.

Run: python examples/events.py
"""

import tempfile
from pathlib import Path

from tidegate.base.errors import Rejected
from tidegate.crypto.aead import Secret
from tidegate.crypto.signing import SignatureAlgorithm
from tidegate.crypto.trust import TrustPolicy
from tidegate.events import catalogue
from tidegate.events.segments import verify_folder
from tidegate.events.spool import EventLog
from tidegate.keys.software import PassphraseUnlock, SoftwareKeyStore
from tidegate.keys.store import KeyPurpose, KeySpec

with tempfile.TemporaryDirectory() as folder:
    store = SoftwareKeyStore.create(Path(folder) / "keys", PassphraseUnlock(Secret(b"correct horse battery staple")))
    store.generate("events", KeySpec(purpose=KeyPurpose.SIGN, algorithm=SignatureAlgorithm.ED25519))
    trust = TrustPolicy(keys=(store.public_key("events"),), threshold=1, required_classes=frozenset())
    path = Path(folder) / "events"

    with EventLog(path, device_id="gateway-0001", boot_id="boot-1", signer=store.signer("events")) as log:
        log.append(catalogue.agent_started())
        log.append(catalogue.firewall_banned(address="192.0.2.66", duration_s=600, reason="scan.syn"))
        log.append(catalogue.agent_stopped(reason="end of the example"))
    print(f"{verify_folder(path, trust).signed} events are whole, in order and signed")

    segment = next(path.glob("*.events"))
    segment.write_bytes(segment.read_bytes().replace(b"192.0.2.66", b"192.0.2.99"))
    try:
        verify_folder(path, trust)
    except Rejected as error:
        print("refused:", error.message, f"[{error.code}]")
