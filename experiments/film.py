"""One placement seen side by side: the floating gripper, and the arm with each of some samplers, as an animated GIF and a strip:
`python -m experiments.film first=3 placement=around posts=3 [samplers=[servo,snap,ogd]] [film=results/film.gif]`."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import hydra
import mujoco
import numpy as np
from omegaconf import DictConfig, OmegaConf
from PIL import Image, ImageDraw
from rich.console import Console

from diffopt.evaluation import closed_loop
from diffopt.evaluation.arm_loop import run
from diffopt.tasks import visuomotor
from diffopt.tasks.workcell import Episode, Workcell
from experiments.arms import begin, stand, strict_of
from experiments.visuomotor import proposer

SIZE = 220  # pixels of a panel
RED, GREEN = (190, 30, 30), (20, 120, 40)


@dataclass(kw_only=True)
class Panel:
    """A film of one episode, with everything in the picture: the arm and the posts that the policy does not see."""

    title: str
    azimuth: float
    frames: list[Image.Image] = field(default_factory=list)
    touched: int = 0
    _renderer: Any = None

    def look(self, episode: Episode) -> None:
        if self._renderer is None:
            self._renderer = mujoco.Renderer(episode.cell.model, SIZE, SIZE)
            self._camera, self._option = mujoco.MjvCamera(), mujoco.MjvOption()
            self._camera.lookat[:], self._camera.distance = (0.0, 0.0, 0.15), 1.9
            self._camera.azimuth, self._camera.elevation = self.azimuth, -28.0
            self._option.geomgroup[:], self._option.sitegroup[:] = 1, 0
        self._renderer.update_scene(episode.data, self._camera, self._option)
        image = Image.fromarray(self._renderer.render())
        hit, self.touched = episode.hits > self.touched, episode.hits
        word = "solved" if episode.success else "touches" if hit else ""
        self._write(image, f"{self.title}  {episode.time:.1f} s  {word}", GREEN if episode.success else RED)
        if hit:
            ImageDraw.Draw(image).rectangle((0, 0, SIZE - 1, SIZE - 1), outline=RED, width=4)
        self.frames.append(image)

    def _write(self, image: Image.Image, text: str, colour: tuple[int, int, int]) -> None:
        draw = ImageDraw.Draw(image)
        draw.rectangle((0, 0, SIZE, 14), fill=(245, 245, 245))
        draw.text((4, 2), text, fill=colour if text.split()[-1] in ("solved", "touches") else (0, 0, 0))

    def close(self) -> None:
        if self._renderer is not None:
            self._renderer.close()


def beside(panels: list[Panel], k: int) -> Image.Image:
    """Frame k of all panels; one that has ended stays at its last."""
    out = Image.new("RGB", (SIZE * len(panels), SIZE))
    for i, panel in enumerate(panels):
        out.paste(panel.frames[min(k, len(panel.frames) - 1)], (i * SIZE, 0))
    return out


@hydra.main(version_base=None, config_path="../configs/visuomotor", config_name="film")
def main(cfg: DictConfig) -> None:
    config: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    console, seed = Console(), visuomotor.HELD_OUT + config["first"]
    cell, controller = begin(config)
    if not stand(cell, config, seed):
        raise SystemExit(f"no base reaches the work of placement {config['first']}")
    assert cell.robot is not None
    x, y = np.asarray(cell.robot.base.position[:2])
    azimuth = float(np.degrees(np.arctan2(y, x))) + 115.0  # across the line from the base to the middle
    panels = [Panel(title="floating gripper", azimuth=azimuth)]
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
        panels.append(Panel(title=sampler, azimuth=azimuth))
        placed = replace(controller, robot=cell.robot)
        (row,) = run(
            cell, placed, [seed], constrained=sampler != "servo", strict=strict_of(chosen), look=panels[-1].look
        )
        console.print(f"{sampler}: {'solved' if row.success else row.reason}, touches {row.hits}, {row.chunks}")
        panels[-1].close()
        cell.close()
    longest = max(len(p.frames) for p in panels)
    frames = [beside(panels, k) for k in range(0, longest, config["every"])]
    film = Path(config["film"])
    film.parent.mkdir(parents=True, exist_ok=True)
    few = [frame.quantize(48, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE) for frame in frames]
    few[0].save(film, save_all=True, append_images=few[1:], duration=100 * config["every"], loop=0, optimize=True)
    moments = np.linspace(0, longest - 1, config["moments"]).astype(int)
    strip = Image.new("RGB", (SIZE * len(panels), SIZE * len(moments)))
    for i, k in enumerate(moments):
        strip.paste(beside(panels, int(k)), (0, i * SIZE))
    strip.quantize(128).save(film.with_suffix(".png"), optimize=True)
    console.print(f"{film}: {len(few)} frames, {film.stat().st_size / 1e6:.2f} MB; {film.with_suffix('.png')}")


if __name__ == "__main__":
    main()
