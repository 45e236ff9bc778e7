from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import processors

from raybm.core.errors import Overloaded, RaybmError, Unsupported, UserError
from raybm.engines.protocol import Delta, GenerateRequest
from raybm.engines.transformers.engine import build
from raybm.engines.transformers.generation import Generator
from raybm.engines.transformers.spec import Transformers
from tests.engines import tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.language_model(tmp_path_factory.mktemp("lm"))


@pytest.fixture
def engine(folder: Path) -> Iterator[Generator]:
    made = build(Transformers(precision="fp32", max_batch=4, max_waiting=16), folder)
    assert isinstance(made, Generator)
    yield made
    made.close()


def ask(prompt: str, tokens: int | None = 20, **more: object) -> GenerateRequest:
    return GenerateRequest(prompt=prompt, max_tokens=tokens, **{"temperature": 0.0, **more})  # type: ignore[arg-type]


async def collect(engine: Generator, request: GenerateRequest) -> list[Delta]:
    return [delta async for delta in engine.generate(request)]


def text(deltas: list[Delta]) -> str:
    return "".join(delta.text for delta in deltas)


def run(engine: Generator, *requests: GenerateRequest) -> list[list[Delta]]:
    async def all_of_them() -> list[list[Delta]]:
        return await asyncio.wait_for(asyncio.gather(*(collect(engine, request) for request in requests)), 60)

    return asyncio.run(all_of_them())


