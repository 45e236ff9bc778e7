"""What every engine keeps to, run over all members of the family: what the signature promises, order, odd inputs, cancelling, closing."""

from __future__ import annotations

import asyncio
import gc
import pickle
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from raybm.core.errors import RaybmError, UserError
from raybm.core.signature import Signature
from raybm.engines.offline import ask
from raybm.engines.protocol import Delta, Embeds, GenerateRequest, Generates, Predicts, Relays
from tests.engines import members

GENERATORS = ("generates", "rewrites")
PROTOCOLS: dict[str, Any] = {"generates": Generates, "predicts": Predicts, "embeds": Embeds}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Where a model and what is made of it stand."""
    root = tmp_path_factory.mktemp("models")
    return lambda model: root / model


@pytest.fixture(scope="module", params=members.params())
def built(request: pytest.FixtureRequest, place: Callable[[str], Path]) -> Iterator[Callable[[str], Any]]:
    """An engine by the model's ability, built once a member."""
    engines: dict[str, Any] = {}
    with ExitStack() as stack:

        def get(model: str) -> Any:
            if model not in engines:
                engines[model] = stack.enter_context(members.engine(request.param, model, place(model)))
            return engines[model]

        yield get


@pytest.fixture(params=members.params())
def fresh(request: pytest.FixtureRequest, place: Callable[[str], Path]) -> Iterator[Callable[[str], Any]]:
    with ExitStack() as stack:
        yield lambda model: stack.enter_context(members.engine(request.param, model, place(model)))


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


@pytest.mark.parametrize("kind", members.MEMBERS)
def test_the_spec_travels(kind: str) -> None:
    spec = members.MEMBERS[kind].parse(members.SETTINGS.get(kind, {}))
    assert pickle.loads(pickle.dumps(spec)) == spec == type(spec).parse(spec.canonical())


TEXTS = ["fox", "the quick brown fox jumps over the lazy dog", "dog", "over the dog " * 3, "fox"]


def test_predictions_come_in_order(built: Callable[[str], Any]) -> None:
    engine = built("predicts")
    answers = engine.predict([{"text": text} for text in TEXTS])
    for answer, text in zip(answers, TEXTS, strict=True):
        alone = engine.predict([{"text": text}])[0]
        assert answer["label"] == alone["label"] and abs(answer["score"] - alone["score"]) < 1e-4
        assert abs(sum(answer["scores"].values()) - 1) < 1e-4 and set(answer["scores"]) == set(engine.signature.labels)
    assert ask(engine, [{"text": text} for text in TEXTS], 2, 0)[1]["label"] == answers[1]["label"]


def test_vectors_come_in_order(built: Callable[[str], Any]) -> None:
    engine = built("embeds")
    vectors = engine.embed(TEXTS).vectors
    for vector, text in zip(vectors, TEXTS, strict=True):
        assert np.allclose(vector, engine.embed([text]).vectors[0], atol=1e-4)
    assert np.allclose(ask(engine, [{"text": text} for text in TEXTS], 2, 0)[1]["embedding"], vectors[1], atol=1e-4)


def test_nothing_in_nothing_predicted(built: Callable[[str], Any]) -> None:
    engine = built("predicts")
    assert engine.predict([]) == []
    assert engine.predict([{"text": ""}])[0]["label"] in engine.signature.labels
    with pytest.raises(UserError):
        engine.predict([{"label": "x"}])


def test_nothing_in_nothing_embedded(built: Callable[[str], Any]) -> None:
    empty = built("embeds").embed([])
    assert len(empty.vectors) == 0 and len(empty.tokens) == 0


LONG = "the fox " * 300


def test_over_long_texts_are_cut(built: Callable[[str], Any]) -> None:
    assert built("predicts").predict([{"text": LONG}])[0]["tokens"] <= built("predicts").signature.max_length


def test_over_long_texts_are_cut_before_they_are_embedded(built: Callable[[str], Any]) -> None:
    assert 0 < built("embeds").embed([LONG]).tokens[0] <= built("embeds").signature.max_length


def test_over_long_prompts_are_refused(built: Callable[[str], Any]) -> None:
    with pytest.raises(UserError, match="context"):
        generate(built("generates"), GenerateRequest(prompt=LONG))


def test_no_prompt_is_refused(built: Callable[[str], Any]) -> None:
    with pytest.raises(UserError):
        generate(built("generates"), GenerateRequest(max_tokens=2))


