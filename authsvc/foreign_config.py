"""What authsvc can be told of tokens that others make; nothing of it is on by default."""

from __future__ import annotations

from dataclasses import dataclass

from authsvc.foreign_tokens import ClaimPolicy
from authsvc.jwks import ALGORITHMS, check_url
from naru.config import ServiceConfig, setting
from naru.identity import Role

SECRET_CHARACTERS_MIN = 16
"""As many as Open WebUI's own start script makes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ForeignConfig(ServiceConfig):
    """Settings of others' tokens. Raises ValueError for values that make no sense."""

    openwebui_secret_key: str = setting(
        "",
        "Open WebUI's WEBUI_SECRET_KEY: its users' session tokens are taken as credentials; empty: they are not.",
        secret=True,
    )
    openwebui_user_jwt_secret: str = setting(
        "",
        "Open WebUI's FORWARD_USER_INFO_HEADER_JWT_SECRET: what its X-OpenWebUI-User-Jwt headers are checked with, under the keys"
        " in NARU_EDGE_TRUSTED_FRONT_END_KEYS.",
        secret=True,
    )
    openwebui_workspace: str = setting(
        "", "Workspace, by id or name, of those who come with a session of Open WebUI; empty: the first one."
    )
    openwebui_new_users: str = setting(
        "allowed",
        "What those are who come with a session of Open WebUI for the first time: allowed, or blocked until an administrator"
        " unblocks them; a session does not tell whether Open WebUI's own administrator approved of its user.",
    )
    openwebui_tier: str = setting("", "Their tier, where their user has none; empty: the workspace's.")
    oidc_issuer: str = setting(
        "",
        "OpenID provider whose tokens are taken, as it calls itself, such as https://login.example.com; empty: none.",
    )
    oidc_audiences: tuple[str, ...] = setting((), "For whom its tokens must be, separated by commas: one of these.")
    oidc_algorithms: tuple[str, ...] = setting(
        ALGORITHMS,
        "Algorithms that its tokens may be signed with: RS256, ES256, EdDSA; a key is good for its own alone.",
    )
    oidc_role_claim: str = setting(
        "", "Claim with the role or roles, such as groups or realm_access.roles; empty: everybody is a user."
    )
    oidc_roles: tuple[str, ...] = setting(
        (), "value=role for values of that claim, role being user, workspace_admin or admin; the highest counts."
    )
    oidc_workspace_claim: str = setting(
        "", "Claim with the workspaces, by id or name; empty, or missing in a token: NARU_AUTHSVC_OIDC_WORKSPACE."
    )
    oidc_workspace: str = setting(
        "", "Workspace, by id or name, of those whose token names none; empty: the first one."
    )
    oidc_tier: str = setting("", "Their tier, where their user has none; empty: the workspace's.")
    oidc_insecure_http: bool = setting(
        False,
        "Whether the provider may be asked over http:// when it is not this machine: whoever is in between is believed.",
    )

    def __post_init__(self) -> None:
        for name in ("openwebui_secret_key", "openwebui_user_jwt_secret"):
            if 0 < len(getattr(self, name)) < SECRET_CHARACTERS_MIN:
                raise ValueError(f"NARU_AUTHSVC_{name.upper()} needs at least {SECRET_CHARACTERS_MIN} characters")
        if self.openwebui_new_users not in ("allowed", "blocked"):
            raise ValueError("NARU_AUTHSVC_OPENWEBUI_NEW_USERS must be allowed or blocked")
        self.claim_policy()

    def claim_policy(self) -> ClaimPolicy | None:
        """What the OpenID provider's tokens must say; None: there is no provider. Raises ValueError."""
        if not self.oidc_issuer:
            return None
        try:
            check_url(self.oidc_issuer, insecure_http=self.oidc_insecure_http)
        except ValueError as error:
            raise ValueError(f"NARU_AUTHSVC_OIDC_ISSUER: {error}") from None
        if not self.oidc_audiences:
            raise ValueError(
                "NARU_AUTHSVC_OIDC_AUDIENCES must say for whom tokens are: else those for others are taken too"
            )
        if not self.oidc_algorithms or not set(self.oidc_algorithms) <= set(ALGORITHMS):
            raise ValueError(f"NARU_AUTHSVC_OIDC_ALGORITHMS must be some of {', '.join(ALGORITHMS)}")
        if bool(self.oidc_roles) != bool(self.oidc_role_claim):
            raise ValueError("NARU_AUTHSVC_OIDC_ROLES and NARU_AUTHSVC_OIDC_ROLE_CLAIM need each other")
        return ClaimPolicy(
            self.oidc_issuer,
            self.oidc_audiences,
            self.oidc_role_claim,
            dict(map(_role, self.oidc_roles)),
            self.oidc_workspace_claim,
        )


def _role(entry: str) -> tuple[str, Role]:
    # From the right: a distinguished name has equals signs of its own.
    value, _, role = entry.rpartition("=")
    if not value or role not in list(Role):
        raise ValueError(f"NARU_AUTHSVC_OIDC_ROLES: {entry!r} is not of the form value=role with a role of Naru's")
    return value, Role(role)
