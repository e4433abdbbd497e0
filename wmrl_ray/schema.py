"""The JSON Schema of a study's YAML, for editors and for tools that check files: made from the dataclasses that read it.

wmrl sweep --schema > tune_configs/sweep.schema.json
"""

from __future__ import annotations

import dataclasses
import types
import typing
from typing import Any

from wmrl_ray.space import KINDS

ID = "https://json-schema.org/draft/2020-12/schema"

Node = dict[str, Any]


def study_schema() -> Node:
    """Of a study. A file that includes another may leave out what that one says."""
    from wmrl_ray.core.agents import AGENTS
    from wmrl_ray.run.config import RunConfig
    from wmrl_ray.search import TuneSpec
    from wmrl_ray.study import MANAGER, VARIANTS, DatasetSpec, RunSpec, Study

    free = {"type": "object", "description": "settings of an agent, named as in its Config"}
    run = of_dataclass(RunConfig, partial=True, replaced={"agent": free})
    for fixed in ("algorithm", "dataset", "seed", "env"):
        del run["properties"][fixed]  # rows, columns and seeds decide them

    def settings_of(name: str) -> Node:
        """Settings of one algorithm's runs."""
        agent = of_dataclass(AGENTS[name].Config, partial=True)
        return {"allOf": [{"$ref": "#/$defs/run"}, {"properties": {"agent": agent}}]}

    def spec_of(name: str) -> Node:
        """What a study says of one algorithm."""
        settings = {"$ref": f"#/$defs/{name}.run"}
        return of_dataclass(
            RunSpec, replaced={"run": settings, "families": {"type": "object", "additionalProperties": settings}}
        )

    numbers = {"type": "array", "items": {"anyOf": [{"type": "number"}, {"type": "string"}]}}
    one = {
        "type": "object",
        "minProperties": 1,
        "maxProperties": 1,
        "additionalProperties": False,
        "properties": {
            kind: {"type": "array", "minItems": 1} if count is None else {**numbers, "minItems": count, "maxItems": count}
            for kind, count in KINDS.items()
        },
    }
    lists = {"type": "array", "minItems": 1, "uniqueItems": True}
    schema = of_dataclass(
        Study,
        replaced={
            "variants": {
                "type": "object",
                "properties": {name: {"$ref": "#/$defs/run"} for name in VARIANTS},
                "additionalProperties": False,
            },
            "datasets": {"type": "object", "additionalProperties": of_dataclass(DatasetSpec)},
            "algorithms": {
                "type": "object",
                "properties": {name: {"$ref": f"#/$defs/{name}"} for name in AGENTS if name != MANAGER},
                "additionalProperties": of_dataclass(RunSpec),
            },
            "manager": {"$ref": f"#/$defs/{MANAGER}"},
            "run": {"$ref": "#/$defs/run"},
            "seeds": {**lists, "items": {"type": "integer", "minimum": 0}},
            "grid": {"type": "object", "additionalProperties": lists},
            "search": {"type": "object", "additionalProperties": one},
            "tune": of_dataclass(TuneSpec),
        },
    )
    schema["properties"]["include"] = {"type": "string", "description": "a file beside this one, under it"}
    required = schema.pop("required")
    return {
        "$schema": ID,
        "title": "A study of wmrl_ray, for `wmrl sweep`",
        **schema,
        "anyOf": [{"required": ["include"]}, {"required": required}],
        "$defs": {
            "run": run,
            **{name: spec_of(name) for name in AGENTS},
            **{f"{name}.run": settings_of(name) for name in AGENTS},
        },
    }


def of_dataclass(cls: type, *, partial: bool = False, replaced: dict[str, Node] | None = None) -> Node:
    """What `config.from_dict` takes for `cls`. partial: nothing is required. replaced: schemas of fields that say more."""
    hints = typing.get_type_hints(cls)
    fields = [field for field in dataclasses.fields(cls) if field.init]
    properties = {f.name: (replaced or {}).get(f.name) or _of_hint(hints[f.name], partial) for f in fields}
    node: Node = {"type": "object", "properties": properties, "additionalProperties": False}
    required = [f.name for f in fields if f.default is f.default_factory is dataclasses.MISSING]
    return node if partial or not required else {**node, "required": required}


def _of_hint(hint: Any, partial: bool) -> Node:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        return of_dataclass(typing.cast(type, hint), partial=True)  # its defaults are the base that a file changes
    if origin in (typing.Union, types.UnionType):
        return {"anyOf": [_of_hint(arm, partial) for arm in args]}
    if origin is typing.Literal:
        return {"enum": list(args)}
    if origin in (list, tuple):
        return {"type": "array", "items": _of_hint(args[0], partial)}
    if origin is dict:
        return {"type": "object", "additionalProperties": _of_hint(args[1], partial)}
    if hint is float:  # PyYAML reads 3e-4 as a string, and `from_dict` as the number
        return {"anyOf": [{"type": "number"}, {"type": "string", "pattern": r"^[-+]?[0-9.]+([eE][-+]?[0-9]+)?$"}]}
    simple = {int: "integer", bool: "boolean", str: "string", type(None): "null"}
    return {"type": simple[hint]} if hint in simple else {}
