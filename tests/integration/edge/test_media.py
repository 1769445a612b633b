"""What is no text is refused by name, and nobody ever looks where it points to."""

from __future__ import annotations

from pathlib import Path

import httpx

from tests.support.media import listening, media_bodies
from tests.support.simulated_edge import MODEL, simulated_edge


async def test_no_address_is_ever_asked(tmp_path: Path) -> None:
    """Images, sound, video and files, by whatever URL and in whichever API: a 400 that names the part, and no connection."""
    async with (
        listening() as listener,
        simulated_edge(tmp_path) as service,
        httpx.AsyncClient(base_url=service.url, headers={"Authorization": f"Bearer {service.key}"}) as client,
    ):
        for url in listener.urls():
            for path, body, field in media_bodies(url):
                answer = await client.post(path, json={"model": MODEL} | body)
                assert answer.status_code == 400, (path, body, answer.text)
                error = answer.json()["error"]
                assert (error.get("param") or error["message"]).startswith(field), (path, body, error)
        assert listener.connections == 0
        # It would have noticed.
        await client.get(listener.urls()[0])
        assert listener.connections == 1
