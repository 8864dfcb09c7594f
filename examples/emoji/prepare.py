"""Makes a folder of captioned pictures from a checkout of Noto Emoji, for a small world of real pictures.

    git clone https://github.com/googlefonts/noto-emoji
    python examples/emoji/prepare.py noto-emoji emoji
    jdmctl world build --pictures emoji --output emoji-world

The pictures are Google's Noto Emoji (https://github.com/googlefonts/noto-emoji; image resources under Apache-2.0).
Their captions are their Unicode names, nothing more. Skin-tone variants are left out. `jdmctl world build` splits by
caption, so that whole emoji are held out.
"""

from __future__ import annotations

import argparse
import json
import sys
import unicodedata
from pathlib import Path

from PIL import Image

RESOLUTION_PX = 64
_SKIN_TONES = range(0x1F3FB, 0x1F400)
_SILENT = {0x200D, 0xFE0F, 0x20E3}  # joiner, picture selector, keycap: they have no name of their own worth saying


def codepoints(file: Path) -> list[int]:
    """emoji_u1f469_200d_1f680.png -> [0x1F469, 0x200D, 0x1F680]."""
    return [int(part, 16) for part in file.stem.removeprefix("emoji_u").split("_")]


def caption(points: list[int]) -> str | None:
    """The Unicode names in lower case, joined by "and"; None for a variant of another emoji or one without a name."""
    if any(point in _SKIN_TONES for point in points):
        return None
    names = [unicodedata.name(chr(point), "") for point in points if point not in _SILENT]
    return " and ".join(name.lower() for name in names) if names and all(names) else None


def picture(file: Path) -> Image.Image:
    """The emoji over white, square, in RGB."""
    with Image.open(file) as opened:
        emoji = opened.convert("RGBA")
    side = max(emoji.size)
    sheet = Image.new("RGBA", (side, side), "white")
    sheet.alpha_composite(emoji, ((side - emoji.width) // 2, (side - emoji.height) // 2))
    return sheet.convert("RGB").resize((RESOLUTION_PX, RESOLUTION_PX), Image.Resampling.LANCZOS)


def prepare(source: Path, target: Path) -> int:
    """Write pictures and metadata.jsonl into `target`; returns how many there are."""
    target.mkdir(parents=True, exist_ok=True)
    rows = []
    for file in sorted(source.glob("emoji_u*.png")):
        if text := caption(codepoints(file)):
            picture(file).save(target / file.name)
            rows.append({"file_name": file.name, "text": text})
    (target / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return len(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path, help="noto-emoji, or its folder png/128")
    parser.add_argument("output", type=Path, help="folder to write")
    arguments = parser.parse_args()
    pictures = arguments.checkout / "png" / "128"
    number = prepare(pictures if pictures.is_dir() else arguments.checkout, arguments.output)
    if not number:
        sys.exit(f"error: no emoji_u*.png in {arguments.checkout}\nhint: give a checkout of noto-emoji, or its png/128")
    print(f"{number} captioned pictures in {arguments.output}")


if __name__ == "__main__":
    main()
