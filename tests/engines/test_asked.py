"""What a generation may ask for beyond text: log-probabilities, penalties, a schema, calls of functions, tokens."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
from llguidance import LLMatcher

from raybm.core.errors import Unsupported, UserError
from raybm.engines.protocol import Answer, Delta, GenerateRequest, ToolCall
from raybm.engines.transformers.engine import build
from raybm.engines.transformers.spec import Transformers
from raybm.engines.vocabulary import Constraint
from tests.engines import tiny

USER = ({"role": "user", "content": "the dog"},)
SCHEMA = {
    "type": "object",
    "properties": {"animal": {"enum": ["fox", "dog"]}, "age": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["animal", "age"],
    "additionalProperties": False,
}
TOOLS = ({"type": "function", "function": {"name": "find", "description": "", "parameters": SCHEMA}},)
HERMES = (
    "{% if tools %}{{ tools | tojson }}<tool_call>{% endif %}{% for m in messages %}{{ m.role }}:{{ m.content }}"
    "{% for call in m.tool_calls or [] %}{{ call.function.arguments.animal }}{% endfor %}<end>{% endfor %}"
)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    made = build(Transformers(precision="fp32", max_batch=4), tiny.language_model(tmp_path_factory.mktemp("lm"), context=512))
    yield made
    made.close()


def run(engine: Any, *requests: GenerateRequest) -> list[Answer]:
    async def one(request: GenerateRequest) -> Answer:
        return Answer.of([delta async for delta in engine.generate(request)])

    async def all_of_them() -> list[Answer]:
        return await asyncio.wait_for(asyncio.gather(*map(one, requests)), 60)

    return asyncio.run(all_of_them())


def ask(**more: Any) -> GenerateRequest:
    return GenerateRequest(**{"prompt": "the dog", "max_tokens": 12, "temperature": 0.0, **more})


def test_logprobs_are_the_models_own(engine: Any) -> None:
    """Of a sampled, penalised answer, beside one that asks for none."""
    request = ask(logprobs=2, temperature=1.5, seed=3, presence_penalty=1.0)
    answer, bare = run(engine, request, ask())
    assert bare.logprobs == ()
    ids = list(engine.tokenizer("the dog").input_ids)
    offset = 0
    for token in answer.logprobs:
        with torch.inference_mode():
            shares = torch.log_softmax(engine.batch.model(torch.tensor([ids])).logits[0, -1], -1)
        chosen = next(i for i in range(len(shares)) if engine.vocabulary.bytes_of(i) == token.bytes)
        assert token.logprob == pytest.approx(float(shares[chosen]), abs=1e-4)
        assert [top.logprob for top in token.top] == pytest.approx(shares.topk(2).values.tolist(), abs=1e-4)
        assert token.offset == offset
        offset += len(token.token)
        ids.append(chosen)
    shown = b"".join(token.bytes for token in answer.logprobs if not token.bytes.startswith(b"<|"))  # a special token is never shown
    assert shown.decode(errors="replace").startswith(answer.text.rstrip("\ufffd"))
    assert len(answer.logprobs) == answer.completion_tokens - (answer.finish_reason == "stop")


def test_penalties_keep_an_answer_from_repeating_itself(engine: Any) -> None:
    engine.ends, ends = frozenset(), engine.ends
    plain, frequency, presence = run(
        engine,
        ask(logprobs=0, max_tokens=60),
        *(ask(logprobs=0, max_tokens=60, **{f"{name}_penalty": 1000.0}) for name in ("frequency", "presence")),
    )
    engine.ends = ends
    repeated = [len(answer.logprobs) - len({token.bytes for token in answer.logprobs}) for answer in (plain, frequency, presence)]
    assert repeated[0] > 0 and repeated[1:] == [0, 0]


def test_an_answer_fits_its_schema_and_disturbs_no_other(engine: Any) -> None:
    """Forty tokens of 300 hold it; a random model writes it, greedy and sampled, while others run."""
    alone = run(engine, ask())[0]
    constrained = [ask(schema=SCHEMA, max_tokens=60, temperature=t, seed=s) for t, s in ((0.0, 0), (1.0, 1), (2.0, 2))]
    *fitting, other = run(engine, *constrained, ask())
    for answer in fitting:
        jsonschema.validate(json.loads(answer.text), SCHEMA)
        assert answer.finish_reason == "stop"
    assert other.text == alone.text


@pytest.mark.parametrize("schema", [{"type": "nothing"}, {"not": {}}, {"$ref": "https://example.com/x"}, {"const": float("nan")}])
def test_a_schema_that_cannot_be_followed_is_the_users_mistake(engine: Any, schema: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="response_format: "):
        run(engine, ask(schema=schema))


def test_a_call_that_must_be_made_is_made(engine: Any) -> None:
    """Also where the chat template takes no tools; one that may be made needs a template that does."""
    answer = run(engine, ask(prompt=None, messages=USER, tools=TOOLS, must_call=True, max_tokens=90))[0]
    (call,) = answer.calls
    assert (call.name, answer.text, answer.finish_reason) == ("find", "", "tool_calls")
    jsonschema.validate(json.loads(call.arguments), SCHEMA)
    with pytest.raises(Unsupported, match="chat template takes no tools"):
        run(engine, ask(prompt=None, messages=USER, tools=TOOLS))
    broken = ({"type": "function", "function": {"name": "find", "parameters": {"type": "nothing"}}},)
    with pytest.raises(UserError, match="tools: this schema cannot be followed"):
        run(engine, ask(prompt=None, messages=USER, tools=broken, must_call=True))


def test_templates_that_take_tools_are_given_them(engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine.tokenizer, "chat_template", HERMES)
    call = {"id": "1", "type": "function", "function": {"name": "find", "arguments": {"animal": "fox"}}}
    messages = (*USER, {"role": "assistant", "content": "", "tool_calls": [call]}, {"role": "tool", "content": "7", "tool_call_id": "1"})
    ids = engine.tokenize(ask(prompt=None, messages=messages, tools=TOOLS)).ids
    assert engine.detokenize(ids).endswith("user:the dog<end>assistant:fox<end>tool:7<end>") and '"find"' in engine.detokenize(ids)
    assert run(engine, ask(prompt=None, messages=messages, tools=TOOLS, max_tokens=3))[0].completion_tokens <= 3


def test_calls_end_an_answer_with_their_own_reason(engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A random model is made to write a call in its template's style: only one text is allowed."""
    monkeypatch.setattr(engine.tokenizer, "chat_template", HERMES)
    written = 'Well. <tool_call>{"name": "find", "arguments": {"animal": "fox"}}</tool_call>'
    monkeypatch.setattr(engine, "_constraint", lambda _: only(engine, written))
    answer = run(engine, ask(prompt=None, messages=USER, tools=TOOLS, max_tokens=200))[0]
    assert (answer.text, answer.finish_reason) == ("Well. ", "tool_calls")
    assert answer.calls == (ToolCall(0, "find", '{"animal": "fox"}'),)


