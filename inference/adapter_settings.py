"""How the configuration names adapters and their folders."""

from __future__ import annotations

from pathlib import Path


def read_adapters(entries: tuple[str, ...]) -> dict[str, str]:
    """Paths by name, of entries `name=path`. Raises ValueError for what is none, or a name given twice."""
    adapters: dict[str, str] = {}
    for entry in entries:
        name, _, path = (part.strip() for part in entry.partition("="))
        if not name or not path:
            raise ValueError(f"has {entry!r}, which is not of the form name=path")
        if name in adapters:
            raise ValueError(f"names {name!r} twice")
        adapters[name] = path
    return adapters


def adapter_roots(roots: tuple[str, ...]) -> tuple[Path, ...]:
    """The folders as paths. Raises ValueError for one that is not absolute."""
    for root in roots:
        if not Path(root).is_absolute():
            raise ValueError(f"has {root!r}, which is not absolute")
    return tuple(map(Path, roots))
