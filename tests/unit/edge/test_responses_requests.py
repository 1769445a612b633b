"""Items of the Responses API as messages."""

from __future__ import annotations

from edge.responses.conversation import Item, Part, chat_messages

QUESTION = Item(role="user", content="And now?")
ANSWER = Item(role="assistant", content="Paris.")
CALL = Item(type="function_call", call_id="c1", name="f", arguments="{}")


def thought(text: str) -> Item:
    return Item(type="reasoning", content=[Part("reasoning_text", text)])


def test_reasoning_belongs_to_the_turn_it_stands_before() -> None:
    """What an answer that was cut short had thought is no thought of a later answer."""
    kept = chat_messages([QUESTION, thought("Let me see."), ANSWER])
    assert kept[1] == {"role": "assistant", "content": "Paris.", "reasoning": "Let me see."}
    cut = chat_messages([thought("Let me"), QUESTION, ANSWER])
    assert cut == [{"role": "user", "content": "And now?"}, {"role": "assistant", "content": "Paris."}]


def test_reasoning_before_a_call_of_the_same_turn() -> None:
    """It is kept, after what the turn began with."""
    (turn,) = chat_messages([thought("One. "), ANSWER, thought("Two."), CALL])
    assert turn["reasoning"] == "One. Two."
    assert [call["id"] for call in turn["tool_calls"]] == ["c1"]
