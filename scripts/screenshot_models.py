"""The small networks of the screenshots: two learn on a photograph of coins, and one has the weights of an edge filter.

They are trained in seconds and know nothing but their picture: enough to show what the page makes of their answers.
"""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.numpy import save_file
from scipy import ndimage
from torch import nn
from torch.nn import functional

from flambeau.answers.boxes import BOXES, LABELS, SCORES
from flambeau.bundle import storage
from flambeau.bundle.storage import Activation, DenseConfig, Manifest, PictureConfig, Source
from flambeau.items import FREE
from flambeau.tasks import TaskName
from flambeau.types import Label, TensorSpec

STEPS = 200
MOST = 50
LEAST = 0.05
CELL = 4  # pixels of the picture for one of the map
FREE_PICTURE = (3, FREE, FREE)


def coins() -> Image.Image:
    """scikit-image's photograph of Greek coins."""
    from skimage import data

    return Image.fromarray(data.coins()).convert("RGB")


def _pixels(picture: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.asarray(picture, np.float32) / 255).permute(2, 0, 1)[None]


class Coins(nn.Module):
    """A map of how much each cell of the picture is the middle of a coin, with the size of its box; and coin or not."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after, stride in ((3, 16, 2), (16, 24, 2), (24, 24, 1), (24, 24, 2), (24, 32, 1), (32, 32, 1)):
            layers += [nn.Conv2d(before, after, 5, stride, 2), nn.ReLU()]
        self.features = nn.Sequential(*layers)
        self.middles, self.sizes, self.classes = nn.Conv2d(32, 1, 1), nn.Conv2d(32, 2, 1), nn.Conv2d(32, 2, 1)

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        found = functional.interpolate(self.features(image), scale_factor=2.0, mode="bilinear")
        return self.middles(found).sigmoid(), self.sizes(found).exp(), self.classes(found)


class Detector(nn.Module):
    """The best middles, none beside a better one, as boxes."""

    def __init__(self, coins: Coins) -> None:
        super().__init__()
        self.coins = coins

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        middles, sizes, _ = self.coins(image)
        peaks = middles * (functional.max_pool2d(middles, 7, 1, 3) == middles)
        scores, places = peaks.flatten().topk(MOST)
        wide = peaks.shape[3]
        x, y = (places % wide).float() * CELL + CELL / 2, (places // wide).float() * CELL + CELL / 2
        width, height = (CELL * each.flatten()[places] for each in sizes[0])
        boxes = torch.stack([x - width / 2, y - height / 2, x + width / 2, y + height / 2], 1)
        kept = (scores >= LEAST).nonzero().flatten()
        return boxes[kept][None], scores[kept][None], torch.ones_like(kept)[None]


class Segmenter(nn.Module):
    """Coin or not, of every pixel."""

    def __init__(self, coins: Coins) -> None:
        super().__init__()
        self.coins = coins

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return functional.interpolate(self.coins(image)[2], scale_factor=float(CELL), mode="bilinear")


class Edges(nn.Module):
    """Where brightness changes: Sobel's filters."""

    def __init__(self) -> None:
        super().__init__()
        across = torch.tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]])
        self.filters = nn.Parameter(torch.stack([across, across.T])[:, None].repeat(3, 1, 1, 1))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        found = functional.conv2d(image, self.filters, padding=1, groups=3)
        return (found[:, 0::2] ** 2 + found[:, 1::2] ** 2).sqrt() / 2


