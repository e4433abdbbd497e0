"""The door between an environment and an episode: every answer is checked where it is stepped, and gets the project's form.

What passes: observations of the declared shape, of finite numbers (images: of bytes); a reward that is one finite number; flags
that are true or false; an info whose success, under any of the names that the field gives it, is true or false. All else is
refused on one line with environment, episode and step: what came in here would be learned from, or averaged into a result.
"""

from __future__ import annotations

import inspect
from typing import Any, NamedTuple, NoReturn

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box

from wmrl_ray.config import ConfigError

SUCCESS = ("success", "is_success", "solved")  # in info; the first that is there and not None counts
_LARGEST = np.float64(np.finfo(np.float32).max)  # of episodes; no Python float, which becomes inf beside a float16
_INTERFACE = "reset(*, seed=None, options=None) -> (obs, info), step(action) -> (obs, reward, terminated, truncated, info)"


class EnvError(ConfigError):
    """An environment answered what no episode can hold. The message names environment, episode, step and value."""


class CheckedEnv(gym.Wrapper[np.ndarray, np.ndarray, Any, Any]):
    """`env` behind the door: observations are new arrays, float32 [O] or images uint8 [C, h, w]; actions in [-1, 1] (clipped)
    are scaled to the environment's bounds; `info["success"]` is a bool where the environment reports one.

    Images [h, w, C] are transposed. An exception of the environment's own passes as it is, with a note of the place.

    next_episode: the number that the next reset begins; counts up by itself.

    Raises:
        ConfigError: the observation is not a Box (or a Dict or Tuple of them), or is an image of another layout; the action is
            not a bounded Box; `reset` takes no seed.
        EnvError: in `reset` and `step`.
    """

    def __init__(self, env: gym.Env):
        super().__init__(env)
        self.name = env.spec.id if env.spec is not None else type(env.unwrapped).__name__
        self.next_episode, self._episode, self._steps, self._seed = 0, 0, 0, None
        space = env.observation_space
        self._is_image, self._is_last = is_pixels(space), _has_channels_last(space)
        if self._is_image or self._is_last:
            shape: Any = space.shape
            self._leaves = [_Leaf((), shape)]
            if self._is_last:
                space = Box(0, 255, (shape[2], *shape[:2]), np.uint8)
        else:
            space, self._leaves = self._vectors(space)
        self.observation_space = space
        self.action_space = self._actions(env.action_space)
        self._check_reset(env.unwrapped.reset)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        self._episode, self._steps, self._seed = self.next_episode, 0, seed
        self.next_episode += 1
        try:
            answer = self.env.reset(seed=seed, options=options)
        except Exception as error:
            error.add_note(f"in the reset of {self._place()}")
            raise
        if not (isinstance(answer, tuple) and len(answer) == 2):
            self._refuse(f"reset returned {_show(answer)}, not (obs, info)", f"an environment has {_INTERFACE}")
        return self._observation(answer[0]), self._info(answer[1])

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self._steps += 1
        if self._scales:
            action = self._middle + self._half * action.reshape(self._inner.shape)
            action = np.minimum(np.maximum(action, self._inner.low), self._inner.high).astype(self._inner.dtype)
        try:
            answer: Any = self.env.step(action)
        except Exception as error:
            if isinstance(error, ValueError) and "to unpack (expected 5" in str(error):  # by a wrapper inside
                self._refuse(f"step returned no five values ({error})", f"an environment has {_INTERFACE}", error)
            error.add_note(f"in {self._place()}")
            raise
        if not (isinstance(answer, tuple) and len(answer) == 5):
            self._refuse(f"step returned {_show(answer)}, not five values", f"an environment has {_INTERFACE}")
        obs, reward, terminated, truncated, info = answer
        if type(reward) is not float:
            reward = self._number("reward", reward)
        if not -_LARGEST <= reward <= _LARGEST:  # nor NaN
            self._refuse(f"its reward is {reward:g}", "a reward must be a finite float32")
        if type(terminated) is not bool:
            terminated = self._flag("terminated", terminated)
        if type(truncated) is not bool:
            truncated = self._flag("truncated", truncated)
        return self._observation(obs), reward, terminated, truncated, self._info(info)

    # -- what it answered -----------------------------------------------------------------------------------------------------

    def _observation(self, obs: Any) -> np.ndarray:
        if self._is_image or self._is_last:
            image = self._array(obs, self._leaves[0])
            if image.dtype != np.uint8:
                self._refuse(f"its image is {image.dtype}, and its space says uint8", "return uint8 from 0 to 255")
            return np.array(image.transpose(2, 0, 1) if self._is_last else image, order="C")
        if len(self._leaves) == 1 and not self._leaves[0].path:
            return self._vector(obs, self._leaves[0])
        return np.concatenate([self._vector(self._find(obs, leaf), leaf) for leaf in self._leaves])

    def _vector(self, value: Any, leaf: _Leaf) -> np.ndarray:
        """[n] float32, a new array: an environment may write its next observation into the one that it returned."""
        array = self._array(value, leaf)
        if not np.maximum.reduce(np.abs(array), axis=None, initial=0.0) <= _LARGEST:  # nor NaN
            bad = np.argwhere(~(np.abs(array) <= _LARGEST))[0]
            where = f"{leaf.name}[{', '.join(map(str, bad))}]" if array.ndim else leaf.name
            self._refuse(f"its {where} is {array[tuple(bad)]:g}", "end the episode (truncated) where its simulation diverges")
        return array.astype(np.float32).ravel()

    def _array(self, value: Any, leaf: _Leaf) -> np.ndarray:
        try:
            array = np.asarray(value)
        except ValueError:  # lists of several lengths
            array = np.asarray(value, dtype=object)
        if array.dtype.kind not in "fiub":
            self._refuse(f"its {leaf.name} is {_show(value)}", "return an array of numbers")
        if array.shape != leaf.shape:
            said = f"has shape {array.shape}, and its space says {leaf.shape}"
            self._refuse(f"its {leaf.name} {said}", "declare what it returns, or return what it declares")
        return array

    def _find(self, obs: Any, leaf: _Leaf) -> Any:
        for key in leaf.path:
            try:
                obs = obs[key]
            except (KeyError, IndexError, TypeError):
                self._refuse(f"its observation has no {leaf.name.removeprefix('observation')}", "its space says that it has")
        return obs

    def _number(self, name: str, value: Any) -> float:
        array = np.asarray(value)
        if array.size != 1 or array.dtype.kind not in "fiub":
            self._refuse(f"its {name} is {_show(value)}", "return one number")
        return float(array.item())

    def _flag(self, name: str, value: Any) -> bool:
        number = self._number(name, value)
        if number not in (0.0, 1.0):
            self._refuse(f"its {name} is {number:g}", "return True or False")
        return bool(number)

    def _info(self, info: Any) -> dict[str, Any]:
        """With `success` as a bool, or without it where nothing is reported (None says nothing)."""
        if not isinstance(info, dict):
            self._refuse(f"its info is {_show(info)}", "return a dict")
        if type(info.get("success")) is bool:
            return info
        for name in SUCCESS:
            if (value := info.get(name)) is not None:
                return {**info, "success": value if type(value) is bool else self._flag(f"info[{name!r}]", value)}
        return {name: value for name, value in info.items() if name != "success"}

    def _refuse(self, what: str, fix: str, error: Exception | None = None) -> NoReturn:
        raise EnvError(f"{self._place()}: {what}; {fix}") from error

    def _place(self) -> str:
        seed = "" if self._seed is None else f", reset with seed {self._seed}"
        return f"env = {self.name!r}, episode {self._episode}, step {self._steps}{seed}"

    # -- what it declares -----------------------------------------------------------------------------------------------------

    def _vectors(self, space: gym.Space) -> tuple[Box, list[_Leaf]]:
        """The space of flat vectors, and what they are put together from, in the order of Gymnasium's `flatten`."""
        boxes = _boxes(space)
        for path, box in boxes:
            if not isinstance(box, Box):
                raise ConfigError(
                    f"env = {self.name!r} has observations {box}{_at(path)}; Box, or Dict or Tuple of Box, is needed: register "
                    "it inside gymnasium.wrappers.FlattenObservation"
                )
            if box.dtype == np.uint8:
                raise ConfigError(
                    f"env = {self.name!r} has image observations {box}{_at(path)}; a vector, or uint8 [channels, height, "
                    f"width] alone, is needed: {_way_out(path, box)}"
                )
        leaves = [_Leaf(path, box.shape) for path, box in boxes]
        low, high = (np.concatenate([getattr(box, bound).ravel() for _, box in boxes]) for bound in ("low", "high"))
        return Box(low.astype(np.float32), high.astype(np.float32), dtype=np.float32), leaves

    def _actions(self, space: gym.Space) -> Box:
        """[-1, 1], which `_middle` and `_half` scale to the environment's own."""
        if isinstance(space, gym.spaces.Discrete):
            raise ConfigError(
                f"env = {self.name!r} has discrete actions {space}; a bounded Box is needed, as agents act with real numbers: "
                f"register it inside a gymnasium.ActionWrapper that has Box(-1, 1, ({space.n},)) and takes the largest"
            )
        if not (isinstance(space, Box) and np.isfinite(space.low).all() and np.isfinite(space.high).all()):
            raise ConfigError(
                f"env = {self.name!r} has actions {space}; a bounded Box is needed: register it inside "
                "gymnasium.wrappers.TransformAction, with bounds"
            )
        ours = Box(-1.0, 1.0, (int(np.prod(space.shape)),), np.float32)
        low, high = space.low.astype(np.float64), space.high.astype(np.float64)
        self._inner, self._middle, self._half = space, (high + low) / 2, (high - low) / 2
        self._scales = space != ours
        return ours

    def _check_reset(self, reset: Any) -> None:
        parameters = inspect.signature(reset).parameters
        takes_all = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values())
        if missing := [name for name in ("seed", "options") if name not in parameters and not takes_all]:
            raise ConfigError(f"env = {self.name!r}: its reset takes no {missing[0]}; an environment has {_INTERFACE}")


