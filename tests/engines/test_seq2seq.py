from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BartConfig

from raybm.core.errors import Unsupported, UserError
from raybm.engines.protocol import Delta, GenerateRequest
from raybm.engines.transformers.engine import build
from raybm.engines.transformers.seq2seq import Rewriter
from raybm.engines.transformers.spec import Transformers
from raybm.models.sequences import sources
from tests.engines import tiny

BART = BartConfig(
    vocab_size=300,
    d_model=32,
    encoder_layers=1,
    decoder_layers=2,
    encoder_attention_heads=4,
    decoder_attention_heads=4,
    encoder_ffn_dim=64,
    decoder_ffn_dim=64,
    max_position_embeddings=64,
    init_std=0.5,
    bos_token_id=1,
    pad_token_id=299,
    eos_token_id=0,
    decoder_start_token_id=0,
    forced_bos_token_id=1,
    forced_eos_token_id=None,
)
PROMPTS = ("fox", "the quick brown fox jumps over the lazy dog", "dog over", "naïve café")


@pytest.fixture(params=["t5", "bart"])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Rewriter]:
    made = build(Transformers(precision="fp32", max_batch=3), tiny.encoder_decoder(tmp_path, BART if request.param == "bart" else None))
    assert isinstance(made, Rewriter)
    yield made
    made.close()


def run(engine: Rewriter, *requests: GenerateRequest) -> list[list[Delta]]:
    async def one(request: GenerateRequest) -> list[Delta]:
        return [delta async for delta in engine.generate(request)]

    async def together() -> list[list[Delta]]:
        return await asyncio.wait_for(asyncio.gather(*map(one, requests)), 60)

    return asyncio.run(together())


def reference(engine: Rewriter, prompt: str, tokens: int) -> str:
    """Greedy decoding without a cache, a batch or padding."""
    model, ids, made = engine.batch.model, torch.tensor(sources(engine.tokenizer, [prompt], 48)), list(engine.batch.start)
    with torch.inference_mode():
        for _ in range(tokens):
            logits = model(input_ids=ids, decoder_input_ids=torch.tensor([made])).logits[0, -1]
            if engine.batch.never is not None:
                logits[engine.batch.never] = -torch.inf
            made.append(int(logits.argmax()))
            if made[-1] in engine.ends:
                break
    return str(engine.tokenizer.decode(made[len(engine.batch.start) :], skip_special_tokens=True))


def test_a_wave_of_different_lengths_says_what_each_alone_would(engine: Rewriter) -> None:
    lengths = (3, 20, 9, 14)  # rows leave one by one, and the last waits for the next wave
    requests = [GenerateRequest(prompt=prompt, max_tokens=n, temperature=0.0) for prompt, n in zip(PROMPTS, lengths, strict=True)]
    for deltas, prompt, tokens in zip(run(engine, *requests), PROMPTS, lengths, strict=True):
        said, expected = "".join(delta.text for delta in deltas), reference(engine, prompt, tokens)
        assert said.replace("\ufffd", "") == expected.replace("\ufffd", "")  # halves of characters
        assert deltas[-1].finish_reason


def test_a_seed_repeats_an_answer_whatever_else_runs(engine: Rewriter) -> None:
    drawn = GenerateRequest(prompt="the fox", max_tokens=12, temperature=1.5, top_p=0.9, seed=5)
    [alone] = run(engine, drawn)
    others = [GenerateRequest(prompt=prompt, max_tokens=12, seed=1) for prompt in PROMPTS[:2]]
    assert "".join(delta.text for delta in run(engine, *others, drawn)[-1]) == "".join(delta.text for delta in alone)


def test_long_sources_are_cut_and_odd_requests_refused(engine: Rewriter) -> None:
    [deltas] = run(engine, GenerateRequest(prompt="the dog " * 100, max_tokens=1000, temperature=0.0))
    assert deltas[0].prompt_tokens == 48 and sum(delta.tokens for delta in deltas) <= 48
    with pytest.raises(Unsupported, match="messages"):
        run(engine, GenerateRequest(messages=[{"role": "user", "content": "fox"}], max_tokens=3))
    with pytest.raises(UserError, match="empty"):
        run(engine, GenerateRequest(prompt=" ", max_tokens=3))


def test_where_memory_does_not_suffice_waves_are_smaller(engine: Rewriter) -> None:
    model, lengths = engine.batch.model, (3, 20, 9, 14)
    requests = [GenerateRequest(prompt=prompt, max_tokens=n, temperature=0.0) for prompt, n in zip(PROMPTS, lengths, strict=True)]
    expected = ["".join(delta.text for delta in deltas) for deltas in run(engine, *requests)]
    forward = model.forward

    def limited(*args: Any, decoder_input_ids: torch.Tensor, **more: Any) -> Any:
        if len(decoder_input_ids) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return forward(*args, decoder_input_ids=decoder_input_ids, **more)

    model.forward = limited
    assert ["".join(delta.text for delta in deltas) for deltas in run(engine, *requests)] == expected
    engine.check()
