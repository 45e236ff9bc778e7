"""Which replica a generation goes to, by how it begins."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from raybm.core.errors import SpecError
from raybm.engines.protocol import GenerateRequest
from raybm.serving.affinity import PROMPT_CHARS, beginning, ranked
from raybm.serving.parcel import packed
from raybm.serving.watch import Origin
from raybm.spec.serve import ServedModel

IDLE = dict.fromkeys("abcd", 0)


def talk(*contents: str, system: str = "Be kind.", **more: Any) -> GenerateRequest:
    roles = ("user", "assistant") * len(contents)
    said = [{"role": role, "content": content} for role, content in zip(roles, contents, strict=False)]
    return GenerateRequest(messages=[{"role": "system", "content": system}, *said], **more)


def of(argument: Any, *method: str) -> bytes | None:
    """Of the arguments of a replica's method."""
    return beginning((*method, packed((argument, Origin()))))


def test_later_turns_begin_as_the_first() -> None:
    first = of(talk("hello"))
    assert first == of(talk("hello", "hi", "how are you?", temperature=0.0), "complete")
    others = talk("good day"), talk("hello", system="Be rude."), talk("hello", adapter="b"), talk("hello", tools=({"type": "function"},))
    assert first not in {of(other) for other in others}


def test_prompts_begin_with_their_first_characters() -> None:
    example = "q: a? a: b. " * PROMPT_CHARS
    assert of(GenerateRequest(prompt=f"{example}one")) == of(GenerateRequest(prompt=f"{example}two"))
    assert of(GenerateRequest(prompt="one")) != of(GenerateRequest(prompt="two"))


def test_what_generates_nothing_begins_with_nothing() -> None:
    assert of([{"text": "a"}], "predict") is None
    assert of((talk("hello"), True), "tokenize") is None
    assert beginning(()) is None  # a replica is asked how it started


def test_beginnings_are_spread_and_keep_their_place() -> None:
    texts = [f"beginning {n}".encode() for n in range(400)]
    homes = {text: ranked(text, IDLE)[0] for text in texts}
    assert all(60 < count < 140 for count in Counter(homes.values()).values())
    without = {id: 0 for id in IDLE if id != "b"}
    moved = {text for text in texts if ranked(text, without)[0] != homes[text]}
    assert moved == {text for text in texts if homes[text] == "b"}


def test_a_busy_replica_is_passed_over() -> None:
    first, second, *rest = ranked(b"popular", IDLE)
    assert ranked(b"popular", IDLE | {first: 1, second: 1, rest[0]: 1, rest[1]: 1})[0] == first
    assert ranked(b"popular", IDLE | {first: 4})[0] == second
    assert ranked(b"popular", IDLE | {first: 4, second: 4})[0] == rest[0]
    assert ranked(b"popular", IDLE | {first: 4})[-1] == first  # the last that is asked
    assert ranked(b"popular", {first: 9}) == [first]


def test_engines_without_prefix_cache_are_refused() -> None:
    model = {"name": "m", "ref": "file:/m", "routing": "prefix"}
    assert ServedModel.parse({**model, "engine": {"kind": "vllm"}}).routing == "prefix"
    for engine in ({"kind": "transformers"}, {"kind": "vllm", "prefix_cache": False}):
        with pytest.raises(SpecError, match="keeps no beginnings of prompts"):
            ServedModel.parse({**model, "engine": engine})
