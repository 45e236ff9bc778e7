"""The family of serving engines. A new one is a folder with spec.py and engine.py, and its name in the union below."""

from typing import Annotated

from pydantic import Field

from raybm.engines.remote.spec import Remote
from raybm.engines.transformers.spec import Transformers

EngineSpec = Annotated[Transformers | Remote, Field(discriminator="kind")]
