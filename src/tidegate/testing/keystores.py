"""The conformance suite of key providers: whoever adds one file to ``keys`` (or an entry point) runs it against it.

From pytest: subclass ``KeyStoreConformance``, override ``make_store`` and ``reopen``. From the command line:
``tidegate keys selftest URI``, which calls ``run_conformance``. A test that does not apply raises ``SkipTest``.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from unittest import SkipTest

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, mldsa, rsa

from tidegate.base.errors import TidegateError
from tidegate.crypto.errors import SignatureInvalid
from tidegate.crypto.signing import PublicKey, SignatureAlgorithm
from tidegate.keys.errors import CapabilityMissing
from tidegate.keys.store import (
    MAX_CERTIFICATE_BYTES,
    MAX_CERTIFICATES,
    MAX_RANDOM_BYTES,
    Capabilities,
    KeyPolicy,
    KeyPurpose,
    KeySpec,
    KeyStore,
    PcrAuthority,
)
from tidegate.testing.errors import ConformanceFailed

PREFIX = "selftest-"
THREADS = 8
_ROUNDS = 4  # of work in each thread: enough to make SoftHSM 2.6.1 crash when it is not serialised
_NAMES = ("", ".", "..", "../x", "a/b", "a\0b", "-a", "_a", "A", "a b", "a\n", "\u00e4", "a" * 65)
_SPEED = (SignatureAlgorithm.ECDSA_P256, SignatureAlgorithm.ED25519)  # what every provider makes fast, if it has it


class KeyStoreConformance:
    """What every provider of keys has to do.

    Each test makes its own keys; ``made`` lists their names, for who has to clean up.
    """

    counter = "selftest-counter"  # one name for ever: a TPM's counters wear, and no provider forgets one

    def make_store(self) -> KeyStore:
        """Return an open store of the provider; a key name of an earlier call may not be in it any more."""
        raise NotImplementedError

    def reopen(self, store: KeyStore) -> KeyStore:
        """Return the same store opened once more, as another process would."""
        raise NotImplementedError

    def reopen_with_key_pin(self, store: KeyStore, pin: bytes) -> KeyStore:  # noqa: ARG002  # for who can
        """Return ``store`` opened so that it is ``pin`` where it asks for the PIN of a ``user_auth`` key."""
        raise SkipTest("the suite was not told how this provider gets a key's PIN")

    def extend_pcr(self, pcr: int) -> None:  # noqa: ARG002  # for who can
        """Change a register of the platform."""
        raise SkipTest("the suite was not told how to extend a PCR")

    # ---- capabilities ----------------------------------------------------------------------------------------

    def test_what_it_cannot_do_is_refused_before_anything_is_made(self) -> None:
        store = self.make_store()
        able, before = store.capabilities(), _names(store)
        wanted = [KeySpec(purpose=KeyPurpose.SIGN, algorithm=one) for one in SignatureAlgorithm]
        some = next(iter(sorted(able.algorithms)), SignatureAlgorithm.ECDSA_P256)
        wanted += [
            KeySpec(purpose=KeyPurpose.SEAL),
            KeySpec(purpose=KeyPurpose.ATTEST, algorithm=some),
            *(
                KeySpec(purpose=KeyPurpose.SIGN, algorithm=some, policy=policy)
                for policy in (
                    KeyPolicy(exportable=True),
                    KeyPolicy(pcrs=frozenset({0})),
                    KeyPolicy(user_auth=True),
                    KeyPolicy(pcrs=frozenset({0}), pcr_authority=_authority()),
                    KeyPolicy(revocable=True),
                )
            ),
        ]
        for spec in wanted:
            if _lacks(able, spec):
                with refused("keys.capability.missing"):
                    store.generate(self._name(), spec)
        if not able.can_count:
            with refused("keys.capability.missing"):
                store.counter_increment(self.counter)
        if not able.can_quote:
            with refused("keys.capability.missing"):
                store.quote(self._name(), bytes(16), frozenset({0}))
        if not able.can_seal:
            with refused("keys.capability.missing", "keys.key.missing"):
                store.seal(self._name(), b"x", b"")
        if not able.can_export:
            with refused("keys.capability.missing"):
                spec = KeySpec(purpose=KeyPurpose.SIGN, algorithm=some, policy=KeyPolicy(exportable=True))
                store.import_key(self._name(), _pkcs8(ec.generate_private_key(ec.SECP256R1())), spec)
        must(_names(store) == before, "a refused request left a key behind")

    def test_it_says_who_it_is(self) -> None:
        able = self.make_store().capabilities()
        must(bool(able.provider), "a provider has a name")
        must(able.can_count or not able.counter_resists_rollback, "no counter, so none that resists rollback")
        must(bool(able.algorithms) or able.can_seal, "a provider that neither signs nor seals")
        must(able.can_quote or not able.can_bind_pcrs, "bound to PCRs that cannot be shown")

    # ---- keys that sign --------------------------------------------------------------------------------------

    def test_every_algorithm_signs_and_survives(self) -> None:
        store = self.make_store()
        for algorithm in sorted(store.capabilities().algorithms):
            info = store.generate(self._name(), KeySpec(purpose=KeyPurpose.SIGN, algorithm=algorithm))
            public = info.public_key
            if public is None:
                raise ConformanceFailed(f"generate gave no public half of a {algorithm.label} key")
            must(public.algorithm is algorithm, f"asked for {algorithm.label}, got {public.algorithm.label}")
            again = self.reopen(store)
            must(again.public_key(info.name) == public, f"another public half of {algorithm.label} after opening again")
            must(info in again.list_keys(), f"the list does not show the {algorithm.label} key as it was generated")
            signer = again.signer(info.name)
            must(signer.public_key == public, "the signer has another public half")
            for message in (b"", b"m", bytes(range(256)) * 40):
                _check_signature(public, signer.sign(message), message)

    def test_names(self) -> None:
        store = self.make_store()
        before = _names(store)
        for name in _NAMES:
            for use in self._uses(store, name):
                with refused("keys.name.invalid"):
                    use()
            with refused("keys.name.invalid"):
                store.generate(name, self._spec(store))
        must(_names(store) == before, "a name that is none made a key")

    def test_a_key_is_never_replaced(self) -> None:
        store = self.make_store()
        info = store.generate(self._name(), self._spec(store))
        with refused("keys.key.exists"):
            store.generate(info.name, self._spec(store))
        if store.capabilities().can_seal:
            with refused("keys.key.exists"):
                store.generate(info.name, KeySpec(purpose=KeyPurpose.SEAL))
        must(self.reopen(store).public_key(info.name) == info.public_key, "the first key was touched")

    def test_a_key_that_is_not_there(self) -> None:
        store, name = self.make_store(), self._name()
        for use in self._uses(store, name):
            with refused("keys.key.missing"):
                use()

    def test_two_keys_are_two(self) -> None:
        store = self.make_store()
        first, second = (store.generate(self._name(), self._spec(store)) for _ in range(2))
        must(first.public_key != second.public_key, "two keys have one public half")
        if second.public_key is None:
            raise ConformanceFailed("a key that signs has no public half")
        with refused("crypto.signature.invalid"):
            second.public_key.verify(store.signer(first.name).sign(b"m"), b"m")

    # ---- keys that seal --------------------------------------------------------------------------------------

    def test_sealed_bytes_belong_to_key_context_and_nothing_else(self) -> None:
        store = self._sealing_store()
        one, two = (store.generate(self._name(), KeySpec(purpose=KeyPurpose.SEAL)).name for _ in range(2))
        secret = secrets.token_bytes(32)
        sealed = store.seal(one, secret, b"context")
        must(secret not in sealed, "the sealed bytes show the secret")
        must(store.seal(one, secret, b"context") != sealed, "sealing twice gives the same bytes")
        with self.reopen(store).unseal(one, sealed, b"context") as opened:
            must(bytes(opened.view()) == secret, "another secret came out")
        wrong = [
            (two, sealed, b"context"),
            (one, sealed, b""),
            (one, sealed, b"contexu"),
            (one, b"", b"context"),
            (one, sealed[:-1], b"context"),
            (one, sealed + b"\0", b"context"),
        ]
        step = max(1, len(sealed) // 24)
        places = sorted({*range(0, len(sealed), step), len(sealed) - 1})
        wrong += [(one, _flip(sealed, at), b"context") for at in places]
        for name, raw, context in wrong:
            with refused("keys.sealed.malformed") as caught:
                store.unseal(name, raw, context)
            _shows_nothing(caught[0], secret)

    def test_sealing_of_every_size_that_a_vault_needs(self) -> None:
        store = self._sealing_store()
        name = store.generate(self._name(), KeySpec(purpose=KeyPurpose.SEAL)).name
        for size in (0, 1, 32, 48, 64):
            secret = secrets.token_bytes(size)
            with store.unseal(name, store.seal(name, memoryview(secret), b""), b"") as opened:
                must(bytes(opened.view()) == secret, f"{size} bytes came out changed")

    def test_purposes_are_not_confused(self) -> None:
        store = self._sealing_store()
        seals = store.generate(self._name(), KeySpec(purpose=KeyPurpose.SEAL)).name
        with refused("keys.key.purpose"):
            store.public_key(seals)
        with refused("keys.key.purpose"):
            store.signer(seals)
        if store.capabilities().algorithms:
            signs = store.generate(self._name(), self._spec(store)).name
            with refused("keys.key.purpose"):
                store.seal(signs, b"x", b"")
            with refused("keys.key.purpose"):
                store.unseal(signs, bytes(64), b"")

    # ---- random, counters, certificates ----------------------------------------------------------------------

    def test_random(self) -> None:
        store = self.make_store()
        for count in (1, 31, 32, 33, 64, 1000, MAX_RANDOM_BYTES):
            must(len(store.random(count)) == count, f"asked for {count} random bytes, got another number")
        must(len({store.random(32) for _ in range(16)}) == 16, "random bytes repeat")
        for count in (0, -1, MAX_RANDOM_BYTES + 1):
            with refused("keys.capability.missing"):
                store.random(count)

    def test_counters_only_grow(self) -> None:
        store = self.make_store()
        if not store.capabilities().can_count:
            raise SkipTest("the provider does not count")
        start = store.counter_read(self.counter)
        values = [store.counter_increment(self.counter) for _ in range(3)]
        must(start < values[0] and values == list(range(values[0], values[0] + 3)), f"{start} was followed by {values}")
        again = self.reopen(store)
        must(again.counter_read(self.counter) == values[-1], "the count did not survive")
        must(again.counter_increment(self.counter) == values[-1] + 1, "counting went on from another number")

    def test_certificates_are_kept_beside_the_key(self) -> None:
        store = self.make_store()
        name = store.generate(self._name(), self._spec(store)).name
        if not store.capabilities().can_keep_certificates:
            with refused("keys.capability.missing"):
                store.keep_certificates(name, [b"0"])
            return
        must(store.certificates(name) == (), "a new key has certificates")
        chain = [secrets.token_bytes(700), secrets.token_bytes(1200)]
        for kept in (chain, chain[:1], [secrets.token_bytes(900)], []):
            store.keep_certificates(name, kept)
            must(self.reopen(store).certificates(name) == tuple(kept), "the chain kept is not the chain given")
        for wrong in ([b"0"] * (MAX_CERTIFICATES + 1), [bytes(MAX_CERTIFICATE_BYTES + 1)], [b""]):
            with refused("keys.capability.missing"):
                store.keep_certificates(name, wrong)
        must(self.reopen(store).certificates(name) == (), "a refused chain was kept")

    # ---- policies --------------------------------------------------------------------------------------------

    def test_what_may_leave_leaves_as_pkcs8_and_nothing_else_does(self) -> None:
        store = self.make_store()
        able = store.capabilities()
        kept = store.generate(self._name(), self._spec(store)).name
        with refused("keys.key.not-exportable", "keys.capability.missing"):
            store.export_key(kept)
        if not able.can_export:
            raise SkipTest("the provider exports no key")
        for algorithm in sorted(able.algorithms):
            spec = KeySpec(purpose=KeyPurpose.SIGN, algorithm=algorithm, policy=KeyPolicy(exportable=True))
            try:
                first = store.generate(self._name(), spec)
            except CapabilityMissing:  # not every token that wraps keys wraps all kinds: SoftHSM 2.6.1 no Ed25519
                continue
            with self.reopen(store).export_key(first.name) as private:
                serialization.load_der_private_key(bytes(private.view()), None)
                second = store.import_key(self._name(), private.view(), spec)
                with refused("keys.key.exists"):
                    store.import_key(first.name, private.view(), spec)
                with refused("keys.import.refused"):
                    hidden = KeySpec(purpose=KeyPurpose.SIGN, algorithm=algorithm)
                    store.import_key(self._name(), private.view(), hidden)
            must(second.public_key == first.public_key, f"a {algorithm.label} key changed on its way")
            must(second.spec == spec, "an imported key has another policy")
            if second.public_key is None:
                raise ConformanceFailed("an imported key has no public half")
            _check_signature(second.public_key, self.reopen(store).signer(second.name).sign(b"m"), b"m")

    def test_imports_that_are_refused(self) -> None:
        store = self.make_store()
        able = store.capabilities()
        if not able.can_export or not able.algorithms:
            raise SkipTest("the provider imports no key")
        before = _names(store)
        algorithm = self._spec(store).algorithm
        spec = KeySpec(purpose=KeyPurpose.SIGN, algorithm=algorithm, policy=KeyPolicy(exportable=True))
        good = _pkcs8(_FOREIGN[algorithm]() if algorithm else ec.generate_private_key(ec.SECP256R1()))
        other = _pkcs8(ec.generate_private_key(ec.SECP521R1()))
        small = _pkcs8(rsa.generate_private_key(65_537, 2048))
        for raw in (b"", b"\0" * 40, good[:-1], good + b"\0", other, small):
            with refused("keys.import.refused"):
                store.import_key(self._name(), raw, spec)
        must(_names(store) == before, "a refused import left a key behind")

    def test_a_key_with_its_own_pin(self) -> None:
        store = self.make_store()
        able = store.capabilities()
        if not able.can_user_auth:
            raise SkipTest("the provider has no keys with a PIN of their own")
        spec = KeySpec(purpose=KeyPurpose.SIGN, algorithm=self._spec(store).algorithm, policy=KeyPolicy(user_auth=True))
        info = self.reopen_with_key_pin(store, b"first pin 1").generate(self._name(), spec)
        if info.public_key is None:
            raise ConformanceFailed("a key that signs has no public half")
        must(self.reopen(store).public_key(info.name) == info.public_key, "the public half needs no PIN")
        right, wrong = (self.reopen_with_key_pin(store, pin) for pin in (b"first pin 1", b"first pin 2"))
        _check_signature(info.public_key, right.signer(info.name).sign(b"m"), b"m")
        with refused("keys.pin.refused"):
            wrong.signer(info.name).sign(b"m")
        _check_signature(info.public_key, right.signer(info.name).sign(b"m"), b"m")

    def test_keys_bound_to_registers(self) -> None:
        store = self.make_store()
        able = store.capabilities()
        if not able.can_bind_pcrs:
            raise SkipTest("the provider binds no keys to PCRs")
        spec = KeySpec(purpose=KeyPurpose.SEAL, policy=KeyPolicy(pcrs=frozenset({16})))
        name = store.generate(self._name(), spec).name
        sealed = store.seal(name, b"secret", b"")
        with store.unseal(name, sealed, b"") as opened:
            must(bytes(opened.view()) == b"secret", "another secret came out")
        self.extend_pcr(16)
        with refused("keys.pcr.mismatch"):
            store.unseal(name, sealed, b"")

    def test_keys_that_follow_a_pcr_authority(self) -> None:
        store = self.make_store()
        able = store.capabilities()
        must(able.can_bind_pcrs or not able.can_follow_pcr_authority, "an authority over registers that bind nothing")
        if not able.can_follow_pcr_authority:
            raise SkipTest("the provider follows no PCR authority")
        policy = KeyPolicy(pcrs=frozenset({16}), pcr_authority=_authority())
        info = store.generate(self._name(), KeySpec(purpose=KeyPurpose.SEAL, policy=policy))
        must(info.spec.policy == policy, "the key has another authority than it was made for")
        must(info in self.reopen(store).list_keys(), "the list does not show the key as it was generated")
        with refused("keys.pcr.no-statement"):
            store.seal(info.name, b"secret", b"")

    def test_revocable_keys(self) -> None:
        store = self.make_store()
        if not store.capabilities().can_revoke:
            raise SkipTest("the provider cannot end copies of its keys")
        policy = KeyPolicy(revocable=True)
        kinds = [KeySpec(purpose=KeyPurpose.SIGN, algorithm=self._spec(store).algorithm, policy=policy)]
        kinds += [KeySpec(purpose=KeyPurpose.SEAL, policy=policy)] if store.capabilities().can_seal else []
        for spec in kinds:
            info = store.generate(self._name(), spec)
            again = self.reopen(store)
            must(info in again.list_keys(), "the list does not show the key as it was generated")
            if spec.algorithm is None:
                again.unseal(info.name, again.seal(info.name, b"secret", b""), b"").wipe()
            else:
                again.signer(info.name).sign(b"m")
            again.destroy(info.name)
            with refused("keys.key.missing"):
                again.public_key(info.name)

    def test_quotes(self) -> None:
        store = self.make_store()
        able = store.capabilities()
        if not able.can_quote:
            raise SkipTest("the provider vouches for no platform")
        from tidegate.keys.attest import verify_quote  # here: only a provider that quotes needs it

        spec = KeySpec(purpose=KeyPurpose.ATTEST, algorithm=self._spec(store).algorithm)
        info = store.generate(self._name(), spec)
        if info.public_key is None:
            raise ConformanceFailed("an attestation key has no public half")
        nonce, pcrs = secrets.token_bytes(16), frozenset({0, 7})
        quote = store.quote(info.name, nonce, pcrs)
        must(set(quote.pcrs) == pcrs, "other registers than asked for were quoted")
        verify_quote(quote, key=info.public_key, nonce=nonce, expected=None)
        with refused("keys.quote.invalid"):
            verify_quote(quote, key=info.public_key, nonce=secrets.token_bytes(16), expected=None)
        with refused("keys.key.purpose"):
            store.signer(info.name).sign(b"whatever somebody hands it")
        signs = store.generate(self._name(), self._spec(store)).name
        with refused("keys.key.purpose"):
            store.quote(signs, nonce, pcrs)

    # ---- the end of keys and stores --------------------------------------------------------------------------

    def test_a_destroyed_key_is_of_no_use(self) -> None:
        store = self.make_store()
        able = store.capabilities()
        name = store.generate(self._name(), self._spec(store)).name
        signer = store.signer(name)
        signer.sign(b"m")
        if able.can_keep_certificates:
            store.keep_certificates(name, [b"certificate"])
        store.destroy(name)
        with refused("keys.key.missing"):
            signer.sign(b"m")
        for opened in (store, self.reopen(store)):
            for use in self._uses(opened, name):
                with refused("keys.key.missing"):
                    use()
            must(name not in _names(opened), "the list shows a destroyed key")
        again = store.generate(name, self._spec(store))
        must(not able.can_keep_certificates or store.certificates(again.name) == (), "a new key has old certificates")

    def test_a_destroyed_sealing_key_opens_nothing(self) -> None:
        store = self._sealing_store()
        name = store.generate(self._name(), KeySpec(purpose=KeyPurpose.SEAL)).name
        sealed = store.seal(name, b"secret", b"")
        store.destroy(name)
        with refused("keys.key.missing"):
            store.unseal(name, sealed, b"")
        store.generate(name, KeySpec(purpose=KeyPurpose.SEAL))
        with refused("keys.sealed.malformed"):
            store.unseal(name, sealed, b"")

    def test_a_closed_store_is_of_no_use(self) -> None:
        store = self.make_store()
        name = store.generate(self._name(), self._spec(store)).name
        other = self.reopen(store)
        signer = store.signer(name)
        store.close()
        store.close()
        uses = self._uses(store, name)
        uses += [
            lambda: signer.sign(b"m"),
            store.list_keys,
            lambda: store.random(8),
            lambda: store.generate(self._name(), self._spec(other)),
        ]
        if other.capabilities().can_count:
            uses += [lambda: store.counter_read(self.counter), lambda: store.counter_increment(self.counter)]
        for use in uses:
            with refused("keys.store.closed"):
                use()
        other.signer(name).sign(b"m")

    # ---- one store, many users -------------------------------------------------------------------------------

    def test_threads(self) -> None:
        store = self.make_store()
        able = store.capabilities()
        info = store.generate(self._name(), self._spec(store))
        seals = store.generate(self._name(), KeySpec(purpose=KeyPurpose.SEAL)).name if able.can_seal else None
        public, signer = info.public_key, store.signer(info.name)
        if public is None:
            raise ConformanceFailed("a key that signs has no public half")
        counted: list[int] = []

        def work(number: int) -> None:
            for turn in range(_ROUNDS):
                message = f"{number} {turn}".encode()
                _check_signature(public, signer.sign(message), message)
                if seals is not None:
                    with store.unseal(seals, store.seal(seals, message, message), message) as opened:
                        must(bytes(opened.view()) == message, "threads mixed up their secrets")
                must(len(store.random(16)) == 16, "too few random bytes")
                must(info in store.list_keys(), "a key vanished from the list")
                if able.can_count:
                    counted.append(store.counter_increment(self.counter))

        in_threads(work)
        must(len(set(counted)) == len(counted), "two threads got the same count")

    def test_after_a_fork_both_go_on(self) -> None:
        store = self.make_store()
        info = store.generate(self._name(), self._spec(store))
        public, signer = info.public_key, store.signer(info.name)
        if public is None:
            raise ConformanceFailed("a key that signs has no public half")
        signer.sign(b"before")
        children = [_in_child(lambda: signer.sign(b"child") + store.random(8)) for _ in range(2)]
        for read in children:
            _check_signature(public, signer.sign(b"parent"), b"parent")
            answer = read()
            _check_signature(public, answer[:-8], b"child")
        _check_signature(public, self.reopen(store).signer(info.name).sign(b"after"), b"after")

    def test_nothing_shows_a_secret(self) -> None:
        store = self.make_store()
        name = store.generate(self._name(), self._spec(store)).name
        for shown in (store, store.signer(name), store.list_keys(), store.capabilities()):
            must("bytearray" not in repr(shown) and "Secret(" not in repr(shown), "a repr shows what is inside")
        secret = secrets.token_bytes(24)
        if store.capabilities().can_seal:
            seals = store.generate(self._name(), KeySpec(purpose=KeyPurpose.SEAL)).name
            sealed = store.seal(seals, secret, b"")
            must(repr(store.unseal(seals, sealed, b"")) == "<Secret>", "an unsealed secret prints")
            with refused("keys.key.purpose") as caught:
                store.seal(name, secret, b"")
            _shows_nothing(caught[0], secret)

    # ---- helpers ---------------------------------------------------------------------------------------------

    @property
    def made(self) -> list[str]:
        """Return the names of the keys that the tests made, or wanted to."""
        return list(self.__dict__.get("_made", ()))

    def _name(self) -> str:
        name = PREFIX + secrets.token_hex(6)
        self.__dict__.setdefault("_made", []).append(name)
        return name

    def _spec(self, store: KeyStore) -> KeySpec:
        """Return what to generate where any key that signs will do."""
        offered = store.capabilities().algorithms
        for algorithm in (*_SPEED, *sorted(offered)):
            if algorithm in offered:
                return KeySpec(purpose=KeyPurpose.SIGN, algorithm=algorithm)
        raise SkipTest("the provider makes no keys that sign")

    def _sealing_store(self) -> KeyStore:
        store = self.make_store()
        if not store.capabilities().can_seal:
            raise SkipTest("the provider does not seal")
        return store

    @staticmethod
    def _uses(store: KeyStore, name: str) -> list[Callable[[], object]]:
        """Return every operation that needs the key ``name``."""
        able = store.capabilities()
        uses: list[Callable[[], object]] = [
            lambda: store.public_key(name),
            lambda: store.signer(name).sign(b"m"),
            lambda: store.destroy(name),
        ]
        if able.can_seal:
            uses += [lambda: store.seal(name, b"x", b""), lambda: store.unseal(name, bytes(64), b"")]
        if able.can_keep_certificates:
            uses += [lambda: store.certificates(name), lambda: store.keep_certificates(name, [b"c"])]
        if able.can_quote:
            uses.append(lambda: store.quote(name, bytes(16), frozenset({0})))
        if able.can_export:
            uses.append(lambda: store.export_key(name))
        return uses


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What one test of the suite said: ``passed``, ``skipped`` (why) or ``failed`` (why)."""

    test: str
    verdict: str
    why: str = ""


