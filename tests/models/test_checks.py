from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from raybm.core.errors import UserError
from raybm.models.checks import check
from raybm.models.spec import ModelSpec
from tests.engines import tiny

CHAR = {"train": "char"}


@pytest.mark.parametrize(
    ("ref", "config", "where", "said"),
    [
        ("scratch:bertt", {}, "model.ref", "Did you mean scratch:bert?"),
        ("scratch:bert", {"hidden_sise": 8}, "model.config.hidden_sise", "Did you mean 'hidden_size'?"),
        ("scratch:bert", {"hidden_size": 16, "num_attention_heads": 3}, "model.config", "heads"),
        ("scratch:bert", {"max_position_embeddings": 8}, "model.max_length", "8 tokens"),
        ("scratch:roberta", {"max_position_embeddings": 17}, "model.max_length", "15 tokens"),  # the first two places are of no token
        ("scratch:clip", {"text_config": {"max_position_embeddings": 8}}, "model.max_length", "8 tokens"),
        ("scratch:raybm_rnn", {"cel": "lstm"}, "model.config.cel", "Did you mean 'cell'?"),
    ],
)
def test_a_new_model_that_cannot_be(ref: str, config: dict[str, Any], where: str, said: str) -> None:
    with pytest.raises(UserError) as raised:
        check(ModelSpec.parse({"ref": ref, "max_length": 16, "config": config, "tokenizer": CHAR}), None)
    assert raised.value.where.startswith(where)
    assert said in str(raised.value)


def test_a_new_model_that_can_be() -> None:
    check(
        ModelSpec.parse(
            {"ref": "scratch:llama", "max_length": 16, "config": {"hidden_size": 16, "num_attention_heads": 2}, "tokenizer": CHAR}
        ),
        None,
    )


def test_rows_longer_than_a_models_positions(tmp_path: Path) -> None:
    folder = tiny.classifier(tmp_path)
    check(ModelSpec.parse({"ref": f"file:{folder}", "max_length": 16}), folder)
    with pytest.raises(UserError, match="more than"):
        check(ModelSpec.parse({"ref": f"file:{folder}", "max_length": 5000}), folder)
