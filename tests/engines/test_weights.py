"""Weights stay in the file that they were read from, so that replicas on one node share its pages."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM

from raybm.core import cache
from raybm.engines.transformers.spec import Transformers
from raybm.engines.transformers.weights import in_fp32
from tests.engines import tiny


def mapped(spec: Transformers, model: Path, folder: Path) -> bool:
    """Whether all weights of the engine lie in files of the folder."""
    engine = spec.build(model)
    try:
        lines = [line.split() for line in Path("/proc/self/maps").read_text().splitlines() if str(folder) in line]
        ranges = [tuple(int(end, 16) for end in line[0].split("-")) for line in lines]
        weights = [parameter.data_ptr() for parameter in engine.batch.model.parameters()]  # type: ignore[attr-defined]
        return bool(weights) and all(any(low <= pointer < high for low, high in ranges) for pointer in weights)
    finally:
        engine.close()


def test_weights_are_mapped_from_their_file(tmp_path: Path) -> None:
    assert mapped(Transformers(), tiny.language_model(tmp_path), tmp_path)


def test_weights_in_half_precision_are_mapped_from_a_copy_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "ROOT", str(tmp_path / "cache"))
    folder = tiny.language_model(tmp_path / "model")
    LlamaForCausalLM.from_pretrained(folder).to(torch.bfloat16).save_pretrained(folder)
    assert mapped(Transformers(precision="fp32"), folder, tmp_path / "cache")
    assert mapped(Transformers(), folder, folder)
    whole = LlamaForCausalLM.from_pretrained(in_fp32(folder), dtype=torch.float32).state_dict()
    for name, weight in LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).state_dict().items():
        assert whole[name].equal(weight), name


def test_weights_are_converted_only_where_it_helps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "ROOT", str(tmp_path / "cache"))
    folder = tiny.language_model(tmp_path / "model")
    assert in_fp32(folder) == folder
    LlamaForCausalLM.from_pretrained(folder).to(torch.bfloat16).save_pretrained(folder)
    assert in_fp32(folder) != folder
    monkeypatch.setattr(cache, "ROOT", str(folder / "config.json"))  # no folder can be made there
    assert in_fp32(folder) == folder
    monkeypatch.setattr(cache, "ROOT", str(tmp_path / "cache"))
    config = folder / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"quantization_config": {"quant_method": "gptq"}}))
    assert in_fp32(folder) == folder
