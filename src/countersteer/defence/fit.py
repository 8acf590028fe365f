"""Fitting a defence: the model's own responses under both system prompts, and the directions between them per layer.

A fit is a folder: `fit.safetensors` (directions [layers, d_model] by kind, conditions of request-level gates, CLAS
weights, and the embeddings [responses, layers, d_model] that everything can be computed from again), `fit.json`
(numbers, settings, identity of model and data) and `responses.jsonl`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from countersteer.core.errors import EngineError, InputError
from countersteer.core.fingerprint import rng
from countersteer.core.site import Site
from countersteer.defence import separation as sep
from countersteer.defence.clas import ClasSettings, fit_contextual
from countersteer.defence.data import TraitData
from countersteer.defence.leakage import refuse_leaks
from countersteer.defence.responses import Answer, Read, answer_all, ask_all, projections, read, token_ids
from countersteer.defence.settings import Settings
from countersteer.edits.bundle import weights_of
from countersteer.edits.vectors import Direction

FORMAT = 1
WITNESSES = 24
"""Pairs of responses that a bundle carries, to measure its separation again on other weights."""


@dataclass(frozen=True, eq=False)
class Fit:
    """A fitted trait: `arrays` by name, `facts` as plain JSON data, `responses` as rows."""

    arrays: Mapping[str, NDArray[np.float64]]
    facts: Mapping[str, Any]
    responses: Sequence[Mapping[str, Any]]

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers that were fitted."""
        return tuple(row["layer"] for row in self.facts["layers"])

    def along(self, layer: int, kind: str = "logistic") -> sep.Along:
        """The classes along a direction at a layer. Raises InputError."""
        row = self._row(layer)["along"][kind]
        return sep.Along(**{k: row[k] for k in sep.Along.__dataclass_fields__})

    def direction(self, layer: int, kind: str = "logistic") -> Direction:
        """A unit direction at a layer. Raises InputError."""
        if kind not in sep.KINDS:
            raise InputError(f"no direction {kind!r}; a fit has {', '.join(sep.KINDS)}")
        index = self.layers.index(self._row(layer)["layer"])
        trait = self.facts["trait"]["name"]
        vector = self.arrays[f"direction.{kind}"][index]
        return Direction(vector, Site(layer), self.facts["model_fingerprint"], f"{kind} of {trait}", trait)

    @property
    def condition_layer(self) -> int:
        """The layer whose prompts tell best which system prompt they hold (the first of the best)."""
        best = max(self.facts["layers"], key=lambda row: row["condition_auc"])
        return int(best["layer"])

    def condition(self, layer: int) -> tuple[NDArray[np.float64], float]:
        """A request-level gate's direction [d_model] and cosine threshold: prompts above it look malicious."""
        index = self.layers.index(self._row(layer)["layer"])
        return self.arrays["condition"][index], float(self._row(layer)["condition_threshold"])

    def _row(self, layer: int) -> Mapping[str, Any]:
        for row in self.facts["layers"]:
            if row["layer"] == layer:
                found: Mapping[str, Any] = row
                return found
        raise InputError(f"the fit has no layer {layer}; it has {self.layers[0]}..{self.layers[-1]}")

    def save(self, folder: Path) -> Path:
        """Write the folder. Raises InputError where that is not possible."""
        from safetensors.numpy import save_file

        try:
            folder.mkdir(parents=True, exist_ok=True)
            save_file({k: np.ascontiguousarray(v) for k, v in self.arrays.items()}, folder / "fit.safetensors")
            lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in self.responses)
            (folder / "responses.jsonl").write_text(lines, encoding="utf-8")
            text = json.dumps(self.facts, ensure_ascii=False, indent=1, allow_nan=False)
            (folder / "fit.json").write_text(text + "\n", encoding="utf-8")
        except OSError as error:
            raise InputError(f"cannot write the fit into {folder}: {error.strerror or error}") from error
        return folder


