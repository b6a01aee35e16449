"""``tidegate factory``: a factory CA, and what makes a blank device one of the fleet."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from tidegate.cli.main import add_verb
from tidegate.cli.output import Output

if TYPE_CHECKING:
    from tidegate.pki.certificate import Issuance


def build(parser: argparse.ArgumentParser) -> None:
    """Add the verbs."""
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    authority = add_verb(verbs, "ca", "issue a factory CA certificate for an ECDSA key")
    authority.add_argument("key", help="key URI of an ecdsa-p256 or ecdsa-p384 key")
    authority.add_argument("--organization", required=True, help="the maker's name")
    authority.add_argument("-o", "--output", type=Path, required=True, help="certificate to write (PEM)")
    authority.set_defaults(run=issue_ca)
    provision = add_verb(
        verbs, "provision", "put keys, identity certificate, first policy and vault on a device's data image (root)"
    )
    provision.add_argument("storage", type=Path, help="storage made by `tidegate boot provision`, switched off")
    provision.add_argument("--device", required=True, help="device id, for its certificate and policy")
    provision.add_argument("--ca", type=Path, required=True, help="factory CA certificate (PEM)")
    provision.add_argument("--ca-key", required=True, help="key URI of the factory CA")
    provision.add_argument("--policy", type=Path, required=True, help="first policy, signed by the owner")
    provision.add_argument(
        "--keys",
        default=None,
        help="key URI of the device's own keys, with {data} and {rom} for its folders, e.g. "
        "tpm2:{data}/keys?tcti=device:/dev/tpmrm0 (default: software keys opened by the ROM's secret)",
    )
    provision.add_argument(
        "--keys-in-use",
        default=None,
        help="other key URI by which the running device reaches the same keys, e.g. keyd:/run/tidegate/keyd.sock",
    )
    provision.add_argument("--event-key", type=Path, help="file for the public key that signs the device's event log")
    provision.set_defaults(run=provision_device)


def issue_ca(arguments: argparse.Namespace, output: Output) -> int:
    """Issue the CA certificate."""
    from tidegate.base.durable import write_file_atomic
    from tidegate.cli.keyuri import open_key
    from tidegate.pki.certificate import encode_pem, issue_factory_ca

    signer = open_key(arguments.key)
    certificate = issue_factory_ca(signer, organization=arguments.organization, issuance=_issuance())
    write_file_atomic(arguments.output, encode_pem(certificate))
    subject = certificate.subject.rfc4514_string()
    output.line(f"wrote {arguments.output}: {subject}")
    output.result({"file": str(arguments.output), "subject": subject})
    return 0


def provision_device(arguments: argparse.Namespace, output: Output) -> int:
    """Give a device its identity."""
    from tidegate.base.clock import SystemClock, SystemEntropy
    from tidegate.base.durable import read_file_bounded, write_file_atomic
    from tidegate.boot.storage import SOFTWARE_KEYSTORE, DeviceStorage
    from tidegate.cli.keyuri import open_key
    from tidegate.crypto.cose import MAX_ENVELOPE_BYTES
    from tidegate.factory.provision import DeviceOrder, FactoryCa, provision_identity
    from tidegate.pki.certificate import MAX_PEM_BYTES, parse_pem

    certificate = parse_pem(read_file_bounded(arguments.ca, limit_bytes=MAX_PEM_BYTES))
    device = provision_identity(
        DeviceStorage(arguments.storage),
        DeviceOrder(
            device=arguments.device,
            policy=read_file_bounded(arguments.policy, limit_bytes=MAX_ENVELOPE_BYTES),
            keystore=arguments.keys or SOFTWARE_KEYSTORE,
            keystore_in_use=arguments.keys_in_use,
        ),
        FactoryCa(certificate=certificate, signer=open_key(arguments.ca_key)),
        clock=SystemClock(),
        entropy=SystemEntropy(),
    )
    if arguments.event_key is not None:
        write_file_atomic(arguments.event_key, device.event_key.encode())
    output.line(f"device {device.device}: {device.certificate.subject.rfc4514_string()}")
    output.line(
        f"policy version {device.policy.policy.policy.version}; event key {device.event_key.key_id}; vault made"
    )
    output.result({"device": device.device, "event_key": str(device.event_key.key_id)})
    return 0


def _issuance() -> Issuance:
    import datetime

    from tidegate.base.clock import SystemEntropy
    from tidegate.pki.certificate import Issuance

    now = datetime.datetime.now(tz=datetime.UTC).replace(microsecond=0)
    return Issuance(not_before=now, serial=int.from_bytes(SystemEntropy().random_bytes(16), "big") | 1)
