"""Ctrl-C and SIGTERM as requests: the loop finishes its current call, writes a checkpoint and returns."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from types import FrameType

HANDLED = (signal.SIGINT, signal.SIGTERM)
GRACE_S = 25.0  # Kubernetes and most schedulers kill 30 s after SIGTERM
EXIT_TERMINATED = 143  # the shell's code for SIGTERM
UNWIND_S = 5.0  # for what ends with this process, such as actors; one of them may hang


class StopRequest:
    """Context manager; call it to ask whether to stop. A second signal ends the process at once: Ctrl-C by KeyboardInterrupt,
    SIGTERM by SystemExit with code 143. So does the end of the grace period that SIGTERM begins.

    on_request: called once with the signal's name, from the handler. on_overdue: called when the grace period ends.
    """

    def __init__(
        self,
        on_request: Callable[[str], None] = lambda name: None,
        *,
        grace_s: float = GRACE_S,
        on_overdue: Callable[[], None] = lambda: None,
    ):
        self.received: signal.Signals | None = None
        self._on_request, self._on_overdue = on_request, on_overdue
        self._grace_s = grace_s
        self._timers: list[threading.Timer] = []
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
        if exc[0] is None:  # Why not otherwise: what comes after may hang, and the timer ends that
            for timer in self._timers:
                timer.cancel()

    def install(self) -> None:
        """Takes the signals (again): ray.init puts a SIGTERM handler of its own in place, which would exit at once."""
        if threading.current_thread() is threading.main_thread():
            for signum in HANDLED:
                signal.signal(signum, self._handle)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if self.received is None:
            self.received = signal.Signals(signum)
            if signum == signal.SIGTERM:
                self._after(self._grace_s, self._overdue)
            self._on_request(self.received.name)
        elif signum == signal.SIGINT:
            raise KeyboardInterrupt
        else:
            self._after(UNWIND_S, lambda: os._exit(EXIT_TERMINATED))
            raise SystemExit(EXIT_TERMINATED)

    def _overdue(self) -> None:
        self._on_overdue()
        self._after(UNWIND_S, lambda: os._exit(EXIT_TERMINATED))  # Why here too: the main thread may not get to the handler
        os.kill(os.getpid(), signal.SIGTERM)  # Why: only a handler can raise in the main thread

    def _after(self, seconds: float, act: Callable[[], None]) -> None:
        timer = threading.Timer(seconds, act)
        timer.daemon = True
        self._timers.append(timer)
        timer.start()
