"""Mutual TLS with keys that stay in their store: swap the store's URI for a token's or a TPM's, nothing else changes.

Run: python examples/tls-hardware-key.py
"""

import secrets
import socket
import tempfile
import threading
from pathlib import Path

from tidegate.crypto.signing import SignatureAlgorithm
from tidegate.keys.store import KeyPurpose, KeySpec
from tidegate.keys.uri import open_store, parse_key_uri
from tidegate.testing.certificates import Authority, CountingSigner
from tidegate.tls.context import client_context, server_context

with tempfile.TemporaryDirectory() as folder:
    (Path(folder) / "secret").touch(mode=0o600)
    (Path(folder) / "secret").write_bytes(secrets.token_bytes(32))
    store = open_store(parse_key_uri(f"file:{folder}/keys?device-secret={folder}/secret"), create=True)
    ca = Authority()  # a test CA: the pki room has real ones
    for name in ("server", "client"):
        store.generate(name, KeySpec(purpose=KeyPurpose.SIGN, algorithm=SignatureAlgorithm.ECDSA_P256))
    keys = {name: CountingSigner(store.signer(name)) for name in ("server", "client")}
    chains = {name: [ca.issue(keys[name].public_key, "localhost")] for name in keys}
    server = server_context(keys["server"], chains["server"], clients=[ca.der])
    client = client_context(keys["client"], chains["client"], anchors=[ca.der])

    def welcome(raw: socket.socket) -> None:
        with server.wrap_socket(raw, server_side=True) as stream:
            stream.sendall(b"welcome")

    here, there = socket.socketpair()
    threading.Thread(target=welcome, args=[there]).start()
    with client.wrap_socket(here, server_hostname="localhost") as stream:
        print(stream.version(), stream.recv(16).decode())
    print("signed inside the store:", {name: key.signatures for name, key in keys.items()})
