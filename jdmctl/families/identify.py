"""Which family, and which known student, a folder, hub repository or safetensors file is. No weights are read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml
from accelerate import init_empty_weights

from jdmctl.errors import BadInputError, JdmError, MissingWeightsError
from jdmctl.families import FAMILIES
from jdmctl.families.folders import read_config
from jdmctl.families.names import family_class
from jdmctl.families.published import find_published
from jdmctl.families.students import Student, is_called, student_at, student_of_file, students
from jdmctl.families.tensors import PIXART, families_of, fits, text_width
from jdmctl.weights import Header, read_header

PIPELINES = {
    "StableDiffusionPipeline": "stable_diffusion",
    "LatentConsistencyModelPipeline": "stable_diffusion",
    "RectifiedFlowPipeline": "stable_diffusion",
    "StableDiffusionXLPipeline": "sdxl",
    "PixArtAlphaPipeline": "pixart_alpha",
    "PixArtSigmaPipeline": "pixart_sigma",
    "StableDiffusion3Pipeline": "sd3",
    "FluxPipeline": "flux",
    "SanaPipeline": "sana",
    "SanaSprintPipeline": "sana",
    "ZImagePipeline": "z_image",
    "QwenImagePipeline": "qwen_image",
}
BACKBONES = {
    "UNet2DConditionModel": "stable_diffusion",
    "PixArtTransformer2DModel": "pixart_alpha",
    "SD3Transformer2DModel": "sd3",
    "FluxTransformer2DModel": "flux",
    "SanaTransformer2DModel": "sana",
    "ZImageTransformer2DModel": "z_image",
    "QwenImageTransformer2DModel": "qwen_image",
}
_LORA = ("lora_down.", "lora_A.", ".lora.down.", "lora_up.")
_ROLES = ("unet", "transformer", "vae", "scheduler")


@dataclass(frozen=True)
class Found:
    """What something is. `facts` are values of its own files: "scheduler.prediction_type" -> "epsilon"."""

    source: str
    kind: str  # pipeline, backbone, lora or single-file
    family: str
    evidence: str  # of the family
    facts: Mapping[str, Any] = field(default_factory=dict)
    student: str = ""  # its name in students.yaml
    student_evidence: str = ""
    also: tuple[str, ...] = ()  # other families that it may be of as well

    @property
    def families(self) -> tuple[str, ...]:
        return (self.family, *self.also)

    def beside(self, other: Found) -> Found:
        """Of the other's family, where it may be."""
        return replace(self, family=other.family, also=()) if other.family in self.families else self


def identify(source: str | Path) -> Found:
    """Look at a folder, a hub name or a safetensors file.

    Raises:
        BadInputError: of no family that is known here, or its name and its contents are of different ones.
        MissingWeightsError: it is not there, or is no whole safetensors file.
    """
    path = Path(source)
    path = lone_file(path) or path
    if not path.exists() and path.suffix == ".safetensors" and (known := student_at(str(source))):
        return _of_hub(str(source), known)
    return _named(source, _look(source))


def identify_here(source: str | Path) -> Found | None:
    """As `identify`, but nothing is fetched: of the hub, addresses in students.yaml alone. None for what is none.

    Raises:
        BadInputError: its name and its contents are of different families.
    """
    if not Path(source).exists():
        known = student_at(str(source))
        is_one = known and (known.weights == "folder" or known.repository != str(source))  # others hold several
        return _of_hub(str(source), known) if known and is_one else None
    try:
        found = _look(source)
    except JdmError:  # loading says what is wrong
        return None
    return _named(source, found)


def _look(source: str | Path) -> Found:
    """By its contents; which student it is comes after."""
    path = lone_file(Path(source)) or Path(source)
    return _file(path) if path.is_file() else _folder(str(source))


