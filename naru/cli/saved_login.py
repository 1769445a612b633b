"""The session that `naru login` keeps in the state folder, in a file that only its owner can read."""

from __future__ import annotations

import dataclasses
import json
import os
import time
from http import HTTPStatus
from pathlib import Path
from typing import Any

import aiohttp

from naru.cli.state import StateFolder, write_private

_EARLY_SECONDS = 30.0
_TIMEOUT_SECONDS = 30.0


class EdgeError(Exception):
    """The edge did not do what it was asked; the message says why.

    Args:
        status: That of its answer; 0 without one.
    """

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


class SessionOverError(Exception):
    """The session that was kept has ended, and is forgotten; the message says what to do."""


@dataclasses.dataclass(frozen=True, slots=True)
class SavedLogin:
    """A session: where, and its tokens, which the representation leaves out. `expire_time`: of the access token."""

    url: str
    access_token: str
    refresh_token: str
    expire_time: float

    def __repr__(self) -> str:
        return f"SavedLogin(url={self.url!r})"

    @classmethod
    def of(cls, url: str, given: dict[str, Any]) -> SavedLogin:
        """From what /api/auth/login answered just now. Raises EdgeError when that is something else."""
        try:
            lifetime = float(given["expires_in"])
            return cls(url, str(given["access_token"]), str(given["refresh_token"]), time.time() + lifetime)
        except (KeyError, TypeError) as error:
            raise EdgeError(f"{url} did not answer as an edge of Naru does.") from error


def base_url(folder: Path, url: str) -> str:
    """The edge, without a path: `url`, else where OPENAI_BASE_URL points, else this machine's own."""
    known = StateFolder(folder).read_dev_env().get("OPENAI_BASE_URL", "")
    chosen = url or os.environ.get("OPENAI_BASE_URL") or known or "http://127.0.0.1:8000"
    return chosen.rstrip("/").removesuffix("/v1")


def read(folder: Path) -> SavedLogin | None:
    """The session that is kept; None when there is none."""
    try:
        return SavedLogin(**json.loads(_file(folder).read_text()))
    except (OSError, ValueError, TypeError):
        return None


def write(folder: Path, saved: SavedLogin) -> None:
    """Keeps a session in place of the last one."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_private(_file(folder), json.dumps(dataclasses.asdict(saved)))


def forget(folder: Path) -> None:
    """Forgets the session, if one is kept."""
    _file(folder).unlink(missing_ok=True)


async def current_token(folder: Path) -> str:
    """An access token that is still good, refreshed where needed; empty when no session is kept.

    Raises SessionOverError, or EdgeError when nobody can tell.
    """
    saved = read(folder)
    if saved is None:
        return ""
    if time.time() < saved.expire_time - _EARLY_SECONDS:
        return saved.access_token
    try:
        given = await post(f"{saved.url}/api/auth/refresh", {"refresh_token": saved.refresh_token})
        saved = SavedLogin.of(saved.url, given)
    except EdgeError as error:
        if error.status == HTTPStatus.UNAUTHORIZED:
            forget(folder)
            raise SessionOverError(
                f"Your session at {saved.url} is over; `naru login` begins another. Until then commands use the key in dev.env,"
                " if there is one."
            ) from error
        if time.time() < saved.expire_time:
            return saved.access_token
        raise
    write(folder, saved)
    return saved.access_token


async def post(url: str, body: dict[str, Any]) -> dict[str, Any]:
    """What is answered to a JSON body. Raises EdgeError."""
    timeout = aiohttp.ClientTimeout(total=_TIMEOUT_SECONDS)
    try:
        async with aiohttp.ClientSession(timeout=timeout) as http, http.post(url, json=body) as response:
            answer: Any = await response.json()
    except TimeoutError as error:
        raise EdgeError(f"{url} did not answer in time.") from error
    except (aiohttp.ClientError, ValueError) as error:
        raise EdgeError(str(error) or f"{url} did not answer.") from error
    if response.status == HTTPStatus.OK and isinstance(answer, dict):
        return answer
    told = answer.get("error") if isinstance(answer, dict) else None
    message = told["message"] if isinstance(told, dict) and "message" in told else f"HTTP {response.status}"
    raise EdgeError(str(message), response.status)


def _file(folder: Path) -> Path:
    return folder / "login.json"
