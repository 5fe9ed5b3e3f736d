"""HNeRV and NeRV as recipes: fitting is encoding, the model is a codec, and its file is what counts.

`fit` overfits one clip; `stored` quantises decoder and embeddings to `bits` and `embedding_bits` and writes the file;
`decode` runs what stands in that file, never the unquantised weights. A frame that was not seen gets the mean of its two
neighbours' embeddings (the encoder never sees it); NeRV gets its index.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, Self

import numpy as np
import torch
from pydantic import model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from latticework.core.errors import UserError
from latticework.core.ledger import write_whole
from latticework.core.method import Codec, Method, Model
from latticework.core.result import Findings
from latticework.core.run import Run
from latticework.core.task import Part, Task
from latticework.core.training import Watch, minibatches, train
from latticework.core.value import setting

from ..parts import ClipView, held_out, neighbours, side_by_side, to_bytes
from .container import Stored, pack, unpack
from .network import (
    HNeRVDecoder,
    HNeRVEncoder,
    NeRVDecoder,
    count,
    embedding_numbers,
    hnerv_parameters,
    nerv_parameters,
    position_code,
    psnr_loss,
    solve_width,
    warm_cosine,
)
from .quantise import quantise

STRIDE_CHOICES = ((5, 4, 2), (5, 4, 2, 2), (5, 4, 4, 2), (5, 4, 4, 2, 2))  # products 40, 80, 160, 320
MOST_PLACES = 10  # chosen strides reduce a frame to at most so many places, where one of them can (the paper's: 2 x 4)
CHOSEN_WIDTH = 16  # first width of a decoder whose size is not given
LOOKS = 24  # how often a fit measures its PSNR over all frames
BATCH_PIXELS = 1 << 17  # decoded at once: more falls out of the cache and is slower


class Plan(NamedTuple):
    """Sizes resolved for one clip: strides, padded height and width, and the decoder's first width."""

    strides: tuple[int, ...]
    height: int
    width: int
    first: int


