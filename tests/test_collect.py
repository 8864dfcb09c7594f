"""Collecting choices: no choice is lost, none is counted twice, and the page shows what is judged."""

import json
import os
import socket
import threading
from pathlib import Path
from types import SimpleNamespace

import browser
import pytest
from PIL import Image

from jdmctl.cli import reward
from jdmctl.cli.reward import open_session
from jdmctl.errors import BadInputError, JdmError
from jdmctl.feedback import page
from jdmctl.feedback.journal import Journal
from jdmctl.feedback.pairs import read_pairs
from jdmctl.feedback.session import Session, Shown, drawn, pairs_of_folder, pairs_of_student
from jdmctl.recipe_sections import Model

CHOICE = {"prompt": "p", "image_a": "x.png", "image_b": "y.png", "preferred": "a"}


@pytest.fixture
def album(tmp_path):
    """An imagefolder: 5 pictures of one text, 2 of another, 1 of a third: 3 pairs."""
    folder = tmp_path / "album"
    folder.mkdir()
    lines = []
    for number, text in enumerate(["a cat"] * 5 + ["a *bold* dog"] * 2 + ["alone"]):
        Image.new("RGB", (64, 64), (30 * number, 128, 255 - 30 * number)).save(folder / f"{number}.png")
        lines.append(json.dumps({"file_name": f"{number}.png", "text": text}) + "\n")
    (folder / "metadata.jsonl").write_text("".join(lines))
    return folder


def folder_session(album, seed=0):
    return Session(pairs_of_folder(album, 100, seed), Journal(album.parent / "choices.jsonl"))


# The journal


def test_a_choice_is_on_the_disk_when_it_is_made(tmp_path):
    journal = Journal(tmp_path / "new" / "choices.jsonl")
    journal.add(CHOICE)
    journal.add(CHOICE | {"prompt": "two\nlines \u2028 é"})
    lines = journal.path.read_bytes().decode().split("\n")
    assert [json.loads(line)["prompt"] for line in lines[:2]] == ["p", "two\nlines \u2028 é"] and lines[2:] == [""]
    assert Journal(journal.path).records == journal.records


@pytest.mark.parametrize("length", range(1, len(json.dumps(CHOICE)) + 1, 7))
def test_a_line_that_was_cut_short_is_taken_back(tmp_path, length):
    """A process killed while it wrote: earlier choices stay, later ones begin on a line of their own."""
    path = tmp_path / "choices.jsonl"
    whole = json.dumps(CHOICE)
    path.write_text(whole + "\n" + whole[:length])
    journal = Journal(path)
    journal.add(CHOICE | {"preferred": "b"})
    read = [json.loads(line)["preferred"] for line in path.read_text().splitlines()]
    assert read == (["a", "b"] if length < len(whole) else ["a", "a", "b"])


def test_a_last_line_without_its_newline_counts(tmp_path):
    path = tmp_path / "choices.jsonl"
    path.write_text(json.dumps(CHOICE))
    assert len(Journal(path).records) == 1 and path.read_text().endswith("}\n")


@pytest.mark.parametrize("content", ["notes\n", "notes", '{"text": "a"}\n', '{"text": "a"}', '{"te', "[1]\n", "\n\nx"])
def test_another_file_is_left_alone(tmp_path, content):
    path = tmp_path / "other.jsonl"
    path.write_text(content)
    with pytest.raises(BadInputError, match="is no list of choices"):
        Journal(path)
    assert path.read_text() == content
    with pytest.raises(BadInputError, match="does not end in .jsonl"):
        Journal(tmp_path / "choices.txt")


def test_a_full_disk_leaves_no_half_line(tmp_path, monkeypatch):
    journal = Journal(tmp_path / "choices.jsonl")
    journal.add(CHOICE)
    before, write = journal.path.read_bytes(), os.write
    monkeypatch.setattr(os, "write", lambda file, line: write(file, line[:5]))
    with pytest.raises(JdmError, match="the disk is full"):
        journal.add(CHOICE)
    assert journal.path.read_bytes() == before and len(journal.records) == 1


