"""What every test shares: no network, one thread per process, reproducible property tests, what was logged."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import logging
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile(
    "countersteer",
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.load_profile("countersteer")


@pytest.fixture
def heard() -> Iterator[list[str]]:
    """What the package's loggers say from warnings on, whatever other libraries did to this process's logging."""
    said: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    above = logging.getLogger("countersteer")
    ours = [above, *(logging.getLogger(n) for n in logging.root.manager.loggerDict if n.startswith("countersteer."))]
    before = [(one, one.disabled, one.propagate, one.level) for one in ours]
    silenced = logging.root.manager.disable
    logging.disable(logging.NOTSET)
    for one in ours:
        one.disabled, one.propagate = False, True
        one.setLevel(logging.WARNING if one is above else logging.NOTSET)
    above.addHandler(handler)
    yield said
    above.removeHandler(handler)
    logging.disable(silenced)
    for one, disabled, propagate, level in before:
        one.disabled, one.propagate = disabled, propagate
        one.setLevel(level)
