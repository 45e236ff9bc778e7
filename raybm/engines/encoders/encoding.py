"""Encoders: classification and embeddings. Batches hold texts of like length, and the padding changes no result."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from raybm.core.errors import RaybmError, Unsupported, UserError
from raybm.core.signature import Signature
from raybm.engines.protocol import Embeddings, GenerateRequest, Tokens
from raybm.engines.tokens import as_text, as_tokens

Pool = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # hidden states (rows, tokens, width), mask (rows, tokens) → (rows, width)

Text = str | tuple[str, str]

ALIKE = 2 / 3  # of a batch's longest row: of 32 texts of one to eight sentences it leaves 15 % padding, where one batch has 76 %
THRESHOLD = 0.5  # of the probability with which one label of several is given


class Loaded:
    """A model until it is let go; what engines that answer at once share."""

    def __init__(self, model: PreTrainedModel, signature: Signature, max_batch: int) -> None:
        self.signature, self.max_batch = signature, max_batch
        self._model: PreTrainedModel | None = model

    @property
    def model(self) -> PreTrainedModel:
        if self._model is None:
            raise RaybmError("the engine was closed.", remedy="Send the request again.")
        return self._model

    def check(self) -> None:
        _ = self.model

    def close(self) -> None:
        self._model = None


class Encoder(Loaded):
    """An encoder with its tokenizer; what its kinds share."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, signature: Signature, max_batch: int) -> None:
        super().__init__(model, signature, max_batch)
        self.tokenizer = tokenizer
        self.tokenizer.padding_side = "right"  # where the pooling looks for the first and the last token
        self.tokenizing = threading.Lock()  # the Rust tokenizer keeps its truncation as state

    def tokenize(self, request: GenerateRequest, special: bool = True) -> Tokens:
        if request.prompt is None:
            raise Unsupported("this model reads texts and knows no messages.", where="messages", remedy="Send a prompt.")
        with self.tokenizing:
            ids = self.tokenizer(request.prompt, add_special_tokens=special).input_ids
        return as_tokens(self.tokenizer, ids, self.signature.max_length)

    def detokenize(self, ids: Sequence[int]) -> str:
        with self.tokenizing:
            return as_text(self.tokenizer, ids)

    def _batches(self, texts: Sequence[Text]) -> Iterator[tuple[list[int], dict[str, torch.Tensor]]]:
        """`padded`, of texts and pairs of texts."""
        self.check()
        rows: dict[int, dict[str, list[int]]] = {}
        for kind in (str, tuple):
            places = [place for place, text in enumerate(texts) if isinstance(text, kind)]
            rows |= zip(places, self._encoded([texts[place] for place in places]), strict=True) if places else ()
        yield from self.padded([rows[place] for place in range(len(texts))])

    def _encoded(self, texts: Sequence[Text]) -> list[dict[str, list[int]]]:
        """Inputs of texts, or of pairs."""
        columns = zip(*texts, strict=True) if isinstance(texts[0], tuple) else (texts,)
        with self.tokenizing:
            encoded = self.tokenizer(*map(list, columns), truncation=True, max_length=self.signature.max_length)
        names = [name for name in self.tokenizer.model_input_names if name in encoded]
        return [self._some({name: encoded[name][i] for name in names}) for i in range(len(texts))]

    def _some(self, row: dict[str, list[int]]) -> dict[str, list[int]]:
        """A text that is no token (an empty one, where the tokenizer puts nothing around it) is an unknown one."""
        if row["input_ids"]:
            return row
        known = (self.tokenizer.unk_token_id, self.tokenizer.eos_token_id, self.tokenizer.pad_token_id)
        filler = next((one for one in known if one is not None), 0)
        return {name: [filler] if name == "input_ids" else [int(name == "attention_mask")] for name in row}

    def padded(self, rows: Sequence[Mapping[str, list[int]]]) -> Iterator[tuple[list[int], dict[str, torch.Tensor]]]:
        """The places of some rows of token ids and their inputs, padded on the right; the longest first: what does not fit in memory
        fails at once. On a CPU, where a padded place costs what a token costs, a batch holds rows of like length."""
        lengths = [len(row["input_ids"]) for row in rows]
        order = sorted(range(len(rows)), key=lambda i: -lengths[i])
        alike = ALIKE if self.model.device.type == "cpu" else 0.0
        start = 0
        while start < len(order):
            shortest = alike * lengths[order[start]]
            places = [i for i in order[start : start + self.max_batch] if lengths[i] >= shortest]
            start += len(places)
            with self.tokenizing:
                batch = self.tokenizer.pad([rows[i] for i in places], return_tensors="pt", padding_side="right")
            yield places, {name: tensor.to(self.model.device) for name, tensor in batch.items()}


