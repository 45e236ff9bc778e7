"""YAML with YAML 1.2's scalars and the line of every key.

PyYAML follows YAML 1.1, where `lr: 3e-5` is a string and a label `no` is a boolean; both are traps in a training spec.
Duplicate keys, which PyYAML drops without a word, are errors here.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

from raybm.core.errors import Problem, SpecError


class _Loader(yaml.SafeLoader):
    """Begins with no resolvers at all; those of YAML 1.2's core schema follow."""


_Loader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in (
    ("null", r"^(?:~|null|Null|NULL|)$", ["~", "n", "N", ""]),
    ("bool", r"^(?:true|True|TRUE|false|False|FALSE)$", list("tTfF")),
    ("int", r"^[-+]?[0-9]+$", list("-+0123456789")),
    (
        "float",
        r"^[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?$|^[-+]?\.(?:inf|Inf|INF)$|^\.(?:nan|NaN|NAN)$",
        list("-+.0123456789"),
    ),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(_pattern), _first)
# "1e-3" is a float in YAML 1.2; PyYAML's own constructor takes it once the resolver says so.
_Loader.add_constructor("tag:yaml.org,2002:int", lambda loader, node: int(loader.construct_scalar(node)))  # type: ignore[arg-type]

Path = tuple[str | int, ...]
MAX_DEPTH = 40


def parse_fragment(text: str, source: str) -> Any:
    """The value of a piece of YAML, as in `--set train.lr=3e-5` or `--set publish.gate={macro_f1: ">= 0.8"}`. Raises SpecError."""
    if text.lstrip()[:1] in (">", "|"):  # block scalars need lines of their own: here it is a comparison, such as `> 0.8`
        return text.strip()
    return parse(text, source)[0] if text.strip() else None


def parse(text: str, source: str) -> tuple[Any, dict[Path, int]]:
    """The document and, for the path of every key or list item, its 1-based line. Raises SpecError."""
    lines: dict[Path, int] = {}
    problems: list[Problem] = []
    try:
        loader = _Loader(text)
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        what = f"the character {text[error.position]!r} cannot stand in YAML."
        raise SpecError((Problem("", what, "Take it out, or save the file as UTF-8.", line),), source) from None
    try:
        node = loader.get_single_node()
        if node is None:
            return {}, lines
        _walk(node, (), lines, problems)
        if problems:
            raise SpecError(tuple(problems), source)
        return loader.construct_document(node), lines
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        what = f"this is not YAML: {getattr(error, 'problem', None) or error}."
        raise SpecError((Problem("", what, "Check the indentation and quotes there.", mark.line + 1 if mark else None),), source) from None
    finally:
        loader.dispose()


def _walk(node: yaml.Node, path: Path, lines: dict[Path, int], problems: list[Problem]) -> None:
    lines.setdefault(path, node.start_mark.line + 1)
    if len(path) > MAX_DEPTH:
        what = f"nested more than {MAX_DEPTH} deep."
        raise SpecError((Problem(dotted(path[:3]), what, "Does an alias (*name) stand inside its own anchor (&name)?"),))
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            name = str(key.value)
            here = (*path, name)
            if name in seen:
                problems.append(Problem(dotted(here), "this key stands here twice.", "Keep one of them.", key.start_mark.line + 1))
            seen.add(name)
            lines[here] = key.start_mark.line + 1
            _walk(value, here, lines, problems)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            _walk(value, (*path, index), lines, problems)


def dotted(path: Path) -> str:
    """`("data", "sources", 0, "path")` → `data.sources[0].path`."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else (f".{part}" if text else str(part))
    return text
