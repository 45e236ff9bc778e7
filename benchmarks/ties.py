"""Where a greedy text differs from another: was it a near tie, which rounding in another batch may decide otherwise?"""

from __future__ import annotations

from functools import cache
from typing import Any

GAP = 1e-4


def near_tie(folder: str, prompt: str, expected: str, other: str) -> bool:
    """Whether the two best logits (fp32) lie within 1e-4 at the first token at which `other` leaves `expected`."""
    import torch

    model, tokenizer = loaded(folder)
    question = tokenizer.apply_chat_template([{"role": "user", "content": prompt}], add_generation_prompt=True, return_dict=False)
    answer = tokenizer(expected, add_special_tokens=False)["input_ids"]
    same = next((n for n in range(len(answer)) if not other.startswith(tokenizer.decode(answer[: n + 1]))), len(answer))
    with torch.inference_mode():
        best = model(torch.tensor([question + answer[:same]])).logits[0, -1].float().topk(2).values
    return bool(best[0] - best[1] < GAP)


@cache
def loaded(folder: str) -> tuple[Any, Any]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, use_safetensors=True, local_files_only=True).eval()
    return model, AutoTokenizer.from_pretrained(folder, local_files_only=True)
