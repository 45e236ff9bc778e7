"""A replica's start by part."""

from __future__ import annotations

import asyncio
import importlib.util
from typing import Any, get_args

import pytest

from raybm.core.errors import UserError
from raybm.engines import EngineSpec
from raybm.serving.coldstart import line, part, started
from tests.fakes import EchoEngine, LengthClassifier


def test_parts_of_a_start() -> None:
    def load() -> EchoEngine:
        with part("fetch"):
            pass
        return EchoEngine()

    engine, parts = asyncio.run(started(load))
    assert list(parts) == ["process", "fetch", "warm-up"] and all(seconds >= 0 for seconds in parts.values())
    assert (engine.begun, engine.closed) == (1, 1)
    classifier, _ = asyncio.run(started(LengthClassifier))
    assert classifier.batches == [1]
    assert line({"process": 1.24, "weights": 2.5}) == "3.7 s (process 1.2, weights 2.5)"


def test_warm_up_that_a_model_refuses_is_no_reason_not_to_start() -> None:
    class Refusing(EchoEngine):
        async def generate(self, request: Any) -> Any:
            raise UserError("not this prompt.")
            yield

    assert asyncio.run(started(Refusing))[0]


@pytest.mark.parametrize("member", get_args(get_args(EngineSpec)[0]) if get_args(EngineSpec) else (EngineSpec,))
def test_what_an_engine_imports_lies_beside_its_spec(member: Any) -> None:
    assert importlib.util.find_spec(member.__module__.removesuffix("spec") + "engine")
