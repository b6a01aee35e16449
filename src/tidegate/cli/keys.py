"""``tidegate keys``: stores and their keys, in every provider; ``keys_use.py`` has the verbs that use a key."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from tidegate.cli import keys_ceremony, keys_seal, keys_use
from tidegate.cli.main import add_verb
from tidegate.cli.output import Output

if TYPE_CHECKING:
    from tidegate.keys.store import KeyInfo, KeySpec

STORE = "store as a URI: file:/FOLDER, tpm2:/FOLDER, pkcs11:token=LABEL?module-path=/MODULE or keyd:/SOCKET"
KEY = "key as a URI: file:/FOLDER?key=NAME, tpm2:/FOLDER?key=NAME, pkcs11:token=LABEL;object=NAME or keyd:/SOCKET?key=…"
ALGORITHMS = "ed25519 (default), ecdsa-p256, ecdsa-p384, rsa-pss, ml-dsa-65 or ml-dsa-87"


def build(parser: argparse.ArgumentParser) -> None:
    """Add the verbs."""
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    create = add_verb(verbs, "create-store", "make an empty key store, in files or over a TPM")
    create.add_argument("store", help=STORE)
    create.set_defaults(run=create_store)
    change = add_verb(verbs, "change-passphrase", "let a software store open with something else; its keys stay")
    change.add_argument("store", help="file: URI that opens the store today")
    change.add_argument("new", help="file: URI of the same folder that is to open it from now on")
    change.set_defaults(run=change_passphrase)
    able = add_verb(verbs, "capabilities", "say what a provider can do")
    able.add_argument("store", help=STORE)
    able.set_defaults(run=show_capabilities)
    _build_generate(add_verb(verbs, "generate", "generate a key inside its provider"))
    listing = add_verb(verbs, "list", "list the keys of a store")
    listing.add_argument("store", help=STORE)
    listing.set_defaults(run=list_keys)
    show = add_verb(verbs, "show", "show what is known of one key")
    show.add_argument("key", help=KEY)
    show.set_defaults(run=show_key)
    public = add_verb(verbs, "public", "write the public half of a key")
    public.add_argument("key", help=KEY)
    public.add_argument("-o", "--output", type=Path, required=True, help="file to write")
    public.add_argument(
        "--format", choices=("cose", "pem"), default="cose", help="COSE_Key (default) or PEM for others"
    )
    public.set_defaults(run=export_public)
    keys_use.build(verbs, key=KEY, store=STORE)
    keys_seal.build(verbs, key=KEY)
    anchors = add_verb(verbs, "anchors", "write trust anchors: every given key must sign, both classes present")
    anchors.add_argument("public", type=Path, nargs="+", help="public key files, a classical and a post-quantum one")
    anchors.add_argument("-o", "--output", type=Path, required=True, help="file to write")
    anchors.set_defaults(run=write_anchors)
    destroy = add_verb(verbs, "destroy", "make a key unusable for ever")
    destroy.add_argument("key", help=KEY)
    destroy.add_argument("--yes", action="store_true", required=True, help="confirm: there is no way back")
    destroy.set_defaults(run=destroy_key)
    keys_ceremony.build(add_verb(verbs, "ceremony", "make a maker's keys together: hold a ceremony, rehearse bad days"))


def _build_generate(generate: argparse.ArgumentParser) -> None:
    generate.add_argument("key", help=KEY)
    generate.add_argument("--algorithm", help=f"{ALGORITHMS}; or seal for a key that seals")
    generate.add_argument(
        "--purpose", choices=("sign", "seal", "attest"), help="what the key is for, for life (default: sign)"
    )
    generate.add_argument("--exportable", action="store_true", help="let its private half leave the provider")
    generate.add_argument("--pcrs", help="registers that have to hold what they hold now, e.g. 0,2,7 (TPM)")
    generate.add_argument(
        "--pcr-authority",
        type=Path,
        metavar="FILE",
        help="public key (PEM or COSE) whose owner signs which values the --pcrs may hold, instead of today's (TPM)",
    )
    generate.add_argument("--product", help="whose statements count, of all that the PCR authority signs")
    generate.add_argument(
        "--floor", metavar="COUNTER", help="the TPM's counter whose count ends statements of lower versions"
    )
    generate.add_argument("--user-auth", action="store_true", help="ask for a PIN of its own at each use")
    generate.add_argument(
        "--revocable",
        action=argparse.BooleanOptionalAction,
        help="let destroying it end every copy of it, too, by a counter in the TPM (default: for a TPM's sealing keys)",
    )
    generate.set_defaults(run=generate_key)


def create_store(arguments: argparse.Namespace, output: Output) -> int:
    """Make an empty store."""
    from tidegate.cli.keyuri import open_keys
    from tidegate.keys.uri import parse_key_uri

    location = parse_key_uri(arguments.store).location
    open_keys(arguments.store, create=True)[0].close()
    output.line(f"created the key store {location}")
    output.result({"store": location})
    return 0


def change_passphrase(arguments: argparse.Namespace, output: Output) -> int:
    """Replace what opens a software store."""
    from tidegate.cli.keyuri import ask_twice, open_keys
    from tidegate.keys.errors import CapabilityMissing, KeyUriMalformed
    from tidegate.keys.software import SoftwareKeyStore, unlock_of
    from tidegate.keys.uri import parse_key_uri

    new = parse_key_uri(arguments.new)
    if (new.scheme, new.location) != ("file", parse_key_uri(arguments.store).location):
        raise KeyUriMalformed("the new URI names the same folder and what is to open it from now on")
    store, _ = open_keys(arguments.store)
    if not isinstance(store, SoftwareKeyStore):
        raise CapabilityMissing("a token's PIN is changed with the token's own tool")
    store.change_unlock(unlock_of(new, ask_twice))
    output.line(f"{new.location} opens with the new passphrase or device secret, and with nothing else")
    output.result({"store": new.location})
    return 0


def show_capabilities(arguments: argparse.Namespace, output: Output) -> int:
    """Say what a provider can do, before it is asked."""
    from tidegate.cli.keyuri import open_keys

    able = open_keys(arguments.store)[0].capabilities()
    flags = {
        "hardware": able.hardware,
        "seal": able.can_seal,
        "export": able.can_export,
        "bind to PCRs": able.can_bind_pcrs,
        "follow a PCR authority": able.can_follow_pcr_authority,
        "PIN of a key": able.can_user_auth,
        "revoke copies of a key": able.can_revoke,
        "certificates": able.can_keep_certificates,
        "quote": able.can_quote,
        "count": able.can_count,
        "count resists rollback": able.counter_resists_rollback,
    }
    labels = sorted(algorithm.label for algorithm in able.algorithms)
    output.line(f"provider {able.provider}: {', '.join(labels)}")
    output.table(("can", ""), [(what, "yes" if can else "no") for what, can in flags.items()])
    keyed = {what.lower().replace(" ", "_"): can for what, can in flags.items()}
    output.result({"provider": able.provider, "algorithms": labels, **keyed})
    return 0


def generate_key(arguments: argparse.Namespace, output: Output) -> int:
    """Generate one key."""
    from tidegate.cli.keyuri import open_keys

    spec = _spec(arguments)
    store, name = open_keys(arguments.key)
    if arguments.revocable is None and spec.purpose.value == "seal" and store.capabilities().can_revoke:
        spec = replace(spec, policy=replace(spec.policy, revocable=True))
    info = store.generate(name, spec)
    key_id = str(info.public_key.key_id) if info.public_key else None
    output.line(f"generated {info.name} ({_kind(info)})" + (f", key id {key_id}" if key_id else ""))
    output.result({"name": info.name, "algorithm": _kind(info), "key_id": key_id})
    return 0


def _spec(arguments: argparse.Namespace) -> KeySpec:
    """Return what to generate; ``--algorithm seal`` is short for ``--purpose seal``."""
    from tidegate.crypto.signing import parse_algorithm
    from tidegate.keys.errors import KeyPurposeWrong
    from tidegate.keys.store import KeyPolicy, KeyPurpose, KeySpec

    seals = arguments.algorithm == "seal"
    purpose = KeyPurpose(arguments.purpose or ("seal" if seals else "sign"))
    label = None if seals else arguments.algorithm
    if (seals and purpose is not KeyPurpose.SEAL) or (purpose is KeyPurpose.SEAL and label is not None):
        raise KeyPurposeWrong("a sealing key has no algorithm to choose, and nothing else is called seal")
    pcrs = keys_use.parse_pcrs(arguments.pcrs) if arguments.pcrs else frozenset()
    default = "ecdsa-p256" if purpose is KeyPurpose.ATTEST else "ed25519"  # no TPM quotes with Ed25519
    return KeySpec(
        purpose=purpose,
        algorithm=None if purpose is KeyPurpose.SEAL else parse_algorithm(label or default),
        policy=KeyPolicy(
            exportable=arguments.exportable,
            pcrs=pcrs,
            user_auth=arguments.user_auth,
            pcr_authority=keys_seal.read_authority(arguments, pcrs),
            revocable=bool(arguments.revocable),
        ),
    )


def list_keys(arguments: argparse.Namespace, output: Output) -> int:
    """List the keys of a store."""
    from tidegate.cli.keyuri import open_keys

    rows = [
        (info.name, _kind(info), str(info.public_key.key_id) if info.public_key else "-", _policy(info))
        for info in open_keys(arguments.store)[0].list_keys()
    ]
    output.table(("name", "algorithm", "key id", "policy"), rows)
    output.result({"keys": [dict(zip(("name", "algorithm", "key_id", "policy"), row, strict=True)) for row in rows]})
    return 0


def show_key(arguments: argparse.Namespace, output: Output) -> int:
    """Show one key."""
    from tidegate.cli.keyuri import open_keys
    from tidegate.keys.errors import KeyMissing
    from tidegate.keys.store import check_key_name

    store, name = open_keys(arguments.key)
    check_key_name(name)
    info = next((one for one in store.list_keys() if one.name == name), None)
    if info is None:
        raise KeyMissing(f"no key {name!r} there", key=name)
    able = store.capabilities()
    chain = store.certificates(name) if able.can_keep_certificates else ()
    told = {
        "name": name,
        "provider": able.provider,
        "hardware": able.hardware,
        "purpose": info.spec.purpose.value,
        "algorithm": _kind(info),
        "key_id": str(info.public_key.key_id) if info.public_key else None,
        "policy": _policy(info),
        "certificates": len(chain),
    }
    output.table(("", ""), list(told.items()))
    output.result(told)
    return 0


def _kind(info: KeyInfo) -> str:
    return info.spec.algorithm.label if info.spec.algorithm else info.spec.purpose.value


def _policy(info: KeyInfo) -> str:
    policy = info.spec.policy
    words = ["attests"] if info.spec.purpose.value == "attest" else []
    words += ["exportable"] if policy.exportable else []
    words += [f"PCRs {','.join(map(str, sorted(policy.pcrs)))}"] if policy.pcrs else []
    if (authority := policy.pcr_authority) is not None:
        words[-1] += f" as key {authority.key.key_id} signs for {authority.product}"
        words[-1] += f" from the version on that counter {authority.floor} says" if authority.floor else ""
    words += ["own PIN"] if policy.user_auth else []
    words += ["revocable"] if policy.revocable else []
    return ", ".join(words) or "-"


def export_public(arguments: argparse.Namespace, output: Output) -> int:
    """Write a public key to a file."""
    from tidegate.base.durable import write_file_atomic
    from tidegate.cli.keyuri import open_keys

    store, name = open_keys(arguments.key)
    key = store.public_key(name)
    if arguments.format == "pem":
        from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

        from tidegate.pki.keyadapter import library_public_key

        raw = library_public_key(key).public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    else:
        raw = key.encode()
    write_file_atomic(arguments.output, raw)
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
    from tidegate.cli.keyuri import open_keys

    store, name = open_keys(arguments.key)
    store.destroy(name)
    output.line(f"destroyed {name}")
    output.result({"destroyed": name})
    return 0
