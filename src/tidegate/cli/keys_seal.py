"""Verbs of ``tidegate keys`` for sealing: a small secret in a file that one key alone opens; keys kept in a TPM; and
the statements of a PCR authority, which keys in TPMs follow.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tidegate.cli.main import add_verb
from tidegate.cli.output import Output

if TYPE_CHECKING:
    from tidegate.crypto.signing import PublicKey
    from tidegate.keys.store import PcrAuthority

_MAX_SECRET_BYTES = 65_536  # passphrases, keys, small settings; files belong into a vault
_MAX_SEALED_BYTES = _MAX_SECRET_BYTES + 1024


def build(verbs: argparse._SubParsersAction[argparse.ArgumentParser], *, key: str) -> None:
    """Add the verbs."""
    seal = add_verb(verbs, "seal", "encrypt a small secret so that only this sealing key opens it")
    seal.add_argument("key", help=key)
    seal.add_argument("file", type=Path, help="private file with the secret, or - for standard input")
    seal.add_argument("--context", default="", help="text that has to be given again to open it")
    seal.add_argument("-o", "--output", type=Path, required=True, help="file to write")
    seal.set_defaults(run=seal_file)
    unseal = add_verb(verbs, "unseal", "open what was sealed; a key bound to PCRs names those that changed")
    unseal.add_argument("key", help=key)
    unseal.add_argument("file", type=Path, help="sealed file")
    unseal.add_argument("--context", default="", help="the text that it was sealed with")
    unseal.add_argument("-o", "--output", type=Path, required=True, help="new private file, or - for standard output")
    unseal.set_defaults(run=unseal_file)
    persist = add_verb(verbs, "persist", "keep a key in the TPM itself, at a persistent handle (tpm2: alone)")
    persist.add_argument("key", help=key)
    persist.add_argument("handle", help="0x81000002 to 0x817fffff; needs the owner's authorisation")
    persist.set_defaults(run=persist_key)
    _build_statements(verbs, key)


def _build_statements(verbs: argparse._SubParsersAction[argparse.ArgumentParser], key: str) -> None:
    sign = add_verb(verbs, "pcr-sign", "as PCR authority, allow register values: keys in TPMs open under them")
    sign.add_argument("--key", required=True, help=f"the authority's {key}")
    sign.add_argument("--product", required=True, help="the product whose keys may be used, as named when generated")
    values = sign.add_mutually_exclusive_group(required=True)
    values.add_argument("--pcrs", metavar="PCR=HEX,…", help="values (SHA-256 bank) that the system will produce")
    values.add_argument("--current", metavar="PCR,…", help="registers whose present values are meant, of --store")
    sign.add_argument("--version", type=int, help="for keys with a floor: no counter above it yet (from 1 on)")
    sign.add_argument("--store", help="tpm2: URI of the store whose TPM is asked for them")
    sign.add_argument("-o", "--output", type=Path, required=True, help="file for the store's folder statements")
    sign.set_defaults(run=sign_pcrs)
    check = add_verb(verbs, "pcr-verify", "verify a statement of a PCR authority and show what it allows")
    check.add_argument("file", type=Path, help="file of tidegate keys pcr-sign")
    check.add_argument("--pcr-authority", type=Path, required=True, help="the authority's public key (PEM or COSE)")
    check.add_argument("--product", required=True, help="the product that it has to be for")
    check.set_defaults(run=verify_pcrs)


def seal_file(arguments: argparse.Namespace, output: Output) -> int:
    """Seal one secret."""
    from tidegate.base.durable import read_file_bounded, require_private, write_file_atomic
    from tidegate.base.errors import InputTooLarge
    from tidegate.cli.keyuri import open_keys
    from tidegate.crypto.aead import Secret

    store, name = open_keys(arguments.key)
    if str(arguments.file) == "-":
        secret = Secret(sys.stdin.buffer.read(_MAX_SECRET_BYTES + 1))
        if len(secret) > _MAX_SECRET_BYTES:
            raise InputTooLarge(f"a secret to be sealed has at most {_MAX_SECRET_BYTES} bytes; use a vault")
    else:
        require_private(arguments.file)
        secret = Secret(read_file_bounded(arguments.file, limit_bytes=_MAX_SECRET_BYTES))
    with secret:
        sealed = store.seal(name, secret.view(), arguments.context.encode())
    write_file_atomic(arguments.output, sealed)
    output.line(f"wrote {arguments.output}: {len(sealed)} bytes that {name} opens")
    output.result({"file": str(arguments.output), "bytes": len(sealed), "key": name})
    return 0


def unseal_file(arguments: argparse.Namespace, output: Output) -> int:
    """Open one sealed file."""
    from tidegate.base.durable import read_file_bounded, write_file_new
    from tidegate.base.errors import StorageFailed
    from tidegate.cli.keyuri import open_keys

    store, name = open_keys(arguments.key)
    sealed = read_file_bounded(arguments.file, limit_bytes=_MAX_SEALED_BYTES)
    with store.unseal(name, sealed, arguments.context.encode()) as secret:
        if str(arguments.output) == "-":
            sys.stdout.buffer.write(secret.view())
            sys.stdout.buffer.flush()
            return 0
        try:
            write_file_new(arguments.output, secret.view().tobytes(), mode=0o600)
        except FileExistsError as error:
            raise StorageFailed(f"{arguments.output} exists; a secret is written into a new file") from error
    output.line(f"wrote {arguments.output}")
    output.result({"file": str(arguments.output), "key": name})
    return 0


def persist_key(arguments: argparse.Namespace, output: Output) -> int:
    """Keep one key in the TPM."""
    from tidegate.cli.keyuri import open_keys
    from tidegate.keys.errors import CapabilityMissing, KeyNameInvalid

    try:
        handle = int(arguments.handle, 16)
    except ValueError as error:
        raise KeyNameInvalid(f"{arguments.handle!r} is no handle: write it as 0x81000010") from error
    store, name = open_keys(arguments.key)
    persist = getattr(store, "persist", None)
    if persist is None:
        raise CapabilityMissing("only a TPM opened directly (tpm2:) has persistent handles")
    persist(name, handle)
    output.line(f"{name} is at 0x{handle:08x} now")
    output.result({"key": name, "handle": f"0x{handle:08x}"})
    return 0


def sign_pcrs(arguments: argparse.Namespace, output: Output) -> int:
    """Sign one statement."""
    from tidegate.base.durable import write_file_atomic
    from tidegate.cli.keyuri import open_key
    from tidegate.keys.pcr_policy import sign_statement

    pcrs = _values(arguments.pcrs) if arguments.pcrs is not None else _current(arguments.current, arguments.store)
    signer = open_key(arguments.key)
    raw = sign_statement(signer, arguments.product, pcrs, version=arguments.version)
    write_file_atomic(arguments.output, raw)
    key_id = str(signer.public_key.key_id)
    output.line(f"wrote {arguments.output}: authority {key_id} allows keys of {arguments.product} under these values")
    _show(pcrs, output)
    shown = {str(pcr): value.hex() for pcr, value in pcrs.items()}
    told = {"product": arguments.product, "version": arguments.version, "key_id": key_id, "pcrs": shown}
    output.result({"file": str(arguments.output), **told})
    return 0


def verify_pcrs(arguments: argparse.Namespace, output: Output) -> int:
    """Verify one statement."""
    from tidegate.base.durable import read_file_bounded
    from tidegate.keys.pcr_policy import MAX_STATEMENT_BYTES, parse_statement, verify_statement

    statement = parse_statement(read_file_bounded(arguments.file, limit_bytes=MAX_STATEMENT_BYTES))
    pcrs = frozenset(statement.pcrs)
    floor = None if statement.version is None else "any"  # a version is for keys with a floor, whatever its name
    authority = _authority(_read_public(arguments.pcr_authority), arguments.product, floor)
    verified = verify_statement(statement, authority=authority, pcrs=pcrs)
    key_id = str(authority.key.key_id)
    version = "" if verified.version is None else f" with a floor of at most {verified.version}"
    output.line(
        f"authority {key_id} allows keys of {authority.product}{version}, bound to these registers, at these values"
    )
    _show(verified.pcrs, output)
    shown = {str(pcr): value.hex() for pcr, value in verified.pcrs.items()}
    told = {"product": authority.product, "version": verified.version, "key_id": key_id, "pcrs": shown}
    output.result({"verified": True, **told})
    return 0


def read_authority(arguments: argparse.Namespace, pcrs: frozenset[int]) -> PcrAuthority | None:
    """Return the PCR authority that the options of ``generate`` name; raise ``keys.pcr.authority`` for half of one."""
    from tidegate.keys.errors import PcrAuthorityUnusable

    path, product, floor = arguments.pcr_authority, arguments.product, arguments.floor
    if path is None and product is None and floor is None:
        return None
    if path is None or product is None or not pcrs:
        raise PcrAuthorityUnusable("--pcr-authority, --product and --pcrs belong together")
    return _authority(_read_public(path), product, floor)


def _authority(key: PublicKey, product: str, floor: str | None) -> PcrAuthority:
    from tidegate.keys.errors import PcrAuthorityUnusable
    from tidegate.keys.store import PcrAuthority

    try:
        return PcrAuthority(key=key, product=product, floor=floor)
    except ValueError as error:
        raise PcrAuthorityUnusable(f"no PCR authority: {error}") from error


def _read_public(path: Path) -> PublicKey:
    """Return a public key from a file in PEM or COSE; raise ``keys.pcr.authority`` or what its parser raises."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    from tidegate.base.durable import read_file_bounded
    from tidegate.crypto.signing import MAX_PUBLIC_KEY_BYTES, parse_public_key
    from tidegate.keys.errors import PcrAuthorityUnusable
    from tidegate.pki.keyadapter import public_key_of

    raw = read_file_bounded(path, limit_bytes=MAX_PUBLIC_KEY_BYTES)
    if not raw.startswith(b"-----"):
        return parse_public_key(raw)
    try:
        return public_key_of(load_pem_public_key(raw))  # type: ignore[arg-type]  # it refuses other kinds
    except (ValueError, UnsupportedAlgorithm) as error:
        raise PcrAuthorityUnusable(f"{path} holds no public key in PEM", path=str(path)) from error


