"""The one table of who may call what. `tests/contract` walks every RPC and every role through it.

A row names the services that may call an RPC, and the least role a principal needs; no role means no principal may.
"""

from __future__ import annotations

from dataclasses import dataclass

from naru.errors import NaruError, Reason
from naru.identity import Caller, Role, ServiceName


@dataclass(frozen=True, slots=True)
class Grant:
    """Who may make one RPC."""

    services: frozenset[ServiceName] = frozenset()
    role: Role | None = None


_EDGE, _INFERENCE, _ACCOUNTING, _OPERATOR = (
    ServiceName.EDGE,
    ServiceName.INFERENCE,
    ServiceName.ACCOUNTING,
    ServiceName.OPERATOR,
)
_ANY_SERVICE = frozenset(ServiceName)
_RESOLVERS = frozenset({_EDGE, _INFERENCE, _ACCOUNTING})
_METERS = frozenset({_EDGE, _INFERENCE})
_READERS = Grant(frozenset({_EDGE, _OPERATOR}), Role.USER)
_SEERS = Grant(frozenset({_OPERATOR}), Role.USER)
_MANAGERS = Grant(frozenset({_OPERATOR}), Role.ADMIN)
# Asked for by people who have no credential yet, so the edge asks.
_OPEN = Grant(frozenset({_EDGE}))

