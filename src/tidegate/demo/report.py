"""The demo's record: each step as it happens with its evidence, a table at the end, JSON for programs."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tidegate.base.errors import TidegateError
from tidegate.demo.errors import StepFailed


@dataclass(slots=True, kw_only=True)
class Step:
    """One step of the story and what it showed."""

    chapter: str
    title: str
    evidence: list[str] = field(default_factory=list)
    passed: bool = False
    seconds: float = 0.0


class Report:
    """Collects steps; prints them unless ``quiet``; waits for Enter before each one if ``stepping``."""

    def __init__(self, *, quiet: bool, stepping: bool) -> None:
        self._quiet, self._stepping = quiet, stepping
        self._chapter = ""
        self.steps: list[Step] = []
        self.kept: Path | None = None
        self._started_s = time.monotonic()

    def chapter(self, title: str) -> None:
        """Begin a chapter."""
        self._chapter = title
        self._say(f"\n{self._bold(title)}")

    @contextmanager
    def step(self, title: str) -> Iterator[Step]:
        """Run one step; an error of ours ends the demo with the step marked as failed."""
        if self._stepping and sys.stdin.isatty():
            input(f"  … {title} (Enter)")
        step = Step(chapter=self._chapter, title=title)
        self.steps.append(step)
        started_s = time.monotonic()
        try:
            yield step
            step.passed = True
        except TidegateError as error:
            step.evidence.append(f"{error.message} [{error.code}]")
            raise
        finally:
            step.seconds = time.monotonic() - started_s
            self._say(f"  {'ok  ' if step.passed else 'FAIL'} {title}  ({step.seconds:.1f} s)")
            for line in step.evidence:
                self._say(f"         {line}")

    def table(self) -> str:
        """Return the closing table."""
        width = max(len(step.title) for step in self.steps)
        lines = [f"{'step'.ljust(width)}  result  seconds", f"{'-' * width}  ------  -------"]
        lines += [
            f"{step.title.ljust(width)}  {'ok' if step.passed else 'FAILED':6}  {step.seconds:7.1f}"
            for step in self.steps
        ]
        passed = sum(step.passed for step in self.steps)
        lines.append(f"\n{passed} of {len(self.steps)} steps passed in {self.seconds():.0f} s")
        return "\n".join(lines)

    def seconds(self) -> float:
        """Return how long the story has taken."""
        return time.monotonic() - self._started_s

    @property
    def passed(self) -> bool:
        """Return whether every step so far passed (and there was one)."""
        return bool(self.steps) and all(step.passed for step in self.steps)

    def _say(self, text: str) -> None:
        if not self._quiet:
            print(text, flush=True)

    @staticmethod
    def _bold(text: str) -> str:
        return f"\x1b[1m{text}\x1b[0m" if sys.stdout.isatty() else text


def require(condition: bool, complaint: str) -> None:
    """Raise ``demo.step.failed`` unless ``condition`` holds: every claim of the demo goes through here."""
    if not condition:
        raise StepFailed(complaint)


def wait_until(condition: Callable[[], bool], complaint: str, *, timeout_s: float) -> float:
    """Return the seconds until the callable ``condition`` held, or raise ``demo.step.failed``."""
    started_s = time.monotonic()
    while not condition():
        if time.monotonic() - started_s > timeout_s:
            raise StepFailed(f"{complaint} within {timeout_s:g} s")
        time.sleep(0.02)
    return time.monotonic() - started_s