@pytest.mark.parametrize("generator", GENERATORS)
def test_a_generation_is_a_row_of_deltas_with_one_end(built: Callable[[str], Any], generator: str) -> None:
    requests = [GenerateRequest(prompt="the dog " * n, max_tokens=n, temperature=0) for n in (3, 8, 1)]
    if generator == "generates":
        requests.append(GenerateRequest(messages=[{"role": "user", "content": "the dog"}], max_tokens=4, seed=1))
    for request, deltas in zip(requests, generate(built(generator), *requests), strict=True):
        assert [delta.finish_reason for delta in deltas[:-1]] == [None] * (len(deltas) - 1)
        assert deltas[-1].finish_reason in ("stop", "length")
        assert 1 <= sum(delta.tokens for delta in deltas) <= (request.max_tokens or 0)
        assert deltas[-1].prompt_tokens > 0 and {delta.prompt_tokens for delta in deltas} <= {0, deltas[-1].prompt_tokens}


def test_a_whole_answer_is_the_streamed_one(built: Callable[[str], Any]) -> None:
    engine = built("generates")
    if not isinstance(engine, Relays):
        pytest.skip("it has no answers in one piece")
    for request in (
        GenerateRequest(prompt="the dog", max_tokens=7, temperature=0),
        GenerateRequest(messages=[{"role": "user", "content": "the dog"}], max_tokens=7, temperature=0),
    ):
        deltas = generate(engine, request)[0]
        whole = asyncio.run(engine.complete(request))
        assert whole.text == "".join(delta.text for delta in deltas) and whole.completion_tokens == sum(delta.tokens for delta in deltas)
        assert (whole.finish_reason, whole.prompt_tokens) == (deltas[-1].finish_reason, deltas[-1].prompt_tokens)


def test_prompts_of_one_thread_are_answered_in_order(built: Callable[[str], Any]) -> None:
    engine = built("generates")
    prompts = ["the dog", "fox", "the dog"]
    texts = [row["text"] for row in ask(engine, [{"prompt": prompt} for prompt in prompts], 2, 5)]
    alone = ask(engine, [{"prompt": "the dog"}], 2, 5)[0]["text"]
    assert texts[0] == texts[2] == alone


@pytest.mark.parametrize("generator", GENERATORS)
def test_a_closed_generation_disturbs_no_other(built: Callable[[str], Any], generator: str) -> None:
    engine = built(generator)

    async def scene() -> list[Delta]:
        other = asyncio.create_task(collect(engine, GenerateRequest(prompt="the dog", max_tokens=40, temperature=0)))
        closing = engine.generate(GenerateRequest(prompt="fox", max_tokens=40, temperature=0))
        await asyncio.wait_for(anext(closing), 30)
        await closing.aclose()
        return await asyncio.wait_for(other, 30)

    alone = generate(engine, GenerateRequest(prompt="the dog", max_tokens=40, temperature=0))[0]
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
    [rest] = generate(built(generator), request._replace(written=tuple(token for delta in whole[:half] for token in delta.ids)))
    for field in ("text", "ids"):
        assert [getattr(delta, field) for delta in rest] == [getattr(delta, field) for delta in whole[half:]]
    assert (rest[-1].finish_reason, rest[-1].prompt_tokens) == (whole[-1].finish_reason, whole[-1].prompt_tokens)


@pytest.mark.parametrize("model", members.MODELS)
def test_after_closing_it_refuses(fresh: Callable[[str], Any], model: str) -> None:
    engine = fresh(model)
    engine.close()
    engine.close()
    with pytest.raises(RaybmError):
        engine.check()
    with pytest.raises(RaybmError):
        if model in GENERATORS:
            generate(engine, GenerateRequest(prompt="the dog", max_tokens=2))
        elif model == "predicts":
            engine.predict([{"text": "fox"}])
        else:
            engine.embed(["fox"])


@pytest.mark.parametrize("model", PROTOCOLS)
def test_closing_frees_the_model(place: Callable[[str], Path], model: str) -> None:
    before = parameters()
    with members.engine("transformers", model, place(model)) as engine:
        its_own = [weakref.ref(parameter) for key, parameter in parameters().items() if key not in before]
        assert its_own
        engine.close()
        gc.collect()
        assert not any(reference() is not None for reference in its_own)


def parameters() -> dict[int, torch.nn.Parameter]:
    """Those that are alive in this process, by their id."""
    return {id(thing): thing for thing in gc.get_objects() if type(thing) is torch.nn.Parameter}
