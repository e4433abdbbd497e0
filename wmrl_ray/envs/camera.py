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


def camera_of(env: Any) -> Camera | None:
    """A camera for any MuJoCo environment that shows its `model` and `data`, None for others."""
    inner = env.unwrapped
    if type(getattr(inner, "model", None)).__name__ != "MjModel" or type(getattr(inner, "data", None)).__name__ != "MjData":
        return None
    return Camera(inner.model, inner.data, top_down=hasattr(inner, "layout"))


class Camera:
    """Draws a model and its data.

    top_down: a maze from above, all of it; otherwise the model's first camera, or a free one.

    Raises:
        ConfigError: no OpenGL in this process.
    """

    def __init__(self, model: Any, data: Any, size: int = 256, top_down: bool = False):
        self._mujoco = mujoco = importlib.import_module("mujoco")
        self.data, self._marker_size = data, 0.0
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
        if model.ncam > 0 and not top_down:  # the model's own, which follows the robot
            self._view.type, self._view.fixedcamid = mujoco.mjtCamera.mjCAMERA_FIXED, 0
        if top_down:
            walls = [model.geom(i) for i in range(model.ngeom) if model.geom(i).name.startswith("block_")]
            reach = max(float(np.abs(wall.pos[:2]).max() + wall.size[0]) for wall in walls)
            self._view.lookat[:] = 0.0
            self._view.azimuth, self._view.elevation = 90.0, -90.0
            self._marker_size = reach / 30
            self._view.distance = 1.05 * reach / np.tan(np.radians(model.vis.global_.fovy) / 2)

    def frame(self) -> np.ndarray:
        """[size, size, 3] uint8."""
        self._renderer.update_scene(self.data, self._view)
        if self._marker_size:
            self._mark(self.data.xpos[1])
        return self._renderer.render()

    def _mark(self, position: np.ndarray) -> None:
        """A blue ball above the robot, which from above is a few pixels wide in a large maze."""
        scene = self._renderer.scene
        geom, sphere = scene.geoms[scene.ngeom], self._mujoco.mjtGeom.mjGEOM_SPHERE
        above, colour = position + (0.0, 0.0, 2 * self._marker_size), np.array([0.1, 0.4, 0.9, 1.0], np.float32)
        self._mujoco.mjv_initGeom(geom, sphere, np.full(3, self._marker_size), above, np.eye(3).ravel(), colour)
        scene.ngeom += 1

    def close(self) -> None:
        self._renderer.close()
