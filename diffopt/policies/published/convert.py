"""Checkpoints of Diffusion Policy (Chi et al. 2023, arXiv 2303.04137) to safetensors and json, once and offline:

    python -m diffopt.policies.published.convert latest.ckpt out_dir

The checkpoint is a pickle of {"cfg": ..., "state_dicts": {"model": ..., "ema_model": ..., "optimizer": ...}, "pickles": ...}. It is read by
`diffopt.policies.published.archive`, which runs none of it. out_dir gets model.safetensors, with the weights' own names, and config.json,
with the training configuration as it was written. The averaged weights ("ema_model") are taken where there are any: they are what is
evaluated.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from diffopt.policies.published.archive import plain, read_archive

PREFERRED = ("ema_model", "model")


def convert(checkpoint: str | Path, out: str | Path) -> dict[str, Any]:
    """Write the directory `out`; returns what config.json says.

    Raises:
      ValueError: if the checkpoint has no model, or is unsafe to read (`UnsafePickleError`).
    """
    payload = read_archive(checkpoint)
    dicts = payload.get("state_dicts") if isinstance(payload, dict) else None
    if not isinstance(dicts, dict) or not any(name in dicts for name in PREFERRED):
        holder = dicts if isinstance(dicts, dict) else payload
        found = ", ".join(map(str, holder)) if isinstance(holder, dict) else type(payload).__name__
        raise ValueError(f"{checkpoint} has no state_dicts with {' or '.join(PREFERRED)}; it has: {found}")
    chosen = next(name for name in PREFERRED if name in dicts)
    arrays = {key: np.ascontiguousarray(value) for key, value in dicts[chosen].items() if isinstance(value, np.ndarray)}
    if left := [key for key in dicts[chosen] if key not in arrays]:
        raise ValueError(
            f"{checkpoint}: {len(left)} entries of {chosen} are no tensors: {', '.join(map(str, left[:4]))}"
        )
    card = {
        "format": "diffusion_policy",
        "weights": chosen,
        "source": Path(checkpoint).name,
        "config": plain(payload.get("cfg")),
    }
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    save_file(arrays, out / "model.safetensors")
    (out / "config.json").write_text(json.dumps(card, indent=2) + "\n")
    return card


def main() -> None:
    parser = argparse.ArgumentParser(description="Diffusion Policy checkpoint to safetensors and json")
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    card = convert(arguments.checkpoint, arguments.out)
    print(f"wrote {arguments.out / 'model.safetensors'} ({card['weights']}) and {arguments.out / 'config.json'}")


if __name__ == "__main__":
    main()
