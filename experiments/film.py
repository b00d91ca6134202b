"""One placement seen side by side: the floating gripper, and the arm with each of some samplers, as an animated GIF and a strip:
`python -m experiments.film first=3 placement=around posts=3 [samplers=[servo,snap,ogd]] [film=results/film.gif]`."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import hydra
import numpy as np
from omegaconf import DictConfig
from PIL import Image, ImageDraw
from rich.console import Console

from diffopt.evaluation import closed_loop
from diffopt.evaluation.arm_loop import run
from diffopt.physics.cameras import Cameras
from diffopt.tasks import visuomotor
from diffopt.tasks.visuomotor import SCENE_CAMERA
from diffopt.tasks.workcell import Episode, Workcell
from experiments.arms import begin, stand, strict_of
from experiments.settings import settings
from experiments.visuomotor import proposer

SIZE = 220  # pixels of a panel
RED, GREEN = (190, 30, 30), (20, 120, 40)


@dataclass(kw_only=True)
class Panel:
    """A film of one episode by the scene's camera, with everything in the picture: the arm and the posts that the policy does not see."""

    title: str
    frames: list[Image.Image] = field(default_factory=list)
    touched: int = 0
    cameras: Cameras | None = None

    def look(self, episode: Episode) -> None:
        """Called at the start of an episode and after each of its periods."""
        if self.cameras is None:
            self.cameras = Cameras(episode.cell.model, (SCENE_CAMERA,), SIZE, hidden=True)
        image = Image.fromarray(self.cameras.render(episode.data)[0])
        hit, self.touched = episode.hits > self.touched, episode.hits
        word, colour = ("solved", GREEN) if episode.success else ("touches", RED) if hit else ("", (0, 0, 0))
        draw = ImageDraw.Draw(image)
        draw.rectangle((0, 0, SIZE, 14), fill=(245, 245, 245))
        draw.text((4, 2), f"{self.title}  {episode.time:.1f} s  {word}", fill=colour)
        if hit:
            draw.rectangle((0, 0, SIZE - 1, SIZE - 1), outline=RED, width=4)
        self.frames.append(image)

    def close(self) -> None:
        """Frees the OpenGL context."""
        if self.cameras is not None:
            self.cameras.close()


def beside(panels: list[Panel], k: int) -> Image.Image:
    """Frame k of all panels; one that has ended stays at its last."""
    out = Image.new("RGB", (SIZE * len(panels), SIZE))
    for i, panel in enumerate(panels):
        out.paste(panel.frames[min(k, len(panel.frames) - 1)], (i * SIZE, 0))
    return out


def save(panels: list[Panel], film: Path, every: int, moments: int) -> None:
    """Writes the panels side by side: every so many-th frame as an animated GIF, and so many moments as a strip, .png."""
    longest = max(len(p.frames) for p in panels)
    film.parent.mkdir(parents=True, exist_ok=True)
    frames = [beside(panels, k) for k in range(0, longest, every)]
    few = [frame.quantize(48, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE) for frame in frames]
    few[0].save(film, save_all=True, append_images=few[1:], duration=100 * every, loop=0, optimize=True)
    strip = Image.new("RGB", (SIZE * len(panels), SIZE * moments))
    for i, k in enumerate(np.linspace(0, longest - 1, moments).astype(int)):
        strip.paste(beside(panels, int(k)), (0, i * SIZE))
    strip.quantize(128).save(film.with_suffix(".png"), optimize=True)


@hydra.main(version_base=None, config_path="../configs/visuomotor", config_name="film")
def main(cfg: DictConfig) -> None:
    config = settings(cfg)
    console, seed = Console(), visuomotor.HELD_OUT + config["first"]
    cell, controller = begin(config)
    if not stand(cell, config, seed):
        raise SystemExit(f"no base reaches the work of placement {config['first']}")
    panels = [Panel(title="floating gripper")]
    alone = Workcell(visuomotor.load(config["task"]), size=cell.size)
    propose = proposer(controller.policy, "ddim", config["levels"], 0.0, config["seed"])
    closed_loop.run(alone, propose, [seed], batch=1, execute=config["execute"], look=panels[0].look)
    panels[0].close()
    alone.close()
    cell.close()
    for sampler in config["samplers"]:
        chosen = config | dict(sampler=sampler)
        cell, controller = begin(chosen)
        stand(cell, chosen, seed)
        panels.append(Panel(title=sampler))
        placed = replace(controller, robot=cell.robot)
        (row,) = run(
            cell, placed, [seed], constrained=sampler != "servo", strict=strict_of(chosen), look=panels[-1].look
        )
        console.print(f"{sampler}: {'solved' if row.success else row.reason}, touches {row.hits}, {row.chunks}")
        panels[-1].close()
        cell.close()
    film = Path(config["film"])
    save(panels, film, config["every"], config["moments"])
    console.print(f"{film}: {film.stat().st_size / 1e6:.2f} MB; {film.with_suffix('.png')}")


if __name__ == "__main__":
    main()
