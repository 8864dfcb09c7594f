"""Pictures as they come: odd kinds are read rightly, impossible ones get a sentence and no traceback."""

import numpy as np
import pytest
import torch
from PIL import Image

from jdmctl.data.pictures import read_image, size_of
from jdmctl.errors import BadInputError

GREY_16_BIT = 51400  # 200 * 257: the 16-bit value that stands for 200 of 255


def grey_of(image):
    """The one grey value, on 0..255, of a picture that has a single colour."""
    values = image.mul(255).unique()
    assert len(values) == 1
    return values.item()


def test_size_range_and_channels(tmp_path):
    """A centre square of 40 x 40, halved: channels are red, green, blue, values n / 255. LANCZOS
    sees 6 pixels past the square on each side, which the 3 outer columns of the result show."""
    pixels = np.zeros((40, 60, 3), np.uint8)
    pixels[:, 10:50] = (255, 128, 0)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    image = read_image(tmp_path / "a.png", 20)
    assert image.shape == (3, 20, 20) and image.dtype == torch.float32
    expected = torch.tensor([1, 128 / 255, 0]).view(3, 1, 1)
    inner = image[..., 3:-3]
    torch.testing.assert_close(inner, expected.expand_as(inner))


@pytest.mark.parametrize("mode, color", [("L", 200), ("RGB", (200,) * 3), ("CMYK", (55, 55, 55, 0))])
@pytest.mark.parametrize("suffix", ["tiff", "jpg"])
def test_grey_rgb_and_cmyk_agree(tmp_path, mode, color, suffix):
    """Grey 200; in CMYK each ink covers 255 - 200 = 55 of 255. JPEG is exact here but for rounding."""
    Image.new(mode, (32, 32), color).save(tmp_path / f"a.{suffix}")
    assert grey_of(read_image(tmp_path / f"a.{suffix}", 16)) == pytest.approx(200, abs=1.01)


def test_16_bit_grey(tmp_path):
    for dtype, mode in ((np.uint16, "I;16"), (np.int32, "I")):
        image = Image.fromarray(np.full((32, 32), GREY_16_BIT, dtype))
        assert image.mode == mode
        image.save(tmp_path / "a.tiff")
        assert grey_of(read_image(tmp_path / "a.tiff", 16)) == pytest.approx(200)


def test_16_bit_png(tmp_path):
    Image.fromarray(np.full((32, 32), GREY_16_BIT, np.uint16)).save(tmp_path / "a.png")
    assert grey_of(read_image(tmp_path / "a.png", 16)) == pytest.approx(200)


def test_fractions(tmp_path):
    Image.fromarray(np.full((32, 32), 0.4, np.float32)).save(tmp_path / "a.tiff")
    assert grey_of(read_image(tmp_path / "a.tiff", 16)) == pytest.approx(102)  # 0.4 * 255


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.float32([0, 255]), "a.tiff holds fractions from 0 to 255, so what is white is not known"),
        (np.float32([-1, 1]), "fractions from -1 to 1"),
        (np.float32([0, np.nan]), "fractions from nan to nan"),
        (np.int32([0, 255]), "32-bit whole numbers from 0 to 255"),
        (np.int32([0, 65536]), "32-bit whole numbers from 0 to 65536"),
    ],
)
def test_numbers_that_do_not_say_what_is_white(tmp_path, values, message):
    Image.fromarray(np.tile(values, (32, 16))).save(tmp_path / "a.tiff")
    with pytest.raises(BadInputError, match=message) as caught:
        read_image(tmp_path / "a.tiff", 16)
    assert caught.value.hint.startswith("save it with 8 or 16 bits")


def test_fractions_that_resizing_took_beyond_white(tmp_path):
    Image.fromarray(np.full((32, 32), 1.005, np.float32)).save(tmp_path / "a.tiff")
    assert grey_of(read_image(tmp_path / "a.tiff", 16)) == 255


def test_black_and_white(tmp_path):
    Image.new("1", (32, 32), 1).save(tmp_path / "a.png")
    assert grey_of(read_image(tmp_path / "a.png", 16)) == 255


