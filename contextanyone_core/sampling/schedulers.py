"""Samplers by name: diffusers' schedulers driven by this package's own sigmas."""

from __future__ import annotations

from typing import Any

import torch

from ..errors import InputError
from ..late_import import host_class
from ..shapes import check_same_shape
from .names import check_sampler_name

# A multistep solver works with log(1 - sigma): at sigma 1, pure noise, it would be minus infinity. diffusers lowers
# the first sigma by the same amount; the network still gets sigma 1.
_BELOW_ONE = 1.0 - 1e-6


class Sampler:
    """One sampling run: steps from sigma 1, noise, to sigma 0, clean.

    A run is used once, index 0 first, because multistep solvers remember earlier velocities:

        for index, sigma in enumerate(sampler.sigmas[:-1]):
            x = sampler.step(velocity, index, x)

    Args:
        scheduler: a diffusers scheduler in flow mode.
        sigmas: (steps + 1,) float32, falling strictly, the last one 0.
    """

    def __init__(self, scheduler: Any, sigmas: torch.Tensor) -> None:
        self.sigmas = sigmas
        self._scheduler = scheduler

    def step(self, velocity: torch.Tensor, index: int, x: torch.Tensor) -> torch.Tensor:
        """Latents at `sigmas[index + 1]` from latents `x` at `sigmas[index]` and the velocity there.

        Raises:
            ShapeError: x and its velocity differ in shape.
        """
        check_same_shape("velocity", velocity.shape, x.shape)
        timestep = self._scheduler.timesteps[index]
        return torch.as_tensor(self._scheduler.step(velocity, timestep, x, return_dict=False)[0])


def make_sampler(name: str, sigmas: torch.Tensor) -> Sampler:
    """A sampler of `names.SAMPLERS` over exactly these sigmas (steps + 1 values from `flow.sigma_schedule`).

    diffusers' multistep schedulers round their timesteps to int64, which gives 999 for sigma 1 and duplicates, hence
    crashes, at 200 steps: sigmas and timesteps are put in explicitly after `set_timesteps`.

    Raises:
        InputError: unknown name, or sigmas that do not fall strictly from at most 1 to 0.
        MissingDependencyError: diffusers is not installed.
    """
    check_sampler_name(name)
    sigmas = sigmas.detach().to("cpu", torch.float32)
    if sigmas.ndim != 1 or len(sigmas) < 2 or sigmas[-1] != 0 or sigmas[0] > 1 or not bool((sigmas.diff() < 0).all()):
        raise InputError(f"sigmas are {sigmas.tolist()[:8]}; a sampler needs values that fall from at most 1 to 0.")
    scheduler = _scheduler(name)
    scheduler.set_timesteps(len(sigmas) - 1)
    scheduler.sigmas = sigmas.clone() if name == "euler" else sigmas.clamp(max=_BELOW_ONE)
    scheduler.timesteps = 1000.0 * sigmas[:-1]
    scheduler.num_inference_steps = len(sigmas) - 1
    scheduler.set_begin_index(0)
    return Sampler(scheduler, sigmas)


def _scheduler(name: str) -> Any:
    package = "diffusers.schedulers"
    if name == "euler":
        return host_class(f"{package}.scheduling_flow_match_euler_discrete", "FlowMatchEulerDiscreteScheduler")()
    if name == "unipc":
        unipc = host_class(f"{package}.scheduling_unipc_multistep", "UniPCMultistepScheduler")
        return unipc(prediction_type="flow_prediction", use_flow_sigmas=True, solver_order=2)
    dpm = host_class(f"{package}.scheduling_dpmsolver_multistep", "DPMSolverMultistepScheduler")
    return dpm(prediction_type="flow_prediction", use_flow_sigmas=True, algorithm_type="dpmsolver++", solver_order=2)
