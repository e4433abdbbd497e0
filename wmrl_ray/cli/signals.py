"""Ctrl-C and SIGTERM as requests: the loop finishes its current call, writes a checkpoint and returns."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType

HANDLED = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """Context manager; call it to ask whether to stop. A second Ctrl-C raises KeyboardInterrupt at once.

    on_request: called once with the signal's name, from the handler.
    """

    def __init__(self, on_request: Callable[[str], None] = lambda name: None):
        self.received: signal.Signals | None = None
        self._on_request = on_request
        self._previous: dict[signal.Signals, object] = {}

    def __call__(self) -> bool:
        return self.received is not None

    def __enter__(self) -> StopRequest:
        self._previous = {signum: signal.getsignal(signum) for signum in HANDLED}
        self.install()
        return self

    def __exit__(self, *exc: object) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)  # type: ignore[arg-type]

    def install(self) -> None:
        """Takes the signals (again): ray.init puts a SIGTERM handler of its own in place, which would exit at once."""
        if threading.current_thread() is threading.main_thread():
            for signum in HANDLED:
                signal.signal(signum, self._handle)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if self.received is not None and signum == signal.SIGINT:
            raise KeyboardInterrupt
        first, self.received = self.received is None, self.received or signal.Signals(signum)
        if first:
            self._on_request(self.received.name)
