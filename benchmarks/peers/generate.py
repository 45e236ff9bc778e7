"""Bare `generate` of transformers. The argument is a JSON object: folder, precision, prompts, max_tokens.

Each line on standard input says how many prompts go into one batch, and how many of the prompts are to be answered; the line that
comes back says in how many seconds, how many tokens that made, and the answers' text.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

CASE: dict[str, Any] = json.loads(sys.argv[1])


def main() -> None:
    tokenizer = AutoTokenizer.from_pretrained(CASE["folder"], padding_side="left", local_files_only=True)
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[CASE["precision"]]
    model = AutoModelForCausalLM.from_pretrained(CASE["folder"], dtype=dtype, use_safetensors=True, local_files_only=True).eval()
    texts = [
        tokenizer.apply_chat_template([{"role": "user", "content": prompt}], add_generation_prompt=True, tokenize=False)
        for prompt in CASE["prompts"]
    ]
    print("ready", flush=True)
    for line in sys.stdin:
        together, count = map(int, line.split())
        began, tokens, answers = time.perf_counter(), 0, []
        for start in range(0, count, together):
            inputs = tokenizer(texts[start : start + together], return_tensors="pt", padding=True, add_special_tokens=False)
            with torch.inference_mode():
                out = model.generate(**inputs, max_new_tokens=CASE["max_tokens"], do_sample=False)
            for row in out[:, inputs["input_ids"].shape[1] :].tolist():
                ended = row.index(tokenizer.eos_token_id) + 1 if tokenizer.eos_token_id in row else len(row)
                tokens += ended
                answers.append(tokenizer.decode(row[:ended], skip_special_tokens=True))
        print(json.dumps({"seconds": time.perf_counter() - began, "tokens": tokens, "answers": answers}), flush=True)


if __name__ == "__main__":
    main()
