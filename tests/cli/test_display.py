from __future__ import annotations

import io
import threading
from pathlib import Path
from typing import Any

from rich.console import Console

from raybm.cli.display import Display, duration
from raybm.core.events import Events, read_events


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def train(step: int, **fields: Any) -> dict[str, Any]:
    return {"step": step, "steps": 100, "loss": 0.51234, "accuracy": 0.75, "tokens_per_s": 1234.5, "seconds": 2.0, "lr": 1e-4} | fields


def display(terminal: bool) -> tuple[Display, io.StringIO, Clock]:
    out, clock = io.StringIO(), Clock()
    return Display("run-1", Console(file=out, force_terminal=terminal, width=120, color_system=None), clock), out, clock


def test_a_log_gets_training_every_ten_seconds_and_the_rest_at_once(tmp_path: Path) -> None:
    shown, out, clock = display(terminal=False)
    with shown:
        events = Events(tmp_path, [shown.event])
        shown.line("train: starts (abc)")
        for step in range(10, 110, 10):
            events.emit("train", **train(step))
            clock.now += 2
        events.emit("validate", step=100, loss=0.4, accuracy=0.8, units=10)
        shown.line("train: done in 20 s")
    assert out.getvalue().splitlines() == [
        "train: starts (abc)",
        "  step 10 of 100: loss 0.5123, accuracy 0.7500, 1,234 tokens/s, 0:18 left",
        "  step 60 of 100: loss 0.5123, accuracy 0.7500, 1,234 tokens/s, 0:08 left",
        "  step 100 of 100: loss 0.5123, accuracy 0.7500, 1,234 tokens/s",
        "  validation at step 100: loss 0.4000, accuracy 0.8000",
        "train: done in 20 s",
    ]
    assert len(list(read_events(events.path))) == 11


def test_after_a_restart_the_time_left_is_that_of_the_steps_that_remain() -> None:
    shown, out, _ = display(terminal=False)
    shown.event("resume", {"step": 50})
    shown.event("train", train(60, seconds=5.0))
    assert "goes on from the checkpoint of step 50" in out.getvalue()
    assert "0:20 left" in out.getvalue()


def test_long_lines_and_brackets_come_out_as_they_are() -> None:
    shown, out, _ = display(terminal=False)
    text = "[bold]" + "x" * 300
    shown.line(text)
    assert out.getvalue() == text + "\n"


def test_in_a_terminal_the_last_line_lives() -> None:
    shown, out, clock = display(terminal=True)
    with shown:
        shown.line("prepare: reading")
        clock.now += 65
        assert "1:05" in rendered(shown) and "prepare: reading" in rendered(shown)
        shown.event("train", train(40))
        assert "train 40/100" in rendered(shown) and "0:03 left" in rendered(shown)
        shown.event("stage", {"stage": "train"})
        assert "train 40" not in rendered(shown)
    assert "  step 40" not in out.getvalue(), "training is not told in lines as well"


def test_a_line_is_told_while_another_thread_draws() -> None:
    printing = threading.Event()

    class Told(Console):
        def print(self, *objects: Any, **how: Any) -> None:
            if objects == ("a line",):
                printing.set()
            super().print(*objects, **how)

    shown = Display("run-1", Told(file=io.StringIO(), force_terminal=True))

    def draw() -> None:  # as rich's own thread does, four times a second
        with shown._live._lock:
            teller.start()
            assert printing.wait(10)
            shown._render()

    teller = threading.Thread(target=shown.line, args=("a line",), daemon=True)
    drawer = threading.Thread(target=draw, daemon=True)
    shown.__enter__()
    drawer.start()
    drawer.join(20)
    assert not drawer.is_alive(), "each waits for what the other holds"
    teller.join(20)
    assert not teller.is_alive()
    shown.__exit__(None, None, None)  # which would wait too


def rendered(shown: Display) -> str:
    page = io.StringIO()
    Console(file=page, width=120, color_system=None).print(shown._render())
    return page.getvalue()


def test_in_a_terminal_the_trials_of_a_sweep_live() -> None:
    shown, out, clock = display(terminal=True)
    trying = {"of": 9, "before": 5, "repeat": 0, "values": {"train.lr": 0.00123456}, "scores": {"validation.loss": None}, "validations": 0}
    with shown:
        shown.event("trying", trying | {"step": 1})
        clock.now += 20
        shown.event("trying", trying | {"step": 2, "scores": {"validation.loss": 0.5}, "validations": 3})
        shown.event("trial", {"step": 1, "repeat": 0, "end": "finished"})
        clock.now += 10
        shown.console.print(shown._render())
    text = out.getvalue()
    for part in ("6 of 9 trials over, 1:30 left", "train.lr 0.001235", "validation.loss", "0.5", "0:10"):
        assert part in text


def test_durations() -> None:
    assert [duration(s) for s in (0, 59.6, 3700)] == ["0:00", "1:00", "1:01:40"]