def load_fit(folder: Path) -> Fit:
    """Read what `save` wrote. Raises InputError."""
    from safetensors.numpy import load_file

    try:
        facts = json.loads((folder / "fit.json").read_text(encoding="utf-8"))
        arrays = load_file(folder / "fit.safetensors")
        lines = (folder / "responses.jsonl").read_text(encoding="utf-8").splitlines()
        rows = [json.loads(line) for line in lines]
    except FileNotFoundError as error:
        raise InputError(f"{folder} is not a fit: {Path(str(error.filename)).name} is missing; "
                         "make one with `countersteer defence fit`") from error  # fmt: skip
    except Exception as error:  # safetensors raises its own kinds
        raise InputError(f"{folder} is not a readable fit: {' '.join(str(error).split())[:200]}") from error
    if not isinstance(facts, dict) or facts.get("format") != FORMAT:
        raise InputError(f"{folder} is a fit of another format; fit again with this version")
    return Fit(arrays, facts, rows)


def fit(engine: Any, data: TraitData, settings: Settings, *, observer: Any = None) -> Fit:
    """Fit every layer on the `fit` split. Raises InputError for leaking data, EngineError if no response is usable.

    `observer` has `stage(name, total)` and `progress(done, total)`.
    """
    notes = [str(leak) for leak in refuse_leaks(data)]
    scenarios, sampling = data.split("fit"), settings.drawn(short=False)
    layers, seed = range(engine.n_layers), settings.defence.seed
    asks = [*ask_all(scenarios, "aligned"), *ask_all(scenarios, "malicious")]
    answers = answer_all(engine, asks, sampling, seed=seed, progress=_stage(observer, "responses", len(asks)))
    count = len(scenarios)
    kept = [i for i in range(count) if _usable(answers[i]) and _usable(answers[count + i])]
    if len(kept) < 4:
        raise EngineError(f"only {len(kept)} of {count} scenarios got a response under both system prompts")
    good, bad = [answers[i] for i in kept], [answers[count + i] for i in kept]
    observe = _stage(observer, "embeddings", 2 * len(kept))
    aligned = read(engine, good, sampling=sampling, layers=layers, progress=observe)
    malicious = read(engine, bad, sampling=sampling, layers=layers)
    groups = [scenarios[i].group for i in kept]
    arrays, rows = _per_layer(aligned, malicious, groups, layers, settings)
    _token_spread(engine, good, bad, arrays, rows, sampling)
    _contextual(engine, good, bad, arrays, rows, settings, sampling, observer)
    facts = {
        "format": FORMAT,
        "trait": {"name": data.name, "threat": data.threat, "description": data.description, "digest": data.digest},
        "source": data.source,
        "model": engine.describe().get("model"),
        "model_fingerprint": weights_of(engine.describe()),
        "template_hash": engine.describe().get("template_hash"),
        "d_model": engine.d_model,
        "scenarios": {"asked": count, "used": len(kept), "digests": sorted({s.digest for s in scenarios})},
        "settings": settings.model_dump(mode="json"),
        "layers": rows,
        "notes": notes,
    }
    return Fit(arrays, facts, [_response_row(a, i < count) for i, a in enumerate(answers)])


def _usable(answer: Answer) -> bool:
    return answer.ok and bool(answer.tokens)


def _stage(observer: Any, name: str, total: int) -> Any:
    if observer is None:
        return None
    observer.stage(name, total)
    return observer.progress


def _per_layer(
    aligned: Read, malicious: Read, groups: list[str], layers: range, settings: Settings
) -> tuple[dict[str, NDArray[np.float64]], list[dict[str, Any]]]:
    seed = settings.defence.seed
    found: dict[str, list[NDArray[np.float64]]] = {kind: [] for kind in sep.KINDS}
    conditions, rows = [], []
    for i, layer in enumerate(layers):
        good, bad = aligned.response[:, i], malicious.response[:, i]
        v, m = sep.logistic(good, bad)
        by_kind = {
            "logistic": v,
            "mean-difference": sep.mean_difference(good, bad),
            "caa": sep.mean_difference(aligned.last[:, i], malicious.last[:, i]),
            "lat": sep.lat(good, bad, rng(seed, "lat", layer)),
        }
        condition, threshold, told = _condition(aligned.prompt[:, i], malicious.prompt[:, i])
        conditions.append(condition)
        out = sep.held_out(good, bad, groups, rng(seed, "folds", layer), folds=settings.fit.folds)
        along = {k: sep.along(u, good, bad, boundary=m if k == "logistic" else None) for k, u in by_kind.items()}
        cosines = {k: float(u @ v) for k, u in by_kind.items() if k != "logistic"}
        rows.append({
            "layer": layer, "along": {k: a.to_dict() for k, a in along.items()}, "held_out": vars(out).copy(),
            "cosine_with_logistic": cosines, "condition_threshold": threshold, "condition_auc": told,
        })  # fmt: skip
        for kind, unit in by_kind.items():
            found[kind].append(unit)
    arrays = {f"direction.{kind}": np.stack(units) for kind, units in found.items()}
    arrays |= {"condition": np.stack(conditions), "embeddings.aligned": aligned.response,
               "embeddings.malicious": malicious.response}  # fmt: skip
    return arrays, rows


