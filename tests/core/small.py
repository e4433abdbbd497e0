"""Every agent with small networks, for the tests that hold for all of them."""

from tests.core.reference import random_batch
from wmrl_ray.core.agents import AGENTS, make_agent
from wmrl_ray.core.batch import Batch

O, A = 5, 6  # noqa: E741
MODEL = {"latent_dim": 8, "encoder_dim": 32, "hidden_dim": 32}
CONFIGS = {
    "bc": {"hidden_dim": 32},
    "iql": {"hidden_dim": 32, "lr_steps": 10},
    "td3_bc": {"hidden_dim": 32},
    "awac": {"hidden_dim": 32, "temperature": 1.0},
    "cql": {"hidden_dim": 32, "actor_layers": 2, "critic_layers": 2, "num_actions": 3},
    "dt": {"embedding_dim": 16, "num_layers": 2, "sequence": 4, "episode_len": 20},
    "tdmpc": {"model": MODEL, "plan": {"horizon": 3, "num_samples": 32, "num_policy": 4, "num_elites": 8, "iterations": 2}},
    "tdmpc2": {
        "model": {"latent_dim": 16, "encoder_dim": 32, "mlp_dim": 32, "simnorm_dim": 4},
        "episode_len": 500,
        "plan": {"horizon": 3, "num_samples": 32, "num_policy": 4, "num_elites": 8, "iterations": 2},
    },
    "iql_tdmpc": {"model": MODEL, "plan": {"horizon": 3, "num_samples": 0, "num_policy": 32, "num_elites": 8, "iterations": 1}},
    "manager": {
        "model": MODEL,
        "plan": {"horizon": 2, "num_samples": 0, "num_policy": 32, "num_elites": 8, "iterations": 1},
        "skip": 2,
    },
    "iq_sac": {"hidden_dim": 32},
    "iq_mpc": {
        "model": {"latent_dim": 16, "encoder_dim": 32, "mlp_dim": 32, "simnorm_dim": 4},
        "episode_len": 500,
        "plan": {"horizon": 3, "num_samples": 32, "num_policy": 4, "num_elites": 8, "iterations": 2},
    },
}


# Why not all of AGENTS: other tests' files put fakes of their own there when they are imported
OURS = [name for name, agent in AGENTS.items() if agent.__module__.startswith("wmrl_ray.")]


def make(name: str, seed: int = 0, **config):
    return make_agent(name, {**CONFIGS[name], **config}, O, A, seed=seed)


def batches(name: str, count: int) -> list[Batch]:
    return [random_batch(4, make(name).config.window, O, A, seed=i) for i in range(count)]


def losses(agent, data) -> list[dict[str, float]]:
    return [{k: v.item() for k, v in agent.update(batch).items()} for batch in data]
