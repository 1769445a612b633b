"""/openapi.json, and /docs: a page of our own that renders it, without anything from elsewhere."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence

import msgspec
from aiohttp import web

from edge.openapi import document
from edge.routes.platform import Row

_STYLE = """
:root { color-scheme: light dark; font-family: system-ui, sans-serif; line-height: 1.5; }
body { max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
section { border: 1px solid #8884; border-radius: .5rem; margin: 1rem 0; padding: .5rem 1rem; }
h2 { font-size: 1.1rem; } .method { font-weight: 700; } code, pre { font-family: ui-monospace, monospace; }
pre { overflow: auto; background: #8881; padding: .75rem; border-radius: .5rem; }
table { border-collapse: collapse; width: 100%; } td { border-top: 1px solid #8884; padding: .25rem .5rem;
vertical-align: top; }
"""
_SCRIPT = """
const make = (tag, text, parent, name) => {
  const element = document.createElement(tag);
  element.textContent = text;
  if (name) element.className = name;
  parent.append(element);
  return element;
};
// Prose: what stands between backticks is code.
const say = (tag, text, parent) => {
  const element = make(tag, "", parent);
  text.split("`").forEach((part, place) => (place % 2 ? make("code", part, element) : element.append(part)));
};
const row = (table, name, text) => {
  const line = make("tr", "", table);
  make("code", name, make("td", "", line));
  say("td", text, line);
};
const resolve = (api, schema) =>
  schema && schema.$ref ? api.components.schemas[schema.$ref.split("/").pop()] : schema;
fetch("/openapi.json").then((answer) => answer.json()).then((api) => {
  const page = document.getElementById("api");
  make("h1", api.info.title + " " + api.info.version, page);
  make("p", api.info.description, page);
  for (const [path, methods] of Object.entries(api.paths)) {
    for (const [method, operation] of Object.entries(methods)) {
      const section = make("section", "", page);
      const heading = make("h2", "", section);
      make("span", method.toUpperCase() + " ", heading, "method");
      make("code", path, heading);
      say("p", operation.description || operation.summary, section);
      const content = operation.requestBody && operation.requestBody.content["application/json"];
      const schema = content && resolve(api, content.schema);
      if (schema) {
        const table = make("table", "", section);
        for (const [name, field] of Object.entries(schema.properties || {})) {
          row(table, name + ((schema.required || []).includes(name) ? " *" : ""), field.description || "");
        }
        if (content.example) make("pre", JSON.stringify(content.example, null, 2), section);
      }
      const answers = make("table", "", section);
      for (const [code, answer] of Object.entries(operation.responses)) row(answers, code, answer.description);
    }
  }
});
"""


def _source(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


_PAGE = (
    '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Naru API</title>'
    '<meta name="viewport" content="width=device-width">'
    f'<style>{_STYLE}</style></head><body><main id="api"></main><script>{_SCRIPT}</script></body></html>'
)
_POLICY = (
    f"default-src 'none'; connect-src 'self'; script-src {_source(_SCRIPT)}; style-src {_source(_STYLE)};"
    " base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


class DocsRoutes:
    """Shows the API. `aliases`: canonical path by the other names it answers to; `rows`: the platform's own routes."""

    def __init__(self, aliases: dict[str, str], rows: Sequence[Row]) -> None:
        self._document = msgspec.json.encode(document(aliases, rows))

    async def openapi(self, _request: web.Request) -> web.Response:
        """The OpenAPI 3.1 document."""
        return web.Response(body=self._document, content_type="application/json")

    async def docs(self, _request: web.Request) -> web.Response:
        """The page."""
        return web.Response(
            text=_PAGE, content_type="text/html", charset="utf-8", headers={"Content-Security-Policy": _POLICY}
        )
