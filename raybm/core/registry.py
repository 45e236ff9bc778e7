"""Models that were published: immutable numbered versions, and aliases (`prod`) that point to one of them.

```
registry/<name>/claims/<n>.json                who took number n; created once, so two publishers never share a number
registry/<name>/versions/<n>/...               the files
registry/<name>/versions/<n>/version.json      written last: without it there is no such version
registry/<name>/aliases/<alias>.json           moved by compare-and-swap; keeps every move
```
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import json
import re
import tempfile
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import JsonValue

from raybm.core.cache import cache_folder
from raybm.core.errors import Conflict, NotFound, StorageError, UserError
from raybm.core.spec import Spec
from raybm.core.storage import COPY_THREADS, Storage, appearing, files_under, local_errors

VERSION_FILE = "version.json"
CLAIM_ATTEMPTS = 100
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
ALIAS = re.compile(r"[a-z][a-z0-9_-]*")


class FileDigest(Spec):
    sha256: str
    size: int
    """Bytes."""


class Version(Spec):
    """What version.json holds."""

    name: str
    number: int
    created: str
    """UTC, ISO 8601."""
    files: dict[str, FileDigest]
    facts: dict[str, JsonValue]
    """What the publisher knew: the evaluation, and the lineage (data digests, spec, artifacts, code revision, package versions, parent)."""


class Move(Spec):
    """One change of an alias."""

    action: Literal["promote", "rollback"]
    version: int
    """Where it points from then on."""
    at: str
    """UTC, ISO 8601."""


class AliasState(Spec):
    alias: str
    version: int
    history: tuple[Move, ...]

    def before(self) -> int | None:
        """The version that the last promotion not yet rolled back has replaced."""
        stack: list[int] = []
        for move in self.history:
            if move.action == "promote":
                stack.append(move.version)
            else:
                stack.pop()
        return stack[-2] if len(stack) > 1 else None


class Model(Spec):
    """One line of `raybm models list`."""

    name: str
    versions: tuple[int, ...]
    aliases: dict[str, int]


class Registry:
    """The registry of a storage. Methods raise NotFound, Conflict, StorageError, and UserError for impossible names."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage.at("registry")

    def versions(self, name: str) -> list[int]:
        """Numbers of the complete versions, ascending."""
        folder = f"{_checked(name)}/versions"
        numbers = sorted(int(number) for number in self._storage.folders(folder) if number.isdigit())
        return [number for number in numbers if self._storage.exists(f"{folder}/{number}/{VERSION_FILE}")]

    def models(self) -> tuple[Model, ...]:
        """Every model that has a version, with its aliases."""
        models = (
            Model(
                name=name,
                versions=tuple(self.versions(name)),
                aliases={alias: state.version for alias, state in self.aliases(name).items()},
            )
            for name in self._storage.folders()
            if NAME.fullmatch(name)  # else nothing of ours
        )
        return tuple(model for model in models if model.versions)

    def get(self, name: str, version: int | str) -> Version:
        """By number (3 or "3") or alias."""
        number = self._number(_checked(name), version)
        try:
            data = self._storage.read(f"{name}/versions/{number}/{VERSION_FILE}")
        except NotFound:
            raise NotFound("there is no such version.", where=f"{name}@{number}", remedy=self._known(name)) from None
        return _parsed(Version, data, f"{self.uri(name, number)}/{VERSION_FILE}")

    def uri(self, name: str, number: int) -> str:
        return self._storage.at(f"{name}/versions/{number}").uri

    def publish(self, name: str, folder: Path, facts: dict[str, JsonValue]) -> Version:
        """Uploads all files of `folder` as the next version. Interrupted, it leaves a number that is never listed."""
        names = files_under(folder)
        if not names or VERSION_FILE in names:
            raise UserError(f"should hold the files of a model and no {VERSION_FILE}.", where=str(folder))
        files = _digests(folder, names)
        number = self._claim(_checked(name))
        storage = self._storage.at(f"{name}/versions/{number}")
        storage.upload(folder)
        version = Version(name=name, number=number, created=_now(), files=files, facts=facts)
        storage.create(VERSION_FILE, _json(version))
        return version

    def alias(self, name: str, alias: str) -> AliasState | None:
        found = self._alias(_checked(name), alias)
        return found[0] if found else None

    def aliases(self, name: str) -> dict[str, AliasState]:
        folder = f"{_checked(name)}/aliases/"
        names = {key: key.removeprefix(folder).removesuffix(".json") for key in self._storage.keys(folder[:-1]) if key.endswith(".json")}
        states = {alias: self._storage.read(key) for key, alias in names.items() if ALIAS.fullmatch(alias)}
        return {alias: _parsed(AliasState, data, f"{name}@{alias}") for alias, data in states.items()}

    def promote(self, name: str, alias: str, version: int, expect: int | None) -> AliasState:
        """Points the alias to a version, if it still points to `expect` (None: does not exist). Raises Conflict otherwise."""
        self.get(name, version)
        found = self._alias(name, alias)
        current = found[0].version if found else None
        if current != expect:
            here, there = (f"version {number}" if number else "nothing" for number in (current, expect))
            raise Conflict(f"points to {here}, not to {there}.", where=f"{name}@{alias}", remedy="Look again, then decide.")
        if found and current == version:
            return found[0]
        return self._move(name, alias, found, Move(action="promote", version=version, at=_now()))

    def rollback(self, name: str, alias: str) -> AliasState:
        """Points the alias to the version before the last promotion; again, to the one before that."""
        found = self._alias(_checked(name), alias)
        if not found:
            raise NotFound("there is no such alias.", where=f"{name}@{alias}", remedy=self._known(name))
        previous = found[0].before()
        if previous is None:
            raise NotFound(
                f"has been at {found[0].version} from the beginning.", where=f"{name}@{alias}", remedy="Promote another version."
            )
        self.get(name, previous)
        return self._move(name, alias, found, Move(action="rollback", version=previous, at=_now()))

    def verify(self, name: str, version: int | str) -> list[str]:
        """What differs from version.json, every byte read again; empty where all is well."""
        record = self.get(name, version)
        storage = self._storage.at(f"{name}/versions/{record.number}")
        if folder := storage.local():
            return _differences(record, folder)
        cache = cache_folder("registry")
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache, prefix="verify-") as temp:
            storage.download("", Path(temp))
            return _differences(record, Path(temp))

    def folder(self, version: Version) -> Path:
        """A local folder with the version's files: the registry's own, or downloaded once, every digest checked."""
        storage = self._storage.at(f"{version.name}/versions/{version.number}")
        if folder := storage.local():
            self._must_be_whole(version, _differences(version, folder, read=False))
            return folder
        target = cache_folder("registry") / hashlib.sha256(storage.uri.encode()).hexdigest()[:16] / version.name / str(version.number)
        if not target.exists():
            with local_errors(str(target)), appearing(target) as temp:
                storage.download("", temp)
                self._must_be_whole(version, _differences(version, temp))
        return target

    def _must_be_whole(self, version: Version, problems: list[str]) -> None:
        if problems:
            remedy = "Roll the alias back, or publish again; versions are never repaired."
            raise StorageError(f"is damaged: {'; '.join(problems)}.", where=self.uri(version.name, version.number), remedy=remedy)

    def _claim(self, name: str) -> int:
        stems = [key.rpartition("/")[2].removesuffix(".json") for key in self._storage.keys(f"{name}/claims")]
        number = max((int(stem) for stem in stems if stem.isdigit()), default=0)
        for _ in range(CLAIM_ATTEMPTS):
            number += 1
            with contextlib.suppress(Conflict):
                self._storage.create(f"{name}/claims/{number}.json", json.dumps({"at": _now(), "claim": uuid.uuid4().hex}).encode())
                return number
        raise Conflict(f"others took {CLAIM_ATTEMPTS} numbers in the meantime.", where=f"{self._storage.uri}/{name}", remedy="Try again.")

    def _alias(self, name: str, alias: str) -> tuple[AliasState, str] | None:
        """The state and its tag for compare-and-swap."""
        key = _alias_key(name, alias)
        try:
            data, tag = self._storage.read_tagged(key)
        except NotFound:
            return None
        return _parsed(AliasState, data, f"{name}@{alias}"), tag

    def _move(self, name: str, alias: str, found: tuple[AliasState, str] | None, move: Move) -> AliasState:
        history = found[0].history if found else ()
        state = AliasState(alias=alias, version=move.version, history=(*history, move))
        key = _alias_key(name, alias)
        try:
            if found:
                self._storage.replace(key, _json(state), found[1])
            else:
                self._storage.create(key, _json(state))
        except Conflict:
            raise Conflict("somebody else moved it meanwhile.", where=f"{name}@{alias}", remedy="Look again, then decide.") from None
        return state

    def _number(self, name: str, version: int | str) -> int:
        if isinstance(version, int) or version.isdecimal():
            return int(version)
        found = self._alias(name, version)
        if not found:
            raise NotFound("there is no such alias.", where=f"{name}@{version}", remedy=self._known(name))
        return found[0].version

    def _known(self, name: str) -> str:
        numbers = self.versions(name)
        if not numbers:
            return f"There is no model {name!r} in {self._storage.uri}."
        aliases = [f"{alias} ({state.version})" for alias, state in self.aliases(name).items()]
        return f"It has versions {', '.join(map(str, numbers))}" + (f"; aliases {', '.join(aliases)}." if aliases else "; no alias.")


