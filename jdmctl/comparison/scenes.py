"""What every method is asked for, on held-out pictures, and how its answers are drawn and told."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from jdmctl.comparison.device import at_once
from jdmctl.comparison.kept import KeptSampler, digest_of
from jdmctl.comparison.marks import Marks, Statistic, distances, gap_closed, marks_of, ratio, thumbnails
from jdmctl.controls.base import Control
from jdmctl.errors import JdmError
from jdmctl.evaluation.bootstrap import bootstrap
from jdmctl.evaluation.prompts import Classes
from jdmctl.evaluation.results import ITSELF, Row, setup
from jdmctl.rewards.base import Reward
from jdmctl.tinyworld.source import Pictures
from jdmctl.tinyworld.world import cache_folder
from jdmctl.training.draws import SampleDraws

TRUE, ROUND_TRIP, NO_CONTROL = "true pictures", "VAE round trip", "student without control"
_RESAMPLES = 300
_BATCH = 50
_AGAIN = 100  # requests that are drawn from a second noise too
_NUM_BASE = 2000  # pictures of the student without control, as another reference


class Judge(Protocol):
    """Who says what pictures show and how far they are from others; attributes may be none."""

    @property
    def name(self) -> str: ...

    def features(self, images: Tensor) -> Tensor: ...  # [N, 3, H, W] in [0, 1] -> float64 [N, D]

    def prompt_scores(self, images: Tensor, texts: Sequence[str]) -> Tensor | None: ...  # [N]

    def shown(self, images: Tensor) -> Classes: ...

    def classes(self, hot: Tensor) -> Classes: ...


@dataclass(frozen=True)
class Drawing:
    """The pictures of one method and seed: [N, 3, H, W] in [0, 1], the first ones once more from other noise."""

    images: Tensor
    again: Tensor | None = None
    uncontrolled: Tensor | None = None  # the same weights without control, for the first requests


@dataclass(frozen=True)
class Scenes:
    """What every method is asked for: captions and conditions of held-out pictures, and who judges the answers.

    The reference pictures of the distances are others than those.
    """

    world: str
    pictures: Pictures
    num: int
    controls: dict[str, Control]
    conditions: dict[str, Tensor]  # [N, 3, H, W] in [0, 1]
    judge: Judge
    reference: Tensor  # float64 [M, D] features
    train: Tensor | None  # [T, 3, 16, 16], to look for copies in, where it is known
    base: Tensor | None = None  # float64 features of the student's pictures without control
    uncontrolled: Tensor | None = None  # first requests, by the student without control
    rewards: Mapping[str, Reward] = field(default_factory=dict)  # name in rows -> what is asked of every picture
    device: str = "cpu"  # where families, controls and rewards are; pictures and conditions stay on the CPU
    split: str = ""  # of the world, that the pictures are; none of the user's own

    @classmethod
    def make(
        cls,
        world: str,
        pictures: Pictures,
        num: int,
        controls: dict[str, Control],
        judge: Judge,
        reference: Pictures,
        train: Pictures | None,
        device: str = "cpu",
    ) -> Scenes:
        num = min(num, len(pictures))
        parts = torch.arange(num).split(at_once(_BATCH, device, *pictures.images.shape[-2:]))
        conditions = {
            name: torch.cat([control.condition(pictures.image(part).to(device)).cpu() for part in parts])
            for name, control in controls.items()
        }
        features = judge.features(reference.image(slice(None)))
        small = None
        if train is not None:
            small = torch.cat([thumbnails(train.image(part)) for part in torch.arange(len(train)).split(500)])
        return cls(world, pictures, num, controls, conditions, judge, features, small, device=device)

    def with_base(self, family: Any) -> Scenes:
        """Also measured against this student's own pictures without control, from noise of their own."""
        captions = [self.pictures.text(i % len(self.pictures)) for i in range(_NUM_BASE)]
        images = self._draw(family, captions, {}, 0, "base")
        return replace(self, base=self.judge.features(images), uncontrolled=self._uncontrolled(family, 0))

    def with_rewards(self, rewards: Mapping[str, Reward]) -> Scenes:
        """Also asked of these."""
        return replace(self, rewards={name: reward.to(self.device) for name, reward in rewards.items()})

    def at_once(self, most: int) -> int:
        """How many pictures fit into one batch."""
        return at_once(most, self.device, *self.pictures.images.shape[-2:])

    @property
    def setup(self) -> str:
        """What numbers must have in common to be compared."""
        return self.setup_of("")

    def setup_of(self, metric: str) -> str:
        """The same, with the network that scores its control, if one does."""
        height, width = self.pictures.images.shape[-2:]
        measure = f"{self.judge.name}, {len(self.reference)} reference pictures, {width} x {height} px"
        by = [f", {name} scored by {which}" for name, which in self._scorers.items() if metric.startswith(f"{name} ")]
        return setup("".join([measure, *by]), torch.device(self.device).type, self.split)

    @cached_property
    def _scorers(self) -> dict[str, str]:
        """Control -> sha256 of the weights that score it, in short; of one that needs none, nothing."""
        networks = {name: getattr(control, "scorer", None) for name, control in self.controls.items()}
        return {
            name: digest_of(dict(network.state_dict()))[:8]
            for name, network in networks.items()
            if isinstance(network, nn.Module)
        }

    @property
    def headline(self) -> str:
        """The metric that stands for a method: the first control's headline, or the first reward, or nearness."""
        adherence = (f"{name} {control.headline}" for name, control in self.controls.items())
        return next(adherence, next(iter(self.rewards), "kid"))

    @property
    def is_better_higher(self) -> bool:
        """Of the headline."""
        return next((control.higher_is_better for control in self.controls.values()), bool(self.rewards))

    def true_images(self) -> Tensor:
        return self.pictures.image(slice(0, self.num))

    def stated(self) -> Classes:
        return self.judge.classes(self.pictures.stated[: self.num, 0])

    @torch.no_grad()
    def round_trip(self, family: Any) -> Drawing:
        """The true pictures through the VAE: what no latent model can do better than."""
        codec, parts = family.codec, self.true_images().split(self.at_once(_BATCH))
        images = [codec.decode(codec.encode(part.to(self.device))).clamp(0, 1).cpu() for part in parts]
        return Drawing(torch.cat(images))

    def draw(
        self, family: Any, seed: int, num_steps: int = 0, guidance_scale: float = 1.0, controlled: bool = True
    ) -> Drawing:
        """The student's answers in one step; or the teacher's, in `num_steps` if they are told."""
        captions = [self.pictures.text(i) for i in range(self.num)]
        conditions = self.conditions if controlled else {}
        how = (seed, "score", num_steps, guidance_scale)
        images = self._draw(family, captions, conditions, *how)
        again = self._draw(family, captions[:_AGAIN], conditions, seed, "again", num_steps, guidance_scale)
        return Drawing(images, again, None if num_steps else self._uncontrolled(family, 0))

    def _uncontrolled(self, family: Any, seed: int) -> Tensor:
        captions = [self.pictures.text(i) for i in range(min(_AGAIN, self.num))]
        return self._draw(family, captions, {}, seed, "score")

    @torch.no_grad()
    def _draw(
        self,
        family: Any,
        captions: Sequence[str],
        conditions: dict[str, Tensor],
        seed: int,
        noise_name: str,
        num_steps: int = 0,
        guidance_scale: float = 1.0,
    ) -> Tensor:
        sampler = KeptSampler(family, cache_folder() / "drawings") if num_steps else None
        images = []
        for part in torch.arange(len(captions)).split(self.at_once(_BATCH)):
            prompt = family.encode_prompt([captions[i] for i in part.tolist()])
            draws = SampleDraws(seed, noise_name, part.tolist(), self.device)
            noise = draws.normal("student_noise", family.latent_shape)
            controls = {name: maps[part].to(self.device) for name, maps in conditions.items()}
            if sampler:
                latent = sampler(noise, prompt, num_steps, guidance_scale, controls)
            else:
                latent = family.student.generate(noise, prompt, controls)
            images.append(family.codec.decode(latent).clamp(0, 1).cpu())
            if not (latent.isfinite().all() and images[-1].isfinite().all()):
                raise JdmError(
                    f"what the {'teacher' if sampler else 'student'} draws for seed {seed} is not finite",
                    hint="its weights are damaged: train it again",
                )
        return torch.cat(images)

    def marks(self, drawings: Sequence[Drawing]) -> Marks:
        """Every metric of a method, from its drawings, one a seed."""
        return marks_of(self, drawings)

    def rows(self, method: str, passes: int, marks: Marks, seeds: Sequence[int], command: str) -> list[Row]:
        """A value is the mean over seeds; its interval is the 95 % bootstrap over scenes, widened to hold each seed.

        Ratios to nothing are left out.
        """
        name, rows = "+".join(self.controls), []
        for metric, each in marks.items():
            value, low, high = estimate(metric, each, self.num)
            if not math.isfinite(low + value + high):
                continue  # a ratio to nothing, or a mean of none
            rows.append(
                Row(
                    self.world, name, method, passes, metric, value, low, high, list(seeds), self.num, command,
                    self.setup_of(metric),
                )
            )  # fmt: skip
        return rows

    def ideal(self, command: str) -> list[Row]:
        """Rows of the reference pictures against themselves: what measures distance must give then, to 9 digits.

        Frechet 0, precision and recall 1. KID is unbiased for sets apart; here each picture meets itself, so it is
        -2 (mean k(x, x) - mean k(x, y)) / M, y another. Nothing is sampled, so there is no interval.
        """
        every = torch.arange(len(self.reference))
        found = {name: round(one(every), 9) + 0.0 for name, one in distances(self.reference, self.reference).items()}
        about = self.world, "+".join(self.controls), ITSELF, 0
        return [
            Row(*about, metric, value, value, value, [0], len(every), command, self.setup)
            for metric, value in found.items()
        ]

    def compared(self, marks: Marks, baselines: dict[str, Marks]) -> Marks:
        """Ratios of adherence, Frechet distance and variety to other methods', on the same scenes.

        Also how much of the way from no control to the VAE's round trip of the true pictures a score has come.
        """
        found: Marks = {}
        headlines = [f"{name} {control.headline}" for name, control in self.controls.items()]
        errors = [metric for name in self.controls if (metric := f"{name} l1") in marks and metric not in headlines]
        for metric in headlines:
            floor, ceiling = (baselines[name][metric][0] for name in (NO_CONTROL, ROUND_TRIP))
            found[f"{metric} gap closed"] = [gap_closed(mark, floor, ceiling) for mark in marks[metric]]
        for method, others in baselines.items():
            if method not in (TRUE, ROUND_TRIP):
                for metric in [*headlines, *errors, "frechet", "open entropy"]:
                    if metric in marks and metric in others:
                        below = _mean_over_seeds(others[metric])
                        found[f"{metric} / {method}"] = [ratio(mark, below) for mark in marks[metric]]
        return found


def estimate(metric: str, each: Sequence[Statistic], num: int) -> tuple[float, float, float]:
    """Mean over seeds, and its 95 % bootstrap interval over `num` scenes, widened to hold each seed.

    Of distances between distributions and their ratios, which repeated scenes push up, and of recall, which they push
    down, the interval is centered.
    """
    is_moved, is_share = metric.startswith(("frechet", "kid", "recall")), metric.startswith("recall")
    found = bootstrap(_mean_over_seeds(each), num, centered=is_moved, resamples=_RESAMPLES)
    by_seed = [statistic(torch.arange(num)) for statistic in each]
    high = min(found.high, 1.0) if is_share else found.high
    return found.value, min(found.low, *by_seed), max(high, *by_seed)


def _mean_over_seeds(each: Sequence[Statistic]) -> Statistic:
    return lambda chosen: sum(statistic(chosen) for statistic in each) / len(each)
