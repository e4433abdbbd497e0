"""A scripted walk for Gymnasium's ant, in any direction, without turning and without learned weights.

Diagonal leg pairs swing in turns, hips and ankles follow by PD torques, the ankles lean against tilt. The phase of the stride
is read from the hips, never from a clock: an agent that sees what the gait sees can learn the whole of it. (With a clock, at
rest any phase goes with the same observation.)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# Legs 1 to 4 stand at these angles of the torso's frame, radians.
_LEG_ANGLE = np.pi / 4 + np.pi / 2 * np.arange(4)
_LEG_COS, _LEG_SIN = np.cos(_LEG_ANGLE), np.sin(_LEG_ANGLE)
_LEG_PHASE = np.array([0.0, np.pi, 0.0, np.pi])
_LEG_TURN = np.cos(_LEG_PHASE)  # 1 or -1
# Observation: position [15] = x, y, z, quaternion, then (hip, ankle) of legs 1 to 4; velocity [14] = linear, angular, then the
# same joints.
_HIP, _ANKLE = np.array([7, 9, 11, 13]), np.array([8, 10, 12, 14])
_HIP_VELOCITY, _ANKLE_VELOCITY = _HIP + 14, _ANKLE + 14
# Action: (hip, ankle) of legs 4, 1, 2, 3: the order of the ant's actuators.
_HIP_ACTION, _ANKLE_ACTION = np.array([2, 4, 6, 0]), np.array([3, 5, 7, 1])
_ANKLE_SIGN = np.array([1.0, -1.0, -1.0, 1.0])  # a larger |angle| bends the knee
_ANKLE_MIDDLE = np.radians(50.0)  # of its range, 30 to 70 degrees


@dataclass(frozen=True)
class GaitParameters:
    """Found by a (5, 16) evolution strategy in 25 minutes, which maximised speed under action noise 0.15 with a turn every 80
    steps (with a clock for the phase), and sweeps by hand of the gains and of `lead` for speed and few falls.
    """

    frequency: float = 3.2599  # Hz, of the stride that makes a circle of a hip's angle and speed
    lead: float = 2.0  # rad, of the commanded phase before the hips': the joints' lag at 2.9 Hz
    hip_swing: float = 0.6469  # rad, across the leg
    ankle_swing: float = 0.1434  # rad, along the leg
    ankle_lift: float = 0.2582  # rad, of the swinging foot
    ankle_offset: float = -0.1895  # rad, from the middle of the range: stands tall
    lift_phase: float = 1.4960  # rad, of the lift before the swing
    stiffness: float = 1.5337  # action per rad
    damping: float = 0.1360  # action per rad/s
    tilt_gain: float = -0.6021  # rad of ankle per unit of lean
    tilt_rate_gain: float = 0.0056  # rad of ankle per rad/s


def walk(obs: np.ndarray, heading: float, parameters: GaitParameters | None = None) -> np.ndarray:
    """Torques [8] in [-1, 1] for an observation [29]; heading: radians in the world's frame."""
    p = parameters or GaitParameters()
    w, x, y, z = (float(q) for q in obs[3:7])
    yaw = np.arctan2(2 * (w * z + x * y), 1 - 2 * (y * y + z * z))
    direction = heading - yaw - _LEG_ANGLE

    across = _LEG_TURN * np.sin(direction)  # how far each hip follows the stride
    angle, speed = across @ obs[_HIP], across @ obs[_HIP_VELOCITY] / (2 * np.pi * p.frequency)
    phase = np.arctan2(-speed, angle) + p.lead + _LEG_PHASE
    swing, lift = np.cos(phase), np.maximum(0.0, -np.sin(phase + p.lift_phase))

    up_x, up_y = 2 * (x * z - w * y), 2 * (y * z + w * x)  # the world's up, in the torso's frame
    lean = -(_LEG_COS * up_x + _LEG_SIN * up_y)  # towards each leg
    lean_rate = _LEG_COS * obs[19] - _LEG_SIN * obs[18]

    hip = np.clip(np.sin(direction) * p.hip_swing * swing, -0.52, 0.52)  # inside the joint's +- 30 degrees
    ankle = _ANKLE_MIDDLE + p.ankle_offset + p.ankle_lift * lift - np.cos(direction) * p.ankle_swing * swing
    ankle = np.clip(np.abs(ankle + p.tilt_gain * lean + p.tilt_rate_gain * lean_rate), 0.53, 1.21) * _ANKLE_SIGN

    action = np.empty(8)
    action[_HIP_ACTION] = p.stiffness * (hip - obs[_HIP]) - p.damping * obs[_HIP_VELOCITY]
    action[_ANKLE_ACTION] = p.stiffness * (ankle - obs[_ANKLE]) - p.damping * obs[_ANKLE_VELOCITY]
    return np.clip(action, -1.0, 1.0)


def uprightness(obs: np.ndarray) -> float:
    """1 upright, 0 on its side, -1 on its back."""
    return 1.0 - 2.0 * float(obs[4] ** 2 + obs[5] ** 2)
