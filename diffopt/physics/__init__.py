"""Physics: one protocol definition, two engines (C MuJoCo and MJX), pictures."""

from diffopt.physics.engine import Engine, Outcome, Trial, load_engine
from diffopt.physics.protocol import PROTOCOLS, Protocol, load_protocol

__all__ = ["PROTOCOLS", "Engine", "Outcome", "Protocol", "Trial", "load_engine", "load_protocol"]
