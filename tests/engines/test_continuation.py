"""An answer that one engine began and another goes on with: the text is that of an undisturbed one, wherever it was cut."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from raybm.engines.protocol import Delta, GenerateRequest
from raybm.engines.transformers.engine import build
from raybm.engines.transformers.generation import Generator
from raybm.engines.transformers.seq2seq import Rewriter
from raybm.engines.transformers.spec import Transformers
from tests.engines import tiny

SETTINGS = (
    {"temperature": 0.0},
    {"temperature": 1.0, "seed": 3},
    {"temperature": 0.8, "top_p": 0.9, "seed": 2**40},
)


@pytest.fixture(scope="module", params=["language model", "encoder-decoder"])
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Generator]:
    folder: Path = tmp_path_factory.mktemp("model")
    made = build(
        Transformers(precision="fp32", max_batch=8, max_waiting=100),
        tiny.language_model(folder) if request.param == "language model" else tiny.encoder_decoder(folder),
    )
    assert isinstance(made, Generator)
    yield made
    made.close()


def run(engine: Generator, *requests: GenerateRequest) -> list[list[Delta]]:
    async def one(request: GenerateRequest) -> list[Delta]:
        return [delta async for delta in engine.generate(request)]

    async def together() -> list[list[Delta]]:
        return await asyncio.wait_for(asyncio.gather(*map(one, requests)), 60)

    return asyncio.run(together())


def check_every_cut(engine: Generator, request: GenerateRequest) -> list[Delta]:
    """All continuations run side by side. Returns the undisturbed answer."""
    [whole] = run(engine, request)
    assert all(len(delta.ids) == delta.tokens for delta in whole)
    cuts = range(len(whole))  # behind the last delta there is nothing to go on with
    written = [tuple(token for delta in whole[:cut] for token in delta.ids) for cut in cuts]
    rests = run(engine, *(request._replace(written=ids) for ids in written))
    for cut, rest in zip(cuts, rests, strict=True):
        assert [delta.text for delta in rest] == [delta.text for delta in whole[cut:]], cut
        assert rest == whole[cut:]
    return whole


@pytest.mark.parametrize("settings", SETTINGS, ids=("greedy", "seeded", "nucleus"))
def test_the_text_is_the_undisturbed_one(engine: Generator, settings: dict[str, float]) -> None:
    tokens = 12 if isinstance(engine, Rewriter) else 40  # a wave a cut takes its time
    check_every_cut(engine, GenerateRequest(prompt="the quick brown fox", max_tokens=tokens, **settings))  # type: ignore[arg-type]


def test_a_stop_string_across_the_cut_is_seen(engine: Generator) -> None:
    request = GenerateRequest(prompt="the dog", max_tokens=12 if isinstance(engine, Rewriter) else 40, temperature=1.0, seed=5)
    [whole] = run(engine, request)
    text = "".join(delta.text for delta in whole)
    for start in range(len(text) // 2, len(text) // 2 + 2):
        stop = text[start : start + 5]
        stopped = check_every_cut(engine, request._replace(stop=(stop, "\ue000")))
        assert "".join(delta.text for delta in stopped) == text[: text.find(stop)] and stopped[-1].finish_reason == "stop"


def test_an_answer_that_was_complete_is_only_ended(engine: Generator) -> None:
    request = GenerateRequest(prompt="the dog", max_tokens=10, temperature=0.0)
    [whole] = run(engine, request)
    ids = tuple(token for delta in whole for token in delta.ids)
    [[end]] = run(engine, request._replace(written=ids))
    assert end == Delta("", 0, whole[-1].prompt_tokens, whole[-1].finish_reason)


def test_numbers_drawn_at_once_are_those_drawn_one_by_one() -> None:
    one, many = torch.Generator().manual_seed(9), torch.Generator().manual_seed(9)
    for _ in range(1000):
        torch.rand(1, generator=one)
    torch.rand(1000, generator=many)
    assert torch.equal(torch.rand(5, generator=one), torch.rand(5, generator=many))
