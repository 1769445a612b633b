"""A language model that takes next to no time: one small layer with weights from chance, and a tokenizer of its own.

Every token but two is a piece of plain ASCII text, so that no stream waits for the rest of a character.
"""

from __future__ import annotations

import json
from pathlib import Path

from tests.support.platform import ROOT

TOKENS = 1024
"""Of the vocabulary. The first two are for control, and no text."""
CONTROL = ("<|begin|>", "<|end|>")
_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}assistant:"
)
_CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "dtype": "float32",
    "hidden_act": "silu",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    # The smallest that vLLM's attention on a CPU takes.
    "head_dim": 32,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
    "vocab_size": TOKENS,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
_TOKENIZER_CONFIG = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "bos_token": CONTROL[0],
    "eos_token": CONTROL[1],
    "clean_up_tokenization_spaces": False,
    "chat_template": _TEMPLATE,
}


def make_tiny_model(folder: Path) -> None:
    """Writes all of it but weights, which vLLM makes up with `load_format="dummy"`. Takes a second."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    text = "".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").glob("*.md")))
    trainer = trainers.BpeTrainer(vocab_size=TOKENS, special_tokens=list(CONTROL), show_progress=False)
    tokenizer.train_from_iterator([text.encode("ascii", "ignore").decode()], trainer)
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "config.json").write_text(json.dumps(_CONFIG))
    (folder / "tokenizer_config.json").write_text(json.dumps(_TOKENIZER_CONFIG))
