"""The first key and the first administrator of an installation, and where they are written down."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from naru.api.auth.v1 import auth_service_pb2, auth_service_pb2_grpc, user_service_pb2, user_service_pb2_grpc
from naru.cli.state import StateFolder
from naru.client import ServiceClient
from naru.config import ADMIN_EMAIL, ADMIN_PASSWORD
from naru.errors import NaruError, Reason

_TIMEOUT_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class FirstKey:
    """An admin key; left out of the representation."""

    workspace_id: str
    api_key: str

    def __repr__(self) -> str:
        return f"FirstKey(workspace_id={self.workspace_id!r})"


@dataclass(frozen=True, slots=True)
class FirstAdmin:
    """An administrator who was made just now; the password is left out of the representation."""

    email: str
    password: str

    def __repr__(self) -> str:
        return f"FirstAdmin(email={self.email!r})"


async def first_key(client: ServiceClient, *, additional: bool) -> FirstKey:
    """Makes the first workspace and its admin key, or with `additional` one more key.

    Raises NaruError, ALREADY_EXISTS where there is one.
    """
    stub = auth_service_pb2_grpc.AuthServiceStub(client.channel)
    request = auth_service_pb2.BootstrapRequest(additional=additional)
    response = await client.call(stub.Bootstrap, request, timeout=_TIMEOUT_SECONDS)
    return FirstKey(response.workspace_id, response.api_key)


async def first_admin(client: ServiceClient) -> FirstAdmin | None:
    """Makes the first administrator; None where there is one. Raises NaruError."""
    stub = user_service_pb2_grpc.UserServiceStub(client.channel)
    request = user_service_pb2.BootstrapAdminRequest()
    try:
        response = await client.call(stub.BootstrapAdmin, request, timeout=_TIMEOUT_SECONDS)
    except NaruError as error:
        if error.reason is Reason.ALREADY_EXISTS:
            return None
        raise
    return FirstAdmin(response.user.email, response.password)


def remember(folder: Path, key: FirstKey, admin: FirstAdmin | None) -> None:
    """Writes them to dev.env beside what stands there, where the folder is."""
    state = StateFolder(folder)
    if state.root.is_dir():
        made = {} if admin is None else {ADMIN_EMAIL: admin.email, ADMIN_PASSWORD: admin.password}
        state.write_dev_env(state.read_dev_env() | {"OPENAI_API_KEY": key.api_key} | made)
