"""Pictures of pictures: levels, sizes, 16 bits, maps, and large ones in tiles without a seam."""

import numpy as np
import pytest
import torch
from PIL import Image

from flambeau.answers.activation import Activation
from flambeau.bundle.storage import DenseConfig
from flambeau.errors import InvalidInput
from flambeau.items import FREE
from flambeau.pipelines.dense import DensePipeline
from flambeau.pipelines.tiling import SIDE, Grid
from flambeau.tasks import TASKS, NetworkFacts
from flambeau.tasks.image_to_image import ImageToImage
from flambeau.tasks.semantic_segmentation import EXTENT, SIZE
from flambeau.types import Item, Options, Payload, TensorSpec
from tests.support.photographs import encoded

PICTURE = Payload("file", b"")


def answer(
    planes: np.ndarray,
    *,
    levels: tuple[float, float] | None = (0.0, 1.0),
    scale: tuple[int, int] = (1, 1),
    size: tuple[int, int] | None = None,
    bits: int = 8,
) -> ImageToImage:
    network = NetworkFacts(
        inputs=(TensorSpec("image", "float32", (3, FREE, FREE)),), activation=Activation("none"), scale=scale,
        outputs=(TensorSpec("picture", "float32", (len(planes), FREE, FREE)),), levels=levels,
    )  # fmt: skip
    extent = [float(side) for side in planes.shape[1:]]
    outputs = {"picture": planes[None], SIZE: np.array([size or planes.shape[1:]]), EXTENT: np.array([extent])}
    made = TASKS["image-to-image"].postprocess(network)(outputs, Item(PICTURE, Options(bits=bits)))
    assert isinstance(made, ImageToImage)
    return made


def test_numbers_between_black_and_white_are_rounded_and_the_others_cut() -> None:
    planes = np.array([[[-1.0, 0.0, 0.5, 1.0, 7.0, np.nan]]] * 3, np.float32)
    made = answer(planes)
    assert made.pixels[0, :, 0].tolist() == [0, 0, 128, 255, 255, 0]
    assert (made.nonfinite, made.width, made.height) == (3, 6, 1)
    assert answer(planes, levels=(-1, 1)).pixels[0, :, 0].tolist() == [0, 128, 191, 255, 255, 0]
    assert answer(planes, bits=16).pixels[0, :, 1].tolist() == [0, 0, 32768, 65535, 65535, 0]


def test_a_map_has_its_own_black_and_white() -> None:
    made = answer(np.array([[[2.0, 3.0], [4.0, 6.0]]], np.float32), levels=None)
    assert (made.black, made.white) == (2.0, 6.0)
    assert made.pixels.tolist() == [[0, 64], [128, 255]]
    flat = answer(np.full((1, 2, 2), 5, np.float32), levels=None)
    assert (flat.black, flat.pixels.max()) == (5.0, 0)


@pytest.mark.parametrize("span", [1e-40, 1e-37, 1e-30, 1.0, 1e30, 3e38])
def test_a_map_keeps_its_levels_however_close_or_far_they_are(span: float) -> None:
    steps = np.arange(65_536).reshape(1, 256, 256)
    planes = (steps * (span / 65_535)).astype(np.float32)
    found = answer(planes, levels=None, bits=16).pixels
    least = round(65_535 * 1.5e-45 / span)  # steps between two numbers of float32, where it has so few
    assert np.abs(found.astype(np.int64) - steps[0]).max() <= least


@pytest.mark.parametrize("level", [0.0, -3.0, 1e20, -1e38, 3e38])
def test_a_flat_map_is_black(level: float) -> None:
    made = answer(np.full((1, 3, 2), level, np.float32), levels=None, bits=16)
    assert made.white > made.black
    assert not made.pixels.any()


def test_a_smaller_output_is_brought_to_the_size_of_the_image() -> None:
    planes = torch.rand(1, 10, 15, generator=torch.Generator().manual_seed(0))
    made = answer(planes.numpy(), scale=(1, 2), size=(20, 30))
    expected = torch.nn.functional.interpolate(planes[None], (20, 30), mode="bilinear")[0, 0]
    assert np.abs(made.pixels / 255 - expected.numpy()).max() <= 0.5 / 255 + 1e-6


@pytest.mark.parametrize("size", [(700, 600), (512, 512), (513, 1500), (40, 900)])
@pytest.mark.parametrize("overlap", [32, 64])
def test_tiles_put_together_are_the_whole(size: tuple[int, int], overlap: int) -> None:
    planes = np.random.default_rng(0).random((1, 2, *size), np.float32)
    grid = Grid.over(*size, overlap)
    tiles = grid.cut(planes)
    assert tiles.shape == (grid.down * grid.across, 2, SIDE, SIDE)
    assert np.abs(grid.join(tiles, (1, 1))[:, :, : size[0], : size[1]] - planes).max() < 1e-6
    enlarged = grid.join(tiles.repeat(2, 2).repeat(2, 3), (2, 1))[:, :, : 2 * size[0], : 2 * size[1]]
    assert np.abs(enlarged - planes.repeat(2, 2).repeat(2, 3)).max() < 1e-6


@pytest.mark.long
def test_a_network_that_looks_a_little_around_leaves_no_seam() -> None:
    planes = torch.rand(1, 1, 700, 800, generator=torch.Generator().manual_seed(0))
    kernel = torch.ones(1, 1, 25, 25) / 625
    whole = torch.nn.functional.conv2d(planes, kernel, padding=12).numpy()
    grid = Grid.over(700, 800, 64)
    tiles = torch.nn.functional.conv2d(torch.from_numpy(grid.cut(planes.numpy())), kernel, padding=12).numpy()
    joined = grid.join(tiles, (1, 1))[:, :, :700, :800]
    assert np.abs(joined - whole)[..., :-12, :-12].max() < 1e-5  # the image's own edges are padded otherwise


def pipeline(**config: object) -> DensePipeline:
    made = DenseConfig(mean=(0.0,) * 3, std=(1.0,) * 3, **config)  # type: ignore[arg-type]
    return DensePipeline(
        made, postprocess=lambda outputs, item: None, max_pixels=100_000_000,  # type: ignore[arg-type, return-value]
        inputs=(TensorSpec("image", "float32", (3, FREE, FREE)),),
    )  # fmt: skip


def test_large_images_are_tiled_refused_or_reduced() -> None:
    large = Payload("file", encoded(Image.new("RGB", (1200, 1000))))
    tiled = pipeline(large="tile", overlap=32).preprocess(large)["image"]
    assert tiled.shape == (9, 3, SIDE, SIDE)
    reduced = pipeline(large="reduce", multiple=4).preprocess(large)["image"]
    assert reduced.shape[2] * reduced.shape[3] <= 1_048_576 + 4 * (1200 + 1000)
    with pytest.raises(InvalidInput, match="cannot be cut into tiles"):
        pipeline(large="refuse").preprocess(large)
    with pytest.raises(InvalidInput, match="the answer would have 19200000 pixels"):
        pipeline(large="tile", overlap=32, scale=(4, 1)).preprocess(large)


def test_small_images_are_padded() -> None:
    one = Payload("file", encoded(Image.new("RGB", (1, 1), (255, 0, 0))))
    planes = pipeline(large="tile", multiple=16).preprocess(one)["image"]
    assert planes.shape == (1, 3, 32, 32)
    assert (planes[0, 0] == 1).all()
