"""Names of samplers and guidances, for the command line too: torch is not imported here."""

from __future__ import annotations

from ..errors import InputError, did_you_mean

GUIDANCES = ("cfg", "dual")
SAMPLERS = ("euler", "unipc", "dpmpp_2m")


def check_sampler_name(name: str) -> str:
    """The name itself.

    Raises:
        InputError: there is no such sampler; the message lists all and the nearest.
    """
    if name in SAMPLERS:
        return name
    near = did_you_mean(name.replace("++", "pp").replace(" ", "_"), SAMPLERS)
    raise InputError(f"There is no sampler {name!r}; use one of {', '.join(SAMPLERS)}.{near}")
