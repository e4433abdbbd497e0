"""What can be put around an environment behind the door: repeated actions, a trembling hand, episodes of one length."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import numpy as np


class ActionRepeat(gym.Wrapper[Any, np.ndarray, Any, np.ndarray]):
    """Takes every action `repeat` times, or until the episode ends; rewards add up, success at any of them counts, or at the
    last where only the end of an episode does.
    """

    def __init__(self, env: gym.Env, repeat: int):
        super().__init__(env)
        self.action_repeat, self._at_end = repeat, succeeds_at_end(env)
        limit = step_limit_of(env)
        self.max_episode_steps = None if limit is None else -(-limit // repeat)

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        total, success = 0.0, False
        for _ in range(self.action_repeat):
            obs, reward, terminated, truncated, info = self.env.step(action)
            total += float(reward)
            success = bool(info.get("success", False)) or (success and not self._at_end)
            if terminated or truncated:
                break
        if "success" in info:
            info["success"] = success
        return obs, total, terminated, truncated, info


class TremblingHand(gym.Wrapper[Any, np.ndarray, Any, np.ndarray]):
    """With probability p_tremble the action that is executed is a uniformly random one instead of the agent's.

    Noise of the dynamics as in HyPE (Ren et al., 2024) and Appendix E.4 of the IQ-MPC paper: the agent is not told, and the
    transition stays under the action it chose. Its random stream starts from reset's seed and is not the environment's.
    """

    def __init__(self, env: gym.Env, p_tremble: float):
        super().__init__(env)
        self.p_tremble = p_tremble
        self._generator = np.random.default_rng()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        if seed is not None:
            self._generator = np.random.default_rng([seed, 2])  # Why 2: 1 is that of random intents
        return self.env.reset(seed=seed, options=options)

    def step(self, action: np.ndarray) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        if self._generator.random() < self.p_tremble:
            action = self._generator.uniform(-1.0, 1.0, action.shape).astype(np.float32)
        return self.env.step(action)


class FixedLength(gym.Wrapper[Any, np.ndarray, Any, np.ndarray]):
    """Episodes of exactly `length` steps: the environment goes on where it would have ended, and never terminates.

    As in TD-MPC2, whose tasks are all of one length: an agent that drops the object has to live with it.
    """

    def __init__(self, env: gym.Env, length: int):
        super().__init__(env)
        self.length, self._elapsed = length, 0
        self.max_episode_steps = length

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self._elapsed = 0
        return self.env.reset(seed=seed, options=options)

    def step(self, action: np.ndarray) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        obs, reward, _, _, info = self.env.step(action)
        self._elapsed += 1
        return obs, reward, False, self._elapsed >= self.length, info


class SeededResets(gym.Wrapper[Any, Any, Any, Any]):
    """Starts each episode from the next of `seeds` while there are any: a vector environment resets its ended ones unseeded.

    numbers: those by which an error names the episodes.
    """

    seeds: Iterator[int] = iter(())
    numbers: Iterator[int] = iter(())

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        if (number := next(self.numbers, None)) is not None:
            self.env.set_wrapper_attr("next_episode", number, force=False)
        return self.env.reset(seed=next(self.seeds, seed), options=options)


def step_limit_of(env: gym.Env) -> int | None:
    """After how many steps of `env` an episode is truncated; None: never, or it does not say."""
    layer: Any = env
    while True:
        for name in ("max_episode_steps", "_max_episode_steps"):  # of families that count by themselves; of Gymnasium's wrapper
            if isinstance(limit := getattr(layer, name, None), int):
                return limit
        if not isinstance(layer, gym.Wrapper):
            return None if env.spec is None else env.spec.max_episode_steps
        layer = layer.env


def action_repeat_of(env: gym.Env) -> int:
    """How often an action of `env` is taken in its simulator; 1 where nothing repeats it."""
    return env.get_wrapper_attr("action_repeat") if env.has_wrapper_attr("action_repeat") else 1


def succeeds_at_end(env: gym.Env) -> bool:
    """What an episode's success is: the success of its last step, where `env` has success_at_end = True; else of any step.

    Why two: TD-MPC2 and the papers that follow it report the last step of MyoSuite's and ManiSkill's episodes, which go on
    after a success; in D4RL's mazes a goal that was reached counts.
    """
    return env.has_wrapper_attr("success_at_end") and bool(env.get_wrapper_attr("success_at_end"))
