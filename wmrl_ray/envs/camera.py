"""Pictures of a MuJoCo simulation, fast and never silently black.

An own `mujoco.Renderer` per environment: Gymnasium's viewer returns black frames once another viewer of the process was closed.
Without shadows, reflections and multi-sampling a software renderer draws 10 times as many frames; the pictures differ from the
default ones.
"""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np

from wmrl_ray.config import ConfigError


class Camera:
    """Draws a model and its data.

    Raises:
        ConfigError: no OpenGL in this process.
    """

    def __init__(self, model: Any, data: Any, size: int = 256, top_down: bool = False):
        mujoco = importlib.import_module("mujoco")
        self.data = data
        model.vis.quality.offsamples = 0
        model.vis.global_.offwidth = max(model.vis.global_.offwidth, size)
        model.vis.global_.offheight = max(model.vis.global_.offheight, size)
        try:
            self._renderer = mujoco.Renderer(model, size, size)
        except (mujoco.FatalError, RuntimeError, ImportError, AttributeError) as error:
            raise ConfigError(f"no OpenGL for pictures ({error}); set MUJOCO_GL=egl or osmesa before Python starts") from error
        for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
            self._renderer.scene.flags[flag] = False
        self._view = mujoco.MjvCamera()
        mujoco.mjv_defaultFreeCamera(model, self._view)
        if top_down:
            walls = [model.geom(i) for i in range(model.ngeom) if model.geom(i).name.startswith("block_")]
            reach = max(float(np.abs(wall.pos[:2]).max() + wall.size[0]) for wall in walls)
            self._view.lookat[:] = 0.0
            self._view.azimuth, self._view.elevation = 90.0, -90.0
            self._view.distance = 1.05 * reach / np.tan(np.radians(model.vis.global_.fovy) / 2)

    def frame(self) -> np.ndarray:
        """[size, size, 3] uint8."""
        self._renderer.update_scene(self.data, self._view)
        return self._renderer.render()

    def close(self) -> None:
        self._renderer.close()
