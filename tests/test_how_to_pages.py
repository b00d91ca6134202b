"""What the how-to pages of robots and constraints tell a reader to type, typed: every block of Python, one after the other."""

import pathlib
import re

import jax.numpy as jnp
import numpy as np
import pytest

import diffopt
import diffopt.constraints
from diffopt.geometry import Pose, shapes

DOCS = pathlib.Path(__file__).parent.parent / "docs"


def blocks(page, *kinds):
    """The fenced blocks of a page, of some languages."""
    found = re.findall(r"^```(\w+)\n(.*?)^```", (DOCS / page).read_text(), flags=re.M | re.S)
    return [(kind, code) for kind, code in found if kind in kinds]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_newcomer_adds_a_robot_as_the_page_says(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DIFFOPT_CACHE", str(tmp_path / "cache"))
    known: dict = {}
    for kind, code in blocks("robots.md", "python", "xml"):
        if kind == "xml":
            (tmp_path / "lab.urdf").write_text(code)
        else:
            exec(compile(code, "docs/robots.md", "exec"), known)
    robot = known["robot"]
    assert robot.arm == ("turn", "elbow") and robot.hand == ("left",) and robot.tool == "palm"
    assert set(known["constraints"].names) >= {"reach", "joint_limits"}
    assert "follower: right = -1 left" in robot.describe()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_constraints_of_the_page_are_made_as_it_says(tmp_path, monkeypatch):
    import trimesh

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DIFFOPT_CACHE", str(tmp_path / "cache"))
    trimesh.creation.icosphere(subdivisions=1, radius=0.05).export("rock.stl")
    rng, robot = np.random.default_rng(0), diffopt.embodiments.load("panda-allegro")
    known = {name: getattr(diffopt.constraints, name) for name in diffopt.constraints.__all__}
    known |= dict(diffopt=diffopt, jnp=jnp, Pose=Pose, shapes=shapes)  # what the page takes as imported
    # and what it takes as given: a place, a terrain, a depth image, an object, a simulator, and where the robot was before
    known |= dict(
        pose=Pose(position=jnp.array([0.3, 0.3, 0.1]), rotation=jnp.eye(3)), heights=0.02 * rng.random((20, 20))
    )
    known |= dict(image=np.full((48, 64), 1.0), intrinsics=np.array([[60.0, 0, 32], [0, 60, 24], [0, 0, 1]]))
    known |= dict(T_world_camera=Pose(position=jnp.array([0, 0, 1.0]), rotation=jnp.diag(jnp.array([1.0, -1, -1]))))
    known |= dict(cup_shapes=shapes.sphere(0.04, (0.5, 0, 0.1)), cup_center=jnp.array([0.5, 0, 0.1]))
    known |= dict(my_simulator=lambda plan, joints: "fine" if plan.position[2] > 0 else "low")
    known |= dict(q=robot.home, q2=jnp.tile(robot.home, (2, 1)), q3=jnp.tile(robot.home, (3, 1)))
    known |= dict(joints=jnp.tile(robot.home, (6, 1)), dt=0.1)
    first = None
    for _, code in blocks("constraints.md", "python"):
        exec(compile(code, "docs/constraints.md", "exec"), known)
        first = first or known["result"]
    assert "orientation_cone" in first.violation and len(first.feasible) == 64
    assert set(known["result"].violation) >= {"tidy", "field_collision"} and known["result"].feasible.any()
    assert {"velocity_limits", "acceleration_limits", "jerk_limits"} <= set(known["constraints"].names)
