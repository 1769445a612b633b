"""Anthropic's Messages API, translated at the edge into the body of a chat completion and back."""
