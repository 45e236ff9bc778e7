"""Recurrent networks (LSTM: Hochreiter and Schmidhuber 1997; GRU: Cho et al. 2014) in transformers' interface: a classifier and a
language model to compare Transformers with."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import CausalLMOutput, SequenceClassifierOutput

CELLS = {"lstm": nn.LSTM, "gru": nn.GRU}


class RnnConfig(PreTrainedConfig):
    """`cell`: lstm or gru. `hidden_size` is the width of the embeddings and of the state in each direction."""

    model_type = "raybm_rnn"

    vocab_size: int = 8000
    hidden_size: int = 256
    num_hidden_layers: int = 1
    cell: str = "lstm"
    dropout: float = 0.2
    initializer_range: float = 0.1
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | None = None
    tie_word_embeddings: bool = False


class RnnModel(PreTrainedModel):
    """Embeddings and recurrent layers, which the two heads share. Sequences are padded and not packed (torch's packed sequences): half the
    time on a CPU."""

    config_class = RnnConfig
    base_model_prefix = ""

    def __init__(self, config: RnnConfig) -> None:
        super().__init__(config)
        self.embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = _layers(config)
        self.dropout = nn.Dropout(config.dropout)

    def get_input_embeddings(self) -> nn.Module:
        return self.embeddings

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, nn.RNNBase):
            for name, weight in module.named_parameters():
                if "bias" in name:
                    init.zeros_(weight)
                elif "weight_hh" in name:
                    init.orthogonal_(weight)
                else:
                    init.xavier_uniform_(weight)


def _layers(config: RnnConfig) -> nn.RNNBase:
    between = config.dropout if config.num_hidden_layers > 1 else 0.0
    layers: nn.RNNBase = CELLS[config.cell](
        config.hidden_size, config.hidden_size, config.num_hidden_layers, batch_first=True, dropout=between
    )
    return layers


class RnnForSequenceClassification(RnnModel):
    """A stack of layers for each direction (as ELMo: Peters et al. 2018), the largest value of each state over time (as InferSent: Conneau
    et al. 2017), a linear head."""

    def __init__(self, config: RnnConfig) -> None:
        super().__init__(config)
        self.layers_back = _layers(config)
        self.classifier = nn.Linear(2 * config.hidden_size, config.num_labels)
        self.post_init()

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, **_: Any) -> SequenceClassifierOutput:
        """`attention_mask`: 1 for tokens, 0 for the padding on their right."""
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        inputs = self.dropout(self.embeddings(input_ids))
        last_first = (mask.sum(1, keepdim=True) - 1 - torch.arange(input_ids.shape[1], device=mask.device)).clamp(min=0)
        back = inputs.gather(1, last_first[:, :, None].expand_as(inputs))
        states = torch.cat([self.layers(inputs)[0], self.layers_back(back)[0]], 2)
        largest = states.masked_fill(mask[:, :, None] == 0, torch.finfo(states.dtype).min).amax(1)
        return SequenceClassifierOutput(logits=self.classifier(self.dropout(largest)))


class RnnForCausalLM(RnnModel):
    """One direction, and the next token's logits from every state. Where positions start again within a row, so does the state:
    packed documents know nothing of each other. A GPU is waited for once a pass, to know how long the longest document is."""

    _tied_weights_keys = {"lm_head.weight": "embeddings.weight"}

    def __init__(self, config: RnnConfig) -> None:
        super().__init__(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def forward(self, input_ids: torch.Tensor, position_ids: torch.Tensor | None = None, **_: Any) -> CausalLMOutput:
        """Padding may stand on the right only, where it changes nothing before it."""
        inputs = self.dropout(self.embeddings(input_ids)).flatten(0, 1)
        places = torch.arange(len(inputs), device=inputs.device)
        starts = places % input_ids.shape[1] == 0
        if position_ids is not None:
            starts |= position_ids.flatten() == 0
        firsts, document = places[starts], starts.cumsum(0) - 1
        lengths = torch.diff(firsts, append=places.new_tensor([len(places)]))
        inside = places - firsts[document]
        apart = inputs.new_zeros(len(firsts), int(lengths.max()), inputs.shape[1]).index_put((document, inside), inputs)
        states = self.layers(apart)[0][document, inside].view(*input_ids.shape, -1)
        return CausalLMOutput(logits=self.lm_head(self.dropout(states)))
