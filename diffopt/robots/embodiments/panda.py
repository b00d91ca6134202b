"""The Franka Emika Panda alone, its flange as the tool."""

from diffopt.robots.embodiment import Embodiment

# Rated joint velocities [rad/s], Franka Emika Panda data sheet; home posture [rad] of MuJoCo Menagerie's panda.xml.
VELOCITY = {f"panda_joint{i}": 2.175 if i <= 4 else 2.61 for i in range(1, 8)}
HOME = dict(zip(VELOCITY, (0.0, 0.0, 0.0, -1.57079, 0.0, 1.57079, -0.7853), strict=True))
TOLERANCE = 0.01  # of the arm's collision spheres [m]: the capsules are estimates to about this


def build() -> Embodiment:
    from diffopt.robots.embodiments import MODELS

    return Embodiment.from_mjcf(
        MODELS / "panda.xml", tool="flange", name="panda", velocity=VELOCITY, home=HOME, tolerance=TOLERANCE
    )
