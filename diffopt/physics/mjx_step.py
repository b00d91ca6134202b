"""A step of MJX that agrees with C MuJoCo's where motors are at their limits.

With M the inertia, f the forces, h the timestep and D = df/dv the derivative of the damping of joints and servos by the velocities,
integrator `implicitfast` advances

    (M - h D) a = f,        v <- v + h a,        q <- q + h v

A servo's force kp (u - q) - kv v that is clamped to its range no longer depends on v: C MuJoCo leaves it out of D
(engine_derivative.c, `mjd_actuator_vel`), and so does MuJoCo Warp. MJX's JAX implementation (3.17.0) keeps it in, and the joint speeds up
as if its inertia were larger by h kv.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax.numpy as jnp

if TYPE_CHECKING:
    from mujoco import mjx


def step(model: mjx.Model, data: mjx.Data) -> mjx.Data:
    """As `mjx.step`, with D without the servos whose force is at its limits."""
    import mujoco
    from mujoco import mjx

    if model.impl.value != "jax" or model.opt.integrator != mujoco.mjtIntegrator.mjINT_IMPLICITFAST:
        return mjx.step(model, data)
    data = mjx.forward(model, data)
    low, high = model.actuator_forcerange[:, 0], model.actuator_forcerange[:, 1]
    clamped = model.actuator_forcelimited & ((data.actuator_force <= low) | (data.actuator_force >= high))

    def still(parameters):  # the third is what multiplies the velocity
        return parameters.at[:, 2].multiply(jnp.where(clamped, 0.0, 1.0))

    free = model.replace(actuator_gainprm=still(model.actuator_gainprm), actuator_biasprm=still(model.actuator_biasprm))
    return mjx.implicit(free, data)
