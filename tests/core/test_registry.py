from __future__ import annotations

import json
import threading
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from raybm.core.errors import Conflict, NotFound, StorageError, UserError
from raybm.core.registry import AliasState, Registry
from raybm.core.storage import Storage, open_storage


@pytest.fixture(params=["folder", pytest.param("s3", marks=pytest.mark.integration)])
def storage(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Storage:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return open_storage(str(tmp_path / "storage") if request.param == "folder" else f"{request.getfixturevalue('s3')}/{uuid.uuid4().hex}")


@pytest.fixture
def registry(storage: Storage) -> Registry:
    return Registry(storage)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "model" / "tokenizer").mkdir(parents=True)
    (tmp_path / "model" / "model.safetensors").write_bytes(b"weights")
    (tmp_path / "model" / "tokenizer" / "vocab.txt").write_text("a\nb\n")
    return tmp_path / "model"


def test_versions_are_numbered_found_and_loaded(registry: Registry, model: Path) -> None:
    assert registry.models() == () and registry.versions("m") == []
    first = registry.publish("m", model, {"job": "j", "spec": {"seed": 1}})
    (model / "model.safetensors").write_bytes(b"better")
    second = registry.publish("m", model, {})
    registry.promote("m", "prod", 1, expect=None)

    assert (first.number, second.number) == (1, 2) and registry.versions("m") == [1, 2]
    assert registry.get("m", "prod") == registry.get("m", "1") == registry.get("m", 1) == first
    assert first.facts["spec"] == {"seed": 1} and set(first.files) == {"model.safetensors", "tokenizer/vocab.txt"}
    assert (registry.folder(first) / "model.safetensors").read_bytes() == b"weights"
    assert (registry.folder(second) / "model.safetensors").read_bytes() == b"better"
    assert registry.folder(first) == registry.folder(first)
    (line,) = registry.models()
    assert (line.name, line.versions, line.aliases) == ("m", (1, 2), {"prod": 1})
    with pytest.raises(NotFound, match=r"m@9.*versions 1, 2; aliases prod \(1\)"):
        registry.get("m", 9)
    with pytest.raises(NotFound, match=r"m@stage.*versions 1, 2"):
        registry.get("m", "stage")
    with pytest.raises(NotFound, match="There is no model 'x'"):
        registry.get("x", 1)
    for call in (lambda: registry.versions("../m"), lambda: registry.alias("m", "../../x"), lambda: registry.get("m", "../1")):
        with pytest.raises(UserError):
            call()


def test_a_crashed_publish_leaves_nothing_that_is_listed(registry: Registry, storage: Storage, model: Path) -> None:
    storage.create("registry/m/claims/1.json", b"{}")
    storage.upload(model, "registry/m/versions/1")  # and then its process died
    assert registry.models() == () and registry.versions("m") == []
    with pytest.raises(NotFound):
        registry.promote("m", "prod", 1, expect=None)
    assert registry.publish("m", model, {}).number == 2
    assert registry.versions("m") == [2]


def test_what_others_leave_in_the_registry_is_passed_over(registry: Registry, storage: Storage, model: Path) -> None:
    registry.publish("m", model, {})
    registry.promote("m", "prod", 1, expect=None)
    storage.write("registry/.ipynb_checkpoints/x", b"")
    for name in (".DS_Store", "prod.json~", "Prod copy.json", ".ipynb_checkpoints/prod-checkpoint.json"):
        storage.write(f"registry/m/aliases/{name}", b"none of ours")
    assert [(line.name, line.aliases) for line in registry.models()] == [("m", {"prod": 1})]
    assert list(registry.aliases("m")) == ["prod"]


def test_verify_names_every_damage(registry: Registry, storage: Storage, model: Path) -> None:
    version = registry.publish("m", model, {})
    assert registry.verify("m", 1) == []
    storage.write("registry/m/versions/1/model.safetensors", b"WEIGHTS")
    storage.delete("registry/m/versions/1/tokenizer")
    storage.write("registry/m/versions/1/extra.py", b"")
    assert registry.verify("m", "1") == [
        "tokenizer/vocab.txt is missing",
        "extra.py does not belong to it",
        "model.safetensors has another sha256",
    ]
    with pytest.raises(StorageError, match=r"damaged: tokenizer/vocab\.txt is missing"):
        registry.folder(version)
    storage.write("registry/m/versions/1/version.json", b"{")
    with pytest.raises(StorageError, match="not what raybm wrote"):
        registry.get("m", 1)


def test_aliases_move_and_roll_back(registry: Registry, model: Path) -> None:
    for _ in range(3):
        registry.publish("m", model, {})
    assert registry.alias("m", "prod") is None
    registry.promote("m", "prod", 1, expect=None)
    registry.promote("m", "prod", 2, expect=1)
    with pytest.raises(Conflict, match="points to version 2, not to version 1"):
        registry.promote("m", "prod", 3, expect=1)
    with pytest.raises(Conflict, match="points to version 2, not to nothing"):
        registry.promote("m", "prod", 3, expect=None)
    registry.promote("m", "prod", 2, expect=2)
    registry.promote("m", "prod", 3, expect=2)

    assert registry.rollback("m", "prod").version == 2
    assert registry.rollback("m", "prod").version == 1
    with pytest.raises(NotFound, match="from the beginning"):
        registry.rollback("m", "prod")
    registry.promote("m", "prod", 3, expect=1)
    state = registry.aliases("m")["prod"]
    assert [(move.action, move.version) for move in state.history] == [
        ("promote", 1), ("promote", 2), ("promote", 3), ("rollback", 2), ("rollback", 1), ("promote", 3),
    ]  # fmt: skip
    assert registry.rollback("m", "prod").version == 1
    with pytest.raises(NotFound, match="no such alias"):
        registry.rollback("m", "stage")


def _at_once(count: int, act: Callable[[int], object]) -> list[object]:
    start = threading.Barrier(count)

    def one(number: int) -> object:
        start.wait(30)
        try:
            return act(number)
        except Conflict as error:
            return error

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(one, range(count)))


def test_publishers_at_once_get_their_own_numbers(registry: Registry, model: Path) -> None:
    versions = _at_once(4, lambda number: registry.publish("m", model, {"publisher": number}))
    assert sorted(version.number for version in versions) == [1, 2, 3, 4]  # type: ignore[attr-defined]
    for publisher, version in enumerate(versions):
        assert registry.get("m", version.number).facts == {"publisher": publisher}  # type: ignore[attr-defined]


@pytest.mark.parametrize("expect", [None, 1])
def test_of_promotions_at_once_one_wins(registry: Registry, model: Path, expect: int | None) -> None:
    for _ in range(5):
        registry.publish("m", model, {})
    if expect:
        registry.promote("m", "prod", expect, expect=None)
    results = _at_once(4, lambda number: registry.promote("m", "prod", number + 2, expect=expect))
    (winner,) = [result for result in results if isinstance(result, AliasState)]
    assert [type(result) for result in results].count(Conflict) == 3
    assert registry.alias("m", "prod") == winner


@pytest.mark.integration
def test_a_download_that_is_damaged_never_enters_the_cache(s3: str, tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    storage = open_storage(f"{s3}/{uuid.uuid4().hex}")
    version = Registry(storage).publish("m", model, {})
    storage.write("registry/m/versions/1/model.safetensors", b"WEIGHTS")
    with pytest.raises(StorageError, match="another sha256"):
        Registry(storage).folder(version)
    storage.write("registry/m/versions/1/model.safetensors", b"weights")
    assert json.loads((Registry(storage).folder(version) / "version.json").read_text())["number"] == 1
