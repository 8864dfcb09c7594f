"""Scores on a world's held-out scenes: runs of add-control beside what they have to beat, as rows of a table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from jdmctl.controls.base import Control
from jdmctl.evaluation.adherence import scores
from jdmctl.evaluation.bootstrap import bootstrap
from jdmctl.evaluation.diversity import entropy
from jdmctl.evaluation.fidelity import frechet_distance
from jdmctl.evaluation.prompts import OPEN
from jdmctl.evaluation.results import Row
from jdmctl.families.stable_diffusion import StableDiffusion
from jdmctl.tinyworld.judge import Judge
from jdmctl.tinyworld.source import Pictures
from jdmctl.training.draws import SampleDraws

_RESAMPLES = 300
_BATCH = 50


@dataclass(frozen=True)
class Scenes:
    """What every method is asked for: captions and conditions of held-out scenes, and who judges the answers.

    The reference pictures of the Frechet distance are other scenes.
    """

    world: str
    pictures: Pictures
    num: int
    controls: dict[str, Control]
    conditions: dict[str, Tensor]  # [N, 3, H, W] in [0, 1]
    judge: Judge
    reference: Tensor  # float64 [M, D] features

    @classmethod
    def make(
        cls, world: str, pictures: Pictures, num: int, controls: dict[str, Control], judge: Judge, reference: Pictures
    ) -> Scenes:
        num = min(num, len(pictures))
        conditions = {
            name: torch.cat([control.condition(pictures.image(part)) for part in torch.arange(num).split(_BATCH)])
            for name, control in controls.items()
        }
        return cls(world, pictures, num, controls, conditions, judge, judge.features(reference.image(slice(None))))

    def true_images(self) -> Tensor:
        return self.pictures.image(slice(0, self.num))

    @torch.no_grad()
    def round_trip(self, family: StableDiffusion) -> Tensor:
        """The true pictures through the VAE: what no latent model can do better than."""
        parts = self.true_images().split(_BATCH)
        return torch.cat([family.codec.decode(family.codec.encode(part)).clamp(0, 1) for part in parts])

    @torch.no_grad()
    def draw(
        self,
        family: StableDiffusion,
        seed: int,
        num_steps: int = 1,
        guidance_scale: float = 1.0,
        controlled: bool = True,
    ) -> Tensor:
        """Images [N, 3, H, W] in [0, 1]: of the student in one step, or of the teacher in several."""
        images = []
        for part in torch.arange(self.num).split(_BATCH):
            prompt = family.encode_prompt([self.pictures.text(i) for i in part.tolist()])
            noise = SampleDraws(seed, "score", part.tolist()).normal("student_noise", family.latent_shape)
            controls = {name: maps[part] for name, maps in self.conditions.items()} if controlled else {}
            if num_steps == 1:
                latent = family.student.generate(noise, prompt, controls)
            else:
                latent = family.multistep(noise, prompt, num_steps, guidance_scale, controls)
            images.append(family.codec.decode(latent).clamp(0, 1))
        return torch.cat(images)

    def rows(self, method: str, passes: int, images: Sequence[Tensor], seeds: Sequence[int], command: str) -> list[Row]:
        """Every metric of a method whose seeds drew `images`.

        A value is the mean over seeds; its interval is the 95 % bootstrap over scenes, widened to the range of seeds.
        """
        statistics: dict[str, list[Callable[[Tensor], float]]] = {}
        for drawn in images:
            for metric, statistic in self._statistics(drawn).items():
                statistics.setdefault(metric, []).append(statistic)
        name = "+".join(self.controls)
        rows = []
        for metric, each in statistics.items():
            value, low, high = self._estimate(each, centered=metric == "frechet")
            rows.append(Row(self.world, name, method, passes, metric, value, low, high, list(seeds), self.num, command))
        return rows

    def _estimate(self, each: Sequence[Callable[[Tensor], float]], centered: bool) -> tuple[float, float, float]:
        def mean_over_seeds(chosen: Tensor) -> float:
            return sum(statistic(chosen) for statistic in each) / len(each)

        found = bootstrap(mean_over_seeds, self.num, centered=centered, resamples=_RESAMPLES)
        by_seed = [statistic(torch.arange(self.num)) for statistic in each]
        return found.value, min(found.low, *by_seed), max(found.high, *by_seed)

    def _statistics(self, images: Tensor) -> dict[str, Callable[[Tensor], float]]:
        """Metric -> its value on the scenes at given indices."""
        found: dict[str, Callable[[Tensor], float]] = {}
        for name, control in self.controls.items():
            for metric, values in scores(control, images, self.conditions[name]).items():
                found[f"{name} {metric}"] = _mean_of(values.double())
        features = self.judge.features(images)
        found["frechet"] = lambda chosen: frechet_distance(features[chosen], self.reference)
        shown, true = self.judge.shown(images), self.judge.classes(self.pictures.truth[: self.num])
        stated = self.judge.classes(self.pictures.stated[: self.num, 0])
        for attribute, asked in stated.items():
            is_stated = asked != OPEN
            if is_stated.any():
                correct = torch.where(is_stated, (shown[attribute] == asked).double(), torch.nan)
                found[f"{attribute} accuracy"] = _mean_of(correct)
        found["open entropy"] = _open_entropy(shown, stated, true)
        return found


def _mean_of(values: Tensor) -> Callable[[Tensor], float]:
    return lambda chosen: values[chosen].nanmean().item()


def _open_entropy(shown, stated, true) -> Callable[[Tensor], float]:
    """Entropy of the attributes that captions leave open, over that of the true scenes; mean over attributes.

    Attributes that the true scenes hardly vary where captions leave them open are left out.
    """

    def statistic(chosen: Tensor) -> float:
        ratios = []
        for name, asked in stated.items():
            is_open = asked[chosen] == OPEN
            if is_open.sum() > 1 and (most := entropy(true[name][chosen][is_open])) > 0.1:
                ratios.append(entropy(shown[name][chosen][is_open]) / most)
        return sum(ratios) / len(ratios)

    return statistic


def controlnet_folder(run: Path, control: str) -> Path:
    """Where a run left the branch of one of its controls."""
    single = run / "controlnet"
    return single if single.exists() else run / f"controlnet-{control}"