# -- the fitted clip -----------------------------------------------------------------------------------------------------
class NeuralClip(Model):
    """A clip as a network: a Codec. Late fields choose the bits; `decode` gives frames of the quantised network."""

    scope: Literal["fitted data", "new data"] = "fitted data"
    method: NeuralVideo
    device: str = "cpu"

    def __init__(
        self,
        method: NeuralVideo,
        schema: Mapping[str, Any],
        weights: Mapping[str, Tensor],
        embeddings: Tensor | None,
        file: bytes | None = None,
    ) -> None:
        """`embeddings` float32 [n, d, h, w] of the seen frames; `file`: the bytes that this model was read from."""
        self.method, self.schema, self.weights, self.embeddings, self.file = method, schema, weights, embeddings, file

    # -- model ---------------------------------------------------------------------------------------------------
    def state(self) -> Mapping[str, Any]:
        tensors = {f"decoder.{name}": value for name, value in self.weights.items()}
        return tensors if self.embeddings is None else {**tensors, "embeddings": self.embeddings}

    @classmethod
    def restore(cls, method: Any, schema: Mapping[str, Any], state: Mapping[str, Any]) -> Self:
        weights = {name[8:]: value for name, value in state.items() if name.startswith("decoder.")}
        return cls(method, schema, weights, state.get("embeddings"))

    def at(self, **late: Any) -> Self:
        other = super().at(**late)
        if other is self:
            return self
        if self.file is not None and other.method.bits_of() != self.method.bits_of():
            raise UserError(
                f"this model was read from a file, where it stands at {self.method.bits_of()} bits; other bits need the fitted model"
            )
        for cached in ("_packed", "_network", "_codes"):
            other.__dict__.pop(cached, None)
        return other

    def points(self) -> Sequence[Mapping[str, Any]]:
        own = {k: getattr(self.method, k) for k in self.method.late_fields()}
        if self.file is not None:
            return (own,)
        return (own, *({**own, "bits": b} for b in (6, 4) if b != own["bits"]))

    def to(self, device: str) -> Self:
        """Decode on this device from now on."""
        if device != self.device:
            self.device = device
            for cached in ("_network", "_codes"):
                self.__dict__.pop(cached, None)
        return self

    # -- codec ---------------------------------------------------------------------------------------------------
    def content(self) -> Stored:
        """The quantised tensors and the head of the file."""
        if self.file is not None:
            return unpack(self.file)
        method = self.method
        tensors = {name: quantise(value, method.bits) for name, value in self.weights.items()}
        if self.embeddings is not None:
            tensors["embeddings"] = quantise(self.embeddings, method.bits_of()[-1])
        defaults = type(method).model_fields
        fields = {k: v for k, v in method.plain().items() if k == "is" or v != _plain_default(defaults[k])}
        seen = self.schema["seen"]
        if seen is not None:
            mask = np.zeros(self.schema["frames"], bool)
            mask[seen] = True
            seen = np.packbits(mask).tobytes().hex()
        return Stored({"method": fields, "clip": {**self.schema, "seen": seen}}, tensors)

    @cached_property
    def _packed(self) -> bytes:
        return self.file if self.file is not None else pack(self.content())

    def stored(self) -> bytes:
        """The ``.hnerv`` file."""
        return self._packed

    @classmethod
    def read(cls, path: Path) -> NeuralClip:
        """From the file that `write` wrote."""
        return read_model(path)

    def write(self, to: Path) -> None:
        """The file on disk; it appears whole."""
        write_whole(to, self.stored())

    @cached_property
    def _network(self) -> nn.Module:
        content = unpack(self.stored())
        network = self.method.decoder(self.schema)
        state = {name: q.values() for name, q in content.tensors.items() if name != "embeddings"}
        network.load_state_dict(state)
        # channels last: convolutions of few channels are up to twice as fast on a CPU
        return network.to(self.device, memory_format=torch.channels_last).eval()

    @cached_property
    def _codes(self) -> Tensor | None:
        tensors = unpack(self.stored()).tensors
        return tensors["embeddings"].values() if "embeddings" in tensors else None

    def _index(self) -> np.ndarray:
        seen = self.schema["seen"]
        return np.arange(self.schema["frames"]) if seen is None else np.asarray(seen)

    def codes(self, frames: Sequence[int]) -> Tensor:
        """What the decoder reads for these frames: a mean of neighbours' embeddings for a frame that was not seen."""
        if self._codes is None:
            return position_code(torch.tensor(list(frames), dtype=torch.float64) / self.schema["frames"])
        index = self._index()
        out = []
        for i in frames:
            a, b, weight = neighbours(index, i)
            out.append(self._codes[a] if a == b else torch.lerp(self._codes[a], self._codes[b], weight))
        return torch.stack(out)

    def decode(self, frames: range) -> Iterator[np.ndarray]:
        """float32 [3, H, W] in 0..1, a frame at a time; any frames in any order, in batches."""
        height, width, total = self.schema["height"], self.schema["width"], self.schema["frames"]
        wrong = [i for i in (frames[:1], frames[-1:]) for i in i if not 0 <= i < total]
        if wrong:
            raise UserError(f"frame {wrong[0]} is not in the clip, which has {total} frames (0 to {total - 1})")
        size = max(1, BATCH_PIXELS // (height * width))
        for start in range(0, len(frames), size):
            with torch.inference_mode():
                batch = self._network(self.codes(frames[start : start + size]).to(self.device))
            yield from batch[:, :, :height, :width].cpu().numpy()

    def explain(self, part: Part) -> Findings:
        view = part.data
        total = self.schema["frames"]
        shares = [(name, value.numel()) for name, value in self.weights.items() if name.endswith("weight")]
        blocks = [n for name, n in shares if name.startswith("blocks")]
        scalars = {
            "file bytes": len(self.stored()),
            "decoder parameters": sum(v.numel() for v in self.weights.values()),
            "embedding numbers": 0 if self.embeddings is None else self.embeddings.numel(),
            "largest block's share of the decoder": max(blocks) / sum(n for _, n in shares),
        }
        if not isinstance(view, ClipView):
            return Findings(scalars=scalars)
        chosen = sorted({0, total // 3 | 1 if total > 3 else 0, 2 * total // 3, total - 1})
        shown = {int(i): view.frames[j] for j, i in enumerate(view.index) if int(i) in chosen}
        decoded = [to_bytes(next(self.decode(range(i, i + 1)))) for i in chosen]
        rows = [("seen", [shown.get(i) for i in chosen]), (self.method.name, decoded)]
        titles = [f"frame {i}" + ("" if i in shown else " (not seen)") for i in chosen]
        return Findings(scalars=scalars, figures={f"frames of {self.method.name}": side_by_side(rows, titles)})


def _plain_default(field: Any) -> Any:
    value = field.get_default(call_default_factory=True)
    return list(value) if isinstance(value, tuple) else value


def read_model(data: bytes | Path, where: str = "") -> NeuralClip:
    """The model of a ``.hnerv`` file, ready to decode."""
    if isinstance(data, Path):
        if not data.is_file():
            raise UserError(f"{data} is not a file; give a .hnerv file")
        where, data = str(data), data.read_bytes()
    content = unpack(data, where or "the file")
    try:
        fields = dict(content.head["method"])
        method = {cls.name: cls for cls in (HNeRVMethod, NeRVMethod)}[fields.pop("is")].make(fields)
        schema = dict(content.head["clip"])
        if schema["seen"] is not None:
            bits = np.unpackbits(np.frombuffer(bytes.fromhex(schema["seen"]), np.uint8), count=schema["frames"])
            schema["seen"] = [int(i) for i in np.flatnonzero(bits)]
        values = {name: q.values() for name, q in content.tensors.items()}
        embeddings = values.pop("embeddings", None)
        method.decoder(schema).load_state_dict(values)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{where or 'the file'} does not describe a network that fits its tensors ({error})") from None
    return NeuralClip(method, schema, values, embeddings, data)


# -- the recipes ---------------------------------------------------------------------------------------------------------
class NeuralVideo(Method):
    """What HNeRV and NeRV share: fields, checks before the fit, and the fit itself."""

    tasks: ClassVar[tuple[str, ...]] = ("video-regression",)
    gives: ClassVar[tuple[type[Any], ...]] = (Codec,)
    model: ClassVar[type[NeuralClip]] = NeuralClip

    size: int = setting(
        1_500_000, "how many numbers are stored: decoder and embeddings; 0: chosen, small", ge=0, le=1_000_000_000
    )
    strides: tuple[int, ...] = setting((5, 4, 4, 2, 2), "upsampling of the blocks; empty: chosen by the frames' size")
    reduction: float = setting(1.2, "each block has this many times fewer channels than the one before", gt=1, le=8)
    narrowest: int = setting(12, "but never fewer channels than this", ge=1, le=1024)
    epochs: int = setting(300, "passes over the clip; the learning rate's schedule is tied to them", ge=1, le=100_000)
    batch: int = setting(2, "frames a step", ge=1, le=1024)
    lr: float = setting(1e-3, "peak learning rate of Adam", gt=0, le=1)
    warm: float = setting(0.1, "share of the epochs in which the learning rate rises", ge=0, lt=1)
    pad: bool = setting(False, "repeat edges up to sizes that the strides divide, and cut them off when decoding")
    bits: int = setting(8, "bits a weight in the file", ge=1, le=8, late=True)

    @model_validator(mode="after")
    def _whole_strides(self) -> Self:
        if any(s < 1 for s in self.strides):
            raise ValueError(f"strides are at least 1, not {self.strides}")
        return self

    # -- before the fit --------------------------------------------------------------------------------------------
    def refuses(self, task: Task, facts: Mapping[str, Any]) -> str | None:
        total = int(facts["frames"])
        seen = total - int(held_out(total).sum()) if getattr(task, "hold_out", "none") != "none" else total
        try:
            self.plan(seen, int(facts["height"]), int(facts["width"]))
        except UserError as error:
            return str(error)
        return None

    def plan(self, seen: int, height: int, width: int) -> Plan:
        """Sizes for a clip; `UserError` with what to change where the clip does not fit."""
        if seen < 2:
            raise UserError(f"{self.name} needs at least 2 frames, and {seen} may be seen")
        strides = self.strides or self.choose_strides(seen, height, width)
        product = math.prod(strides)
        high, wide = math.ceil(height / product) * product, math.ceil(width / product) * product
        if (high, wide) != (height, width) and not (self.pad or not self.strides):
            low, narrow = height - height % product, width - width % product
            crop = (
                f"crop the clip to {narrow}x{low} (cropped(of=..., height={low}, width={narrow})), or " if low and narrow else ""
            )
            raise UserError(
                f"frames of {width}x{height} are not divisible by {product}, the product of the strides {_text(strides)}; {crop}"
                f"set pad=true (edges repeated to {wide}x{high} and cut off again when decoding), or strides= (empty: chosen)"
            )
        return Plan(strides, high, wide, self.first_width(seen, (high, wide), strides))

    @abstractmethod
    def choose_strides(self, seen: int, height: int, width: int) -> tuple[int, ...]: ...

    @abstractmethod
    def first_width(self, seen: int, size: tuple[int, int], strides: tuple[int, ...]) -> int: ...

    @abstractmethod
    def decoder(self, schema: Mapping[str, Any]) -> nn.Module:
        """The bare decoder of a fitted clip's facts."""

    @abstractmethod
    def bits_of(self) -> tuple[int, ...]:
        """Bits of the weights, and of the embeddings where there are any."""

    def encoder(self, plan: Plan) -> nn.Module | None:
        return None

    # -- the fit ---------------------------------------------------------------------------------------------------
    def fit(self, train_part: Part, valid: Part | None, run: Run) -> NeuralClip:
        view: ClipView = train_part.data
        seen_frames, height, width = view.frames.shape[:3]
        plan = self.plan(seen_frames, height, width)
        schema = {**view.schema(), "strides": list(plan.strides), "first": plan.first, "padded": [plan.height, plan.width]}
        encoder = self.encoder(plan)
        network = nn.ModuleDict({"decoder": self.decoder(schema)} | ({"encoder": encoder} if encoder is not None else {}))
        network.to(run.device, memory_format=torch.channels_last)
        numbers = count(network["decoder"]) + (encoder is not None) * self.embeddings_of(seen_frames, plan)
        run.notes.append(f"{numbers} numbers stored (size {self.size or 'chosen'}); the decoder's first width is {plan.first}")

        frames = torch.from_numpy(view.frames).permute(0, 3, 1, 2)
        places = torch.from_numpy(view.index).double() / view.total
        margin = (0, plan.width - width, 0, plan.height - height)
        seen = None
        if view.hole is not None or any(margin):
            shown = torch.ones(height, width, dtype=torch.bool) if view.seen is None else torch.from_numpy(view.seen)
            seen = F.pad(shown, margin, value=False).to(run.device)

        def target(batch: Tensor) -> Tensor:
            x = frames[batch].to(run.device).float() / 255
            return F.pad(x, margin, mode="replicate") if any(margin) else x

        def code(batch: Tensor, x: Tensor) -> Tensor:
            return encoder(x) if encoder is not None else position_code(places[batch]).to(run.device)

        optimiser = torch.optim.Adam(network.parameters(), lr=self.lr, betas=(0.9, 0.999))
        latest = {"epoch": 0.0, "psnr": 0.0}

        def step(epoch: int) -> float:
            batches = minibatches(seen_frames, self.batch, run.generator(f"epoch {epoch}"))
            loss_sum, psnr_sum = 0.0, 0.0
            for j, batch in enumerate(batches):
                factor = warm_cosine((epoch + j / len(batches)) / self.epochs, self.warm)
                for group in optimiser.param_groups:
                    group["lr"] = self.lr * factor
                x = target(batch)
                loss, psnr = psnr_loss(network["decoder"](code(batch, x)), x, seen)
                optimiser.zero_grad(set_to_none=True)
                loss.backward()
                optimiser.step()
                loss_sum += loss.item() * len(batch)
                psnr_sum += float(psnr.sum())
            latest.update(epoch=epoch, psnr=psnr_sum / seen_frames)
            return loss_sum / seen_frames

        every = max(1, self.epochs // LOOKS)

        def watch() -> Watch:
            curves = {"train psnr": latest["psnr"]}
            done = int(latest["epoch"]) + 1
            if done % every == 0 or done == self.epochs:
                with torch.no_grad():
                    found = []
                    for batch in torch.arange(seen_frames).split(self.batch):
                        x = target(batch)
                        found.append(psnr_loss(network["decoder"](code(batch, x)), x, seen)[1])
                    curves["psnr"] = float(torch.cat(found).mean())
            return Watch(-latest["epoch"], curves)  # the newest is always the best: a schedule runs to its end

        train(network, step, run, epochs=self.epochs, optimiser=optimiser, watch=watch)
        weights = {
            k: v.detach().cpu().contiguous().clone(memory_format=torch.contiguous_format)
            for k, v in network["decoder"].state_dict().items()
        }
        embeddings = None
        if encoder is not None:
            with torch.no_grad():
                split = torch.arange(seen_frames).split(max(self.batch, 8))
                embeddings = torch.cat([encoder(target(batch)).cpu() for batch in split])
        return NeuralClip(self, schema, weights, embeddings)

    def embeddings_of(self, seen: int, plan: Plan) -> int:
        return 0


def _text(strides: Sequence[int]) -> str:
    return "·".join(str(s) for s in strides)


class HNeRVMethod(NeuralVideo):
    """HNeRV: an encoder shapes one embedding a frame, and the decoder and the embeddings are the video."""

    name: ClassVar[str] = "hnerv"
    embedding: int = setting(16, "channels of an embedding", ge=1, le=1024)
    kernel: tuple[int, int] = setting((1, 5), "kernel of the first block, and the largest; each block adds 2")
    embedding_bits: int = setting(6, "bits a number of an embedding in the file", ge=1, le=8, late=True)

    @model_validator(mode="after")
    def _odd_kernels(self) -> Self:
        if any(k < 1 or k % 2 == 0 for k in self.kernel):
            raise ValueError(f"kernels are odd, so that they keep the size, not {self.kernel}")
        return self

    def bits_of(self) -> tuple[int, ...]:
        return self.bits, self.embedding_bits

    def choose_strides(self, seen: int, height: int, width: int) -> tuple[int, ...]:
        """The smallest choice that leaves at most `MOST_PLACES` places for an embedding."""
        for strides in STRIDE_CHOICES:
            product = math.prod(strides)
            if math.ceil(height / product) * math.ceil(width / product) <= MOST_PLACES:
                return strides
        return STRIDE_CHOICES[-1]

    def first_width(self, seen: int, size: tuple[int, int], strides: tuple[int, ...]) -> int:
        if self.size == 0:
            return CHOSEN_WIDTH
        numbers = embedding_numbers(seen, size, strides, self.embedding)
        least = hnerv_parameters(1, strides, self.embedding, self.reduction, self.narrowest, self.kernel)
        budget = self.size - numbers
        first = solve_width(budget, strides, self.embedding, self.reduction, self.kernel) if budget > 0 else 0
        if first < 1 or budget < least:
            raise UserError(
                f"size={self.size} is too small for this clip: {seen} embeddings of {size[1]}x{size[0]} frames are {numbers} numbers, "
                f"and the smallest decoder has {least}; set size to {numbers + least} or more, use larger strides, or a smaller "
                "clip (scaled(of=..., by=2))"
            )
        return first

    def chosen_numbers(self, seen: int, size: tuple[int, int]) -> int:
        """How many numbers are stored for a clip when `size` is 0."""
        plan = self.plan(seen, *size)
        least = hnerv_parameters(plan.first, plan.strides, self.embedding, self.reduction, self.narrowest, self.kernel)
        return least + self.embeddings_of(seen, plan)

    def embeddings_of(self, seen: int, plan: Plan) -> int:
        return embedding_numbers(seen, (plan.height, plan.width), plan.strides, self.embedding)

    def encoder(self, plan: Plan) -> nn.Module:
        return HNeRVEncoder(plan.strides, self.embedding)

    def decoder(self, schema: Mapping[str, Any]) -> nn.Module:
        return HNeRVDecoder(schema["first"], schema["strides"], self.embedding, self.reduction, self.narrowest, self.kernel)


class NeRVMethod(NeuralVideo):
    """NeRV: the frame's index alone is decoded. Its width is the one whose real number of parameters is nearest to `size`.

    A `size` of 0 takes as many numbers as HNeRV with `size` 0 stores for the same clip, so that the two compare.
    """

    name: ClassVar[str] = "nerv"
    strides: tuple[int, ...] = setting((5, 4, 2, 2), "upsampling of the blocks; empty: chosen by the frames' size")
    reduction: float = setting(2.0, "each block has this many times fewer channels than the one before", gt=1, le=8)

    def bits_of(self) -> tuple[int, ...]:
        return (self.bits,)

    def choose_strides(self, seen: int, height: int, width: int) -> tuple[int, ...]:
        """The largest choice that leaves the stem at least 2x4 places, so that its share stays as in the paper."""
        for strides in reversed(((5, 4), (5, 4, 2), (5, 4, 2, 2), (5, 4, 4, 2))):
            product = math.prod(strides)
            if math.ceil(height / product) >= 2 and math.ceil(width / product) >= 2:
                return strides
        return (5, 4)

    def first_width(self, seen: int, size: tuple[int, int], strides: tuple[int, ...]) -> int:
        base = (size[0] // math.prod(strides), size[1] // math.prod(strides))

        def numbers(first: int) -> int:
            return nerv_parameters(first, base, strides, self.reduction, self.narrowest)

        wanted = self.size or HNeRVMethod.make({"size": 0, "strides": []}).chosen_numbers(seen, size)
        if wanted < numbers(1):
            raise UserError(f"size={wanted} is too small for this clip: the smallest NeRV has {numbers(1)} parameters; raise it")
        high = 1
        while numbers(high) < wanted:
            high *= 2
        low = high // 2
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if numbers(middle) <= wanted else (low, middle)
        return min((c for c in (low, high) if c >= 1), key=lambda c: abs(numbers(c) - wanted))

    def decoder(self, schema: Mapping[str, Any]) -> nn.Module:
        product = math.prod(schema["strides"])
        base = (schema["padded"][0] // product, schema["padded"][1] // product)
        return NeRVDecoder(schema["first"], base, schema["strides"], self.reduction, self.narrowest)
