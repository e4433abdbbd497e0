from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture
def wmrl_options() -> Callable[[list[str]], None]:
    """wmrl_options(words) raises where `wmrl WORDS` would not be taken, as `wmrl job submit` checks it."""
    from wmrl_ray.cli.job import check_command

    return lambda words: check_command(words, Path())
