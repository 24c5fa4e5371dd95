"""Image files and folders: exactly what is in them, or a refusal by name."""

from __future__ import annotations

import json
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pimcal.batches import split_batch
from pimcal.errors import DataError, UsageError
from pimcal.sources.data import load_batches
from pimcal.sources.pixels import read_pixels

Image = pytest.importorskip("PIL.Image")
RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (5, 7), dtype=np.uint8)
COLOUR = RNG.integers(0, 256, (5, 7, 3), dtype=np.uint8)
DEEP = RNG.integers(0, 65536, (5, 7), dtype=np.uint16)


def _saved(path: Path, pixels: Any, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def _deep_png(path: Path, colour: int, samples: Any) -> Path:
    """A PNG of 16 bits a channel, which Pillow itself cannot write in colour."""
    height, width = samples.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)
    head = _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + head + _chunk(b"IDAT", zlib.compress(rows)) + _chunk(b"IEND", b""))
    return path


def _rgb(pixels: Any) -> torch.Tensor:
    return torch.from_numpy(np.array(pixels)).permute(2, 0, 1)


def _grey(pixels: Any) -> torch.Tensor:
    return torch.from_numpy(np.array(pixels)).expand(3, -1, -1)


def test_eight_bits_and_less_stay_as_they_are(tmp_path: Path) -> None:
    opaque = np.dstack([COLOUR, np.full((5, 7), 255, np.uint8)])
    cases = {
        "grey.png": (GREY, _grey(GREY)),
        "grey.pgm": (GREY, _grey(GREY)),
        "grey.bmp": (GREY, _grey(GREY)),
        "bits.png": (GREY > 99, _grey((GREY > 99) * np.uint8(255))),
        "bits.tiff": (GREY > 99, _grey((GREY > 99) * np.uint8(255))),
        "colour.webp": (COLOUR, _rgb(COLOUR)),
        "colour.tif": (COLOUR, _rgb(COLOUR)),
        "colour.PPM": (COLOUR, _rgb(COLOUR)),
        "opaque.png": (opaque, _rgb(COLOUR)),
    }
    for name, (pixels, expected) in cases.items():
        found = read_pixels(_saved(tmp_path / name, pixels, **({"lossless": True} if name.endswith("webp") else {})))
        assert found.dtype == torch.uint8, name
        assert torch.equal(found, expected), name


def test_a_palette_gives_its_colours(tmp_path: Path) -> None:
    image = Image.new("P", (7, 5))
    image.putdata((GREY % 4).flatten().tolist())
    colours = [10, 20, 30, 255, 0, 1, 2, 3, 4, 77, 88, 99]
    image.putpalette(colours)
    image.save(tmp_path / "a.png")
    table = torch.tensor(colours, dtype=torch.uint8).view(4, 3)
    assert torch.equal(read_pixels(tmp_path / "a.png"), table[torch.from_numpy(GREY % 4).long()].permute(2, 0, 1))


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.pgm"])
def test_sixteen_bits_of_grey_are_all_kept(tmp_path: Path, name: str) -> None:
    found = read_pixels(_saved(tmp_path / name, DEEP))
    assert torch.equal(found, _grey((DEEP / np.float32(65535)).astype(np.float32)))
    assert len(found.unique()) == len(np.unique(DEEP))


def test_big_endian_tiff_is_the_same_image(tmp_path: Path) -> None:
    _saved(tmp_path / "a.tif", DEEP)
    Image.frombytes("I;16B", (7, 5), DEEP.astype(">u2").tobytes()).save(tmp_path / "b.tif")
    assert (tmp_path / "b.tif").read_bytes()[:2] == b"MM"
    assert torch.equal(read_pixels(tmp_path / "a.tif"), read_pixels(tmp_path / "b.tif"))


def test_floating_point_in_0_to_1_is_kept_and_any_other_refused(tmp_path: Path) -> None:
    pixels = RNG.random((5, 7), dtype=np.float32)
    assert torch.equal(read_pixels(_saved(tmp_path / "a.tif", pixels)), _grey(pixels))
    for wrong in (pixels * 255, pixels - 0.5, np.where(pixels > 0.5, np.nan, pixels).astype(np.float32)):
        with pytest.raises(DataError, match=r"b\.tif is of mode F with values from .* cannot become RGB exactly"):
            read_pixels(_saved(tmp_path / "b.tif", wrong))


def _transparent(pixels: Any) -> Any:
    return np.dstack([pixels, np.where(GREY > 128, 255, 128).astype(np.uint8)])


