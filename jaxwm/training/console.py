"""What a person sees while a run trains: lines, and on a terminal a bar with loss, speed and time left."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn


class Reporter:
    """Reports on a run; a context manager.

    Args:
      enabled: False for silence.
      console: where to; standard output unless given.
    """

    def __init__(self, enabled: bool, console: Console | None = None) -> None:
        self._console = Console(quiet=not enabled, highlight=False, soft_wrap=True) if console is None else console
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._total = 0

    def __enter__(self) -> Reporter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def say(self, line: str) -> None:
        """Prints a line, above the bar if there is one."""
        self._console.print(line, markup=False)

    def begin(self, step: int, total: int) -> None:
        """Shows the bar of a run of ``total`` steps that stands at ``step``; on a terminal only."""
        self._total = total
        if not self._console.is_terminal or self._console.quiet:
            return
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[text]}"),
        )
        self._bar = Progress(*columns, console=self._console)
        self._task = self._bar.add_task("", total=total, completed=step, text="")
        self._bar.start()

    def advance(self, step: int) -> None:
        """Moves the bar."""
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=step)

    def figures(self, step: int, stage: str, loss: float, steps_per_second: float) -> None:
        """Shows loss, speed and time left, in the bar or else as a line."""
        remaining = clock((self._total - step) / steps_per_second if steps_per_second > 0 else 0.0)
        text = f"loss {loss:.4g}  {steps_per_second:.3g} steps/s  {remaining} left"
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=step, description=stage, text=text)
        else:
            self.say(f"step {step}/{self._total}  {stage}  {text}")


class Stopwatch:
    """Measures steps a second of training alone: it stands still while something else is done."""

    def __init__(self) -> None:
        self._seconds, self._steps, self._since = 0.0, 0, time.perf_counter()

    def pause(self) -> None:
        """Stops the time until `resume`."""
        self._seconds += time.perf_counter() - self._since

    def resume(self) -> None:
        """Lets the time run again."""
        self._since = time.perf_counter()

    def count(self, steps: int = 1) -> None:
        """Notes ``steps`` steps."""
        self._steps += steps

    def read(self) -> float:
        """Steps a second since the last reading."""
        now = time.perf_counter()
        seconds, steps = self._seconds + now - self._since, self._steps
        self._seconds, self._steps, self._since = 0.0, 0, now
        return steps / seconds if seconds > 0 else 0.0


def clock(seconds: float) -> str:
    """A duration as ``1:02:03`` or ``2:03``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def amount(value: float, unit: str) -> str:
    """A quantity with its prefix: ``48.2 MFLOP``."""
    for prefix in ("", "k", "M", "G"):
        if value < 1000:
            return f"{value:.3g} {prefix}{unit}"
        value /= 1000
    return f"{value:.3g} T{unit}"
