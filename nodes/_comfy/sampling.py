"""Guidance and sampling under ComfyUI: a GUIDER for dual guidance, and one run from conditionings to latents."""

from __future__ import annotations

import copy
import logging
from typing import Any

import comfy.model_management
import comfy.sample
import comfy.samplers
import comfy.utils
import latent_preview
import torch

from ...contextanyone_core.sampling.flow import sigma_schedule
from ...contextanyone_core.sampling.guidance import Branch, CfgGuidance, DualGuidance
from .given import require_conditioning
from .references import (
    config_of,
    references_of,
    unconditional_of,
    with_condition_of,
    with_references_of,
    without_references,
)
from .run import current_run
from .types import Conditioning, Model

_LOG = logging.getLogger(__name__)
_OF_TWO_PASSES = ("sampler_cfg_function", "sampler_pre_cfg_function", "sampler_calc_cond_batch_function")
"""Model options of other nodes for a prediction with the prompt and one without."""
_NAMES = {
    Branch.PROMPT_REFERENCE: "positive",
    Branch.NEGATIVE_REFERENCE: "negative_reference",
    Branch.NEGATIVE: "negative",
}


class ReferenceGuider(comfy.samplers.CFGGuider):
    """`cfg` or `dual` guidance over the conditionings of Apply ContextAnyone.

    Args:
        model: a MODEL of ours.
        positive, negative: CONDITIONING; the references are taken from the positive one.
        guidance: the core's guidance object; its weights sum to one, so it may combine denoised latents as well as
            velocities, or it is one of clean latents. Without references dual guidance that does not project is `cfg`,
            by the prompt's scale.

    Attributes:
        reconstructions: after a run, what the reference stream made of each reference: normalised latents.
    """

    def __init__(
        self, model: Model, positive: Conditioning, negative: Conditioning, guidance: CfgGuidance | DualGuidance
    ) -> None:
        config_of(model)
        require_conditioning(positive=positive, negative=negative)
        super().__init__(model)
        negative = with_condition_of(positive, negative)
        self.reconstructions: list[torch.Tensor] = []
        self._references = references_of(positive)
        if isinstance(guidance, DualGuidance) and self._references is None and not guidance.of_clean:
            guidance = CfgGuidance(guidance.guidance_scale, guidance.interval)
        self.guidance = guidance
        conditionings = {"positive": positive, "negative": unconditional_of(model, positive, negative)}
        if isinstance(guidance, DualGuidance):
            if self._references is not None:
                conditionings["negative_reference"] = with_references_of(positive, negative)
            if model.model.unconditional == "references":  # in the two passes of cfg; the third of dual has none
                conditionings["negative"] = without_references(negative)
        else:
            self.set_cfg(guidance.guidance_scale)
        self.inner_set_conds(conditionings)

    def predict_noise(
        self, x: torch.Tensor, timestep: torch.Tensor, model_options: dict[str, Any] | None = None, seed: Any = None
    ) -> torch.Tensor:
        """Denoised latents at one step."""
        options = model_options or {}
        branches = self.guidance.branches(float(timestep.flatten()[0]))
        alone = len(branches) == 1 and self.guidance.guidance_scale != 1  # outside the interval
        if isinstance(self.guidance, CfgGuidance) and not alone:
            return super().predict_noise(x, timestep, options, seed)
        names = {branch: self._name(branch) for branch in branches}
        passes = list(dict.fromkeys(names.values()))
        conditionings = [self.conds[name] for name in passes]
        predictions = comfy.samplers.calc_cond_batch(self.inner_model, conditionings, x, timestep, options)
        by_name = dict(zip(passes, predictions, strict=True))
        by_branch = {branch: by_name[name] for branch, name in names.items()}
        denoised = self.guidance.combine(by_branch)
        return self._after(denoised, by_branch, x, timestep, options)

    def _name(self, branch: Branch) -> str:
        """The conditioning of a pass; without references the two negative ones are one."""
        return _NAMES[branch] if _NAMES[branch] in self.conds else _NAMES[Branch.NEGATIVE]

    def outer_sample(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """One sampling run; keeps what it made of the references."""
        if isinstance(self.guidance, DualGuidance) and any(self.model_options.get(key) for key in _OF_TWO_PASSES):
            _LOG.warning(
                "Dual guidance leaves out the CFG function that another node (such as RescaleCFG or TCFG) put into the "
                "model: that takes two predictions, and these are three. Guidance cfg uses it."
            )
        output = super().outer_sample(*args, **kwargs)
        if self._references is not None:
            run = current_run(self.model_options.get("transformer_options", {}))
            self.reconstructions = run.reconstructions(self._references.key)
        return output

    def _after(
        self,
        denoised: torch.Tensor,
        predictions: dict[Branch, torch.Tensor],
        x: torch.Tensor,
        timestep: torch.Tensor,
        options: dict[str, Any],
    ) -> torch.Tensor:
        """Apply post-CFG functions of other nodes, as ComfyUI's own guiders do."""
        positive = predictions[Branch.PROMPT_REFERENCE]
        for function in options.get("sampler_post_cfg_function", []):
            given = {"denoised": denoised, "cond": self.conds["positive"], "uncond": self.conds["negative"]}
            given |= {"cond_denoised": positive, "uncond_denoised": predictions.get(Branch.NEGATIVE, positive)}
            given |= {"cond_scale": self.guidance.guidance_scale, "model": self.inner_model, "sigma": timestep}
            denoised = function(given | {"model_options": options, "input": x})
        return denoised


def sample(
    guider: ReferenceGuider, latents: torch.Tensor, *, sampler_name: str, steps: int, shift: float | None, seed: int
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Run a guider over the schedule of a shift, with progress and preview.

    Args:
        latents: zeros (B, 16, t, h, w).
        sampler_name: one of ComfyUI's.
        shift: None takes the model's.

    Returns:
        Raw video latents, and the reconstructed references (n, 16, 1, h, w), None without a reference.
    """
    if shift is not None:
        guider.model_patcher = _with_shift(guider.model_patcher, shift)
    model = guider.model_patcher
    sigmas = sigma_schedule(steps, float(model.get_model_object("model_sampling").shift))
    noise = comfy.sample.prepare_noise(latents, seed)
    samples = guider.sample(
        noise,
        latents,
        comfy.samplers.sampler_object(sampler_name),
        sigmas,
        callback=latent_preview.prepare_callback(model, steps),
        disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
        seed=seed,
    )
    samples = samples.to(comfy.model_management.intermediate_device())
    if not guider.reconstructions:
        return samples, None
    redrawn = model.model.process_latent_out(torch.cat(guider.reconstructions))
    return samples, redrawn.to(samples)


def _with_shift(model: Model, shift: float) -> Model:
    """A clone whose shares of the steps are those of this shift's schedule."""
    shifted = copy.deepcopy(model.get_model_object("model_sampling"))
    shifted.set_parameters(shift=shift, multiplier=shifted.multiplier)
    clone = model.clone()
    clone.add_object_patch("model_sampling", shifted)
    return clone


def sampler_names() -> list[str]:
    """ComfyUI's samplers."""
    return list(comfy.samplers.SAMPLER_NAMES)
