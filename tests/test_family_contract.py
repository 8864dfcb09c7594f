"""What every family promises, on tiny random pipelines in exact diffusers format (tests/tiny_pipelines.py)."""

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from diffusers import DiffusionPipeline
from PIL import Image
from safetensors.torch import load_file
from tiny_pipelines import FAMILIES
from tiny_transformers import TRANSFORMERS

from jdmctl.build import build_controls, build_dsm_step, build_jdm_step, build_roles, prepare_student
from jdmctl.build_run import build_run
from jdmctl.cli.training import plan
from jdmctl.families.heads import RatioCritic
from jdmctl.families.names import family_class
from jdmctl.families.offload import offload, offloaded_weights
from jdmctl.recipe import Recipe
from jdmctl.recipe_files import parse_recipe
from jdmctl.training.draws import SampleDraws
from jdmctl.training.run import make_accelerator, train
from jdmctl.types import Batch

PROMPTS = ["a red cone", "a blue cube on a tan floor"]  # copied for pipelines: Z-Image's changes the list it is given


@pytest.fixture(scope="module", params=[*FAMILIES, *TRANSFORMERS], ids=str)
def tiny(request):
    return request.param


def noise_of(family, seed=0):
    return torch.randn(2, *family.latent_shape, generator=torch.Generator().manual_seed(seed))


def condition_of(family, seed=1):
    size = family.resolution_px
    return torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(seed))


def drawn(family, controls=None, noise=None):
    with torch.no_grad():
        noise = noise_of(family) if noise is None else noise
        x0 = family.student.generate(noise, family.encode_prompt(PROMPTS), controls)
        return family.codec.decode(x0).clamp(0, 1)


