"""Signals and streams of a command's process; imports only the standard library, which is fast.

After Ctrl-C, SIGTERM or SIGHUP the step under way ends as after an error, its temporary files are removed, and the exit
code is 130. While the commands are being imported, the process just ends.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import io
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TextIO

__all__ = [
    "INTERRUPTED",
    "asks_for_json",
    "error_document",
    "finish",
    "interruptible",
    "output",
    "own",
    "reserve_output",
]

INTERRUPTED = 130
"""The exit code of shells for a program that Ctrl-C ended."""

COLLECT_AFTER = 50_000
"""Objects between two runs of the garbage collector: with Python's 700 a tenth of the time of a start goes to it."""

_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")

_owned = False
"""Whether this process is a command, not a program that calls one."""
_received = int(signal.SIGINT)
"""The signal that interrupted the step under way."""
_reserved: TextIO | None = None
"""The standard output, once it is reserved for the document of the command."""


def own() -> None:
    """Take over the signals, streams and garbage collector of this process; to be called first."""
    global _owned
    _owned = True
    gc.set_threshold(COLLECT_AFTER)
    _handle_with(_leave_before_work)
    _open_closed_streams()


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Raise KeyboardInterrupt for a signal inside the block, and exit at once for one after it.

    Nothing changes if the process is not a command.
    """
    if not _owned:
        yield
        return
    _handle_with(_interrupt)
    sys.unraisablehook = _interrupt_again
    try:
        yield
    finally:
        _handle_with(_leave)
        sys.unraisablehook = sys.__unraisablehook__


def _handle_with(handler: Callable[[int, object], None]) -> None:
    for name in _SIGNALS:
        number = getattr(signal, name, None)  # Windows has no SIGHUP
        # Ignored signals stay ignored: under `nohup`, and in background jobs of a shell.
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, handler)


def _interrupt(number: int, _frame: object) -> None:
    global _received
    _received = number
    # Another signal would end the clean-up and leave copies behind: a closed session sends SIGTERM and SIGHUP.
    _handle_with(_pass_over)
    raise KeyboardInterrupt


def _interrupt_again(unraisable: Any) -> None:
    """Send the signal again: in a destructor or the callback of a weak reference Python drops what a handler raises."""
    if unraisable.exc_type is not KeyboardInterrupt:
        sys.__unraisablehook__(unraisable)
        return
    _handle_with(_interrupt)
    # Once the callback is over; to this thread, so that whatever it waits for is interrupted.
    threading.Timer(0.01, signal.pthread_kill, [threading.get_ident(), _received]).start()


def _pass_over(_number: int, _frame: object) -> None:
    pass


def _leave(_number: int, _frame: object) -> None:
    os._exit(INTERRUPTED)


def _leave_before_work(_number: int, _frame: object) -> None:
    message = "interrupted before the command began"
    with contextlib.suppress(OSError):
        os.write(2, f"consensus-orm: {message}\n".encode())
        if asks_for_json(sys.argv[1:]):
            os.write(1, f"{error_document('Interrupted', INTERRUPTED, message)}\n".encode())
    os._exit(INTERRUPTED)


# Streams --------------------------------------------------------------------------------------------------


class _Closed(io.TextIOBase):
    """The standard output of a process started without one."""

    def writable(self) -> bool:
        return True

    def write(self, _text: str) -> int:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))


def _open_closed_streams() -> None:
    # A file opened later would get the free number, and receive the output of the stream.
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number: this one
    if sys.stdout is None:
        sys.stdout = _Closed()
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115 - for as long as the process lives


def output() -> TextIO:
    """The stream for what a command prints."""
    return _reserved or sys.stdout


def reserve_output() -> None:
    """Reserve the standard output for the JSON document; nothing changes if the process is not a command.

    Modules of moves are code of an application, which may log and print there, also in libraries in C, in processes of
    its own and at the exit: from here on all of that goes to the standard error.
    """
    global _reserved
    if _owned and _reserved is None and isinstance(sys.stdout, io.TextIOWrapper):
        number = sys.stdout.fileno()
        _reserved = open(os.dup(number), "w", encoding=sys.stdout.encoding)  # noqa: PTH123, SIM115 - as above
        os.dup2(sys.stderr.fileno(), number)


def finish(code: int) -> int:
    """Flush the streams, and return the exit code: 1 instead of 0 if the output could not be written."""
    for stream in (output(), sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            code = code or 1
            with contextlib.suppress(OSError, ValueError):
                _discard(stream.fileno())
    return code


def _discard(number: int) -> None:
    """Discard the buffer of a stream, about which the interpreter would complain at its exit."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, number)
    os.close(nowhere)


# JSON ---------------------------------------------------------------------------------------


def asks_for_json(words: Sequence[str]) -> bool:
    """Whether a command line, right or wrong, asks for JSON."""
    words = list(words)
    return "--json" in (words[: words.index("--")] if "--" in words else words)


def error_document(
    name: str,
    code: int,
    message: str,
    hint: str = "",
    facts: dict[str, Any] | None = None,
    explained: str = "",
    **more: Any,
) -> str:
    """The JSON document of a command that failed.

    Args:
        name: The class of the error.
        code: The exit code.
        message: What happened.
        hint: What to do next.
        facts: The attributes of the error, in terms of JSON.
        explained: The code for `consensus-orm explain`; empty for an error of the command line itself.
        **more: Further facts of the command.
    """
    error = {"class": name, "code": code, "message": message, "hint": hint, "explain": explained}
    error["facts"] = facts or {}
    return json.dumps({**more, "error": error}, indent=2)
