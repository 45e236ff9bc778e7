"""Conversations → token ids and labels, for several shapes of chat template."""

from types import SimpleNamespace

import numpy as np
import pytest

from raybm.core.errors import DataError
from raybm.models import chat
from raybm.models.spec import TokenizerSpec
from raybm.models.tokenizers import train

CHATML = (
    "{% for m in messages %}{% if loop.first and m['role'] != 'system' %}{{ '<|im_start|>system\nBe good.<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA2 = (  # the system prompt inside the first user turn, a begin token for every pair, roles that must alternate
    "{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] %}{% set messages = messages[1:] %}{% endif %}"
    "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% if m['role'] == 'user' %}{{ bos_token + '[INST] ' }}{% if loop.first and system is defined %}{{ system + '\n' }}{% endif %}"
    "{{ m['content'] + ' [/INST]' }}{% else %}{{ ' ' + m['content'] + ' ' + eos_token }}{% endif %}{% endfor %}"
)
MARKED = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] }}"
    "{% endgeneration %}{% else %}{{ m['content'] }}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
THINKING = (  # an empty reasoning block goes before the last answer only
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{% if m['role'] == 'assistant' and loop.last %}{{ '<think>\n</think>\n' }}{% endif %}"
    "{{ m['content'] + '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
REWRITING = CHATML.replace("{{ '<|im_start|>' + m['role']", "{{ '<|im_start|>' + (messages | length | string) + m['role']")

TALK = [
    {"role": "user", "content": "Hello, who are you?"},
    {"role": "assistant", "content": "I am a model."},
    {"role": "user", "content": "你好吗"},
    {"role": "assistant", "content": "我很好，谢谢！"},
]
ANSWERS = ["I am a model.", "我很好，谢谢！"]


@pytest.fixture(params=["bpe", "unigram", "char"])
def tokenizer(request):
    texts = [message["content"] for message in TALK] + ["system user assistant [INST] Be good. Be brief. think \n</>?"]
    made = train(TokenizerSpec(train=request.param, vocab_size=320 if request.param == "bpe" else 90), lambda: iter(texts), 512)
    made.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    return made


def learned(tokenizer, ids, labels):
    """The texts of the labelled runs."""
    assert all(label in (token, chat.IGNORED) for token, label in zip(ids, labels, strict=True))
    runs, inside = [], False
    for label in labels:
        if label != chat.IGNORED:
            runs = runs if inside else [*runs, []]
            runs[-1].append(label)
        inside = label != chat.IGNORED
    return [tokenizer.decode(run) for run in runs]


@pytest.mark.parametrize(("template", "end"), [(CHATML, "<|im_end|>"), (MARKED, "<|im_end|>"), (LLAMA2, " <eos>"), (None, "<eos>")])
def test_only_the_answers_and_their_end_tokens_are_learned(tokenizer, template, end):
    tokenizer.chat_template = template
    ids, labels = chat.encode_conversation(tokenizer, TALK, None)
    assert [run.lstrip() for run in learned(tokenizer, ids, labels)] == [answer + end for answer in ANSWERS]


@pytest.mark.parametrize("template", [CHATML, MARKED, LLAMA2, None])
def test_training_goes_on_where_serving_starts(tokenizer, template):
    tokenizer.chat_template = template
    ids, labels = chat.encode_conversation(tokenizer, TALK, "Be brief.")
    first = next(position for position, label in enumerate(labels) if label != chat.IGNORED)
    asked = [{"role": "system", "content": "Be brief."}, TALK[0]]
    served = tokenizer.apply_chat_template(
        asked, chat_template=template or chat.DEFAULT_TEMPLATE, add_generation_prompt=True, return_dict=False
    )
    assert served == ids[:first]


def test_the_system_prompt_yields_to_one_in_the_conversation(tokenizer):
    tokenizer.chat_template = CHATML
    own = [{"role": "system", "content": "Be good."}, *TALK]
    assert chat.encode_conversation(tokenizer, own, "Be brief.") == chat.encode_conversation(tokenizer, own, None)
    assert chat.encode_conversation(tokenizer, TALK, "Be good.") == chat.encode_conversation(tokenizer, own, None)


def test_a_template_that_drops_reasoning_from_earlier_answers(tokenizer):
    tokenizer.chat_template = THINKING
    ids, labels = chat.encode_conversation(tokenizer, TALK, None)
    assert learned(tokenizer, ids, labels) == [ANSWERS[0] + "<|im_end|>", "<think>\n</think>\n" + ANSWERS[1] + "<|im_end|>"]


def test_a_template_that_rewrites_the_beginning_is_refused(tokenizer):
    tokenizer.chat_template = REWRITING
    with pytest.raises(DataError, match="renders the beginning"):
        chat.encode_conversation(tokenizer, TALK, None)


def test_what_the_template_refuses_is_one_bad_row(tokenizer):
    tokenizer.chat_template = LLAMA2
    with pytest.raises(DataError, match="roles must alternate"):
        chat.encode_conversation(tokenizer, [TALK[0], TALK[2], TALK[1]], None)


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ("hi", "not a list"),
        ([], "empty"),
        ([{"role": "system", "content": "x"}], "empty"),
        (["hi"], "not a mapping"),
        ([{"role": "robot", "content": "x"}], "'robot'"),
        ([{"role": "user", "content": None}], "not text"),
        ([{"role": "user", "content": " "}], "blank"),
        ([TALK[0], {"role": "system", "content": "x"}], "only the first"),
    ],
)
def test_bad_messages_have_one_reason(messages, reason):
    with pytest.raises(DataError, match=reason):
        chat.validate(messages)


def test_messages_as_parquet_gives_them():
    assert chat.validate(np.array([{"role": "user", "content": "x", "name": None}], dtype=object)) == [{"role": "user", "content": "x"}]


@pytest.mark.parametrize(("template", "end"), [(CHATML, "<|im_end|>"), (MARKED, "<|im_end|>"), (LLAMA2, "<eos>"), (None, "<eos>")])
def test_generation_stops_with_what_ends_an_answer(tokenizer, template, end):
    tokenizer.chat_template = template
    for known in (None, 1, [1, 2]):
        model = SimpleNamespace(generation_config=SimpleNamespace(eos_token_id=known))
        chat.stop_at_turns(model, tokenizer)
        ends = model.generation_config.eos_token_id
        given = [] if known is None else known if isinstance(known, list) else [known]
        assert {*given, tokenizer.convert_tokens_to_ids(end)} <= set(ends if isinstance(ends, list) else [ends or tokenizer.eos_token_id])


def test_who_opens_a_conversation_answers_nothing(tokenizer):
    tokenizer.chat_template = CHATML
    ids, labels = chat.encode_conversation(tokenizer, [TALK[1], *TALK[2:]], None)
    assert learned(tokenizer, ids, labels) == [ANSWERS[1] + "<|im_end|>"]
    with pytest.raises(DataError, match="no answer"):
        chat.encode_conversation(tokenizer, TALK[1:3], None)


def test_a_conversation_without_an_answer_teaches_nothing(tokenizer):
    with pytest.raises(DataError, match="no answer"):
        chat.encode_conversation(tokenizer, TALK[:1], None)
