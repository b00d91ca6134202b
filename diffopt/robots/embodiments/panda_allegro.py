"""A Franka Emika Panda that carries an Allegro hand."""

import numpy as np

from diffopt.geometry import Pose
from diffopt.robots.embodiment import Embodiment
from diffopt.robots.embodiments import allegro, panda

# The palm's box ends 95 mm below its frame, and stands on the flange; turned by 45 degrees about z, so that in the home posture
# the fingers point down and the palm's normal points away from the base.
_C = np.sqrt(0.5)
MOUNT = Pose(position=np.array([0.0, 0.0, 0.095]), rotation=np.array([[_C, -_C, 0.0], [_C, _C, 0.0], [0.0, 0.0, 1.0]]))


def build() -> Embodiment:
    from diffopt.robots.embodiments import MODELS

    return Embodiment.attach(
        MODELS / "panda.xml",
        MODELS / "allegro.xml",
        MOUNT,
        to="flange",
        name="panda-allegro",
        velocity=panda.VELOCITY,
        home=panda.HOME,
        tolerance={f"link{i}": panda.TOLERANCE for i in range(8)} | {"": allegro.TOLERANCE},
    )
