"""The family of tasks. A new one is a folder with spec.py and task.py, and its name in the union below."""

from typing import Annotated

from pydantic import Field

from raybm.tasks.causal_lm.spec import CausalLm
from raybm.tasks.embedding.spec import Embedding
from raybm.tasks.image_classification.spec import ImageClassification
from raybm.tasks.image_text.spec import ImageText
from raybm.tasks.masked_lm.spec import MaskedLm
from raybm.tasks.preference.spec import Preference
from raybm.tasks.question_answering.spec import QuestionAnswering
from raybm.tasks.regression.spec import Regression
from raybm.tasks.seq2seq.spec import Seq2Seq
from raybm.tasks.text_classification.spec import TextClassification
from raybm.tasks.token_classification.spec import TokenClassification

TaskSpec = Annotated[
    TextClassification
    | ImageClassification
    | ImageText
    | Regression
    | TokenClassification
    | QuestionAnswering
    | CausalLm
    | MaskedLm
    | Seq2Seq
    | Embedding
    | Preference,
    Field(discriminator="kind"),
]