def _condition(
    aligned: NDArray[np.float64], malicious: NDArray[np.float64]
) -> tuple[NDArray[np.float64], float, float]:
    """Direction from aligned to malicious prompts, the cosine half-way between their means (CAST, 2409.05907), AUC."""
    direction = malicious.mean(0) - aligned.mean(0)
    size = float(np.linalg.norm(direction))
    if not size > 0:
        return np.eye(1, len(direction))[0], 0.0, 0.5
    unit = direction / size
    cosines = [rows @ unit / np.linalg.norm(rows, axis=1) for rows in (aligned, malicious)]
    return unit, float((cosines[0].mean() + cosines[1].mean()) / 2), sep.auc(cosines[1], cosines[0])


def _token_spread(
    engine: Any, good: list[Answer], bad: list[Answer], arrays: Mapping[str, NDArray[np.float64]],
    rows: list[dict[str, Any]], sampling: Any,
) -> None:  # fmt: skip
    """Per-token SD of the projections beside the per-response one: why StTP's grid goes to 36."""
    directions = [Direction(v, Site(r["layer"])) for v, r in zip(arrays["direction.logistic"], rows, strict=True)]
    for name, answers in (("aligned", good), ("malicious", bad)):
        values = np.concatenate(projections(engine, answers, directions, sampling=sampling))
        for i, row in enumerate(rows):
            spread = {f"{name}_token_spread": float(values[:, i].std(ddof=1))}
            row["tokens"] = row.get("tokens", {}) | spread
    for row in rows:
        response = row["along"]["logistic"]["aligned_spread"]
        row["tokens"]["ratio"] = row["tokens"]["aligned_token_spread"] / response if response > 0 else None


def _contextual(
    engine: Any, good: list[Answer], bad: list[Answer], arrays: dict[str, NDArray[np.float64]],
    rows: list[dict[str, Any]], settings: Settings, sampling: Any, observer: Any,
) -> None:  # fmt: skip
    """CLAS at the layers asked for: the aligned response after the malicious prompt."""
    import torch

    wanted, own = settings.fit.clas_layers, ClasSettings(settings.fit.clas_examples, settings.fit.clas_steps)
    if bad_layers := [k for k in wanted if not 0 <= k < len(rows)]:
        raise InputError(f"clas_layers has {bad_layers[0]}, but the model has layers 0..{len(rows) - 1}")
    observe = _stage(observer, "clas", len(wanted)) if wanted else None
    texts = [(token_ids(engine, b, sampling)[0], list(g.tokens)) for g, b in zip(good, bad, strict=True)]
    for done, layer in enumerate(wanted, start=1):
        size = rows[layer]["along"]["logistic"]["separation"]
        write = torch.from_numpy(arrays["direction.logistic"][layer] * size)
        fitted = fit_contextual(engine, texts[: own.examples], write, layer=layer, settings=own)
        arrays[f"clas.{layer}"] = fitted.weights.numpy()
        rows[layer]["clas"] = {"bias": fitted.bias, "loss_before": fitted.loss_before, "loss": fitted.loss_after,
                               "unsteered_loss": fitted.unsteered_loss}  # fmt: skip
        if observe is not None:
            observe(done, len(wanted))


def _response_row(answer: Answer, aligned: bool) -> dict[str, Any]:
    return {"scenario": answer.ask.scenario.id, "system": answer.ask.system, "user": answer.ask.user,
            "aligned": aligned, "status": answer.status, "text": answer.text, "tokens": len(answer.tokens)}  # fmt: skip
