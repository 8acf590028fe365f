"""Keeping the libraries' own progress bars, warnings and notes off the screen: what matters is told by us."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No progress bars, warnings and notes of transformers, datasets and trl (the last two where they are there)."""
    from transformers.utils import logging as hf_logging

    with contextlib.ExitStack() as stack:
        stack.callback(hf_logging.set_verbosity, hf_logging.get_verbosity())
        if hf_logging.is_progress_bar_enabled():
            stack.callback(hf_logging.enable_progress_bar)
        hf_logging.set_verbosity_error()
        hf_logging.disable_progress_bar()
        with contextlib.suppress(ImportError):
            from datasets import disable_progress_bars, enable_progress_bars, is_progress_bar_enabled

            if is_progress_bar_enabled():
                stack.callback(enable_progress_bars)
            disable_progress_bars()
        trl = logging.getLogger("trl")
        stack.callback(trl.setLevel, trl.level)
        trl.setLevel(logging.ERROR)
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        yield
