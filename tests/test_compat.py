"""torchvision is imported as it is where it is whole, and mended only where its operators are missing.

Each case runs in a process of its own, with a stand-in for torchvision on the path: what happens must
not depend on the torchvision of this machine.
"""

import os
import subprocess
import sys
import textwrap

import pytest

ENSURE = "from jdmctl._compat import ensure_torchvision"
NEEDS_OPERATOR = """
    import torch
    if not hasattr(torch.ops.torchvision, "nms"):
        raise RuntimeError("operator torchvision::nms does not exist")
"""


def run(code, *folders):
    path = os.pathsep.join([*map(str, folders), os.getcwd()])
    environment = os.environ | {"PYTHONPATH": path, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code).replace("ENSURE", ENSURE)],
        env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture
def fake_torchvision(tmp_path):
    def write(init):
        package = tmp_path / "torchvision"
        package.mkdir()
        (package / "__init__.py").write_text(textwrap.dedent(init))
        return tmp_path

    return write


def test_a_whole_torchvision_is_left_alone(fake_torchvision):
    folder = fake_torchvision("")
    code = """
    ENSURE
    import sys
    print(ensure_torchvision(), "torch" in sys.modules)
    """
    assert run(code, folder) == "native False"


def test_missing_operators_are_declared_once(fake_torchvision):
    folder = fake_torchvision(NEEDS_OPERATOR)
    code = "ENSURE; print(ensure_torchvision(), ensure_torchvision()); import torchvision"
    assert run(code, folder) == "schema-only schema-only"


@pytest.mark.parametrize("first", ["torchvision", "torchvision.ops"])
def test_importing_jdmctl_is_enough(fake_torchvision, first):
    """Whoever imports torchvision after jdmctl, or a part of it, finds it mended."""
    folder = fake_torchvision(NEEDS_OPERATOR)
    (folder / "torchvision" / "ops.py").write_text("")
    assert run(f"import jdmctl, sys, {first}; print('{first}' in sys.modules)", folder) == "True"
    assert run(f"import jdmctl, {first}; ENSURE; print(ensure_torchvision())", folder) == "schema-only"


def test_an_import_that_failed_before_is_repaired(fake_torchvision):
    folder = fake_torchvision("from torchvision import ops")
    (folder / "torchvision" / "ops.py").write_text(textwrap.dedent(NEEDS_OPERATOR))
    code = """
    try:
        import torchvision
    except RuntimeError:
        ENSURE
        print(ensure_torchvision())
    import torchvision
    """
    assert run(code, folder) == "schema-only"


def test_another_failure_is_not_hidden(fake_torchvision):
    folder = fake_torchvision("raise RuntimeError('of another kind')")
    code = """
    ENSURE
    try:
        ensure_torchvision()
    except RuntimeError as problem:
        print(problem)
    """
    assert run(code, folder) == "of another kind"


def test_without_torchvision_there_is_nothing_to_do():
    code = """
    ENSURE
    import importlib.util
    importlib.util.find_spec = lambda name: None
    print(ensure_torchvision())
    """
    assert run(code) == "absent"


def test_what_needs_torchvision_can_be_imported_on_this_machine():
    code = """
    import jdmctl
    from controlnet_aux import CannyDetector
    from diffusers import StableDiffusionControlNetPipeline
    from transformers import CLIPModel
    print("imported")
    """
    assert run(code).splitlines()[-1] == "imported"
