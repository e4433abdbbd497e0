from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from wmrl_ray.config import ConfigError, check, from_dict, read_json, to_dict, with_key
from wmrl_ray.core.agents import agent_config


@dataclass(frozen=True)
class Inner:
    width: int = 8

    def __post_init__(self) -> None:
        check(self.width > 0, f"width = {self.width}; it must be positive")


@dataclass(frozen=True)
class Outer:
    name: str
    rate: float = 0.1
    mode: Literal["a", "b"] = "a"
    limit: int | None = None
    flag: bool = False
    sizes: tuple[int, ...] = ()
    inner: Inner = field(default_factory=Inner)
    extra: dict[str, float] = field(default_factory=dict)
    perhaps: Literal["a", "b"] | None = None
    some: list[int] | None = None


@dataclass(frozen=True)
class Pair:
    first: int = 0
    second: int = 0


@dataclass(frozen=True)
class Nested:
    pair: Pair = field(default_factory=lambda: Pair(1, 2))
    plain: Pair = Pair(3, 4)
    optional: Pair | None = Pair(5, 6)
    absent: Pair | None = None
    either: int | Pair = Pair(7, 8)


def test_values_become_the_dataclass_and_back():
    values = {
        "name": "x",
        "rate": 1,
        "mode": "b",
        "limit": 3,
        "flag": True,
        "sizes": [1, 2],
        "inner": {"width": 4},
        "extra": {"k": 2},
    }
    config = from_dict(Outer, values)
    assert config == Outer("x", 1.0, "b", 3, True, (1, 2), Inner(4), {"k": 2.0})
    assert from_dict(Outer, to_dict(config)) == config


def test_a_mapping_is_laid_over_its_fields_own_default():
    """Of `plan: {horizon: 3}` the rest is the agent's plan, not the plan class's defaults."""
    assert from_dict(Nested, {"pair": {"first": 5}}).pair == Pair(5, 2)
    assert from_dict(Nested, {}, base=Nested(Pair(7, 8))).pair == Pair(7, 8)
    assert from_dict(Nested, {"pair": {"first": 5}}, base=Nested(Pair(7, 8))).pair == Pair(5, 8)
    plan = agent_config("iql_tdmpc", {"plan": {"horizon": 3}}).plan
    assert (plan.horizon, plan.num_samples, plan.num_policy, plan.iterations) == (3, 0, 512, 1)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("plain", Pair(0, 4)), ("optional", Pair(0, 6)), ("absent", Pair(0, 0)), ("either", Pair(0, 8))],
)
def test_so_it_is_over_a_plain_default_and_where_none_or_another_type_is_allowed(name: str, expected: Pair):
    assert getattr(from_dict(Nested, {name: {"first": 0}}), name) == expected
    base = Nested(plain=Pair(1, 9), optional=Pair(1, 9), absent=Pair(1, 9), either=Pair(1, 9))
    assert getattr(from_dict(Nested, {name: {"first": 0}}, base=base), name) == Pair(0, 9)
    assert from_dict(Nested, {"optional": None}).optional is None
    assert from_dict(Nested, {"optional": {"first": 0}}, base=Nested(optional=None)).optional == Pair(0, 0)


def test_a_wrong_key_inside_a_dataclass_or_none_is_named():
    with pytest.raises(ConfigError, match=r"unknown key 'optional.frist' \(did you mean 'first'\?\)"):
        from_dict(Nested, {"optional": {"frist": 1}})
    with pytest.raises(ConfigError, match=r"optional = 3 is a int; expected .*Pair \| None"):
        from_dict(Nested, {"optional": 3})


def test_yamls_string_for_a_float_is_a_float():
    assert from_dict(Outer, {"name": "x", "rate": "3e-4"}).rate == 3e-4


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": "x", "rat": 1}, r"unknown key 'rat' \(did you mean 'rate'\?\)"),
        ({"name": "x", "inner": {"widht": 1}}, r"unknown key 'inner.widht' \(did you mean 'width'\?\)"),
        ({}, "missing key 'name'"),
        ({"name": 3}, "name = 3 is a int; expected str"),
        ({"name": "x", "limit": 1.5}, "limit = 1.5 is a float"),
        ({"name": "x", "flag": 1}, "flag = 1 is a int; expected bool"),
        ({"name": "x", "rate": True}, "rate = True is a bool; expected float"),
        ({"name": "x", "mode": "c"}, "mode = 'c'.*allowed: 'a', 'b'"),
        ({"name": "x", "sizes": [1, "z"]}, r"sizes\[1\] = 'z'"),
        ({"name": "x", "inner": {"width": 0}}, "inner: width = 0; it must be positive"),
        ({"name": "x", "inner": 3}, "inner = 3 is a int; expected Inner"),
        ({"name": "x", "inner": None}, "inner is empty; write inner: {} for its defaults"),
        ({"name": "x", "perhaps": "c"}, "perhaps = 'c'.*allowed: 'a', 'b'"),
        ({"name": "x", "some": [1, "z"]}, r"some\[1\] = 'z'"),
    ],
)
def test_a_wrong_value_is_one_line_that_names_it(values, message):
    with pytest.raises(ConfigError, match=message) as error:
        from_dict(Outer, values)
    assert "\n" not in str(error.value)


def test_a_dotted_key_reaches_a_nested_mapping():
    values: dict = {"a": {"b": 1}}
    assert with_key(values, "a.c.d", 2) == {"a": {"b": 1, "c": {"d": 2}}}
    with pytest.raises(ConfigError, match="'b' is not a mapping"):
        with_key(values, "a.b.x", 1)


@pytest.mark.parametrize("content", [b"{", b"", b"[1]", b"3", b"\xff\xfe{", b"[" * 100_000])
def test_a_damaged_file_is_one_line_with_the_way_out(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(ConfigError, match=r"x\.json is damaged \(.*\); restore it") as error:
        read_json(tmp_path / "x.json", "restore it")
    assert "\n" not in str(error.value)
