"""Settings of the transformers engine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import PositiveInt

from raybm.engines.base import AdaptedEngine, EncodingEngine

if TYPE_CHECKING:
    from raybm.engines.protocol import Engine


class Transformers(AdaptedEngine, EncodingEngine):
    """transformers models in the replica's own process: encoders, classifiers, and generation with continuous batching."""

    TOKENS = REPEATS = True

    kind: Literal["transformers"] = "transformers"
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto: the type the weights are stored in."""
    max_waiting: PositiveInt = 256
    """Requests that may wait for a place in the batch; one more is refused with 503."""
    cache_tokens: PositiveInt = 32_768
    """Tokens that the key/value cache of a language model holds, padding included: this bounds its memory (SmolLM2-135M in fp32
    takes 46 kB a token). One request alone may use its whole context."""

    def build(self, model_dir: Path) -> Engine:
        from raybm.engines.transformers.engine import build

        return build(self, model_dir)
