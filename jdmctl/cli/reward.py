"""`jdmctl reward`: make rewards, of published checkpoints and of people's choices."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jdmctl.cli.options import MAX_SEED, DeviceOption, JsonOption, QuietOption, require_seeds
from jdmctl.cli.output import Output, mode
from jdmctl.errors import BadInputError, JdmError

if TYPE_CHECKING:
    from jdmctl.cli.studio import Studio
    from jdmctl.feedback.fit import Report
    from jdmctl.feedback.session import Session, Shown

app = typer.Typer(help="Make rewards: convert, collect, fit.", no_args_is_help=True, rich_markup_mode=None)


@app.command("convert")
def convert(
    file: Annotated[Path, typer.Argument(help="A downloaded checkpoint: HPSv2, ImageReward or LAION aesthetic.")],
    output: Annotated[Path, typer.Argument(help="Folder to make.")],
    tokenizer: Annotated[str, typer.Option(help="Folder or hub name; by default the model's own, from the hub.")] = "",
    as_json: JsonOption = False,
) -> None:
    """Make a safe folder of a published reward checkpoint.

    A pickle (.pt, .pth) is opened with torch.load(..., weights_only=True), which runs no code of it. The other
    commands never open one.
    """
    from jdmctl.rewards.convert import read_checkpoint, tokenizer_for
    from jdmctl.training.atomic import whole_folder

    _require_new(output)
    converted = read_checkpoint(file)
    beside = tokenizer_for(converted, tokenizer)
    with whole_folder(output) as folder:
        converted.write(folder, beside)
    out = Output(mode(as_json))
    out.result({"reward": converted.reward, "folder": str(output)}, f"{converted.reward}: {output}")


@app.command("fit")
def fit(
    preferences: Annotated[Path, typer.Argument(help=".jsonl or .csv with prompt, image_a, image_b, preferred.")],
    encoder: Annotated[str, typer.Option(help="Folder or hub name: CLIP-like, or an image classifier; tiny/...")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the reward.")],
    grid: Annotated[int, typer.Option(min=1, help="Of a classifier's features: 2 tells left from right.")] = 1,
    layer: Annotated[int, typer.Option(help="Of a classifier: early ones know light, the last (-1) things.")] = -1,
    held_out: Annotated[float, typer.Option(min=0.05, max=0.5, help="Share of prompts that only test.")] = 0.2,
    resolution: Annotated[int | None, typer.Option(min=8, help="Side of the pictures as read, in px.")] = None,
    seed: Annotated[int, typer.Option(min=0, max=MAX_SEED, help="Of the split and the folds.")] = 0,
    device: DeviceOption = "",
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Fit a reward to people's choices: a head on a frozen encoder (Bradley-Terry).

    Prompts, not pairs, are held out. The result is the reward `preference`.
    """
    from jdmctl.build import resolve
    from jdmctl.feedback.fit import fit_preferences
    from jdmctl.feedback.pairs import read_pairs
    from jdmctl.rewards.encoders import load_encoder
    from jdmctl.training.device import find_device

    _require_new(output)
    read_pairs(preferences)  # what is wrong with the list is told before a network is loaded
    device = find_device(device)
    with Output(mode(as_json, quiet)) as out:
        network = load_encoder(resolve(encoder, "encoder"), grid, layer)
        report = fit_preferences(
            preferences,
            network,
            output,
            held_out=held_out,
            seed=seed,
            resolution_px=resolution,
            device=device,
            progress=_tenths(lambda done, total: out.note(f"features: {done}/{total} pictures")),
        )
        for warning in report.data.warnings:
            out.warning(warning)
        out.result({"folder": str(output), **report.record()}, f"{_text(report)}\nreward: {output}")


