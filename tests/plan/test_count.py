from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from raybm.models.image_text import ImageTextProcessor
from raybm.models.images import ImageProcessor
from raybm.models.spec import ModelSpec
from raybm.plan import cost
from raybm.plan.count import Counted, Saved, Tokens, count
from raybm.plan.job import idle
from raybm.plan.memory import Setup, memory
from raybm.tasks.causal_lm.spec import CausalLm
from raybm.tasks.preference.spec import Preference
from raybm.tasks.text_classification.spec import TextClassification
from tests.contracts.test_tasks import CONFIG as CONFIGS
from tests.contracts.test_tasks import MEMBERS
from tests.plan.jobs import LLAMA, language_model

CONFIG = {"model_type": "llama", "vocab_size": 1000, **LLAMA}


def counted(length: int = 32, precision: str = "fp32", checkpointing: bool = False, **changes: Any) -> Counted:
    made = count(CausalLm().build(), ModelSpec(ref="file:m", max_length=length, **changes), CONFIG, precision, checkpointing)
    assert made is not None
    return made


def test_flops_are_those_of_the_formula() -> None:
    """6N + 12·L·H·Q·T for a decoder whose head is tied to its embedding, norms apart."""
    made = counted(64)
    assert made.flops / 64 == pytest.approx(6 * made.shape.parameters + 12 * 2 * 64 * 64, rel=0.02)


@pytest.mark.parametrize("adapters", [{}, {"lora": {"rank": 4}}], ids=["whole", "adapters"])
def test_flops_of_a_preference_are_those_of_the_formula(tmp_path: Path, adapters: dict[str, Any]) -> None:
    """Two answers, each by a policy and its reference."""
    pairs = {"kind": "jsonl", "path": "a", "columns": {"prompt": "p", "chosen": "c", "rejected": "r"}}
    spec = language_model(tmp_path, task={"kind": "preference"}, data={"sources": [pairs]}, model={"ref": "file:m", **adapters})
    made = count(Preference().build(), ModelSpec(ref="file:m", max_length=64, **adapters), CONFIG, "fp32")
    assert made is not None and idle(spec, made.shape) == counted().shape.parameters
    formula = cost.flops_per_token(made.shape, 64, idle=idle(spec, made.shape))
    assert made.flops / 64 / 2 == pytest.approx(formula, rel=0.05)


def test_what_is_counted_is_what_a_real_step_keeps() -> None:
    task, length = CausalLm().build(), 32
    config = CONFIG | {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    model = task.model(None, config, (), type("Processor", (), {"__len__": lambda self: 1000, **config})())
    kept = []
    for rows in (2, 3):
        batch = task.collate(
            [{"input_ids": [5] * length, "labels": [5] * length, "position_ids": list(range(length))}] * rows, model.config
        )
        with Saved(model) as saved:
            task.loss(model.train(), batch)
        kept.append(saved.bytes)
    assert counted(length).saved == pytest.approx(kept[1] - kept[0], rel=0.1)


def test_less_is_kept_in_16_bit_and_with_checkpointing() -> None:
    whole, half, again = counted(), counted(precision="bf16"), counted(checkpointing=True)
    assert half.activations < whole.activations and again.saved < whole.saved / 2
    assert again.flops > whole.flops * 1.1


def test_adapters_leave_the_rest_frozen() -> None:
    made = counted(lora={"rank": 4})
    assert 0 < made.shape.trainable < made.shape.parameters / 10
    assert made.flops < 0.8 * counted().flops


def test_quantised_weights_are_those_below_the_head() -> None:
    few = counted(lora={"rank": 4, "quantize": "nf4"}).shape
    layers = 2 * (4 * 64 * 64 + 3 * 64 * 128)  # of LLAMA: four projections of its attention, three of its feed-forward part
    assert few.quantized == layers and few.parameters == counted(lora={"rank": 4}).shape.parameters
    plain, packed = (memory(few, Setup(ranks=1, stage=0, few=each)).weights for each in (4.0, 0.5))
    assert plain == 4 * few.parameters and packed == 4 * (few.parameters - layers) + layers // 2


def test_layers_that_a_task_wraps_are_computed_again() -> None:
    config = CONFIGS["preference"] | {"vocab_size": 300, "num_hidden_layers": 4}
    plain, again = (count(Preference().build(), ModelSpec(ref="file:m", max_length=64), config, "fp32", how) for how in (False, True))
    assert plain is not None and again is not None and again.saved < plain.saved


def test_a_large_model_takes_no_memory() -> None:
    config = CONFIG | {
        "hidden_size": 8192,
        "intermediate_size": 28672,
        "num_attention_heads": 64,
        "num_hidden_layers": 2,
        "num_key_value_heads": 8,
    }
    made = count(CausalLm().build(), ModelSpec(ref="file:m", max_length=4096), config, "bf16")
    assert made is not None and made.shape.parameters > 1.7e9


def test_an_encoder_is_counted_with_its_head() -> None:
    config = {
        "model_type": "bert",
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "vocab_size": 100,
    }
    made = count(TextClassification().build(), ModelSpec(ref="file:m", max_length=16), config, "fp32")
    assert made is not None and made.saved > 16 * 32 * 4 * 10


def test_what_cannot_be_counted_is_left_to_the_formulas() -> None:
    class Asks:
        def model(self, *_: Any) -> torch.nn.Module:
            raise RuntimeError("Tensor.item() cannot be called on meta tensors")

    assert count(Asks(), ModelSpec(ref="file:m"), CONFIG, "fp32") is None  # type: ignore[arg-type]


@pytest.mark.parametrize("member", MEMBERS, ids=lambda member: member.model_fields["kind"].default)
def test_every_task_is_counted(member: Any) -> None:
    """A new one too: where its rows have columns of their own, raybm/plan/count.py makes them up."""
    kind = member.model_fields["kind"].default
    images = ImageProcessor(16, 16, (0.5,) * 3, (0.5,) * 3)
    processor = {"image": images, "image_text": ImageTextProcessor(Tokens(300), images)}.get(member.INPUT)
    config = {"vocab_size": 300, "target_mean": 0.0, "target_std": 1.0, **CONFIGS[kind]}
    made = count(member().build(), ModelSpec(ref="file:m", max_length=16), config, "fp32", processor=processor)
    assert made is not None and made.activations >= made.saved * 0.9 > 0 and made.flops > 0 and made.shape.trainable > 0
