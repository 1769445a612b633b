"""Puts together what people, sessions and workspaces need: the part of `app.py` that is about users."""

from __future__ import annotations

import os
from contextlib import AsyncExitStack
from dataclasses import dataclass

from authsvc.authentication import Authenticator
from authsvc.deletions import Deletions
from authsvc.deletions_store import DeletionStore
from authsvc.foreign_authentication import ForeignAuthenticator
from authsvc.identity_servicer import SessionServicer, UserServicer, WorkspaceServicer
from authsvc.invite_management import InviteManager
from authsvc.invites_store import InviteStore
from authsvc.passwords import Passwords
from authsvc.people_audit import PeopleAudit
from authsvc.sessions import RegistrationMode, SessionManager, SessionPolicy
from authsvc.sessions_store import SessionStore
from authsvc.shared import Shared
from authsvc.signing import KeyRing
from authsvc.throttle import LoginThrottle
from authsvc.token_authentication import CredentialAuthenticator, TokenAuthenticator
from authsvc.tokens import TokenPolicy
from authsvc.user_management import UserManager
from authsvc.users_store import UserStore
from authsvc.workspace_management import WorkspaceManager
from authsvc.workspaces_store import WorkspaceStore
from naru.api.auth.v1 import session_service_pb2_grpc, user_service_pb2_grpc, workspace_service_pb2_grpc
from naru.ids import uuid7
from naru.server import GrpcServer

DAY_SECONDS = 24 * 3600.0


@dataclass(frozen=True, slots=True)
class Identity:
    """The parts of it that the rest of the service uses.

    Attributes:
        authenticator: Resolves keys and users' tokens.
        ring: To be turned once before serving, and kept turning.
    """

    authenticator: CredentialAuthenticator
    ring: KeyRing
    _sessions: SessionServicer
    _users: UserServicer
    _workspaces: WorkspaceServicer

    def add_to(self, server: GrpcServer) -> None:
        """Adds its services to a server that has not started."""
        server.add(
            session_service_pb2_grpc.add_SessionServiceServicer_to_server,
            self._sessions,
            "naru.api.auth.v1.SessionService",
        )
        server.add(user_service_pb2_grpc.add_UserServiceServicer_to_server, self._users, "naru.api.auth.v1.UserService")
        server.add(
            workspace_service_pb2_grpc.add_WorkspaceServiceServicer_to_server,
            self._workspaces,
            "naru.api.auth.v1.WorkspaceService",
        )


def open_identity(
    shared: Shared, *, key_authenticator: Authenticator, foreign: ForeignAuthenticator, stack: AsyncExitStack
) -> Identity:
    """Makes all of it; `stack` ends its threads."""
    config, database, clock = shared.config, shared.database, shared.clock
    people = _People(UserStore(database), SessionStore(database), PeopleAudit(shared.auditor))
    policy = TokenPolicy(config.token_issuer, config.token_audience, config.access_token_seconds)
    passwords = Passwords(threads=config.password_threads)
    stack.callback(passwords.close)
    ring = KeyRing(
        store=people.sessions,
        peppers=shared.peppers,
        clock=clock,
        random_bytes=os.urandom,
        new_id=uuid7,
        rotation=config.signing_key_days * DAY_SECONDS,
        lifetime=config.access_token_seconds,
    )
    session_manager = _session_manager(shared, people, ring, passwords, policy)
    user_manager = UserManager(
        users=people.users,
        keys=shared.store,
        sessions=session_manager,
        audit=people.audit,
        feed=shared.feed,
        passwords=passwords,
        peppers=shared.peppers,
        clock=clock,
        random_bytes=os.urandom,
        new_id=uuid7,
    )
    workspaces = WorkspaceManager(
        store=WorkspaceStore(database), audit=people.audit, feed=shared.feed, clock=clock, new_id=uuid7
    )
    deletions = Deletions(store=DeletionStore(database, people.audit), feed=shared.feed, clock=clock)
    invites = InviteManager(store=InviteStore(database), audit=people.audit, clock=clock)
    tokens = TokenAuthenticator(store=people.sessions, ring=ring, policy=policy, clock=clock)
    return Identity(
        CredentialAuthenticator(key_authenticator, tokens, foreign, clock),
        ring,
        SessionServicer(session_manager, people.users, ring),
        UserServicer(user_manager, invites, deletions),
        WorkspaceServicer(workspaces, deletions),
    )


@dataclass(frozen=True, slots=True)
class _People:
    users: UserStore
    sessions: SessionStore
    audit: PeopleAudit


def _session_manager(
    shared: Shared, people: _People, ring: KeyRing, passwords: Passwords, policy: TokenPolicy
) -> SessionManager:
    config = shared.config
    return SessionManager(
        users=people.users,
        sessions=people.sessions,
        keys=shared.store,
        audit=people.audit,
        feed=shared.feed,
        ring=ring,
        passwords=passwords,
        throttle=LoginThrottle(shared.clock),
        peppers=shared.peppers,
        clock=shared.clock,
        random_bytes=os.urandom,
        new_id=uuid7,
        policy=SessionPolicy(
            tokens=policy,
            registration=RegistrationMode(config.registration),
            session_lifetime=config.session_days * DAY_SECONDS,
            refresh_grace=config.refresh_grace_seconds,
        ),
    )
