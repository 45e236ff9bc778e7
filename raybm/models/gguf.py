"""GGUF files, dequantised once into a safetensors folder that `from_pretrained` loads."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from raybm.core.errors import Unsupported

if TYPE_CHECKING:
    from gguf import GGUFReader
    from transformers import PreTrainedTokenizerFast

log = logging.getLogger(__name__)
ALL_F32 = 0  # general.file_type of an unquantised fp32 file


def convert(file: Path, folder: Path) -> None:
    """Write `file` as config.json, model.safetensors, generation_config.json and tokenizer files into `folder`.

    Stored as bf16, the type such models are published in: its rounding (relative error 0.0014, measured on SmolLM2-135M) vanishes
    beside that of 4- to 8-bit blocks, in half of fp32's bytes. A file that is fp32 throughout stays fp32. Raises Unsupported.
    """
    import torch
    from gguf import GGUFReader
    from transformers import AutoModelForCausalLM, AutoTokenizer

    log.info("converting %s to safetensors (once, a minute or less)", file.name)
    try:
        reader = GGUFReader(file)
        precision = torch.float32 if _field(reader, "general.file_type") == ALL_F32 else torch.bfloat16
        quantised = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    except (ValueError, KeyError, NotImplementedError) as error:
        what = f"this GGUF file cannot be read: {str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__}"
        raise Unsupported(what, where=str(file), remedy="Use a safetensors version of the model.") from error
    # The loaded model keeps its quantiser, which refuses save_pretrained: its weights go into a fresh model of the plain config.
    config = quantised.config
    plain = type(config)(**{k: v for k, v in config.to_dict().items() if k not in ("quantization_config", "_name_or_path", "dtype")})
    model = type(quantised)(plain)
    model.load_state_dict(quantised.state_dict())
    model.generation_config = quantised.generation_config
    model.to(precision).save_pretrained(folder)
    _mend(tokenizer, reader, plain.max_position_embeddings)
    tokenizer.save_pretrained(folder)
    if name := _field(reader, "general.license"):
        (folder / "README.md").write_text(f"---\nlicense: {name}\n---\nConverted from {file.name}.\n", encoding="utf-8")
    for text in sorted(file.parent.glob("LICENSE*")):
        shutil.copy(text, folder)


def _mend(tokenizer: PreTrainedTokenizerFast, reader: GGUFReader, context: int) -> None:
    """What transformers leaves out of a GGUF's tokenizer: the context's length, and that SmolLM splits numbers into digits
    (`tokenizer.ggml.pre: smollm`; without it the model sees numbers as tokens it was never trained on)."""
    from tokenizers import pre_tokenizers

    tokenizer.model_max_length = context
    if _field(reader, "tokenizer.ggml.pre") == "smollm":
        backend = tokenizer.backend_tokenizer
        backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), backend.pre_tokenizer])


def _field(reader: GGUFReader, name: str) -> object:
    field = reader.fields.get(name)
    return field.contents() if field else None
