"""Rows of a table: what turns their columns into numbers, and a residual network over them (Gorishniy et al. 2021,
arXiv:2106.11959) in transformers' interface."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import SequenceClassifierOutput

from raybm.core.errors import DataError, NotFound

FILE = "columns.json"


@dataclass
class Columns:
    """Numbers by the mean and spread of the training rows, categories by their place among those of the training rows."""

    numeric: dict[str, tuple[float, float]] = field(default_factory=dict)  # name → mean, standard deviation
    categorical: dict[str, list[str]] = field(default_factory=dict)  # name → values, sorted; 0 stands for any other

    def fit(self, rows: Iterable[Mapping[str, Any]], numeric: Sequence[str], categorical: Sequence[str]) -> None:
        """Rows with what is no number are left out, as `encode` refuses them."""
        sums = dict.fromkeys(numeric, (0, 0.0, 0.0))  # count, mean, sum of squared deviations (Welford 1962)
        seen: dict[str, set[str]] = {name: set() for name in categorical}
        for row in rows:
            for name, (count, mean, squares) in sums.items():
                if (value := number(row[name])) is not None:
                    nearer = mean + (value - mean) / (count + 1)
                    sums[name] = count + 1, nearer, squares + (value - mean) * (value - nearer)
            for name, values in seen.items():
                values.add(row[name])
        self.numeric = {name: (mean, math.sqrt(squares / max(count, 1)) or 1.0) for name, (count, mean, squares) in sums.items()}
        self.categorical = {name: sorted(values) for name, values in seen.items()}
        self._places()

    def __post_init__(self) -> None:
        self._places()

    def _places(self) -> None:
        self.places = {name: {value: i for i, value in enumerate(values, 1)} for name, values in self.categorical.items()}

    def encode(self, row: Mapping[str, Any]) -> dict[str, list[Any]]:
        """`numeric` (floats) and `categorical` (ints), each where the table has such columns. Raises DataError for what is no number."""
        made: dict[str, list[Any]] = {}
        if self.numeric:
            made["numeric"] = [(self._number(row, name) - mean) / spread for name, (mean, spread) in self.numeric.items()]
        if self.categorical:
            made["categorical"] = [self.places[name].get(_text(row[name]), 0) for name in self.categorical]
        return made

    def _number(self, row: Mapping[str, Any], name: str) -> float:
        value = number(row[name])
        if value is None:
            raise DataError(f"{name} is {str(row[name])[:40]!r}, which is no number", remedy="Give a number, or make it a category.")
        return value

    def save_pretrained(self, folder: Path | str) -> None:
        (Path(folder) / FILE).write_text(json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

    @classmethod
    def from_pretrained(cls, folder: Path | str, **_: Any) -> Columns:
        path = Path(folder) / FILE
        if not path.exists():
            raise NotFound(f"there is no {FILE}.", where=str(folder), remedy="Give the folder of a model that raybm trained on a table.")
        saved = json.loads(path.read_text(encoding="utf-8"))
        return cls({name: (mean, spread) for name, (mean, spread) in saved["numeric"].items()}, saved["categorical"])


def _text(value: Any) -> str:
    """As the files' readers write it (raybm.data.reading)."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def number(text: Any) -> float | None:
    """None for what is no finite number."""
    try:
        value = float(text)
    except (TypeError, ValueError, OverflowError):
        return None
    return value if math.isfinite(value) else None


class MlpConfig(PreTrainedConfig):
    """`numeric`: how many columns of numbers. `categories`: how many values each column of categories has."""

    model_type = "raybm_mlp"

    numeric: int = 0
    categories: list[int] = field(default_factory=list)
    hidden_size: int = 128
    num_hidden_layers: int = 2
    embedding_size: int = 8
    dropout: float = 0.1


class Block(nn.Module):
    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.change = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.ReLU(), nn.Dropout(dropout), nn.Linear(2 * width, width)
        )

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        changed: torch.Tensor = hidden + self.change(hidden)
        return changed


class MlpForTables(PreTrainedModel):
    config_class = MlpConfig

    def __init__(self, config: MlpConfig) -> None:
        super().__init__(config)
        self.embeddings = nn.ModuleList(nn.Embedding(count, config.embedding_size, padding_idx=0) for count in config.categories)
        self.first = nn.Linear(config.numeric + config.embedding_size * len(config.categories), config.hidden_size)
        self.blocks = nn.Sequential(*(Block(config.hidden_size, config.dropout) for _ in range(config.num_hidden_layers)))
        self.norm = nn.LayerNorm(config.hidden_size)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            init.kaiming_uniform_(module.weight, a=math.sqrt(5))
            init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            init.normal_(module.weight, std=0.5)
            init.zeros_(module.weight[0])  # of values that training never saw
        else:
            super()._init_weights(module)

    def forward(self, numeric: torch.Tensor | None = None, categorical: torch.Tensor | None = None, **_: Any) -> SequenceClassifierOutput:
        """`numeric`: (rows, columns), about unit spread; `categorical`: (rows, columns), places in their lists."""
        parts = [] if numeric is None else [numeric.to(self.dtype)]
        if categorical is not None:
            parts += [embedding(categorical[:, place]) for place, embedding in enumerate(self.embeddings)]
        hidden = self.norm(self.blocks(self.first(torch.cat(parts, 1))))
        return SequenceClassifierOutput(logits=self.classifier(hidden.relu()))
