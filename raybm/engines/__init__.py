"""The family of serving engines. A new one is a folder with spec.py and engine.py, and its name in the union below.
Engines never import each other; what several share stands in a file here, or in encoders/."""

from typing import Annotated

from pydantic import Field

from raybm.engines.onnx.spec import Onnx
from raybm.engines.ray_llm.spec import RayLlm
from raybm.engines.remote.spec import Remote
from raybm.engines.transformers.spec import Transformers
from raybm.engines.vllm.spec import Vllm

EngineSpec = Annotated[Transformers | Onnx | Vllm | RayLlm | Remote, Field(discriminator="kind")]
