"""A server's parts in one place, and what every handler does first: who asks, may they, is there room."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request

from countersteer.engines.base import Engine
from countersteer.serving.audit import Audit, AuditOptions
from countersteer.serving.errors import Refusal
from countersteer.serving.jobs import now
from countersteer.serving.keys import Key, Keyring, Role
from countersteer.serving.limits import Limits, Turnstile
from countersteer.serving.metrics import Metrics
from countersteer.serving.policies import Policies
from countersteer.serving.policy import Plan

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Settings:
    """How a server is set up. `plan` is called at the start and at every reload; `name` is the model's public name."""

    plan: Callable[[], Plan] = Plan
    keys: Keyring = field(default_factory=Keyring)
    limits: Limits = field(default_factory=Limits)
    audit: AuditOptions | None = None
    name: str = "model"


class Server:
    """The parts of a running server. Raises InputError when the policy or the audit log cannot be used."""

    def __init__(self, engine: Engine, settings: Settings) -> None:
        self.engine, self.settings, self.limits = engine, settings, settings.limits
        self.policies = Policies(engine, settings.plan)
        self.turnstile = Turnstile(settings.limits)
        self.metrics = Metrics()
        self.audit = Audit(settings.audit) if settings.audit is not None else None
        self.started = now()

    def start(self) -> None:
        """Note the start."""
        self.metrics.policy.set(self.policies.current.number)
        self.note("started", None, policy=self.policies.current.to_dict(), engine=self.engine.describe())
        log.info("serving %s, policy %s", self.settings.name, self.policies.current.to_dict())

    def close(self) -> None:
        """Write out the audit log. The engine belongs to the caller."""
        if self.audit is not None:
            self.note("stopped", None)
            self.audit.close()
            self.audit = None

    def who(self, request: Request, role: Role = Role.USE) -> Key:
        """The key of a request. Raises Refusal 401 without a valid one, 403 if it may not do this."""
        key = self.settings.keys.find(request.headers.get("authorization"))
        if key is None:
            raise Refusal(401, "invalid_api_key", "a valid key is needed: Authorization: Bearer KEY",
                          headers={"WWW-Authenticate": "Bearer"})  # fmt: skip
        if key.role < role:
            self.note("denied", key, path=request.url.path)
            raise Refusal(403, "role", f"this needs a key of role {role.name.lower()}")
        return key

    def healthy(self) -> str | None:
        """Why the server cannot take work, or None. Engines may say whether they are `alive`."""
        if not getattr(self.engine, "alive", True):
            return "the engine has stopped"
        self.metrics.audit_ok.set(0 if self.audit is not None and self.audit.failed else 1)
        return self.audit.failed if self.audit is not None else None

    def note(self, event: str, key: Key | None, **more: Any) -> None:
        """Audit something that is not a generation."""
        if self.audit is not None:
            self.audit.write({"event": event, "time": now(), "key": key.name if key else None, **more})

    @staticmethod
    def new_id(prefix: str) -> str:
        """A fresh request id."""
        return f"{prefix}-{uuid.uuid4().hex}"
