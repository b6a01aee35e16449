"""Holds a ceremony on real tokens: generate, back up, divide the PIN, prove that it works, write it all down.

Touches: the tokens of the plan, one new folder.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tidegate import __version__
from tidegate.base.clock import Clock, Entropy
from tidegate.base.durable import translate_os_errors, write_file_new
from tidegate.base.errors import TidegateError
from tidegate.crypto.aead import Secret
from tidegate.crypto.signing import PublicKey, parse_algorithm
from tidegate.factory.ceremony import (
    CeremonyPlan,
    KeyRecord,
    Transcript,
    share_name,
    sign_transcript,
    verify_transcript,
)
from tidegate.factory.errors import CeremonyProofFailed
from tidegate.factory.shares import ShareHead, divide, join, make_pin, pin_of, seal_share
from tidegate.keys.pkcs11 import Pkcs11KeyStore, backup_key, open_uri
from tidegate.keys.store import AskPin, KeyPolicy, KeyPurpose, KeySpec
from tidegate.keys.uri import KeyUri, parse_key_uri

TRANSCRIPT = "transcript.cose"


@dataclass(frozen=True, slots=True, kw_only=True)
class CeremonyRoom:
    """Who is there: ``ask`` gets the tokens' PINs and the operators' passphrases, ``tell`` says what is done."""

    ask: AskPin
    tell: Callable[[str], None]
    clock: Clock
    entropy: Entropy


@dataclass(frozen=True, slots=True, kw_only=True)
class _Tokens:
    """The open tokens by role, the first one being where the keys are born."""

    uris: dict[str, KeyUri]
    stores: dict[str, Pkcs11KeyStore]


def hold_ceremony(plan: CeremonyPlan, folder: Path, room: CeremonyRoom) -> Transcript:
    """Do what ``plan`` says and return the transcript; ``folder`` (new, mode 700) has all that people take home.

    Duties, in this order:
    1. the tokens are there, open with the PINs they have now, and can do what the plan asks;
    2. every key is generated inside the first token;
    3. each key of which the plan wants one gets a backup in the second token, wrapped on its way;
    4. a new PIN is divided among the operators, each share sealed under its operator's passphrase and written;
    5. the tokens take the new PIN, which nobody has ever seen;
    6. proof: the PIN joined from ``threshold`` shares opens the tokens, each key and each backup signs;
    7. public keys and the transcript are written.

    Raises ``keys.*``, ``base.storage.*``, ``factory.ceremony.proof``, ``factory.shares.unavailable``; keys that were
    made are destroyed again when a step before 5 fails.
    """
    started_s = int(room.clock.now_s())
    with translate_os_errors(folder):
        folder.mkdir(mode=0o700)
    tokens = _open_tokens(plan, room)  # 1
    made = []
    try:
        for key in plan.keys:  # 2
            made.append(key.name)
            _generate(plan, tokens, key.name, room)
        _back_up(plan, tokens, room)  # 3
        ceremony = room.entropy.random_bytes(8).hex()
        heads = [_head(plan, ceremony, operator) for operator in plan.operators]
        secret, pin = make_pin(room.entropy, plan.pin_letters)  # 4
        words = divide(secret, heads)
        shares = {
            head.operator: seal_share(
                head, one, room.ask(f"a passphrase for the share of {head.operator}"), room.entropy
            )
            for head, one in zip(heads, words, strict=True)
        }
        for operator, share in shares.items():
            write_file_new(folder / share_name(operator), share, mode=0o600)
    except TidegateError:
        _take_back(tokens, made)
        shutil.rmtree(folder)
        raise
    for role, store in tokens.stores.items():  # 5
        store.change_pin(pin)
        room.tell(f"the {role} token has a new PIN that nobody has seen")
        store.close()
    joined = join(words[-plan.threshold :])  # 6
    keys, raw = _prove(plan, tokens, pin_of(joined, plan.pin_letters), _Story(ceremony, started_s, shares), room)
    for record in keys:  # 7
        write_file_new(folder / f"{record.name}.pub", record.public_key.encode(), mode=0o644)
    write_file_new(folder / TRANSCRIPT, raw, mode=0o644)
    room.tell(f"wrote {folder}")
    for one in (secret, pin, joined, *words):
        one.wipe()
    return verify_transcript(raw).transcript


@dataclass(frozen=True, slots=True)
class _Story:
    ceremony: str
    started_s: int
    shares: dict[str, bytes]


def _open_tokens(plan: CeremonyPlan, room: CeremonyRoom) -> _Tokens:
    texts = {"first": plan.token} | ({"backup": plan.backup_token} if plan.backup_token else {})
    uris = {role: parse_key_uri(text) for role, text in texts.items()}
    stores = {role: open_uri(uri, create=False, ask=room.ask) for role, uri in uris.items()}
    for key in plan.keys:
        stores["first"].capabilities().require(_spec(plan, key.name))
    for role, store in stores.items():
        room.tell(f"{role} token: " + ", ".join(f"{name} {text}" for name, text in store.describe().items()))
    return _Tokens(uris=uris, stores=stores)


def _spec(plan: CeremonyPlan, name: str) -> KeySpec:
    (key,) = [key for key in plan.keys if key.name == name]
    return KeySpec(
        purpose=KeyPurpose.SIGN,
        algorithm=parse_algorithm(key.algorithm),
        policy=KeyPolicy(exportable=key.backup),
    )


def _generate(plan: CeremonyPlan, tokens: _Tokens, name: str, room: CeremonyRoom) -> None:
    info = tokens.stores["first"].generate(name, _spec(plan, name))
    if info.public_key is not None:
        room.tell(f"key {name}: {info.public_key.algorithm.label}, key id {info.public_key.key_id}")


def _back_up(plan: CeremonyPlan, tokens: _Tokens, room: CeremonyRoom) -> None:
    for key in plan.keys:
        if key.backup:
            backup_key(tokens.stores["first"], key.name, tokens.stores["backup"])
            room.tell(f"key {key.name}: wrapped, restored in the backup token, the same public key signs there")


def _take_back(tokens: _Tokens, made: list[str]) -> None:
    for store in tokens.stores.values():
        present = {info.name for info in store.list_keys()}
        for name in present.intersection(made):
            store.destroy(name)
        store.close()


def _head(plan: CeremonyPlan, ceremony: str, operator: str) -> ShareHead:
    return ShareHead(
        ceremony=ceremony,
        operator=operator,
        threshold=plan.threshold,
        shares=len(plan.operators),
        letters=plan.pin_letters,
    )


def _prove(
    plan: CeremonyPlan, tokens: _Tokens, pin: Secret, story: _Story, room: CeremonyRoom
) -> tuple[tuple[KeyRecord, ...], bytes]:
    """Open both tokens with the joined PIN, have every key sign, and return the records and the signed transcript."""
    stores = {
        role: open_uri(_without_pin(uri), create=False, ask=lambda _: Secret(pin.view().tobytes()))
        for role, uri in tokens.uris.items()
    }
    keys = []
    for key in plan.keys:
        public = stores["first"].public_key(key.name)
        challenge = room.entropy.random_bytes(32)
        for role in ("first", "backup") if key.backup else ("first",):
            _require_same(public, stores[role].public_key(key.name), key.name)
            public.verify(stores[role].signer(key.name).sign(challenge), challenge)
        keys.append(KeyRecord(name=key.name, public_key=public, is_backed_up=key.backup))
    room.tell(f"the PIN joined from {plan.threshold} shares opens the tokens, and every key signs")
    transcript = Transcript(
        ceremony=story.ceremony,
        maker=plan.maker,
        place=plan.place,
        started_s=story.started_s,
        ended_s=int(room.clock.now_s()),
        version=__version__,
        threshold=plan.threshold,
        shares={operator: hashlib.sha256(raw).digest() for operator, raw in story.shares.items()},
        tokens={role: store.describe() for role, store in stores.items()},
        keys=tuple(keys),
    )
    raw = sign_transcript(transcript, [stores["first"].signer(key.name) for key in keys])
    for store in stores.values():
        store.close()
    return tuple(keys), raw


def _require_same(public: PublicKey, other: PublicKey, name: str) -> None:
    if public != other:
        raise CeremonyProofFailed(f"the backup of key {name} is another key", key=name)


def _without_pin(uri: KeyUri) -> KeyUri:
    """Return the URI without where the old PIN came from."""
    options = {option: value for option, value in uri.options.items() if option != "pin-source"}
    return KeyUri(scheme=uri.scheme, location=uri.location, name=uri.name, options=options)
