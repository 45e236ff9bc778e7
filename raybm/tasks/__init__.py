"""The family of tasks. A new one is a folder with spec.py and task.py, and its name in the union below."""

from typing import Annotated

from pydantic import Field

from raybm.tasks.causal_lm.spec import CausalLm
from raybm.tasks.text_classification.spec import TextClassification

TaskSpec = Annotated[TextClassification | CausalLm, Field(discriminator="kind")]
