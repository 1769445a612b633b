"""Reading tool calls and reasoning out of what a model writes, with vLLM's parsers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from msgspec.structs import replace

from inference.engine import ChoiceOutput, ToolCallDelta
from inference.output_merging import merge_outputs
from inference.vllm_compat import Vllm


class ChoiceParser:
    """Reads the outputs of one choice, in order.

    An answer that is not streamed is read in the same steps as one that is, so that both say the same.

    Args:
        parser: vLLM's parser, used for this choice only.
        request: vLLM's request, after its renderer has adjusted it.
        prompt_token_ids: The rendered prompt, which may end within reasoning.
        whole: Whether to hold back everything until the choice has ended.
    """

    def __init__(self, vllm: Vllm, parser: Any, request: Any, prompt_token_ids: Sequence[int], *, whole: bool) -> None:
        self._vllm = vllm
        self._parser = parser
        self._request = request
        self._prompt_token_ids = list(prompt_token_ids)
        self._whole = whole
        self._held: list[ChoiceOutput] = []
        self._generated: list[int] = []
        self._told: set[int] = set()
        self._counts_reasoning = parser.reasoning_parser is not None
        self._named = not isinstance(request.tool_choice, str | None)

    def read(self, output: ChoiceOutput, token_ids: Sequence[int]) -> ChoiceOutput | None:
        """The output as its reader should have it; None while it is held back.

        Args:
            output: What the engine put out, with the model's raw text.
            token_ids: The tokens it is made of.
        """
        finished = bool(output.finish_reason)
        message = self._parser.parse_delta(
            output.text, list(token_ids), self._request, self._prompt_token_ids, finished=finished
        )
        if self._counts_reasoning:
            self._generated.extend(token_ids)
        read = replace(
            output,
            text=(message.content or "") if message else "",
            reasoning=(message.reasoning or "") if message else "",
            tool_calls=self._tool_calls(message.tool_calls) if message and message.tool_calls else (),
        )
        if not self._request.include_reasoning:
            # The tokens of hidden reasoning would tell it.
            read = replace(read, logprobs=(), token_ids=())
        if finished:
            read = self._ended(read)
        if not self._whole:
            return read
        self._held.append(read)
        return merge_outputs(self._held) if finished else None

    def _ended(self, output: ChoiceOutput) -> ChoiceOutput:
        calls = output.finish_reason == "stop" and self._told and not self._named
        return replace(
            output,
            # OpenAI says "stop" where the caller named the tool itself.
            finish_reason="tool_calls" if calls else output.finish_reason,
            reasoning_tokens=self._parser.count_reasoning_tokens(self._generated) if self._counts_reasoning else 0,
        )

    def _tool_calls(self, pieces: Sequence[Any]) -> tuple[ToolCallDelta, ...]:
        """The pieces, each call's id and name with its first one only."""
        read = []
        for piece in pieces:
            if piece.index > 0 and self._request.parallel_tool_calls is False:
                continue
            function = piece.function
            arguments = (function.arguments if function else None) or ""
            if piece.index in self._told:
                if arguments:
                    read.append(ToolCallDelta(piece.index, arguments=arguments))
                continue
            self._told.add(piece.index)
            call_id = piece.id or self._vllm.make_tool_call_id()
            read.append(ToolCallDelta(piece.index, call_id, (function.name if function else None) or "", arguments))
        return tuple(read)


class Parsers:
    """Makes the parsers of requests.

    Args:
        renderer: vLLM's OnlineRenderer, which knows the parser's class.
        tokenizer: The model's.
        model_config: The engine's.
    """

    def __init__(self, vllm: Vllm, renderer: Any, tokenizer: Any, model_config: Any) -> None:
        self._vllm = vllm
        self._renderer = renderer
        self._tokenizer = tokenizer
        self._model_config = model_config
        self._class = renderer.parser

    @property
    def tool_calls(self) -> bool:
        """Whether tools can be called."""
        return self._class is not None and self._class.tool_parser_cls is not None

    def wanted(self, request: Any) -> bool:
        """Whether an answer to this chat request, which its renderer has adjusted, has to be read by a parser."""
        if self._class is None:
            return False
        if self._class.reasoning_parser_cls is not None:
            return True
        # Newer parsers also take the markup out of an answer whose calls nobody wants.
        strips = self._class.tool_parser_cls.engine_based_streaming
        return bool(request.tools) and (request.tool_choice != "none" or strips)

    def make(self, request: Any, prompt_token_ids: Sequence[int], *, whole: bool) -> ChoiceParser:
        """A parser for one choice."""
        parser = self._new(request)
        return ChoiceParser(self._vllm, parser, request, prompt_token_ids, whole=whole)

    def tell_engine(self, core_request: Any, request: Any) -> None:
        """Tells the engine whether reasoning comes before what a grammar is for."""
        parser = self._new(request)
        if parser.reasoning_parser is None:
            return
        core_request.reasoning_ended = request.resolve_reasoning_ended(
            parser, list(core_request.prompt_token_ids or ())
        )
        core_request.reasoning_parser_kwargs = {"chat_template_kwargs": self._template_arguments(request)}

    def _new(self, request: Any) -> Any:
        return self._class(
            self._tokenizer,
            request.tools,
            chat_template_kwargs=self._template_arguments(request),
            model_config=self._model_config,
        )

    def _template_arguments(self, request: Any) -> dict[str, Any]:
        return dict(self._renderer.effective_chat_template_kwargs(request))
