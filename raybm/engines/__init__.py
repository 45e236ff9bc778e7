"""The family of serving engines. A new one is a folder with spec.py and engine.py, and its name in the union below."""

from raybm.engines.transformers.spec import Transformers

EngineSpec = Transformers