def run_conformance(suite: KeyStoreConformance, *, tell: Callable[[Outcome], None]) -> list[Outcome]:
    """Run every test of ``suite`` and return what each said; whatever a test raises is its failure."""
    outcomes = []
    for name in sorted(dir(suite)):
        if not name.startswith("test_"):
            continue
        title = name.removeprefix("test_").replace("_", " ")
        try:
            getattr(suite, name)()
            outcome = Outcome(test=title, verdict="passed")
        except SkipTest as reason:
            outcome = Outcome(test=title, verdict="skipped", why=str(reason))
        except TidegateError as error:
            outcome = Outcome(test=title, verdict="failed", why=f"{error.message} [{error.code}]")
        except (ValueError, TypeError, LookupError, ArithmeticError, AttributeError, OSError, RuntimeError) as error:
            outcome = Outcome(test=title, verdict="failed", why=f"{type(error).__name__}, which is no coded error")
        tell(outcome)
        outcomes.append(outcome)
    return outcomes


def must(holds: bool, otherwise: str) -> None:
    """Return if ``holds``, else raise ``testing.conformance.failed`` saying what is ``otherwise``."""
    if not holds:
        raise ConformanceFailed(otherwise)


@contextlib.contextmanager
def refused(*codes: str) -> Iterator[list[TidegateError]]:
    """Expect the body to raise an error with one of ``codes``; the list holds it afterwards."""
    caught: list[TidegateError] = []
    try:
        yield caught
    except ConformanceFailed:
        raise
    except TidegateError as error:
        if error.code not in codes:
            raise ConformanceFailed(f"expected {' or '.join(codes)}, got {error.code}: {error.message}") from error
        caught.append(error)
        return
    raise ConformanceFailed(f"expected {' or '.join(codes)}, but it was done")


