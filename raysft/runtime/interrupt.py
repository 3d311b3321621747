"""Ctrl-C and SIGTERM: the first asks, the second ends at once."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def first_interrupt() -> Iterator[threading.Event]:
    """The first Ctrl-C or SIGTERM sets the event; the second is what it was before.

    Elsewhere than in the main thread, which is the one that gets signals, nothing changes.
    """
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    before: dict[int, Any] = {}

    def restore() -> None:
        for signum, handler in before.items():
            signal.signal(signum, handler)
        before.clear()

    def note(_signum: int, _frame: object) -> None:
        asked.set()
        restore()

    for signum in (signal.SIGINT, signal.SIGTERM):
        before[signum] = signal.signal(signum, note)
    try:
        yield asked
    finally:
        restore()
