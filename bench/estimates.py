"""How well the edge estimates prompts before anybody tokenises them: by kind of text and by tokenizer.

`python -m bench.estimates` prints a table; `docs/reports/estimates.md` is one of them. No engine runs: a prompt is one chat
message, rendered and tokenised as the engine does it, by the model's own chat template.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from edge.openai.requests import parse_chat

ROOT = Path(__file__).parents[1]
MODEL_FOLDER = ROOT / ".naru/models/smollm2-135m-instruct"
# From a word to several pages; so many prompts of each length, cut out of the texts at even distances.
_LENGTHS = (8, 16, 32, 64, 128, 256, 512, 1_024, 2_048, 4_096)
_CUTS = 40

Count = Callable[[str], int]
"""How many tokens the prompt has that asks with this text."""


@dataclass(frozen=True, slots=True)
class Row:
    """What one kind of text came to. Shares are fractions; an over-estimate of 0.5 is half of the tokens too many.

    Attributes:
        twice: Prompts that were estimated too low, and have to reserve again.
        median: Over-estimate of the middle prompt.
        highest: Over-estimate that 95 % of the prompts stay below.
    """

    tokenizer: str
    kind: str
    prompts: int
    twice: float
    median: float
    highest: float


@dataclass(frozen=True, slots=True)
class Text:
    """A long text to cut prompts out of, and whether its clients write JSON that escapes what is not ASCII."""

    content: str
    escaped: bool = False


def corpus() -> dict[str, Text]:
    """Texts by kind, from this repository."""
    english = _read("README.md", "CONTRIBUTING.md", "docs/*.md", "docs/adr/*.md")
    korean = "".join(line for line in _read("README.ko.md").splitlines(keepends=True) if _is_korean(line))
    code = _read("edge/*.py", "accounting/limiter/*.lua", "proto/naru/api/accounting/v1/*.proto")
    return {
        "English": Text(english),
        "Korean": Text(korean),
        r"Korean, as \u escapes": Text(korean, escaped=True),
        "code": Text(code),
    }


def _read(*patterns: str) -> str:
    return "\n".join(path.read_text() for pattern in patterns for path in sorted(ROOT.glob(pattern)))


def _is_korean(line: str) -> bool:
    return any("가" <= character <= "힣" for character in line)


def prompts(text: str) -> Iterator[str]:
    """Pieces of many lengths, from all over the text."""
    for length in _LENGTHS:
        last = max(len(text) - length, 0)
        for start in sorted({last * cut // _CUTS for cut in range(_CUTS)}):
            yield text[start : start + length]


def smollm2() -> Count:
    """The default model: 49 thousand tokens, made for English."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(MODEL_FOLDER)

    def count(text: str) -> int:
        chat = [{"role": "user", "content": text}]
        return len(tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False))

    return count


def tekken() -> Count:
    """Mistral's: 131 thousand tokens of many languages; it comes with vLLM."""
    from mistral_common.protocol.instruct.messages import UserMessage
    from mistral_common.protocol.instruct.request import ChatCompletionRequest
    from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

    tokenizer = MistralTokenizer.from_file(str(files("mistral_common") / "data/tekken_240911.json"))

    def count(text: str) -> int:
        return len(tokenizer.encode_chat_completion(ChatCompletionRequest(messages=[UserMessage(content=text)])).tokens)

    return count


TOKENIZERS: dict[str, Callable[[], Count]] = {"SmolLM2 (49,152)": smollm2, "Tekken (131,072)": tekken}


def measure(tokenizer: str, count: Count) -> Iterator[Row]:
    """A row for each kind of text."""
    for kind, text in corpus().items():
        over = [estimate / exact - 1 for estimate, exact in _sizes(text, count)]
        twice = sum(one < 0 for one in over) / len(over)
        yield Row(tokenizer, kind, len(over), twice, statistics.median(over), statistics.quantiles(over, n=20)[-1])


def _sizes(text: Text, count: Count) -> Iterator[tuple[int, int]]:
    """What is estimated for each prompt, and how many tokens it has."""
    for prompt in prompts(text.content):
        chat = {"model": "m", "messages": [{"role": "user", "content": prompt}]}
        body = json.dumps(chat, ensure_ascii=text.escaped).encode()
        yield parse_chat(body).input_tokens, count(prompt)


def table(rows: list[Row]) -> str:
    """The rows as Markdown."""
    lines = [
        "| tokenizer (its tokens) | text | prompts | reserved twice | median over-estimate | 95 % below |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
    ]
    lines += [
        f"| {row.tokenizer} | {row.kind} | {row.prompts} | {row.twice:.1%} | {row.median:.0%} | {row.highest:.0%} |"
        for row in rows
    ]
    return "\n".join(lines)


def main() -> None:
    """Measures and prints."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    rows = [row for name, load in TOKENIZERS.items() for row in measure(name, load())]
    print(table(rows))


if __name__ == "__main__":
    main()