def test_two_pages_may_write_at_once(tmp_path):
    journals = [Journal(tmp_path / "choices.jsonl") for _ in range(4)]

    def write(journal):
        for number in range(50):
            journal.add(CHOICE | {"prompt": "x" * number})

    threads = [threading.Thread(target=write, args=(journal,)) for journal in journals]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(Journal(tmp_path / "choices.jsonl").records) == 200


# The session


def test_pictures_of_one_text_are_paired_once(album):
    pairs = pairs_of_folder(album, 100, seed=0)
    assert sorted(pair.prompt for pair in pairs) == ["a *bold* dog", "a cat", "a cat"]
    files = [file for pair in pairs for file in (pair.image_a, pair.image_b)]
    assert len(files) == len(set(files)) == 6
    assert pairs == pairs_of_folder(album, 100, seed=0) != pairs_of_folder(album, 100, seed=1)
    assert len(pairs_of_folder(album, 2, seed=0)) == 2


def test_a_picture_that_is_listed_twice_is_not_compared_with_itself(album):
    metadata = album / "metadata.jsonl"
    metadata.write_text(metadata.read_text() * 2 + '{"file_name": "./0.png", "text": "a cat"}\n')
    pairs = pairs_of_folder(album, 100, seed=0)
    files = [file for pair in pairs for file in (pair.image_a, pair.image_b)]
    assert len(files) == len(set(files)) == 6


