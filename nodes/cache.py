"""The node that says where the reference cache is kept."""

from __future__ import annotations

from comfy_api.latest import io

from ._comfy.cache import DEVICES, DTYPES, with_cache
from ._comfy.types import Model
from .inputs import CATEGORY, check_choice


class ContextAnyoneCache(io.ComfyNode):
    """Device and dtype of the reference cache."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="ContextAnyoneCache",
            display_name="ContextAnyone Cache",
            category=CATEGORY,
            description="Where the references are kept during sampling. They are computed once and read in every step: "
            "0.6 GiB for a picture at 832 x 480. Without this node that is the GPU, in the model's own precision.",
            search_aliases=["contextanyone", "reference cache", "kv cache", "vram", "low memory", "offload"],
            inputs=[
                io.Model.Input("model", tooltip="From Load ContextAnyone, through LoRA loaders if you like."),
                io.Combo.Input(
                    "device",
                    options=DEVICES,
                    default="auto",
                    tooltip="gpu: fastest. cpu: in the computer's memory, copied block by block in every step. off: "
                    "nothing is kept, every step computes the references anew. auto: gpu if all fits, else cpu.",
                ),
                io.Combo.Input(
                    "dtype",
                    options=DTYPES,
                    default="default",
                    tooltip="default: as computed, the same video bit for bit. int8: half of bf16's memory; each "
                    "number is off by at most 1/254 of the largest of its channel.",
                ),
            ],
            outputs=[io.Model.Output(display_name="model", tooltip="For Apply ContextAnyone, LoRA loaders, samplers.")],
            has_intermediate_output=True,  # its note comes with every run, also where the node is cached
        )

    @classmethod
    def execute(cls, model: Model, device: str = "auto", dtype: str = "default") -> io.NodeOutput:
        """Set where and how.

        Raises:
            InputError: no MODEL of ours, or an unknown choice.
        """
        check_choice("device", device, DEVICES)
        check_choice("dtype", dtype, DTYPES)
        kept, note = with_cache(model, device, dtype)
        return io.NodeOutput(kept, ui=note)
