"""What a run would refuse of a recipe's options and data, looked for before its models are loaded."""

from __future__ import annotations

from jdmctl.build_data import read_options
from jdmctl.controls.base import check_control_options, load_control
from jdmctl.data.conditionfolder import ConditionFolder
from jdmctl.data.formats import PLAIN, open_rows, require_options, require_there
from jdmctl.data.prompts import PromptList
from jdmctl.recipe import Recipe
from jdmctl.rewards.base import check_reward_options


def check_options(recipe: Recipe) -> None:
    """Raises JdmError for a control or reward that lacks an option; what needs no network is made, on trial."""
    for control in recipe.controls:
        check_control_options(control.name, control.options, is_whole=True)
        if control.options and not any(isinstance(value, str) for value in control.options.values()):
            load_control(control.name, **control.options)
    for section, rewards in (("rewards", recipe.rewards), ("heldout_rewards", recipe.heldout_rewards)):
        for reward in rewards:
            check_reward_options(reward.name, reward.options, is_whole=True, place=f"{section}.{reward.called}")


def check_data(recipe: Recipe) -> None:
    """Look at what a recipe would read from this machine; no picture is opened and nothing is fetched.

    Raises JdmError as `build_samples` does, as far as lists of rows tell.
    """
    data = recipe.data
    if data.source == "tiny" or (data.source == "prompts" and data.path == "tiny" and recipe.method != "distill"):
        return
    if data.source == "prompts":
        PromptList(data.path)
        return
    name = require_there(data.path, data.format)
    if name == "maps" and data.source == "conditions":
        require_options(name, read_options(data))
        ConditionFolder(data.path, [control.name for control in recipe.controls], resolution_px=1)
    elif name in PLAIN:
        open_rows(data.path, read_options(data), name)
