"""The ContextAnyone transformer as ComfyUI runs it: its layers, its attention, its wrappers.

A subclass, not a holder: the keys stay `diffusion_model.blocks...`, so that LoRA files and weight streaming find them.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from math import inf
from typing import Any, NamedTuple

import comfy.ldm.modules.attention
import comfy.patcher_extension
import torch

from ...contextanyone_core.config import ContextAnyoneConfig
from ...contextanyone_core.generation.conditions import WHOLE_RUN, condition_at
from ...contextanyone_core.model.condition import VideoCondition
from ...contextanyone_core.model.references import ReferenceCache, ReferenceInputs
from ...contextanyone_core.model.regions import Regions
from ...contextanyone_core.model.transformer import ContextAnyoneTransformer
from .run import KeyedReferences, current_run

_ROUNDED = 1e-4  # relative, of a noise level


class PoseActs(NamedTuple):
    """Strength of a pose, and the noise levels between which it acts, `high` included, `low` not.

    Noise levels, not fractions of the steps, so that a run that is split over several samplers counts as one.
    """

    strength: float = 1.0
    high: float = inf
    low: float = 0.0

    @property
    def always(self) -> bool:
        """Whether it acts at every noise level."""
        return self.high == inf and self.low == 0

    def strength_at(self, sigma: float) -> float:
        """The strength at a noise level, which a scheduler may have rounded."""
        return self.strength if self.low < sigma * (1 - _ROUNDED) <= self.high else 0.0


class ContextAnyoneNetwork(ContextAnyoneTransformer):
    """`diffusion_model` of a native MODEL.

    Args:
        contextanyone: the model's config.
        operations: ComfyUI's layer namespace.
        device, dtype: where the weights are made, and their storage dtype.
    """

    def __init__(
        self,
        contextanyone: ContextAnyoneConfig,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
        operations: Any = None,
        **_: Any,  # whatever else a version of ComfyUI puts into unet_config
    ) -> None:
        super().__init__(contextanyone, operations, device=device, dtype=dtype)
        self.dtype = dtype

    @property
    def patch_channels(self) -> int:
        """As the weight has them: ComfyUI's LoRA loader may have widened it."""
        return int(self.patch_embedding.weight.shape[1])

    def forward(  # type: ignore[override]  # ComfyUI's signature of a diffusion model
        self,
        x: torch.Tensor,
        timestep: torch.Tensor,
        context: torch.Tensor | None = None,
        transformer_options: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Velocity of x (B, 16, T, h, w) at timestep (B,) = 1000 * sigma, through the wrappers of diffusion models."""
        options = transformer_options if transformer_options is not None else {}
        kind = comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL
        wrappers = comfy.patcher_extension.get_all_wrappers(kind, options)
        executor = comfy.patcher_extension.WrapperExecutor.new_class_executor(self._velocity, self, wrappers)
        return executor.execute(x, timestep, context, options, **kwargs)

    def _velocity(
        self,
        x: torch.Tensor,
        timestep: torch.Tensor,
        context: torch.Tensor,
        transformer_options: dict[str, Any],
        emphasis: float = 1.0,
        references: KeyedReferences | None = None,
        **more: Any,  # pose, start and person; `control`, and the conditionings of other models
    ) -> torch.Tensor:
        attention = partial(host_attention, options=transformer_options)
        run = current_run(transformer_options)
        inputs: ReferenceInputs | None = None
        cache: ReferenceCache | None = None
        if references is not None and run.options.device == "off":
            inputs = references.inputs.to(x.device, x.dtype)
        elif references is not None:
            cache = run.cache(references, x, partial(self.encode_references, attention=attention))
        output = super().forward(
            x,
            timestep,
            context,
            references=inputs,
            cache=cache,
            emphasis=emphasis,
            condition=condition_now(more, transformer_options),
            attention=attention,
        )
        if references is not None and inputs is not None:
            run.note(references.key, inputs, output.reference_output or [])
        return output.velocity


def condition_now(given: Mapping[str, Any], options: Mapping[str, Any]) -> VideoCondition | None:
    """Pose, start frame and regions of one call at its noise level, from the network's keyword arguments."""
    person = given.get("person")
    regions = None if person is None else Regions(person, (given["named"],))
    video, acts = VideoCondition(given.get("pose"), given.get("start"), regions), given.get("pose_acts", PoseActs())
    strength = acts.strength
    if not acts.always and "sigmas" in options:  # reading the level waits for the GPU, so only where it matters
        strength = acts.strength_at(float(options["sigmas"].flatten()[0]))
    return condition_at(video, 0.0, strength, WHOLE_RUN)


def host_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, heads: int, *, options: dict[str, Any]) -> Any:
    """ComfyUI's attention, looked up at every call: its settings may change."""
    return comfy.ldm.modules.attention.optimized_attention(q, k, v, heads, transformer_options=options)