def _values(text: str) -> dict[int, bytes]:
    """Return the register values that ``7=HEX,11=HEX`` names."""
    from tidegate.cli.keys_use import parse_pcrs
    from tidegate.keys.errors import PcrAuthorityUnusable

    values: dict[int, bytes] = {}
    for word in text.split(","):
        named, _, shown = word.partition("=")
        (pcr,) = parse_pcrs(named)
        try:
            value = bytes.fromhex(shown)
        except ValueError as error:
            raise PcrAuthorityUnusable(f"the value of PCR {pcr} is not written in hexadecimal") from error
        if pcr in values:
            raise PcrAuthorityUnusable(f"PCR {pcr} has two values")
        values[pcr] = value
    return values


def _current(text: str, store: str | None) -> dict[int, bytes]:
    """Return what the registers named in ``text`` hold in the TPM of ``store``."""
    from tidegate.cli.keys_use import parse_pcrs
    from tidegate.cli.keyuri import open_keys
    from tidegate.keys.errors import CapabilityMissing, PcrAuthorityUnusable

    if store is None:
        raise PcrAuthorityUnusable("--current needs --store, whose TPM is asked")
    read = getattr(open_keys(store)[0], "pcr_values", None)
    if read is None:
        raise CapabilityMissing("only a TPM opened directly (tpm2:) shows its registers")
    values: dict[int, bytes] = read(parse_pcrs(text))
    return values


def _show(pcrs: dict[int, bytes], output: Output) -> None:
    output.table(("PCR", "SHA-256 bank"), [(pcr, pcrs[pcr].hex()) for pcr in sorted(pcrs)])
