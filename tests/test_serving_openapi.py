"""The OpenAPI description against the running server, by schemathesis: what it says is what the server does."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import settings
from schemathesis.specs.openapi import checks

import countersteer as cs
from countersteer.serving.openapi import description
from countersteer.serving.run import running
from serving_world import ADMIN, LIMITS, interventions, plan_of, settings_of, write_bundles


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("openapi")
    with cs.load_engine("organism") as engine:
        paths = write_bundles(folder, engine, {"target": interventions(engine.d_model)["target"]})
        made = settings_of(lambda: plan_of(paths), audit=folder / "audit.jsonl", limits=replace(LIMITS, max_tokens=2))
        with running(engine, made) as where:
            yield where


DESCRIBED = description(keys=True, version=cs.__version__)
schema = schemathesis.openapi.from_dict(DESCRIBED)


def test_the_server_gives_its_description(url: str) -> None:
    assert httpx.get(f"{url}/openapi.json", trust_env=False).json() == DESCRIBED


@schema.parametrize()
@settings(max_examples=12, deadline=None, derandomize=True)
def test_the_server_is_as_described(case: Any, url: str) -> None:
    # Accepting all that fits the schema is not promised: a model's name, a bundle, the context's length decide too.
    case.call_and_validate(
        base_url=url, headers={"Authorization": f"Bearer {ADMIN}"}, excluded_checks=[checks.positive_data_acceptance]
    )
