"""A policy and its reference on two real ranks: one learns, and is what is left."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raybm.core.artifact import Artifact
from raybm.core.storage import open_storage
from raybm.spec.train import TrainSpec
from tests.engines import tiny
from tests.ranks import Ranks

pytestmark = pytest.mark.integration
CONFIG = {"model_type": "llama", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
ROWS = [
    {"prompt": f"the {word}", "chosen": f"quick {word}", "rejected": f"{word} {word} lazy"} for word in ("fox", "dog", "over", "the") * 6
]


def trained(prepare: Artifact, out: str, stage: int) -> dict[str, Any]:
    import torch

    from raybm.core import cache
    from raybm.tasks import Preference
    from raybm.training import batches, loop

    cache.ROOT = f"{out}-cache"  # not the user's
    task = Preference(beta=0.5).build()
    torch.manual_seed(0)
    model = task.model(None, CONFIG, (), tiny.chat_tokenizer())
    published = task.published(model)
    before = {name: weight.clone() for name, weight in published.state_dict().items()}
    spec = TrainSpec.parse({"epochs": 4, "global_batch": 8, "micro_batch": 2, "lr": 5e-3, "zero": {"stage": stage}})
    splits = {split: batches.open_rows(prepare, split) for split in ("train", "validation")}
    engine = loop.initialize(model, spec)
    summary = loop.train(engine, task, tiny.chat_tokenizer(), splits, spec, 17, open_storage(out), lambda *_, **__: None)
    state, reference = loop.export(engine, published), loop.export(engine, model.reference)
    if state is None or reference is None:
        return {}
    return {
        "validation": summary["validation"],
        "names": set(state) == set(before),
        "learnt": any(not torch.equal(state[name], before[name]) for name in before),
        "kept": all(torch.equal(reference[name], before[name]) for name in before),
    }


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_the_policy_learns_and_the_reference_stays(ranks: Ranks, tmp_path: Path, stage: int) -> None:
    from raybm.tasks import Preference

    for split in ("train", "validation"):
        folder = tmp_path / "prepared" / "encoded" / split
        folder.mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist(Preference().build().encode(ROWS, tiny.chat_tokenizer(), (), 48)), folder / "0.parquet")
    prepare = Artifact(open_storage(str(tmp_path / "prepared")), "prepare", f"preference-{stage}-{tmp_path.name}")
    made = ranks.run(trained, prepare, str(tmp_path / "out"), stage)[0]
    assert made["names"] and made["learnt"] and made["kept"]
    assert made["validation"]["loss"] < 0.5 and made["validation"]["accuracy"] > 0.9
