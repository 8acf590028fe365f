"""From a planned trial to the request that an engine gets, and the key that identifies it.

The key hashes everything that decides a response: model, dtype, tokenizer, template, texts with the token ids they
become, end tokens, intervention (spans included), sampling with its seed, engine family. Caches and resuming use that
key and nothing less.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from countersteer.core.errors import CountersteerError
from countersteer.core.fingerprint import canonical, digest, named_seed
from countersteer.core.request import Request, Sampling
from countersteer.store import RunRefusedError
from countersteer.store.rows import Planned
from countersteer.studies.arms import Arm

_CACHED = 2048
_TEXTS = 8192
_VARIED = ("intervention", "prefix", "prompt", "sampling", "system", "tokens")
_DECISIVE = ("dtype", "quantisation", "adapter", "template_hash")
_WHERE_KNOWN = ("tokenizer", "end_tokens")
"""Facts that only some engines tell: those of servers are part of what they serve."""
_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False)
"""Texts, and sampling settings, which were checked to hold finite numbers and texts only."""


def sampling_seed(seed: int, *names: Any) -> int:
    """A sampling seed of 32 bits for a named draw."""
    return named_seed(seed, "sampling", *names) % 2**32


class _KeyText:
    """The canonical text of a key, which is one dictionary: what never changes in a run is written once.

    The same text as `core.fingerprint.canonical` of the whole dictionary gives.
    """

    def __init__(self, fixed: Mapping[str, Any], varied: tuple[str, ...] | None = None) -> None:
        parts: list[str] = []
        text = "{"
        self._varied = _VARIED if varied is None else varied
        for n, name in enumerate(sorted({*fixed, *self._varied})):
            text += f'{"," if n else ""}"{name}":'
            if name in fixed:
                text += canonical(fixed[name])
            else:
                parts.append(text)
                text = ""
        self._parts, self._end = tuple(parts), text + "}"

    def of(self, **values: Any) -> str:
        """The text with the values that vary."""
        text: list[str] = []
        for part, name in zip(self._parts, self._varied, strict=True):
            value = values[name]
            text += (part, "null" if value is None else _ENCODER.encode(value))
        return "".join(text) + self._end


class Steering:
    """Builds requests and their keys for one model, engine and SAE. Rows of the latents in use are kept."""

    def __init__(
        self, sae: Any, *, layer: int, model: str, family: str, facts: Mapping[str, Any],
        encode: Callable[[Request], Sequence[int]] | None = None,
    ) -> None:  # fmt: skip
        """`layer`: the study's steering layer; `facts`: the engine's description (dtype, template, ...); `encode`: the
        token ids of a request, which go into its key where the engine tells its tokenizer."""
        self.sae = sae
        self.layer = layer
        fixed = {"model": model, "engine": family, **{name: facts.get(name) for name in _DECISIVE}}
        fixed |= {name: facts[name] for name in _WHERE_KNOWN if facts.get(name) is not None}
        self._encode = _remembered(encode) if encode is not None and "tokenizer" in fixed else None
        varied = _VARIED if self._encode is not None else _VARIED[:-1]
        adapters = {n: {**fixed, "adapter": a["fingerprint"]} for n, a in facts.get("adapters", {}).items()}
        self._keys: dict[str | None, _KeyText] = {None: _KeyText(fixed, varied)}
        self._keys |= {name: _KeyText(given, varied) for name, given in adapters.items()}
        self._latents: dict[int, Any] = {}
        self._clamps: dict[tuple[int, ...], Any] = {}
        self._interventions: dict[tuple[Any, ...], Any] = {}

    def intervention(self, arm: Arm, latent: int, strength: float | None, prompt: str) -> Any:
        """What steers a trial of `arm`: the latent's add and the arm's clamps, on the arm's span; None for none."""
        clamp = arm.clamp_for(prompt)
        key = (arm.span, arm.layer, clamp, latent if strength else None, strength or 0.0)
        if key not in self._interventions:
            if len(self._interventions) >= _CACHED:
                self._interventions.clear()
            self._interventions[key] = self._build(arm, clamp, latent, strength)
        return self._interventions[key]

    def _build(self, arm: Arm, clamp: tuple[int, ...], latent: int, strength: float | None) -> Any:
        import countersteer as cs

        layer = self.layer if arm.layer is None else arm.layer
        parts = []
        if strength:
            parts.append(cs.add(self._latents[latent], strength, layer=layer))
        if clamp:
            if clamp not in self._clamps:
                self._clamps[clamp] = self.sae.latents(list(clamp))
            parts.append(cs.clamp(self._clamps[clamp], 0.0, layer=layer))
        if not parts:
            return None
        whole = parts[0] if len(parts) == 1 else parts[0] + parts[1]
        return whole.span(arm.span)

    def prepare(self, latents: Sequence[int]) -> None:
        """Read the rows of the study's latents in one pass over the file. Raises InputError out of range.

        A TopK latent can be added (its decoder row is a direction) but has no threshold of its own to read.
        """
        if self.sae.architecture == "topk":
            self._latents.update((index, self.sae.direction(index)) for index in latents)
        else:
            self._latents.update(zip(latents, self.sae.latents(list(latents)), strict=True))

    def adopt(self, sources: Mapping[int, Any]) -> None:
        """Directions under numbers of their own, beyond the SAE's latents."""
        self._latents.update(sources)

    def request(self, arm: Arm, plan: Planned) -> Request:
        """The request of a planned trial (or of a fresh draw of it, which differs in its seed)."""
        return Request(
            prompt=plan.user,
            system=plan.system,
            prefix=plan.prefix,
            intervention=self.intervention(arm, plan.latent, plan.strength, plan.prompt),
            sampling=arm.sampling.with_seed(plan.seed),
            adapter=arm.adapter,
        )

    def key(self, request: Request) -> str:
        """Hash of everything that decides the response to `request`."""
        return digest(
            self._keys[request.adapter].of(
                tokens=self._encode and self._encode(request.prompt, request.system, request.prefix),
                prompt=request.prompt,
                system=request.system,
                prefix=request.prefix,
                intervention=None if request.intervention is None else request.intervention.fingerprint,
                sampling=vars(request.sampling),
            )
        )

    def checked(self, request: Request, key: str) -> Request:
        """`request`, if its key is still the one it was planned under. Raises RunRefusedError."""
        if self.key(request) != key:
            raise RunRefusedError(
                f"a trial on {(request.prompt or '')[:60]!r} would not be what was planned ({key[:12]}): a file of the"
                " study, the model's tokenizer or the code has changed since; restore it, or start a new run in"
                " another folder"
            )
        return request

    def plain(self, prompt: str, sampling: Sampling, seed: int) -> Request:
        """An unsteered request."""
        return Request(prompt=prompt, sampling=sampling.with_seed(seed))


def _remembered(encode: Callable[[Request], Sequence[int]]) -> Callable[..., list[int] | None]:
    """Token ids by texts, remembered: arms ask the same ones again and again. None where the model refuses them."""

    @lru_cache(_TEXTS)
    def ids(prompt: str, system: str | None, prefix: str | None) -> list[int] | None:
        try:
            return list(encode(Request(prompt=prompt, system=system, prefix=prefix)))
        except CountersteerError:
            return None

    return ids
