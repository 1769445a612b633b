"""A sink that remembers what an engine told it, and the requests to give an engine."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from inference.engine import ChoiceOutput, Engine, EngineHandle, EngineRequest, InputKind


def openai_request(kind: InputKind, *, cap: int | None = None, **body: Any) -> EngineRequest:
    """An OpenAI request with this body; its `stream` is the body's."""
    return EngineRequest(
        kind=kind,
        model="model",
        stream=body.get("stream") is True,
        output_token_cap=cap,
        openai_json=json.dumps(body).encode(),
    )


class Heard:
    """What a request's sink heard."""

    def __init__(self) -> None:
        self.outputs: list[ChoiceOutput] = []
        self._changed = asyncio.Event()

    def __call__(self, output: ChoiceOutput) -> None:
        """The sink."""
        self.outputs.append(output)
        self._changed.set()

    @property
    def ends(self) -> list[ChoiceOutput]:
        """The last outputs of choices."""
        return [output for output in self.outputs if output.finish_reason]

    async def until_outputs(self, count: int, patience: float = 30.0) -> None:
        """Waits for `count` outputs."""
        async with asyncio.timeout(patience):
            while len(self.outputs) < count:
                await self._next()

    async def until_ends(self, count: int, patience: float = 60.0) -> None:
        """Waits for the ends of `count` choices."""
        async with asyncio.timeout(patience):
            while len(self.ends) < count:
                await self._next()

    def text(self, choice: int = 0) -> str:
        """All text of a choice."""
        return "".join(output.text for output in self.outputs if output.choice_index == choice)

    async def _next(self) -> None:
        self._changed.clear()
        await self._changed.wait()


async def begin(engine: Engine, request: EngineRequest) -> tuple[Heard, EngineHandle]:
    """Prepares and submits a request."""
    heard = Heard()
    return heard, await engine.submit(await engine.prepare(request), heard)


async def complete(engine: Engine, request: EngineRequest) -> Heard:
    """Runs a request to the end of all its choices."""
    prepared = await engine.prepare(request)
    heard = Heard()
    await engine.submit(prepared, heard)
    await heard.until_ends(prepared.choices)
    return heard
