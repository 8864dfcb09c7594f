"""From choices to a reward: check, split by prompt, features, fit, and what it is worth on prompts not seen."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from jdmctl import __version__
from jdmctl.data.pictures import size_of
from jdmctl.errors import BadInputError
from jdmctl.evaluation.bootstrap import Estimate
from jdmctl.feedback import bradley_terry
from jdmctl.feedback.check import DataCheck, check_pairs
from jdmctl.feedback.features import pair_features
from jdmctl.feedback.pairs import Pair, groups, read_pairs
from jdmctl.rewards.encoders import Encoder, probe
from jdmctl.rewards.preference import Head
from jdmctl.training.atomic import whole_folder
from jdmctl.weights import fingerprint

_MIN_DECIDED = 10


@dataclass(frozen=True)
class Report:
    """What was learnt and how good it is; `reliability` and all after it are of held-out prompts."""

    data: DataCheck
    weight_decay: float
    num_train: int
    train_accuracy: float
    num_held_out: int
    held_out_accuracy: Estimate
    held_out_log_loss: float  # 0.693 for a coin
    calibration_error: float
    reliability: tuple[dict[str, float], ...]

    def record(self) -> dict[str, Any]:
        return asdict(self)


def fit_preferences(
    preferences: str | Path,
    encoder: Encoder,
    output: str | Path,
    *,
    held_out: float = 0.2,
    seed: int = 0,
    resolution_px: int | None = None,
    device: Any = "cpu",
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Report:
    """Fit a head on a frozen encoder and save it as a reward `preference` in the folder `output`.

    `held_out` is the share of prompts that the fit never sees, unless the file has a column `split`.
    `encoder` is any function of images [B, 3, H, W] in [0, 1] and captions that gives [B, D]; if it
    has a `source` the head remembers that. `resolution_px` is the side at which pictures are read,
    by default what the encoder takes, or else the shorter side of the first picture.

    Raises:
        JdmError: the data cannot be used, is too little, or `output` cannot be written.
    """
    pairs = read_pairs(preferences)
    data = check_pairs(pairs)
    out = split_by_prompt(pairs, held_out, seed)
    _require_enough(pairs, out)
    if isinstance(encoder, nn.Module):
        encoder.to(device)
    known = probe(encoder, device)  # what it cannot do is told before an hour of features
    size = resolution_px or getattr(encoder, "input_px", None) or min(size_of(pairs[0].image_a))
    features_a, features_b = pair_features(pairs, encoder, size, device, progress)
    differences = (features_a - features_b).double()
    labels = torch.tensor([pair.label for pair in pairs], dtype=torch.float64)
    group = bradley_terry.group_numbers(groups(pairs))
    decay, _ = bradley_terry.choose_weight_decay(differences[~out], labels[~out], group[~out], seed)
    weights = bradley_terry.fit_weights(differences[~out], labels[~out], decay)
    logits = differences @ weights
    error, rows = bradley_terry.reliability(logits[out], labels[out])
    report = Report(
        data=data,
        weight_decay=decay,
        num_train=int((~out).sum()),
        train_accuracy=bradley_terry.accuracy(logits[~out], labels[~out], group[~out], seed).value,
        num_held_out=int(out.sum()),
        held_out_accuracy=bradley_terry.accuracy(logits[out], labels[out], group[out], seed),
        held_out_log_loss=bradley_terry.log_loss(logits[out], labels[out]).item(),
        calibration_error=error,
        reliability=tuple(rows),
    )
    mean = torch.cat([features_a[~out], features_b[~out]]).double().mean(0)
    config = _config(encoder, preferences, report, seed, size)
    head = Head(weights.float(), -(mean @ weights).float(), known, config)
    with whole_folder(Path(output)) as folder:
        head.save(folder)
    return report


def split_by_prompt(pairs: Sequence[Pair], share: float, seed: int) -> Tensor:
    """bool [N]: whether a pair is held out; pairs of one prompt, or of the same pictures without one, go together.

    As the file says; else of the shuffled prompts the first so many, at least one on each side.

    Raises:
        BadInputError: there is one prompt only, or all are on one side.
    """
    if pairs[0].held_out is not None:
        out = torch.tensor([bool(pair.held_out) for pair in pairs])
        if out.all() or not out.any():
            raise BadInputError(
                f"the column split holds out {'all' if out.all() else 'none'} of the pairs",
                hint="hold out some prompts, or leave the column away",
            )
        return out
    of_pair = groups(pairs)
    prompts = sorted(set(of_pair), key=str)
    if len(prompts) < 2:
        shared = "prompt" if isinstance(prompts[0], str) else "set of pictures and no prompt"
        raise BadInputError(
            f"all {len(pairs)} pairs have one {shared}, so none can be held out",
            hint=f"collect choices on other {'prompts' if shared == 'prompt' else 'pictures'} too",
        )
    order = torch.randperm(len(prompts), generator=torch.Generator().manual_seed(seed))
    count = min(max(1, round(share * len(prompts))), len(prompts) - 1)
    chosen = {prompts[index] for index in order[:count]}
    return torch.tensor([group in chosen for group in of_pair])


def _require_enough(pairs: Sequence[Pair], out: Tensor) -> None:
    for name, side in (("train on", ~out), ("hold out", out)):
        decided = sum(pair.label != 0.5 for pair, inside in zip(pairs, side.tolist(), strict=True) if inside)
        least = _MIN_DECIDED if name == "train on" else 1
        if decided < least:
            raise BadInputError(
                f"there are {decided} decided pairs to {name}, at least {least} are needed",
                hint="collect more: jdmctl reward collect",
            )


def _config(encoder: Encoder, preferences: str | Path, report: Report, seed: int, size: int) -> dict[str, Any]:
    source = getattr(encoder, "source", None)
    if source and Path(source).exists():
        source = str(Path(source).resolve())
    record = {name: value for name, value in report.record().items() if name != "data"}
    return {
        "jdmctl": __version__,
        "encoder": source,
        "grid": getattr(encoder, "grid", 1),
        "layer": getattr(encoder, "layer", -1),
        "resolution_px": size,
        "seed": seed,
        "preferences_sha256": fingerprint(preferences),
        **{name: None if isinstance(value, float) and math.isnan(value) else value for name, value in record.items()},
    }