class Classifier(Encoder):
    """One label out of several, or those of several that are likelier than not (Predicts)."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, signature: Signature, max_batch: int) -> None:
        super().__init__(model, tokenizer, signature, max_batch)
        config = model.config
        self.several = config.problem_type == "multi_label_classification"
        if config.problem_type == "regression" or (config.num_labels < 2 and not self.several):
            raise Unsupported("this model's problem is regression.", remedy='Say so in its signature.json: "problem": "regression".')
        self.labels = signature.labels or tuple(str(config.id2label[i]) for i in range(config.num_labels))

    def predict(self, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        answers: dict[int, dict[str, Any]] = {}
        for places, inputs in self._batches([texts_of(row, i) for i, row in enumerate(rows)]):
            with torch.inference_mode():
                logits = self.model(**inputs).logits.float()
                shares = torch.sigmoid(logits) if self.several else torch.softmax(logits, dim=-1)
            lengths = inputs["attention_mask"].sum(1).tolist()
            for place, share, tokens in zip(places, shares.tolist(), lengths, strict=True):
                scores = dict(zip(self.labels, share, strict=True))
                answers[place] = {**self._chosen(scores), "scores": scores, "tokens": tokens}
        return [answers[i] for i in range(len(rows))]

    def _chosen(self, scores: Mapping[str, float]) -> dict[str, Any]:
        if self.several:
            return {"labels": [label for label, score in scores.items() if score >= THRESHOLD]}
        best = max(scores, key=scores.__getitem__)
        return {"label": best, "score": scores[best]}


class Embedder(Encoder):
    """Vectors of texts, pooled as the folder's sentence-transformers files say (Embeds)."""

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, signature: Signature, max_batch: int, folder: Path
    ) -> None:
        super().__init__(model, tokenizer, signature, max_batch)
        self.pool, self.unit = _pooling(folder)

    def embed(self, texts: Sequence[str]) -> Embeddings:
        vectors = np.zeros((len(texts), self.model.config.hidden_size), np.float32)
        tokens = [0] * len(texts)
        for places, inputs in self._batches(texts):
            with torch.inference_mode():
                pooled = self.pool(self.model(**inputs).last_hidden_state.float(), inputs["attention_mask"])
                if self.unit:
                    pooled = torch.nn.functional.normalize(pooled, dim=-1)
            vectors[places] = pooled.cpu().numpy()
            for place, length in zip(places, inputs["attention_mask"].sum(1).tolist(), strict=True):
                tokens[place] = length
        return Embeddings(vectors, tuple(tokens))


def text_of(row: Mapping[str, Any], number: int) -> str:
    text = row.get("text")
    if not isinstance(text, str):
        raise UserError(
            f"row {number} has {'no text' if text is None else repr(text)[:40]}.", where="text", remedy="Give each row a string `text`."
        )
    return text


def texts_of(row: Mapping[str, Any], number: int) -> Text:
    """The `text`, and the `text_pair` of a row that has one."""
    pair = row.get("text_pair")
    if not isinstance(pair, str | None):
        raise UserError(f"row {number} has {repr(pair)[:40]}.", where="text_pair", remedy="Give a string, or leave it out.")
    return text_of(row, number) if pair is None else (text_of(row, number), pair)


# ---- pooling (sentence-transformers' modules.json and N_Pooling/config.json)


def _pooling(folder: Path) -> tuple[Pool, bool]:
    """How token vectors become one, and whether it is scaled to unit length. Without those files: mean, unit length."""
    path = folder / "modules.json"
    if not path.exists():
        return _mean, True
    modules = [(entry["type"].rsplit(".", 1)[-1], entry["path"]) for entry in json.loads(path.read_text(encoding="utf-8"))]
    unknown = [kind for kind, _ in modules if kind not in ("Transformer", "Pooling", "Normalize")]
    if unknown:
        raise Unsupported(f"the model has a {unknown[0]} module.", where=str(path), remedy="Known: Transformer, Pooling, Normalize.")
    pool = next((_pool(folder / where / "config.json") for kind, where in modules if kind == "Pooling"), _mean)
    return pool, any(kind == "Normalize" for kind, _ in modules)


def _pool(path: Path) -> Pool:
    settings = json.loads(path.read_text(encoding="utf-8"))
    modes = [name for name, on in settings.items() if name.startswith("pooling_mode_") and on]
    pools: dict[str, Pool] = {
        "pooling_mode_mean_tokens": _mean,
        "pooling_mode_cls_token": lambda hidden, mask: hidden[:, 0],
        "pooling_mode_max_tokens": lambda hidden, mask: hidden.masked_fill(mask[:, :, None] == 0, -torch.inf).amax(1),
        "pooling_mode_lasttoken": lambda hidden, mask: hidden[torch.arange(len(hidden)), mask.sum(1) - 1],
    }
    if len(modes) != 1 or modes[0] not in pools:
        raise Unsupported(
            f"pools by {' + '.join(modes) or 'nothing'}.", where=str(path), remedy=f"Known, one at a time: {', '.join(pools)}."
        )
    return pools[modes[0]]


def _mean(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    weights = mask[:, :, None].float()
    return (hidden * weights).sum(1) / weights.sum(1).clamp(min=1)
