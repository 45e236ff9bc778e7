"""Spec: the frozen pydantic base of everything a user writes, and `load`, which reports all mistakes of a file at once.

A class states its cross-field rules in `CHECKS`. They do not run inside pydantic, which stops at the first bad field of a
model, but over whatever parts of the document are valid, so that one typo does not hide a contradiction elsewhere.
"""

from __future__ import annotations

import copy
import difflib
import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self, TypeVar, cast, get_args, get_origin

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from raybm.core import yamlfile
from raybm.core.errors import NotFound, Problem, SpecError

PYDANTICS = re.compile(
    r"^Value error, |^(Input|String|Tuple|List|Dictionary) (?=should)| after validation"
)  # words that a user need not read
INVALID = object()  # stands for a part of the document that did not validate


@dataclass(frozen=True)
class Check:
    """A rule over several keys. `test` takes the values at `paths` (relative to the class that states it; None where a
    section is absent) and returns what is wrong and the remedy, or None. Not run while one is invalid."""

    paths: tuple[str, ...]
    test: Callable[..., tuple[str, str] | None]
    where: str | None = None
    """What the mistake is said to be in: a path, "" for the section itself. Default: the first one."""


class Spec(BaseModel):
    """Immutable, refuses unknown keys. Sub-classes with a `kind` are members of a discriminated union."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, protected_namespaces=(), use_attribute_docstrings=True)
    CHECKS: ClassVar[tuple[Check, ...]] = ()

    def canonical(self) -> dict[str, Any]:
        """Plain JSON values, defaults included: what is stored and sent to workers."""
        return self.model_dump(mode="json")

    def decisive(self) -> dict[str, Any]:
        """Of these, what decides what comes out: what an artifact is known by."""
        return self.canonical()

    @classmethod
    def parse(cls, data: Any, source: str = "", lines: Mapping[yamlfile.Path, int] | None = None) -> Self:
        """Validate plain data with every check. Raises SpecError with all mistakes."""
        return parse(cls, data, source, lines or {})


S = TypeVar("S", bound=Spec)


def load(cls: type[S], path: str | Path, overrides: Iterable[str] = ()) -> S:
    """Read a YAML spec, apply `--set key.path=value` overrides, validate. Raises SpecError, NotFound."""
    try:
        text = Path(path).expanduser().read_text(encoding="utf-8")
    except OSError as error:
        raise NotFound(f"cannot be read: {error.strerror}.", where=str(path), remedy="Give the path of a YAML file.") from None
    except UnicodeDecodeError as error:
        raise SpecError((Problem("", f"is not UTF-8 (byte {error.start}).", "Save the file as UTF-8."),), str(path)) from None
    data, lines = yamlfile.parse(text, str(path))
    for override in overrides:
        data, changed = _set(data, override)
        lines = {key: line for key, line in lines.items() if key[: len(changed)] != changed} | {changed: 0}  # on no line of the file
    return parse(cls, data, str(path), lines)


def parse(cls: type[S], data: Any, source: str, lines: Mapping[yamlfile.Path, int]) -> S:
    if not isinstance(data, dict):
        raise SpecError((Problem("", f"holds {_show(data)}.", "A spec is a mapping of keys to values."),), source)
    problems: list[Problem] = []
    valid: S | None = None
    data = copy.deepcopy(data)
    for _ in range(8):  # a wrong `kind` is replaced by the one that was probably meant, so that its branch is looked at too
        try:
            valid = cls.model_validate(data)
            break
        except ValidationError as error:
            again = False
            items = error.errors(include_url=False)
            for item in items:
                path = _path(item["loc"], data)
                if item["type"] == "too_short" and _follows(item, items):
                    continue
                if item["type"] in ("union_tag_invalid", "union_tag_not_found"):
                    problem, guess = _wrong_kind(cls, path, _at(data, path))
                    problems.append(problem)
                    if guess and isinstance(node := _at(data, path), dict):
                        node["kind"], again = guess, True
                else:
                    problems.append(_problem(cls, path, item, data))
            if not again:
                break
    whole: Any = valid if valid is not None else _partial(cls, data)
    problems += _run_checks(whole, ())
    if problems or valid is None:
        raise SpecError(tuple(_tidy(problems, lines)), source)
    return valid


def _set(data: Any, override: str) -> tuple[Any, yamlfile.Path]:
    """The document with one `--set` applied, and the path that it changed."""
    path, equals, text = override.partition("=")
    parts: list[str | int] = [int(p) if p.isdigit() else p for p in path.replace("[", ".").replace("]", "").split(".")]
    if not equals or "" in parts:
        raise SpecError((Problem(path, "--set takes KEY.PATH=VALUE.", "For example --set train.lr=3e-5."),), f"--set {override}")
    data = node = copy.copy(data)
    for part, following in itertools.pairwise(parts):
        try:
            if isinstance(node, dict) and node.get(part) is None:
                node[part] = [] if isinstance(following, int) else {}
            node[part] = node = copy.copy(node[part])  # the file may name it in another place too (&anchor)
        except (KeyError, IndexError, TypeError):
            node = None
        if not isinstance(node, dict | list):
            raise SpecError(
                (Problem(path, f"there is no {part!r} that holds {following!r}.", "See docs/spec.md for the keys."),), f"--set {override}"
            )
    last = parts[-1]
    if isinstance(node, list) and isinstance(last, int) and last == len(node):
        node.append(None)
    if isinstance(node, list) and not (isinstance(last, int) and last < len(node)):
        raise SpecError((Problem(path, f"the list there has {len(node)} items.", "Count from 0."),), f"--set {override}")
    node[last] = yamlfile.parse_fragment(text, f"--set {override}")
    return data, tuple(parts)


# ---- from pydantic's errors to ours


def _path(loc: tuple[str | int, ...], data: Any) -> yamlfile.Path:
    """Pydantic's location without the union tags it puts in."""
    path: list[str | int] = []
    node = data
    for part in loc:
        if isinstance(node, dict):
            if part not in node and part == node.get("kind"):
                continue
            path.append(part)
            node = node.get(part, INVALID)
        elif isinstance(node, list) and isinstance(part, int) and part < len(node):
            path.append(part)
            node = node[part]
        else:
            break  # inside a scalar: the name of a union member
    return tuple(path)


