"""Robots: kinematics compiled from MuJoCo models, collision bodies, embodiments."""
