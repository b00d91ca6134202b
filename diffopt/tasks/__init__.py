"""Tasks: what a plan is executed in, and when it has succeeded."""
