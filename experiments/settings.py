"""What a command line asks for, as plain values."""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig, OmegaConf


def settings(cfg: DictConfig) -> dict[str, Any]:
    """A configuration with its references resolved."""
    values = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(values, dict)
    return {str(name): value for name, value in values.items()}