def quiet(pipeline):
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def speak(branch, seed=2):
    """Fill what is trained and still at zero, so that it says something."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in branch.parameters():
            if parameter.requires_grad and not parameter.any():
                parameter.normal_(0, 0.3, generator=generator)


def test_one_step_is_the_family_s_own_pipeline(tiny, family, folder):
    pipe = quiet(DiffusionPipeline.from_pretrained(folder / "student", safety_checker=None))
    theirs = pipe([*PROMPTS], latents=tiny.latents(noise_of(family)), **tiny.one_step).images
    assert (drawn(family) - theirs).abs().max() < 1e-4


def test_a_wide_picture_is_its_own_pipeline_s_with_a_branch_too(tiny, family, folder):
    """Half as high and twice as wide as the square: positions and sizes that a network is told are those of x_t."""
    channels, rows, columns = family.latent_shape
    noise = torch.randn(2, channels, rows // 2, 2 * columns, generator=torch.Generator().manual_seed(0))
    size = {"height": family.resolution_px // 2, "width": 2 * family.resolution_px}
    asked = {"latents": tiny.latents(noise), **tiny.one_step, **size}
    pipe = quiet(DiffusionPipeline.from_pretrained(folder / "student", safety_checker=None))
    assert (drawn(family, noise=noise) - pipe([*PROMPTS], **asked).images).abs().max() < 1e-4

    branch = family.add_control_branch("canny").eval()
    speak(branch)
    condition = torch.rand(2, 3, *size.values(), generator=torch.Generator().manual_seed(1))
    ours = drawn(family, {"canny": condition}, noise)
    assert ours.shape[2:] == condition.shape[2:]
    if tiny.control_pipeline is None:
        return
    pipe = quiet(tiny.control_pipeline.from_pretrained(folder / "student", controlnet=branch, safety_checker=None))
    theirs = pipe([*PROMPTS], **{tiny.condition_argument: tiny.pixels(condition)}, **tiny.control, **asked).images
    assert (ours - theirs).abs().max() < 1e-4


def test_the_teacher_s_many_steps_are_its_own_pipeline(tiny, family, folder):
    pipe = quiet(DiffusionPipeline.from_pretrained(folder / "teacher", safety_checker=None))
    theirs = pipe([*PROMPTS], latents=tiny.latents(noise_of(family)), **tiny.guided, output_type="pt").images
    ours = family.codec.decode(family.multistep(noise_of(family), family.encode_prompt(PROMPTS), 3, 2.0)).clamp(0, 1)
    assert (ours - theirs).abs().max() < 1e-4


def test_a_codec_gives_back_what_it_was_given_in_shape(family):
    latent = family.codec.encode(condition_of(family))
    assert latent.shape[1:] == family.latent_shape
    assert family.codec.decode(latent).shape == (2, 3, family.resolution_px, family.resolution_px)


def test_a_new_branch_changes_nothing(family):
    before = drawn(family)
    branch = family.add_control_branch("canny")
    controls = {"canny": condition_of(family)}
    assert torch.equal(drawn(family, controls), before)
    speak(branch)
    assert (drawn(family, controls) - before).abs().max() > 1e-3
    family.student.control_scales["canny"] = 0.0
    assert torch.equal(drawn(family, controls), before)


def test_a_saved_branch_comes_back_and_runs_in_the_family_s_own_pipeline(tiny, family, folder, tmp_path):
    speak(family.add_control_branch("canny"))
    controls = {"canny": condition_of(family)}
    ours = drawn(family, controls)
    family.save_control_branch("canny", tmp_path / "branch")
    other = family_class(tiny.family).load(folder / "teacher", folder / "student", **tiny.student)
    other.add_control_branch("canny", tmp_path / "branch")
    assert torch.equal(drawn(other, controls), ours)

    if tiny.control_pipeline is None:
        return
    branch = type(family.student.branches["canny"]).from_pretrained(tmp_path / "branch")
    pipe = quiet(tiny.control_pipeline.from_pretrained(folder / "student", controlnet=branch, safety_checker=None))
    condition = {tiny.condition_argument: tiny.pixels(controls["canny"])} | tiny.control
    theirs = pipe([*PROMPTS], latents=tiny.latents(noise_of(family)), **condition, **tiny.one_step).images
    assert (ours - theirs).abs().max() < 1e-4


def test_a_saved_student_draws_alike_here_and_in_its_own_pipeline(tiny, family, folder, tmp_path):
    ours = drawn(family)
    family.save_student(tmp_path / "student")
    other = family_class(tiny.family).load(folder / "teacher", tmp_path / "student", **tiny.student)
    assert (drawn(other) - ours).abs().max() < 1e-6
    pipe = quiet(DiffusionPipeline.from_pretrained(tmp_path / "student", safety_checker=None))
    assert (pipe([*PROMPTS], latents=tiny.latents(noise_of(family)), **tiny.one_step).images - ours).abs().max() < 1e-4


def test_a_saved_lora_comes_back_here_and_as_a_student_of_its_own(tiny, family, folder, tmp_path):
    """Of a student that began as its teacher, so that the teacher with the LoRA is the student."""
    kind = family_class(tiny.family)
    own = kind.load(folder / "teacher", folder / "teacher")
    torch.manual_seed(0)
    own.add_student_lora(2)
    speak(own.student.backbone)
    own.save_student_lora(tmp_path / "lora")
    ours = drawn(own)
    other = kind.load(folder / "teacher", folder / "teacher")
    assert (drawn(other) - ours).abs().max() > 1e-3
    other.load_student_lora(tmp_path / "lora")
    assert (drawn(other) - ours).abs().max() < 1e-5
    beside = kind.load(folder / "teacher", tmp_path / "lora", share_backbone=True)
    assert (drawn(beside) - ours).abs().max() < 1e-4
    own_weights = {p.data_ptr() for p in beside.teacher.parameters()}
    assert own_weights <= {p.data_ptr() for p in beside.student.parameters()}
    for denoiser in (beside.teacher, beside.student):
        offload(denoiser.backbone)
    assert (drawn(beside) - ours).abs().max() < 1e-4
    merged = kind.load(folder / "teacher", tmp_path / "lora")
    for one in (beside, merged):
        torch.manual_seed(0)
        speak(one.add_control_branch("canny"))
    controls = {"canny": condition_of(family)}
    assert (drawn(beside, controls) - drawn(merged, controls)).abs().max() < 1e-4
    del merged.student.branches["canny"]
    assert (drawn(merged) - ours).abs().max() < 1e-4
    assert merged.student.backbone.state_dict().keys() == merged.teacher.backbone.state_dict().keys()


def recipe(tiny, folder: Path, *changes: str) -> Recipe:
    quick = ("training.batch_size=2", "training.num_steps=1", "training.save_every_steps=1",
             "training.validate_every_steps=1", "training.preview_every_steps=9", "fake_score.warmup_min_steps=0",
             "fake_score.warmup_max_steps=1", "fake_score.rank=2", "fake_score.updates=1",
             "data.num_validation_samples=2")  # fmt: skip
    model = {
        "family": tiny.family,
        "teacher": str(folder / "teacher"),
        "student": str(folder / "student"),
        **tiny.student,
    }
    values = {"name": "x", "model": model, "controls": [{"name": "softedge"}], "data": {"source": "tiny"}}
    return parse_recipe(values, [*quick, *changes])


LOW_MEMORY = ("memory.frozen_precision=bf16", "memory.gradient_checkpointing=true")
ALL_SWITCHES = (*LOW_MEMORY, "memory.cache_embeddings=true", "memory.average_on_cpu=true", "memory.offload=true",
                "memory.cache_latents=true")  # fmt: skip
if find_spec("bitsandbytes"):
    ALL_SWITCHES += ("memory.optimizer=adamw_8bit",)


def step_and_batch(tiny, family, folder, *changes):
    asked = recipe(tiny, folder, *changes)
    prepare_student(asked, family)
    step = build_jdm_step(asked, family, build_controls(asked, "cpu"))
    step.weights["softedge"] = 1e4  # the energy is what a step descends
    conditions = {"softedge": condition_of(family)}
    return step, Batch(family.encode_prompt(PROMPTS), conditions, SampleDraws(0, "test", range(2)))


@pytest.mark.parametrize("changes", [(), LOW_MEMORY], ids=["", "low-memory"])
def test_one_step_of_jdm_descends_and_trains_only_what_it_should(tiny, folder, changes):
    """On a fixed batch: the fake score's denoising loss and the control's energy both fall."""
    family = build_roles(recipe(tiny, folder, *changes), "cpu")
    step, batch = step_and_batch(tiny, family, folder, *changes)
    reached = {"fake_score": step.fake_score_loss(batch), "student": step.student_loss(batch)}
    reached["fake_score"].total.backward()
    assert all(p.grad is None for p in family.student.parameters())
    reached["student"].total.backward()
    networks = [family.teacher, family.student, step.fake_score, family.codec.vae, *family.parts.values()]
    trained = {id(p) for p in (*step.student_parameters, *step.fake_score_parameters)}
    for network in networks:
        for p in network.parameters() if isinstance(network, torch.nn.Module) else ():
            assert p.grad is None or id(p) in trained
    for loss, parameters in (("fake_score", step.fake_score_parameters), ("student", step.student_parameters)):
        assert any(p.grad is not None and p.grad.any() for p in parameters), loss
    torch.optim.Adam(step.fake_score_parameters, lr=1e-3, betas=(0.0, 0.9)).step()
    after = {"fake_score": step.fake_score_loss(batch)}  # before the student moves, which it follows
    torch.optim.Adam(step.student_parameters, lr=1e-3, betas=(0.0, 0.9)).step()
    after["student"] = step.student_loss(batch)
    assert after["fake_score"].total < reached["fake_score"].total
    assert after["student"].logs["softedge_energy"] < reached["student"].logs["softedge_energy"]
    assert {p.dtype for p in (*step.student_parameters, *step.fake_score_parameters)} == {torch.float32}
    in_halves = sum(p.numel() for p in family.teacher.parameters() if p.dtype == torch.bfloat16)
    assert (in_halves > 0.5 * sum(p.numel() for p in family.teacher.parameters())) == bool(changes)


def gradients(step, batch) -> list[torch.Tensor]:
    """Of both losses, to whatever is trained."""
    step.fake_score_loss(batch).total.backward()
    step.student_loss(batch).total.backward()
    return [p.grad for p in (*step.fake_score_parameters, *step.student_parameters) if p.grad is not None]


def test_activations_that_are_computed_again_give_the_same_gradients(tiny, folder):
    """And weights that are fetched from where they stay, the same to the bit."""
    found = []
    for changes in ((), LOW_MEMORY[1:], (*LOW_MEMORY[1:], "memory.offload=true")):
        family = build_roles(recipe(tiny, folder, *changes), "cpu")
        step, batch = step_and_batch(tiny, family, folder, *changes)
        speak(family.student.branches["softedge"])
        found.append(gradients(step, batch))
    assert len(found[0]) == len(found[1]) > 10
    assert offloaded_weights(family.teacher)
    for kept, again, fetched in zip(*found, strict=True):
        assert (kept - again).norm() <= 1e-6 * max(1.0, kept.norm())
        assert torch.equal(again, fetched)


def test_autocast_rounds_frozen_weights_anyway(tiny, folder):
    """In bfloat16 the teacher answers bit for bit alike, whether its weights are held in it or rounded at each use."""
    answers = []
    for changes in ((), LOW_MEMORY[:1]):
        family = build_roles(recipe(tiny, folder, *changes), "cpu")
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            answers.append(family.teacher(noise_of(family), torch.tensor([0.3, 0.9]), family.encode_prompt(PROMPTS)))
    assert torch.equal(*answers)


@pytest.mark.parametrize("controls", [True, False])
def test_where_latents_are_kept_the_encoder_stays_off_the_device(tiny, family, folder, controls):
    """The device is `meta` here. What is encoded is the same to the bit, and the encoder remains where branches are
    shown latents. Qwen-Image's has few layers that can stay away: its convolutions are in time too."""
    changes = () if controls else ("controls=[]", "student.trainable=lora")
    other = build_roles(recipe(tiny, folder, "memory.cache_latents=true", *changes), "cpu")
    pictures = condition_of(family)
    assert torch.equal(other.codec.encode(pictures), family.codec.encode(pictures))
    away = offloaded_weights(other.parts["vae"])
    assert {id(w) for w in away} <= {id(w) for w in other.image_encoder.parameters()}
    share = sum(w.numel() for w in away) / sum(w.numel() for w in other.image_encoder.parameters())
    if controls and other.encodes_conditions:
        assert share == 0
    else:
        assert share > (0.05 if tiny.family == "qwen_image" else 0.85)
    other.to("meta")
    assert all(w.device.type == "cpu" for w in away)
    assert all(w.is_meta for w in other.parts["vae"].decoder.parameters())
    assert other.codec.encode(pictures.to("meta")).is_meta


