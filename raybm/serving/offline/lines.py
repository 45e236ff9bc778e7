"""Lines of a batch's input file: how they are read, and what is wrong with them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from itertools import chain
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, ValidationError

from raybm.serving.offline.record import Mistake

MISTAKES = 50  # of one file; then it is read no further
CUSTOM_ID_MAX = 512  # characters
BOM = b"\xef\xbb\xbf"  # Windows' editors begin a file with it
OVERHEAD_BYTES = 8192  # of a line around its body


class Line(BaseModel):
    """A request of a batch. Keys beside these are ignored, as OpenAI does."""

    custom_id: Annotated[str, Field(min_length=1, max_length=CUSTOM_ID_MAX)]
    method: Literal["POST"]
    url: str
    body: dict[str, Any]

    @property
    def model(self) -> str:
        return str(self.body.get("model", ""))


def numbered(chunks: Iterable[bytes], max_bytes: int) -> Iterator[tuple[int, bytes | None]]:
    """The lines that are not blank, counted from 1; None stands for one of more than `max_bytes`, which is never whole in memory."""
    number, rest, too_long = 1, b"", False
    for chunk in chain(chunks, (b"\n",)):
        *whole, rest = (rest + chunk).split(b"\n")
        for line in whole:
            if too_long or len(line) > max_bytes:
                yield number, None
            elif line.strip():
                yield number, line.removeprefix(BOM) if number == 1 else line
            number, too_long = number + 1, False
        if len(rest) > max_bytes:
            rest, too_long = b"", True


def requests(lines: Iterable[tuple[int, bytes | None]]) -> Iterator[Line]:
    """Of lines that `check` has passed."""
    return (line for _, text in lines if isinstance(line := _parse(text), Line))


def check(
    lines: Iterable[tuple[int, bytes | None]], endpoint: str, models: Collection[str], max_lines: int
) -> tuple[int, tuple[Mistake, ...]]:
    """How many requests there are, and what is wrong with the first lines that are wrong. A body is not looked into, but for its
    model: what else is wrong there becomes the answer to that line, and the others are answered."""
    total, mistakes, seen = 0, list[Mistake](), dict[str, int]()
    for number, text in lines:
        total += 1
        if total > max_lines:
            return total, (Mistake(code="too_many_requests", message=f"The file has more than {max_lines} requests.", line=number),)
        line = _parse(text)
        if isinstance(line, Line):
            line = _mistake(line, endpoint, models, seen) or line
        if isinstance(line, Mistake):
            mistakes.append(line.model_copy(update={"line": number}))
            if len(mistakes) == MISTAKES:
                break
        else:
            seen[line.custom_id] = number
    if not total:
        mistakes.append(Mistake(code="empty_file", message="The file has no request."))
    return total, tuple(mistakes)


def _parse(text: bytes | None) -> Line | Mistake:
    if text is None:
        return Mistake(code="line_too_long", message="The line has more bytes than a request may have (gateway.max_body_bytes).")
    try:
        return Line.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    if first["type"] == "json_invalid":
        return Mistake(code="invalid_json_line", message=f"The line is no JSON: {first['msg'].removeprefix('Invalid JSON: ')}.")
    if not first["loc"]:
        return Mistake(code="invalid_json_line", message="The line is no JSON object.")
    param = str(first["loc"][0])
    if first["type"] == "missing":
        return Mistake(code="missing_required_parameter", message=f"The line has no {param}.", param=param)
    return Mistake(code=f"invalid_{param}", message=f"{param}: {first['msg']}.", param=param)


def _mistake(line: Line, endpoint: str, models: Collection[str], seen: dict[str, int]) -> Mistake | None:
    if line.url != endpoint:
        return Mistake(code="mismatched_url", message=f"The url is not the batch's endpoint, {endpoint}.", param="url")
    if line.custom_id in seen:
        message = f"The custom_id is that of line {seen[line.custom_id]}; each needs its own."
        return Mistake(code="duplicate_custom_id", message=message, param="custom_id")
    if line.model not in models:
        return Mistake(code="model_not_found", message=f"There is no such model. There are: {', '.join(models)}.", param="body.model")
    return None
