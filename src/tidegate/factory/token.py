"""Holds a ceremony on real tokens: generate, back up, divide the PIN, prove that it works, write it all down.

Touches: the tokens of the plan, one new folder.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from tidegate import __version__
from tidegate.base.clock import Clock, Entropy
from tidegate.base.durable import translate_os_errors, write_file_new
from tidegate.base.errors import StorageFailed, TidegateError
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
from tidegate.factory.shares import NEW_PASSPHRASE, ShareHead, divide, join, make_pin, pin_of, seal_share
from tidegate.keys.pkcs11 import Pkcs11KeyStore, open_uri
from tidegate.keys.pkcs11_backup import backup_key
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
    with ExitStack() as closing:
        tokens = _open_tokens(_token_uris(plan), folder, room, closing)  # 1
        division = _make(plan, tokens, folder, room)  # 2 to 4
        return _hand_over(plan, tokens, division, room, started_s)  # 5 to 7


def _make(plan: CeremonyPlan, tokens: _Tokens, folder: Path, room: CeremonyRoom) -> _Division:
    made: list[tuple[str, str]] = []
    try:
        for key in plan.keys:
            tokens.stores["first"].capabilities().require(_spec(plan, key.name))
        for key in plan.keys:  # 2
            _generate(plan, tokens, key.name, room)
            made.append(("first", key.name))
        for key in plan.keys:  # 3
            if key.backup:
                _back_up(tokens, key.name, room)
                made.append(("backup", key.name))
        return _divide(plan, folder, room)  # 4
    except BaseException:  # also Ctrl-C where an operator is asked for a passphrase
        _take_back(tokens, made, room)
        raise


def renew_shares(plan: CeremonyPlan, folder: Path, room: CeremonyRoom) -> Transcript:
    """Give the tokens of an earlier ceremony a new PIN, divided among the operators of ``plan``; the keys stay.

    For an operator who left, or a share that was lost. ``room.ask`` gives the present PIN. The old shares are worth
    nothing afterwards. Raises as ``hold_ceremony`` does, and ``keys.key.missing`` for a key that is not there.
    """
    started_s = int(room.clock.now_s())
    uris = {role: _without_pin(uri) for role, uri in _token_uris(plan).items()}
    with ExitStack() as closing:
        tokens = _open_tokens(uris, folder, room, closing)
        for key in plan.keys:
            tokens.stores["first"].public_key(key.name)
        return _hand_over(plan, tokens, _divide(plan, folder, room), room, started_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Division:
    """A new PIN, its shares in words and as the files that were written."""

    ceremony: str
    folder: Path
    pin: Secret
    words: list[Secret]
    shares: dict[str, bytes]


def _divide(plan: CeremonyPlan, folder: Path, room: CeremonyRoom) -> _Division:
    """Write the shares of a new PIN into ``folder``, before any token takes it: a cut in between locks nobody out."""
    ceremony = room.entropy.random_bytes(8).hex()
    heads = [_head(plan, ceremony, operator) for operator in plan.operators]
    secret, pin = make_pin(room.entropy, plan.pin_letters)
    with secret:
        words = divide(secret, heads)
    shares = {}
    for head, one in zip(heads, words, strict=True):
        with room.ask(f"{NEW_PASSPHRASE} {head.operator}") as passphrase:
            shares[head.operator] = seal_share(head, one, passphrase, room.entropy)
    with translate_os_errors(folder):
        folder.mkdir(mode=0o700)
        for operator, share in shares.items():
            write_file_new(folder / share_name(operator), share, mode=0o600)
    return _Division(ceremony=ceremony, folder=folder, pin=pin, words=words, shares=shares)


def _hand_over(
    plan: CeremonyPlan, tokens: _Tokens, division: _Division, room: CeremonyRoom, started_s: int
) -> Transcript:
    for role, store in tokens.stores.items():
        store.change_pin(division.pin)
        room.tell(f"the {role} token has a new PIN that nobody has seen")
        store.close()
    with join(division.words[-plan.threshold :]) as secret, pin_of(secret, plan.pin_letters) as pin:
        keys, raw = _prove(plan, tokens, pin, _Story(division.ceremony, started_s, division.shares), room)
    for record in keys:
        write_file_new(division.folder / f"{record.name}.pub", record.public_key.encode(), mode=0o644)
    write_file_new(division.folder / TRANSCRIPT, raw, mode=0o644)
    room.tell(f"wrote {division.folder}")
    for one in (division.pin, *division.words):
        one.wipe()
    return verify_transcript(raw).transcript


@dataclass(frozen=True, slots=True)
class _Story:
    ceremony: str
    started_s: int
    shares: dict[str, bytes]


def _token_uris(plan: CeremonyPlan) -> dict[str, KeyUri]:
    texts = {"first": plan.token} | ({"backup": plan.backup_token} if plan.backup_token else {})
    return {role: parse_key_uri(text) for role, text in texts.items()}


def _open_tokens(uris: dict[str, KeyUri], folder: Path, room: CeremonyRoom, closing: ExitStack) -> _Tokens:
    """Open the tokens, until ``closing`` ends, if there is nothing in the place where the shares are to go."""
    if folder.exists():
        raise StorageFailed(f"{folder} exists: name a new folder", path=str(folder))
    stores = {}
    for role, uri in uris.items():
        stores[role] = open_uri(uri, create=False, ask=room.ask)
        closing.callback(stores[role].close)
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


def _back_up(tokens: _Tokens, name: str, room: CeremonyRoom) -> None:
    backup_key(tokens.stores["first"], name, tokens.stores["backup"])
    room.tell(f"key {name}: wrapped, restored in the backup token, the same public key signs there")


def _take_back(tokens: _Tokens, made: list[tuple[str, str]], room: CeremonyRoom) -> None:
    """Destroy what this ceremony made, where it made it: a key of the same name that was there before stays."""
    for role, name in made:
        try:
            tokens.stores[role].destroy(name)
        except TidegateError as error:
            room.tell(f"key {name} is still in the {role} token: {error.message} [{error.code}]")
    for store in tokens.stores.values():
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
