"""One training step run on tensors without data: its operations and every allocation, on any machine in seconds."""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, autocast, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from contextanyone_core.config import ContextAnyoneConfig
from contextanyone_core.model.regions import Regions
from contextanyone_core.model.rope import forget_tables
from contextanyone_core.model.transformer import ContextAnyoneTransformer
from training.adam8bit import state_bytes
from training.config import OptimSettings
from training.data.buckets import Bucket
from training.optim import make_optimizer
from training.parts import manifest
from training.parts.objective import ConditionDraws, Draws, EncodedClips, ReferenceDraws, loss_terms, prior_step
from training.parts.transformer_base import TransformerSettings, TransformerTraining
from training.trainable import TrainSettings


@dataclass(frozen=True)
class StepShape:
    """What one process works on in a batch: `clips` of a bucket with its references, and CLIP tokens of each."""

    bucket: Bucket
    clips: int
    clip_tokens: int


@dataclass(frozen=True)
class StepCost:
    """FLOPs of one batch, and bytes at the widest moment of a step.

    Attributes:
        forward_flops: of the forward pass; where a share of the steps is the prior's own, of the mean step.
        backward_flops: of the backward pass, with what it computes again. Fused attention counts as its four products
            plus the scores that its kernel computes anew.
        weights: of the network, trained or not, as they are stored; without those in host memory (`offload`).
        gradients, activations: both as they are at the widest moment; activations are everything that is not named.
        optimizer: its state.
        ema: the average of what is trained.
        host: pinned memory of the host, with `offload`; not part of `peak`.
    """

    forward_flops: int
    backward_flops: int
    weights: int
    gradients: int
    optimizer: int
    ema: int
    activations: int
    host: int = 0

    @property
    def peak(self) -> int:
        """All bytes of the device at the widest moment."""
        return self.weights + self.gradients + self.optimizer + self.ema + self.activations


_DEPTHS = (3, 4)


def trace_step(
    config: ContextAnyoneConfig,
    settings: TransformerSettings,
    shape: StepShape,
    optim: OptimSettings,
    *,
    bf16: bool,
) -> StepCost:
    """What one step costs.

    Where the same is trained in every block, a network of three blocks and one of four say what each further one
    costs; else the whole network is run.
    """

    def traced(blocks: int) -> StepCost:
        return run_step(replace(config, num_layers=blocks), settings, shape, optim, bf16=bf16)

    few, more = _DEPTHS
    if config.num_layers <= more or any(_numbered(pattern) for pattern in _patterns(settings.train)):
        return traced(config.num_layers)
    start, following = astuple(traced(few)), astuple(traced(more))
    beyond = config.num_layers - few
    return StepCost(*(a + beyond * (b - a) for a, b in zip(start, following, strict=True)))


