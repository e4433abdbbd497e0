"""World-model reinforcement learning on Ray.

Shapes, everywhere: axis 0 is batch, axis 1 is time, features last; scalars have no trailing axis.
Letters: B batch, H horizon (actions in a window or plan), T episode length, O obs, A action, Z latent, N planner samples,
P policy samples, E elites, Q critics, W vector environments.
"""

__version__ = "0.1.0"
