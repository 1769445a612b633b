"""Who is calling and what they may do: API keys, their workspaces, and the invalidations caches listen to."""
