"""Conversations as token ids, rendered with the model's chat template.

For training only the assistant's answers carry labels: from the template's own `{% generation %}` marks where it has them, else
from where rendering the conversation's beginning with the generation prompt ends, which is where serving starts an answer.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from raybm.core.errors import DataError
from raybm.models.words import fast

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

IGNORED = -100  # the label that torch's cross-entropy skips
ROLES = ("system", "user", "assistant")
Message = dict[str, str]

# ChatML's shape in the tokenizer's own begin and end tokens, for models without a template.
DEFAULT_TEMPLATE = (
    "{% for message in messages %}{{ bos_token or '' }}{{ message['role'] }}\n{{ message['content'] }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}{{ bos_token or '' }}assistant\n{% endif %}"
)


def validate(messages: Any) -> list[Message]:
    """The messages as plain {role, content}. Raises DataError with one reason: a system message only in front, roles that are
    known, contents that are text and, but for the system's, not blank."""
    if isinstance(messages, str | Mapping) or not hasattr(messages, "__iter__"):  # a list, or the array that Parquet gives
        raise _bad("messages is not a list.")
    plain: list[Message] = []
    for number, message in enumerate(messages, 1):
        if not isinstance(message, Mapping):
            raise _bad(f"message {number} is not a mapping with role and content.")
        role, content = message.get("role"), message.get("content")
        if role not in ROLES:
            raise _bad(f"message {number} has the role {role!r}; roles are {', '.join(ROLES)}.")
        if not isinstance(content, str):
            raise _bad(f"message {number} ({role}) has a content that is not text.")
        if role == "system" and number > 1:
            raise _bad(f"message {number} is a system message; only the first may be one.")
        if role != "system" and not content.strip():
            raise _bad(f"message {number} ({role}) is blank.")
        plain.append({"role": str(role), "content": content})
    if not any(message["role"] != "system" for message in plain):
        raise _bad("the conversation is empty.")
    return plain


def encode_conversation(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Mapping[str, Any]], system_prompt: str | None = None
) -> tuple[list[int], list[int]]:
    """(input_ids, labels) of a whole conversation. Labels are the ids in the assistant's answers, the token that ends each included, and
    -100 elsewhere. `system_prompt` goes before a conversation without a system message. Raises DataError."""
    turns = validate(messages)
    if not any(turn["role"] == "assistant" for turn in turns):
        raise _bad("there is no answer of the assistant to learn.")
    if system_prompt and turns[0]["role"] != "system":
        turns = [{"role": "system", "content": system_prompt}, *turns]
    fast(tokenizer)
    text = _render(tokenizer, turns)
    encoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids: list[int] = list(encoding["input_ids"])
    places: list[tuple[int, int]] = encoding["offset_mapping"]
    special = _special_ids(tokenizer)
    if re.search(r"{%-?\s*generation\s*-?%}", _template(tokenizer)):
        answered = _marked(tokenizer, turns, ids, special)
    else:
        answered = [False] * len(ids)
        for index, turn in enumerate(turns):
            if turn["role"] == "assistant" and index:  # one that opens the conversation answers nothing
                for position in _answer(tokenizer, turns, index, text, ids, places, special):
                    answered[position] = True
    if not any(answered):
        raise _bad("the chat template renders no answer.")
    return ids, [token if learn else IGNORED for token, learn in zip(ids, answered, strict=True)]


def stop_at_turns(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Has generation end, too, with the token that ends an answer in the chat template: a base model's own end token may be another."""
    settings = model.generation_config
    if settings is None:
        return
    try:
        _, labels = encode_conversation(tokenizer, [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}])
    except DataError:
        return
    last = next(label for label in reversed(labels) if label != IGNORED)
    known = tokenizer.eos_token_id if settings.eos_token_id is None else settings.eos_token_id
    ends = [] if known is None else known if isinstance(known, list) else [known]
    if last in _special_ids(tokenizer) and last not in ends:
        settings.eos_token_id = [*ends, last]


def _template(tokenizer: PreTrainedTokenizerBase) -> str:
    if tokenizer.chat_template is None:
        if tokenizer.eos_token is None:
            raise DataError("the tokenizer has neither a chat template nor an end token.", remedy="Give it one of them.")
        return DEFAULT_TEMPLATE
    return str(tokenizer.get_chat_template())


def _render(tokenizer: PreTrainedTokenizerBase, turns: Sequence[Message], add_generation_prompt: bool = False) -> str:
    from jinja2 import TemplateError

    try:
        return str(
            tokenizer.apply_chat_template(
                list(turns), chat_template=_template(tokenizer), tokenize=False, add_generation_prompt=add_generation_prompt
            )
        )
    except (TemplateError, TypeError) as error:  # templates refuse with raise_exception, or add None to a string
        raise _bad(f"the chat template refuses it: {error}") from None


def _special_ids(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    return {index for index, token in tokenizer.added_tokens_decoder.items() if token.special} | set(tokenizer.all_special_ids)


def _marked(tokenizer: PreTrainedTokenizerBase, turns: Sequence[Message], ids: list[int], special: set[int]) -> list[bool]:
    """The tokens between the template's generation marks, and the end token right after them."""
    both = tokenizer.apply_chat_template(
        list(turns), chat_template=_template(tokenizer), tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    if list(both["input_ids"]) != ids:
        raise _bad("the chat template renders differently each time.")
    marked = [bool(mark) for mark in both["assistant_masks"]]
    return [mark or (at > 0 and marked[at - 1] and ids[at] in special and ids[at - 1] not in special) for at, mark in enumerate(marked)]


def _answer(
    tokenizer: PreTrainedTokenizerBase,
    turns: Sequence[Message],
    index: int,
    text: str,
    ids: list[int],
    places: list[tuple[int, int]],
    special: set[int],
) -> range:
    """Positions of the tokens of answer `index`, from the end of the prompt before it to the end token after it."""
    prompt = _render(tokenizer, turns[:index], add_generation_prompt=True)
    if not text.startswith(prompt):
        raise _bad(
            "the chat template renders the beginning of a conversation differently once more follows, so the answers cannot be told apart."
        )
    begin, end = len(prompt), len(text)
    if index + 1 < len(turns):
        whole = _render(tokenizer, turns[: index + 1])
        if text.startswith(whole):
            end = len(whole)
        else:  # templates that drop the reasoning of earlier answers: up to the next prompt, if the content stands there as it is
            content = turns[index]["content"].strip()
            at = text.find(content, begin)
            if at < 0:
                raise _bad(f"the chat template changes the content of message {index + 1}.")
            after = (place[1] for place, token in zip(places, ids, strict=True) if token in special and place[0] >= at + len(content))
            end = next(after, at + len(content))
    inside = [position for position, (first, last) in enumerate(places) if begin <= first < last <= end]
    if not inside:
        raise _bad(f"the chat template renders nothing of message {index + 1}.")
    ends = [position for position in inside if ids[position] in special]
    return range(inside[0], (ends[-1] if ends else inside[-1]) + 1)


def _bad(reason: str) -> DataError:
    return DataError(reason, where="messages", remedy="")
