"""The image pipeline prepares images as torchvision does and refuses bad ones by name.

The reference is torchvision's own Resize, CenterCrop, ToTensor and Normalize on Pillow images. On the ordinary path
the normalised tensors agree to 1e-6; strips too thin to be resized whole agree to one grey level.
"""

import io
import random
import resource
import struct
import warnings
import zlib
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, ImageOps

from flambeau.architectures import torchvision_compat
from flambeau.errors import InvalidInput
from flambeau.pipelines import kept_part
from flambeau.pipelines.kept_part import part_kept
from flambeau.types import Payload
from tests.support.image_pipelines import pipeline
from tests.support.photographs import encoded, photograph

TOLERANCE = 1e-6
GREY_LEVEL = 1 / 255 / 0.224 * 1.001  # one of 255 steps, after the division by the smallest standard deviation
REFUSALS = {"unsupported_image_format", "image_undecodable", "image_too_large"}
MIB = 2**20


def prepared(data: bytes, **config: object) -> npt.NDArray[np.float32]:
    [tensor] = pipeline(**config).preprocess(Payload("file", data)).values()  # type: ignore[arg-type]
    assert tensor.dtype == np.float32
    return tensor


@pytest.mark.parametrize("name", ["chelsea", "coffee", "rocket", "astronaut"])
def test_fast_decoding_stays_within_its_tolerance(name: str) -> None:
    large = photograph(name).resize((2400, 1800), Image.Resampling.BICUBIC)
    data = encoded(large, "JPEG", quality=90)
    exact, fast = prepared(data), prepared(data, fast_decode=True)
    assert 0 < np.abs(fast - exact).max() <= 4 * GREY_LEVEL
    assert np.abs(fast - exact).mean() <= 0.3 * GREY_LEVEL


def test_fast_decoding_leaves_alone_what_is_small_or_no_jpeg(cat: bytes) -> None:
    small = encoded(photograph("chelsea").resize((1500, 1000)), "JPEG")
    for data in (small, cat, encoded(photograph("coffee").resize((2400, 1800)), "WEBP")):
        assert np.array_equal(prepared(data, fast_decode=True), prepared(data))