def _checked(name: str) -> str:
    if not NAME.fullmatch(name):
        raise UserError(f"{name!r} is no model name.", remedy="Use letters, digits, '.', '_' and '-'.")
    return name


def _alias_key(name: str, alias: str) -> str:
    if not ALIAS.fullmatch(alias):
        raise UserError(f"{alias!r} is no alias.", where=name, remedy="Use lower-case letters, digits, '_' and '-', with a letter first.")
    return f"{_checked(name)}/aliases/{alias}.json"


def _differences(version: Version, folder: Path, read: bool = True) -> list[str]:
    """Missing, extra and changed files. Without `read`, only sizes are compared."""
    present = set(files_under(folder)) - {VERSION_FILE}
    problems = [f"{name} is missing" for name in sorted(version.files.keys() - present)]
    problems += [f"{name} does not belong to it" for name in sorted(present - version.files.keys())]
    common = sorted(version.files.keys() & present)
    digests = _digests(folder, common) if read else {}
    for name in common:
        expected, size = version.files[name], (folder / name).stat().st_size
        if size != expected.size:
            problems.append(f"{name} has {size} bytes, not {expected.size}")
        elif read and digests[name] != expected:
            problems.append(f"{name} has another sha256")
    return problems


def _digests(folder: Path, names: list[str]) -> dict[str, FileDigest]:
    def digest(name: str) -> FileDigest:
        with (folder / name).open("rb") as file:
            return FileDigest(sha256=hashlib.file_digest(file, "sha256").hexdigest(), size=file.tell())

    with ThreadPoolExecutor(COPY_THREADS) as pool:  # hashing leaves the interpreter's lock
        return dict(zip(names, pool.map(digest, names), strict=True))


S = TypeVar("S", bound=Spec)


def _parsed(cls: type[S], data: bytes, where: str) -> S:
    try:
        return cls.parse(json.loads(data), where)
    except ValueError as error:
        raise StorageError(f"is not what raybm wrote: {error}.", where=where, remedy="Restore it from a backup.") from None


def _json(spec: Spec) -> bytes:
    return (json.dumps(spec.canonical(), indent=2, ensure_ascii=False) + "\n").encode()


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
