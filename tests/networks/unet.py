"""Small networks that answer for every pixel, as users write them."""

import torch
from torch import nn
from torch.nn import functional


def _double(given: int, made: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(given, made, 3, padding=1), nn.BatchNorm2d(made), nn.ReLU(inplace=True),
        nn.Conv2d(made, made, 3, padding=1), nn.BatchNorm2d(made), nn.ReLU(inplace=True),
    )  # fmt: skip


class UNet(nn.Module):
    """A U-Net of two levels, whose sides have to be multiples of 4. It returns logits."""

    def __init__(self, channels: int = 3, classes: int = 3) -> None:
        super().__init__()
        self.down = nn.ModuleList([_double(channels, 8), _double(8, 16)])
        self.bottom = _double(16, 16)
        self.rise = nn.ModuleList([nn.ConvTranspose2d(16, 16, 2, stride=2), nn.ConvTranspose2d(16, 8, 2, stride=2)])
        self.up = nn.ModuleList([_double(32, 16), _double(16, 8)])
        self.head = nn.Conv2d(8, classes, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first = self.down[0](x)
        second = self.down[1](functional.max_pool2d(first, 2))
        x = self.rise[0](self.bottom(functional.max_pool2d(second, 2)))
        x = self.rise[1](self.up[0](torch.cat([second, x], dim=1)))
        return self.head(self.up[1](torch.cat([first, x], dim=1)))


class Binary(UNet):
    """The same with one channel, and the sigmoid inside."""

    def __init__(self) -> None:
        super().__init__(classes=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(super().forward(x))

    def logits_only(self) -> UNet:
        """The same layers without the sigmoid."""
        inner = UNet(classes=1)
        for name, layer in self.named_children():
            setattr(inner, name, layer)
        return inner


class Sharper(nn.Module):
    """Super-resolution: twice as many pixels on each side, nearly those of a plain enlargement."""

    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, 8, 3, padding=1)
        self.last = nn.Conv2d(8, 4 * channels, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        more = functional.pixel_shuffle(self.last(functional.relu(self.first(x))), 2)
        return functional.interpolate(x, scale_factor=2, mode="nearest") + 0.1 * more


class Depth(UNet):
    """One number for each pixel."""

    def __init__(self) -> None:
        super().__init__(classes=1)


class Styled(nn.Module):
    """A picture of -1 to 1 whose every pixel depends on the whole image."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.InstanceNorm2d(8), nn.Conv2d(8, 3, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.layers(x))
