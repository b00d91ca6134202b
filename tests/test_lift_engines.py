"""Courses and the verdict of lift-on-arm: engines write down the same, and one verdict reads it."""

from dataclasses import dataclass, field, replace
from functools import reduce

import mujoco
import numpy as np
import pytest
from test_tasks import _SQUEEZE, BLOCK, PLACE, R_WORLD_BLOCK, _fingers, _lift, _scene

from diffopt.geometry import Pose
from diffopt.physics import load_engine
from diffopt.physics.course import Course, Record
from diffopt.physics.mjx_scene import prism, translate, unsupported
from diffopt.robots import embodiments
from diffopt.scenes import Part, tabletop
from diffopt.tasks import lift_on_arm
from diffopt.tasks.lift_on_arm import LiftProtocol
from diffopt.tasks.lift_run import plan
from diffopt.tasks.lift_verdict import Measure, Verdict, conclude, extend

RULES = LiftProtocol()


@pytest.fixture(scope="module")
def robot():
    return embodiments.load("panda-allegro")


def _join(pieces):
    return Record(**{k: np.concatenate([getattr(p, k) for p in pieces]) for k in vars(pieces[0])})


@dataclass
class Recorder:
    """An engine that keeps the records of another, whole, whatever their watcher wanted."""

    engine: object
    pieces: dict[int, list[Record]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.engine.name

    def follow(self, courses, watch, progress=None) -> None:
        def keep(i, piece):
            self.pieces.setdefault(i, []).append(piece)
            watch(i, piece)
            return True

        self.engine.follow(courses, keep, progress)

    @property
    def records(self) -> list[Record]:
        return [_join(self.pieces[i]) for i in sorted(self.pieces)]


# A ball on a slide, driven by a servo against a wall, 10 cm away, and back.
GAIN, RADIUS = 100.0, 0.05
_PUSHER = f"""<mujoco><option timestep="0.004" integrator="implicitfast" cone="elliptic" gravity="0 0 0"/><worldbody>
  <geom name="wall" type="box" size="0.01 0.2 0.2" pos="{0.1 + RADIUS + 0.01} 0 0"/>
  <body name="ball"><joint name="x" type="slide" axis="1 0 0" damping="20"/><geom type="sphere" size="{RADIUS}" mass="0.5"/></body>
</worldbody><actuator><position joint="x" kp="{GAIN}"/></actuator></mujoco>"""


def _push() -> Course:
    spec = mujoco.MjSpec.from_string(_PUSHER)
    model = spec.compile()
    wall, ball = np.array([True, False]), np.array([False, True])
    targets = np.concatenate([np.full(60, 0.15), np.full(30, 0.0)])[:, None]
    return Course(
        spec=spec,
        model=model,
        qpos=np.zeros(1),
        targets=targets,
        steps=5,
        bodies=(1,),
        presses=((wall, ball), (ball, ball)),
    )


@pytest.mark.parametrize("engine", ["c", "mjx"])
def test_a_servo_presses_with_its_gain_times_what_it_lacks(engine):
    recorder = Recorder(load_engine(engine))
    finished = []
    recorder.follow([_push()], lambda i, record: True, finished.append)
    (record,) = recorder.records
    assert len(record) == 90 and record.stable.all() and sum(finished) == 1
    assert record.force[0, 0] == 0.0
    assert record.force[59, 0] == pytest.approx(GAIN * (0.15 - record.qpos[59, 0]), rel=1e-2)
    assert record.position[59, 0, 0] == pytest.approx(0.1, abs=5e-3)
    assert abs(record.force[:, 1]).max() == 0.0  # the ball does not press on itself
    assert record.force[-1, 0] == 0.0 and abs(record.qpos[-1, 0]) < 0.02


def test_a_watcher_ends_its_course():
    seen = []
    load_engine("c").follow([_push()], lambda i, record: bool(seen.append(len(record))) or len(seen) < 3)
    assert sum(seen) == 3


def _standing(n: int = 10) -> Record:
    """An arm of one joint at rest; from the sixth check on palm and object rise together, to 0.1 m."""
    rise = np.clip((np.arange(n) - 4) * 0.02, 0, 0.1)
    position = np.zeros((n, 2, 3))
    position[:, 1, 2] = 0.2
    position[:, :, 2] += rise[:, None]
    return Record(
        qpos=np.zeros((n, 1)),
        qvel=np.zeros((n, 1)),
        position=position,
        rotation=np.tile(np.eye(3), (n, 2, 1, 1)),
        force=np.zeros((n, 2)),
        stable=np.ones(n, dtype=bool),
    )


_MEASURE = Measure(
    closed=5,
    height=0.2,
    joints=np.array([0]),
    dofs=np.array([0]),
    lower=np.array([-1.0]),
    upper=np.array([1.0]),
    velocity=np.array([2.0]),
)


@pytest.mark.parametrize(
    ("reason", "name", "where", "value"),
    [
        ("", "qpos", (3, 0), 1.01),
        ("limit", "qpos", (3, 0), 1.03),
        ("limit", "qvel", (9, 0), -2.1),
        ("collision", "force", (4, 0), 2.1),
        ("", "force", (5, 0), 2.1),  # after the squeeze nothing is measured
        ("", "force", (4, 1), 9.9),
        ("collision", "force", (4, 1), 10.1),
        ("", "position", (3, 1, 0), 0.06),  # nor does the object have a place in the palm before
        ("dropped", "position", (7, 1, 0), 0.06),
        ("dropped", "rotation", (7, 1), np.diag([1.0, -1.0, -1.0])),
        ("not lifted", "position", (9, slice(None), 2), 0.21),
        ("unstable", "stable", 2, False),
    ],
)
def test_every_reason_is_read_off_the_record(reason, name, where, value):
    record = _standing()
    getattr(record, name)[where] = value
    if reason == "not lifted":
        record.position[9, 0, 2] = 0.01  # the palm came down with it
    verdict = conclude(RULES, extend(RULES, _MEASURE, Verdict(), record))
    assert verdict.reason == reason


def test_the_first_failure_is_final():
    record = _standing()
    record.qvel[6] = 9.0
    record.stable[8] = False
    verdict = extend(RULES, _MEASURE, Verdict(), record)
    assert verdict.reason == "limit" and verdict.checks == 7
    assert extend(RULES, _MEASURE, verdict, record) == verdict


def test_a_verdict_does_not_depend_on_the_pieces(robot):
    trials = [_lift(robot), _lift(robot, grasp=replace(_lift(robot).grasp, squeeze=0 * _SQUEEZE))]
    recorder = Recorder(load_engine("c", threads=1))
    outcome = lift_on_arm.evaluate(trials, engine=recorder)
    assert outcome.success[0] and outcome.engine == "c"
    for i, (trial, record) in enumerate(zip(trials, recorder.records, strict=True)):
        motion, before = plan(RULES, trial)
        for size in (len(record), 25, 7):
            pieces = [record[k : k + size] for k in range(0, len(record), size)]
            verdict = reduce(lambda v, piece, m=motion: extend(RULES, m.measure, v, piece), pieces, before)
            verdict = conclude(RULES, verdict)
            assert verdict.reason == outcome.reason[i]
            for name in ("raised", "displacement", "rotation", "palm_force", "finger_force", "reach_error"):
                assert getattr(verdict, name) == getattr(outcome, name)[i]


def test_the_motion_can_be_looked_at(robot):
    heights = []
    outcome = lift_on_arm.evaluate(
        [_lift(robot)], threads=1, observe=lambda i, model, data: heights.append(float(data.body("object").xpos[2]))
    )
    assert heights[0] == pytest.approx(PLACE[2], abs=2e-3)
    assert heights[-1] - PLACE[2] == pytest.approx(outcome.raised[0], abs=2e-3)


def test_a_prism_has_the_cylinder_s_cross_section():
    corners = prism(0.03, 0.1)
    assert set(corners[:, 2]) == {-0.1, 0.1}
    x, y = corners[:12, :2].T
    area = 0.5 * np.sum(x * np.roll(y, -1) - y * np.roll(x, -1))
    assert area == pytest.approx(np.pi * 0.03**2)


def _on_a_box(shape: str) -> mujoco.MjSpec:
    return mujoco.MjSpec.from_string(
        f'<mujoco><worldbody><geom name="floor" type="box" size="1 1 .1"/><body name="thing" pos="0 0 .2"><freejoint/>'
        f'<geom name="it" type="{shape}" size=".03 .04 .05" density="700"/><geom type="sphere" size=".01" pos=".1 0 0"/>'
        "</body></worldbody></mujoco>"
    )


def test_cylinders_on_boxes_become_prisms_of_the_same_inertia():
    spec = _on_a_box("cylinder")
    model = spec.compile()
    assert unsupported(model) == [(0, 1)]
    other = translate(spec, model)
    assert other.geom_type[1] == mujoco.mjtGeom.mjGEOM_MESH and not unsupported(other)
    for name in ("body_mass", "body_inertia", "body_ipos", "body_iquat"):
        np.testing.assert_allclose(getattr(other, name), getattr(model, name), atol=1e-12)
    assert model.geom_type[1] == mujoco.mjtGeom.mjGEOM_CYLINDER  # and the scene itself is left alone
    box = _on_a_box("box")
    plain = box.compile()
    assert translate(box, plain) is plain


def test_what_mjx_cannot_collide_is_refused_by_name():
    spec = _on_a_box("ellipsoid")
    with pytest.raises(ValueError, match=r"box 'floor' of body 'world' with ellipsoid 'it' of body 'thing'.*engine=c"):
        translate(spec, spec.compile())
    with pytest.raises(ValueError, match="engine=mjx or engine=c"):
        load_engine("mjx-warp").follow([_push()], lambda i, record: True)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_lift_engines_agree(robot, record_property):
    """Four lifts of a block, of which two fail, and one beside a post and a cylinder, with which the arm collides."""
    first = _lift(robot)
    heavy = replace(_scene(), object=replace(BLOCK, mass=2.5))
    gentle = replace(first.grasp, squeeze=0.8 * _SQUEEZE)
    slack = replace(first.grasp, joints=_fingers(0.2, 0.5), squeeze=0 * _SQUEEZE)
    post = Part(kind="box", size=(0.05, 0.02, 0.15), position=(0.35, 0.0, 0.15))
    pillar = Part(kind="cylinder", size=(0.03, 0.1), position=(0.5, 0.3, 0.1))
    crowded = tabletop(BLOCK, placement=Pose(position=PLACE, rotation=R_WORLD_BLOCK), obstacles=(post, pillar))
    trials = [
        first,
        replace(first, grasp=gentle),
        replace(first, grasp=slack),
        replace(first, scene=heavy),
    ]
    c, mjx = Recorder(load_engine("c", threads=1)), Recorder(load_engine("mjx"))
    ours, theirs = (lift_on_arm.evaluate(trials, engine=engine) for engine in (c, mjx))
    print(f"C {ours.reason}\nMJX {theirs.reason}")
    approach = RULES.checks(RULES.approach)
    pairs = zip(c.records, mjx.records, strict=True)
    arms = max(float(np.abs(a.qpos - b.qpos)[:approach, :7].max()) for a, b in pairs)
    record_property("agreement", float(np.mean(ours.success == theirs.success)))
    record_property("largest difference of the arm's joints during the approach [rad]", arms)
    print(f"arm's joints during the approach differ by at most {arms:.2e} rad")
    assert ours.success.tolist() == theirs.success.tolist() == [True, True, False, False]
    assert arms < 1e-3
    np.testing.assert_allclose(ours.raised[:2], theirs.raised[:2], atol=5e-3)
    np.testing.assert_array_equal(ours.reach_error, theirs.reach_error)
    hit = [lift_on_arm.evaluate([replace(first, scene=crowded)], engine=engine) for engine in ("c", "mjx")]
    assert [outcome.reason for outcome in hit] == [("collision",)] * 2
