"""Policies that others trained and published, read without their libraries: LeRobot's diffusion policies, Diffusion Policy's checkpoints."""