def test_what_is_collected_without_captions_is_read(album):
    rows = [{"file_name": f"{number}.png", "text": ""} for number in range(8)]
    (album / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    session = folder_session(album)
    for number in range(4):
        session.choose(number, "a")
    assert {pair.prompt for pair in read_pairs(album.parent / "choices.jsonl")} == {""}


def test_a_folder_without_pairs(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "a"}\n')
    with pytest.raises(BadInputError, match="no two pictures of .* have the same text"):
        pairs_of_folder(tmp_path, 10, 0)


def test_choices_are_what_fit_reads_and_the_session_goes_on(album):
    session = folder_session(album)
    number, first = session.current()
    session.choose(number, "b")
    session.choose(1, None)  # skipped: it comes back another day
    again = folder_session(album)
    assert (again.num_before, again.total) == (1, 3)
    left = [again.current()[1]]
    again.choose(0, "tie")
    left.append(again.current()[1])
    again.choose(1, "a")
    assert again.current() == (2, None) and first not in left
    pairs = read_pairs(album.parent / "choices.jsonl")
    assert [pair.label for pair in pairs] == [0, 0.5, 1]
    assert pairs[0].image_a.resolve() == first.image_a
    assert folder_session(album).current() == (0, None)


def test_a_double_click_counts_once(album):
    session = folder_session(album)
    session.choose(0, "a")
    session.choose(0, "a")
    session.choose(7, "a")
    assert len(read_pairs(album.parent / "choices.jsonl")) == 1 and session.current()[0] == 1


def test_a_choice_that_could_not_be_written_is_asked_again(album, monkeypatch):
    session = folder_session(album)
    monkeypatch.setattr(os, "fsync", lambda file: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(JdmError, match="the disk is full"):
        session.choose(0, "a")
    monkeypatch.undo()
    assert session.current()[0] == 0
    session.choose(0, "a")
    assert len(read_pairs(album.parent / "choices.jsonl")) == 1


def test_a_student_draws_what_is_asked_for_when_it_is_asked_for(tmp_path):
    """Sides are shuffled, seeds differ, and a picture is drawn once."""
    drawings = []

    def draw(prompt, seed):
        drawings.append((prompt, seed))
        return Image.new("RGB", (8, 8))

    pairs = pairs_of_student(["p", "q"], 50, 0, tmp_path / "pictures")
    session = Session(pairs, Journal(tmp_path / "choices.jsonl"), lambda pair: drawn(pair, draw))
    session.current()
    session.current()
    assert len(drawings) == 2 and {seed for _, seed in drawings} == {0, 1}
    session.choose(0, "a")
    record = json.loads((tmp_path / "choices.jsonl").read_text())
    assert record["image_a"].startswith("pictures/00000-") and {record["seed_a"], record["seed_b"]} == {0, 1}
    seeds = [dict(pair.about) for pair in pairs]
    assert len({seed for about in seeds for seed in about.values()}) == 100
    assert 10 < sum(about["seed_a"] < about["seed_b"] for about in seeds) < 40
    assert [pair.prompt for pair in pairs[:3]] == ["p", "q", "p"]


@pytest.mark.parametrize("prompts, student", [(["p", "changed"], "s"), (["p", "q"], "another")])
def test_what_was_drawn_of_another_prompt_or_student_is_not_taken_up(tmp_path, prompts, student):
    """The first pair's choice is kept where prompt and student are the same; a changed one's is asked for again."""
    shown = []

    def session(prompts, student):
        def draw(prompt, seed):
            shown.append((student, prompt))
            return Image.new("RGB", (8, 8))

        pairs = pairs_of_student(prompts, 2, 0, tmp_path / "pictures", student)
        return Session(pairs, Journal(tmp_path / "choices.jsonl"), lambda pair: drawn(pair, draw))

    first = session(["p", "q"], "s")
    for number in range(2):
        first.current()
        first.choose(number, "a")
    shown.clear()
    again = session(prompts, student)
    assert again.num_before == (1 if student == "s" else 0)
    for number in range(2 - again.num_before):
        again.current()
        again.choose(number, "b")
    assert shown == [(student, prompt) for prompt in prompts[again.num_before :] for _ in range(2)]
    records = [(record["prompt"], record["image_a"]) for record in Journal(tmp_path / "choices.jsonl").records]
    assert len(set(records)) == len(records) == 4 - again.num_before


def test_a_student_is_known_by_its_weights_and_its_call(tmp_path):
    """Not by where it lies: a folder that is trained on is another student, a copy is the same."""
    for name in ("one", "copy"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "weights").write_text("1")

    def known(folder="one", **call):
        place = str(tmp_path / folder)
        return reward._known_by(SimpleNamespace(model=Model(teacher=place, student=place, **call), student_lora=None))

    before = known()
    assert known("copy") == before != known(student_time=0.5)
    (tmp_path / "one" / "weights").write_text("2")
    assert known() != before == known("copy")
    hub = SimpleNamespace(model=Model(teacher="a/b", student="a/c"), student_lora=tmp_path / "copy")
    assert json.loads(reward._known_by(hub))[1:3] == ["a/b", "a/c"]


def test_the_command_draws_from_a_student(in_tiny_world):
    (in_tiny_world / "prompts.txt").write_text("a red cone\na blue cube\n")
    args = ("tiny", Path("choices.jsonl"), Path("prompts.txt"), 4, 0, 1.0, "cpu")
    pictures, session = open_session(*args)
    _, pair = session.current()
    with Image.open(pair.image_a) as one, Image.open(pair.image_b) as other:
        assert one.size == other.size == (64, 64) and one.tobytes() != other.tobytes()
    assert pair.image_a.parent == pictures
    session.choose(0, "a")
    assert open_session(*args)[1].num_before == 1
    (in_tiny_world / "prompts.txt").write_text("a white cube\na blue cube\n")
    assert open_session(*args)[1].num_before == 0
    assert read_pairs("choices.jsonl")[0].prompt == "a red cone"
    with pytest.raises(BadInputError, match="a student needs prompts"):
        open_session("tiny", Path("c.jsonl"), None, 4, 0, 1.0, "cpu")


def test_the_command_on_a_folder_of_pictures(album, tmp_path):
    pictures, session = open_session(str(album), tmp_path / "c.jsonl", None, 10, 0, 1.0, "")
    assert pictures == album and session.total == 3


# The page


def test_without_gradio_it_says_what_to_install(album, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "gradio", None)
    with pytest.raises(JdmError, match="needs gradio") as caught:
        page.build(folder_session(album))
    assert caught.value.hint == "pip install 'jdmctl[ui]'"


def test_what_the_page_lacks_is_told_before_a_student_is_loaded(monkeypatch):
    modules = __import__("sys").modules
    monkeypatch.setattr(reward, "open_session", lambda *_: pytest.fail("the student was loaded"))
    monkeypatch.setitem(modules, "gradio", None)
    with pytest.raises(JdmError, match="needs gradio"):
        reward.collect("tiny")
    monkeypatch.setitem(modules, "gradio", SimpleNamespace())
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = other.getsockname()[1]
        with pytest.raises(JdmError, match=f"port {taken} cannot be had"):
            reward.collect("tiny", port=taken)
    page.require_ready(taken)


def free_port() -> int:
    with socket.socket() as door:
        door.bind(("127.0.0.1", 0))
        return door.getsockname()[1]


@pytest.fixture
def served(album):
    pytest.importorskip("gradio")
    port, session = free_port(), folder_session(album)
    page.serve(session, album, port, wait=False)
    yield f"http://127.0.0.1:{port}", session
    import gradio

    gradio.close_all()


IMAGES = "[...document.images].filter(i => i.src.includes('gradio_api/file=') && i.naturalWidth == 64).length"
BUTTON = "[...document.querySelectorAll('button')].find(b => b.innerText == '{}').click()"


def test_the_page_shows_pairs_and_takes_clicks(served, album, tmp_path):
    """In a browser: both pictures are loaded, the prompt is text whatever marks are in it, a click counts."""
    address, session = served
    while session.current()[1].prompt != "a *bold* dog":
        session.choose(session.current()[0], None)
    number, _ = session.current()
    with browser.opened(address, tmp_path / "profile") as shown:
        browser.wait_for(lambda: shown.evaluate(IMAGES) == 2)
        assert "a *bold* dog" in shown.evaluate("document.body.innerText")
        shown.screenshot(tmp_path / "page.png")
        shown.evaluate(BUTTON.format("b is better"))
        browser.wait_for(lambda: session.current()[0] == number + 1)
    record = json.loads((album.parent / "choices.jsonl").read_text())
    assert (record["prompt"], record["preferred"]) == ("a *bold* dog", "b")
    assert Image.open(tmp_path / "page.png").size[0] > 800


def test_clicking_writes_a_choice(served, album):
    client = pytest.importorskip("gradio_client")
    address, session = served
    connection = client.Client(address, verbose=False)
    shown = [session.current()[1]]
    assert shown[0].prompt in connection.predict(api_name="/show")[0].replace("\\", "")
    for button in ("a", "nothing", "tie"):
        connection.predict(api_name=f"/choose_{button}")
        shown.append(session.current()[1])
    records = [json.loads(line) for line in (album.parent / "choices.jsonl").read_text().splitlines()]
    assert [(record["prompt"], record["preferred"]) for record in records] == [
        (shown[0].prompt, "a"),
        (shown[2].prompt, "tie"),
    ]
    assert shown[3] is None and "That was all of 3 pairs" in connection.predict(api_name="/show")[0]


def test_the_page_takes_no_large_files(served):
    """It asks for none, but its server would keep them."""
    httpx = pytest.importorskip("httpx")
    address, _ = served
    for size, code in ((100, 200), (10_000, 413)):
        sent = httpx.post(f"{address}/gradio_api/upload", files={"files": ("a.png", b"0" * size)})
        assert sent.status_code == code, sent.text


def test_a_plain_prompt():
    assert page._plain("a *b* <c> [d]") == "a \\*b\\* \\<c\\> \\[d\\]"
    assert Shown("p", Path("a"), Path("b")).about == ()