def _named(source: str | Path, found: Found) -> Found:
    """With the student that it is, if it is a known one."""
    name, why = _student(found)
    known = students().get(name)
    if known is None:
        return found
    if known.family not in found.families:
        raise BadInputError(
            f"{source} is called like {known.title} ({known.family}), but {found.evidence}, which is {found.family}",
            hint=f"download it again from {known.repository}, or rename it",
        )
    return replace(found, family=known.family, also=(), student=name, student_evidence=why)


def identify_pair(student: str | Path, teacher: str | Path) -> tuple[Found, Found]:
    """A student and its teacher. A file of a size that is published nowhere is of the teacher's family if it fits it.

    Raises as `identify` does.
    """
    goal = identify(teacher)
    try:
        return identify(student), goal
    except BadInputError:
        path = lone_file(Path(student)) or Path(student)
        if not path.is_file() or not fits(header := read_header(path).shapes, _backbone_shapes(goal)):
            raise
        return Found(str(path), _kind(header), goal.family, f"it fits {teacher}", {"tensors": len(header)}), goal


def _backbone_shapes(found: Found) -> Mapping[str, tuple[int, ...]]:
    """Of the weights of a pipeline's or folder's backbone, by its configuration; empty if it has none."""
    if found.kind not in ("pipeline", "backbone") or Path(found.source).is_file() or found.family not in FAMILIES:
        return {}
    family = family_class(found.family)
    config = read_config(found.source, family.subfolder if found.kind == "pipeline" else None, "config.json")
    with init_empty_weights():
        backbone = family.backbone_class.from_config(config)
    return {name: tuple(value.shape) for name, value in backbone.state_dict().items()}


def lone_file(folder: Path) -> Path | None:
    """The one safetensors file in a folder without configurations: how a LoRA is saved."""
    files = [] if any(folder.glob("*.json")) else list(folder.glob("*.safetensors"))
    return files[0] if len(files) == 1 else None


def family_of(source: str | Path) -> str:
    """Of a folder, hub name or file; of what is none or not there the default family: loading says what is wrong."""
    try:
        return identify(source).family
    except JdmError:
        published = find_published(str(source))
        return published.family if published else "stable_diffusion"


def known_student(source: str | Path) -> Student | None:
    """The student of students.yaml that something is, if it is one."""
    try:
        return students().get(identify(source).student)
    except JdmError:
        return None


def _of_hub(source: str, known: Student) -> Found:
    """A known file or repository on the hub, which need not be downloaded to be known."""
    kind = {"folder": "pipeline", "lora": "lora"}.get(known.weights, "backbone")
    name = next(name for name, one in students().items() if one is known)
    return Found(source, kind, known.family, f"students.yaml has {source}", {}, name, "by its address")


def _folder(source: str) -> Found:
    if Path(source, "config.json").is_file():
        return _backbone(source, read_config(source, None, "config.json"))
    index = read_config(source, None, "model_index.json")
    kind = str(index.get("_class_name", ""))
    plain = kind.replace("ControlNet", "").replace("Img2Img", "").replace("Inpaint", "")
    if plain not in PIPELINES:
        raise BadInputError(
            f"{source} is a {kind or 'folder without _class_name'}, of no family that is known here",
            hint=f"known are {', '.join(sorted(PIPELINES))}",
        )
    facts: dict[str, Any] = {f"model_index.{key}": value for key, value in index.items() if isinstance(value, str)}
    for role in _ROLES:
        if role in index:
            filename = "scheduler_config.json" if role == "scheduler" else "config.json"
            try:
                config = read_config(source, role, filename)
            except MissingWeightsError:
                continue  # PixArt-DMD's folder lends its VAE from the teacher
            facts |= {f"{role}.{key}": value for key, value in config.items()}
    return Found(source, "pipeline", PIPELINES[plain], f"model_index.json says {kind}", facts)


