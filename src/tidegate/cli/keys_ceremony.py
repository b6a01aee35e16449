"""``tidegate keys ceremony``: hold one, read its transcript, use its keys with k of n operators, rehearse bad days."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from tidegate.cli.main import add_verb
from tidegate.cli.output import Output

if TYPE_CHECKING:
    from tidegate.crypto.aead import Secret
    from tidegate.factory.ceremony import CeremonyPlan, Transcript
    from tidegate.factory.token import CeremonyRoom
    from tidegate.keys.store import AskPin

DRILLS = ("ceremony", "rotation", "revocation", "loss")


def build(parser: argparse.ArgumentParser) -> None:
    """Add the verbs."""
    verbs = parser.add_subparsers(dest="ceremony_verb", metavar="VERB", required=True)
    hold = add_verb(verbs, "hold", "generate keys in tokens, back them up, divide the PIN, write the signed transcript")
    hold.add_argument("plan", type=Path, help="plan of the ceremony (TOML, docs/ceremony.md)")
    hold.add_argument("-o", "--output", type=Path, required=True, help="new folder for transcript, shares, public keys")
    _add_passphrases(hold, "the operators' passphrases, in the plan's order")
    hold.set_defaults(run=hold_ceremony)
    again = add_verb(verbs, "reshare", "divide a new PIN among the plan's operators; the keys stay, old shares end")
    again.add_argument("plan", type=Path, help="plan with the operators as they are from now on")
    again.add_argument(
        "--share", type=Path, action="append", required=True, help="present share; as many as are needed"
    )
    again.add_argument(
        "-o", "--output", type=Path, required=True, help="new folder for transcript, shares, public keys"
    )
    _add_passphrases(again, "the passphrases of the present shares, then those of the plan's operators")
    again.set_defaults(run=renew_shares)
    show = add_verb(verbs, "show", "verify a transcript and print it")
    show.add_argument("transcript", type=Path, help="signed transcript of a ceremony")
    show.add_argument("--plan", type=Path, help="plan that the transcript has to agree with")
    show.set_defaults(run=show_transcript)
    share = add_verb(verbs, "words", "show one operator's share as words, to be kept on paper")
    share.add_argument("share", type=Path, help="share file of one operator")
    _add_passphrases(share, "the operator's passphrase")
    share.set_defaults(run=show_words)
    using = add_verb(verbs, "with-pin", "join shares to the PIN and run a command that needs it")
    using.add_argument("--share", type=Path, action="append", required=True, help="share file; as many as are needed")
    _add_passphrases(using, "the operators' passphrases, in the order of the shares")
    using.add_argument(
        "command",
        nargs="+",
        help="the command behind --; {pin} in it becomes a file in memory that this command inherits, "
        "e.g. -- tidegate policy sign … --sign 'pkcs11:token=maker;object=release?module-path=…&pin-source={pin}'",
    )
    using.set_defaults(run=run_with_pin)
    drill = add_verb(verbs, "drill", "rehearse on software tokens: ceremony, rotation, revocation, loss of a token")
    drill.add_argument("drill", choices=(*DRILLS, "all"), help="what to rehearse")
    drill.set_defaults(run=rehearse)


def _add_passphrases(parser: argparse.ArgumentParser, whose: str) -> None:
    parser.add_argument(
        "--passphrase-file",
        type=Path,
        action="append",
        default=[],
        help=f"private file (or /dev/fd/N) with {whose}; asked on the terminal without",
    )


def hold_ceremony(arguments: argparse.Namespace, output: Output) -> int:
    """Hold the ceremony of a plan."""
    from tidegate.factory.token import hold_ceremony

    ask = _asker(arguments.passphrase_file)
    return _tell(arguments, output, hold_ceremony(_plan(arguments.plan), arguments.output, _room(ask, output)))


def renew_shares(arguments: argparse.Namespace, output: Output) -> int:
    """Join the present shares and divide a new PIN."""
    from tidegate.crypto.aead import Secret
    from tidegate.factory.token import renew_shares

    plan, ask = _plan(arguments.plan), _asker(arguments.passphrase_file)
    with _join(arguments.share, ask) as pin:

        def answer(what: str) -> Secret:
            return ask(what) if "passphrase" in what else Secret(bytes(pin.view()))

        transcript = renew_shares(plan, arguments.output, _room(answer, output))
    return _tell(arguments, output, transcript)


def _plan(path: Path) -> CeremonyPlan:
    from tidegate.base.durable import read_file_bounded
    from tidegate.factory.ceremony import MAX_PLAN_BYTES, parse_plan

    return parse_plan(read_file_bounded(path, limit_bytes=MAX_PLAN_BYTES), name=path.name)


def _room(ask: AskPin, output: Output) -> CeremonyRoom:
    from tidegate.base.clock import SystemClock, SystemEntropy
    from tidegate.factory.token import CeremonyRoom

    return CeremonyRoom(ask=ask, tell=output.line, clock=SystemClock(), entropy=SystemEntropy())


def _tell(arguments: argparse.Namespace, output: Output, transcript: Transcript) -> int:
    from tidegate.factory.token import TRANSCRIPT

    output.line(f"{transcript.threshold} of {len(transcript.shares)} operators are needed; hand out the share files")
    output.result(
        {
            "ceremony": transcript.ceremony,
            "transcript": str(arguments.output / TRANSCRIPT),
            "keys": {key.name: str(key.public_key.key_id) for key in transcript.keys},
        }
    )
    return 0


def show_transcript(arguments: argparse.Namespace, output: Output) -> int:
    """Verify a transcript; the exit code is 1 if it is not what the plan says."""
    import datetime

    from tidegate.base.durable import read_file_bounded
    from tidegate.crypto.cose import MAX_ENVELOPE_BYTES
    from tidegate.factory.ceremony import differences, verify_transcript

    told = verify_transcript(read_file_bounded(arguments.transcript, limit_bytes=MAX_ENVELOPE_BYTES)).transcript
    started, ended = (
        datetime.datetime.fromtimestamp(moment, tz=datetime.UTC).isoformat()
        for moment in (told.started_s, told.ended_s)
    )
    output.line(f"ceremony {told.ceremony} of {told.maker}{f', {told.place}' if told.place else ''}")
    output.line(f"{started} to {ended}, Tidegate {told.version}; signed by every key below")
    for role, token in told.tokens.items():
        output.line(f"{role} token: " + ", ".join(f"{name} {text}" for name, text in token.items()))
    rows = [
        (key.name, key.public_key.algorithm.label, str(key.public_key.key_id), "yes" if key.is_backed_up else "no")
        for key in told.keys
    ]
    output.table(("key", "algorithm", "key id", "backup"), rows)
    output.line(f"{told.threshold} of {len(told.shares)} shares open the tokens")
    output.table(("operator", "sha256 of the share"), [(name, digest.hex()) for name, digest in told.shares.items()])
    found = differences(_plan(arguments.plan), told) if arguments.plan is not None else []
    for one in found:
        output.line(f"differs from the plan: {one}")
    output.result(
        {
            "ceremony": told.ceremony,
            "maker": told.maker,
            "started": started,
            "ended": ended,
            "threshold": told.threshold,
            "tokens": told.tokens,
            "keys": [dict(zip(("name", "algorithm", "key_id", "backup"), row, strict=True)) for row in rows],
            "shares": {name: digest.hex() for name, digest in told.shares.items()},
            "differences": found,
        }
    )
    return 1 if found else 0


def show_words(arguments: argparse.Namespace, output: Output) -> int:
    """Print the words of one share."""
    from tidegate.base.durable import read_file_bounded
    from tidegate.factory.shares import MAX_SHARE_BYTES, open_share, parse_share

    raw = read_file_bounded(arguments.share, limit_bytes=MAX_SHARE_BYTES)
    operator = parse_share(raw)[0].operator
    with _asker(arguments.passphrase_file)(f"the passphrase of {operator}") as passphrase:
        head, words = open_share(raw, passphrase)
    text = words.view().tobytes().decode()
    output.line(f"share of {head.operator}, {head.threshold} of {head.shares} needed:")
    output.line(text)
    output.result({"operator": head.operator, "threshold": head.threshold, "shares": head.shares, "words": text})
    return 0


def run_with_pin(arguments: argparse.Namespace, output: Output) -> int:  # noqa: ARG001  # the command answers, not we
    """Run a command with the PIN in a file in memory that it inherits; return the command's exit code."""
    import os
    import subprocess

    from tidegate.base.durable import translate_os_errors

    descriptor = os.memfd_create("pin", 0)
    try:
        with _join(arguments.share, _asker(arguments.passphrase_file)) as pin:
            os.write(descriptor, pin.view())
        command = [word.replace("{pin}", f"/dev/fd/{descriptor}") for word in arguments.command]
        with translate_os_errors(command[0]):
            return subprocess.run(command, pass_fds=(descriptor,), check=False).returncode
    finally:
        os.close(descriptor)


