"""The `Origin` of a dataset as JSON text inside a file of any format, with the sha256 of the arrays beside it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from wmrl_ray.config import ConfigError, from_dict
from wmrl_ray.data.card import DatasetCard, Origin
from wmrl_ray.data.episode import DataError


def origin_json(card: DatasetCard) -> str:
    """What `export` writes into a file."""
    origin = {field.name: getattr(card, field.name) for field in dataclasses.fields(Origin)}
    return json.dumps({"sha256": card.sha256, "origin": origin})


def origin_from_json(text: Any, path: Path) -> tuple[Origin, str | None]:
    """Reads it back: the origin and the declared sha256. No text: a file that was not written by us.

    Raises:
        DataError: the text is damaged.
    """
    if text is None:
        return Origin(), None
    try:
        values = json.loads(text.decode() if isinstance(text, bytes) else str(text))
        return from_dict(Origin, values["origin"]), str(values["sha256"])
    except (ConfigError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path}: its wmrl_origin text cannot be read ({error}); the file is damaged, restore it") from error
