"""transformers' Trainer. Run by torchrun with the case's JSON file: each rank's rows as given (`order`), or as Trainer deals them.

Trainer divides a loss that takes the number of units (the Llama's) by those of all ranks, as raybm does. Where the model takes the mean
itself (BERT's classifier), ranks with unlike numbers of rows weigh the same, as in the bare loops, and Trainer 5.19 multiplies the loss
by the number of ranks. Neither changes what a step costs.
"""

from __future__ import annotations

import tempfile
import time
from typing import Any

import torch
import torch.distributed as dist
import transformers
from rows import CASE, Clock, collate, model, optimizer, table

ids, columns = table()


class Dealt(torch.utils.data.Dataset[dict[str, Any]]):
    """Row numbers. With an order, an item is all that a rank has of a step, and a batch one item: accelerate gives batch i to rank
    i % ranks. Else each row is an item."""

    def __init__(self) -> None:
        self.items = [mine for step in CASE["order"] for mine in step] if "order" in CASE else [[row] for row in range(len(ids))]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, place: int) -> dict[str, Any]:
        rows = self.items[place]
        return {"rows": rows, "input_ids": ids[rows[0]]}  # Trainer's length grouping looks for input_ids


class Timed(transformers.TrainerCallback):
    """Makes the batches; seconds of every window of steps, and in the loss's place, the tokens of a step of a rank."""

    def __init__(self) -> None:
        self.clock, self.rows, self.tokens, self.computed = Clock(), list[list[int]](), list[int](), list[int]()
        """Rows and tokens by step, in the order in which batches are made: tokens without padding, and with it."""

    def batch(self, examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        rows = [row for example in examples for row in example["rows"]]
        made = collate(rows)
        self.rows.append(rows)
        self.tokens.append(sum(len(ids[row]) for row in rows))
        self.computed.append(made["input_ids"].numel())
        return made

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.clock.started = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.clock.step(state.global_step, torch.tensor(float(self.tokens[state.global_step - 1])))

    def on_log(self, *_: Any, **__: Any) -> None:
        self.clock.started = time.perf_counter()  # the clocks of the others stand still, too, while they log


def main() -> None:
    torch.set_num_threads(1)
    replica, timed = model(), Timed()
    with tempfile.TemporaryDirectory() as folder:
        settings = transformers.TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=1 if "order" in CASE else CASE["batch"],
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
            replica, settings, data_collator=timed.batch, train_dataset=Dealt(), callbacks=[timed], optimizers=(optimizer(replica), None)
        )
        trainer.train()
    if "order" in CASE and timed.rows != [step[dist.get_rank()] for step in CASE["order"]]:
        raise SystemExit("accelerate dealt the rows to other ranks or steps.")
    timed.clock.print(padding=1 - sum(timed.tokens) / sum(timed.computed))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
