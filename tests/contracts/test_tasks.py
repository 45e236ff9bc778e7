"""Every member of the task family keeps the protocol. A new task is tested here unasked: it only needs rows."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from raybm.models.image_text import ImageTextProcessor
from raybm.models.images import ImageProcessor
from raybm.tasks import TaskSpec
from raybm.tasks.protocol import Task
from tests.pictures import url

MEMBERS = get_args(get_args(TaskSpec)[0])
TEXTS = ("the cat sat on the mat", "a dog ran", "birds sing at dawn", "rain")
ROWS: dict[str, list[dict[str, Any]]] = {
    "text_classification": [{"text": text, "label": "ab"[i % 2]} for i, text in enumerate(TEXTS)],
    "token_classification": [{"tokens": text.split(), "tags": ["B-X", *["O"] * text.count(" ")]} for text in TEXTS],
    "question_answering": [{"question": text[:9], "context": text, "answer": text.split()[-1]} for text in TEXTS],
    "regression": [{"text": text, "label": str(len(text) / 4)} for text in TEXTS],
    "masked_lm": [{"text": text} for text in TEXTS],
    "seq2seq": [{"prompt": text, "completion": text[::-1]} for text in TEXTS],
    "embedding": [{"anchor": text, "positive": text[::-1]} for text in TEXTS],
    "preference": [{"prompt": text[:8], "chosen": text[:4], "rejected": text[::-1][:6]} for text in TEXTS],
    "image_classification": [{"image": url(i), "label": "ab"[i % 2]} for i in range(4)],
    "image_text": [{"image": url(i), "text": text} for i, text in enumerate(TEXTS)],
    "causal_lm": [{"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": text[::-1]}]} for text in TEXTS],
}
SMOOTHED = ("text_classification", "token_classification", "masked_lm", "seq2seq", "causal_lm")
STILL = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "classifier_dropout": 0.0, "dropout_rate": 0.0}
ROWS_MEET = {"embedding", "image_text"}
"""Each row's loss depends on the others in its batch."""
CONFIG: dict[str, dict[str, Any]] = {
    "text_classification": {
        "model_type": "bert",
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
    },
    "seq2seq": {"model_type": "t5", "d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2},
    "preference": {"model_type": "llama", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16},
    "image_classification": {"model_type": "raybm_cnn", "widths": [8, 16]},
    "image_text": {
        "model_type": "clip",
        "projection_dim": 16,
        **{
            f"{side}_config": {
                "hidden_size": 16,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "intermediate_size": 16,
                "patch_size": 8,
            }
            for side in ("vision", "text")
        },
    },
    "causal_lm": {"model_type": "llama", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16},
}
CONFIG |= dict.fromkeys(
    ("regression", "embedding", "token_classification", "question_answering", "masked_lm"), CONFIG["text_classification"]
)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(["<pad>", "<end>", "<mask>", *alphabet])}
    bytes_ = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    bytes_.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytes_.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=bytes_, pad_token="<pad>", eos_token="<end>", mask_token="<mask>")


@pytest.fixture(params=MEMBERS, ids=lambda member: member.model_fields["kind"].default)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param.model_fields["kind"].default)


@pytest.fixture
def processor(kind: str, tokenizer: Any) -> Any:
    """By what the task takes in."""
    images = ImageProcessor(16, 16, (0.5,) * 3, (0.5,) * 3)
    takes = next(member for member in MEMBERS if member.model_fields["kind"].default == kind).INPUT
    return {"image": images, "image_text": ImageTextProcessor(tokenizer, images)}.get(takes, tokenizer)


