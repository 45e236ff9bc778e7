"""What a step is said to compute is what its forward and backward pass compute."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from raybm.models.adapters import adapt
from raybm.models.flops import ATTENTION
from raybm.models.image_text import ImageTextProcessor
from raybm.models.images import ImageProcessor
from raybm.models.spec import ModelSpec
from raybm.plan.count import PIXEL, Tokens
from raybm.spec.train import TrainSpec
from raybm.tasks import CausalLm, Preference
from raybm.tasks.protocol import Task
from raybm.training.loader import Step
from raybm.training.profile import flops_per_token
from tests.contracts.test_tasks import CONFIG, MEMBERS
from tests.ranks import Ranks

LENGTH = 16
IDS, LABELS = [5] * LENGTH, [1] * LENGTH
TEXTS = {"input_ids": IDS, "positive_ids": IDS, "rejected_ids": IDS, "labels": LABELS, "rejected_labels": LABELS}
ROW = TEXTS | {"position_ids": list(range(LENGTH)), "starts": [0], "ends": [0], "image": list(PIXEL)}
PASS, BACK = (getattr(torch.ops.aten, f"_scaled_dot_product_flash_attention_for_cpu{name}") for name in ("", "_backward"))
NOT_AGAIN = ATTENTION | {BACK: lambda gradient, *inputs, **more: 2 * ATTENTION[PASS](*inputs)}  # the kernel computes the scores again
LLAMA = CONFIG["causal_lm"] | {"num_hidden_layers": 3, "hidden_size": 32, "intermediate_size": 64}


def said(task: Task, engine: Any, batch: Any) -> float:
    """FLOPs of a step of this one batch."""
    return flops_per_token(engine, task, Step((batch,), units=1, tokens=1, padded=1, samples=2), torch.device("cpu"))


def computed(task: Task, model: Any, batch: Any) -> int:
    with FlopCounterMode(display=False, custom_mapping=NOT_AGAIN) as counter:
        task.loss(model.eval(), batch).total.backward()
    return int(counter.get_total_flops())


def made(task: Task, config: Any, processor: Any = None, **changes: Any) -> tuple[Any, Any]:
    processor = processor or Tokens(300)
    model = task.model(None, {"vocab_size": 300, "target_mean": 0.0, "target_std": 1.0, **config}, ("a", "b"), processor)
    adapt(task.published(model), ModelSpec.parse({"ref": "file:m", **changes}))
    return model, task.collate([ROW] * 2, processor)


@pytest.mark.parametrize("member", MEMBERS, ids=lambda member: member.model_fields["kind"].default)
def test_flops_are_those_of_both_passes(member: Any) -> None:
    images = ImageProcessor(16, 16, (0.5,) * 3, (0.5,) * 3)
    processor = {"image": images, "image_text": ImageTextProcessor(Tokens(300), images)}.get(member.INPUT)
    task = member().build()
    model, batch = made(task, CONFIG[member.model_fields["kind"].default], processor)
    few = 0.005  # such as a pooler that the loss passes by
    assert said(task, model, batch) == pytest.approx(computed(task, model, batch), rel=few)


@pytest.mark.parametrize("spec", [CausalLm(), Preference()], ids=lambda spec: spec.kind)
@pytest.mark.parametrize(
    "changes",
    [
        {"lora": {"rank": 2}},
        {"freeze": ["model.embed_tokens.*", "model.layers.0.*"]},
        {"freeze": ["model.layers.2.mlp.*"]},
        {"freeze": ["model.*"]},
    ],
    ids=["adapters", "lower layers", "a layer in between", "all but the head"],
)
def test_frozen_weights_have_no_gradient_of_their_own(spec: Any, changes: Any) -> None:
    task = spec.build()
    model, batch = made(task, LLAMA, **changes)
    assert said(task, model, batch) == computed(task, model, batch)
    assert all(parameter.grad is not None for parameter in model.parameters() if parameter.requires_grad)


def test_what_freezing_saves() -> None:
    """Of a forward pass three times where all learns (PaLM, appendix B), about twice with adapters, and four times for a policy beside its
    reference, which has no backward pass."""
    task, pairs = CausalLm().build(), Preference().build()
    model, batch = made(task, LLAMA)
    with torch.no_grad(), FlopCounterMode(display=False, custom_mapping=ATTENTION) as counter:
        task.loss(model, batch)
    once = counter.get_total_flops()
    assert said(task, model, batch) == 3 * once
    assert 1.9 * once < said(task, *made(task, LLAMA, lora={"rank": 1})) < 2.3 * once
    assert said(pairs, *made(pairs, LLAMA)) == 2 * 4 * once, "of two answers"
    assert all(parameter.grad is None for parameter in model.parameters())


def in_engine(stage: int) -> float:
    from raybm.training import loop

    task = CausalLm().build()
    model, batch = made(task, LLAMA, lora={"rank": 2})
    return said(task, loop.initialize(model, TrainSpec.parse({"zero": {"stage": stage}})), batch)


@pytest.mark.integration
@pytest.mark.parametrize("stage", [0, 2, 3])
def test_no_stage_changes_them(ranks: Ranks, stage: int) -> None:
    """Not stage 3 either, in which weights that learn and frozen ones may be gathered into one storage."""
    task = CausalLm().build()
    assert ranks.run(in_engine, stage) == [computed(task, *made(task, LLAMA, lora={"rank": 2}))] * 2