def reference(
    image: Image.Image, resize: int = 255, crop: int = 224, kind: str = "bilinear"
) -> npt.NDArray[np.float32]:
    """torchvision's answer for an image that is upright already."""
    torchvision_compat.declare_missing()
    from torchvision import transforms

    steps = transforms.Compose(
        [
            transforms.Resize(resize, interpolation=transforms.InterpolationMode(kind)),
            transforms.CenterCrop(crop),
            transforms.ToTensor(),
            transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    result: npt.NDArray[np.float32] = steps(image)[None].numpy()
    return result


def opened(data: bytes) -> Image.Image:
    """As a training script opens a file, with the orientation applied."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow remarks on palettes with transparency
        return ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")


def furthest(actual: npt.NDArray[np.float32], expected: npt.NDArray[np.float32]) -> float:
    assert actual.shape == expected.shape
    return float(np.abs(actual - expected).max())


def noise(width: int, height: int, channels: int = 3) -> npt.NDArray[np.uint8]:
    """Pixels that differ everywhere, so that a shift by one shows."""
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(width * 1009 + height).integers(0, 256, shape, np.uint8)


def picture(width: int = 301, height: int = 223) -> Image.Image:
    return Image.fromarray(noise(width, height))


def palette(**options: object) -> bytes:
    return encoded(photograph("chelsea").quantize(64), "PNG", **options)


def with_orientation(kind: str, orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(photograph("chelsea").resize((180, 120)), kind, exif=exif)


def animated(kind: str, **options: object) -> bytes:
    frames = [photograph(name).resize((160, 120)) for name in ("chelsea", "coffee", "rocket")]
    return encoded(frames[0], kind, save_all=True, append_images=frames[1:], duration=100, **options)


ODD: dict[str, Callable[[], bytes]] = {
    "RGB JPEG": lambda: encoded(photograph("chelsea"), "JPEG"),
    "RGB PNG": lambda: encoded(picture()),
    "RGB WebP": lambda: encoded(photograph("chelsea"), "WEBP"),
    "lossless WebP": lambda: encoded(picture(), "WEBP", lossless=True),
    "RGB BMP": lambda: encoded(picture(), "BMP"),
    "still GIF": lambda: encoded(photograph("coffee").resize((200, 150)), "GIF"),
    "progressive JPEG": lambda: encoded(photograph("coffee"), "JPEG", progressive=True),
    "grey": lambda: encoded(Image.fromarray(noise(300, 200, 1))),
    "grey JPEG": lambda: encoded(photograph("chelsea").convert("L"), "JPEG"),
    "grey with alpha": lambda: encoded(Image.fromarray(noise(300, 200, 2), "LA")),
    "alpha": lambda: encoded(Image.fromarray(noise(300, 200, 4))),
    "alpha WebP": lambda: encoded(Image.fromarray(noise(300, 200, 4)), "WEBP", lossless=True, exact=True),
    "palette": palette,
    "palette with a transparent colour": lambda: palette(transparency=5),
    "palette with a table of alphas": lambda: palette(transparency=bytes(range(64))),
    "one bit": lambda: encoded(photograph("chelsea").convert("1")),
    "CMYK JPEG": lambda: encoded(photograph("chelsea").convert("CMYK"), "JPEG"),
    "grey with a transparent level": lambda: encoded(Image.fromarray(noise(300, 200, 1)), transparency=17),
    "RGB with a transparent colour": lambda: encoded(picture(), transparency=(1, 2, 3)),
    "animated GIF": lambda: animated("GIF"),
    "animated WebP": lambda: animated("WEBP"),
    "animated PNG": lambda: animated("PNG"),
}


@pytest.mark.parametrize("name", ODD)
def test_odd_images_are_prepared_as_torchvision_prepares_them_f31(name: str) -> None:
    data = ODD[name]()
    assert furthest(prepared(data), reference(opened(data))) <= TOLERANCE


@pytest.mark.parametrize("kind", ["GIF", "WEBP"])
def test_of_an_animation_the_first_frame_counts_f31(kind: str) -> None:
    alone = encoded(photograph("chelsea").resize((160, 120)), kind, lossless=True)
    assert furthest(prepared(animated(kind, lossless=True)), reference(opened(alone))) <= TOLERANCE


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_exif_orientation_is_applied_f31(kind: str, orientation: int) -> None:
    data = with_orientation(kind, orientation)
    assert furthest(prepared(data), reference(opened(data))) <= TOLERANCE


def test_an_impossible_orientation_is_ignored_f31() -> None:
    assert np.array_equal(prepared(with_orientation("JPEG", 9)), prepared(with_orientation("JPEG", 1)))


def test_sixteen_bit_grey_is_scaled_and_not_clipped_f31() -> None:
    samples = np.random.default_rng(0).integers(0, 65536, (240, 320), np.uint16)
    expected = Image.fromarray((samples // 257).astype(np.uint8)).convert("RGB")
    assert furthest(prepared(encoded(Image.fromarray(samples))), reference(expected)) <= TOLERANCE


@pytest.mark.parametrize(
    "size",
    [
        (1, 1), (2, 3), (1, 50), (50, 1), (3, 200), (100, 60), (223, 224), (224, 224), (224, 225), (255, 255),
        (255, 256), (256, 255), (301, 223), (447, 335), (640, 481), (1600, 1201), (2001, 900),
    ],
)  # fmt: skip
def test_every_size_is_resized_and_cropped_as_torchvision_does(size: tuple[int, int]) -> None:
    """255 leaves a crop offset of 15.5 on the short side; odd long sides leave halves there too."""
    image = picture(*size)
    assert furthest(prepared(encoded(image)), reference(image)) <= TOLERANCE


@pytest.mark.parametrize("name", ["chelsea", "coffee", "rocket", "astronaut"])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_photographs_are_prepared_as_torchvision_prepares_them(name: str, kind: str) -> None:
    data = encoded(photograph(name), kind)
    assert furthest(prepared(data), reference(opened(data))) <= TOLERANCE


@pytest.mark.long
@pytest.mark.parametrize("kind", ["bilinear", "bicubic"])
@pytest.mark.parametrize("resize", [255, 256])
@pytest.mark.parametrize(
    "size", [(500, 375), (375, 500), (640, 480), (480, 640), (600, 400), (400, 600), (512, 512), (224, 300)]
)
def test_what_the_crop_drops_is_not_computed_where_that_changes_no_number(
    size: tuple[int, int], resize: int, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of these the edges lie on whole pixels; Pillow 13 takes columns first for the part of some, and not for all."""
    monkeypatch.setattr(kept_part, "_OFTEN", 0)
    kept_part._geometry.cache_clear()
    image = picture(*size)
    found = prepared(encoded(image), resize=resize, interpolation=kind)
    assert furthest(found, reference(image, resize, 224, kind)) <= TOLERANCE


def test_of_a_usual_photograph_a_third_is_not_computed_once_it_keeps_coming() -> None:
    kept_part._geometry.cache_clear()
    found = [part_kept((500, 375), (340, 255), crop=224, resampling=Image.Resampling.BILINEAR) for _ in range(10)]
    assert found[-1] == ((75, 0, 425, 375), (238, 255), 51, 0)
    assert not any(found[:8])


def test_sizes_that_never_come_again_are_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """A trial costs more than what one photograph saves; and whoever sends a thousand sizes must not get as many."""
    kept_part._geometry.cache_clear()
    tried: list[object] = []
    monkeypatch.setattr(kept_part, "_is_exact", lambda *given: tried.append(given))
    for _ in range(2 * kept_part._OFTEN):
        for width in range(4, 4 * 400, 4):
            part_kept((width, 3 * width // 4), (340, 255), crop=224, resampling=Image.Resampling.BILINEAR)
    assert not tried


@pytest.mark.parametrize("kind", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("resize", "crop"), [(342, 299), (232, 224), (224, 224), (100, 224), (99, 224), (64, 1)])
def test_other_sizes_and_filters_agree_and_a_crop_larger_than_the_image_is_padded(
    kind: str, resize: int, crop: int
) -> None:
    for image in (picture(), photograph("rocket"), picture(20, 90)):
        found = prepared(encoded(image), resize=resize, crop=crop, interpolation=kind)
        assert furthest(found, reference(image, resize, crop, kind)) <= TOLERANCE


@pytest.mark.parametrize("kind", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(300, 1), (1, 300), (301, 1), (1, 303), (997, 3)])
def test_thin_strips_agree_with_torchvision_to_one_grey_level(size: tuple[int, int], kind: str) -> None:
    """Resized whole they would have more than 16 million pixels, which torchvision still bears."""
    image = picture(*size)
    found = prepared(encoded(image), interpolation=kind)
    assert furthest(found, reference(image, kind=kind)) <= GREY_LEVEL


@pytest.mark.parametrize("turned", [False, True])
def test_a_strip_that_torchvision_cannot_resize_shows_its_middle_without_much_memory_f28(turned: bool) -> None:
    """20,000 × 1 resized whole would take 4 GB. Every column becomes 255, so its middle 300 make the same crop."""
    pixels = noise(20_000, 1)
    middle = np.ascontiguousarray(pixels[:, 9_850:10_150])
    if turned:
        pixels, middle = pixels.transpose(1, 0, 2), middle.transpose(1, 0, 2)
    expected = reference(Image.fromarray(np.ascontiguousarray(middle)))
    before = _peak()
    found = prepared(encoded(Image.fromarray(np.ascontiguousarray(pixels))))
    assert _peak() - before < 64 * MIB
    assert furthest(found, expected) <= GREY_LEVEL


def test_the_pipeline_can_prepare_its_own_example() -> None:
    one = pipeline(crop=64, resize=70)
    assert one.preprocess(one.example())["input"].shape == (1, 3, 64, 64)


def refusal(data: bytes, **options: object) -> InvalidInput:
    with pytest.raises(InvalidInput) as caught:
        prepared(data, **options)
    return caught.value


def test_json_is_refused_where_an_image_belongs() -> None:
    with pytest.raises(InvalidInput, match="takes an image, not JSON") as caught:
        pipeline().preprocess(Payload("json", b"[1]"))
    assert caught.value.code == "unsupported_media_type"


def _peak() -> int:
    """The most memory this process ever had, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _png(width: int, height: int, *extra: bytes) -> bytes:
    header = _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    body = _chunk(b"IDAT", zlib.compress(bytes(MIB)))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(extra) + body + _chunk(b"IEND", b"")


def _jpeg(width: int, height: int) -> bytes:
    data = encoded(picture(8, 8), "JPEG")
    sizes = data.index(b"\xff\xc0") + 5
    return data[:sizes] + struct.pack(">HH", height, width) + data[sizes + 4 :]


def _gif(width: int, height: int) -> bytes:
    descriptor = b"," + struct.pack("<HHHHB", 0, 0, width, height, 0)
    return b"GIF89a" + struct.pack("<HHBBB", width, height, 0x80, 0, 0) + bytes(6) + descriptor + b"\x02\x01\x44\x00;"


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize(
    "bomb",
    [
        _png(65_500, 65_500), _png(10_000, 10_000), _png(10_000_000, 10), _png(2**31 - 1, 2**31 - 1),
        _jpeg(65_500, 65_500), _gif(65_500, 65_500), _gif(10_000, 10_000),
    ],
    ids=["png", "png-1e8", "png-strip", "png-max", "jpeg", "gif", "gif-1e8"],
)  # fmt: skip
def test_a_bomb_is_refused_by_its_header_without_memory_f28(bomb: bytes, strict: bool) -> None:
    """Whether or not Pillow's own warning is made an exception."""
    assert len(bomb) < 8192
    before = _peak()
    with warnings.catch_warnings():
        warnings.simplefilter("error" if strict else "ignore")
        error = refusal(bomb)
    assert error.code == "image_too_large"
    assert "50000000 pixels" in error.message
    assert _peak() - before < 16 * MIB


@pytest.mark.long
def test_a_compressed_comment_is_not_unpacked_and_decides_nothing_f28() -> None:
    packer = zlib.compressobj(9)
    packed = b"".join(packer.compress(bytes(MIB)) for _ in range(256)) + packer.flush()
    before = _peak()
    assert prepared(_png(8, 8, _chunk(b"zTXt", b"Comment\0\0" + packed))).shape == (1, 3, 224, 224)
    assert _peak() - before < 16 * MIB


def test_the_limit_of_pixels_is_exact_f28() -> None:
    data = encoded(picture(20, 10))
    assert prepared(data, max_pixels=200).shape == (1, 3, 224, 224)
    error = refusal(data, max_pixels=199)
    assert error.code == "image_too_large"
    assert error.message == "an image of 20 × 10 pixels is too large: the most is 199 pixels"


def attempted(data: bytes) -> npt.NDArray[np.float32] | str:
    """The tensor, or the code of the refusal."""
    try:
        return prepared(data, max_pixels=1_000_000)
    except InvalidInput as error:
        return error.code


def small(kind: str) -> bytes:
    return encoded(photograph("chelsea").resize((90, 60)), kind)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP"])
def test_a_cut_image_is_refused_or_whole_and_never_half_grey_f29(kind: str) -> None:
    data = small(kind)
    whole = prepared(data)
    cuts = [*range(0, len(data), 97), len(data) - 2, len(data) - 1]
    results = [attempted(data[:length]) for length in cuts]
    refused = {result for result in results if isinstance(result, str)}
    assert refused <= REFUSALS
    assert "image_undecodable" in refused
    assert all(np.array_equal(result, whole) for result in results if not isinstance(result, str))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP"])
def test_flipped_bits_give_an_answer_or_a_named_refusal_f29(kind: str) -> None:
    data = small(kind)
    chance = random.Random(29)  # a fixed seed: the same bits every time
    codes: set[str] = set()
    for _ in range(300):
        damaged = bytearray(data)
        for _ in range(chance.choice((1, 1, 5))):
            damaged[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        if isinstance(result := attempted(bytes(damaged)), str):
            codes.add(result)
    assert "image_undecodable" in codes
    assert codes <= REFUSALS


STRANGERS = {
    "text": b"this is not a cat.jpg\n" * 50,
    "nothing": b"",
    "svg": b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>',
    "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(ran) print\n",
    "psd": b"8BPS" + struct.pack(">H6xHIIHH", 1, 3, 9, 9, 8, 3) + bytes(64),
    "tiff": encoded(Image.new("RGB", (9, 9)), "TIFF"),
    "ico": encoded(Image.new("RGB", (16, 16)), "ICO"),
    "ppm": encoded(Image.new("RGB", (9, 9)), "PPM"),
    "icc": struct.pack(">I4s", 128, b"lcms") + bytes(28) + b"acsp" + bytes(88),
    "zeros": bytes(1000),
}


@pytest.mark.parametrize("name", STRANGERS)
def test_files_of_other_kinds_reach_no_parser_f30_t24(name: str) -> None:
    error = refusal(STRANGERS[name])
    assert error.code == "unsupported_image_format"
    assert "JPEG, PNG, WEBP, GIF or BMP" in error.message