def test_what_would_lose_something_is_refused_by_its_mode(tmp_path: Path) -> None:
    files = {
        "RGB with 16 bits a channel, of which Pillow keeps 8": _deep_png(
            tmp_path / "rgb.png", 2, np.dstack([DEEP] * 3)
        ),
        "RGBA with 16 bits": _deep_png(tmp_path / "rgba.png", 6, np.dstack([DEEP] * 4)),
        "LA with 16 bits": _deep_png(tmp_path / "la.png", 4, np.dstack([DEEP] * 2)),
        "I;": _saved(tmp_path / "int.tif", DEEP.astype(np.int32)),
        "RGBA with transparent pixels": _saved(tmp_path / "alpha.png", _transparent(COLOUR)),
        "LA with transparent pixels": _saved(tmp_path / "grey_alpha.png", _transparent(GREY)),
        "RGB with transparent pixels": _saved(tmp_path / "key.png", COLOUR, transparency=tuple(map(int, COLOUR[0, 0]))),
    }
    Image.new("LAB", (7, 5)).save(tmp_path / "lab.tif")
    files["LAB"] = tmp_path / "lab.tif"
    for mode, file in files.items():
        with pytest.raises(DataError) as caught:
            read_pixels(file)
        assert f"{file} is of mode {mode}" in str(caught.value)
        assert "--data file.py:name" in str(caught.value)


@pytest.mark.parametrize(
    ("head", "samples"),
    [
        (b"P5 7 5 100\n", bytes(35)),
        (b"P6 7 5 65535\n", bytes(210)),
        (b"P5 7 5 1000\n", bytes(70)),
        (b"P6 7 5 7\n", bytes(105)),
    ],
)
def test_levels_that_do_not_divide_the_full_scale_are_refused(tmp_path: Path, head: bytes, samples: bytes) -> None:
    (tmp_path / "a.ppm").write_bytes(head + samples)
    with pytest.raises(DataError, match=r"a\.ppm is of mode .* with levels from 0 to"):
        read_pixels(tmp_path / "a.ppm")


def test_fewer_levels_that_divide_the_full_scale_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.pgm").write_bytes(b"P5 2 1 15\n" + bytes([3, 15]))
    assert read_pixels(tmp_path / "a.pgm")[0].tolist() == [[51, 255]]


def test_white_is_zero_is_turned_round_or_refused(tmp_path: Path) -> None:
    path = _saved(tmp_path / "a.tif", GREY, tiffinfo={262: 0})
    stored = path.read_bytes()
    assert stored.find(GREY.tobytes()) > 0 or stored.find((255 - GREY).tobytes()) > 0
    found = read_pixels(path)
    assert torch.equal(found, _grey(GREY if (255 - GREY).tobytes() in stored else 255 - GREY))
    deep = _saved(tmp_path / "b.tif", DEEP).read_bytes()
    entry = struct.pack("<HHII", 262, 3, 1, 1)
    assert entry in deep
    (tmp_path / "b.tif").write_bytes(deep.replace(entry, struct.pack("<HHII", 262, 3, 1, 0)))
    with pytest.raises(DataError, match="whose zero is white"):
        read_pixels(tmp_path / "b.tif")


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp", "a.tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path: Path, name: str, orientation: int) -> None:
    upright = np.zeros((16, 32, 3), np.uint8)
    upright[:8, :16] = 255  # white in the top left corner
    turns = {1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1]}
    turns |= {number: turns[before].transpose(1, 0, 2) for number, before in ((5, 1), (6, 2), (7, 3), (8, 4))}
    turns[6], turns[8] = np.rot90(upright, 1), np.rot90(upright, -1)
    exif = Image.Exif()
    exif[0x0112] = orientation
    _saved(tmp_path / name, np.ascontiguousarray(turns[orientation]), exif=exif)
    found = read_pixels(tmp_path / name)
    assert found.shape == (3, 16, 32)
    assert (found[:, 2:6, 4:12] > 200).all()
    assert (found[:, 10:, :] < 55).all()
    assert (found[:, :, 20:] < 55).all()


@pytest.mark.parametrize("name", ["a.tif", "a.gif", "a.png", "a.webp"])
def test_several_frames_are_refused(tmp_path: Path, name: str) -> None:
    frames = [Image.fromarray(COLOUR), Image.fromarray(255 - COLOUR), Image.fromarray(COLOUR[::-1].copy())]
    frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
    with pytest.raises(DataError, match=r"holds 3 frames, and one image a file is expected"):
        read_pixels(tmp_path / name)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif", "a.webp", "a.bmp", "a.ppm"])
def test_cut_off_files_are_named(tmp_path: Path, name: str, share: float) -> None:
    content = _saved(tmp_path / name, RNG.integers(0, 256, (40, 40, 3), dtype=np.uint8)).read_bytes()
    (tmp_path / name).write_bytes(content[: int(share * len(content))])
    with pytest.raises(DataError, match=rf"{name} is no readable image"):
        read_pixels(tmp_path / name)


