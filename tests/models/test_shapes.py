from __future__ import annotations

from pathlib import Path

import pytest

from raybm.core.errors import NotFound
from raybm.core.storage import open_storage
from raybm.models.shapes import Shape, shape
from raybm.models.spec import ModelSpec
from tests.plan.jobs import LLAMA, job, write_model


def test_parameters_are_counted_from_the_headers_alone(tmp_path: Path) -> None:
    write_model(tmp_path / "model")
    found = shape(job(tmp_path).model, open_storage(str(tmp_path)))
    assert found == Shape(parameters=340, largest=340, small=340, width=8, layers=2, vocabulary=30)


def test_a_model_from_scratch_is_counted_without_memory(tmp_path: Path) -> None:
    tokenizer = {"train": "bpe", "vocab_size": 1_000_000_000}
    model = ModelSpec.parse({"ref": "scratch:llama", "config": LLAMA, "tokenizer": tokenizer})
    found = shape(model, open_storage(str(tmp_path)))
    layer, embedding = 4 * 64 * 64 + 3 * 64 * 128 + 2 * 64, 64_000_000_000
    assert found == Shape(embedding + 2 * layer + 64, embedding, 2 * layer + 64, width=64, layers=2, vocabulary=1_000_000_000)


def test_what_is_not_on_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert shape(ModelSpec(ref="hub:nobody/nothing"), open_storage(str(tmp_path))) is None
    with pytest.raises(NotFound):
        shape(ModelSpec(ref=f"file:{tmp_path / 'absent'}"), open_storage(str(tmp_path)))
