"""signature.json: what a model takes and gives. It stands beside the weights and is all that an engine knows of the task."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

from raybm.core.spec import Spec

FILE = "signature.json"
Protocol = Literal["generates", "embeds", "predicts"]


class Signature(Spec):
    problem: Literal[
        "text_classification",
        "token_classification",
        "question_answering",
        "regression",
        "embedding",
        "image_classification",
        "image_text",
        "masked_lm",
        "seq2seq",
        "causal_lm",
    ]
    protocols: tuple[Protocol, ...]
    """Which of the engine protocols the model can answer."""
    inputs: tuple[str, ...]
    """Columns of a request row, such as ("text",) or ("question", "context"); of ("messages", "prompt")
    and of ("image", "text") one is enough."""
    outputs: tuple[str, ...]
    """Columns of an answer row, such as ("label", "score", "scores"), ("text",) or ("embedding",)."""
    labels: tuple[str, ...] = ()
    """Class names in the order of the logits."""
    pairs: bool = False
    """Whether its number tells how well a `text_pair`, which a row may have, goes with the `text` (a cross-encoder)."""
    max_length: int = 512
    """Longest input in tokens; for a language model, the context (prompt and answer)."""

    def groups(self) -> tuple[tuple[str, ...], ...]:
        """Groups of inputs of which a row needs one."""
        return tuple((name,) for name in self.inputs) if "messages" in self.inputs or self.problem == "image_text" else (self.inputs,)

    def write(self, folder: Path) -> None:
        (folder / FILE).write_text(json.dumps(self.canonical(), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> Signature | None:
        """The folder's signature, or None where it has none (a model that raybm did not make: see models.infer_signature)."""
        path = folder / FILE
        if not path.exists():
            return None
        return cls.parse(json.loads(path.read_text(encoding="utf-8")), str(path))
