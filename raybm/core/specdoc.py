"""A spec's keys for people (Markdown) and for editors (JSON Schema), both from the classes."""

from __future__ import annotations

import json
import re
import types
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import annotated_types
from pydantic.fields import FieldInfo

from raybm.core.spec import Spec

WORDS: dict[Any, str] = {str: "text", int: "whole number", float: "number", bool: "true or false", type(None): "null"}


def json_schema(cls: type[Spec]) -> dict[str, Any]:
    """JSON Schema (draft 2020-12) with every key's meaning. The checks over several keys are not in it."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema"} | cls.model_json_schema()


def markdown(cls: type[Spec], title: str) -> str:
    """A chapter: a table of the class's own keys, then one for every section below it, in the order in which they stand."""
    parts = [f"## {title}", "", _doc(cls), "", *_table(cls, "", _keys(cls))]
    for path, members in _below(cls, ""):
        parts += [f"### `{path}`", ""]
        if len(members) == 1:
            parts += [_doc(members[0]), "", *_table(members[0], path, _keys(members[0]))]
            continue
        shared = [key for key in _keys(members[0]) if all(_same(key, members[0], member) for member in members[1:])]
        parts += [f"`kind:` says which: {', '.join(f'`{_kind(member)}`' for member in members)}.", ""]
        parts += ["Keys of every kind:", "", *_table(members[0], path, shared)] if shared else []
        for member in members:
            own = [key for key in _keys(member) if key not in shared]
            parts += [f"#### `kind: {_kind(member)}`", "", _doc(member), "", *(_table(member, path, own) if own else [])]
    return "\n".join(parts)


def _keys(cls: type[Spec]) -> list[str]:
    return [name for name in cls.model_fields if name != "kind" or len(get_args(cls.model_fields[name].annotation)) != 1]


def _same(key: str, one: type[Spec], other: type[Spec]) -> bool:
    """Whether the key means the same in both."""
    fields = [cls.model_fields.get(key) for cls in (one, other)]
    return all(field is not None for field in fields) and repr(fields[0]) == repr(fields[1])


def _below(cls: type[Spec], path: str) -> Iterator[tuple[str, list[type[Spec]]]]:
    """Every place under `cls` where a spec stands, with the classes that may stand there, top down."""
    for name, field in cls.model_fields.items():
        members = _specs(field.annotation)
        if members:
            here = _place(path, name, field.annotation)
            yield here, members
            for member in members:
                yield from _below(member, here)


def _place(path: str, name: str, annotation: Any) -> str:
    return (f"{path}.{name}" if path else name) + ("[]" if _is_list(annotation) else "")


def _specs(annotation: Any) -> list[type[Spec]]:
    if isinstance(annotation, type) and issubclass(annotation, Spec):
        return [annotation]
    return [spec for argument in get_args(annotation) for spec in _specs(argument)]


def _is_list(annotation: Any) -> bool:
    return get_origin(annotation) is tuple or any(
        _is_list(argument) for argument in get_args(annotation) if get_origin(annotation) is not dict
    )


def _kind(cls: type[Spec]) -> str:
    field = cls.model_fields.get("kind")
    return "" if field is None else str(field.default)


def _doc(cls: type[Spec]) -> str:
    return " ".join((cls.__doc__ or "").split())


def _table(cls: type[Spec], path: str, keys: list[str]) -> list[str]:
    rows = ["| key | value | default | meaning |", "|---|---|---|---|"]
    for key in keys:
        field = cls.model_fields[key]
        members, value, meaning = _specs(field.annotation), _value(field), field.description or ""
        if members:
            place = _place(path, key, field.annotation)
            value = f"[`{place}`](#{re.sub(r'[^a-z0-9_-]', '', place.lower())})"
            meaning = meaning or (_doc(members[0]) if len(members) == 1 else ", ".join(f"`{_kind(member)}`" for member in members))
        cells = (f"`{key}`", value, _default(field), " ".join(meaning.split()))
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return [*rows, ""]


def _value(field: FieldInfo) -> str:
    return _words(Annotated[(field.annotation, *field.metadata)] if field.metadata else field.annotation)


def _words(annotation: Any) -> str:
    """A type as a person would say it."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        limits = " and ".join(limit for item in arguments[1:] for limit in _limits(item))
        return f"{_words(arguments[0])} {limits}".rstrip()
    if origin is Literal:
        return " or ".join(f"`{value}`" for value in arguments)
    if origin in (Union, types.UnionType):
        return " or ".join(_words(argument) for argument in arguments)
    if origin is tuple:
        each = list(dict.fromkeys(_words(argument) for argument in arguments if argument is not Ellipsis))
        count = "" if arguments[-1] is Ellipsis else f"{len(arguments)}: "
        return f"list of {count}" + " and ".join(f"({item})" if " or " in item else item for item in each)
    if origin is dict:
        return f"mapping of {_words(arguments[0])} to {_words(arguments[1])}"
    return WORDS.get(annotation, "any value")


def _limits(item: Any) -> Iterator[str]:
    if isinstance(item, FieldInfo):
        for inner in item.metadata:
            yield from _limits(inner)
    for kind, sign in ((annotated_types.Gt, ">"), (annotated_types.Ge, "≥"), (annotated_types.Lt, "<"), (annotated_types.Le, "≤")):
        if isinstance(item, kind):
            yield f"{sign} {getattr(item, kind.__name__.lower())}"
    if isinstance(item, annotated_types.MinLen):
        yield f"({item.min_length} or more)"


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "**required**"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, Spec):
        return f"`{_kind(value.__class__)}`" if _kind(value.__class__) else "its defaults"
    if isinstance(value, tuple) and value and isinstance(value[0], Spec):
        return ", ".join(f"`{_kind(item.__class__)}`" for item in value)
    if value is None:
        return "none"
    plain = isinstance(value, str) and value.isprintable()
    return f"`{value}`" if plain else f"`{json.dumps(value, ensure_ascii=False)}`"
