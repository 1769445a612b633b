"""OpenAI's Responses API without state, translated at the edge into the body of a chat completion and back."""