@torch.no_grad()
def test_a_warm_up_sees_through_its_branch_alone(family):
    """It is the teacher with that branch, to the bit; a branch of the teacher's own is neither used nor replaced."""
    asked = noise_of(family), torch.tensor([0.3, 0.9]), family.encode_prompt(PROMPTS), {"canny": condition_of(family)}
    own = family.add_control_branch("canny", denoiser=family.teacher)
    speak(own)
    before = family.teacher(*asked)
    trained = family.add_control_branch("canny")
    speak(trained, seed=3)
    through_it = build_dsm_step(family, ["canny"]).denoiser(*asked)
    assert torch.equal(family.teacher(*asked), before)
    family.teacher.branches["canny"] = trained
    assert torch.equal(through_it, family.teacher(*asked)) and not torch.equal(through_it, before)


def test_a_critic_reads_the_teacher(family):
    critic = RatioCritic(family.teacher, ["canny"], width=8)
    for head in critic.heads:
        torch.nn.init.normal_(head.judge.weight)
    x_t, t = noise_of(family).requires_grad_(), torch.tensor([0.3, 0.9])
    found = critic(x_t, t, family.encode_prompt(PROMPTS), {"canny": condition_of(family)})
    other = critic(x_t, t, family.encode_prompt(PROMPTS[::-1]), {"canny": condition_of(family)})
    assert found.shape == (2,) and (found - other).abs().min() > 1e-7
    found.sum().backward()
    assert x_t.grad.any()