def in_threads(work: Callable[[int], None], count: int = THREADS) -> None:
    """Run ``work(number)`` in ``count`` threads at once and raise what the first of them raised."""
    failures: list[BaseException] = []
    start = threading.Barrier(count)

    def run(number: int) -> None:
        try:
            start.wait(timeout=10)
            work(number)
        except BaseException as error:  # noqa: BLE001  # raised below, in the thread that asked
            failures.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


def _in_child(work: Callable[[], bytes]) -> Callable[[], bytes]:
    """Start ``work`` in a forked child and return what waits for its answer."""
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.close(read_end)
            os.write(write_end, work())
            status = 0
        finally:
            os._exit(status)
    os.close(write_end)

    def answer() -> bytes:
        with os.fdopen(read_end, "rb") as stream:
            data = stream.read()
        _, status = os.waitpid(child, 0)
        must(status == 0, "the store did not work in a forked child")
        return data

    return answer


def _names(store: KeyStore) -> set[str]:
    return {info.name for info in store.list_keys()}


def _lacks(able: Capabilities, spec: KeySpec) -> bool:
    return (
        (spec.algorithm is not None and spec.algorithm not in able.algorithms)
        or (spec.purpose is KeyPurpose.SEAL and not able.can_seal)
        or (spec.purpose is KeyPurpose.ATTEST and not able.can_quote)
        or (spec.policy.exportable and not able.can_export)
        or (bool(spec.policy.pcrs) and not able.can_bind_pcrs)
        or (spec.policy.user_auth and not able.can_user_auth)
        or (spec.policy.pcr_authority is not None and not able.can_follow_pcr_authority)
        or (spec.policy.revocable and not able.can_revoke)
    )