def reference(engine: Generator, prompt: str, tokens: int) -> list[int]:
    """Greedy decoding without a cache, a batch or padding."""
    ids = list(engine.tokenizer(prompt).input_ids)
    start = len(ids)
    with torch.inference_mode():
        while len(ids) - start < tokens and (len(ids) == start or ids[-1] not in engine.ends):
            ids.append(int(engine.batch.model(torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[start:]


def test_answers_do_not_depend_on_who_shares_the_batch(engine: Generator) -> None:
    """Eleven prompts of different lengths for four places: they join as others leave, longer ones than those that run among them."""
    prompts = ["the " * n + word for n, word in ((1, "fox"), (9, "dog"), (3, "quick"), (20, "lazy"), (2, "café"), (14, "over"))]
    prompts += ["她", "今天天气很好", "x", "jumps over", "the quick brown fox " * 3]
    lengths = [5, 30, 12, 9, 25, 3, 18, 40, 1, 7, 16]
    answers = run(engine, *(ask(prompt, length) for prompt, length in zip(prompts, lengths, strict=True)))
    for prompt, length, answer in zip(prompts, lengths, answers, strict=True):
        ids = reference(engine, prompt, length)
        before = list(engine.tokenizer(prompt).input_ids)
        whole = engine.tokenizer.decode(before + ids, skip_special_tokens=True)
        assert text(answer).rstrip("\ufffd") == whole[len(prompt) :].rstrip("\ufffd"), prompt
        assert sum(delta.tokens for delta in answer) == len(ids)
        assert answer[-1].prompt_tokens == len(before)
        assert answer[-1].finish_reason == ("stop" if ids[-1] in engine.ends else "length")
        assert all(delta.finish_reason is None for delta in answer[:-1])


def scarce(model: Any, most: int) -> None:
    """Memory suffices for so many rows × columns."""
    forward = model.forward

    def limited(*args: Any, input_ids: torch.Tensor, past_key_values: Any, **more: Any) -> Any:
        if len(input_ids) * (past_key_values.get_seq_length() + input_ids.shape[1]) > most:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return forward(*args, input_ids=input_ids, past_key_values=past_key_values, **more)

    model.forward = limited


def test_where_memory_does_not_suffice_fewer_are_computed_together(folder: Path) -> None:
    engine = build(Transformers(max_batch=4), folder)
    assert isinstance(engine, Generator)
    engine.ends = frozenset()
    prompts = ("the dog", "fox", "over the lazy dog", "quick")
    requests = [ask(prompt, 30, temperature=place / 3, seed=place) for place, prompt in enumerate(prompts)]
    expected = [text(answer) for answer in run(engine, *requests)]
    scarce(engine.batch.model, 60)
    assert [text(answer) for answer in run(engine, *requests)] == expected
    assert engine.cache_tokens < 60
    with pytest.raises(UserError, match="need more memory than this replica has"):
        run(engine, ask("the " * 30, 40))
    engine.check()
    assert [text(answer) for answer in run(engine, *requests)] == expected, "it lives, and so do the others"
    engine.close()


def test_a_full_cache_sends_rows_back_and_changes_no_answer(folder: Path) -> None:
    engine = build(Transformers(max_batch=4, cache_tokens=100), folder)
    assert isinstance(engine, Generator)
    engine.ends = frozenset()
    held = []
    step = engine.batch.step

    def observed() -> list[int]:
        tokens = step()
        held.append((len(engine.batch.rows), engine.batch.mask.numel()))
        return tokens

    engine.batch.step = observed  # type: ignore[method-assign]
    prompts = ["the dog", "fox", "over the lazy dog", "quick"]
    requests = [ask(prompt, 50) for prompt in prompts]
    answers = run(engine, *requests)
    assert max(rows for rows, _ in held) > 1 and all(rows == 1 or numbers <= 100 for rows, numbers in held)
    for prompt, answer in zip(prompts, answers, strict=True):
        ids = reference(engine, prompt, 50)
        whole = engine.tokenizer.decode(engine.tokenizer(prompt).input_ids + ids, skip_special_tokens=True)
        assert text(answer).rstrip("\ufffd") == whole[len(prompt) :].rstrip("\ufffd")
        assert sum(delta.tokens for delta in answer) == 50
    engine.close()


def test_a_seed_gives_the_same_text_whoever_shares_the_batch(engine: Generator) -> None:
    request = ask("the dog", temperature=0.8, top_p=0.9, seed=7)
    alone = run(engine, request)[0]
    among = run(engine, ask("quick", temperature=1.0, seed=1), request, ask("fox " * 9), ask("她", temperature=1.0))[1]
    assert text(alone) == text(among)
    assert len({text(run(engine, ask("the dog", temperature=1.0, seed=seed))[0]) for seed in range(4)}) == 4


def test_a_stop_string_ends_the_answer_and_is_not_shown(engine: Generator) -> None:
    full = text(run(engine, ask("the dog", 40))[0])
    stop = full[10:14]  # lies across tokens
    answer = run(engine, ask("the dog", 40, stop=("never", stop)))[0]
    assert text(answer) == full[: full.find(stop)]
    assert answer[-1].finish_reason == "stop"


def test_what_cannot_be_answered_is_refused_before_it_starts(engine: Generator) -> None:
    for request, message in (
        (ask("the " * 200), "the context holds 128"),
        (ask("x" * 1_000_000), "1000000 characters; the context holds 128 tokens"),
        (GenerateRequest(messages=[{"role": "user", "content": "x" * 1_000_000}]), "1000000 characters"),
        (ask("the", 128), "the context holds 128"),
        (ask("the", 0), "no number of tokens"),
        (GenerateRequest(), "either messages or a prompt"),
        (GenerateRequest(messages=[{"content": "no role"}], prompt="x"), "either messages or a prompt"),
    ):
        with pytest.raises(UserError, match=message):
            run(engine, request)
    engine.tokenizer.chat_template = None
    with pytest.raises(Unsupported, match="no chat template"):
        run(engine, GenerateRequest(messages=[{"role": "user", "content": "hello"}]))
    engine.tokenizer.chat_template = tiny.TEMPLATE
    assert text(run(engine, GenerateRequest(messages=[{"role": "user", "content": "the dog"}], max_tokens=5, temperature=0))[0])
    assert sum(delta.tokens for delta in run(engine, ask("the dog", None))[0]) <= 128


def test_a_prompt_is_not_closed_by_what_the_tokenizer_adds(tmp_path: Path) -> None:
    made = build(Transformers(), tiny.language_model(tmp_path))
    assert isinstance(made, Generator)
    plain = made._prompt(GenerateRequest(prompt="the dog"))
    made.tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|user|> $A <end>", special_tokens=[("<|user|>", 1), ("<end>", 0)]
    )
    assert made._prompt(GenerateRequest(prompt="the dog")) == [1, *plain]
    made.close()


def test_a_special_token_at_the_end_of_a_prompt_stays(engine: Generator) -> None:
    assert engine._prompt(GenerateRequest(prompt="the dog<end>")) == [*engine._prompt(GenerateRequest(prompt="the dog")), 0]


def test_a_prompt_is_tokenised_once_and_not_on_the_event_loop(engine: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    threads = []
    tokenise = type(engine.tokenizer).__call__

    def observed(*args: object, **kwargs: object) -> object:
        threads.append(threading.get_ident())
        return tokenise(*args, **kwargs)

    monkeypatch.setattr(type(engine.tokenizer), "__call__", observed)
    run(engine, ask("the dog", 2))
    assert len(threads) == 1 and threads[0] != threading.get_ident()


@pytest.fixture
def endless(tmp_path: Path) -> Iterator[Generator]:
    """One place, one waiting, and answers that take minutes."""
    made = build(Transformers(max_batch=1, max_waiting=1), tiny.language_model(tmp_path, context=100_000))
    assert isinstance(made, Generator)
    made.ends = frozenset()
    yield made
    made.close()


async def begin(engine: Generator) -> AsyncGenerator[Delta, None]:
    running = engine.generate(ask("the dog", None))
    await asyncio.wait_for(anext(running), 30)
    return running


def test_a_closed_iterator_frees_its_place(endless: Generator) -> None:
    async def scene() -> None:
        running = await begin(endless)
        waiting = asyncio.create_task(collect(endless, ask("fox", 3)))
        while not endless.waiting:
            await asyncio.sleep(0)
        with pytest.raises(Overloaded, match="1 requests are waiting"):
            await collect(endless, ask("one more"))
        await running.aclose()
        assert sum(delta.tokens for delta in await asyncio.wait_for(waiting, 30)) == 3

    asyncio.run(scene())


def test_a_waiting_request_that_is_cancelled_leaves_the_queue(endless: Generator) -> None:
    async def scene() -> None:
        running = await begin(endless)
        waiting = asyncio.create_task(collect(endless, ask("fox", 3)))
        while not endless.waiting:
            await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        assert not endless.waiting
        await running.aclose()

    asyncio.run(scene())


def test_when_the_batch_breaks_down_everybody_hears_why(endless: Generator) -> None:
    async def scene() -> None:
        running = await begin(endless)
        waiting = asyncio.create_task(collect(endless, ask("fox", 3)))
        while not endless.waiting:
            await asyncio.sleep(0)

        def broken() -> list[int]:
            raise ValueError("no more memory")

        endless.batch.step = broken  # type: ignore[method-assign]
        for broken_off in (collect_rest(running), waiting):
            with pytest.raises(RaybmError, match="ValueError: no more memory"):
                await asyncio.wait_for(broken_off, 30)
        with pytest.raises(RaybmError, match="no more memory"):
            await collect(endless, ask("later"))

    endless.check()
    asyncio.run(scene())
    with pytest.raises(RaybmError, match="no more memory"):
        endless.check()


def test_closing_the_engine_ends_what_runs(endless: Generator) -> None:
    async def scene() -> None:
        running = await begin(endless)
        await asyncio.to_thread(endless.close)
        with pytest.raises(RaybmError, match="closed"):
            await asyncio.wait_for(collect_rest(running), 30)

    asyncio.run(scene())
    endless.close()


async def collect_rest(running: AsyncGenerator[Delta, None]) -> list[Delta]:
    return [delta async for delta in running]
