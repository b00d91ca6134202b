"""What `experiments.compare` does: its problems, its trials, and what is made of them."""
