"""Writes docs/configuration.md from the services' configuration classes: `python -m naru.cli.configuration_docs`."""

from __future__ import annotations

import dataclasses
import importlib
import sys
from pathlib import Path

from naru.config import ServiceConfig, variable

_HEAD = """# Configuration

Every setting is an environment variable, or a field in a TOML file given by `--config` to `python -m <service>` (`make up`
reads variables alone): `[edge]`, `[authsvc]`, `[accounting]`, `[inference]` for a service's own, `[naru]` for the shared
ones, the name in lower case without its prefix.
Variables win. An unknown name is an error. A secret's variable can also name a file that holds it, with `_FILE` at its end.
Traces go where OpenTelemetry's own `OTEL_EXPORTER_OTLP_ENDPOINT`, or `OTEL_EXPORTER_OTLP_TRACES_ENDPOINT`, says; without
either there are none. This page is written by `make configuration-docs`.

`make up` takes all of these from its own environment, and chooses ports, databases and secrets itself where they are not
set. It also knows `NARU_UP_STATE` (folder of its state, default `.naru`), `NARU_UP_REDIS_PORT` (default 50064) and, when
installing, `NARU_UP_ENGINE` (`cpu`, `cuda`, `none`). `make up MODEL=<hub id or path>` sets `NARU_INFERENCE_MODEL`; requests call
the model by its hub id or the name of its directory, unless `NARU_INFERENCE_SERVED_MODEL_NAME` says otherwise.
`make up EMBEDDINGS=1`, or `EMBEDDINGS=<hub id or path>`, starts a second inference process with an embedding model, by
`NARU_UP_EMBEDDINGS` (its path or hub id), `NARU_UP_EMBEDDINGS_PORT` (default 50054) and `NARU_UP_EMBEDDINGS_OPS_PORT`
(default 50065). Its other settings are those of inference, but for what is about one model.
"""
_TIERS = """
## Tiers

`NARU_ACCOUNTING_TIERS_FILE` names a TOML file with a table for each tier. It replaces a tier of the same name that is built
in or was made at run time, and cannot be changed at run time itself:

```toml
[free]
limits = [
  { kind = "requests", window = "minute", limit = 20 },
  { kind = "total_tokens", window = "hour", limit = 100000 },
  { kind = "concurrency", limit = 2 },
  { scope = "workspace", kind = "cost", window = "month", limit = 5000000000, soft_thresholds = [80, 95] },
]
# Generated tokens per choice where a limit on them or on money applies and the caller set none; also sent to the engine.
default_output_tokens = 1024
```

Kinds: `requests`, `input_tokens`, `output_tokens`, `total_tokens`, `cost` (in billionths of the currency), each with a window:
`minute`, `hour`, `day`, `month` or `total` (all time); and `concurrency`, which has none. Scopes: `key`, `user`, `workspace`,
`address`, `tier`; left out: the API key, else the user, else the workspace. Further: `model`, of one served model alone;
`shadow = true`, count but never refuse; `soft_thresholds`, percentages whose crossing is logged and counted.
"""


def render() -> str:
    """The page."""
    parts = [_HEAD]
    shared: dict[str, str] = {}
    for service in ("edge", "authsvc", "accounting", "inference"):
        module = importlib.import_module(f"{service}.config")
        (kind,) = [
            value
            for value in vars(module).values()
            if isinstance(value, type) and issubclass(value, ServiceConfig) and value is not ServiceConfig
        ]
        rows = []
        for field in dataclasses.fields(kind):
            row = _row(kind, field)
            if field.metadata["shared"]:
                shared[field.name] = row
            else:
                rows.append(row)
        parts.append(_table(service, rows))
    parts.insert(1, _table("Shared", list(shared.values())))
    return "".join([*parts, _TIERS])


def _table(title: str, rows: list[str]) -> str:
    return "\n".join([f"\n## {title}\n", "| variable | default | what it is |", "| --- | --- | --- |", *rows, ""])


def _row(kind: type[ServiceConfig], field: dataclasses.Field[object]) -> str:
    default = ",".join(field.default) if isinstance(field.default, tuple) else field.default
    shown = f"`{default}`" if str(default) not in ("", "None") else ""
    secret = " Secret." if field.metadata["secret"] else ""
    return f"| `{variable(kind, field)}` | {shown} | {field.metadata['documentation']}{secret} |"


def main() -> int:
    """Writes the page, or with --check says whether it is what the code says."""
    page = Path("docs/configuration.md")
    if "--check" in sys.argv:
        current = page.exists() and page.read_text() == render()
        print("docs/configuration.md is current" if current else "run make configuration-docs and commit")
        return 0 if current else 1
    page.write_text(render())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