# ---- folders


def _labels(folder: Path, **options: Any) -> dict[int, int]:
    """The label of each image by the value of its pixels, which tell them apart."""
    found = {}
    for batch in load_batches(f"imagefolder:{folder}", **options):
        (images,), _, labels = split_batch(batch)
        values = (images[:, 0, 0, 0] * 255).round().int().tolist()
        found |= dict(zip(values, [None] * len(values) if labels is None else labels.tolist(), strict=True))
    return found


def _image(path: Path, value: int) -> None:
    _saved(path, np.full((4, 4, 3), value, np.uint8), format="PNG")


def test_hidden_files_and_folders_are_left_out_at_every_level(tmp_path: Path) -> None:
    _image(tmp_path / "cat" / "1.png", 1)
    _image(tmp_path / "dog" / "deep" / "2.png", 2)
    for hidden in (".ipynb_checkpoints/a.png", "cat/.ipynb_checkpoints/1.png", "dog/deep/._2.png", "__MACOSX/cat/1.png",
                   "cat/@eaDir/1.png", ".a.png"):  # fmt: skip
        _image(tmp_path / hidden, 99)
    assert _labels(tmp_path) == {1: 0, 2: 1}


def test_numbers_as_names_are_in_their_order(tmp_path: Path) -> None:
    for number in range(12):
        _image(tmp_path / str(number) / "a.png", number)
    told: list[str] = []
    assert _labels(tmp_path, tell=told.append) == {number: number for number in range(12)}
    assert told == []


def test_an_order_that_is_not_evident_is_told(tmp_path: Path) -> None:
    told: list[str] = []
    for number in (1, 2, 10):
        _image(tmp_path / "gaps" / str(number) / "a.png", number)
        _image(tmp_path / "mixed" / f"class{number}" / "a.png", number)
    assert _labels(tmp_path / "gaps", tell=told.append) == {1: 0, 2: 1, 10: 2}
    assert _labels(tmp_path / "mixed", tell=told.append) == {1: 0, 10: 1, 2: 2}
    assert "gaps: classes are numbered in this order: 1, 2, 10; --classes FILE gives other" in told[0]
    assert "this order: class1, class10, class2;" in told[1]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("classes.txt", "ant\nbee\ncat\nzebra\n"),
        ("class_to_idx.json", json.dumps({"zebra": 3, "cat": 2, "bee": 1})),
        ("own.json", json.dumps(["ant", "bee", "cat", "zebra"])),
        ("own.json", json.dumps({"1": ["bee", "honey bee"], "2": ["cat", "tabby"], "3": ["zebra", "zebra"]})),
        ("own.json", json.dumps({"1": "bee", "2": "cat", "3": "zebra"})),
    ],
)
def test_a_file_gives_the_class_numbers(tmp_path: Path, name: str, content: str) -> None:
    for value, folder in enumerate(("bee", "cat", "zebra"), start=1):
        _image(tmp_path / "images" / folder / "a.png", value)
    inside = name in ("classes.txt", "class_to_idx.json")
    path = tmp_path / ("images" if inside else "") / name
    path.write_text(content)
    assert _labels(tmp_path / "images", classes=None if inside else path) == {1: 1, 2: 2, 3: 3}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("ant\ncat\n", r"classes\.txt has no class bee, which .* has; it has ant, cat"),
        ("bee\nbee\n", "'bee' .* is there twice"),
        ("bee\n\ncat\n", "is no class name"),
        (None, "is no readable file of classes"),
    ],
)
def test_a_file_of_classes_that_does_not_fit_is_refused(tmp_path: Path, content: str | None, message: str) -> None:
    _image(tmp_path / "images" / "bee" / "a.png", 1)
    _image(tmp_path / "images" / "cat" / "a.png", 1)
    if content is not None:
        (tmp_path / "classes.txt").write_text(content)
    with pytest.raises(DataError, match=message):
        load_batches(f"imagefolder:{tmp_path / 'images'}", classes=tmp_path / "classes.txt")
    with pytest.raises(UsageError, match="--classes numbers the folders of imagefolder:"):
        load_batches("npz:a.npz", classes=tmp_path / "classes.txt")


