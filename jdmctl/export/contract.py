"""What weights must be called with to give what they were trained to give, kept inside of the weights' own files.

A one-step student at another timestep, under another scheduler or with guidance draws grey or garbage, and nothing in a
diffusers folder says so. The contract stands in `config.json` or `model_index.json` under a key with an underscore,
which diffusers reads over in silence, and in the metadata of the safetensors files.
"""

from __future__ import annotations

import inspect
import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from jdmctl.errors import BadInputError
from jdmctl.weights import require_safetensors

CONFIG_KEY = "_jdmctl"
METADATA_KEY = "jdmctl_contract"


@dataclass(frozen=True)
class Contract:
    """How to draw with exported weights: once, from pure noise, at the student's own time."""

    student: str  # hub name, or name of the folder, of the pipeline that these weights belong to
    made_from: tuple[str, ...]  # models whose weights these started as: their licences go on to them
    pipeline: str  # diffusers class to draw with, empty where it has none for such a control
    timestep: float  # of the one call, as its scheduler counts; a SANA-Sprint's is an angle in radians
    scheduler: dict[str, Any]  # diffusers config, _class_name included
    call: dict[str, Any]  # arguments of the pipeline beside prompt, condition and generator
    prediction: str = ""  # what the network predicts, in diffusers' words
    resolution_px: int | None = None  # width and height that it was trained at, where known
    beside: tuple[str, ...] = ()  # what was trained together with it and must be loaded too
    control: str = ""  # for a control branch: what it obeys
    extractor: dict[str, Any] = field(default_factory=dict)  # parameters of what makes its condition
    license: str = ""  # of the first that it was made from, where known
    license_link: str = ""  # address of its text, where known
    jdmctl: str = ""  # version that wrote it

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Any, source: str) -> Contract:
        """Raises BadInputError for what is no contract; keys of later versions are read over."""
        given = values if isinstance(values, dict) else {}
        known = {field.name: given[field.name] for field in fields(cls) if field.name in given}
        try:
            return cls(**known | {name: tuple(known[name]) for name in ("made_from", "beside") if name in known})
        except TypeError as reason:
            raise BadInputError(f"the contract in {source} is not whole: {reason}", hint="export it again") from reason


def one_step_call(scheduler: Any, timestep: float, pipeline: str) -> dict[str, Any]:
    """Arguments with which a diffusers pipeline, that has this scheduler, calls its network once, at `timestep`.

    `timestep` is what the scheduler counts in: whole numbers up to 1000, or with an SCMScheduler radians up to pi / 2.

    Raises:
        BadInputError: there are none.
    """
    import diffusers

    if "intermediate_timesteps" in inspect.signature(scheduler.set_timesteps).parameters:
        return {"num_inference_steps": 1, "max_timesteps": timestep, "intermediate_timesteps": None}
    scheduler.set_timesteps(1)
    chosen = [round(float(told)) for told in scheduler.timesteps]
    if chosen == [timestep]:
        return {"num_inference_steps": 1}
    if pipeline and "timesteps" not in inspect.signature(getattr(diffusers, pipeline).__call__).parameters:
        raise BadInputError(
            f"the student's time is timestep {timestep}; {pipeline} takes {chosen[0]} and cannot be told another",
            hint="set model.student_time: 1 if that is what the student was made for",
        )
    return {"num_inference_steps": 1, "timesteps": [timestep]}


def metadata(contract: Contract) -> dict[str, str]:
    """For a safetensors file."""
    return {METADATA_KEY: json.dumps(contract.to_dict())}


def contract_of(path: str | Path) -> Contract:
    """The contract of an exported folder or safetensors file.

    Raises:
        BadInputError: there is none, or it is not whole.
        MissingWeightsError: `path` is neither a folder nor a safetensors file.
    """
    contract = find_contract(path)
    if contract is None:
        raise BadInputError(f"{path} carries no contract", hint="jdmctl export RUN --output FOLDER   writes one")
    return contract


def find_contract(path: str | Path) -> Contract | None:
    """As `contract_of`, None where there is none."""
    from safetensors import safe_open

    path = Path(path)
    for name in ("config.json", "model_index.json"):
        if (path / name).is_file():
            config = _read((path / name).read_text(encoding="utf-8", errors="replace"))
            if isinstance(config, dict) and CONFIG_KEY in config:
                return Contract.from_dict(config[CONFIG_KEY], str(path / name))
    for file in [] if (path / "model_index.json").is_file() else require_safetensors(path):
        with safe_open(file, framework="np") as opened:
            text = (opened.metadata() or {}).get(METADATA_KEY)
        if text:
            return Contract.from_dict(_read(text), str(file))
    return None


def _read(text: str) -> Any:
    """None for what is no json, of which `from_dict` tells."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return None