@app.command("collect")
def collect(
    source: Annotated[str, typer.Argument(help="A run folder, a student (folder, hub name, tiny), or pictures.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="File to append to.")] = Path("choices.jsonl"),
    prompts: Annotated[Path | None, typer.Option(help="For a student: .txt or .jsonl, one prompt a line.")] = None,
    num: Annotated[int, typer.Option(min=1, help="Pairs.")] = 100,
    seed: Annotated[int, typer.Option(min=0, max=MAX_SEED, help="Of pictures, pairs and sides.")] = 0,
    student_time: Annotated[
        float | None, typer.Option(min=0, max=1, help="For a student: its own time; 1, if it is not known for another.")
    ] = None,
    port: Annotated[int, typer.Option(help="Of the page, on this machine only.")] = 7860,
    device: DeviceOption = "",
) -> None:
    """Ask a person which of two pictures is better, on a local page (needs the extra ui).

    Pictures come from a student, or from a folder with metadata.jsonl in which pictures share their text. Each
    choice is on the disk at once; the same command again goes on where it stopped. Of another student, or of a prompt
    that has changed, pictures are drawn and judged anew.
    """
    from jdmctl.feedback.page import require_ready, serve

    require_seeds(seed, 2 * num)
    require_ready(port)
    out = Output()
    pictures, session = open_session(source, output, prompts, num, seed, student_time, device)
    out.note(f"{session.num_before} of {session.total} pairs are judged; http://127.0.0.1:{port}, Ctrl-C to stop")
    serve(session, pictures, port)
    out.result({"choices": str(output)}, str(output))


def open_session(
    source: str, output: Path, prompts: Path | None, num: int, seed: int, student_time: float | None, device: str
) -> tuple[Path, Session]:
    """The folder of the pictures, and the session over pairs of them."""
    from jdmctl.feedback.journal import Journal
    from jdmctl.feedback.session import Session, drawn, pairs_of_folder, pairs_of_student

    journal = Journal(output)
    if (Path(source) / "metadata.jsonl").is_file():
        return Path(source), Session(pairs_of_folder(Path(source), num, seed), journal)
    texts, draw, known_by = _student(source, prompts, num, student_time, device)
    pictures = output.with_suffix("") / f"seed{seed}"
    pairs = pairs_of_student(texts, num, seed, pictures, known_by)

    def prepare(pair: Shown) -> None:
        drawn(pair, draw)

    return pictures, Session(pairs, journal, prepare)


def _student(
    source: str, prompts: Path | None, num: int, student_time: float | None, device: str
) -> tuple[list[str], Callable[[str, int], Any], str]:
    """Prompts, what draws one of them with a seed, and what that student is known by."""
    from jdmctl import sampling
    from jdmctl.cli.studio import Studio, model_of
    from jdmctl.data.prompts import PromptList
    from jdmctl.training.device import find_device

    listed = PromptList(prompts) if prompts else None
    is_run = (Path(source) / "recipe.yaml").is_file()
    if not listed and not is_run:
        raise BadInputError("a student needs prompts to draw", hint="add --prompts FILE, one prompt a line")
    device = find_device(device)
    if is_run:
        studio = Studio.of_runs([Path(source)], device)
    else:
        studio = Studio.of_student(model_of(source, student_time=student_time), {}, {}, None, device)
    if listed:
        texts = [listed.text(index) for index in range(len(listed))]
    else:
        texts = [request.prompt for request in studio.held_out(num)]

    def draw(prompt: str, seed: int) -> Any:
        return sampling.to_picture(sampling.draw(studio.family, [prompt], [seed])[0])

    return texts, draw, _known_by(studio)


def _known_by(studio: Studio) -> str:
    """Its call, and of each of its models the contents where they are on this machine, or else the hub's name."""
    from jdmctl.build import resolve
    from jdmctl.weights import fingerprint

    model = studio.model
    places = [resolve(model.teacher, "teacher"), resolve(model.student, "student"), str(studio.student_lora or "")]
    found = {place: fingerprint(place) if place and Path(place).exists() else place for place in set(places)}
    call = model.model_dump(exclude={"teacher", "student"})
    return json.dumps([call, *(found[place] for place in places)], sort_keys=True)


def _require_new(output: Path) -> None:
    if output.exists():
        raise JdmError(f"{output} is already there", hint="give another folder, or remove it")


def _tenths(show: Callable[[int, int], None]) -> Callable[[int, int], None]:
    """Show a progress ten times at most."""
    shown = -1

    def progress(done: int, total: int) -> None:
        nonlocal shown
        if (tenth := 10 * done // total) > shown:
            shown = tenth
            show(done, total)

    return progress


def _text(report: Report) -> str:
    data = report.data
    lines = [
        f"pairs           {data.num_pairs} on {data.num_prompts} prompts, {data.num_ties} ties",
        f"a preferred     {data.a_preferred}",
        f"weight decay    {report.weight_decay:g}",
        f"train accuracy  {report.train_accuracy:.4f} ({report.num_train} pairs)",
        f"held-out        {report.held_out_accuracy} ({report.num_held_out} pairs of "
        f"{report.held_out_accuracy.n} prompts), log-loss {report.held_out_log_loss:.4f} (a coin: 0.6931)",
        f"calibration     error {report.calibration_error:.4f}",
        "  likelier picture preferred: foretold  observed  pairs",
    ]
    for row in report.reliability:
        span = f"{row['from']:.1f} to {row['to']:.1f}"
        lines.append(f"  {span:>26}  {row['foretold']:8.3f}  {row['observed']:8.3f}  {row['pairs']:5.0f}")
    return "\n".join(lines)
