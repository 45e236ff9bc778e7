"""Jobs and models to plan for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from raybm.spec import JobSpec

CONFIG = {"model_type": "bert", "hidden_size": 8, "num_hidden_layers": 2, "vocab_size": 30}
LLAMA = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "tie_word_embeddings": True,
}
T5_3B = {  # https://huggingface.co/google-t5/t5-3b/blob/main/config.json
    "d_ff": 16384,
    "d_kv": 128,
    "d_model": 1024,
    "num_heads": 32,
    "num_layers": 24,
    "relative_attention_num_buckets": 32,
    "vocab_size": 32128,
}


def write_model(folder: Path) -> None:
    """Two shards: 30 x 8 weights in fp32 and 100 in bf16, beside an integer buffer that is no parameter."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    for name, tensors in {
        "a": {"embedding": ("F32", [30, 8]), "position_ids": ("I64", [1, 512])},
        "b": {"head": ("BF16", [100])},
    }.items():
        header = {tensor: {"dtype": dtype, "shape": shape, "data_offsets": [0, 0]} for tensor, (dtype, shape) in tensors.items()}
        packed = json.dumps({"__metadata__": {"format": "pt"}} | header).encode()
        (folder / f"model-{name}.safetensors").write_bytes(len(packed).to_bytes(8, "little") + packed)


def job(folder: Path, **changes: Any) -> JobSpec:
    """A classifier on the model of `write_model`."""
    (folder / "rows.jsonl").write_text('{"text": "x", "label": "a"}\n' * 100)
    spec = {
        "name": "j",
        "storage": str(folder / "storage"),
        "task": {"kind": "text_classification"},
        "model": {"ref": f"file:{folder / 'model'}", "max_length": 16},
        "data": {"sources": [{"kind": "jsonl", "path": str(folder / "rows.jsonl")}]},
    }
    return JobSpec.parse(spec | changes)


def language_model(folder: Path, config: dict[str, Any] = LLAMA, **changes: Any) -> JobSpec:
    """A Llama from scratch on packed text."""
    source = {"kind": "jsonl", "path": str(folder / "rows.jsonl"), "columns": {"text": "text"}}
    model = {"ref": "scratch:llama", "max_length": 32, "config": config, "tokenizer": {"train": "bpe", "vocab_size": 1000}}
    return job(folder, **{"task": {"kind": "causal_lm"}, "model": model, "data": {"sources": [source]}} | changes)
