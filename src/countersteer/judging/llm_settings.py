"""How a language model is asked to judge: frozen settings, and which of them decide a reply.

What decides a reply (model, server, temperature, length, seed, structure) is in the keys of replies and grades; what
only decides how fast and how dearly it comes (connections, pace, tries, price) is not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from countersteer.core.errors import InputError
from countersteer.core.fingerprint import fingerprint
from countersteer.judging.llm_redact import bad_url
from countersteer.judging.prices import Price, price

BATCHED = ("anthropic", "google", "grok", "openai", "together")
"""Providers whose batch interface Inspect speaks."""
_NOT_BATCHED = ("azure", "bedrock", "vertex")
_BATCH = 100


@dataclass(frozen=True)
class JudgeSettings:
    """`model`: PROVIDER/NAME as Inspect knows it. `structured`: ask for the rubric's JSON schema where it is possible.

    `connections` calls at once; `requests_per_minute`, `tokens_per_minute`: None for no limit; `tries` per call;
    `seconds` until a try is given up; `batch`: the provider's batch interface (half the price, hours of waiting), asked
    in batches of `batch_size` (100), looked after every `batch_seconds` (15).
    `price`: [input, output(, cached)] in USD per million tokens; `price_file`: a table of them.
    """

    model: str
    base_url: str | None = None
    temperature: float | None = 0.0
    max_tokens: int = 1024
    seed: int | None = None
    structured: bool = True
    connections: int = 16
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    tries: int = 8
    seconds: int = 120
    batch: bool = False
    batch_size: int | None = None
    batch_seconds: float | None = None
    price: tuple[float, ...] | None = None
    price_file: str | None = None

    def __post_init__(self) -> None:
        provider, _, name = self.model.partition("/")
        if not provider or not name:
            raise InputError(f"judge {self.model!r} is not PROVIDER/NAME; for example anthropic/claude-haiku-4-5")
        for what in ("max_tokens", "connections", "tries", "seconds"):
            if getattr(self, what) < 1:
                raise InputError(f"judge {what} must be >= 1, got {getattr(self, what)}")
        if self.batch:
            self._check_batch()
        elif self.batch_size is not None:
            raise InputError("a judge's batch size needs its batch interface; add --judge-batch")
        if self.base_url is not None and (wrong := bad_url(self.base_url)):
            raise InputError(f"judge base_url {wrong}")

    def _check_batch(self) -> None:
        """Raise InputError where Inspect has no batch interface."""
        provider, service = [*self.model.split("/"), ""][:2]
        if provider not in BATCHED or service in _NOT_BATCHED:
            raise InputError(
                f"judge {self.model} cannot be asked in batches: Inspect has batches for {', '.join(BATCHED)}"
                " (their own service) only; leave --judge-batch out"
            )
        if self.batch_size is not None and self.batch_size < 1:
            raise InputError(f"judge batch size must be >= 1, got {self.batch_size}")

    @property
    def at_once(self) -> int:
        """Questions under way at once: connections, or enough of them that the next batch fills while one is away."""
        return max(self.connections, 2 * (self.batch_size or _BATCH)) if self.batch else self.connections

    @property
    def decisive(self) -> dict[str, Any]:
        """What decides a reply, besides the question."""
        names = ("model", "base_url", "temperature", "max_tokens", "seed", "structured")
        return {name: getattr(self, name) for name in names}

    def known_price(self) -> Price | None:
        """The price of the model, None if it is not known."""
        return price(self.model, file=self.price_file, given=self.price)

    def require(self, max_cost: float | None) -> None:
        """Raise InputError for a cap on the cost without a known price."""
        if max_cost is not None and self.known_price() is None:
            raise InputError(
                f"--max-cost needs the price of {self.model}, which is not in the price table; give"
                " --prices FILE with an entry for it"
            )

    def reply_key(self, rubric_digest: str, system: str, user: str) -> str:
        """What a kept reply is the reply to: judge, rubric, prompt and response (in the texts), settings."""
        return fingerprint(["reply", self.decisive, rubric_digest, system, user])