def plain(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Arrays as lists."""
    return [{name: np.asarray(column).tolist() for name, column in row.items()} for row in rows]


def labels_of(kind: str, task: Task) -> tuple[str, ...]:
    """Of the kind's rows."""
    return task.labels(sorted({label for row in ROWS[kind] for label in ([row["label"]] if "label" in row else row.get("tags", []))}))


@pytest.fixture
def task(kind: str) -> Task:
    spec = next(member for member in MEMBERS if member.model_fields["kind"].default == kind)
    built: Task = spec().build()
    return built


def test_encode_collate_loss(kind: str, task: Task, processor: Any) -> None:
    rows = ROWS[kind]
    labels = labels_of(kind, task)
    made = task.encode(rows, processor, labels, 64)
    assert len(made) == len(rows)
    assert plain(made) == plain(task.encode(rows, processor, labels, 64))
    encoded = task.pack(made, 64)
    assert all(set(row) == set(encoded[0]) and 0 < len(row.get("input_ids", [0])) <= 64 for row in encoded)
    assert all(isinstance(i, int | float) for row in plain(encoded) for column in row.values() for i in column)

    torch.manual_seed(0)
    config = CONFIG[kind] | task.learn(processor, lambda: iter(rows))
    model = task.model(None, config, labels, processor).eval()
    whole = task.collate(encoded, processor)
    together = task.loss(model, whole)
    alone = [task.loss(model, task.collate([row], processor)) for row in encoded]
    if kind not in ROWS_MEET:
        assert together.total.item() == pytest.approx(sum(loss.total.item() for loss in alone), rel=1e-5)  # padding changes nothing
        assert int(together.correct or 0) == sum(int(loss.correct or 0) for loss in alone)
    assert int(task.units(whole)) == sum(int(task.units(task.collate([row], processor))) for row in encoded) > 0


def test_an_empty_batch_counts_for_nothing_and_still_has_a_gradient(kind: str, task: Task, processor: Any) -> None:
    config = CONFIG[kind] | task.learn(processor, lambda: iter(ROWS[kind]))
    model = task.model(None, config, ("a", "b"), processor)
    empty = task.collate([], processor)
    loss = task.loss(model, empty)
    assert (int(task.units(empty)), float(loss.total.detach()), int(loss.correct or 0)) == (0, 0.0, 0)
    loss.total.backward()


class Waits(TorchDispatchMode):
    """Notes what would wait for all that a GPU was told to do: a number that is read, a size that depends on values."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.overloadpacket.__name__
        by_value = name in ("index", "index_put", "index_put_") and any(getattr(place, "dtype", None) is torch.bool for place in args[1])
        if by_value or name in ("_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive", "equal"):
            frame, files = sys._getframe(), set()
            while frame := frame.f_back:  # type: ignore[assignment]
                files.add(Path(frame.f_code.co_filename).name)
            if "masking_utils.py" not in files:  # where transformers looks whether a mask leaves anything out
                self.seen.append(name)
        return function(*args, **(kwargs or {}))


def test_a_step_waits_for_no_gpu(kind: str, task: Task, processor: Any) -> None:
    labels = labels_of(kind, task)
    rows = task.pack(task.encode(ROWS[kind], processor, labels, 64), 64)
    model = task.model(None, CONFIG[kind] | task.learn(processor, lambda: iter(ROWS[kind])), labels, processor).train()
    batch = task.collate(rows, processor, 1)
    with Waits() as waits:
        task.loss(model, batch).total.backward()
    assert waits.seen == []


@pytest.mark.parametrize("kind", [kind for kind in ROWS if kind in SMOOTHED])
def test_labels_are_smoothed_in_training_only(kind: str, processor: Any) -> None:
    member = next(member for member in MEMBERS if member.model_fields["kind"].default == kind)
    losses = []
    for share in (0.0, 0.2):
        task = member(label_smoothing=share).build()
        labels = labels_of(kind, task)
        torch.manual_seed(0)
        model = task.model(None, CONFIG[kind] | STILL, labels, processor)
        batch = task.collate(task.pack(task.encode(ROWS[kind], processor, labels, 64), 64), processor)
        losses.append([float(task.loss(model.train(training), batch).total.detach()) for training in (True, False)])
    (plain_training, plain_eval), (smoothed, evaluated) = losses
    assert evaluated == pytest.approx(plain_eval) and plain_training == pytest.approx(plain_eval, rel=1e-4)
    assert abs(smoothed - plain_training) > 1e-4 * plain_training


def test_signature_names_a_protocol(kind: str, task: Task) -> None:
    signature = task.signature(("a", "b"), 64)
    assert signature.protocols
    assert signature.max_length == 64
