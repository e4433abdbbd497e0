"""Learning from the agent's own steps, in one process and without Ray: the reference loop that the RLlib algorithms translate.

Random steps at first; then, in turns, steps of the exploring agent and updates from the replay that its episodes go into.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from wmrl_ray.config import ConfigError
from wmrl_ray.rollout import step_limit
from wmrl_ray.run import OnlineConfig, RunConfig


@dataclass(frozen=True)
class Turn:
    """What comes next: `steps` of every environment, then `updates`. random: the steps are the first ones, of no agent."""

    steps: int
    updates: int
    random: bool = False


@dataclass(frozen=True)
class Clock:
    """The schedule of a synchronous run: the first `seed_steps` steps are random; then update u waits until u / U steps have
    been taken. So the first U x seed_steps updates follow at once, and U updates every step after that.
    """

    config: OnlineConfig
    seed_steps: int

    def turn(self, update: int, num_steps: int, until: int) -> Turn:
        """The next turn of a run that has made `update` updates and taken `num_steps` steps, all environments together; its
        updates end at `until` at the latest, which is a multiple of a turn's.
        """
        c, missing = self.config, self.seed_steps - num_steps
        if missing > 0:
            return Turn(-(-missing // c.total_envs), 0, random=True)
        updates = round(c.updates_per_turn)
        missing = math.ceil((update + updates) / c.updates_per_step - 1e-9) - num_steps
        if missing > 0:
            return Turn(-(-missing // c.total_envs), updates)
        turns = int(num_steps * c.updates_per_step + 1e-9 - update) // updates
        return Turn(0, min(turns * updates, until - update))


def make_clock(config: RunConfig, env_id: str) -> Clock:
    """Of a run in this environment. By default TD-MPC2's max(1000, 5 T) random steps, T the step limit, and at least one
    episode of every environment.

    Raises:
        ConfigError: the environment has no step limit, and `online.seed_steps` is not set.
    """
    steps = config.online.seed_steps
    if steps is None:
        limit = step_limit(env_id, config.env_config)
        if limit is None:
            raise ConfigError(f"env = {env_id!r} has no step limit; set online.seed_steps, the number of random steps at first")
        steps = max(1000, 5 * limit, limit * config.online.total_envs)
    return Clock(config.online, steps)
