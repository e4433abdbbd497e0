"""Pictures of a MuJoCo simulation, fast and never silently black.

An own `mujoco.Renderer` per environment: Gymnasium's viewer returns black frames once another viewer of the process was closed.
Without shadows, reflections and multi-sampling a software renderer draws 10 times as many frames; the pictures differ from the
default ones.
"""

from __future__ import annotations

import atexit
import functools
import importlib
import os
import sys
import weakref
from typing import Any

import numpy as np

from wmrl_ray.config import ConfigError
from wmrl_ray.envs.loading import find_opengl, has_library, opengl_fix

_OPEN: weakref.WeakSet[Camera] = weakref.WeakSet()


def prefer_egl() -> None:
    """Chooses EGL, which needs no display, where nothing is chosen and it is there; MuJoCo looks once, when it is imported."""
    if sys.platform == "linux" and not os.environ.get("MUJOCO_GL") and "mujoco" not in sys.modules:
        if has_library("libEGL.so.1"):  # Why: asked for and not there, it would break what needs no pictures
            os.environ["MUJOCO_GL"] = "egl"


@functools.cache  # once
def _close_all_at_exit() -> None:
    """Why after MuJoCo's import: what is registered last runs first, and MuJoCo's own ends EGL under the open renderers."""

    @atexit.register
    def close_all() -> None:
        for camera in list(_OPEN):
            camera.close()


def camera_of(env: Any, size: int = 256) -> Camera | None:
    """A camera for any MuJoCo environment that shows its `model` and `data`, None for others.

    An attribute `camera_id` names the model's camera; otherwise it is the first.
    """
    inner = env.unwrapped
    model, data = getattr(inner, "model", None), getattr(inner, "data", None)
    if type(model).__name__ != "MjModel" or type(data).__name__ != "MjData":
        return None
    return Camera(model, data, size, top_down=hasattr(inner, "layout"), camera_id=getattr(inner, "camera_id", None) or 0)


class Camera:
    """Draws a model and its data.

    top_down: a maze from above, all of it; otherwise the model's camera `camera_id`, or a free one if it has none.

    Raises:
        ConfigError: no OpenGL in this process.
    """

    def __init__(self, model: Any, data: Any, size: int = 256, top_down: bool = False, camera_id: int = 0):
        if (missing := find_opengl()) is not None:  # Why first: MuJoCo's own words are about an attribute of None
            raise ConfigError(f"no OpenGL for pictures; {missing}")
        self._mujoco = mujoco = importlib.import_module("mujoco")
        self.data, self._marker_size = data, 0.0
        quality, screen = model.vis.quality, model.vis.global_
        before = quality.offsamples, screen.offwidth, screen.offheight
        quality.offsamples, screen.offwidth, screen.offheight = 0, size, size  # what the renderer's buffers are made from
        try:
            self._renderer = mujoco.Renderer(model, size, size)
        except (mujoco.FatalError, RuntimeError, ImportError, AttributeError) as error:
            raise ConfigError(f"no OpenGL for pictures ({error}); {opengl_fix()}") from error
        finally:
            quality.offsamples, screen.offwidth, screen.offheight = before
        _close_all_at_exit()
        _OPEN.add(self)
        for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
            self._renderer.scene.flags[flag] = False
        self._view = mujoco.MjvCamera()
        mujoco.mjv_defaultFreeCamera(model, self._view)
        if model.ncam > 0 and not top_down:  # the model's own, which follows the robot
            self._view.type, self._view.fixedcamid = mujoco.mjtCamera.mjCAMERA_FIXED, camera_id
        if top_down:
            walls = [model.geom(i) for i in range(model.ngeom) if model.geom(i).name.startswith("block_")]
            reach = max(float(np.abs(wall.pos[:2]).max() + wall.size[0]) for wall in walls)
            self._view.lookat[:] = 0.0
            self._view.azimuth, self._view.elevation = 90.0, -90.0
            self._marker_size = reach / 30
            self._view.distance = 1.05 * reach / np.tan(np.radians(model.vis.global_.fovy) / 2)

    def frame(self, out: np.ndarray | None = None) -> np.ndarray:
        """[size, size, 3] uint8, in `out` if given."""
        self._renderer.update_scene(self.data, self._view)
        if self._marker_size:
            self._mark(self.data.xpos[1])
        return self._renderer.render(out=out)

    def _mark(self, position: np.ndarray) -> None:
        """A blue ball above the robot, which from above is a few pixels wide in a large maze."""
        scene = self._renderer.scene
        geom, sphere = scene.geoms[scene.ngeom], self._mujoco.mjtGeom.mjGEOM_SPHERE
        above, colour = position + (0.0, 0.0, 2 * self._marker_size), np.array([0.1, 0.4, 0.9, 1.0], np.float32)
        self._mujoco.mjv_initGeom(geom, sphere, np.full(3, self._marker_size), above, np.eye(3).ravel(), colour)
        scene.ngeom += 1

    def close(self) -> None:
        _OPEN.discard(self)
        self._renderer.close()


class FrameStack:
    """The pixel observation: the last three frames of a camera, channel first, the newest last.

    Raises:
        ConfigError: no OpenGL, or it draws black.
    """

    FRAMES = 3

    def __init__(self, camera: Camera, size: int):
        self._camera = camera
        self._buffer = np.empty((size, size, 3), np.uint8)
        self._newest = np.empty((3 * self.FRAMES, size, size), np.uint8)

    def start(self) -> np.ndarray:
        """[9, size, size] of an episode's first frame, three times."""
        frame = self._camera.frame(self._buffer)
        if not frame.any():
            raise ConfigError(f"the pictures are black; {opengl_fix()}")
        self._newest = np.tile(frame.transpose(2, 0, 1), (self.FRAMES, 1, 1))
        return self._newest

    def push(self) -> np.ndarray:
        """[9, size, size] with the frame of now; earlier results stay as they are."""
        stack = np.empty_like(self._newest)
        stack[:-3] = self._newest[3:]
        stack[-3:] = self._camera.frame(self._buffer).transpose(2, 0, 1)
        self._newest = stack
        return stack

    def close(self) -> None:
        self._camera.close()