class _Leaf(NamedTuple):
    """One array of an observation. path: keys that lead to it."""

    path: tuple[Any, ...]
    shape: tuple[int, ...]

    @property
    def name(self) -> str:
        return "observation" + "".join(f"[{key!r}]" for key in self.path)


def is_pixels(space: gym.Space) -> bool:
    """Images as the project takes them: uint8 [C, h, w], with fewer channels than rows and columns."""
    return (
        isinstance(space, Box) and space.dtype == np.uint8 and len(space.shape) == 3 and space.shape[0] < min(space.shape[1:])
    )


def _has_channels_last(space: gym.Space) -> bool:
    """uint8 [h, w, C]; never true together with `is_pixels`."""
    return (
        isinstance(space, Box) and space.dtype == np.uint8 and len(space.shape) == 3 and space.shape[2] < min(space.shape[:2])
    )


def _boxes(space: gym.Space, path: tuple[Any, ...] = ()) -> list[tuple[tuple[Any, ...], Any]]:
    """(path, space) of everything inside that holds no other."""
    if isinstance(space, gym.spaces.Dict):
        return [found for key, inner in space.spaces.items() for found in _boxes(inner, (*path, key))]
    if isinstance(space, gym.spaces.Tuple):
        return [found for key, inner in enumerate(space.spaces) for found in _boxes(inner, (*path, key))]
    return [(path, space)]


def _way_out(path: tuple[Any, ...], box: Box) -> str:
    if path:
        return "register it inside a gymnasium.wrappers.TransformObservation that takes this picture alone"
    if len(box.shape) == 2:
        return f"register it inside gymnasium.wrappers.ReshapeObservation(env, {(1, *box.shape)})"
    return "register it inside a gymnasium.wrappers.TransformObservation that makes one of it"


def _at(path: tuple[Any, ...]) -> str:
    return f" at {path[0]!r}" if path else ""


def _show(value: Any) -> str:
    """A value in few words."""
    if isinstance(value, np.ndarray):
        return f"{value.dtype} of shape {value.shape}"
    if isinstance(value, tuple):
        return f"{len(value)} values"
    text = repr(value)
    return text if len(text) <= 40 else f"a {type(value).__name__}"
