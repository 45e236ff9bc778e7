"""The modules of our own in transformers' interface, made known to its Auto classes: then `scratch:raybm_rnn`, or a saved folder of one,
is built and loaded like any other model."""

from __future__ import annotations

from functools import cache


@cache
def register() -> None:
    """Called by what builds a model, before it asks an Auto class."""
    from transformers import (
        AutoConfig,
        AutoModel,
        AutoModelForCausalLM,
        AutoModelForImageClassification,
        AutoModelForSequenceClassification,
    )

    from raybm.models.cnn import CnnConfig, CnnForImageClassification
    from raybm.models.recurrent import RnnConfig, RnnForCausalLM, RnnForSequenceClassification
    from raybm.models.tabular import MlpConfig, MlpForTables
    from raybm.models.textcnn import TextCnnConfig, TextCnnForSequenceClassification

    for config in (RnnConfig, TextCnnConfig, MlpConfig, CnnConfig):
        AutoConfig.register(config.model_type, config)
    for model in (RnnForSequenceClassification, TextCnnForSequenceClassification, MlpForTables):
        AutoModelForSequenceClassification.register(model.config_class, model)
    AutoModelForImageClassification.register(CnnConfig, CnnForImageClassification)
    AutoModelForCausalLM.register(RnnConfig, RnnForCausalLM)
    for model in (RnnForSequenceClassification, TextCnnForSequenceClassification, MlpForTables, CnnForImageClassification):
        AutoModel.register(model.config_class, model)  # they have no headless form; `raybm plan` counts their weights
