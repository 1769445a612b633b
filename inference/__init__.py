"""The inference service: the engine in this process, and what makes it answer, count and stop well."""