GRANTS: dict[str, Grant] = {
    "/naru.api.auth.v1.AuthService/Authenticate": Grant(_RESOLVERS),
    "/naru.api.auth.v1.AuthService/BatchAuthenticate": Grant(_RESOLVERS),
    "/naru.api.auth.v1.AuthService/Attribute": Grant(frozenset({_EDGE})),
    "/naru.api.auth.v1.AuthService/WatchInvalidations": Grant(_RESOLVERS),
    "/naru.api.auth.v1.AuthService/NoteKeyUses": Grant(_RESOLVERS),
    "/naru.api.auth.v1.AuthService/Bootstrap": Grant(frozenset({_OPERATOR})),
    "/naru.api.auth.v1.ApiKeyService/CreateApiKey": Grant(role=Role.USER),
    # Users manage their own keys. Accounting asks whether a tier is in use.
    "/naru.api.auth.v1.ApiKeyService/ListApiKeys": Grant(frozenset({_ACCOUNTING}), Role.USER),
    "/naru.api.auth.v1.ApiKeyService/GetApiKey": Grant(role=Role.USER),
    "/naru.api.auth.v1.ApiKeyService/UpdateApiKey": Grant(role=Role.USER),
    "/naru.api.auth.v1.ApiKeyService/RotateApiKey": Grant(role=Role.USER),
    "/naru.api.auth.v1.ApiKeyService/BlockApiKey": Grant(role=Role.WORKSPACE_ADMIN),
    "/naru.api.auth.v1.ApiKeyService/UnblockApiKey": Grant(role=Role.WORKSPACE_ADMIN),
    "/naru.api.auth.v1.ApiKeyService/RevokeApiKey": Grant(role=Role.USER),
    "/naru.api.auth.v1.AuditService/ListAuditEntries": Grant(frozenset({_OPERATOR}), Role.WORKSPACE_ADMIN),
    "/naru.api.auth.v1.AuditService/ExportAuditEntries": Grant(frozenset({_OPERATOR}), Role.WORKSPACE_ADMIN),
    "/naru.api.auth.v1.SessionService/Register": _OPEN,
    "/naru.api.auth.v1.SessionService/Login": _OPEN,
    "/naru.api.auth.v1.SessionService/Refresh": _OPEN,
    "/naru.api.auth.v1.SessionService/Logout": _OPEN,
    "/naru.api.auth.v1.SessionService/WhoAmI": Grant(role=Role.USER),
    "/naru.api.auth.v1.SessionService/ChangePassword": Grant(role=Role.USER),
    "/naru.api.auth.v1.SessionService/GetSigningKeys": _OPEN,
    "/naru.api.auth.v1.UserService/CreateUser": Grant(role=Role.ADMIN),
    "/naru.api.auth.v1.UserService/GetUser": Grant(role=Role.WORKSPACE_ADMIN),
    "/naru.api.auth.v1.UserService/ListUsers": Grant(role=Role.WORKSPACE_ADMIN),
    "/naru.api.auth.v1.UserService/UpdateUser": Grant(role=Role.ADMIN),
    "/naru.api.auth.v1.UserService/ResetPassword": Grant(role=Role.ADMIN),
    "/naru.api.auth.v1.UserService/RevokeSessions": Grant(role=Role.USER),
    "/naru.api.auth.v1.UserService/CreateInvite": Grant(role=Role.WORKSPACE_ADMIN),
    "/naru.api.auth.v1.UserService/ListInvites": Grant(role=Role.WORKSPACE_ADMIN),
    "/naru.api.auth.v1.UserService/RevokeInvite": Grant(role=Role.WORKSPACE_ADMIN),
    "/naru.api.auth.v1.UserService/DeleteUser": Grant(role=Role.ADMIN),
    "/naru.api.auth.v1.UserService/BootstrapAdmin": Grant(frozenset({_OPERATOR})),
    "/naru.api.auth.v1.WorkspaceService/CreateWorkspace": Grant(role=Role.ADMIN),
    "/naru.api.auth.v1.WorkspaceService/GetWorkspace": Grant(role=Role.USER),
    "/naru.api.auth.v1.WorkspaceService/ListWorkspaces": Grant(role=Role.USER),
    "/naru.api.auth.v1.WorkspaceService/UpdateWorkspace": Grant(role=Role.ADMIN),
    "/naru.api.auth.v1.WorkspaceService/DeleteWorkspace": Grant(role=Role.ADMIN),
    "/naru.api.auth.v1.WorkspaceService/ListMembers": Grant(role=Role.WORKSPACE_ADMIN),
    "/naru.api.auth.v1.WorkspaceService/SetMember": Grant(role=Role.WORKSPACE_ADMIN),
    "/naru.api.auth.v1.WorkspaceService/RemoveMember": Grant(role=Role.WORKSPACE_ADMIN),
    "/naru.api.accounting.v1.QuotaService/Reserve": Grant(_METERS),
    "/naru.api.accounting.v1.QuotaService/ReserveSession": Grant(_METERS),
    "/naru.api.accounting.v1.QuotaService/Release": Grant(_METERS),
    "/naru.api.accounting.v1.QuotaService/Finish": Grant(_METERS),
    "/naru.api.accounting.v1.QuotaService/Renew": Grant(_METERS),
    "/naru.api.accounting.v1.QuotaService/Restore": Grant(_METERS),
    "/naru.api.accounting.v1.QuotaService/KeepOutcome": Grant(frozenset({_EDGE})),
    "/naru.api.accounting.v1.QuotaService/GetLimits": _READERS,
    "/naru.api.accounting.v1.UsageService/RecordUsage": Grant(_METERS),
    "/naru.api.accounting.v1.UsageService/RecordRequests": Grant(frozenset({_EDGE})),
    "/naru.api.accounting.v1.UsageService/QueryUsage": _READERS,
    "/naru.api.accounting.v1.UsageService/ListRequests": _SEERS,
    "/naru.api.accounting.v1.UsageService/ExportUsage": _SEERS,
    "/naru.api.accounting.v1.TierService/GetTier": _READERS,
    "/naru.api.accounting.v1.TierService/ListTiers": _READERS,
    "/naru.api.accounting.v1.TierService/CreateTier": _MANAGERS,
    "/naru.api.accounting.v1.TierService/UpdateTier": _MANAGERS,
    "/naru.api.accounting.v1.TierService/DeleteTier": _MANAGERS,
    "/naru.api.accounting.v1.BudgetService/GetBudget": _MANAGERS,
    "/naru.api.accounting.v1.BudgetService/ListBudgets": _MANAGERS,
    "/naru.api.accounting.v1.BudgetService/CreateBudget": _MANAGERS,
    "/naru.api.accounting.v1.BudgetService/UpdateBudget": _MANAGERS,
    "/naru.api.accounting.v1.BudgetService/DeleteBudget": _MANAGERS,
    "/naru.api.accounting.v1.PricingService/ListPrices": _READERS,
    "/naru.api.accounting.v1.PricingService/CreatePrice": _MANAGERS,
    "/naru.api.accounting.v1.PricingService/DeletePrice": _MANAGERS,
    "/naru.api.accounting.v1.LedgerService/GetBalance": _READERS,
    "/naru.api.accounting.v1.LedgerService/ListEntries": Grant(frozenset({_OPERATOR}), Role.WORKSPACE_ADMIN),
    "/naru.api.accounting.v1.LedgerService/Credit": _MANAGERS,
    "/naru.api.accounting.v1.LedgerService/SetOverdraft": _MANAGERS,
    "/naru.api.accounting.v1.LedgerService/VerifyLedger": _MANAGERS,
    "/naru.api.inference.v1.InferenceService/Generate": Grant(frozenset({_EDGE}), Role.USER),
    "/naru.api.inference.v1.InferenceService/GenerateSession": Grant(frozenset({_EDGE})),
    # The edge asks for both by a session.
    "/naru.api.inference.v1.InferenceService/Embed": Grant(role=Role.USER),
    "/naru.api.inference.v1.InferenceService/Score": Grant(role=Role.USER),
    "/naru.api.inference.v1.InferenceService/Tokenize": Grant(frozenset({_EDGE}), Role.USER),
    "/naru.api.inference.v1.InferenceService/Detokenize": Grant(frozenset({_EDGE}), Role.USER),
    "/naru.api.inference.v1.ModelService/ListModels": _READERS,
    "/naru.api.inference.v1.ModelService/GetModel": _READERS,
    "/naru.api.inference.v1.ModelService/ListAdapters": _MANAGERS,
    "/naru.api.inference.v1.ModelService/LoadAdapter": _MANAGERS,
    "/naru.api.inference.v1.ModelService/UnloadAdapter": _MANAGERS,
    "/naru.api.inference.v1.ControlService/GetReplica": _MANAGERS,
    "/naru.api.inference.v1.ControlService/Pause": _MANAGERS,
    "/naru.api.inference.v1.ControlService/Drain": _MANAGERS,
    "/naru.api.inference.v1.ControlService/Resume": _MANAGERS,
    "/naru.api.inference.v1.ControlService/ResetPrefixCache": _MANAGERS,
    "/naru.api.inference.v1.ControlService/Sleep": _MANAGERS,
    "/naru.api.inference.v1.ControlService/Wake": _MANAGERS,
    # Reflection tells the shape of the API to whoever may use any of it.
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": Grant(_ANY_SERVICE, Role.USER),
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo": Grant(_ANY_SERVICE, Role.USER),
}
PUBLIC_PREFIX = "/grpc.health.v1.Health/"
"""Health is open to everybody: load balancers and container health checks have no token."""


def check(caller: Caller, method: str) -> None:
    """Raises NaruError PERMISSION_DENIED unless `caller` may call `method`. A method without a row is closed."""
    grant = GRANTS.get(method, Grant())
    if caller.service is not None:
        allowed = caller.service in grant.services
    else:
        principal = caller.principal
        allowed = (
            principal is not None
            and grant.role is not None
            and principal.role.rank >= grant.role.rank
            and principal.scopes.allows_endpoint(method)
        )
    if not allowed:
        raise NaruError(Reason.PERMISSION_DENIED, "You are not allowed to make this call.", metadata={"method": method})
