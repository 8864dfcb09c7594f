"""Small data sets in the formats that jdmctl reads, written as their own tools write them."""

import io
import json
import tarfile
from pathlib import Path

from PIL import Image

GREYS = (51, 102, 153, 204)  # of row 0, 1, 2, 3; divided by 255: 0.2, 0.4, 0.6, 0.8
TEXTS = ("a", "b", "c", "d")


def png(grey: int, size: tuple[int, int] = (16, 16), format: str = "png") -> bytes:
    stream = io.BytesIO()
    Image.new("L", size, grey).save(stream, format)
    return stream.getvalue()


def save(path: Path, content: bytes | str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)


def write_fill50k(folder: Path) -> Path:
    """As the archive of ControlNet's tutorial: source/0.png is the condition of target/0.png."""
    lines = []
    for number, (grey, text) in enumerate(zip(GREYS, TEXTS, strict=True)):
        save(folder / "source" / f"{number}.png", png(255 - grey))
        save(folder / "target" / f"{number}.png", png(grey))
        row = {"source": f"source/{number}.png", "target": f"target/{number}.png", "prompt": text}
        lines.append(json.dumps(row))
    save(folder / "prompt.json", "\n".join(lines) + "\n")
    return folder


def write_videox(folder: Path, **changes) -> Path:
    """As VideoX-Fun's README_TRAIN.md has it; the last picture by its absolute path."""
    rows = []
    for number, (grey, text) in enumerate(zip(GREYS, TEXTS, strict=True)):
        save(folder / "train" / f"{number}.png", png(grey))
        save(folder / "control" / f"{number}.png", png(255 - grey))
        rows.append(
            {"file_path": f"train/{number}.png", "control_file_path": f"control/{number}.png", "text": text}
            | {"width": 16, "height": 16, "type": "image"} | changes
        )  # fmt: skip
    if not changes:
        rows[-1]["file_path"] = str((folder / "train" / "3.png").absolute())
    save(folder / "metadata.json", json.dumps(rows, indent=4))
    return folder


def write_kohya(folder: Path) -> Path:
    """sd-scripts' folders: two with repeats, of which one has no caption files."""
    for number, (grey, text) in enumerate(zip(GREYS[:2], TEXTS[:2], strict=True)):
        save(folder / "3_pictures" / f"{number}.png", png(grey))
        save(folder / "3_pictures" / f"{number}.{('txt', 'caption')[number]}", f"{text}\nsecond line\n")
    for number, grey in enumerate(GREYS[2:]):
        save(folder / "5_sks dog" / f"{number}.png", png(grey))
    save(folder / "0_left out" / "0.png", png(0))
    return folder


def write_shard(path: Path, members: list[tuple[str, bytes | str]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            data = content.encode() if isinstance(content, str) else content
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def write_shards(folder: Path) -> Path:
    """Two shards of two samples, as img2dataset and others write them: captions as text, or within json."""
    for shard in range(2):
        members = []
        for number in (2 * shard, 2 * shard + 1):
            caption = ("txt", TEXTS[number]) if shard == 0 else ("json", json.dumps({"caption": TEXTS[number]}))
            members += [(f"{number:09d}.jpg", png(GREYS[number])), (f"{number:09d}.{caption[0]}", caption[1])]
            members += [(f"{number:09d}.conditioning_image.png", png(255 - GREYS[number]))]
        write_shard(folder / f"{shard:05d}.tar", members)
    return folder


def table_columns() -> dict[str, list]:
    """Of fill50k as it is on the hub: pictures as {"bytes", "path"}."""
    return {
        "image": [{"bytes": png(grey), "path": f"{grey}.png"} for grey in GREYS],
        "conditioning_image": [{"bytes": png(255 - grey), "path": None} for grey in GREYS],
        "text": list(TEXTS),
    }
