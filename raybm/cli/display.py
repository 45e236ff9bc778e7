"""What a person sees while a run goes on: one live line in a terminal, plain lines in a log."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from rich.console import Console, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

PLAIN_EVERY_S = 10.0  # between two training lines in a log


class Display:
    """Listens to a run's events and progress lines; safe for threads.

    In a terminal the end lives: a bar with step, loss, tokens/s and time left while training, a table of what runs while a sweep does,
    the last progress line and its age otherwise. Elsewhere training is told every 10 s; validations and progress lines at once in both.
    """

    def __init__(self, run: str, console: Console | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self.console, self.clock = console or Console(), clock
        self._lock = threading.Lock()
        self._status, self._since = run, clock()
        self._train: dict[str, Any] | None = None  # the last training event, while training
        self._trials: dict[tuple[int, int], tuple[float, dict[str, Any]]] = {}  # those of a sweep that run, with when they began
        self._over: set[tuple[int, int]] = set()  # names of trials, of which some may go on again
        self._sweeping = 0.0
        self._pace = Pace()
        self._told = -math.inf
        self._spinner = Spinner("dots")
        self._live = Live(console=self.console, get_renderable=self._render, refresh_per_second=4, transient=True)

    def __enter__(self) -> Self:
        if self.console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self._live.stop()

    def line(self, text: str) -> None:
        """One line to a person, at once."""
        with self._lock:
            self._status, self._since = text, self.clock()
        self._print(text)

    def event(self, kind: str, fields: dict[str, Any]) -> None:
        """A listener for core.events.Events."""
        if kind == "train":
            self._on_train(fields)
        elif kind == "validate":
            self._print(f"  validation at step {fields['step']:,}: {_scores(fields)}")
        elif kind == "resume":
            with self._lock:
                self._pace = Pace(fields["step"])
            self._print(f"  training goes on from the checkpoint of step {fields['step']:,}")
        elif kind == "anew":
            self._print(f"  training stopped at step {fields['step']:,} and begins anew: an optimiser on nvme is not read back")
        elif kind == "stage":
            with self._lock:
                self._train = None
        elif kind in ("trying", "trial"):
            self._on_trial(kind, fields)

    def _on_train(self, fields: dict[str, Any]) -> None:
        now = self.clock()
        with self._lock:
            self._train = fields
            self._pace.note(fields["step"], fields["seconds"], now)
            due = now - self._told >= PLAIN_EVERY_S or fields["step"] == fields["steps"]
            if due:
                self._told = now
        if due and not self.console.is_terminal:
            self._print(f"  step {fields['step']:,} of {fields['steps']:,}: {self._numbers(fields)}")

    def _on_trial(self, kind: str, fields: dict[str, Any]) -> None:
        name = fields["step"], fields["repeat"]
        with self._lock:
            self._sweeping = self._sweeping or self.clock()
            if kind == "trying":
                began, _ = self._trials.get(name, (self.clock(), None))
                self._trials[name] = began, fields
                self._over.discard(name)
            else:
                self._trials.pop(name, None)
                self._over.add(name)

    def _numbers(self, fields: dict[str, Any]) -> str:
        text = f"{_scores(fields)}, {fields['tokens_per_s']:,.0f} tokens/s"
        left = self._pace.seconds_left(fields["steps"])
        return f"{text}, {duration(left)} left" if left else text

    def _print(self, text: str) -> None:
        """Without the lock: the console takes the live display's, under which that asks for this one."""
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _render(self) -> RenderableType:
        fields, age = self._train, self.clock() - self._since
        row = Table.grid(padding=(0, 1))
        with self._lock:
            trials = list(self._trials.values())
        if trials:
            return self._board(trials)
        if fields is None:
            row.add_row(self._spinner, Text(self._status, "dim", overflow="ellipsis", no_wrap=True), Text(duration(age), "dim"))
            return row
        step, steps = fields["step"], fields["steps"]
        numbers = Text(self._numbers(fields), overflow="ellipsis", no_wrap=True)
        row.add_row(self._spinner, Text(f"train {step:,}/{steps:,}", "bold"), ProgressBar(steps, step, width=16), numbers)
        return row

    def _board(self, trials: list[tuple[float, dict[str, Any]]]) -> RenderableType:
        """What runs of a sweep."""
        names = list(trials[0][1]["scores"])
        board = Table(
            "point", "values", "validations", *names, "state", "for", box=None, title_justify="left", title=self._left(trials[0][1])
        )
        for began, fields in trials:
            values = ", ".join(f"{path} {short(value)}" for path, value in fields["values"].items())
            scores = [short(fields["scores"][name]) for name in names]
            seed = f", seed {fields['repeat'] + 1}" if fields["repeat"] else ""
            state = "trains" if fields["validations"] else "begins"
            told = str(fields["validations"]), *scores, state, duration(self.clock() - began)
            board.add_row(f"{fields['step']}{seed}", Text(values), *told)
        return board

    def _left(self, fields: dict[str, Any]) -> str:
        """How many trials are over, those of earlier runs among them; and, where it is known how many there will be, how long the rest
        takes if it goes on so."""
        here = len(self._over)
        over, wanted = fields["before"] + here, fields["of"]
        if not wanted:
            return f"{over} trials over"
        per_trial = (self.clock() - self._sweeping) / here if here else None
        left = f", {duration(per_trial * (wanted - over))} left" if per_trial is not None and wanted > over else ""
        return f"{over} of {wanted} trials over{left}"


def short(value: Any) -> str:
    """A value of a trial, in a cell."""
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def _scores(fields: dict[str, Any]) -> str:
    return ", ".join(f"{name} {fields[name]:.4f}" for name in ("loss", "accuracy") if name in fields)


class Pace:
    """Wall-clock seconds a step, validations and checkpoints included, since training (or its resumption at `step`) began."""

    def __init__(self, step: int = 0) -> None:
        self._first, self._last = step, step
        self._started: float | None = None
        self._now = 0.0

    def note(self, step: int, seconds: float, now: float) -> None:
        """`seconds`: how long the steps since the last note took; says when the first ones began."""
        if self._started is None:
            self._started = now - seconds
        self._last, self._now = step, now

    def seconds_left(self, steps: int) -> float | None:
        if self._started is None or self._last <= self._first:
            return None
        return (self._now - self._started) / (self._last - self._first) * (steps - self._last)


def duration(seconds: float) -> str:
    """75 → 1:15, 3700 → 1:01:40."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
