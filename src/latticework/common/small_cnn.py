"""A small convolutional net for images, and what every image network here shares: standardising, training, answering.

Networks take float32 [N, C, H, W] in 0..1 and give logits [N, K]; they are the composition of ``embed``, ``blocks`` and
``head``, so that they can be stitched, shrunk or grown.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from latticework.core.errors import UserError
from latticework.core.method import Backbone, Method, Model, Predictor
from latticework.core.run import Run
from latticework.core.task import Part
from latticework.core.training import Watch, minibatches, train
from latticework.core.value import setting

BATCH = 512  # images answered at once


# -- shared blocks -------------------------------------------------------------------------------------------------------
class Standardise(nn.Module):
    """``(x - mean) / std`` a channel. [N, C, H, W] -> the same; buffers float32 [C], no parameters; at first the identity."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("std", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim != 4 or x.shape[1] != len(self.mean):
            raise ValueError(f"images are [N, {len(self.mean)}, H, W], not {list(x.shape)}")
        return (x - self.mean[:, None, None]) / self.std[:, None, None]

    def learn(self, pixels: np.ndarray) -> None:
        """Mean and standard deviation of uint8 [n, H, W, C], in units of 255; a channel without spread keeps std 1."""
        flat = pixels.reshape(-1, pixels.shape[-1])
        mean, std = flat.mean(0, dtype=np.float64) / 255, flat.std(0, dtype=np.float64) / 255
        self.mean.copy_(torch.from_numpy(mean))
        self.std.copy_(torch.from_numpy(np.where(std > 0, std, 1.0)))


class ConvBlock(nn.Module):
    """3x3 convolution, BatchNorm, ReLU. [N, C_in, H, W] -> [N, C_out, ceil(H / stride), ceil(W / stride)]."""

    def __init__(self, channels_in: int, channels_out: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels_in, channels_out, 3, stride, 1, bias=False)
        self.norm = nn.BatchNorm2d(channels_out)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(self.conv(x)))


class PooledHead(nn.Module):
    """Mean over the picture, dropout, linear map. [N, C, H, W] -> [N, classes]."""

    def __init__(self, channels: int, classes: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.dropout = dropout
        self.map = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.map(F.dropout(x.mean((2, 3)), self.dropout, self.training))


class SmallCNN(nn.Module):
    """Stages of 3x3 convolutions with BatchNorm and ReLU, each half the side and twice the width of the one before.

    ``embed`` standardises and convolves to `width` channels; ``blocks`` is a ModuleList a stage; the first block of every
    stage but the first has stride 2; ``head`` pools and classifies. [N, C, H, W] in 0..1 -> logits [N, classes].
    Errors: ``ValueError`` for sizes < 1 or fewer than two classes.
    """

    def __init__(
        self, channels: int, classes: int, width: int = 32, stages: int = 3, depth: int = 2, dropout: float = 0.1
    ) -> None:
        super().__init__()
        if min(channels, width, stages, depth) < 1 or classes < 2:
            raise ValueError(
                f"channels, width, stages and depth must be >= 1 and classes >= 2; are {channels}, {width}, {stages}, {depth}, "
                f"{classes}"
            )
        self.width = width
        self.embed = nn.Sequential(Standardise(channels), ConvBlock(channels, width))
        widths = [width * 2**s for s in range(stages)]
        self.blocks = nn.ModuleList(
            nn.ModuleList(
                ConvBlock(widths[max(s - (d == 0), 0)], widths[s], stride=2 if s and d == 0 else 1) for d in range(depth)
            )
            for s in range(stages)
        )
        self.head = PooledHead(widths[-1], classes, dropout)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x)
        for stage in self.blocks:
            for block in stage:
                h = block(h)
        return self.head(h)


# -- training and answering ----------------------------------------------------------------------------------------------
def one_cycle(share: float, rise: float = 0.3, start: float = 1 / 25, end: float = 1e-4) -> float:
    """The factor on the peak learning rate at a share of training in 0..1: a cosine up from `start`, then down to `end`."""
    if share < rise:
        return start + (1 - start) * (1 - math.cos(math.pi * share / rise)) / 2
    return end + (1 - end) * (1 + math.cos(math.pi * min((share - rise) / (1 - rise), 1.0))) / 2


def as_input(pixels: np.ndarray) -> Tensor:
    """uint8 [n, H, W, C] -> float32 [n, C, H, W] in 0..1."""
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))).float() / 255


def images_of(part: Part) -> np.ndarray:
    """uint8 [q, H, W, C] of the images that a part asks about."""
    found: np.ndarray = part.data.pixels[part.query]
    return found


def probabilities(network: Callable[[Tensor], Tensor], pixels: np.ndarray, device: str | torch.device) -> np.ndarray:
    """Softmax of a network's logits, float64 [n, K], in batches; the network is in evaluation mode, and n >= 1."""
    with torch.inference_mode():
        found = [
            network(as_input(pixels[i : i + BATCH]).to(device)).double().softmax(1).cpu() for i in range(0, len(pixels), BATCH)
        ]
    return torch.cat(found).numpy()


def flops_of(network: nn.Module, schema: Mapping[str, Any]) -> int:
    """FLOPs for one image as torch counts them (a multiply-add is two)."""
    from torch.utils.flop_counter import FlopCounterMode

    device = next(network.parameters()).device
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        network(torch.zeros(1, schema["channels"], schema["height"], schema["width"], device=device))
    return int(counter.get_total_flops())


class Operating(NamedTuple):
    """Where a model stands at its late settings: FLOPs an image, its accuracy on validation, the budget it was asked for.

    `why` says why there is no such point; `many`: the model has other points, too; `where`: coordinates of the scores.
    """

    flops: float | None
    valid: float | None = None
    budget: float | None = None
    why: str = ""
    many: bool = False
    where: Mapping[str, Any] = {}


