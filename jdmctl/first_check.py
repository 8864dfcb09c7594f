"""The first check of a real student: does all that a training needs work, on this machine, with these weights?"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from jdmctl.build import build_family, resolve
from jdmctl.build_run import build_run
from jdmctl.errors import JdmError
from jdmctl.evaluation.contract import better, distances, other_calls
from jdmctl.families import FAMILIES
from jdmctl.families.contract import call_of, require_pair
from jdmctl.families.identify import identify, identify_pair
from jdmctl.families.students import students, time_of
from jdmctl.recipe_files import parse_recipe
from jdmctl.recipe_sections import Model
from jdmctl.sampling import grid
from jdmctl.training.atomic import require_writable, whole_file, write_text
from jdmctl.training.draws import SampleDraws
from jdmctl.training.run import make_accelerator, train

PROMPTS = (
    "a red bicycle against a brick wall",
    "a bowl of oranges on a wooden table",
    "a lighthouse on a cliff at sunset",
    "portrait of an old sailor, photograph",
)
TEACHER_STEPS = 20
PICTURE = "one-step.png"


@dataclass(frozen=True)
class Check:
    name: str
    ok: bool
    found: str
    do: str = ""  # if it is not


@dataclass
class FirstCheck:
    """Checks in their order; each needs those before it, so the first that fails is the last."""

    student: str
    teacher: str
    device: str
    folder: Path
    num_steps: int = 3
    state: dict[str, Any] = field(default_factory=dict)

    def run(self) -> Iterator[Check]:
        """Raises JdmError, before anything is loaded, if the folder cannot be written to."""
        require_writable(self.folder / PICTURE)
        for name, check in self._checks().items():
            try:
                result = check()
            except JdmError as problem:
                result = False, str(problem), problem.hint
            except (RuntimeError, OSError) as problem:
                result = False, f"{type(problem).__name__}: {problem}", "report this with the output of jdmctl doctor"
            ok, found, do = result
            yield Check(name, ok, found, "" if ok else do)
            if not ok:
                return

    def _checks(self) -> Mapping[str, Callable[[], tuple[bool, str, str]]]:
        return {
            "machine": self._machine,
            "what it is": self._identity,
            "loads": self._loads,
            "draws in one step": self._draws,
            "is called as it wants to be": self._time,
            "trains a control": self._trains,
        }

    @property
    def _precision(self) -> str:
        """One for all of it: a process has one accelerator."""
        return "bf16" if torch.cuda.is_available() and self.device != "cpu" else "fp32"

    def _machine(self) -> tuple[bool, str, str]:
        accelerator = make_accelerator(self.device, self._precision)
        device = self.state["device"] = accelerator.device
        memory = ""
        if device.type == "cuda":
            memory = f", {torch.cuda.get_device_properties(device).total_memory / 2**30:.0f} GiB"
        found = f"{device}{memory}, torch {torch.__version__}, python {platform.python_version()}"
        return True, found, ""

    def _identity(self) -> tuple[bool, str, str]:
        student = resolve(self.student, "student")
        if not self.teacher:
            found = identify(student)
            if not found.student:
                told = f"family {' or '.join(found.families)}, no known student"
                return False, told, "name the model that it was made from: --teacher"
            self.teacher = students()[found.student].teacher
        found = require_pair(*identify_pair(student, resolve(self.teacher, "teacher")))
        known = students().get(found.student)
        contract = call_of(found)
        if found.family not in FAMILIES:
            return False, f"family {found.family}", "jdmctl has no adapter for it yet: jdmctl students"
        timestep = contract.timestep.value
        own = {"student_time": time_of(timestep, contract.prediction.value)} if timestep else {}
        call = known.called_as if known else own
        self.state["model"] = Model(family=found.family, teacher=self.teacher, student=self.student, **call)
        called = f"at timestep {timestep}, {contract.prediction.value}"
        return True, f"{found.student or found.family}, teacher {self.teacher}, {called}", ""

    def _loads(self) -> tuple[bool, str, str]:
        family = self.state["family"] = build_family(self.state["model"], self.state["device"])
        millions = sum(p.numel() for p in family.student.parameters()) / 1e6
        return True, f"student of {millions:.0f} M parameters at {family.resolution_px} px", ""

    @torch.no_grad()
    def _draws(self) -> tuple[bool, str, str]:
        family = self.state["family"]
        prompt = self.state["prompt"] = family.encode_prompt(PROMPTS)
        draws = SampleDraws(0, "first check", range(len(PROMPTS)), self.state["device"])
        noise = self.state["noise"] = draws.normal("noise", family.latent_shape)
        images = family.codec.decode(family.student.generate(noise, prompt)).clamp(0, 1).cpu()
        path = self.folder / PICTURE
        sheet = grid(["one step"], [(text, [image]) for text, image in zip(PROMPTS, images, strict=True)])
        with whole_file(path) as partial:
            sheet.save(partial, format="PNG")
        is_picture = bool(images.isfinite().all()) and images.std().item() > 0.02
        return is_picture, f"{path}, standard deviation {images.std():.3f}", "look at the picture and report it"

    @torch.no_grad()
    def _time(self) -> tuple[bool, str, str]:
        family = self.state["family"]
        noise, prompt = self.state["noise"], self.state["prompt"]
        own = family.student.student_time, family.student.prediction
        reference = family.multistep(noise, prompt, TEACHER_STEPS)
        found = distances(family.student, noise, prompt, reference, other_calls(own))
        values = ", ".join(f"{time:.2f} {kind} {found[time, kind]:.2f}" for time, kind in found)
        best = better(own, found)
        advice = best and f"its contract says {own}, what it draws says {best}: look at {PICTURE} and report both"
        return best is None, f"distance to the teacher's samples: {values}", advice or ""

    def _trains(self) -> tuple[bool, str, str]:
        prompts = self.folder / "prompts.txt"
        write_text(prompts, "\n".join(PROMPTS * 2) + "\n")
        every = dict.fromkeys(("validate_every_steps", "preview_every_steps", "save_every_steps"), self.num_steps)
        values = {
            "name": "first-check",
            "model": self.state.pop("model").model_dump(),
            "controls": [{"name": "canny"}],
            "fake_score": {"trainable": "lora", "warmup_min_steps": 1, "warmup_max_steps": 1},
            "training": {
                "num_steps": self.num_steps,
                "batch_size": 1,
                "log_every_steps": 1,
                **every,
                "precision": self._precision,
            },
            "data": {"source": "prompts", "path": str(prompts), "num_validation_samples": 2},
        }
        self.state.clear()  # the run loads its own
        recipe = parse_recipe(values, (), "the first check")
        accelerator = make_accelerator(self.device, recipe.training.precision)
        folder = self.folder / "run"
        records: list[Mapping[str, Any]] = []
        done = train(build_run(recipe, accelerator), folder, accelerator, records.append)
        memory = max(record.get("memory_bytes", 0) for record in records) / 2**30
        return True, f"{', '.join(done['products'].values())}, at most {memory:.2f} GiB", ""