@pytest.mark.parametrize(
    ("folders", "likely"),
    [
        (("train", "val"), "val"),
        (("Training", "Testing"), "Testing"),
        (("train2017", "val2017"), "val2017"),
        (("train_images", "test_images", "extra"), "test_images"),
        (("test",), "test"),
        (("images", "labels"), "images"),
    ],
)
def test_parts_of_a_data_set_are_no_classes(tmp_path: Path, folders: tuple[str, ...], likely: str) -> None:
    for value, folder in enumerate(folders):
        _image(tmp_path / "data" / folder / "cat" / "a.png", value)
        _image(tmp_path / "data" / folder / "dog" / "a.png", value + 100)
    with pytest.raises(DataError, match=rf"no classes; name one .* imagefolder:\S*data/{likely} "):
        load_batches(f"imagefolder:{tmp_path}/data")
    assert set(_labels(tmp_path / "data" / likely).values()) == {0, 1}
    (tmp_path / "own.txt").write_text("\n".join(folders))
    assert set(_labels(tmp_path / "data", classes=tmp_path / "own.txt").values()) == set(range(len(folders)))


def test_one_such_name_among_others_is_a_class(tmp_path: Path) -> None:
    for value, folder in enumerate(("bus", "car", "train")):
        _image(tmp_path / folder / "a.png", value)
    assert _labels(tmp_path) == {0: 0, 1: 1, 2: 2}


def test_the_folder_above_the_classes_is_refused(tmp_path: Path) -> None:
    for value, folder in enumerate(("cat", "dog")):
        _image(tmp_path / "archive" / folder / "a.png", value)
    with pytest.raises(DataError, match=r"name the one that holds the class folders: imagefolder:\S*archive"):
        load_batches(f"imagefolder:{tmp_path}")


def test_a_folder_without_images_is_no_class(tmp_path: Path) -> None:
    _image(tmp_path / "bee" / "a.png", 1)
    _image(tmp_path / "cat" / "a.png", 2)
    (tmp_path / "ant").mkdir()
    (tmp_path / "ant" / "a.heic").write_bytes(b"....ftypheic")
    with pytest.raises(DataError, match="ant has no images, but would count as a class"):
        load_batches(f"imagefolder:{tmp_path}")
    (tmp_path / "classes.txt").write_text("bee\ncat")
    assert _labels(tmp_path) == {1: 0, 2: 1}


def test_images_are_known_by_what_they_are_and_others_are_told(tmp_path: Path) -> None:
    told: list[str] = []
    for value, name in enumerate(("A.JPEG", "b.Png", "c", "d.jfif")):
        _image(tmp_path / "cat" / name, value)
    _image(tmp_path / "dog" / "a.png", 9)
    (tmp_path / "dog" / "b.heic").write_bytes(b"\0\0\0\x18ftypheic")
    assert _labels(tmp_path, tell=told.append) == {0: 0, 1: 0, 2: 0, 3: 0, 9: 1}
    assert told == ["left out, as no images: b.heic"]


def test_links_are_followed_but_not_for_ever_and_a_link_to_nothing_is_named(tmp_path: Path) -> None:
    _image(tmp_path / "elsewhere" / "a.png", 5)
    (tmp_path / "data" / "cat").mkdir(parents=True)
    (tmp_path / "data" / "dog").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data" / "cat" / "inner").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data" / "cat" / "up").symlink_to(tmp_path / "data")
    assert len(list(load_batches(f"imagefolder:{tmp_path}/data", batch_size=1))) == 2
    (tmp_path / "data" / "cat" / "b.png").symlink_to(tmp_path / "nowhere.png")
    with pytest.raises(DataError, match=r"b\.png is no readable image"):
        list(load_batches(f"imagefolder:{tmp_path}/data"))


MODEL = """
from torch import nn


def level():
    \"\"\"Gives the class that is ten times the mean of an image of one grey.\"\"\"
    made = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 12))
    for number in range(12):  # the largest of n * x - n * n / 2 is at n = x
        nn.init.constant_(made[2].weight[number], number * 15 / 3)
        nn.init.constant_(made[2].bias[number], -number * number / 2)
    return made
"""


def test_the_command_line_judges_by_the_numbers_of_the_folders(pimcal_run: Any, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(MODEL)
    for number in range(12):
        grey = np.full((4, 4), round(65535 * number / 15), np.uint16)
        _saved(tmp_path / "images" / str(number) / "a.png", grey)
    on = ["--profile", "ideal", "--model", f"{tmp_path}/own.py:level", "--json"]
    assert pimcal_run("evaluate", *on, "--data", f"imagefolder:{tmp_path}/images").json["value"] == 1.0
    (tmp_path / "own.json").write_text(json.dumps({str(n): (n + 1) % 12 for n in range(12)}))
    shifted = pimcal_run(
        "evaluate", *on, "--data", f"imagefolder:{tmp_path}/images", "--classes", f"{tmp_path}/own.json"
    )
    assert shifted.json["value"] == 0.0
