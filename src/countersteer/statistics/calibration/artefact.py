"""A calibration as a frozen, hashed artefact: strengths never move under the trials that were run at them.

A plain dict that goes into JSON unchanged: method, settings, caller's context (model fingerprint, units, judge),
estimates per latent, and the SHA-256 of all that in canonical JSON (sorted keys, no spaces, floats as Python's
shortest repr). Loading refuses an artefact whose digest does not fit.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from countersteer.core.errors import InputError
from countersteer.statistics.calibration.base import Calibrator, Estimate, Id

FORMAT = 1


@dataclass(frozen=True)
class Calibration:
    """A loaded artefact: how it was made, what it found, and its digest."""

    settings: Mapping[str, Any]
    context: Mapping[str, Any]
    estimates: Mapping[Id, Estimate]
    digest: str


def freeze(calibrator: Calibrator, context: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The artefact of a finished calibrator. `context`: JSON-able facts that the strengths depend on.

    Raises InputError if the calibration is unfinished or the context does not go into JSON.
    """
    return pack(calibrator.describe(), calibrator.result(), context)


def pack(
    settings: Mapping[str, Any], estimates: Mapping[Id, Estimate], context: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The artefact of given estimates; `settings` must name the method."""
    body = {
        "format": FORMAT,
        "settings": dict(settings),
        "context": dict(context or {}),
        "estimates": [{"latent": latent, **asdict(estimate)} for latent, estimate in estimates.items()],
    }
    plain: dict[str, Any] = json.loads(_canonical(body))
    return {**plain, "digest": digest(plain)}


def digest(body: Mapping[str, Any]) -> str:
    """SHA-256 of an artefact's canonical JSON, its own digest left out."""
    return hashlib.sha256(_canonical({k: v for k, v in body.items() if k != "digest"}).encode()).hexdigest()


def load(artefact: Mapping[str, Any]) -> Calibration:
    """Read an artefact back. Raises InputError if it is of another format, incomplete, or was changed."""
    if artefact.get("format") != FORMAT:
        raise InputError(f"calibration of format {artefact.get('format')!r}, not {FORMAT}: calibrate again")
    if artefact.get("digest") != digest(artefact):
        raise InputError("the calibration does not match its digest: it was changed or damaged, calibrate again")
    try:
        estimates = {
            row["latent"]: Estimate(**{k: row[k] for k in row if k != "latent"}) for row in artefact["estimates"]
        }
        return Calibration(artefact["settings"], artefact["context"], estimates, artefact["digest"])
    except (KeyError, TypeError) as error:
        raise InputError(f"the calibration is incomplete ({error}): calibrate again") from error


def _canonical(body: Mapping[str, Any]) -> str:
    try:
        return json.dumps(body, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=False)
    except (TypeError, ValueError) as error:
        raise InputError(f"a calibration's settings and context must go into JSON: {error}") from error
