"""The ray_llm engine: its settings and places, and what it makes of ray.serve.llm's lines. Its answers: test_vllm.py, test_prefill.py."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import RayActorError, RayTaskError

from raybm.core.errors import Overloaded, SpecError, Unsupported
from raybm.core.registry import Registry
from raybm.core.storage import open_storage
from raybm.engines.ray_llm import engine
from raybm.engines.ray_llm.engine import RayLlmEngine
from raybm.engines.ray_llm.spec import RayLlm
from raybm.engines.vllm_answers import Piece
from raybm.serving.app import build
from raybm.serving.deploy import needs
from raybm.spec.serve import ServeConfig, ServedModel
from tests.engines import tiny
from tests.engines.test_vllm import INSTALLED, MODEL, options

ENGINES: dict[str, Any] = {"apart": {"kind": "ray_llm", "prefill": {}}, "alone": {"kind": "ray_llm"}}


def test_a_replica_is_in_a_placement_group() -> None:
    on_cpu = options(engine={"kind": "ray_llm"}, cpus=3)
    assert on_cpu.placement_group_bundles == [{"CPU": 3}] and on_cpu.ray_actor_options["num_gpus"] == 0
    assert on_cpu.ray_actor_options["runtime_env"]["env_vars"]["CUDA_VISIBLE_DEVICES"] == ""
    on_gpu = options(engine={"kind": "ray_llm"}, cpus=3, gpus=1, accelerator_type="H100")
    assert on_gpu.placement_group_bundles == [{"CPU": 3}, {"GPU": 1, "accelerator_type:H100": 0.001}]
    assert "runtime_env" not in on_gpu.ray_actor_options or not on_gpu.ray_actor_options["runtime_env"]


@pytest.mark.parametrize(
    ("wrong", "what"),
    [
        ({"engine": {"kind": "ray_llm"}, "gpus": 0.5}, "Set 1"),
        ({"engine": {"kind": "ray_llm", "tensor_parallel": 2}}, "Set 2"),
        ({"engine": {"kind": "ray_llm", "prefill": {}, "engine_args": {"kv_transfer_config": {}}}}, "prefill decides"),
        ({"engine": {"kind": "ray_llm", "prefill": {}}, "routing": "prefix"}, "without prefill"),
        ({"engine": {"kind": "ray_llm"}, "cpus": 0}, "Set a part of one"),
        ({"engine": {"kind": "vllm", "tensor_parallel": 2}, "cpus": 0, "gpus": 2}, "Set a part of one"),
        ({"engine": {"kind": "ray_llm", "prefill": {}, "adapters": {"a": "file:/a"}}}, "Drop one of the two"),
        ({"engine": {"kind": "ray_llm", "prefill": {"replicas": 0}}}, "greater than 0"),
    ],
)
def test_contradictions_are_told(wrong: dict[str, Any], what: str) -> None:
    with pytest.raises(SpecError, match=what):
        ServedModel.parse({**MODEL, **wrong})


def test_room_is_asked_for_those_that_read_prompts_too() -> None:
    model = MODEL | {"engine": {"kind": "ray_llm", "prefill": {"replicas": 3}}, "gpus": 1, "cpus": 2}
    application = {"import_path": "raybm.serving.app:build", "args": {"models": [model], "gateway": {"cpus": 0}}}
    config = ServeConfig.parse({"http_options": {"host": "127.0.0.1"}, "applications": [application]})
    assert needs(config) == (9, 4)


def test_both_sides_get_the_same_version(tmp_path: Path) -> None:
    registry = Registry(open_storage(str(tmp_path)))
    folder = tmp_path / "model"
    folder.mkdir()
    registry.publish("m", tiny.language_model(folder), {})
    registry.promote("m", "prod", 1, expect=None)
    models = [{"name": name, "ref": "registry:m@prod", "engine": engine} for name, engine in ENGINES.items()]
    gateway = build({"storage": str(tmp_path), "models": models})._bound_deployment.init_args
    assert [model["ref"] for model in gateway[0]["models"]] == ["registry:m@1", "registry:m@prod"]
    prefill = gateway[1]["apart"]._bound_deployment.init_args[-1]._bound_deployment
    assert (prefill.name, prefill.init_args[1]) == ("apart:prefill", "registry:m@1")


@pytest.mark.skipif(INSTALLED, reason="vllm is installed")
def test_without_the_package_it_says_so(tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match="pip install vllm"):
        RayLlm().build(tiny.language_model(tmp_path))


def line(**choice: Any) -> str:
    given = {"text": "", "token_ids": [], "finish_reason": None, "logprobs": None} | choice
    return f"data: {json.dumps({'choices': [given]})}\n\n"


class Lines(RayLlmEngine):
    """Of a server that gives out the same again, once it has raised what it is told to."""

    def __init__(self, given: list[Any], errors: list[Exception]) -> None:
        self.given, self.errors = given, errors

    async def _pieces(self, ids: Any, sampling: Any, adapter: Any) -> AsyncGenerator[Piece, None]:
        for place, part in enumerate(self.given):
            if self.errors and place == len(self.given) // 2:
                raise self.errors.pop()
            yield part


def pieces(source: Any) -> list[Piece]:
    async def all_of_them() -> list[Piece]:
        return [piece async for piece in source.pieces([1], {}, None)]

    return asyncio.run(all_of_them())


def test_a_prompt_is_read_again_when_its_reader_went_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "PAUSES_S", (0.0, 0.0))
    one = Piece("a", [1], "stop", ())
    assert pieces(Lines([one], [RayActorError(), RayActorError()])) == [one]
    with pytest.raises(Overloaded, match="no replica reads prompts"):
        pieces(Lines([one], [RayActorError()] * 3))
    with pytest.raises(RayTaskError):  # an error of the engine
        pieces(Lines([one], [RayTaskError("f", "", ValueError())]))
    with pytest.raises(RayActorError):  # its tokens so far are the gateway's to go on from
        pieces(Lines([one, one], [RayActorError()]))


def test_lines_become_pieces() -> None:
    likely = {"tokens": ["token_id:7"], "token_logprobs": [-1.0], "top_logprobs": [{"token_id:5": -0.5, "token_id:7": -1.0}]}
    (choice,) = engine._choices(line(text="a", token_ids=[7], logprobs=likely))
    assert engine._likely(choice["logprobs"]) == [[(7, -1.0), (5, -0.5), (7, -1.0)]]
    assert engine._likely(likely | {"top_logprobs": None}) == [[(7, -1.0)]] and engine._likely(None) == []
    assert list(engine._choices("data: [DONE]\n\n")) == [] == list(engine._choices('data: {"usage": {}}\n\n'))


def test_errors_are_the_requests_or_the_servers() -> None:
    def told(code: int) -> Any:
        return SimpleNamespace(error=SimpleNamespace(model_dump=lambda: {"message": "no", "code": code}))

    for wrong in (told(400), 'data: {"error": {"message": "no", "code": 422}}'):
        with pytest.raises(ValueError, match="no"):
            list(engine._choices(wrong))
    for broken in (told(500), 'data: {"error": {"message": "no", "code": null}}'):
        with pytest.raises(RuntimeError, match="no"):
            list(engine._choices(broken))
