"""The forms that one-step students are published in, told apart by what is in the file.

    a pipeline folder       backbone and scheduler (SD-Turbo, SDXL-Turbo, what `jdmctl distill` leaves)
    a backbone's folder     config.json and weights
    one .safetensors file   LoRA for the teacher's backbone, in diffusers' or kohya's keys (LCM-LoRA, Hyper-SD);
                            the backbone's weights alone, in diffusers' keys (DMD2, SDXL-Lightning);
                            a checkpoint of everything, or of a transformer alone, in the keys of the model's authors
                            (what ComfyUI loads)

Of a whole pipeline or checkpoint the backbone alone is taken: prompts and pictures are the teacher's. Where no
scheduler comes with the weights, the teacher's noise schedule and prediction type hold.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from diffusers.loaders.single_file_utils import SingleFileComponentError
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors.torch import load_file
from torch import Tensor, nn

from jdmctl.errors import BadInputError, MissingWeightsError, first_line
from jdmctl.families.folders import load_component
from jdmctl.families.lora_files import put_lora_file, some
from jdmctl.families.sharing import double, twin
from jdmctl.weights import require_safetensors, tensor_names

if TYPE_CHECKING:
    from jdmctl.families.family import Family

Form = Literal["pipeline", "backbone", "lora", "checkpoint", "weights"]
_CHECKPOINT = "model.diffusion_model."  # what a whole checkpoint's backbone is called


def load_student(
    family: type[Family], source: str | Path, teacher: str | Path, backbone: nn.Module, share: bool = False
) -> tuple[nn.Module, Mapping[str, Any] | None]:
    """A student's backbone in any form, and its scheduler's config if it has one of its own.

    `backbone` is the teacher's; it stays as it is, and weights that both have may be held once. With `share` they are:
    the student is the teacher itself or a LoRA, whose layers then stay beside the backbone's own.

    Raises:
        BadInputError: it is no student of this family, or fits another teacher, or cannot share its weights.
        MissingWeightsError: it is not there, cut short, or only there as a pickle.
    """
    form, path = student_form(family, source)
    if share and form == "pipeline" and str(source) == str(teacher):
        return double(backbone), None
    if share and form != "lora":
        raise BadInputError(
            f"student {source} is no LoRA on its teacher, so that the two have no weights in common",
            hint="--set memory.share_backbone=false",
        )
    if form == "pipeline":
        family.require_folder(source, "student")
        student = family.load_backbone(source)
        family.require_same(backbone, student, f"student {source}", f"teacher {teacher}")
        return student, family.read_scheduler(source)
    if form == "backbone":
        student = load_component(family.backbone_class, path, None)
        family.require_same(backbone, student, f"student {source}", f"teacher {teacher}")
        return student, None
    if form == "lora":
        return _with_lora(family, Path(path), backbone, share), None
    if form == "checkpoint":
        return _from_checkpoint(family, Path(path), teacher), None
    return _with_weights(Path(path), backbone), None


def student_form(family: type[Family], source: str | Path) -> tuple[Form, str | Path]:
    """In which form a student is, and its file, folder or hub name. Raises as `load_student` does."""
    path = _local(source)
    if path is None or (path / family.index_file).is_file():
        return "pipeline", source
    if (path / "config.json").is_file():
        return "backbone", path
    file = _only_file(path)
    names = tensor_names(file)
    if any("lora" in name for name in names):
        return "lora", file
    is_authors = any(name.startswith(_CHECKPOINT) for name in names) or any(
        mark in name for mark in family.authors_keys for name in names
    )
    return ("checkpoint" if is_authors else "weights"), file


def hub_file(source: str | Path) -> tuple[str, str]:
    """Repository and file, if `source` names a file of a hub repository (owner/name/file.safetensors); else two ""."""
    owner, _, rest = str(source).partition("/")
    name, _, file = rest.partition("/")
    is_one = file.endswith(".safetensors") and not Path(source).exists()
    return (f"{owner}/{name}", file) if is_one else ("", "")


def _local(source: str | Path) -> Path | None:
    """A path that is there, maybe a file of a hub repository (owner/name/file.safetensors); None for a hub name."""
    path = Path(source)
    if path.exists():
        return path
    name, file = hub_file(source)
    if not file:
        return None
    try:
        return Path(hf_hub_download(name, file))
    except (HfHubHTTPError, LocalEntryNotFoundError, HFValidationError, OSError) as reason:
        raise MissingWeightsError(
            f"no file {source}, and none such can be had from the hub", hint="check the path, or download it first"
        ) from reason


def _only_file(path: Path) -> Path:
    files = require_safetensors(path)
    if len(files) > 1:
        raise BadInputError(
            f"{path} holds {len(files)} files of weights: {', '.join(file.name for file in files)}",
            hint=f"name one: {files[0]}",
        )
    return files[0]


def _with_lora(family: type[Family], file: Path, backbone: nn.Module, share: bool) -> nn.Module:
    """The teacher's backbone with a LoRA merged into a copy of it, or, to share its weights, beside them."""
    student: Any = double(backbone) if share else copy.deepcopy(backbone)
    put_lora_file(family, file, student, "teacher")
    if not share:
        family.merge_lora(student)
    return student


def _from_checkpoint(family: type[Family], file: Path, teacher: str | Path) -> nn.Module:
    """The backbone alone, as the teacher's is configured but for what the names of the tensors tell otherwise."""
    if not hasattr(family.backbone_class, "from_single_file"):
        raise BadInputError(
            f"student {file} is in its authors' keys, which diffusers does not read for the family {family.name}",
            hint="give its backbone as a folder that diffusers' save_pretrained wrote",
        )
    try:
        told = family.checkpoint_config(tensor_names(file))
        return family.backbone_class.from_single_file(
            str(file), config=str(teacher), subfolder=family.subfolder, **told
        ).float()
    except (ValueError, KeyError, RuntimeError, OSError, IndexError, SingleFileComponentError) as reason:
        is_cut = isinstance(reason, NotImplementedError)  # torch's, of weights that were left on the meta device
        why = "some weights of such a network are missing" if is_cut else first_line(reason)
        raise BadInputError(
            f"student {file} is a checkpoint that does not fit the teacher {teacher}: {why}",
            hint="give the teacher that it was made from (--teacher), as a diffusers folder",
        ) from reason


def _with_weights(file: Path, backbone: nn.Module) -> nn.Module:
    """The teacher's backbone with all its weights replaced."""
    found, wanted = load_file(file), backbone.state_dict()
    problems = [
        f"{some(names)} {what}"
        for what, names in (
            ("missing", wanted.keys() - found.keys()),
            ("unknown", found.keys() - wanted.keys()),
            ("of another shape", _differing(found, wanted)),
        )
        if names
    ]
    if problems:
        raise BadInputError(
            f"student {file} is no LoRA, no whole checkpoint, and not the weights of a backbone like its teacher's: "
            + "; ".join(problems),
            hint="give the teacher that it was distilled from (--teacher)",
        )
    student = twin(backbone)
    student.load_state_dict({name: value.float() for name, value in found.items()}, assign=True)
    return student


def _differing(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> list[str]:
    return [name for name in found.keys() & wanted.keys() if found[name].shape != wanted[name].shape]
