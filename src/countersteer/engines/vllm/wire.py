"""Requests, completions and errors as JSON, and tensors as safetensors, between a server and its clients. No pickle."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from countersteer.core import errors
from countersteer.core.errors import CountersteerError, EngineError, InputError, NoOpError, RefusedError
from countersteer.core.request import Completion, Receipt, Request, Sampling
from countersteer.core.site import Site
from countersteer.edits.vectors import ReadRows


def reads_to_bytes(groups: Sequence[ReadRows]) -> bytes:
    """Readout rows as one safetensors file in memory."""
    tensors = {}
    for i, group in enumerate(groups):
        tensors[f"read.{i}"], tensors[f"bias.{i}"] = group.read.double().contiguous(), group.bias.double().contiguous()
        tensors[f"threshold.{i}"] = group.threshold.double().contiguous()
    return save(tensors, metadata={"sites": json.dumps([str(g.site) for g in groups])})


def reads_from_bytes(data: bytes, sites: Sequence[str]) -> tuple[ReadRows, ...]:
    """The readout rows of `reads_to_bytes`, given their sites. Raises InputError."""
    try:
        tensors = load(data)
        out = tuple(
            ReadRows(Site.parse(s), tensors[f"read.{i}"], tensors[f"bias.{i}"], tensors[f"threshold.{i}"])
            for i, s in enumerate(sites)
        )
    except (SafetensorError, KeyError, ValueError) as error:
        raise InputError(f"the readouts are not readable: {error}") from error
    if any(g.read.ndim != 2 or len(g.bias) != len(g.read) or len(g.threshold) != len(g.read) for g in out):
        raise InputError("the readouts' rows, biases and thresholds do not match")
    return out


def request_to_json(request: Request, steer: str | None, groups: Sequence[ReadRows]) -> dict[str, Any]:
    """A request; its intervention by fingerprint, its readouts inline."""
    return {
        "prompt": request.prompt,
        "messages": list(request.messages) if request.messages is not None else None,
        "tokens": list(request.tokens) if request.tokens is not None else None,
        "system": request.system,
        "prefix": request.prefix,
        "template": request.template,
        "sampling": asdict(request.sampling),
        "steer": steer,
        "measure_only": request.measure_only,
        "exempt": list(request.exempt),
        "adapter": request.adapter,
        "reads": base64.b64encode(reads_to_bytes(groups)).decode() if groups else None,
        "sites": [str(g.site) for g in groups],
    }


def request_from_json(data: Any, intervention: Any) -> Request:
    """The request of `request_to_json`. Raises InputError."""
    if not isinstance(data, Mapping):
        raise InputError("a request is a JSON object")
    given: dict[str, Any] = {k: data.get(k) for k in ("prompt", "messages", "tokens", "system", "prefix", "adapter")}
    given["exempt"] = data.get("exempt") or []
    for key in ("messages", "tokens", "exempt"):
        if given[key] is not None:
            if not isinstance(given[key], list):
                raise InputError(f"{key} must be a list")
            given[key] = tuple(given[key])
    if not isinstance(data.get("measure_only", False), bool):
        raise InputError("measure_only must be true or false")
    try:
        settings = dict(data.get("sampling") or {})
        settings["stop"] = tuple(settings.get("stop") or ())
        sampling = Sampling(**settings)
        groups = None
        if data.get("reads"):
            groups = list(reads_from_bytes(base64.b64decode(data["reads"]), list(data.get("sites") or ())))
        return Request(
            **given,
            intervention=intervention,
            readouts=groups,
            sampling=sampling,
            template=bool(data.get("template", True)),
            measure_only=data.get("measure_only", False),
        )
    except (TypeError, ValueError) as error:
        raise InputError(f"the request is not readable: {error}") from error


def completion_to_json(completion: Completion) -> dict[str, Any]:
    """A completion; readouts as safetensors in base64."""
    values = completion.readouts
    data = {k: v for k, v in asdict(completion).items() if k != "readouts"}
    if values is not None:
        data["readouts"] = base64.b64encode(save({"readouts": torch.from_numpy(values).contiguous()})).decode()
    return data


def completion_from_json(data: Mapping[str, Any]) -> Completion:
    """The completion of `completion_to_json`."""
    values = data.get("readouts")
    return Completion(
        text=data["text"],
        tokens=tuple(data["tokens"]),
        prompt_tokens=data["prompt_tokens"],
        finish=data["finish"],
        receipt=Receipt.from_dict(data["receipt"]),
        readouts=load(base64.b64decode(values))["readouts"].numpy() if values else None,
    )


def error_to_json(error: BaseException) -> dict[str, Any]:
    """An error with its class; a no-op carries its completion."""
    known = isinstance(error, CountersteerError)
    out: dict[str, Any] = {
        "kind": type(error).__name__ if known else "EngineError",
        "message": " ".join(str(error).split()) or type(error).__name__,
    }
    if isinstance(error, RefusedError):
        out["parts"] = [error.what, error.why, error.instead]
    if isinstance(error, NoOpError) and error.completion is not None:
        out["completion"] = completion_to_json(error.completion)
    return out


def error_from_json(data: Mapping[str, Any]) -> CountersteerError:
    """The error of `error_to_json`."""
    kind = getattr(errors, str(data.get("kind")), EngineError)
    message = str(data.get("message", "the server failed"))
    if kind is RefusedError and data.get("parts"):
        return RefusedError(*data["parts"])
    if kind is NoOpError:
        completion = data.get("completion")
        return NoOpError(message, completion_from_json(completion) if completion else None)
    if not (isinstance(kind, type) and issubclass(kind, CountersteerError)) or kind is RefusedError:
        kind = EngineError
    return kind(message)


def finite(value: Any) -> Any:
    """Plain data with NaN and infinities as None, so that it is JSON."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {k: finite(v) for k, v in value.items()}
    return [finite(v) for v in value] if isinstance(value, list | tuple) else value
