"""``tidegate boot``: provision storage, install the factory image, start, show slots and measurements, audit."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import NoReturn

from tidegate.cli.main import add_verb
from tidegate.cli.output import Output

_STORAGE = "folder with the device's slots, data image and ROM"


def build(parser: argparse.ArgumentParser) -> None:
    """Add the verbs."""
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    provision = add_verb(verbs, "provision", "make the storage of a blank device: slots, data image, ROM (root)")
    provision.add_argument("storage", type=Path, help=_STORAGE)
    provision.add_argument("--maker", type=Path, required=True, help="trust anchors for images")
    provision.add_argument("--owner", type=Path, required=True, help="trust anchors for policies")
    provision.add_argument("--hardware", required=True, help="hardware id that images must name")
    provision.add_argument("--slot-mib", type=int, default=64, help="size of a slot in MiB (default 64)")
    provision.add_argument("--data-mib", type=int, default=32, help="size of the data image in MiB (default 32)")
    provision.set_defaults(run=provision_storage)
    first = add_verb(verbs, "install", "write the factory image into the first slot")
    first.add_argument("storage", type=Path, help=_STORAGE)
    first.add_argument("bundle", type=Path)
    first.set_defaults(run=install_first)
    status = add_verb(verbs, "status", "show both slots, the preferred one and the security floor")
    status.add_argument("storage", type=Path, help=_STORAGE)
    status.set_defaults(run=show_status)
    audit = add_verb(verbs, "audit", "verify every block of both slots, offline; exit 1 if no slot would boot")
    audit.add_argument("storage", type=Path, help=_STORAGE)
    audit.set_defaults(run=audit_storage)
    start = add_verb(verbs, "start", "run the first stage, which verifies and starts the rest (root; does not return)")
    start.add_argument("storage", type=Path, help=_STORAGE)
    start.add_argument("--run", dest="run_folder", type=Path, required=True, help="folder in memory")
    start.add_argument("--netns", help="network namespace to start in (default: the current one)")
    start.set_defaults(run=start_device)
    log = add_verb(verbs, "log", "show a boot's log and the registers it replays to")
    log.add_argument("run_folder", type=Path, help="the run folder that the boot used")
    log.set_defaults(run=show_log)


def provision_storage(arguments: argparse.Namespace, output: Output) -> int:
    """Make slots, data image and ROM."""
    from tidegate.base.clock import SystemEntropy
    from tidegate.base.durable import read_file_bounded
    from tidegate.boot.storage import DeviceStorage, StorageSizes
    from tidegate.crypto.trust import MAX_TRUST_BYTES, parse_trust

    maker, owner = (
        parse_trust(read_file_bounded(path, limit_bytes=MAX_TRUST_BYTES)) for path in (arguments.maker, arguments.owner)
    )
    DeviceStorage.provision(
        arguments.storage,
        StorageSizes(slot=arguments.slot_mib << 20, data=arguments.data_mib << 20),
        maker=maker,
        owner=owner,
        hardware=arguments.hardware,
        entropy=SystemEntropy(),
    )
    output.line(f"provisioned {arguments.storage}: two slots of {arguments.slot_mib} MiB, ROM with the trust anchors")
    output.result({"storage": str(arguments.storage), "hardware": arguments.hardware})
    return 0


def install_first(arguments: argparse.Namespace, output: Output) -> int:
    """Write the factory image."""
    from tidegate.boot.storage import DeviceStorage
    from tidegate.factory.provision import install_first_image

    installed = install_first_image(DeviceStorage(arguments.storage), arguments.bundle)
    version = installed.image.manifest.version
    output.line(f"slot {installed.slot} holds version {version}, verified; the next boot tries it")
    output.result({"slot": installed.slot, "version": version})
    return 0


def show_status(arguments: argparse.Namespace, output: Output) -> int:
    """Show the boot state."""
    import msgspec

    from tidegate.boot.control import RecordBootControl
    from tidegate.boot.storage import DeviceStorage

    with DeviceStorage(arguments.storage).opened(writable=False) as parts:
        state = RecordBootControl(parts.state).state()
    rows = [
        (name, slot.state.value, slot.version or "-", slot.security_version, slot.tries_left)
        for name, slot in sorted(state.slots.items())
    ]
    output.table(("slot", "state", "version", "security version", "tries left"), rows)
    output.line(f"preferred: {state.preferred}; started last: {state.started or '-'}; floor: {state.security_floor}")
    output.result(msgspec.to_builtins(state))
    return 0


def audit_storage(arguments: argparse.Namespace, output: Output) -> int:
    """Verify both slots without starting anything or changing the state."""
    from tidegate.base.errors import Rejected
    from tidegate.boot.control import RecordBootControl
    from tidegate.boot.slots import boot_order
    from tidegate.boot.storage import DeviceStorage
    from tidegate.image.verify import AcceptanceRule, verify_image

    storage = DeviceStorage(arguments.storage)
    rows, good = [], set()
    with storage.opened(writable=False) as parts:
        state, rule = RecordBootControl(parts.state).state(), storage.maker_rule()
        rule = AcceptanceRule(trust=rule.trust, hardware=rule.hardware, security_floor=state.security_floor)
        for name, device in sorted(parts.slots.items()):
            try:
                image = verify_image(device, rule)
            except Rejected as error:
                rows.append((name, state.slots[name].state.value, error.code))
                continue
            rows.append((name, state.slots[name].state.value, f"authentic, version {image.manifest.version}"))
            good.add(name)
    bootable = [name for name in boot_order(state) if name in good]
    output.table(("slot", "state", "content"), rows)
    output.line(f"would boot: {bootable[0] if bootable else 'nothing'}")
    output.result(
        {"slots": [dict(zip(("slot", "state", "content"), row, strict=True)) for row in rows], "boot": bootable}
    )
    return 0 if bootable else 1


def start_device(arguments: argparse.Namespace, output: Output) -> NoReturn:
    """Replace this process by the first stage in namespaces of its own."""
    from tidegate.base.durable import translate_os_errors
    from tidegate.base.program import find_program
    from tidegate.boot.power import power_command

    run_folder: Path = arguments.run_folder.absolute()
    with translate_os_errors(run_folder):
        (run_folder / "root").mkdir(parents=True, exist_ok=True)
    command = power_command(arguments.storage.absolute(), run_folder)
    if arguments.netns:
        command = [find_program("ip"), "netns", "exec", arguments.netns, *command]
    output.line(f"starting {arguments.storage}")
    os.execv(command[0], command)  # noqa: S606  # no shell


def show_log(arguments: argparse.Namespace, output: Output) -> int:
    """Show a boot log."""
    import msgspec

    from tidegate.base.errors import StorageMissing
    from tidegate.boot.log import BootLog
    from tidegate.boot.measure import Began, Measurement, Refusal, replay

    log = BootLog(arguments.run_folder)
    if not log.path.exists():
        raise StorageMissing(f"{log.path}: there is no boot log", path=str(log.path))
    entries = log.read()
    for entry in entries:
        if isinstance(entry, Measurement):
            output.line(f"{entry.stage}  measured  {entry.what:<28} into {entry.register}: {entry.digest[:16]}…")
        elif isinstance(entry, Refusal):
            output.line(f"{entry.stage}  REFUSED   slot {entry.slot}: {entry.message} [{entry.code}]")
        elif isinstance(entry, Began):
            output.line(f"{entry.stage}  began")
        else:
            output.line(f"{entry.stage}  started   slot {entry.slot}, version {entry.version}")
    registers = replay(entries)
    for number, value in registers.items():
        output.line(f"register {number}: {value}")
    output.result({"entries": [msgspec.to_builtins(entry) for entry in entries], "registers": registers})
    return 0
