"""What ranks need, imported once in the process that they are forked from (tests/ranks.py)."""

# ruff: noqa: F401

from raybm import ops

ops.use()

import deepspeed  # noqa: E402
import transformers  # noqa: E402

import raybm.stages.train  # noqa: E402
import raybm.training.loop  # noqa: E402
