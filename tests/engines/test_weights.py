"""Weights stay in the file that they were read from, so that replicas on one node share its pages."""

from __future__ import annotations

from pathlib import Path

from raybm.engines.transformers.spec import Transformers
from tests.engines import tiny


def test_weights_are_mapped_from_their_file(tmp_path: Path) -> None:
    engine = Transformers().build(tiny.language_model(tmp_path))
    try:
        lines = [line.split() for line in Path("/proc/self/maps").read_text().splitlines() if str(tmp_path) in line]
        ranges = [tuple(int(end, 16) for end in line[0].split("-")) for line in lines]
        weights = [parameter.data_ptr() for parameter in engine.batch.model.parameters()]  # type: ignore[attr-defined]
        assert weights and all(any(low <= pointer < high for low, high in ranges) for pointer in weights)
    finally:
        engine.close()
