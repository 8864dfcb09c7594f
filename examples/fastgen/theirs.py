"""FastGen's own f-distill, imported from a checkout, around networks of ours.

Packages that FastGen imports on the way and that are not installed (trackers, configuration, data) get stand-ins that
answer to everything and do nothing, for as long as the import takes. None of the functions compared uses one.
"""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import diffusers  # noqa: F401  before any stand-in, since they ask at import what else is installed
import torch
import transformers  # noqa: F401
from ours import STUDENT_TIME, Inputs, Networks
from torch import Tensor, nn

from jdmctl.errors import JdmError

PLACE = "fastgen.methods.distribution_matching"


class Adapter(nn.Module):
    """A denoiser of ours, called as FastGen calls one; `noise_scheduler` is its schedule."""

    def __init__(self, network: nn.Module, noise_scheduler: Any, bins: int) -> None:
        super().__init__()
        self.network = network
        self.noise_scheduler = noise_scheduler
        self.register_buffer("bins", torch.ones(bins))  # as its build_model does

    def forward(self, x_t: Tensor, t: Tensor, condition=None, feature_indices=None, fwd_pred_type="x0"):
        x0, features = self.network.look(x_t, t.to(x_t))
        return x0 if feature_indices is None else (x0, [features])


class Discriminator(nn.Module):
    feature_indices = {0}

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, features: list[Tensor]) -> Tensor:
        return self.head(features[0])  # [B, heads]


@dataclass(frozen=True)
class FastGen:
    weights: dict[str, Any]  # its name of a divergence -> its weight, a function of r
    f_distill: Any  # FdistillModel
    dmd2: Any  # DMD2Model
    noise_schedule: Any  # RFNoiseSchedule
    table_schedule: Any  # AlphasNoiseSchedule
    defaults: dict[str, Any]
    stand_ins: list[str]
    commit: str

    def model(self, networks: Networks, key: str, gan_weight: float = 0.0, ema_rate: float | None = None) -> Any:
        """Its model with its defaults, around our networks; reverse KL where key is "" (its DMD2)."""
        kind = self.f_distill if key else self.dmd2
        model = kind.__new__(kind)  # its constructor would build networks of its own
        nn.Module.__init__(model)
        numbers = dict(self.defaults, f_div=key) | ({} if ema_rate is None else {"ratio_ema_rate": ema_rate})
        model.config = SimpleNamespace(
            f_distill=SimpleNamespace(**numbers), gan_loss_weight_gen=gan_weight, guidance_scale=None,
            student_sample_steps=1, student_update_freq=1,
        )  # fmt: skip
        model.device, model.bin_num = torch.device("cpu"), numbers["bin_num"]
        schedule = self.noise_schedule()
        model.net, model.teacher, model.fake_score = (
            Adapter(network, schedule, model.bin_num)
            for network in (networks.student, networks.teacher, networks.fake_score)
        )
        model.discriminator = Discriminator(networks.head)
        model.f_div_weighting_function = self.weights.get(key)
        model._setup_grad_requirements(0)
        return model


def student_step(model: Any, inputs: Inputs) -> tuple[Tensor, Tensor]:
    """Its loss, a scalar, and x0 [B, C, h, w] that the loss hangs on; times in its precision, float64."""
    z, t = inputs.z, inputs.t.double()
    losses, outputs = model._student_update_step(z, torch.full_like(t, STUDENT_TIME), t, inputs.noise, {"real": z})
    return losses["total_loss"], outputs["gen_rand"]


def load(checkout: Path) -> FastGen:
    """JdmError if the folder is no checkout of FastGen."""
    config = checkout / "fastgen" / "configs" / "methods" / "config_f_distill.py"
    if not config.is_file():
        raise JdmError(f"{checkout} is no checkout of FastGen", "git clone https://github.com/NVlabs/FastGen")
    sys.path.insert(0, str(checkout))
    stand_ins: list[str] = []
    f_distill = _import(f"{PLACE}.f_distill", stand_ins)
    for name in stand_ins:
        del sys.modules[name]
    schedules = sys.modules["fastgen.networks.noise_schedule"]
    return FastGen(
        weights=f_distill.all_f_div_weighting_function,
        f_distill=f_distill.FdistillModel,
        dmd2=sys.modules[f"{PLACE}.dmd2"].DMD2Model,
        noise_schedule=schedules.RFNoiseSchedule,
        table_schedule=schedules.AlphasNoiseSchedule,
        defaults=_literals(config, "FdistillConfig"),
        stand_ins=stand_ins,
        commit=_commit(checkout),
    )


def _import(name: str, stand_ins: list[str]) -> ModuleType:
    while True:
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            missing = error.name or ""
            if not missing or missing.startswith("fastgen") or missing in stand_ins:
                raise
            sys.modules[missing] = MagicMock(__path__=[], __spec__=ModuleSpec(missing, None))
            stand_ins.append(missing)


def _literals(file: Path, name: str) -> dict[str, Any]:
    """The fields of a class and their values, read and not run: the file imports all of FastGen."""
    classes = [node for node in ast.parse(file.read_text()).body if isinstance(node, ast.ClassDef)]
    (found,) = [node for node in classes if node.name == name]
    fields = [node for node in found.body if isinstance(node, ast.AnnAssign) and node.value]
    return {ast.unparse(node.target): ast.literal_eval(node.value) for node in fields if node.value}


def _commit(checkout: Path) -> str:
    command = ["git", "-C", str(checkout), "rev-parse", "--short=7", "HEAD"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    return found.stdout.strip() or "of unknown commit"
