"""``tidegate update``: verify a bundle for a device, install it, say how the slots stand."""

from __future__ import annotations

import argparse
from pathlib import Path

from tidegate.cli.main import add_verb
from tidegate.cli.output import Output

_STORAGE = "folder with the device's slots, data image and ROM"


def build(parser: argparse.ArgumentParser) -> None:
    """Add the verbs."""
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    install = add_verb(verbs, "install", "write a bundle into the idle slot, verify it, have the next boot try it")
    install.add_argument("bundle", type=Path)
    where = install.add_mutually_exclusive_group(required=True)
    where.add_argument("--storage", type=Path, help=_STORAGE + " (without an agent; no event is written)")
    where.add_argument("--run", dest="run_folder", type=Path, help="run folder of the agent to ask")
    install.add_argument("--tries", type=int, default=3, choices=range(1, 8), metavar="1-7", help="boots to try it")
    install.set_defaults(run=install_bundle)
    check = add_verb(verbs, "check", "say whether a device would install a bundle; nothing is written")
    check.add_argument("bundle", type=Path)
    check.add_argument("--storage", type=Path, required=True, help=_STORAGE)
    check.set_defaults(run=check_bundle)
    for name, purpose in (
        ("confirm", "confirm the running slot by hand (the agent does it after its health probes)"),
        ("reject", "reject the running slot on trial; the next boot takes the other one"),
    ):
        verb = add_verb(verbs, name, purpose)
        verb.add_argument("--storage", type=Path, required=True, help=_STORAGE)
        verb.set_defaults(run=settle)


def install_bundle(arguments: argparse.Namespace, output: Output) -> int:
    """Install a bundle, by the agent or directly."""
    if arguments.run_folder is not None:
        from tidegate.cli.agent import ask

        request: dict[str, object] = {"op": "install-update", "bundle": str(arguments.bundle.absolute())}
        answer = ask(arguments.run_folder, request)
        output.line(f"slot {answer['slot']} holds version {answer['version']}, verified; reboot to try it")
        output.result(answer)
        return 0
    from tidegate.agent.updates import install_update
    from tidegate.boot.storage import DeviceStorage

    def observe(step: str, done: int, total: int) -> None:
        output.progress(f"{step}: {done * 100 // total} % of {total >> 20} MiB")

    installed = install_update(
        DeviceStorage(arguments.storage), arguments.bundle, None, tries=arguments.tries, observe=observe
    )
    output.progress("")
    version = installed.image.manifest.version
    resumed = f", resumed at byte {installed.resumed_at}" if installed.resumed_at else ""
    output.line(f"slot {installed.slot} holds version {version}, verified{resumed}; reboot to try it")
    output.result({"slot": installed.slot, "version": version, "resumed_at": installed.resumed_at})
    return 0


def check_bundle(arguments: argparse.Namespace, output: Output) -> int:
    """Verify a bundle against a device."""
    from tidegate.agent.updates import opened_target
    from tidegate.base.blockdev import FileBlockDevice
    from tidegate.boot.storage import DeviceStorage
    from tidegate.update.installer import verify_bundle

    with opened_target(DeviceStorage(arguments.storage)) as (target, _), FileBlockDevice(arguments.bundle) as source:
        image = verify_bundle(source, target)
    output.line(f"this device would install {image.manifest.product} {image.manifest.version}")
    output.result({"would_install": True, "version": image.manifest.version})
    return 0


def settle(arguments: argparse.Namespace, output: Output) -> int:
    """Confirm or reject the slot that was started last."""
    from tidegate.agent.updates import opened_target
    from tidegate.boot.errors import SlotTransition
    from tidegate.boot.storage import DeviceStorage

    with opened_target(DeviceStorage(arguments.storage)) as (_, control):
        name = control.state().started
        if name is None:
            raise SlotTransition("no slot was started yet")
        (control.confirm if arguments.verb == "confirm" else control.reject)(name)
        state = control.state().slots[name].state.value
    output.line(f"slot {name} is {state}")
    output.result({"slot": name, "state": state})
    return 0