def run_step(
    config: ContextAnyoneConfig,
    settings: TransformerSettings,
    shape: StepShape,
    optim: OptimSettings,
    *,
    bf16: bool,
) -> StepCost:
    """Run one step of the objective, the real network with its optimizer, on fake CPU tensors.

    Of a step that accumulates it is the last batch, which finds the gradients of those before. A compiled network is
    counted as if it was not compiled.
    """
    plain = settings.model_copy(update={"compile": False})
    # On the meta device, and filled in afterwards, because peft can add nothing to fake tensors.
    part = TransformerTraining(plain, ContextAnyoneTransformer(config, device="meta"))
    with FakeTensorMode(), _no_tables_kept():
        _materialise(part.transformer)
        if part.offload is not None:
            part.offload.change(lambda stored: torch.empty(stored.shape, dtype=stored.dtype))
        regions = isinstance(settings, manifest.Settings) and settings.regions != "none"
        inputs = _inputs(config, shape, anchored=settings.anchor == "reference", regions=regions)
        in_8_bits = optim.optimizer == "adamw8bit"
        optimizer = None if in_8_bits else make_optimizer(part.parameter_groups(), optim)
        trained = [parameter for parameter in part.transformer.parameters() if parameter.requires_grad]
        tracker = _Tracker(part.transformer.parameters())
        with tracker:
            for parameter in trained:
                if optim.accumulate > 1:
                    parameter.grad = torch.zeros_like(parameter)
                    tracker.count_gradient(parameter)
                else:
                    parameter.register_post_accumulate_grad_hook(tracker.count_gradient)  # type: ignore[no-untyped-call]
            with autocast("cpu", torch.bfloat16, enabled=bf16):
                loss = planned_loss(part, inputs)
                forward = tracker.flops
                of_prior = _prior_flops(part, inputs, tracker)
            loss.backward()  # type: ignore[no-untyped-call]
            backward = tracker.flops - forward - of_prior
            del loss
            in_pass = tracker.widest
            tracker.widest = tracker.now()
            torch.nn.utils.clip_grad_norm_(trained, optim.clip_norm)
            if optimizer is not None:
                optimizer.step()
        state, made = _optimizer_bytes(optimizer, trained)
        # The optimizer's state is there in every pass but the first, and counted in its own phase already.
        in_optimizer = Moment(tracker.widest.bytes - made, tracker.widest.gradients)
        widest = max(in_pass, in_optimizer)
    return StepCost(
        forward_flops=forward + round(_prior(settings) * (of_prior - forward)),
        backward_flops=backward,
        weights=tracker.weights,
        gradients=widest.gradients,
        optimizer=state,
        ema=4 * sum(parameter.numel() for parameter in trained),
        activations=max(0, widest.bytes - widest.gradients),
        host=0 if part.offload is None else part.offload.pinned_bytes(),
    )


def _optimizer_bytes(optimizer: torch.optim.Optimizer | None, trained: Sequence[Tensor]) -> tuple[int, int]:
    """Bytes of an optimizer's state, and how many of them its step made here; None is 8-bit AdamW."""
    if optimizer is None:  # its compiled update works on one parameter after the other, in registers
        return sum(state_bytes(parameter) for parameter in trained), 0
    leaves = tree_leaves(list(optimizer.state.values()))
    made = sum(_bytes(leaf) for leaf in leaves if isinstance(leaf, Tensor))
    return made, made


def planned_loss(part: TransformerTraining, inputs: _Inputs) -> Tensor:
    """The loss of a step, with the prior beside it."""
    clips, draws, texts = inputs
    loss = loss_terms(part.transformer, part.settings, *inputs).total.mean()
    beside = part.settings.prior_beside if isinstance(part.settings, manifest.Settings) else 0.0
    if not beside:
        return loss
    count = math.ceil(beside * len(clips.latents))
    prior, _ = prior_step(part.transformer, clips.first(count), draws.first(count), texts[0][:count])
    return loss + prior.mean()


def _prior(settings: TransformerSettings) -> float:
    """The share of the steps that are the prior's own."""
    return settings.prior if isinstance(settings, manifest.Settings) else 0.0


def _prior_flops(part: TransformerTraining, inputs: _Inputs, tracker: _Tracker) -> int:
    """FLOPs of the two forward passes of a step that is the prior's own; its memory is another step's, and its backward
    pass as well."""
    if not _prior(part.settings):
        return 0
    before, (clips, draws, texts) = tracker.flops, inputs
    with torch.no_grad():
        prior_step(part.transformer, clips, draws, texts[0])
    return tracker.flops - before


@dataclass(frozen=True, order=True)
class Moment:
    """Bytes beside the weights, and how many of them are gradients."""

    bytes: int
    gradients: int