class ImageModel(Model):
    """A fitted image network: a Predictor of class probabilities."""

    method: ImageNetwork
    device: str = "cpu"

    def __init__(self, method: ImageNetwork, schema: Mapping[str, Any], network: nn.Module) -> None:
        self.method, self.schema, self.network = method, schema, network.eval()

    def to(self, device: str) -> Self:
        """Answer on this device from now on."""
        self.device = device
        self.network.to(device)
        return self

    def predict(self, part: Part) -> np.ndarray:
        return probabilities(self.network, images_of(part), self.device)

    def operating(self) -> Operating:
        return Operating(flops_of(self.network, self.schema))

    def state(self) -> Mapping[str, Any]:
        return self.network.state_dict()

    @classmethod
    def restore(cls, method: Any, schema: Mapping[str, Any], state: Mapping[str, Any]) -> Self:
        network = method.network(schema)
        network.load_state_dict(state)
        return cls(method, schema, network)

    def parameters(self) -> int:
        return sum(p.numel() for p in self.network.parameters())


class ImageNetwork(Backbone):
    """What the image networks share: AdamW on one cycle of the learning rate, cross-entropy, the best epoch on validation."""

    tasks: ClassVar[tuple[str, ...]] = ("image-classification",)
    gives: ClassVar[tuple[type[Any], ...]] = (Predictor,)
    model: ClassVar[type[ImageModel]] = ImageModel

    epochs: int = setting(25, "passes over the train images; the learning rate's cycle is tied to them", ge=1, le=10_000)
    batch: int = setting(32, "images a step", ge=1, le=65_536)
    lr: float = setting(2e-3, "peak learning rate of AdamW", gt=0, le=1, search=(3e-4, 1e-2, "log"))
    weight_decay: float = setting(0.01, "AdamW's", ge=0, le=10, search=(1e-4, 0.1, "log"))

    @abstractmethod
    def network(self, schema: Mapping[str, Any]) -> nn.Module:
        """The bare network for classes, height, width and channels of a schema, freshly initialised."""

    def build(self, train: Part, run: Run) -> nn.Module:
        """The same, standardised by the train images where there are any."""
        network = self.network(train.schema)
        if train.data is not None:
            for module in network.modules():
                if isinstance(module, Standardise):
                    module.learn(train.data.pixels)
        return network

    def fit(self, train_part: Part, valid: Part | None, run: Run) -> ImageModel:
        network = self.build(train_part, run).to(run.device)
        pixels, y = images_of(train_part), torch.from_numpy(train_part.truth)
        if len(pixels) < 2:
            raise UserError(f"{self.name} needs at least two labelled images, and the train part has {len(pixels)}")
        optimiser = torch.optim.AdamW(network.parameters(), lr=self.lr, weight_decay=self.weight_decay)

        def step(epoch: int) -> float:
            batches = full_batches(len(y), self.batch, run.generator(f"epoch {epoch}"))
            total = 0.0
            for i, batch in enumerate(batches):
                for group in optimiser.param_groups:
                    group["lr"] = self.lr * one_cycle((epoch + i / len(batches)) / self.epochs)
                x = as_input(pixels[batch.numpy()]).to(run.device)
                loss = F.cross_entropy(network(x), y[batch].to(run.device))
                optimiser.zero_grad(set_to_none=True)
                loss.backward()
                optimiser.step()
                total += loss.item() * len(batch)
            return total / len(y)

        def watch() -> Watch:
            assert valid is not None
            p = probabilities(network, images_of(valid), run.device)
            chosen = p[np.arange(len(p)), valid.truth]
            loss = float(-np.log(np.maximum(chosen, 1e-12)).mean())
            return Watch(loss, {"valid": float((p.argmax(1) == valid.truth).mean())})

        train(
            network, step, run, epochs=self.epochs, optimiser=optimiser,
            watch=watch if valid is not None and len(valid.truth) else None,
        )  # fmt: skip
        return self.model(self, dict(train_part.schema), network.cpu())


def full_batches(n: int, size: int, generator: torch.Generator) -> list[Tensor]:
    """Shuffled batches; a last one of a single image joins the one before, since BatchNorm needs two."""
    batches = minibatches(n, size, generator)
    if len(batches) > 1 and len(batches[-1]) == 1:
        batches[-2:] = [torch.cat(batches[-2:])]
    return batches


class SmallCNNMethod(ImageNetwork):
    """A small convolutional net: the classic answer to small images."""

    name: ClassVar[str] = "small-cnn"
    width: int = setting(16, "channels of the first stage", ge=1, le=4096, search=[8, 16, 32])
    stages: int = setting(2, "each halves the side and doubles the width", ge=1, le=8, search=[1, 2, 3])
    depth: int = setting(2, "convolutions a stage", ge=1, le=64, search=[1, 2, 3])
    dropout: float = setting(0.1, "before the last map", ge=0, lt=1, search=(0.0, 0.5))

    def network(self, schema: Mapping[str, Any]) -> SmallCNN:
        return SmallCNN(schema["channels"], len(schema["classes"]), self.width, self.stages, self.depth, self.dropout)


def network_of(model: Any) -> nn.Module:
    """The bare network inside a fitted model, for wrappers."""
    network = getattr(model, "network", None)
    if not isinstance(network, nn.Module):
        name = model.method.name if isinstance(getattr(model, "method", None), Method) else type(model).__name__
        raise UserError(f"{name} holds no network that could be used in another one; name an image network, as tiny-vit")
    return network
