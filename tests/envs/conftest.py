"""What the tests of several families share."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """without("dm_control") makes a package look as if it were not installed."""

    def hide(package: str) -> None:
        for module in list(sys.modules):
            if module.split(".")[0] == package:
                monkeypatch.delitem(sys.modules, module)
        monkeypatch.setitem(sys.modules, package, None)

    return hide
