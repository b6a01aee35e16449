"""What the verbs of ``tidegate ids`` share: which rules and settings the sensor is to run with."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tidegate.ids.inspector import RuleOutcome, Sensor, SensorConfig
    from tidegate.ids.section import IdsSection
    from tidegate.ids.settings import Setting

REFUSED_STATUS = 3  # as for other data that was rejected
MAX_REFUSED_SHOWN = 100  # on standard error; `tidegate ids rules check` has all
MAX_REASON = 160  # of one line for a person; --json has all
CHECKSUM_SETTINGS = {"none": "no", "auto": "auto", "all": "yes"}


def add_rule_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that name rules and settings."""
    parser.add_argument(
        "--rules",
        action="append",
        default=[],
        type=Path,
        metavar="FILE",
        help="signature rules; repeat it for more files",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        dest="settings",
        metavar="NAME=VALUE",
        help="a setting by its name in Suricata's configuration, such as stream.midstream=yes; repeat it for more",
    )
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="take settings, and rules unless --rules names some, from this suricata.yaml (needs PyYAML)",
    )


def add_sensor_options(parser: argparse.ArgumentParser, *, flows: str) -> None:
    """Add the options of a sensor that runs."""
    add_rule_options(parser)
    parser.add_argument(
        "--checksums",
        choices=tuple(CHECKSUM_SETTINGS),
        help="whether packets with wrong checksums are left out; auto: unless the capturing host left them to its "
        "network card",
    )
    parser.add_argument("--simulate-ips", action="store_true", help="decide as if inline: drop and reject rules block")
    parser.add_argument("--filter", metavar="BPF", help="look only at packets that match this pcap filter")
    parser.add_argument("--memory", metavar="SIZE", help="bounds the whole sensor; default 24MiB, without rules 8MiB")
    parser.add_argument("--policy", type=Path, metavar="FILE", help="take the [ids] section of this policy")
    parser.add_argument(
        "--flows", choices=("off", "answered", "all"), default=flows, help=f"which flows to report; default {flows}"
    )


def has_engine() -> bool:
    """Say whether the built module knows rules and protocols, and not scans and floods alone."""
    from tidegate.ids.sensor import load_module

    return hasattr(load_module(), "Inspector")


def wants_engine(arguments: argparse.Namespace) -> bool:
    """Say whether something was asked for that scan and flood detection alone cannot do."""
    names = ("rules", "settings", "config", "checksums", "simulate_ips", "filter")
    is_from_firewall = getattr(arguments, "interface", "") is None
    return has_engine() or is_from_firewall or any(getattr(arguments, name) for name in names)


def read_settings(arguments: argparse.Namespace) -> tuple[tuple[Setting, ...], tuple[Path, ...]]:
    """Return the settings of ``--config`` and ``--set``, and the rule files: of ``--rules``, else of the config."""
    from tidegate.ids.settings import merge_settings, parse_setting

    config: tuple[Setting, ...] = ()
    if arguments.config is not None:
        from tidegate.ids.suricatayaml import read_suricata_config

        config = read_suricata_config(arguments.config)
    settings = merge_settings(config, map(parse_setting, arguments.settings))
    return settings, tuple(arguments.rules) or _configured_rules(dict(settings), arguments.config)


def sensor_config(arguments: argparse.Namespace, *, interface: str | None = None) -> SensorConfig:
    """Return what the sensor is to run with; what stands on the command line wins over file and policy."""
    from tidegate.ids.inspector import SensorConfig
    from tidegate.ids.section import plan_sensor
    from tidegate.ids.settings import RULES_MEMORY, merge_settings

    settings, rules = read_settings(arguments)
    own: list[Setting] = [("tidegate.flow-events", arguments.flows)]
    if arguments.checksums:
        own.append(("pcap-file.checksum-checks", CHECKSUM_SETTINGS[arguments.checksums]))
    if arguments.checksums in ("none", "all"):
        own.append(("stream.checksum-validation", CHECKSUM_SETTINGS[arguments.checksums]))
    if arguments.simulate_ips or getattr(arguments, "queue", None) is not None:
        own.append(("simulate-ips", "yes"))
    if arguments.filter:
        own.append(("bpf-filter", arguments.filter))
    memory = arguments.memory or RULES_MEMORY
    if arguments.policy is not None:
        section = load_section(arguments)
        plan = plan_sensor(section)
        settings, rules = merge_settings(plan.settings, settings), rules or plan.rules
        memory = arguments.memory or section.memory or RULES_MEMORY
    return SensorConfig(
        rules=rules,
        settings=merge_settings(settings, own),
        memory=memory,
        interface=interface,
        folders=_folders(dict(settings), arguments.config),
    )


def load_section(arguments: argparse.Namespace) -> IdsSection:
    """Return the [ids] section of the policy, or one of the command line's options."""
    from tidegate.ids.section import FlowEvents, IdsSection

    if arguments.policy is None:
        return IdsSection(memory=arguments.memory, flow_events=FlowEvents(arguments.flows))
    from tidegate.base.durable import read_file_bounded
    from tidegate.policy.document import MAX_POLICY_BYTES, parse_policy

    text = read_file_bounded(arguments.policy, limit_bytes=MAX_POLICY_BYTES).decode(errors="replace")
    return parse_policy(text, name=str(arguments.policy)).ids or IdsSection()


def tell_refused(sensor: Sensor) -> int:
    """Say on standard error which rules the sensor does not have, and return how many."""
    report = sensor.rules.report() if sensor.rules is not None else None
    if report is None or not report.refused:
        return 0
    for rule in [rule for rule in report.rules if rule.outcome == "refused"][:MAX_REFUSED_SHOWN]:
        print(f"refused: {rule_text(rule)}", file=sys.stderr)
    print(f"{report.refused} rules are refused; `tidegate ids rules check` says which", file=sys.stderr)
    return report.refused


def rule_text(rule: RuleOutcome) -> str:
    """Return one line about a rule, for a person."""
    return f"{rule.source}:{rule.line}  sid {rule.sid}  {clip(rule.reason)}"


def clip(text: str) -> str:
    """Return the beginning of a text from outside, without what a terminal would obey."""
    shown = "".join(letter if letter.isprintable() else "?" for letter in text[:MAX_REASON])
    return shown + ("…" if len(text) > MAX_REASON else "")


def print_lines(lines: list[str]) -> None:
    """Write EVE lines to standard output at once and whole, whoever reads it."""
    if lines:
        data = memoryview(("\n".join(lines) + "\n").encode())
        while data:
            data = data[os.write(sys.stdout.fileno(), data) :]


def _configured_rules(settings: dict[str, str], config: Path | None) -> tuple[Path, ...]:
    folder = Path(settings.get("default-rule-path", ""))
    if config is not None:
        folder = config.parent / folder
    names = settings.get("rule-files", "").split(",")
    return tuple(folder / name.strip() for name in names if name.strip())


def _folders(settings: dict[str, str], config: Path | None) -> tuple[Path, ...]:
    named = [settings[name] for name in ("default-data-dir", "default-rule-path") if settings.get(name)]
    return tuple(Path(name) for name in named) + ((config.parent,) if config is not None else ())
