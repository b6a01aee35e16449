"""The command that is judged: what an operator would type. The one place where it is built. Pure."""

from __future__ import annotations

import sys
from pathlib import Path

from bench.suricata_verify.cases import Invocation

PROGRAM = (sys.executable, "-m", "tidegate.cli.main")
_CHECKSUMS = frozenset({"none", "all", "auto"})


def build_command(plan: Invocation, output: Path, program: tuple[str, ...] = PROGRAM) -> list[str]:
    """Return the argument list that prints a case's EVE lines and writes ``fast.log`` in ``output``.

    A refused rule is fatal, as in the suite's own runner, but the capture is inspected all the same, so that the checks
    that do not need it are judged. Without a capture, the rules are checked alone.
    """
    if plan.capture is None:
        command = [*program, "ids", "rules", "check", *map(str, plan.rules)]
    else:
        command = [*program, "ids", "replay", str(plan.capture), "--eve", "-", "--fail-on-refused"]
        command += ["--set", "detectors.enabled=no"]  # ours find scans that the suite's rules do not ask for
        command += ["--fast", str(output / "fast.log")]
        for path in plan.rules:
            command += ["--rules", str(path)]
        if plan.checksums in _CHECKSUMS:
            command += ["--checksums", plan.checksums]
        if plan.simulate_ips:
            command.append("--simulate-ips")
        if plan.bpf:
            command += ["--filter", " ".join(plan.bpf)]
    if plan.config is not None:
        command += ["--config", str(plan.config)]
        if not plan.rules:
            command += ["--set", "rule-files="]  # the suite's runner switches detection off
    for setting in plan.settings:
        command += ["--set", setting]
    return command
