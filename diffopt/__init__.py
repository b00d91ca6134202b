"""diffopt: constrained sampling from pretrained grasp and visuomotor diffusion policies."""
