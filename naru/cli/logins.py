"""`naru login`, `logout`, `whoami`, `password` and `register`: as a person instead of by a key."""

from __future__ import annotations

import asyncio
import sys
from typing import Annotated, Any

import typer

from naru.api.auth.v1 import session_service_pb2, session_service_pb2_grpc
from naru.api.common.v1 import principal_pb2
from naru.cli import saved_login, session
from naru.cli.saved_login import EdgeError, SavedLogin
from naru.client import ServiceClient

_TIMEOUT_SECONDS = 30.0


def login(
    email: Annotated[str, typer.Argument(help="Your address.")],
    url: Annotated[str, typer.Option(help="The edge; by default where OPENAI_BASE_URL points.")] = "",
) -> None:
    """Log in; commands then run as you, until `naru logout`. The password is asked for, or read from standard input."""
    base = saved_login.base_url(session.state_folder(), url)
    body = {"email": email, "password": _secret("Password")}
    _keep(base, _post(f"{base}/api/auth/login", body))
    typer.echo(f"You are logged in at {base}.")


def register(
    email: Annotated[str, typer.Argument(help="Your address.")],
    name: Annotated[str, typer.Option(help="What to call you.")] = "",
    invite: Annotated[str, typer.Option(help="The code of your invite.")] = "",
    url: Annotated[str, typer.Option(help="The edge; by default where OPENAI_BASE_URL points.")] = "",
) -> None:
    """Make an account and log in. The password is asked for, or read from standard input."""
    base = saved_login.base_url(session.state_folder(), url)
    password = _secret("Password")
    body = {"email": email, "password": password, "name": name, "invite_code": invite}
    _keep(base, _post(f"{base}/api/auth/register", body))
    typer.echo(f"You have an account, and are logged in at {base}.")


def logout(everywhere: Annotated[bool, typer.Option(help="All of your sessions, wherever they are.")] = False) -> None:
    """End the session that `naru login` began."""
    folder = session.state_folder()
    saved = saved_login.read(folder)
    if saved is None:
        typer.echo("You are not logged in.")
        return
    _post(f"{saved.url}/api/auth/logout", {"refresh_token": saved.refresh_token, "everywhere": everywhere})
    saved_login.forget(folder)
    typer.echo("You are logged out.")


def password() -> None:
    """Change your password; it logs you out everywhere. Both are asked for, or read from standard input."""
    change = session_service_pb2.PasswordChange(
        current_password=_secret("Password so far"),
        new_password=_secret("New password"),
    )

    async def call(client: ServiceClient) -> None:
        stub = session_service_pb2_grpc.SessionServiceStub(client.channel)
        request = session_service_pb2.ChangePasswordRequest(change=change)
        await client.call(stub.ChangePassword, request, timeout=_TIMEOUT_SECONDS)

    session.run("authsvc", call)
    saved_login.forget(session.state_folder())
    typer.echo("Your password is changed; log in with the new one.")


def whoami() -> None:
    """Show as whom commands run."""

    async def call(client: ServiceClient) -> session_service_pb2.WhoAmIResponse:
        stub = session_service_pb2_grpc.SessionServiceStub(client.channel)
        return await client.call(stub.WhoAmI, session_service_pb2.WhoAmIRequest(), timeout=_TIMEOUT_SECONDS)

    response = session.run("authsvc", call)
    principal = response.principal
    role = principal_pb2.Role.Name(principal.role).removeprefix("ROLE_").lower()
    who = response.user.email or principal.service_account or f"key {principal.key_id}"
    typer.echo(f"{who}, {role} in workspace {principal.workspace_id}, tier {principal.tier}")


def _secret(prompt: str) -> str:
    """Asked for without an echo where there is a terminal, else the next line of standard input."""
    if sys.stdin.isatty():
        return str(typer.prompt(prompt, hide_input=True, err=True))
    return sys.stdin.readline().rstrip("\r\n")


def _keep(url: str, given: dict[str, Any]) -> None:
    saved_login.write(session.state_folder(), SavedLogin.of(url, given))


def _post(url: str, body: dict[str, Any]) -> dict[str, Any]:
    """What is answered; what is refused ends the command."""
    try:
        return asyncio.run(saved_login.post(url, body))
    except EdgeError as error:
        typer.secho(str(error), fg="red", err=True)
        raise typer.Exit(1) from error
