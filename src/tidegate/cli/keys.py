"""``tidegate keys``: generate, list, export public halves, destroy."""

from __future__ import annotations

import argparse
from pathlib import Path

from tidegate.cli.main import add_verb
from tidegate.cli.output import Output

_STORE = "store as a URI: file:/FOLDER?device-secret=/FILE or file:/FOLDER?passphrase-file=/FILE (/dev/fd/3 works)"
_KEY = "key as a URI: file:/FOLDER?key=NAME&device-secret=/FILE or ...&passphrase-file=/FILE"


def build(parser: argparse.ArgumentParser) -> None:
    """Add the verbs."""
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    create = add_verb(verbs, "create-store", "make an empty software key store")
    create.add_argument("store", help=_STORE)
    create.set_defaults(run=create_store)
    generate = add_verb(verbs, "generate", "generate a key inside its provider")
    generate.add_argument("key", help=_KEY)
    generate.add_argument(
        "--algorithm",
        default="ed25519",
        help="ed25519 (default), ecdsa-p256, ecdsa-p384, ml-dsa-65, ml-dsa-87, or seal for a key that seals",
    )
    generate.set_defaults(run=generate_key)
    listing = add_verb(verbs, "list", "list the keys of a store")
    listing.add_argument("store", help=_STORE)
    listing.set_defaults(run=list_keys)
    public = add_verb(verbs, "public", "write the public half of a key as a COSE_Key")
    public.add_argument("key", help=_KEY)
    public.add_argument("-o", "--output", type=Path, required=True, help="file to write")
    public.set_defaults(run=export_public)
    anchors = add_verb(verbs, "anchors", "write trust anchors: every given key must sign, both classes present")
    anchors.add_argument("public", type=Path, nargs="+", help="public key files, a classical and a post-quantum one")
    anchors.add_argument("-o", "--output", type=Path, required=True, help="file to write")
    anchors.set_defaults(run=write_anchors)
    destroy = add_verb(verbs, "destroy", "make a key unusable for ever")
    destroy.add_argument("key", help=_KEY)
    destroy.add_argument("--yes", action="store_true", required=True, help="confirm: there is no way back")
    destroy.set_defaults(run=destroy_key)


def create_store(arguments: argparse.Namespace, output: Output) -> int:
    """Make an empty store."""
    from tidegate.keys.uri import open_store, parse_key_uri

    uri = parse_key_uri(arguments.store)
    open_store(uri, create=True)
    output.line(f"created the key store {uri.location}")
    output.result({"store": str(uri.location)})
    return 0


def generate_key(arguments: argparse.Namespace, output: Output) -> int:
    """Generate one key."""
    from tidegate.crypto.signing import parse_algorithm
    from tidegate.keys.store import KeyPurpose, KeySpec
    from tidegate.keys.uri import open_store, parse_key_uri

    if arguments.algorithm == "seal":
        spec = KeySpec(purpose=KeyPurpose.SEAL)
    else:
        spec = KeySpec(purpose=KeyPurpose.SIGN, algorithm=parse_algorithm(arguments.algorithm))
    uri = parse_key_uri(arguments.key)
    info = open_store(uri).generate(uri.name, spec)
    key_id = str(info.public_key.key_id) if info.public_key else None
    output.line(f"generated {info.name} ({arguments.algorithm})" + (f", key id {key_id}" if key_id else ""))
    output.result({"name": info.name, "algorithm": arguments.algorithm, "key_id": key_id})
    return 0


def list_keys(arguments: argparse.Namespace, output: Output) -> int:
    """List the keys of a store."""
    from tidegate.keys.uri import open_store, parse_key_uri

    rows = [
        (
            info.name,
            info.spec.algorithm.label if info.spec.algorithm else info.spec.purpose.value,
            str(info.public_key.key_id) if info.public_key else "-",
        )
        for info in open_store(parse_key_uri(arguments.store)).list_keys()
    ]
    output.table(("name", "algorithm", "key id"), rows)
    output.result({"keys": [dict(zip(("name", "algorithm", "key_id"), row, strict=True)) for row in rows]})
    return 0


def export_public(arguments: argparse.Namespace, output: Output) -> int:
    """Write a public key to a file."""
    from tidegate.base.durable import write_file_atomic
    from tidegate.keys.uri import open_store, parse_key_uri

    uri = parse_key_uri(arguments.key)
    key = open_store(uri).public_key(uri.name)
    write_file_atomic(arguments.output, key.encode())
    output.line(f"wrote {arguments.output}: {key.algorithm.label}, key id {key.key_id}")
    output.result({"file": str(arguments.output), "algorithm": key.algorithm.label, "key_id": str(key.key_id)})
    return 0


def write_anchors(arguments: argparse.Namespace, output: Output) -> int:
    """Bundle public keys into trust anchors."""
    from tidegate.base.durable import read_file_bounded, write_file_atomic
    from tidegate.crypto.signing import MAX_PUBLIC_KEY_BYTES, parse_public_key
    from tidegate.crypto.trust import hybrid_trust

    keys = [parse_public_key(read_file_bounded(path, limit_bytes=MAX_PUBLIC_KEY_BYTES)) for path in arguments.public]
    write_file_atomic(arguments.output, hybrid_trust(keys).encode())
    output.line(f"wrote {arguments.output}: all of {len(keys)} keys must sign")
    output.result({"file": str(arguments.output), "key_ids": [str(key.key_id) for key in keys]})
    return 0


def destroy_key(arguments: argparse.Namespace, output: Output) -> int:
    """Destroy one key."""
    from tidegate.keys.uri import open_store, parse_key_uri

    uri = parse_key_uri(arguments.key)
    open_store(uri).destroy(uri.name)
    output.line(f"destroyed {uri.name}")
    output.result({"destroyed": uri.name})
    return 0
