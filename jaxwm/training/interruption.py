"""Stopping on request: SIGTERM and SIGINT are noted, and heeded between two updates."""

from __future__ import annotations

import pathlib
import signal
import threading
from types import FrameType, TracebackType
from typing import Any

import jax
from jax.experimental import multihost_utils

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Interrupted(SystemExit):
    """Training was asked to stop, and has saved. Ends a program quietly, with the usual status 128 + signal.

    Attributes:
      signal: which one asked.
      step: the step that was saved.
    """

    def __init__(self, signum: int, step: int, run_dir: pathlib.Path) -> None:
        super().__init__(128 + signum)
        self.signal, self.step = signal.Signals(signum), step
        self.message = f"stopped by {self.signal.name}; step {step} is saved in {run_dir}, the same command goes on"

    def __str__(self) -> str:
        return self.message


class Interruption:
    """Notes a signal while it is entered as a context manager; a second signal has its usual effect at once.

    Signals reach the main thread alone: elsewhere this does nothing. In a run over several processes a signal counts
    once all have agreed on a step, through JAX's preemption service, which listens for SIGTERM.
    """

    def __init__(self) -> None:
        self._signal: int | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread() and jax.process_count() == 1:
            self._previous = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    def requested(self, step: int) -> int | None:
        """The signal that asks to stop, or None; all processes have to ask at the same steps."""
        if jax.process_count() > 1:
            return signal.SIGTERM if multihost_utils.reached_preemption_sync_point(step) else None
        return self._signal

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._signal = number
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}
