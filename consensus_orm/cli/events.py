"""Runs a command of the operator for each event: a change of phase, a mismatch, a reject, an alarm, a finished step."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import shlex
import shutil
import subprocess
import threading
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Self

import click

from consensus_orm.cli.output import one_line, plain

__all__ = ["Notifier", "words_of"]

WAITING = 100
"""Events that wait for their command; of what comes while so many wait, only the number is told."""

LONGEST = 30
"""Seconds after which a command is ended."""


def words_of(command: str) -> list[str]:
    """A command as its words.

    Raises:
        ValueError: It is empty, a quotation does not end, or there is no such program.
    """
    words = shlex.split(command)
    if not words:
        raise ValueError("it is empty")
    if shutil.which(words[0]) is None:
        raise ValueError(f"there is no program {words[0]!r} that can be run")
    return words


class Notifier:
    """Runs a command for each event, one after the other, on a thread: a step never waits for it, nor fails with it.

    The command gets the event as a JSON document on stdin, and its name in CONSENSUS_ORM_EVENT. What it prints goes to
    stderr.

    Args:
        command: The words of the command; it is run without a shell.
        database: The name of the database, without password.
    """

    def __init__(self, command: list[str], database: str) -> None:
        self._command = command
        self._database = database
        self._waiting: queue.Queue[Mapping[str, Any] | None] = queue.Queue()
        self._failed = self._left_out = 0
        self._thread = threading.Thread(target=self._work, name="consensus_orm-events", daemon=True)

    def tell(self, event: str, **facts: object) -> None:
        """Have the command run for an event.

        Args:
            event: phase_changed, mismatch, reject, alarm or step_done.
            **facts: What is known of it; no contents of rows.
        """
        if self._waiting.qsize() >= WAITING:
            self._left_out += 1
            return
        at = datetime.now(UTC)
        self._waiting.put({"event": event, "database": self._database, "at": plain(at), **plain(facts)})

    def hear(self, event: object) -> None:
        """Pass an event of the store on, if it is one that concerns an operator."""
        from consensus_orm.events import AlarmEvent, MismatchEvent, RejectEvent

        match event:
            case MismatchEvent(recorded=True):
                self.tell("mismatch", pair=event.pair, key=event.key, column=event.column, kind=event.kind)
            case RejectEvent():
                self.tell("reject", pair=event.pair, key=event.key, reason=event.reason)
            case AlarmEvent():
                self.tell("alarm", reason=event.reason)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._waiting.put(None)
        self._thread.join()
        for number, what in ((self._failed, "failed"), (self._left_out, "were left out: too many at a time")):
            if number:
                click.echo(f"consensus-orm: warning: commands of --on-event {what}: {number:,}", err=True)

    def _work(self) -> None:
        problem = None
        while (event := self._waiting.get()) is not None:
            before, problem = problem, self._run(event)
            self._failed += problem is not None
            if problem and not before:  # at once, because a keeper ends after weeks
                with contextlib.suppress(OSError):
                    told = f"the command of --on-event failed for {event['event']}: {problem}"
                    click.echo(f"consensus-orm: warning: {told}", err=True)

    def _run(self, event: Mapping[str, Any]) -> str | None:
        """Run the command for an event; why it failed, or None."""
        environment = {**os.environ, "CONSENSUS_ORM_EVENT": str(event["event"])}
        try:
            done = subprocess.run(
                self._command,
                input=json.dumps(event) + "\n",
                text=True,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env=environment,
                timeout=LONGEST,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return f"it took more than {LONGEST} s and was ended"
        except (OSError, subprocess.SubprocessError) as error:
            return type(error).__name__
        with contextlib.suppress(OSError):
            for line in done.stdout.splitlines():
                click.echo(one_line(line), err=True)
        return f"exit code {done.returncode}" if done.returncode else None
