"""What every engine keeps to, run over all members of the family: what the signature promises, order, odd inputs, cancelling, closing."""

from __future__ import annotations

import asyncio
import gc
import pickle
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch

from raybm.core.errors import RaybmError, UserError
from raybm.core.signature import Signature
from raybm.engines import EngineSpec
from raybm.engines.protocol import Delta, Embeds, GenerateRequest, Generates, Predicts
from tests.engines import tiny

MEMBERS = get_args(get_args(EngineSpec)[0]) if get_args(EngineSpec) else (EngineSpec,)
FOLDERS: dict[str, Callable[[Path], Path]] = {
    "generates": tiny.language_model,
    "predicts": tiny.classifier,
    "embeds": tiny.embedder,
    "rewrites": tiny.encoder_decoder,
}
GENERATORS = ("generates", "rewrites")
PROTOCOLS: dict[str, Any] = {"generates": Generates, "predicts": Predicts, "embeds": Embeds}


@pytest.fixture(scope="module", params=MEMBERS, ids=lambda member: member.model_fields["kind"].default)
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Any]]:
    """An engine by protocol, built once a member."""
    engines: dict[str, Any] = {}

    def get(protocol: str) -> Any:
        if protocol not in engines:
            engines[protocol] = request.param().build(FOLDERS[protocol](tmp_path_factory.mktemp(protocol)))
        return engines[protocol]

    yield get
    for engine in engines.values():
        engine.close()


@pytest.fixture(params=MEMBERS, ids=lambda member: member.model_fields["kind"].default)
def fresh(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[str], Any]:
    return lambda protocol: request.param().build(FOLDERS[protocol](tmp_path))


async def collect(engine: Generates, request: GenerateRequest) -> list[Delta]:
    return [delta async for delta in engine.generate(request)]


def generate(engine: Generates, *requests: GenerateRequest) -> list[list[Delta]]:
    async def together() -> list[list[Delta]]:
        return await asyncio.wait_for(asyncio.gather(*(collect(engine, request) for request in requests)), 60)

    return asyncio.run(together())


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_it_has_the_methods_that_the_signature_promises(built: Callable[[str], Any], protocol: str) -> None:
    engine = built(protocol)
    assert isinstance(engine.signature, Signature)
    assert protocol in engine.signature.protocols
    assert all(isinstance(engine, PROTOCOLS[name]) for name in engine.signature.protocols)
    engine.check()


def test_the_spec_travels() -> None:
    for member in MEMBERS:
        assert pickle.loads(pickle.dumps(member())) == member() == member.parse(member().canonical())


def test_answers_come_in_order(built: Callable[[str], Any]) -> None:
    texts = ["fox", "the quick brown fox jumps over the lazy dog", "dog", "over the dog " * 3, "fox"]
    answers = built("predicts").predict([{"text": text} for text in texts])
    vectors = built("embeds").embed(texts).vectors
    for i, text in enumerate(texts):
        alone = built("predicts").predict([{"text": text}])[0]
        assert answers[i]["label"] == alone["label"] and abs(answers[i]["score"] - alone["score"]) < 1e-4
        assert abs(sum(answers[i]["scores"].values()) - 1) < 1e-4 and set(answers[i]["scores"]) == set(built("predicts").signature.labels)
        assert np.allclose(vectors[i], built("embeds").embed([text]).vectors[0], atol=1e-4)


def test_nothing_in_nothing_out(built: Callable[[str], Any]) -> None:
    assert built("predicts").predict([]) == []
    empty = built("embeds").embed([])
    assert len(empty.vectors) == 0 and len(empty.tokens) == 0
    assert built("predicts").predict([{"text": ""}])[0]["label"] in built("predicts").signature.labels
    with pytest.raises(UserError):
        built("predicts").predict([{"label": "x"}])


def test_over_long_texts_are_cut_and_over_long_prompts_refused(built: Callable[[str], Any]) -> None:
    long = "the fox " * 300
    assert built("predicts").predict([{"text": long}])[0]["tokens"] <= built("predicts").signature.max_length
    assert built("embeds").embed([long]).tokens[0] <= built("embeds").signature.max_length
    with pytest.raises(UserError, match="context"):
        generate(built("generates"), GenerateRequest(prompt=long))


