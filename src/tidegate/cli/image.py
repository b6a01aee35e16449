"""``tidegate image``: build and sign, inspect, verify."""

from __future__ import annotations

import argparse
import io
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from tidegate.cli.main import add_verb
from tidegate.cli.output import Output

if TYPE_CHECKING:
    from tidegate.image.manifest import Manifest


def build(parser: argparse.ArgumentParser) -> None:
    """Add the verbs."""
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    make = add_verb(verbs, "build", "build and sign an update bundle from an image description")
    make.add_argument("description", type=Path, help="TOML file (docs/formats/image.md)")
    make.add_argument("--sign", action="append", required=True, metavar="KEY", help="key URI; once per key")
    make.add_argument("--anchors", type=Path, help="trust anchors to build into the second stage")
    make.add_argument("-o", "--output", type=Path, required=True, help="bundle to write")
    make.set_defaults(run=build_image)
    inspect = add_verb(verbs, "inspect", "show a bundle's manifest without verifying it")
    inspect.add_argument("bundle", type=Path)
    inspect.set_defaults(run=inspect_image)
    verify = add_verb(verbs, "verify", "verify a bundle as a device would")
    verify.add_argument("bundle", type=Path)
    verify.add_argument("--anchors", type=Path, required=True, help="trust anchors (tidegate keys anchors)")
    verify.add_argument("--hardware", required=True, help="hardware id of the device")
    verify.add_argument("--floor", type=int, default=0, help="lowest security version to accept (default 0)")
    verify.set_defaults(run=verify_bundle)


def build_image(arguments: argparse.Namespace, output: Output) -> int:
    """Build and sign a bundle; it appears under its name only when it is whole."""
    from tidegate.base.durable import read_file_bounded, translate_os_errors
    from tidegate.boot.stage2_build import build_stage2
    from tidegate.cli.keyuri import open_key
    from tidegate.crypto.trust import MAX_TRUST_BYTES, parse_trust
    from tidegate.factory.describe import MAX_DESCRIPTION_BYTES, parse_description
    from tidegate.image.build import PayloadSource, write_bundle
    from tidegate.image.errors import ImageDescription
    from tidegate.image.manifest import PayloadKind

    path: Path = arguments.description
    described = parse_description(read_file_bounded(path, limit_bytes=MAX_DESCRIPTION_BYTES), name=str(path))
    signers = [open_key(uri) for uri in arguments.sign]
    with ExitStack() as stack:
        sources = []
        for payload in described.payload:
            if payload.file is not None:
                file = path.parent / payload.file
                with translate_os_errors(file):
                    stream: io.BufferedReader | io.BytesIO = stack.enter_context(file.open("rb"))
            elif payload.kind is PayloadKind.STAGE2 and arguments.anchors:
                raw = read_file_bounded(arguments.anchors, limit_bytes=MAX_TRUST_BYTES)
                stream = io.BytesIO(build_stage2(parse_trust(raw)))
            else:
                raise ImageDescription(f"payload {payload.name} has no file (a second stage can be built: --anchors)")
            sources.append(PayloadSource(name=payload.name, kind=payload.kind, stream=stream, start=payload.start))
        part = arguments.output.with_name(f".{arguments.output.name}.part")
        with translate_os_errors(part):
            try:
                with part.open("wb") as out:
                    manifest = write_bundle(
                        described.identity(_sbom_digest(path, described.sbom)), sources, signers, out
                    )
                part.rename(arguments.output)
            finally:
                part.unlink(missing_ok=True)
    output.line(f"wrote {arguments.output}: {manifest.product} {manifest.version}, {len(signers)} signatures")
    output.result({"bundle": str(arguments.output), "manifest": _describe(manifest)})
    return 0


def inspect_image(arguments: argparse.Namespace, output: Output) -> int:
    """Show what a bundle claims; nothing of it is verified."""
    from tidegate.base.blockdev import FileBlockDevice
    from tidegate.crypto.cose import unverified_payload
    from tidegate.image.layout import HEAD_BYTES, parse_head
    from tidegate.image.manifest import parse_manifest

    with FileBlockDevice(arguments.bundle) as source:
        manifest = parse_manifest(unverified_payload(parse_head(source.read_at(0, HEAD_BYTES))))
    output.line("NOT VERIFIED: this is what the file claims")
    _show(manifest, output)
    output.result({"verified": False, "manifest": _describe(manifest)})
    return 0


def verify_bundle(arguments: argparse.Namespace, output: Output) -> int:
    """Verify head, every block and the exact size."""
    from tidegate.base.blockdev import FileBlockDevice
    from tidegate.base.durable import read_file_bounded
    from tidegate.crypto.trust import MAX_TRUST_BYTES, parse_trust
    from tidegate.image.verify import AcceptanceRule, verify_image

    trust = parse_trust(read_file_bounded(arguments.anchors, limit_bytes=MAX_TRUST_BYTES))
    rule = AcceptanceRule(trust=trust, hardware=arguments.hardware, security_floor=arguments.floor)
    with FileBlockDevice(arguments.bundle) as source:
        image = verify_image(source, rule, exact_size=True)
    _show(image.manifest, output)
    output.line(f"verified: signed by {', '.join(str(key) for key in image.signers)}")
    signers = [str(key) for key in image.signers]
    output.result({"verified": True, "signers": signers, "manifest": _describe(image.manifest)})
    return 0


def _sbom_digest(description: Path, sbom: str | None) -> bytes | None:
    import hashlib

    from tidegate.base.durable import read_file_bounded

    if sbom is None:
        return None
    return hashlib.sha256(read_file_bounded(description.parent / sbom, limit_bytes=64 << 20)).digest()


def _describe(manifest: Manifest) -> dict[str, object]:
    import msgspec

    document: dict[str, object] = msgspec.to_builtins(manifest, builtin_types=(bytes,))
    sbom = manifest.sbom_sha256
    return document | {
        "sbom_sha256": sbom.hex() if sbom else None,
        "payloads": [
            {"name": payload.name, "kind": payload.kind.value, "size": payload.size, "sha256": payload.sha256.hex()}
            for payload in manifest.payloads
        ],
    }


def _show(manifest: Manifest, output: Output) -> None:
    output.line(
        f"{manifest.vendor} {manifest.product} {manifest.version}, security version {manifest.security_version}"
    )
    output.line(f"for {', '.join(manifest.hardware)}")
    rows = [
        (payload.name, payload.kind.value, payload.size, payload.sha256.hex()[:16]) for payload in manifest.payloads
    ]
    output.table(("payload", "kind", "bytes", "sha256"), rows)
