"""Evaluation: intervals and tests, static grasp metrics, results on disk."""