def learned() -> Coins:
    """The network, once it knows the photograph. What is a coin there, a threshold tells, with holes filled."""
    torch.manual_seed(0)
    picture = coins()
    grey = np.asarray(picture.convert("L"), np.float32)
    bright = ndimage.gaussian_filter(grey, 2) > ndimage.gaussian_filter(grey, 40) + 14
    mask = ndimage.binary_opening(ndimage.binary_fill_holes(ndimage.binary_closing(bright, iterations=3)), iterations=6)
    parts, _ = ndimage.label(mask)
    image = _pixels(picture)[:, :, : picture.height // 8 * 8]
    high, wide = (size // CELL for size in image.shape[2:])
    middles, sizes, weights = torch.zeros(high, wide), torch.zeros(2, high, wide), torch.zeros(high, wide)
    rows, columns = torch.meshgrid(torch.arange(high), torch.arange(wide), indexing="ij")
    for down, across in ndimage.find_objects(parts):
        height, width = down.stop - down.start, across.stop - across.start
        if height * width < 500:
            continue
        y, x = (down.start + down.stop) / 2 / CELL, (across.start + across.stop) / 2 / CELL
        near = (-((rows + 0.5 - y) ** 2 + (columns + 0.5 - x) ** 2) / 4).exp()
        middles = torch.maximum(middles, near)
        here = near > 0.3
        sizes[:, here] = torch.tensor([width / CELL, height / CELL]).log()[:, None]
        weights[here] = 1
    wanted = torch.from_numpy(mask[2 : high * CELL : CELL, 2::CELL].astype(np.int64))[None, :high, :wide]
    network = Coins()
    training = torch.optim.Adam(network.parameters(), 3e-3)
    for _ in range(STEPS):
        training.zero_grad()
        found, size, classes = network(image)
        loss = functional.binary_cross_entropy(found[0, 0], middles, 1 + 20 * middles)
        loss = loss + (weights * (size[0].log() - sizes).abs()).sum() / weights.sum()
        loss = loss + functional.cross_entropy(classes, wanted)
        loss.backward()
        training.step()
    return network.eval()


def write(
    network: nn.Module,
    folder: Path,
    config: DenseConfig | PictureConfig,
    outputs: tuple[TensorSpec, ...],
    task: TaskName,
) -> None:
    """The bundle of a network, as a build writes it, with its answer to the photograph as a probe."""
    folder.mkdir(parents=True)
    names = [spec.name for spec in outputs]
    image = _pixels(coins())[:, :, :296]
    axes = {name: {2: "high", 3: "wide"} for name in ("image", *names)} if len(names) == 1 else {
        "image": {2: "high", 3: "wide"}, **{name: {1: "n"} for name in names}}  # fmt: skip
    torch.onnx.export(
        network, (image,), folder / storage.ONNX, input_names=["image"], output_names=names, dynamic_axes=axes,
        dynamo=False, opset_version=17,
    )  # fmt: skip
    with torch.inference_mode():
        found = network(image)
    answers = [found] if isinstance(found, torch.Tensor) else list(found)
    probes = {"input.image": image} | {f"output.{name}": each for name, each in zip(names, answers, strict=True)}
    save_file({name: np.ascontiguousarray(each) for name, each in probes.items()}, folder / storage.PROBES)
    if task != "image-to-image":
        storage.write_labels(folder, (Label("0", "background"), Label("1", "coin")))
    known = Activation("softmax" if task == "semantic-segmentation" else "none", known="said")
    manifest = Manifest(
        format=storage.FORMAT, name=folder.name, flambeau="0",
        source=Source(kind="checkpoint", name=f"{folder.name}.pth"), pipeline=config, engine="onnxruntime",
        inputs=(TensorSpec("image", "float32", FREE_PICTURE),), outputs=outputs, task=task, activation=known,
        one_row="pictures keep sizes of their own",
    )  # fmt: skip
    storage.write_manifest(folder, manifest)


def make(folder: Path) -> list[Path]:
    """A detector, a segmenter and a network that draws edges, as bundles in that folder."""
    torch.set_num_threads(1)  # so small a network only waits for others
    network = learned()
    dense = DenseConfig(mean=(0.0,) * 3, std=(1.0,) * 3, multiple=8, classes=2)
    boxes = (
        TensorSpec(BOXES, "float32", (FREE, 4), least=0), TensorSpec(SCORES, "float32", (FREE,), least=0),
        TensorSpec(LABELS, "int64", (FREE,), least=0),
    )  # fmt: skip
    write(
        Detector(network), folder / "coins", PictureConfig(classes=2, least=LEAST, most=MOST), boxes, "object-detection"
    )
    maps = (TensorSpec("logits", "float32", (2, FREE, FREE)),)
    write(Segmenter(network), folder / "coin-masks", dense, maps, "semantic-segmentation")
    drawn = DenseConfig(
        mean=(0.0,) * 3, std=(1.0,) * 3, multiple=1, scale=(1, 1), levels=(0.0, 1.0), large="tile", overlap=32
    )
    write(Edges(), folder / "edges", drawn, (TensorSpec("picture", "float32", FREE_PICTURE),), "image-to-image")
    return [folder / name for name in ("coins", "coin-masks", "edges")]
