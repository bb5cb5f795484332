"""Non-maximum suppression and RoIAlign in plain PyTorch, for a torchvision whose compiled operators do not load.

They give the same results as `torchvision.ops`: the same boxes in the same order, and the same numbers except for the
order of summing. For inference only: they have no gradients.
"""

import torch

_MOST_NUMBERS = 16_000_000  # in one intermediate result of `roi_align`: 64 MB in float32


def nms(boxes: torch.Tensor, scores: torch.Tensor, threshold: float) -> torch.Tensor:
    """The indices, int64, of the boxes to keep, the best score first.

    `boxes` is (N, 4) as x1, y1, x2, y2, and `scores` (N,). A box is dropped if one kept before it overlaps it by more
    than `threshold` (intersection over union). Equal scores keep the order of their boxes.
    """
    left, top, right, bottom = boxes.unbind(1)
    areas = (right - left) * (bottom - top)
    waiting = scores.sort(stable=True, descending=True).indices
    kept = []
    while len(waiting):
        best, waiting = waiting[0], waiting[1:]
        kept.append(best)
        wide = (torch.minimum(right[best], right[waiting]) - torch.maximum(left[best], left[waiting])).clamp(min=0)
        high = (torch.minimum(bottom[best], bottom[waiting]) - torch.maximum(top[best], top[waiting])).clamp(min=0)
        shared = wide * high
        overlap = (shared / (areas[best] + areas[waiting] - shared)).double()  # torchvision compares with a double
        waiting = waiting[~(overlap > threshold)]  # two boxes of size zero overlap by NaN, and both stay
    return torch.stack(kept) if kept else torch.empty(0, dtype=torch.int64, device=boxes.device)


def roi_align(
    features: torch.Tensor,
    rois: torch.Tensor,
    scale: float,
    height: int,
    width: int,
    sampling_ratio: int,
    aligned: bool,
) -> torch.Tensor:
    """The averages of the bins of each region, (K, C, height, width), from feature maps (N, C, H, W).

    `rois` is (K, 5): the index of the map, and x1, y1, x2, y2 in pixels of the image; `scale` converts these to pixels
    of the map. A bin is the average of `sampling_ratio` × `sampling_ratio` points, or if that is not positive, of as
    many as the bin has pixels, rounded up. A point is interpolated between the four pixels around it (He et al., Mask
    R-CNN, 2017, section 3). `aligned` measures from the centres of pixels.

    The points form a grid, so rows and columns have separate weights: a bin is `rows @ map @ columns`.
    """
    taken = features.float() if features.dtype in (torch.float16, torch.bfloat16) else features
    places = rois.to(taken.dtype)
    start_x, start_y, end_x, end_y = (places[:, 1:] * scale - (0.5 if aligned else 0.0)).unbind(1)
    rows = _weights(start_y, end_y - start_y, height, taken.shape[2], sampling_ratio, aligned)
    columns = _weights(start_x, end_x - start_x, width, taken.shape[3], sampling_ratio, aligned)
    result = taken.new_zeros((len(rois), taken.shape[1], height, width))
    at_once = max(1, _MOST_NUMBERS // max(1, taken.shape[1] * height * taken.shape[3]))
    for number in sorted(set(rois[:, 0].tolist())):
        of_map = (rois[:, 0] == number).nonzero()[:, 0]
        for part in of_map.split(at_once):
            lines = torch.einsum("kph,chw->kcpw", rows[part], taken[int(number)])
            result[part] = torch.einsum("kcpw,kqw->kcpq", lines, columns[part])
    return result.to(features.dtype)


def _weights(
    start: torch.Tensor, length: torch.Tensor, bins: int, size: int, sampling_ratio: int, aligned: bool
) -> torch.Tensor:
    """The weight of each pixel along an axis of `size` in each bin of each region: (K, bins, size)."""
    if not aligned:
        length = length.clamp(min=1.0)
    step = length / bins
    count = torch.full_like(step, sampling_ratio) if sampling_ratio > 0 else step.ceil()
    most = max(1, int(count.max())) if len(count) else 1
    number = torch.arange(most, dtype=start.dtype, device=start.device)
    within = number[None, :] < count[:, None]  # (K, most): in adaptive mode each region has its own number of points
    offset = (number[None, :] + 0.5) * (step / count.clamp(min=1))[:, None]
    first = start[:, None] + torch.arange(bins, dtype=start.dtype, device=start.device)[None, :] * step[:, None]
    points = first[:, :, None] + offset[:, None, :]  # (K, bins, most)
    used = within[:, None, :] & (points >= -1.0) & (points <= size)
    points = points.clamp(min=0)
    low = points.floor().clamp(max=size - 1)
    high = (low + 1).clamp(max=size - 1)
    part = torch.where(low >= size - 1, torch.zeros_like(points), points - low)
    share = used.to(start.dtype) / count.clamp(min=1)[:, None, None]
    weights = start.new_zeros((len(start), bins, size))
    weights.scatter_add_(2, low.long(), (1 - part) * share)
    return weights.scatter_add_(2, high.long(), part * share)
