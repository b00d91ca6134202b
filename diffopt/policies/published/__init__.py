"""Policies that others trained and published, read without their libraries: those of LeRobot, and checkpoints of Diffusion Policy."""
