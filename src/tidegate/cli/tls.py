"""``tidegate tls``: does this Python's TLS take keys that stay in their provider?"""

from __future__ import annotations

import argparse

from tidegate.cli.main import add_verb
from tidegate.cli.output import Output


def build(parser: argparse.ArgumentParser) -> None:
    """Add the verbs."""
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    check = add_verb(verbs, "check", "run the self-check: versions, layout, a trial handshake with a provider's key")
    check.set_defaults(run=check_platform)


def check_platform(_: argparse.Namespace, output: Output) -> int:
    """Say what was proven; an unsupported platform is an error with its code."""
    import platform
    import ssl
    import time

    from tidegate.tls.algorithms import supported_labels
    from tidegate.tls.selfcheck import examine_platform

    started = time.perf_counter()
    proven = examine_platform()
    took_ms = (time.perf_counter() - started) * 1000
    python = f"{platform.python_implementation()} {platform.python_version()}"
    labels = supported_labels()
    output.line(f"python       {python}")
    output.line(f"openssl      {ssl.OPENSSL_VERSION}")
    output.line(f"library      {proven.library.path()}")
    output.line(f"SSL_CTX at   offset {proven.layout.offset} of the context object, proven")
    output.line(f"versions     {', '.join(proven.versions)}, mutual handshake with a provider's key")
    output.line(f"keys         {', '.join(labels)}")
    output.line(f"\nTLS with keys that stay in their provider works here ({took_ms:.0f} ms to find out)")
    output.result(
        {
            "ok": True,
            "python": python,
            "openssl": ssl.OPENSSL_VERSION,
            "library": proven.library.path(),
            "offset": proven.layout.offset,
            "versions": list(proven.versions),
            "algorithms": labels,
            "took_ms": round(took_ms, 1),
        }
    )
    return 0
