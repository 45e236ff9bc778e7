"""What a folder's config says of what the model can do."""

import json

import pytest

from raybm.core.errors import NotFound, Unsupported
from raybm.core.signature import Signature
from raybm.models.signature import infer_signature, positions


def folder(path, files):
    for name, content in files.items():
        (path / name).write_text(json.dumps(content))
    return path


@pytest.mark.parametrize(
    ("config", "problem", "protocols", "length"),
    [
        ({"architectures": ["LlamaForCausalLM"], "max_position_embeddings": 8192}, "causal_lm", ("generates",), 8192),
        ({"architectures": ["GPT2LMHeadModel"], "n_positions": 1024}, "causal_lm", ("generates",), 1024),
        ({"architectures": ["BertModel"], "max_position_embeddings": 512}, "embedding", ("embeds",), 512),
        ({"architectures": ["BertForMaskedLM"], "max_position_embeddings": 512}, "embedding", ("embeds",), 512),
        (
            {
                "architectures": ["RobertaForSequenceClassification"],
                "model_type": "roberta",
                "max_position_embeddings": 514,
                "pad_token_id": 1,
            },
            "text_classification",
            ("predicts",),
            512,
        ),
    ],
)
def test_architectures(tmp_path, config, problem, protocols, length):
    signature = infer_signature(folder(tmp_path, {"config.json": config}))
    assert (signature.problem, signature.protocols, signature.max_length) == (problem, protocols, length)


def test_labels_stand_in_the_order_of_the_logits(tmp_path):
    names = {str(number): f"label {number}" for number in reversed(range(12))}
    config = {"architectures": ["BertForSequenceClassification"], "id2label": names}
    assert infer_signature(folder(tmp_path, {"config.json": config})).labels == tuple(f"label {number}" for number in range(12))


def test_the_tokenizer_and_sentence_transformers_may_allow_less(tmp_path):
    config = {"architectures": ["BertModel"], "max_position_embeddings": 512}
    files = {
        "config.json": config,
        "tokenizer_config.json": {"model_max_length": 1e30},
        "sentence_bert_config.json": {"max_seq_length": 256},
    }
    assert infer_signature(folder(tmp_path, files)).max_length == 256
    assert positions(tmp_path) == 512


def test_signature_json_has_the_last_word(tmp_path):
    own = Signature(problem="causal_lm", protocols=("generates",), inputs=("prompt",), outputs=("text",), max_length=7)
    own.write(folder(tmp_path, {"config.json": {"architectures": ["BertModel"]}}))
    assert infer_signature(tmp_path) == own


def test_what_raybm_does_not_know(tmp_path):
    with pytest.raises(NotFound):
        infer_signature(tmp_path)
    with pytest.raises(Unsupported, match="T5ForConditionalGeneration"):
        infer_signature(folder(tmp_path, {"config.json": {"architectures": ["T5ForConditionalGeneration"]}}))


def test_a_classifiers_head_says_what_it_answers(tmp_path):
    config = {"architectures": ["BertForSequenceClassification"], "id2label": {"0": "x"}}
    assert infer_signature(folder(tmp_path, {"config.json": config})).problem == "regression"
    several = infer_signature(folder(tmp_path, {"config.json": config | {"problem_type": "multi_label_classification"}}))
    assert (several.problem, several.outputs, several.labels) == ("text_classification", ("labels", "scores"), ("x",))
