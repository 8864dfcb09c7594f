"""examples/fastgen without FastGen: its inputs, and how it imports what wants packages that are not there."""

import sys
from pathlib import Path

import pytest
import torch

from jdmctl.errors import JdmError
from jdmctl.objectives.ratio import time_bins

PARTS = {
    "methods/distribution_matching/f_distill.py": """
import fastgen.networks.noise_schedule
from fastgen.methods.distribution_matching import dmd2
from no_such_package.inside import thing
thing.configure(0)
all_f_div_weighting_function = {"kl": lambda r: r}
class FdistillModel(dmd2.DMD2Model): ...
""",
    "methods/distribution_matching/dmd2.py": "class DMD2Model: ...",
    "networks/noise_schedule.py": "class RFNoiseSchedule: ...\nclass AlphasNoiseSchedule: ...",
    "configs/methods/config_f_distill.py": """
import another_missing_package
class FdistillConfig:
    f_div: str = "js"
    ratio_upper: float = 20.0
""",
}


@pytest.fixture(autouse=True)
def example(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "examples" / "fastgen"))
    yield
    for name in [name for name in sys.modules if name.split(".")[0] in ("fastgen", "ours", "theirs")]:
        del sys.modules[name]


def test_missing_packages_are_stood_in_for_only_while_it_is_imported(tmp_path):
    """Two stand-ins, the package and the module inside it; the configuration is read, not run."""
    from theirs import load

    for name, text in PARTS.items():
        file = tmp_path / "fastgen" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    fastgen = load(tmp_path)
    assert fastgen.stand_ins == ["no_such_package", "no_such_package.inside"]
    assert not set(fastgen.stand_ins) & set(sys.modules)
    assert fastgen.defaults == {"f_div": "js", "ratio_upper": 20.0}
    assert fastgen.weights["kl"](3.0) == 3.0


def test_another_folder_is_refused(tmp_path):
    from theirs import load

    with pytest.raises(JdmError, match="no checkout of FastGen"):
        load(tmp_path)


def test_times_are_of_the_same_bin_for_both():
    """Bin k ends at 0.1 (k + 1) here and at 0.0999 (k + 1) there."""
    from ours import agreed_times

    t = agreed_times(2000, torch.Generator().manual_seed(0)).double()
    assert torch.equal(time_bins(t, 10), (t / 0.0999).long())
    assert time_bins(t, 10).unique().tolist() == list(range(10))