def _authority() -> PcrAuthority:
    """Return a PCR authority whose private half nobody has."""
    point = ec.generate_private_key(ec.SECP256R1()).public_key()
    raw = point.public_bytes(serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint)
    return PcrAuthority(key=PublicKey(SignatureAlgorithm.ECDSA_P256, raw), product="selftest")


def _check_signature(public: PublicKey, signature: bytes, message: bytes) -> None:
    try:
        public.verify(signature, message)
    except SignatureInvalid as error:
        raise ConformanceFailed(f"a {public.algorithm.label} signature does not hold") from error
    for at in (0, len(signature) // 2, len(signature) - 1):
        with refused("crypto.signature.invalid"):
            public.verify(_flip(signature, at), message)


def _flip(raw: bytes, at: int) -> bytes:
    return raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :]


def _shows_nothing(error: TidegateError, secret: bytes) -> None:
    link: BaseException | None = error
    while link is not None:
        text = f"{link!r} {link}"
        must(secret.hex() not in text and repr(secret)[2:-1] not in text, "an error shows a secret")
        link = link.__cause__


_Private = (
    ec.EllipticCurvePrivateKey
    | ed25519.Ed25519PrivateKey
    | rsa.RSAPrivateKey
    | mldsa.MLDSA65PrivateKey
    | mldsa.MLDSA87PrivateKey
)
_FOREIGN: dict[SignatureAlgorithm, Callable[[], _Private]] = {
    SignatureAlgorithm.ED25519: ed25519.Ed25519PrivateKey.generate,
    SignatureAlgorithm.ECDSA_P256: lambda: ec.generate_private_key(ec.SECP256R1()),
    SignatureAlgorithm.ECDSA_P384: lambda: ec.generate_private_key(ec.SECP384R1()),
    SignatureAlgorithm.RSA_PSS: lambda: rsa.generate_private_key(65_537, 3072),
    SignatureAlgorithm.ML_DSA_65: mldsa.MLDSA65PrivateKey.generate,
    SignatureAlgorithm.ML_DSA_87: mldsa.MLDSA87PrivateKey.generate,
}


def _pkcs8(key: _Private) -> bytes:
    return key.private_bytes(
        serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
