"""Drawing from seeds, and the pictures that say how they were made."""

import hashlib
import json
import os
import shlex
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

from jdmctl import sampling
from jdmctl.cli import sample
from jdmctl.cli.sample import _written, parse_options
from jdmctl.data.imagefolder import ImageFolder
from jdmctl.errors import BadInputError, ConditionMismatchError, JdmError
from jdmctl.families.stable_diffusion import StableDiffusion
from jdmctl.sampling import draw, eight_bit, fingerprint, grid, read_record, save_picture, seed_noise, to_picture
from jdmctl.training.samples import split

PROMPTS = ["a red cone", "a blue cube on a tan floor", "a torus"]


@pytest.fixture(scope="module")
def family(tiny_folders):
    """With a branch that adds something: its output convolutions, zero when new, are filled."""
    teacher, student = tiny_folders
    family = StableDiffusion.load(teacher=teacher, student=student)
    branch = family.add_control_branch("depth")
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for convolution in (*branch.controlnet_down_blocks, branch.controlnet_mid_block):
            convolution.weight.normal_(0, 0.3, generator=generator)
    return family


@pytest.fixture
def condition(family):
    size = family.resolution_px
    return torch.rand(3, 3, size, size, generator=torch.Generator().manual_seed(4))


def test_one_seed_gives_what_a_diffusers_pipeline_gives(tiny_folders, family):
    pipe = StableDiffusionPipeline.from_pretrained(tiny_folders[1], safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    theirs = [
        pipe(
            prompt,
            num_inference_steps=1,
            guidance_scale=1.0,
            generator=torch.Generator().manual_seed(seed),
            output_type="pt",
        ).images[0]
        for prompt, seed in zip(PROMPTS, (5, 6, 7), strict=True)
    ]
    ours = draw(family, PROMPTS, (5, 6, 7))
    assert (ours - torch.stack(theirs)).abs().max() < 1 / 255


def test_what_is_not_finite_is_no_picture(family, condition):
    """It would be saved black, and found to have no edge that was not asked for."""
    with pytest.raises(JdmError, match="for seed 5 is not finite"):
        draw(family, PROMPTS[:1], (5,), {"depth": condition[:1]}, {"depth": float("inf")})


def test_a_picture_depends_on_its_own_seed_alone(family, condition):
    """Not on the others of the batch, nor on the size of batches."""
    whole = draw(family, PROMPTS, (0, 1, 2), {"depth": condition})
    alone = draw(family, PROMPTS[2:], (2,), {"depth": condition[2:]})
    pieces = draw(family, PROMPTS, (0, 1, 2), {"depth": condition}, batch_size=1)
    torch.testing.assert_close(whole[2:], alone, atol=1e-5, rtol=0)
    torch.testing.assert_close(whole, pieces, atol=1e-5, rtol=0)
    assert not torch.equal(seed_noise((0,), (4, 2, 2)), seed_noise((1,), (4, 2, 2)))
    assert whole.min() >= 0 and whole.max() <= 1


def test_scale_goes_from_no_control_to_full_control(family, condition):
    plain = draw(family, PROMPTS, (0, 1, 2))
    full = draw(family, PROMPTS, (0, 1, 2), {"depth": condition})
    none = draw(family, PROMPTS, (0, 1, 2), {"depth": condition}, scales={"depth": 0.0})
    assert (full - plain).abs().max() > 10 / 255
    torch.testing.assert_close(none, plain, atol=1e-5, rtol=0)
    torch.testing.assert_close(draw(family, PROMPTS, (0, 1, 2), {"depth": None}), plain)
    after = draw(family, PROMPTS, (0, 1, 2), {"depth": condition})
    torch.testing.assert_close(after, full)  # a scale does not outlast its call


@pytest.mark.parametrize(
    ("name", "shape", "complaint"),
    [
        ("canny", (1, 3, 64, 64), "no control branch named canny .it has depth"),
        ("depth", (1, 3, 32, 64), "64 x 32 px with 3 channels, this student takes 64 x 64"),
        ("depth", (1, 1, 64, 64), "64 x 64 px with 1 channels"),
    ],
)
def test_conditions_that_do_not_fit_are_refused(family, name, shape, complaint):
    with pytest.raises(ConditionMismatchError, match=complaint) as caught:
        draw(family, PROMPTS[:1], (0,), {name: torch.zeros(shape)})
    assert f"{name}=" in caught.value.hint


def test_record_survives_in_the_file(tmp_path):
    record = {"prompt": "ein Würfel, « schön »", "seed": 3, "controls": {"depth": {"scale": 0.5}}}
    path = tmp_path / "new" / "picture.png"
    image = torch.rand(3, 8, 8)
    save_picture(to_picture(image), path, record)
    assert read_record(path) == record
    with Image.open(path) as picture:
        assert json.loads(picture.text["jdmctl"]) == record  # any PNG reader finds it
        pixels = torch.tensor(list(picture.convert("RGB").get_flattened_data())).view(8, 8, 3)
    torch.testing.assert_close(pixels.permute(2, 0, 1) / 255, eight_bit(image))
    Image.new("RGB", (8, 8)).save(path)
    with pytest.raises(BadInputError, match="does not say"):
        read_record(path)
    with pytest.raises(JdmError, match="could not save"):
        save_picture(to_picture(image), path / "below-a-file.png", record)


def test_a_picture_is_there_whole_or_not_at_all(tmp_path, monkeypatch):
    """When its writing is cut off as by a kill, and when the disk is full; the one before stays."""
    resource = pytest.importorskip("resource")
    image = to_picture(torch.rand(3, 256, 256))
    save_picture(Image.new("RGB", (8, 8)), tmp_path / "old.png", {})
    before = (tmp_path / "old.png").read_bytes()

    def cut_off(picture, file, **options):
        Path(file).write_bytes(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Image.Image, "save", cut_off)
        for name in ("old", "new"):
            with pytest.raises(KeyboardInterrupt):
                save_picture(image, tmp_path / f"{name}.png", {})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 15, hard))
    try:
        with pytest.raises(JdmError, match="disk is full: could not save .*old.png"):
            save_picture(image, tmp_path / "old.png", {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path.name for path in tmp_path.iterdir()] == ["old.png"]
    assert (tmp_path / "old.png").read_bytes() == before


def test_fingerprint_is_of_the_saved_pixels():
    """sha256 of twelve zero bytes; what rounds to the same 8 bits has the same fingerprint."""
    zero = "15ec7bf0b50732b49f8228e07d24365338f9e3ab994b00af08e5a3bffe55fd8b"
    assert fingerprint(torch.zeros(3, 2, 2)) == zero
    assert fingerprint(torch.full((3, 2, 2), 0.4 / 255)) == zero
    assert fingerprint(torch.full((3, 2, 2), 0.6 / 255)) != zero


def test_grid_places_pictures_under_their_titles():
    """Cells of 64 px are doubled to 128 and 136 px apart; an absent picture stays white."""
    red, green = torch.zeros(3, 64, 64), torch.zeros(3, 64, 64)
    red[0], green[1] = 1, 1
    sheet = grid(["condition", "output"], [("first", [red, green]), ("second", [None, red])])
    assert sheet.width == 8 + 2 * 136
    colors = [sheet.getpixel((x, y)) for y in (100, 260) for x in (70, 206)]
    assert colors == [(255, 0, 0), (0, 255, 0), (255, 255, 255), (255, 0, 0)]


# --- the command --------------------------------------------------------------------------------


@pytest.fixture
def branch(in_tiny_world, family):
    """The family's branch, saved, in the folder where commands run."""
    family.save_control_branch("depth", "branch")
    return "branch"


def pixels(path) -> torch.Tensor:
    with Image.open(path) as picture:
        return torch.tensor(list(picture.get_flattened_data()))


def words_of(record) -> list[str]:
    """Of the command that draws it again; it names the world whose student drew."""
    words = shlex.split(record["command"])
    if record["student"] == "tiny":
        assert words.pop(0) == f"JDMCTL_WORLD={os.environ['JDMCTL_WORLD']}"
    assert words[0] == "jdmctl"
    return words[1:]


@pytest.mark.parametrize("value", [None, True, 3, 1e-05, "a name", "null", "12", "[1", ["a", 0.5]])
def test_options_are_read_as_they_were_written(value):
    assert parse_options([f"depth.scorer={_written(value)}"]) == {"depth": {"scorer": value}}


def test_pictures_can_be_drawn_again_from_what_they_say(jdmctl_command, branch, photos, monkeypatch):
    """The command in a picture's metadata gives the same pixels, although it was asked for with a
    photo, at another place in a batch, with a scale and in another folder; and on the device that was asked for."""
    code, out, err = jdmctl_command(
        *("sample", "--student", "tiny", "--controlnet", f"softedge={branch}"),
        *("--control", f"softedge={photos}/03.png", "--scale", "softedge=0.7"),
        *("--prompt", "a red box", "--prompt", "a blue box", "--seed", 4, "--num", 2),
        *("--output", "first", "--json", "--device", "cpu"),
    )  # fmt: skip
    assert code == 0, err
    *records, last = [json.loads(line) for line in out.splitlines()]
    assert last == {"grid": "first/grid.png"}
    assert [(r["prompt"], r["seed"]) for r in records] == [
        (prompt, seed) for prompt in ("a red box", "a blue box") for seed in (4, 5)
    ]
    chosen = records[3]
    assert read_record(Path(chosen["file"])) == chosen
    assert read_record(Path("first/grid.png"))["pictures"] == records
    control = chosen["controls"]["softedge"]
    assert control["scale"] == 0.7
    assert control["condition_sha256"] == hashlib.sha256(Image.open(control["condition"]).tobytes()).hexdigest()
    assert 0 <= chosen["adherence"]["softedge ssim"] <= 1

    first = Path("first").resolve()
    Path("elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    words = words_of(chosen)
    assert words[words.index("--device") + 1] == "cpu"
    code, _, err = jdmctl_command(*words, "--output", "second")
    assert code == 0, err
    assert torch.equal(pixels("second/000-seed5.png"), pixels(first / "003-seed5.png"))
    assert not torch.equal(pixels("second/000-seed5.png"), pixels(first / "001-seed5.png"))


def test_what_is_drawn_stays(jdmctl_command, in_tiny_world, monkeypatch):
    """The third picture is interrupted; the grid has the two rows already that it is to have."""
    drawn, draw_one = [], sampling.draw

    def draw_two(family, prompts, seeds, *more):
        if len(drawn) == 2:
            raise KeyboardInterrupt
        drawn.extend(seeds)
        return draw_one(family, prompts, seeds, *more)

    monkeypatch.setattr(sampling, "draw", draw_two)
    monkeypatch.setattr(sample, "_GRID_ROWS", 2)
    code, out, err = jdmctl_command("sample", "--student", "tiny", "--num", 3, "--output", "kept")
    assert code == 130, err
    assert [line.split()[0] for line in out.splitlines()] == ["kept/000-seed0.png", "kept/001-seed1.png"]
    assert {path.name for path in Path("kept").iterdir()} == {"000-seed0.png", "001-seed1.png", "grid.png"}


def test_a_grid_has_no_more_rows_than_can_be_looked_at(jdmctl_command, in_tiny_world, monkeypatch):
    monkeypatch.setattr(sample, "_GRID_ROWS", 2)
    code, _, err = jdmctl_command("sample", "--student", "tiny", "--num", 3, "--output", "many")
    assert code == 0 and "the grid shows the first 2 of 3 pictures" in err
    assert [one["seed"] for one in read_record(Path("many/grid.png"))["pictures"]] == [0, 1]
    assert len(list(Path("many").glob("*-seed*.png"))) == 3


def test_a_folder_takes_the_pictures_of_one_call(jdmctl_command, in_tiny_world):
    """It may be made again, or finished; another prompt, seed or number of pictures belongs elsewhere."""
    Path("kept").mkdir()
    Path("kept/mine.txt").touch()
    call = ("sample", "--student", "tiny", "--num", 2, "--output", "kept", "--prompt")
    code, _, err = jdmctl_command(*call, "a red box")
    assert code == 0, err
    Path("kept/001-seed1.png").unlink()
    before = {path: path.read_bytes() for path in Path("kept").glob("*.png")}
    for words in ((*call, "a blue box"), (*call, "a red box", "--seed", 1)):
        code, out, err = jdmctl_command(*words)
        assert code == 1 and "kept holds pictures of another call, such as 000-seed0.png" in err and not out
        assert "hint: choose another --output" in err
    assert {path: path.read_bytes() for path in Path("kept").glob("*.png")} == before
    code, _, err = jdmctl_command(*call, "a red box")
    assert code == 0 and Path("kept/001-seed1.png").is_file(), err


def test_what_is_cut_off_a_prompt_is_told_once(jdmctl_command, in_tiny_world):
    call = ("sample", "--student", "tiny", "--num", 2, "--prompt", "a red cone", "--prompt")
    code, _, err = jdmctl_command(*call, "red cone " * 100 + "on a blue floor")
    assert code == 0, err
    (told,) = [line for line in err.splitlines() if line.startswith("warning: ")]
    assert told.startswith("warning: red cone red") and told.endswith("red cone on a blue floor")
    assert told.partition(" read: ")[2].count("cone") < 100


def test_every_seed_is_one_that_may_be_asked_for(jdmctl_command):
    code, _, err = jdmctl_command("sample", "--student", "tiny", "--seed", 2**63 - 1, "--num", 2)
    assert code == 1 and "there are no 2 seeds from 9223372036854775807 on" in err
    assert "--seed 9223372036854775806 at most" in err


@pytest.fixture
def unet_run(tiny_folders, photos, in_tiny_world) -> Path:
    """What add-control leaves for a student that is a UNet's weights alone, called at timestep 399 and answering x0."""
    teacher, student = tiny_folders
    run = start_run("softedge", photos)
    shutil.copy(student / "unet" / "diffusion_pytorch_model.safetensors", "unet.safetensors")
    model = {"teacher": str(teacher), "student": "unet.safetensors"}
    values = json.loads((run / "recipe.yaml").read_text())
    values["model"] = model | {"student_timestep": 399, "student_prediction": "sample"}
    (run / "recipe.yaml").write_text(json.dumps(values))
    family = StableDiffusion.load(teacher=teacher, student="unet.safetensors")
    family.add_control_branch("softedge")
    family.save_control_branch("softedge", run / "controlnet")
    return run


def test_a_students_file_is_drawn_again_with_its_teacher_time_and_prediction(jdmctl_command, unet_run):
    given = ("--prompt", "a red box", "--condition", "softedge=edges.png")
    Image.new("RGB", (64, 64)).save("edges.png")
    code, out, err = jdmctl_command("sample", str(unet_run), *given, "--output", "first", "--json")
    assert code == 0, err
    record = json.loads(out.splitlines()[0])
    assert record["student_time"] == pytest.approx(399 / 999)
    code, _, err = jdmctl_command(*words_of(record), "--output", "second")
    assert code == 0, err
    assert torch.equal(pixels("second/000-seed0.png"), pixels(record["file"]))
    code, _, err = jdmctl_command("sample", "--student", "unet.safetensors", "--prompt", "a red box")
    assert code == 1 and "unet.safetensors is no pipeline" in err and "--teacher TEACHER" in err


def start_run(control: str, photos: Path) -> Path:
    """A run folder as it is before the run has finished."""
    run = Path("runs", control)
    run.mkdir(parents=True)
    values = {
        "name": control,
        "model": {"teacher": "tiny", "student": "tiny"},
        "controls": [{"name": control}],
        "training": {"num_steps": 1},
        "data": {"source": "images", "path": str(photos)},
    }
    (run / "recipe.yaml").write_text(json.dumps(values))
    return run


def test_a_run_folder_alone_gives_a_preview_on_held_out_samples(jdmctl_command, branch, photos):
    """Twelve photos, a quarter of them held out."""
    run = start_run("softedge", photos)
    code, _, err = jdmctl_command("sample", run)
    assert code == 1 and "has not finished" in err and f"jdmctl add-control {run} --resume" in err
    shutil.copytree(branch, run / "controlnet")
    code, out, err = jdmctl_command("sample", run, "--json")
    assert code == 0, err
    *records, last = [json.loads(line) for line in out.splitlines()]
    _, held_out = split(ImageFolder(photos, 8), 0, 64)
    assert [record["prompt"] for record in records] == [held_out.text(index) for index in range(3)]
    assert last["grid"] == f"{run}/samples/grid.png"
    assert len({record["controls"]["softedge"]["condition_sha256"] for record in records}) == 3
    before = Path(last["grid"]).read_bytes()
    _, out, _ = jdmctl_command("sample", run, "--json")  # what is there stays
    assert json.loads(out.splitlines()[-1])["grid"] == f"{run}/samples-2/grid.png"
    assert Path(last["grid"]).read_bytes() == before


def test_runs_on_one_student_are_composed(jdmctl_command, branch, photos):
    """Both branches obey the same picture; a preview makes the second run's conditions itself."""
    edges, small = start_run("softedge", photos), start_run("lowres", photos)
    for run in (edges, small):
        shutil.copytree(branch, run / "controlnet")
    code, out, err = jdmctl_command("sample", edges, small, "--json")
    assert code == 0, err
    first = json.loads(out.splitlines()[0])
    assert list(first["adherence"]) == ["softedge ssim", "lowres psnr"]
    assert len({control["condition_sha256"] for control in first["controls"].values()}) == 2
    _, alone, _ = jdmctl_command("sample", edges, "--output", "alone", "--json")
    assert not torch.equal(pixels(first["file"]), pixels(json.loads(alone.splitlines()[0])["file"]))
    code, _, err = jdmctl_command("sample", edges, small, "--control", f"softedge={photos}/03.png")
    assert code == 0 and "warning: lowres has no condition and does nothing" in err and "softedge has" not in err
    code, _, err = jdmctl_command("sample", edges, edges)
    assert code == 1 and "both have softedge" in err


SOFTEDGE = "--student tiny --controlnet softedge="


@pytest.mark.parametrize(
    ("words", "complaint", "hint"),
    [
        ("", "either a run folder or --student", "jdmctl sample RUN_FOLDER"),
        ("nowhere", "nowhere is not a run folder", "--student"),
        ("--student tiny --control canny", "--control canny: expected NAME=VALUE", "canny="),
        ("--student tiny --control softedge=missing.jpg", "missing.jpg is not there", "path"),
        ("--student tiny --scale softedge=much", "much is not a number", "0.8"),
        ("--student tiny --scale softedge=nan", "nan is not a number", "0.8"),
        ("--student tiny --student-prediction v", "must be epsilon or v_prediction or flow_prediction", "leave it out"),
        ("--student tiny --family sdx", "no family named 'sdx', did you mean 'sdxl'?", "another value"),
        ("--student tiny --device banana", "device banana is not there (there is cpu", "--device cpu"),
        ("--student tiny --control softedge=photo.png", "no such control branch", "--controlnet softedge=FOLDER"),
        ("--student tiny/depth --prompt x", "model_index.json", "save_pretrained"),
        ("--student lora --prompt x", "lora is no pipeline", "--student STUDENT --student-lora lora"),
        ("runs/x --controlnet softedge=branch", "belong to --student", "its own"),
        (f"{SOFTEDGE}branch", "nothing to obey", "--control softedge=PHOTO"),
        (f"{SOFTEDGE}branch --condition softedge=small.png", "32 x 32 px", "--control softedge="),
        (f"{SOFTEDGE}pickled --control softedge=photo.png", "pickle", "safetensors"),
        (
            f"{SOFTEDGE}branch --control softedge=photo.png --condition softedge=photo.png",
            "two conditions for softedge",
            "not both",
        ),
        (
            "--student tiny --controlnet depth=branch --control depth=photo.png",
            "needs the option",
            "--option depth.KEY",
        ),
    ],
)
def test_mistakes_are_answered_with_a_sentence(jdmctl_command, branch, photos, words, complaint, hint):
    Image.open(photos / "00.png").save("photo.png")
    Image.new("RGB", (32, 32)).save("small.png")
    Path("lora").mkdir()
    shutil.copy(Path(branch, "diffusion_pytorch_model.safetensors"), "lora/pytorch_lora_weights.safetensors")
    shutil.copytree(branch, "pickled")
    Path("pickled/diffusion_pytorch_model.safetensors").rename("pickled/diffusion_pytorch_model.bin")
    code, out, err = jdmctl_command("sample", *words.split())
    assert code == 1, err
    assert out == ""
    assert "Traceback" not in err
    message, _, advice = err[err.index("error: ") :].partition("\nhint: ")  # after the loading bars
    assert complaint in message
    assert hint in advice
    assert not Path("samples").exists()
