"""The families of readers and cleaning steps: one file each. A new one is a file, and its name in a union below."""

from typing import Annotated

from pydantic import Field

from raybm.data.bin_labels import BinLabels
from raybm.data.conll import Conll
from raybm.data.conversations import Conversations
from raybm.data.delimited import Csv, Tsv
from raybm.data.exact_dedup import ExactDedup
from raybm.data.images import Images
from raybm.data.jsonl import Jsonl
from raybm.data.normalize import Normalize
from raybm.data.sample import Sample
from raybm.data.text import Text

SourceSpec = Annotated[Jsonl | Csv | Tsv | Text | Conll | Conversations | Images, Field(discriminator="kind")]
StepSpec = Annotated[Normalize | ExactDedup | BinLabels | Sample, Field(discriminator="kind")]
