"""``tidegate demo``: a protected device from end to end on this machine."""

from __future__ import annotations

import argparse

from tidegate.cli.output import Output


def build(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("--step", action="store_true", help="wait for Enter before each step")
    parser.add_argument("--keep", action="store_true", help="leave namespaces, mounts and work folder to look around")
    parser.add_argument("--clean", action="store_true", help="only remove what an earlier demo with --keep left")
    parser.add_argument("--prefix", default="tg", help="beginning of the namespaces' names (default tg)")
    parser.set_defaults(run=run_demo)


def run_demo(arguments: argparse.Namespace, output: Output) -> int:
    """Run the demo; 0 if every step passed."""
    from tidegate.demo.story import DemoOptions, clean_up, run_story

    if arguments.clean:
        removed = clean_up(arguments.prefix)
        output.line(f"removed: {', '.join(removed) or 'nothing was left'}")
        output.result({"removed": removed})
        return 0
    options = DemoOptions(prefix=arguments.prefix, stepping=arguments.step, keep=arguments.keep, quiet=output.as_json)
    report, failure = run_story(options)
    output.line("")
    output.line(report.table())
    if report.kept is not None:
        output.line(f"\nleft in place: {report.kept}; namespaces: ip netns list | grep ^{arguments.prefix}-")
        output.line(f"look inside: ip netns exec {arguments.prefix}-device sh")
        output.line(f"clean up: tidegate demo --clean --prefix {arguments.prefix}")
    output.result(
        {
            "passed": report.passed and failure is None,
            "seconds": round(report.seconds(), 1),
            "steps": [
                {
                    "chapter": step.chapter,
                    "title": step.title,
                    "passed": step.passed,
                    "seconds": round(step.seconds, 2),
                    "evidence": step.evidence,
                }
                for step in report.steps
            ],
            "error": failure.describe() if failure else None,
        }
    )
    if failure is not None:
        output.line(f"\nstopped: {failure.message} [{failure.code}]\n  what to do: {failure.advice}")
        return failure.exit_status
    return 0 if report.passed else 1
