"""Agents that take their own steps, known to every process that unpickles one of the configurations below."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from tests.fakes import ImageActor, Imitator, OnlineTDMPC
from tests.rllib import fakes
from wmrl_ray.core.agents import AGENTS
from wmrl_ray.rllib.config import CONFIGS, AgentAlgorithmConfig
from wmrl_ray.rllib.online import OnlineAlgorithm
from wmrl_ray.run.config import OnlineConfig, RunConfig

AGENTS.update(own_tdmpc=OnlineTDMPC, own_imitator=Imitator, own_images=ImageActor)


class OwnTDMPC(OnlineAlgorithm):
    """TD-MPC learning from its own steps."""


class OwnTDMPCConfig(AgentAlgorithmConfig):
    agent_name = "own_tdmpc"
    default_algo_class = OwnTDMPC


class OwnImitator(OnlineAlgorithm):
    """Needs demonstrations."""


class OwnImitatorConfig(AgentAlgorithmConfig):
    agent_name = "own_imitator"
    default_algo_class = OwnImitator


class OwnImages(OnlineAlgorithm):
    """Learns from images."""


class OwnImagesConfig(AgentAlgorithmConfig):
    agent_name = "own_images"
    default_algo_class = OwnImages


CONFIGS.update({c.agent_name: c for c in (OwnTDMPCConfig, OwnImitatorConfig, OwnImagesConfig)})


def small_online(**online: Any) -> Any:
    """A tiny TD-MPC on the plane, everything in this process unless `online` says otherwise."""
    config = OwnTDMPCConfig().environment(fakes.PLANE).training(agent=fakes.TINY_AGENT, batch_size=8, updates_per_call=12)
    config.training(online={"num_envs": 2, "seed_steps": 48, **online})
    return config.env_runners(num_envs_per_env_runner=2).evaluation(evaluation_duration=4)


def run_config(**changes: Any) -> RunConfig:
    """The same as a run."""
    settings: dict[str, Any] = {
        "algorithm": "own_tdmpc",
        "env": fakes.PLANE,
        "seed": 3,
        "num_updates": 120,
        "batch_size": 8,
        "updates_per_call": 12,
        "eval_every": 60,
        "eval_episodes": 4,
        "checkpoint_every": 48,
        "log_every": 24,
        "device": "cpu",
        "num_eval_runners": 0,
        "envs_per_runner": 2,
        "online": OnlineConfig(num_envs=2, seed_steps=48, capacity=200),
        "agent": fakes.TINY_AGENT,
    }
    return RunConfig(**{**settings, **changes})


def weights(algorithm: Any) -> list[dict[str, np.ndarray]]:
    """Of every rank."""
    return algorithm.on_learners(lambda learner: {k: v.numpy().copy() for k, v in learner.agent_module.state_dict().items()})


def replays(algorithm: Any) -> list[dict[str, np.ndarray]]:
    """The episodes in the replay of every rank."""
    return algorithm.on_learners(lambda learner: learner.replay.get_state()["online"])


def runner_pid(algorithm: OnlineAlgorithm, runner: int) -> int:
    import ray

    assert algorithm._runners is not None
    return ray.get(algorithm._runners.actors[runner].apply.remote(lambda runner: os.getpid()))


def unfinished_steps(algorithm: OnlineAlgorithm) -> int:
    """What lies in the environments now, as the runners say."""
    assert algorithm._runners is not None
    states, dead = algorithm._runners.collector_states(algorithm._session)
    assert not dead
    return sum(len(episode["action"]) for state in states if state is not None for episode in state["unfinished"])