@pytest.mark.parametrize("generator", GENERATORS)
def test_a_generation_is_a_row_of_deltas_with_one_end(built: Callable[[str], Any], generator: str) -> None:
    requests = [GenerateRequest(prompt="the dog " * n, max_tokens=n, temperature=0) for n in (3, 8, 1)]
    if generator == "generates":
        requests.append(GenerateRequest(messages=[{"role": "user", "content": "the dog"}], max_tokens=4, seed=1))
    for request, deltas in zip(requests, generate(built(generator), *requests), strict=True):
        assert [delta.finish_reason for delta in deltas[:-1]] == [None] * (len(deltas) - 1)
        assert deltas[-1].finish_reason in ("stop", "length")
        assert 1 <= sum(delta.tokens for delta in deltas) <= (request.max_tokens or 0)
        assert all(delta.prompt_tokens == deltas[0].prompt_tokens > 0 for delta in deltas)


@pytest.mark.parametrize("generator", GENERATORS)
def test_a_closed_generation_disturbs_no_other(built: Callable[[str], Any], generator: str) -> None:
    async def scene() -> list[Delta]:
        other = asyncio.create_task(collect(built(generator), GenerateRequest(prompt="the dog", max_tokens=40, temperature=0)))
        closing = built(generator).generate(GenerateRequest(prompt="fox", max_tokens=40, temperature=0))
        await asyncio.wait_for(anext(closing), 30)
        await closing.aclose()
        return await asyncio.wait_for(other, 30)

    alone = generate(built(generator), GenerateRequest(prompt="the dog", max_tokens=40, temperature=0))[0]
    assert "".join(delta.text for delta in asyncio.run(scene())) == "".join(delta.text for delta in alone)


@pytest.mark.parametrize("generator", GENERATORS)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_an_engine_that_tells_its_ids_goes_on_from_them(built: Callable[[str], Any], generator: str, temperature: float) -> None:
    request = GenerateRequest(prompt="the dog", max_tokens=12, temperature=temperature, seed=4)
    [whole] = generate(built(generator), request)
    if not any(delta.ids for delta in whole):
        pytest.skip("it tells no ids, so the gateway never asks it to go on")
    assert all(len(delta.ids) == delta.tokens for delta in whole)
    half = len(whole) // 2
    [rest] = generate(built(generator), replace(request, written=tuple(token for delta in whole[:half] for token in delta.ids)))
    for field in ("text", "ids"):
        assert [getattr(delta, field) for delta in rest] == [getattr(delta, field) for delta in whole[half:]]
    assert (rest[-1].finish_reason, rest[-1].prompt_tokens) == (whole[-1].finish_reason, whole[-1].prompt_tokens)


@pytest.mark.parametrize("protocol", FOLDERS)
def test_after_closing_it_refuses(fresh: Callable[[str], Any], protocol: str) -> None:
    engine = fresh(protocol)
    engine.close()
    engine.close()
    with pytest.raises(RaybmError):
        engine.check()
    with pytest.raises(RaybmError):
        if protocol in GENERATORS:
            generate(engine, GenerateRequest(prompt="the dog", max_tokens=2))
        elif protocol == "predicts":
            engine.predict([{"text": "fox"}])
        else:
            engine.embed(["fox"])


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_closing_frees_the_model(fresh: Callable[[str], Any], protocol: str) -> None:
    before = parameters()
    engine = fresh(protocol)
    its_own = [weakref.ref(parameter) for key, parameter in parameters().items() if key not in before]
    assert its_own
    engine.close()
    gc.collect()
    assert not any(reference() is not None for reference in its_own)
    engine.close()


def parameters() -> dict[int, torch.nn.Parameter]:
    """Those that are alive in this process, by their id."""
    return {id(thing): thing for thing in gc.get_objects() if type(thing) is torch.nn.Parameter}
