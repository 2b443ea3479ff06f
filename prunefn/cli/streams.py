"""How the process ends: signals are exit codes, a closed pipe is quiet, and no character is too much for a terminal."""

from __future__ import annotations

import codecs
import contextlib
import os
import select
import signal
import sys
import unicodedata
from collections.abc import Iterator
from typing import Any

PLAIN = {"→": "->", "←": "<-", "×": "x", "−": "-", "–": "-", "—": "-", "…": "...", "·": "*", "≤": "<=", "≥": ">="}
"""What a terminal without these characters shows; Greek letters go by their names, all others by what they resemble."""
PIPE = 141
"""The exit code of a program whose reader has gone: 128 + SIGPIPE."""


class Stopped(KeyboardInterrupt):
    """SIGTERM came."""


def plain(error: UnicodeError) -> tuple[str, int]:
    """Replace what an encoding lacks; a handler of `codecs`.

    >>> codecs.register_error("prunefn", plain)
    >>> "2 × σ → x…".encode("ascii", "prunefn")
    b'2 x sigma -> x...'
    """
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(map(_replaced, error.object[error.start : error.end])), error.end


def _replaced(c: str) -> str:
    name = unicodedata.name(c, "")
    if c not in PLAIN and name.startswith("GREEK") and "LETTER " in name:
        return name.rpartition("LETTER ")[2].split()[0].lower()
    text = PLAIN.get(c) or unicodedata.normalize("NFKD", c)
    return text.encode("ascii", "ignore").decode() or "?"


def prepare() -> None:
    """Make the three standard streams usable: open those that are closed, and let them replace what they cannot show."""
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:  # else the next file that is opened would take its place, and prints would go into that
            os.open(os.devnull, os.O_RDWR)
    codecs.register_error("prunefn", plain)
    for stream in (sys.stdout, sys.stderr):
        if stream is not None and hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="prunefn")  # type: ignore[union-attr]


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """Within, SIGTERM raises `Stopped` in this process, so that what is half-written is taken away; not in its workers."""
    me = os.getpid()

    def stop(number: int, frame: Any) -> None:
        if os.getpid() != me:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        raise Stopped

    try:
        before = signal.signal(signal.SIGTERM, stop)
    except ValueError:  # not in the main thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def flush() -> None:
    """Write out what was printed.

    Raises:
        OSError: the device is full, or the reader has gone.
    """
    if sys.stdout is not None and not sys.stdout.closed:
        sys.stdout.flush()


def silence() -> None:
    """Let what is still in the buffer of stdout go nowhere, so that the interpreter's last flush cannot fail."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)


def reader_gone() -> bool:
    """Whether stdout or stderr is a pipe that nobody reads: another broken pipe is an error like others."""
    poll = select.poll()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            poll.register(stream.fileno(), 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def complain(text: str) -> None:
    """A line on stderr, if that can be written."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        print(text, file=sys.stderr, flush=True)
