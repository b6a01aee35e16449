"""A key's copy on a second token, never in the clear on the way.

Touches: both tokens, each alone in its module.
"""

from __future__ import annotations

import contextlib
from typing import Any

from tidegate.base.errors import Fault
from tidegate.keys import pkcs11_transfer as transfer
from tidegate.keys.pkcs11 import Pkcs11KeyStore
from tidegate.keys.pkcs11_objects import TokenKey
from tidegate.keys.pkcs11_session import pkcs11
from tidegate.keys.store import KeyInfo, KeyPurpose


def backup_key(source: Pkcs11KeyStore, name: str, target: Pkcs11KeyStore) -> KeyInfo:
    """Return the key as it is on ``target`` now too, with its certificates; it was never in the clear on the way.

    The target makes an RSA-3072 key for this one transfer, the source an AES-256 key that wraps ``name`` (AES-KWP,
    RFC 5649) and is itself wrapped for the target (RSA-OAEP with SHA-1, the only one that SoftHSM has; OAEP does not
    need the hash to be collision resistant). All three end with it. The restored key is kept only after it signed (or
    opened what the source sealed). Raises ``keys.key.not-exportable``, ``keys.key.exists``, ``keys.key.missing``.
    """
    info, key = source.use(lambda session: _described(source, session, name))
    transfer.require_exportable(key)
    target.capabilities().require(info.spec)
    probe = transfer.Probe(context=b"tidegate backup", sealed=b"", secret=target.random(32))
    if info.public_key is None:
        probe = transfer.Probe(probe.context, source.seal(name, probe.secret, probe.context), probe.secret)
    with contextlib.ExitStack() as ends:
        modulus, unwrapping = target.use(lambda session: _begin(target, session, name))
        ends.callback(_end, target, unwrapping)
        sent = source.use(lambda session: transfer.wrap_for(session, source.find(session, name), modulus))

        def receive(session: pkcs11.Session) -> KeyInfo:
            with transfer.received_wrapping_key(unwrapping, sent) as aes:
                wrapped = transfer.Wrapped(aes, sent.key, probe)
                return target.restore(session, name, info.spec, info.public_key, wrapped)

        restored = target.use(receive)
    chain = source.certificates(name)
    if chain:
        target.keep_certificates(name, chain)
    return restored


def _described(store: Pkcs11KeyStore, session: pkcs11.Session, name: str) -> tuple[KeyInfo, TokenKey]:
    key = store.find(session, name)
    public = None if key.purpose is KeyPurpose.SEAL else store.prove(session, key)
    return key.info(public), key


def _begin(target: Pkcs11KeyStore, session: pkcs11.Session, name: str) -> tuple[bytes, Any]:
    target.require_free(session, name)
    return transfer.make_transfer_key(session)


def _end(target: Pkcs11KeyStore, unwrapping: Any) -> None:
    with contextlib.suppress(Fault):  # the session that it lived in is gone, and the key with it
        target.use(lambda _session: unwrapping.destroy())
