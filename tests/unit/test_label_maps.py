"""Label maps: scores enlarged as PyTorch does it, masks as PNG files and as COCO's runs, colours that stay."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from flambeau.answers import instance_masks, label_maps, png
from flambeau.answers.instance_masks import Region
from flambeau.answers.label_maps import enlarged


def smooth(classes: int, rows: int, columns: int) -> np.ndarray:
    coarse = torch.randn(1, classes, 4, 5, generator=torch.Generator().manual_seed(0))
    found: np.ndarray = torch.nn.functional.interpolate(coarse, (rows, columns), mode="bicubic")[0].numpy()
    return found


@pytest.mark.parametrize("size", [(40, 60), (13, 17), (1, 1), (97, 31), (20, 30), (700, 3)])
def test_scores_are_enlarged_as_pytorch_enlarges_them(size: tuple[int, int]) -> None:
    for scores in (smooth(5, 20, 30), np.random.default_rng(0).standard_normal((5, 20, 30), np.float32)):
        expected = torch.nn.functional.interpolate(torch.from_numpy(scores)[None], size, mode="bilinear")[0]
        best, second = expected.topk(2, dim=0).values
        found = enlarged(scores, size)
        assert found.dtype == np.uint8
        assert (found == expected.argmax(0).numpy())[(best - second).numpy() > 1e-5].all()


def test_padding_is_left_out() -> None:
    scores = smooth(3, 20, 30)
    padded = np.pad(scores, [(0, 0), (0, 12), (0, 2)], constant_values=50)
    padded[2, 20:] = 99
    assert np.array_equal(enlarged(padded[:, :20, :30], (60, 90)), enlarged(scores, (60, 90)))
    halves = enlarged(padded[:, :20, :30], (60, 90), extent=(19.5, 29.5))
    assert halves.shape == (60, 90)


def test_more_classes_than_a_byte_can_count() -> None:
    scores = np.zeros((300, 2, 2), np.float32)
    scores[299, 0, 0] = scores[7] = 1
    scores[7, 0, 0] = 0
    found = enlarged(scores, (4, 4))
    assert (found.dtype, found[0, 0], found[3, 3]) == (np.uint16, 299, 7)
    assert np.array_equal(png.read(png.write(found)), found)


def decoded(text: str, size: tuple[int, int]) -> np.ndarray:
    """COCO's runs, as its own library reads them (`rleFrString`, `rleDecode`)."""
    counts: list[int] = []
    place = 0
    while place < len(text):
        number = shift = 0
        more = True
        while more:
            letter = ord(text[place]) - 48
            number |= (letter & 0x1F) << shift
            more = bool(letter & 0x20)
            place, shift = place + 1, shift + 5
            if not more and letter & 0x10:
                number |= -1 << shift
        counts.append(number + (counts[-2] if len(counts) > 2 else 0))
    flat = np.repeat(np.arange(len(counts)) % 2 == 1, counts)
    return flat.reshape(size, order="F")


@pytest.mark.parametrize("size", [(1, 1), (5, 7), (300, 200)])
def test_runs_are_cocos(size: tuple[int, int]) -> None:
    numbers = np.random.default_rng(0).random(size)
    for mask in (numbers < 0, numbers >= 0, numbers > 0.5, numbers > 0.99, np.indices(size)[1] > size[1] // 2):
        assert np.array_equal(decoded(runs_of(mask), size), mask)


def runs_of(mask: np.ndarray) -> str:
    return label_maps.rle(label_maps.Pieces.along_columns(mask).of(1), mask.size)


def test_runs_of_a_square_are_what_pycocotools_writes() -> None:
    mask = np.zeros((10, 10), bool)
    mask[2:5, 3:6] = True
    assert runs_of(mask) == "P137000V1"


def test_a_class_keeps_its_colour() -> None:
    colours = label_maps.colours(21)
    assert colours[:3].tolist() == [[0, 0, 0], [128, 0, 0], [0, 128, 0]]
    assert colours[15].tolist() == [192, 128, 128]  # a person, in PASCAL VOC
    assert np.array_equal(label_maps.colours(256)[:21], colours)
    assert len({tuple(each) for each in label_maps.colours(256).tolist()}) == 256


PIXELS = np.random.default_rng(0).integers(0, 256, (13, 17, 3), np.uint8)


@pytest.mark.parametrize("smooth_", [False, True])
@pytest.mark.parametrize(
    "pixels", [PIXELS, PIXELS[..., 0], PIXELS[..., 0].astype(np.uint16) * 257], ids=["rgb", "grey", "deep"]
)
def test_files_are_what_pillow_reads(pixels: np.ndarray, smooth_: bool) -> None:
    file = png.write(pixels, smooth=smooth_)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(file))), pixels)
    assert np.array_equal(png.read(file), pixels)
    assert png.size_of(file) == (17, 13)


@pytest.mark.parametrize("size", [(1, 1), (5, 7), (300, 200)])
def test_files_of_masks_are_what_pillow_reads(size: tuple[int, int]) -> None:
    """Whether they change from pixel to pixel or in each hundredth row, and of a part of the picture alone."""
    high, wide = size
    noise = np.random.default_rng(1).integers(0, 3, size).astype(np.uint8)
    stripes = np.broadcast_to((np.arange(high) // max(high // 3, 1) % 3)[:, None], size).astype(np.uint8)
    for labels in (noise, stripes, np.zeros(size, np.uint8)):
        pieces = label_maps.Pieces.along_rows(labels)
        for index in range(3):
            own = labels == index
            assert_is(png.mask(pieces.of(index), size), own)
            part = Region(wide // 3, high // 4, own[high // 4 : high - high // 4, wide // 3 :])
            whole = instance_masks.whole(part, size)
            assert_is(instance_masks.file(part, size), whole)
            again = instance_masks.unpacked(instance_masks.rle(part, size), size)
            assert np.array_equal(instance_masks.whole(again, size), whole)


def assert_is(file: bytes, mask: np.ndarray) -> None:
    with Image.open(io.BytesIO(file)) as image:
        assert image.mode == "L"
        assert np.array_equal(np.asarray(image), np.where(mask, 255, 0))
    assert np.array_equal(png.read(file), np.where(mask, 255, 0))


def test_a_palette_has_its_colours_and_a_clear_one() -> None:
    mask = (PIXELS[..., 0] > 100).view(np.uint8)
    with Image.open(io.BytesIO(png.write(mask, palette=label_maps.colours(2), clear=0))) as image:
        shown = np.asarray(image.convert("RGBA"))
        assert image.mode == "P"
    assert np.array_equal(shown[..., 3] == 255, mask == 1)
    assert (shown[mask == 1][:, :3] == (128, 0, 0)).all()


@pytest.mark.parametrize(
    "spoil", [lambda file: b"", lambda file: file[:40], lambda file: file[:-30], lambda file: b"GIF89a" + file]
)
def test_other_bytes_are_no_file_of_ours(spoil: object) -> None:
    file = png.write(PIXELS)
    with pytest.raises(ValueError, match="PNG"):
        png.read(spoil(file))  # type: ignore[operator]


def test_a_file_that_would_unpack_to_more_than_it_says_is_refused() -> None:
    large, small = png.write(np.zeros((4000, 4000), np.uint8)), png.write(np.zeros((2, 2), np.uint8))
    with pytest.raises(ValueError, match="holds"):
        png.read(small[:16] + small[16:33] + large[33:])
