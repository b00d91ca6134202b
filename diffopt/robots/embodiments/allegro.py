"""The Allegro hand alone, fixed at its palm: the hand that the shipped grasp policy was trained on."""

from diffopt.robots.embodiment import Embodiment

TOLERANCE = 0.005  # of the collision spheres [m]


def build() -> Embodiment:
    from diffopt.robots.embodiments import MODELS

    return Embodiment.from_mjcf(MODELS / "allegro.xml", tool="palm", name="allegro", tolerance=TOLERANCE)