def only(engine: Any, text: str) -> Constraint:
    return Constraint(LLMatcher(engine.vocabulary._read(), LLMatcher.grammar_from_regex(re.escape(text))), "")


def test_tokens_there_and_back(engine: Any, tmp_path: Path) -> None:
    tokens = engine.tokenize(GenerateRequest(prompt="naïve 😀"))
    assert engine.detokenize(tokens.ids) == "naïve 😀" and len(tokens.ids) == len(tokens.texts) and tokens.context == 512
    assert engine.tokenize(GenerateRequest(messages=USER)).ids[-1] == engine.tokenizer.convert_tokens_to_ids("<|assistant|>")
    with pytest.raises(UserError, match="no token 300"):
        engine.detokenize([0, 300])
    encoder = build(Transformers(), tiny.embedder(tmp_path))
    special, bare = (encoder.tokenize(GenerateRequest(prompt="the dog"), special) for special in (True, False))
    assert len(special.ids) == len(bare.ids) + 2 and special.texts[0] == "[CLS]"
    assert encoder.detokenize(bare.ids) == "the dog"
    with pytest.raises(Unsupported):
        encoder.tokenize(GenerateRequest(messages=USER))
    encoder.close()


def test_an_encoder_decoder_calls_nothing_and_fits_a_schema(tmp_path: Path) -> None:
    engine = build(Transformers(), tiny.encoder_decoder(tmp_path))
    answer = run(engine, ask(schema={"enum": ["fox", "dog"]}, logprobs=0))[0]
    assert json.loads(answer.text) in ("fox", "dog") and answer.logprobs
    with pytest.raises(Unsupported, match="tools: is nothing that this model's engine can"):
        run(engine, ask(tools=TOOLS, must_call=True))
    engine.close()


def test_another_replica_goes_on_with_all_that(engine: Any) -> None:
    """After each delta, another replica gives what was left."""
    request = ask(max_tokens=60, temperature=1.0, seed=5, frequency_penalty=0.5, schema=SCHEMA, logprobs=1)

    async def collect(one: GenerateRequest) -> list[Delta]:
        return [delta async for delta in engine.generate(one)]

    whole = asyncio.run(collect(request))
    for place in range(1, len(whole), 5):
        written = tuple(token for delta in whole[:place] for token in delta.ids)
        rest, left = Answer.of(asyncio.run(collect(request._replace(written=written)))), Answer.of(whole[place:])
        assert (rest.text, rest.finish_reason) == (left.text, left.finish_reason)
        assert [(t.token, t.offset) for t in rest.logprobs] == [(t.token, t.offset) for t in left.logprobs]