def _join(paths: list[Path], ask: AskPin) -> Secret:
    """Return the PIN that the shares in ``paths`` make together."""
    from tidegate.base.durable import read_file_bounded
    from tidegate.factory.shares import MAX_SHARE_BYTES, join, open_share, parse_share, pin_of

    words, letters, threshold = [], 0, 0
    for path in paths:
        raw = read_file_bounded(path, limit_bytes=MAX_SHARE_BYTES)
        with ask(f"the passphrase of {parse_share(raw)[0].operator}") as passphrase:
            head, share = open_share(raw, passphrase)
        letters, threshold = head.letters, head.threshold
        words.append(share)
    with join(words[:threshold]) as secret:  # SLIP-39 refuses one more than it needs
        return pin_of(secret, letters)


def rehearse(arguments: argparse.Namespace, output: Output) -> int:
    """Run one drill or all of them; the exit code is 1 if a step did not hold."""
    from tidegate.demo.drills import run_drills

    names = DRILLS if arguments.drill == "all" else (arguments.drill,)
    steps = run_drills(names, tell=output.line)
    output.line(f"{len(steps)} steps held")
    output.result({"drills": list(names), "steps": steps})
    return 0


def _asker(files: list[Path]) -> AskPin:
    """Return what gives the passphrases of ``files`` in turn, and asks on the terminal where there are none (left)."""
    from tidegate.cli.keyuri import ask_on_terminal, ask_twice
    from tidegate.factory.shares import NEW_PASSPHRASE
    from tidegate.keys.uri import read_passphrase

    left = list(files)

    def ask(what: str) -> Secret:
        if left and "passphrase" in what:
            return read_passphrase(left.pop(0))
        return ask_twice(what) if what.startswith(NEW_PASSPHRASE) else ask_on_terminal(what)

    return ask
