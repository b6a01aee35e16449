"""Certificate chains beside keys on a token, as CKO_CERTIFICATE objects.

Touches: the token behind the session. The key's own certificate has the key's CKA_ID and label, as every tool expects;
the others have an identifier made of it, of the whole chain and of their place, so that no tool takes them for it. They
are written before it and removed after it: a power cut leaves a whole chain, the old or the new.
"""

from __future__ import annotations

import hashlib
from typing import Any

from cryptography import x509

from tidegate.keys.errors import CapabilityMissing
from tidegate.keys.pkcs11_objects import Attribute, ObjectClass, Template, TokenKey, attributes_of, search
from tidegate.keys.pkcs11_session import pkcs11

_LEAF_HASH_BYTES = 12
_CHAIN_HASH_BYTES = 8
_ABOUT = [Attribute.ID, Attribute.VALUE]


def replace_chain(session: pkcs11.Session, key: TokenKey, chain: tuple[bytes, ...]) -> None:
    """Keep ``chain`` (DER, the key's own first; empty: none) in place of the one before."""
    if not key.key_id:
        raise CapabilityMissing(f"key {key.label!r} has no CKA_ID that a certificate could carry", key=key.label)
    old = _objects(session, key)
    if chain == _whole_chain(key, old):
        return
    for index, der in reversed(list(enumerate(chain))):
        identifier = key.key_id if index == 0 else _identifier(chain, index)
        label = key.label if index == 0 else f"{key.label} issuer {index}"
        session.create_object(_template(der, label, identifier))
    for handle in (
        *[one for one, id_, _ in old if id_ == key.key_id],
        *[one for one, id_, _ in old if id_ != key.key_id],
    ):
        handle.destroy()


def read_chain(session: pkcs11.Session, key: TokenKey) -> tuple[bytes, ...]:
    """Return the chain kept beside ``key``; empty where there is none."""
    return _whole_chain(key, _objects(session, key)) if key.key_id else ()


def remove_chain(session: pkcs11.Session, key: TokenKey) -> None:
    """Remove the chain, the key's own certificate first."""
    if key.key_id:
        replace_chain(session, key, ())


def _objects(session: pkcs11.Session, key: TokenKey) -> list[tuple[Any, bytes, bytes]]:
    """Return (object, identifier, DER) of every certificate that belongs to ``key``."""
    everything = []
    for handle in search(session, {Attribute.CLASS: ObjectClass.CERTIFICATE, Attribute.TOKEN: True}):
        about = attributes_of(handle, _ABOUT)
        everything.append((handle, about.get(Attribute.ID, b""), about.get(Attribute.VALUE, b"")))
    leaves = [hashlib.sha256(der).digest()[:_LEAF_HASH_BYTES] for _, id_, der in everything if id_ == key.key_id]
    return [
        one
        for one in everything
        if one[1] == key.key_id or (len(one[1]) == _ISSUER_ID_BYTES and one[1][:_LEAF_HASH_BYTES] in leaves)
    ]


def _whole_chain(key: TokenKey, objects: list[tuple[Any, bytes, bytes]]) -> tuple[bytes, ...]:
    by_id = {id_: der for _, id_, der in objects}
    for leaf in (der for _, id_, der in objects if id_ == key.key_id):
        prefix = hashlib.sha256(leaf).digest()[:_LEAF_HASH_BYTES]
        for id_ in by_id:
            if id_ != key.key_id and id_.startswith(prefix):
                count = id_[-2]
                rest = [by_id.get(id_[:-1] + bytes([index])) for index in range(1, count)]
                chain = (leaf, *[der for der in rest if der is not None])
                if len(chain) == count and _identifier(chain, id_[-1]) == id_:
                    return chain
    return next(((der,) for _, id_, der in objects if id_ == key.key_id), ())


def _identifier(chain: tuple[bytes, ...], index: int) -> bytes:
    whole = hashlib.sha256(b"".join(hashlib.sha256(der).digest() for der in chain)).digest()
    leaf = hashlib.sha256(chain[0]).digest()
    return leaf[:_LEAF_HASH_BYTES] + whole[:_CHAIN_HASH_BYTES] + bytes([len(chain), index])


_ISSUER_ID_BYTES = _LEAF_HASH_BYTES + _CHAIN_HASH_BYTES + 2


def _template(der: bytes, label: str, identifier: bytes) -> Template:
    template: Template = {
        Attribute.CLASS: ObjectClass.CERTIFICATE,
        Attribute.CERTIFICATE_TYPE: pkcs11.CertificateType.X_509,
        Attribute.TOKEN: True,
        Attribute.PRIVATE: False,
        Attribute.LABEL: label,
        Attribute.ID: identifier,
        Attribute.VALUE: der,
        Attribute.SUBJECT: b"",
    }
    try:
        certificate = x509.load_der_x509_certificate(der)
        names = (certificate.subject.public_bytes(), certificate.issuer.public_bytes())
    except ValueError:  # whether it is a certificate is not this room's business
        return template
    serial = certificate.serial_number
    length = serial.bit_length() // 8 + 1
    raw = b"\x02" + bytes([length]) + serial.to_bytes(length, "big", signed=True) if length < 128 else b""
    return {**template, Attribute.SUBJECT: names[0], Attribute.ISSUER: names[1], Attribute.SERIAL_NUMBER: raw}