def _backbone(source: str, config: Mapping[str, Any]) -> Found:
    kind = str(config.get("_class_name", ""))
    if kind == "Transformer2DModel" and config.get("norm_type") == "ada_norm_single":
        kind = "PixArtTransformer2DModel"  # as diffusers called it before 0.30
    if kind not in BACKBONES:
        raise BadInputError(
            f"{source} is a {kind or 'folder without _class_name'}, of no family that is known here",
            hint="give the pipeline's folder, or that of a UNet or transformer",
        )
    is_sdxl = config.get("addition_embed_type") == "text_time"
    role = "unet" if kind.startswith("UNet") else "transformer"
    facts = {f"{role}.{key}": value for key, value in config.items()}
    families: tuple[str, ...] = ("sdxl",) if is_sdxl else (BACKBONES[kind],)
    if families[0] in PIXART and not config.get("use_additional_conditions"):  # those that Alpha has at 1024 px alone
        families = PIXART
    return Found(source, "backbone", families[0], f"config.json says {kind}", facts, also=families[1:])


def _file(path: Path) -> Found:
    header = read_header(path)
    shapes = header.shapes
    kind = _kind(shapes)
    facts: dict[str, Any] = {"tensors": len(shapes)}
    if kind == "lora" and (model := _own_model(header)):
        facts["made_from"] = model.get("student") or model.get("teacher")
        return Found(str(path), kind, str(model["family"]), "the recipe in its metadata says so", facts)
    families, evidence = families_of(shapes)
    name, why = student_of_file(path.absolute())
    if not families and not name:
        some = ", ".join(sorted(shapes)[:3])
        raise BadInputError(
            f"{path} is of no family that is known here: {len(shapes)} tensors such as {some}",
            hint="give the pipeline's folder, a UNet or transformer, or a LoRA, as safetensors",
        )
    families, evidence = (families, evidence) if families else ((students()[name].family,), why)
    if width := text_width(shapes):
        facts["unet.cross_attention_dim"] = width
    return Found(str(path), kind, families[0], evidence, facts, also=families[1:])


def _kind(shapes: Mapping[str, tuple[int, ...]]) -> str:
    if any(name.startswith(("first_stage_model.", "conditioner.", "cond_stage_model.")) for name in shapes):
        return "single-file"
    return "lora" if any(mark in name for name in shapes for mark in _LORA) else "backbone"


def _own_model(header: Header) -> Mapping[str, Any]:
    """The `model` of the recipe that jdmctl keeps in the metadata of what it trained; empty if there is none."""
    try:
        recipe = yaml.safe_load(header.metadata.get("jdmctl_recipe", ""))
    except yaml.YAMLError:
        return {}
    model = recipe.get("model") if isinstance(recipe, dict) else None
    return model if isinstance(model, dict) and model.get("family") else {}


def _student(found: Found) -> tuple[str, str]:
    """The known student that it is, and how that shows; '' if none. A pipeline's name counts if its network is that."""
    if found.kind != "pipeline":
        return student_of_file(Path(found.source).absolute())
    told = {found.source, *(str(v) for k, v in found.facts.items() if k.endswith("._name_or_path"))}
    for key, one in students().items():
        if one.weights == "folder" and any(is_called(text, one) for text in told) and _may_be(found, one):
            return key, f"it is called {one.repository}"
    matches = [
        key
        for key, one in students().items()
        if one.recognised_by
        and one.family == found.family
        and all(found.facts.get(name) == value for name, value in one.recognised_by.items())
    ]
    if len(matches) != 1:
        return "", ""
    values = ", ".join(f"{name} {value}" for name, value in students()[matches[0]].recognised_by.items())
    return matches[0], f"its own files say {values}"


def _may_be(found: Found, student: Student) -> bool:
    """Whether a pipeline has a student's network, as far as its files tell; its scheduler may be another."""
    told = student.recognised_by.items()
    network = {key: value for key, value in told if key.startswith(("unet.", "transformer."))}
    fits = all(found.facts.get(key, value) == value for key, value in network.items())
    return fits and student.family in found.families