class _Tracker(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the storages that operations make, for as long as they live, and the operations' FLOPs.

    FlopCounterMode counts by the same registry; its module hooks keep what a checkpoint lets go.
    """

    def __init__(self, weights: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        storages = {id(weight.untyped_storage()): weight.untyped_storage() for weight in weights}
        self._known: set[int] = set(storages)
        self._kept = list(storages.values())  # an id is a storage's only while it lives
        self.weights = sum(storage.nbytes() for storage in self._kept)
        self._alive = self._gradients = self.flops = 0
        self.widest = Moment(0, 0)

    def now(self) -> Moment:
        return Moment(self._alive, self._gradients)

    def count_gradient(self, parameter: Tensor) -> None:
        self._gradients += _bytes(parameter)

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = operation(*args, **(kwargs or {}))
        if (count := _FLOPS.get(operation.overloadpacket)) is not None:
            self.flops += count(*args, **(kwargs or {}), out_val=result)
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._meet(leaf.untyped_storage())
        for leaf in tree_leaves(args):  # a weight that came from host memory, whose copying no mode sees
            if isinstance(leaf, nn.Parameter):
                self._meet(leaf.untyped_storage())
        if self._alive > self.widest.bytes:
            self.widest = self.now()
        return result

    def _meet(self, storage: torch.UntypedStorage) -> None:
        key = id(storage)
        if key not in self._known:
            self._known.add(key)
            self._alive += storage.nbytes()
            weakref.finalize(storage, self._forget, key, storage.nbytes()).atexit = False

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self._alive -= size


def _patterns(train: TrainSettings) -> tuple[str, ...]:
    """All patterns of what is trained, and when."""
    lora = () if train.lora is None else train.lora.targets + train.lora.full
    return (*train.only, *train.freeze, *train.thaw, *lora)


def _materialise(network: nn.Module) -> None:
    """Replace tensors on the meta device by CPU tensors, which are fake ones under FakeTensorMode."""
    for module in network.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                tensor = torch.empty(parameter.shape, dtype=parameter.dtype)
                module._parameters[name] = nn.Parameter(tensor, requires_grad=parameter.requires_grad)


def _numbered(pattern: str) -> bool:
    """Whether a pattern over parameter names distinguishes blocks.

    Digits behind the whole name of something else than `blocks` count layers inside a block, as in `ffn.0`.
    """
    pieces = ["", *pattern.split(".")]
    return any(
        set(piece) & set("0123456789[?") and (before == "blocks" or not before.isidentifier())
        for before, piece in pairwise(pieces)
    )


_Inputs = tuple[EncodedClips, Draws, tuple[Tensor, Tensor | None]]


def _inputs(config: ContextAnyoneConfig, shape: StepShape, *, anchored: bool = True, regions: bool = False) -> _Inputs:
    """A batch, with reference where the network is given one, as the objective is given it."""
    count, bucket = shape.clips, shape.bucket
    frames, *sides = bucket.latents(config)
    pictures = max(1, bucket.references)
    latents, still = (torch.empty(count, config.in_dim, length, *sides) for length in (frames, pictures))
    ones = torch.empty(count, 1, frames, *sides)
    tokens = None
    if config.image_dim is not None and shape.clip_tokens:
        tokens = torch.empty(count, shape.clip_tokens * bucket.references, config.image_dim)
    weights = ones[:, :, :1].expand(-1, -1, pictures, -1, -1)
    poses, condition = None, None
    if config.condition_dim:
        poses = torch.empty_like(latents)
        condition = ConditionDraws(torch.empty(count, dtype=torch.bool), torch.empty(count, dtype=torch.long))
    named = Regions(ones, ((0, 1, 2, 3),) * count) if regions else None  # of a name's pieces and its class
    clips = EncodedClips(latents, ones, still, tokens, still, weights, poses, config.condition_dim > 0, named)
    sigma = torch.empty(count)
    reference = ReferenceDraws(sigma, torch.empty_like(still)) if anchored else None
    draws = Draws(sigma, torch.empty_like(latents), [True] * count, reference, condition)
    texts = [torch.empty(count, config.text_len, config.text_dim) for _ in range(2)]
    return clips, draws, (texts[0], texts[1] if anchored else None)


@contextmanager
def _no_tables_kept() -> Iterator[None]:
    """Rotary tables of fake tensors must meet nothing real, nor the other way round."""
    forget_tables()
    try:
        yield
    finally:
        forget_tables()


def _attention_flops(query: Tensor, key: Tensor, *_: Any, **__: Any) -> int:
    return 4 * query.numel() * key.shape[2]


def _attention_backward_flops(_: Any, query: Tensor, key: Tensor, *__: Any, **___: Any) -> int:
    return 10 * query.numel() * key.shape[2]


_FLOPS = flop_registry | {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward_flops,
}


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
