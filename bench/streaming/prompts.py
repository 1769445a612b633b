"""What longer prompts take: whole answers of one token, one after the other, by the number of tokens before it.

`python -m bench.streaming.prompts`: the simulated engine only counts a prompt's words: this is what all around an engine takes.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Sequence
from itertools import cycle, islice

import uvloop

from bench.cpu import Meter
from bench.load import percentile
from bench.streaming.client import Answer, Client, request_of
from bench.streaming.contestants import Contestant, naru
from bench.streaming.report import Effort, Table, markdown, options
from inference.simulated_text import WORDS, pieces

SIZES = (10, 100, 1_000, 10_000, 100_000)
_ROOM_TOKENS = 1_000


def prompt(tokens: int) -> str:
    """A text that the simulated engine counts as so many tokens: it takes a word of up to eight characters for one."""
    return " ".join(islice(cycle(word for word in WORDS if len(pieces(word)) == 1), tokens))


async def ask_for(contestant: Contestant, tokens: int, seconds: float) -> dict[str, float]:
    """Asks with a prompt of so many tokens, again and again for so long, but at least once."""
    body = contestant.body(1, stream=False) | {"messages": [{"role": "user", "content": prompt(tokens)}]}
    request = request_of(contestant.url, contestant.key, body)
    answers: list[Answer] = []
    async with Client(contestant.url) as client:
        await client.open(1)
        meter = Meter({"edge": contestant.pids["edge"], "inference": contestant.engine})
        started = time.monotonic()
        while not answers or time.monotonic() < started + seconds:
            answers.append(await client.ask(request, Answer(time.monotonic())))
        taken = meter.taken()
    durations = sorted(answer.end - answer.due for answer in answers if answer.end)
    return {
        "p50, ms": percentile(durations, 0.5) * 1e3 if durations else float("nan"),
        "edge, ms of CPU": taken["edge"] / len(answers) * 1e3,
        "inference, ms of CPU": taken["inference"] / len(answers) * 1e3,
        "request, KiB": len(request) / 1024,
        "failed": sum(answer.failed(1) for answer in answers),
    }


def measure(effort: Effort, *, sizes: Sequence[int] = SIZES) -> list[Table]:
    """Time and CPU of a request with so many tokens of prompt."""
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    with naru(0.0, {"NARU_INFERENCE_SIMULATED_CONTEXT_TOKENS": str(max(sizes) + _ROOM_TOKENS)}) as contestant:
        for number in range(effort.rounds + 1):
            for size in sizes:
                seconds = effort.seconds if number else 1  # the first one warms up
                figures = uvloop.run(ask_for(contestant, size, seconds))
                for name, figure in figures.items() if number else ():
                    found[f"{size:,} tokens"][name].append(figure)
    title = "Prompts: whole answers of one token, one request after the other"
    return [Table("growth-prompts", title, found, ["p50, ms", "edge, ms of CPU"])]


def main() -> None:
    """The command."""
    parser = options(__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES), help="tokens of a prompt")
    given = parser.parse_args()
    for table in measure(Effort(given.rounds, given.seconds), sizes=given.sizes):
        print(markdown(table))


if __name__ == "__main__":
    main()