@pytest.mark.parametrize("alpha, expected", [(0, 255), (255, 0), (102, 153)])
def test_transparency_is_laid_over_white(tmp_path, alpha, expected):
    """Black at opacity a over white is 255 - a; a fully transparent pixel's own colour does not show."""
    Image.new("RGBA", (32, 32), (0, 0, 0, alpha)).save(tmp_path / "a.png")
    Image.new("LA", (32, 32), (0, alpha)).save(tmp_path / "b.png")
    for name in ("a.png", "b.png"):
        assert grey_of(read_image(tmp_path / name, 16)) == pytest.approx(expected)


def test_palette_with_a_transparent_colour(tmp_path):
    picture = Image.new("P", (32, 32), 0)
    picture.putpalette([10, 20, 30])
    picture.save(tmp_path / "a.png", transparency=0)
    assert grey_of(read_image(tmp_path / "a.png", 16)) == 255


def test_exif_orientation(tmp_path):
    """Orientation 6 says: turn a quarter clockwise to see it. White on the left then is on top."""
    pixels = np.zeros((32, 32), np.uint8)
    pixels[:, :16] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    image = read_image(tmp_path / "a.png", 32)
    assert image[:, :14].min() > 0.99 and image[:, 18:].max() < 0.01


def test_animation_gives_its_first_frame(tmp_path):
    frames = [Image.new("L", (32, 32), value) for value in (255, 0)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert grey_of(read_image(tmp_path / "a.gif", 16)) == 255


def picture_bytes(tmp_path, suffix):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / f"whole.{suffix}")
    return (tmp_path / f"whole.{suffix}").read_bytes()


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "gif", "bmp"])
@pytest.mark.parametrize("kept", [0.02, 0.5, 0.9])
def test_a_truncated_picture(tmp_path, suffix, kept):
    whole = picture_bytes(tmp_path, suffix)
    bad = tmp_path / f"bad.{suffix}"
    bad.write_bytes(whole[: int(kept * len(whole))])
    with pytest.raises(BadInputError, match="bad") as caught:
        read_image(bad, 16)
    assert caught.value.hint


def test_a_damaged_png(tmp_path):
    """A broken chunk checksum: PIL tells it by SyntaxError."""
    whole = bytearray(picture_bytes(tmp_path, "png"))
    whole[20] ^= 0xFF
    (tmp_path / "bad.png").write_bytes(whole)
    with pytest.raises(BadInputError, match="bad.png"):
        read_image(tmp_path / "bad.png", 16)


@pytest.mark.parametrize("content", [b"", b"not a picture at all", b"\x89PNG\r\n\x1a\n"])
def test_not_a_picture(tmp_path, content):
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(BadInputError, match="a.png"):
        read_image(tmp_path / "a.png", 16)


def test_missing_and_folder(tmp_path):
    with pytest.raises(BadInputError, match="a.png is not there"):
        read_image(tmp_path / "a.png", 16)
    with pytest.raises(BadInputError, match="is a folder"):
        read_image(tmp_path, 16)


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (500, 7)])
def test_too_small(tmp_path, size):
    Image.new("RGB", size).save(tmp_path / "a.png")
    with pytest.raises(BadInputError, match=f"{size[0]} x {size[1]} px: too small"):
        read_image(tmp_path / "a.png", 16)


@pytest.mark.filterwarnings("error")
def test_a_large_picture_is_read_without_a_warning(tmp_path):
    """100 megapixels: more than Pillow warns of, fewer than it refuses."""
    Image.new("1", (10000, 10000)).save(tmp_path / "a.png")
    assert size_of(tmp_path / "a.png") == (10000, 10000)


def test_a_decompression_bomb(tmp_path):
    """14,000 x 14,000 pixels in a file of some kilobytes: refused before it is unpacked."""
    Image.new("1", (14000, 14000)).save(tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size < 1e6
    with pytest.raises(BadInputError, match="too large"):
        read_image(tmp_path / "a.png", 16)
