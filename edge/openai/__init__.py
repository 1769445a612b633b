"""OpenAI's wire shapes, pure: bytes in, dataclasses out; events in, bytes out."""
