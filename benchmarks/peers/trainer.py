"""transformers' Trainer. Run by torchrun with the case's JSON file: the rows in the given order, or (`sampling`) as Trainer deals them."""

from __future__ import annotations

import tempfile
import time
from typing import Any

import torch
import torch.distributed as dist
import transformers
from rows import CASE, Clock, collate, model, optimizer, table

ids, columns = table()


class InOrder(torch.utils.data.Dataset[dict[str, Any]]):
    """Row numbers: step by step, each step's rows by rank, which is how accelerate deals batches to ranks."""

    def __init__(self) -> None:
        self.rows = [row for step in CASE["order"] for mine in step for row in mine] if "order" in CASE else list(range(len(ids)))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: int) -> dict[str, Any]:
        return {"row": self.rows[place], "input_ids": ids[self.rows[place]]}  # Trainer's length grouping looks for input_ids


class Timed(transformers.TrainerCallback):
    """Seconds of every window of steps; in the loss's place, the tokens of a step of a rank."""

    def __init__(self) -> None:
        self.clock, self.tokens, self.computed = Clock(), list[int](), list[int]()
        """The tokens by step, in the order in which batches are made: without padding, and with it."""

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.clock.started = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.clock.step(state.global_step, torch.tensor(float(self.tokens[state.global_step - 1])))


def main() -> None:
    torch.set_num_threads(1)
    replica, timed = model(), Timed()

    def batch(examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        rows = [example["row"] for example in examples]
        made = collate(rows)
        timed.tokens.append(sum(len(ids[row]) for row in rows))
        timed.computed.append(made["input_ids"].numel())
        return made

    with tempfile.TemporaryDirectory() as folder:
        settings = transformers.TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=CASE["batch"],
            max_steps=CASE["steps"],
            train_sampling_strategy=CASE.get("sampling", "sequential"),
            learning_rate=CASE["lr"],
            weight_decay=CASE["weight_decay"],
            adam_beta1=CASE["betas"][0],
            adam_beta2=CASE["betas"][1],
            max_grad_norm=CASE["clip_norm"],
            optim="adamw_torch_fused",
            logging_steps=CASE["window"],
            logging_nan_inf_filter=False,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
            ddp_backend="gloo",
            remove_unused_columns=False,
        )
        trainer = transformers.Trainer(
            replica, settings, data_collator=batch, train_dataset=InOrder(), callbacks=[timed], optimizers=(optimizer(replica), None)
        )
        trainer.train()
    timed.clock.print(padding=1 - sum(timed.tokens) / sum(timed.computed))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
