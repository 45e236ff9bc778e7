"""Weights that are a single number, such as CLIP's temperature."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raybm.core.artifact import Artifact
from raybm.core.storage import open_storage
from raybm.models.image_text import ImageTextProcessor
from raybm.models.images import ImageProcessor
from raybm.spec.train import TrainSpec
from tests.engines import tiny
from tests.pictures import url
from tests.ranks import Ranks

pytestmark = pytest.mark.integration
PROCESSOR = ImageTextProcessor(tiny.chat_tokenizer(), ImageProcessor(16, 16, (0.5,) * 3, (0.5,) * 3))


def trained(prepare: Artifact, out: str, stage: int) -> dict[str, Any]:
    import torch

    from raybm.core import cache
    from raybm.tasks import ImageText
    from raybm.training import batches, loop

    cache.ROOT = f"{out}-cache"
    task = ImageText().build()
    torch.manual_seed(0)
    model: Any = task.model(None, tiny.CLIP, (), PROCESSOR)
    before = float(model.logit_scale)
    spec = TrainSpec.parse({"epochs": 4, "global_batch": 8, "lr": 5e-3, "zero": {"stage": stage}})
    splits = {split: batches.open_rows(prepare, split) for split in ("train", "validation")}
    with loop.engine_of(model, spec) as engine:
        loop.train(engine, task, PROCESSOR, splits, spec, 17, open_storage(out), lambda *_, **__: None)
        state = loop.export(engine)
    return {} if state is None else {"shape": state["logit_scale"].shape, "moved": float(state["logit_scale"]) != before}


@pytest.mark.parametrize("stage", [0, 2])
def test_learn_and_keep_their_shape(ranks: Ranks, tmp_path: Path, stage: int) -> None:
    from raybm.tasks import ImageText

    rows = [{"image": url(i), "text": f"the {word}"} for i, word in enumerate(("fox", "dog", "over", "lazy") * 4)]
    for split in ("train", "validation"):
        folder = tmp_path / "prepared" / "encoded" / split
        folder.mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist(ImageText().build().encode(rows, PROCESSOR, (), 8)), folder / "0.parquet")
    prepare = Artifact(open_storage(str(tmp_path / "prepared")), "prepare", f"clip-{stage}-{tmp_path.name}")
    assert ranks.run(trained, prepare, str(tmp_path / "out"), stage)[0] == {"shape": (), "moved": True}
