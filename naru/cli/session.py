"""How commands reach the services: addresses and a key from the environment, a log-in, else from `.naru/dev.env`."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import typer

from naru import access_token
from naru.balancing import Target, target_of
from naru.cli import saved_login
from naru.cli.state import StateFolder
from naru.client import ServiceClient
from naru.errors import NaruError
from naru.identity import ServiceName, ServiceTokens

Result = TypeVar("Result")
_PAGE_TIMEOUT_SECONDS = 30.0


def run(
    service: str, work: Callable[[ServiceClient], Awaitable[Result]], *, operator: bool = False, address: str = ""
) -> Result:
    """Calls `service` as the owner of OPENAI_API_KEY or as who logged in, or as the operator by the service token.

    At `address`, or where the variables say. Errors end the command.
    """

    async def call() -> Result:
        client = await _client(service, operator=operator, address=address)
        try:
            return await work(client)
        finally:
            await client.close()

    try:
        return asyncio.run(call())
    except NaruError as error:
        typer.secho(f"{service}: {error.message}", fg="red", err=True)
        raise typer.Exit(1) from error


async def pages(client: ServiceClient, method: Any, request: Any) -> AsyncIterator[Any]:
    """All pages of a list, each a response of the stub's `method`. Raises NaruError."""
    while True:
        response = await client.call(method, request, timeout=_PAGE_TIMEOUT_SECONDS)
        yield response
        if not response.next_page_token:
            return
        request.page_token = response.next_page_token


def replicas() -> list[str]:
    """host:port of each inference replica, at least one: NARU_INFERENCE_ADDRESSES."""
    return [part.strip() for part in _address("inference", "NARU_INFERENCE_ADDRESSES").split(",")]


def _address(service: str, name: str) -> str:
    address = os.environ.get(name) or StateFolder(state_folder()).read_dev_env().get(name)
    if not address:
        typer.secho(f"Set {name} to the host:port of {service}, or run this where `naru up` runs.", fg="red", err=True)
        raise typer.Exit(2)
    return address


def _target(service: str, address: str) -> Target:
    """One address, or all replicas of the one service that can have several behind it."""
    if service != "authsvc":
        return Target(address)
    try:
        return target_of(address)
    except ValueError as error:
        typer.secho(f"NARU_AUTHSVC_ADDRESS: {error}", fg="red", err=True)
        raise typer.Exit(2) from error


async def _client(service: str, *, operator: bool, address: str) -> ServiceClient:
    address = address or _address(service, f"NARU_{service.upper()}_ADDRESS")
    target = _target(service, address)
    if operator:
        folder = Path(os.environ.get("NARU_SERVICE_TOKENS_DIR") or state_folder() / "secrets")
        try:
            token = ServiceTokens.read(folder).of(ServiceName.OPERATOR)
        except (ValueError, OSError) as error:
            typer.secho(f"{folder}: {error}", fg="red", err=True)
            raise typer.Exit(2) from error
        return ServiceClient(target, name=service, service_token=token)
    credential = os.environ.get("OPENAI_API_KEY", "").strip() or await _token()
    credential = credential or StateFolder(state_folder()).read_dev_env().get("OPENAI_API_KEY", "").strip()
    if not credential:
        typer.secho(
            "Set OPENAI_API_KEY to your key, `naru login`, or run this where `naru up` runs.", fg="red", err=True
        )
        raise typer.Exit(2)
    try:
        access_token.check_credential(credential)
    except NaruError as error:
        # It is not sent: a variable of that name may well hold somebody's key for OpenAI.
        message = "OPENAI_API_KEY holds no key of Naru; those begin with sk-naru-. `. .naru/dev.env` sets the one of `naru up`."
        typer.secho(message, fg="red", err=True)
        raise typer.Exit(2) from error
    return ServiceClient(target, name=service, credential=credential)


async def _token() -> str:
    """Of who logged in. A session that ended ends the command: dev.env's key may do more than whoever logged in."""
    try:
        return await saved_login.current_token(state_folder())
    except saved_login.SessionOverError as over:
        typer.secho(str(over), fg="red", err=True)
        raise typer.Exit(2) from over
    except saved_login.EdgeError as error:
        typer.secho(f"Your session cannot be renewed: {error}", fg="red", err=True)
        raise typer.Exit(1) from error


def state_folder() -> Path:
    """`NARU_UP_STATE`, by default `.naru` in the working directory."""
    return Path(os.environ.get("NARU_UP_STATE") or ".naru")
