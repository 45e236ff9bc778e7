"""Texts for the benchmarks of serving, the same each time."""

from __future__ import annotations

import random

OPENINGS = (
    "The old harbour",
    "A train to the north",
    "My neighbour's garden",
    "The last chapter",
    "Our new kitchen",
    "The committee",
    "A small engine",
)
MIDDLES = (
    "was quieter than anybody had expected",
    "needs more light and a little patience",
    "came too late for the people who waited",
    "has been repaired twice since the spring",
    "is described in every guide to the coast",
)
ENDINGS = ("before the rain.", "and nobody knows why.", "which pleased the children.", "although the price had doubled.")


def sentences(count: int, longest: int) -> list[str]:
    """Texts of one to `longest` sentences, some 16 tokens each."""
    draw = random.Random(1)

    def one() -> str:
        return f"{draw.choice(OPENINGS)} {draw.choice(MIDDLES)} {draw.choice(ENDINGS)}"

    return [" ".join(one() for _ in range(draw.randint(1, longest))) for _ in range(count)]


SUBJECTS = ("the sea", "bread", "railways", "bees", "a mountain village", "glass", "winter", "the moon")
TASKS = (
    "Write a long story about {}.",
    "Explain to a child, in many words, what is special about {}.",
    "Describe the history of {} in detail.",
    "List twenty facts about {}.",
)


def prompts(count: int) -> list[str]:
    """Questions whose answers are long."""
    every = [task.format(subject) for task in TASKS for subject in SUBJECTS]
    return (every * (count // len(every) + 1))[:count]