def _follows(item: Any, items: Iterable[Any]) -> bool:
    """Whether a list is too short only because pydantic left out the items that have errors of their own."""
    loc = item["loc"]
    return any(len(other["loc"]) > len(loc) and other["loc"][: len(loc)] == loc and other["type"] != "missing" for other in items)


def _at(data: Any, path: yamlfile.Path) -> Any:
    for part in path:
        try:
            data = data[part]
        except (KeyError, IndexError, TypeError):
            return None
    return data


def _show(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _problem(cls: type[Spec], path: yamlfile.Path, item: Any, data: Any) -> Problem:
    where, value, kind = yamlfile.dotted(path), item["input"], item["type"]
    if kind == "extra_forbidden":
        known = sorted({name for branch in _branches(cls, path[:-1], data) for name in branch.model_fields})
        near = difflib.get_close_matches(str(path[-1]), known, n=1, cutoff=0.5)
        remedy = f"Did you mean {near[0]!r}?" if near else f"Known here: {', '.join(known)}."
        return Problem(where, "unknown key.", remedy)
    if kind == "missing":
        if isinstance(value, list | tuple):
            return Problem(where, f"{_show(value)}: item {int(item['loc'][-1]) + 1} is missing.")
        return Problem(where, "this key is required and missing.")
    message = PYDANTICS.sub("", item["msg"])
    quotes = kind == "string_type" and isinstance(value, int | float)
    return Problem(where, f"{_show(value)}: {message}.".replace("..", "."), f'Write it in quotes: "{value}".' if quotes else "")


def _wrong_kind(cls: type[Spec], path: yamlfile.Path, node: Any) -> tuple[Problem, str | None]:
    branches = {branch.model_fields["kind"].default: branch for branch in _branches(cls, path, INVALID)}
    where = yamlfile.dotted((*path, "kind"))
    if not isinstance(node, dict):
        return Problem(yamlfile.dotted(path), f"{_show(node)} is not a mapping.", f"Give `kind:` one of {', '.join(branches)}."), None
    given = node.get("kind")
    near = difflib.get_close_matches(str(given), branches, n=1, cutoff=0.5)
    if near:
        guess: str | None = near[0]
    else:  # the branch that knows most of the keys beside it
        overlap = {kind: len(node.keys() & branch.model_fields.keys()) for kind, branch in branches.items()}
        guess = max(overlap, key=lambda kind: overlap[kind]) if any(overlap.values()) else None
    what = "this key is required and missing." if given is None else f"{_show(given)} is no kind there is."
    remedy = f"Did you mean {near[0]!r}?" if near and given is not None else f"There are: {', '.join(branches)}."
    return Problem(where, what, remedy), guess


def _specs_in(annotation: Any) -> list[type[Spec]]:
    if isinstance(annotation, type) and issubclass(annotation, Spec):
        return [annotation]
    return [spec for arg in get_args(annotation) for spec in _specs_in(arg)]


def _branches(cls: type[Spec], path: yamlfile.Path, data: Any) -> list[type[Spec]]:
    """The spec classes that may stand at `path`; where the document says which (by `kind`), only that one."""
    found: list[type[Spec]] = [cls]
    named = True  # whether the next part is a field's name; else it is a key of a mapping
    for part in path:
        data = _at(data, (part,))
        if isinstance(part, str) and named:
            fields = [c.model_fields[part] for c in found if part in c.model_fields]
            found = [spec for field in fields for spec in _specs_in(field.annotation)]
            named = not any(get_origin(field.annotation) is dict for field in fields)
        else:
            named = True
        kind = data.get("kind") if isinstance(data, dict) else None
        found = [spec for spec in found if "kind" in spec.model_fields and spec.model_fields["kind"].default == kind] or found
    return found


def _tidy(problems: list[Problem], lines: Mapping[yamlfile.Path, int]) -> Iterator[Problem]:
    """One problem a path and message, with the line of the key or of its nearest parent, in the file's order."""
    merged: dict[str, Problem] = {}
    by_dotted = {yamlfile.dotted(path): line for path, line in lines.items()}
    for problem in problems:
        line, path = by_dotted.get(problem.path), problem.path
        while line is None and path:  # the key is not there: its nearest parent is
            path = path[: max(path.rfind("."), path.rfind("["), 0)]
            line = by_dotted.get(path)
        first = merged.get(problem.path)
        if first is None:
            merged[problem.path] = Problem(problem.path, problem.what, problem.remedy, line)
        elif problem.what not in first.what:
            merged[problem.path] = Problem(problem.path, f"{first.what} Or: {problem.what}", first.remedy or problem.remedy, line)
    return iter(sorted(merged.values(), key=lambda p: (p.line or 0, p.path)))


# ---- checks over the valid parts


class _Partial:
    """The valid fields of a spec that is not valid as a whole."""

    def __init__(self, cls: type[Spec], fields: dict[str, Any]) -> None:
        self.cls, self.fields = cls, fields


def _partial(cls: type[Spec], data: Mapping[str, Any]) -> _Partial:
    return _Partial(cls, {name: _field(field, data, name) for name, field in cls.model_fields.items()})


def _field(field: FieldInfo, data: Mapping[str, Any], name: str) -> Any:
    if name not in data:
        return INVALID if field.is_required() else field.get_default(call_default_factory=True)
    value, annotation = data[name], cast(Any, Annotated[field.annotation, field])
    try:
        return TypeAdapter(annotation).validate_python(value)
    except ValidationError:
        return INVALID if get_origin(field.annotation) is dict else _broken(_specs_in(field.annotation), value)


def _broken(specs: list[type[Spec]], value: Any) -> Any:
    if isinstance(value, list) and specs:
        return [_broken(specs, item) for item in value]
    if isinstance(value, dict):
        for spec in specs:
            if "kind" not in spec.model_fields or spec.model_fields["kind"].default == value.get("kind"):
                return _partial(spec, value)
    return INVALID


def _fields(node: Any) -> tuple[type[Spec], Mapping[str, Any]] | None:
    if isinstance(node, _Partial):
        return node.cls, node.fields
    if isinstance(node, Spec):
        return type(node), {name: getattr(node, name) for name in type(node).model_fields}
    return None


def _get(node: Any, path: str) -> Any:
    for part in path.split("."):
        if node is None or node is INVALID:
            return node
        found = _fields(node)
        node = found[1].get(part) if found else None
    return INVALID if isinstance(node, _Partial) or (isinstance(node, list) and any(isinstance(i, _Partial) for i in node)) else node


def _run_checks(node: Any, path: yamlfile.Path) -> list[Problem]:
    if isinstance(node, list | tuple):
        return [problem for index, item in enumerate(node) for problem in _run_checks(item, (*path, index))]
    if isinstance(node, dict):
        return [problem for name, item in node.items() for problem in _run_checks(item, (*path, name))]
    found = _fields(node)
    if found is None:
        return []
    cls, fields = found
    problems = []
    for check in cls.CHECKS:
        values = [_get(node, name) for name in check.paths]
        if not any(value is INVALID for value in values) and (wrong := check.test(*values)):
            where = check.paths[0] if check.where is None else check.where
            problems.append(Problem(yamlfile.dotted((*path, *filter(None, where.split(".")))), *wrong))
    for name, value in fields.items():
        problems += _run_checks(value, (*path, name))
    return problems