@pytest.mark.parametrize("switches", [(), ALL_SWITCHES], ids=["", "low-memory"])
def test_a_run_that_was_stopped_goes_on_bit_for_bit(tiny, folder, photos, in_tiny_world, switches):
    def run(name, *changes, resume=False):
        AcceleratorState._reset_state()
        asked = recipe(tiny, folder, "data.source=images", f"data.path={photos}", *switches, *changes)
        accelerator = make_accelerator("cpu", "fp32")
        train(build_run(asked, accelerator), Path(name), accelerator, lambda record: None, resume)
        return load_file(f"{name}/controlnet/diffusion_pytorch_model.safetensors")

    whole = run("whole", "training.num_steps=2")
    run("half")
    resumed = run("half", "training.num_steps=2", resume=True)
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())
    assert {value.dtype for value in whole.values()} == {torch.float32}


def test_squares_and_wide_pictures_train_in_turn(tiny, folder, in_tiny_world, monkeypatch):
    """Four squares of 64 px and as many pictures of 128 x 32 px, in batches of two: each update is of one shape."""
    Path("photos").mkdir()
    for number in range(10):
        picture = Image.new("RGB", [(64, 64), (128, 32)][number % 2], (20 * number, 99, 99))
        picture.save(f"photos/{number}.png")
        Path(f"photos/{number}.txt").write_text(f"number {number}")
    shapes, normal = set(), SampleDraws.normal
    monkeypatch.setattr(SampleDraws, "normal", lambda *asked: shapes.add(asked[2]) or normal(*asked))
    asked = recipe(tiny, folder, "data.source=images", "data.path=photos", "data.buckets=true",
                   "data.bucket_step_px=32", "training.num_steps=3")  # fmt: skip
    accelerator = make_accelerator("cpu", "fp32")
    run = build_run(asked, accelerator)
    channels, rows, columns = run.stages[-1].step.latent_shape
    train(run, Path("run"), accelerator, lambda record: None, False)
    assert {(channels, rows, columns), (channels, rows // 2, 2 * columns)} == {s for s in shapes if len(s) == 3}
    branch = load_file("run/controlnet/diffusion_pytorch_model.safetensors")
    assert all(value.isfinite().all() for value in branch.values())


def test_options_alone_find_the_family(tiny, folder):
    asked, _ = plan("", {"model.teacher": str(folder / "teacher"), "model.student": str(folder / "student"),
                         "controls": [{"name": "softedge"}], "data.source": "images", "data.path": "photos"},
                    [], None, False)  # fmt: skip
    assert asked.model.family == tiny.family
