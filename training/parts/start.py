"""The network that a training of the transformer starts from: whole, or of each tensor one process's own rows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from contextanyone_core.config import ContextAnyoneConfig
from contextanyone_core.errors import InputError
from contextanyone_core.model.condition import resized_patch_weight
from contextanyone_core.model.initialisation import initial_tensors
from contextanyone_core.model.transformer import ContextAnyoneTransformer
from contextanyone_core.weights.checkpoint import load_transformer, open_transformer, require_finite
from contextanyone_core.weights.writer import OnDemand
from training.shares import Shares

_PATCHES = "patch_embedding.weight"


class StartFile:
    """A file with a transformer, as a training reads it: float32, with another config where its settings change it.

    Args:
        path: of any format that `load_transformer` reads.
        change: the config of the network that is trained, from the file's.
        plain: accept a backbone without Emphasize-Attention.

    Attributes:
        config: of the network that is trained.

    Raises:
        CheckpointError: as `load_transformer`.
        InputError: the settings ask for Emphasize-Attention, and the file has none.
    """

    def __init__(
        self, path: Path, change: Callable[[ContextAnyoneConfig], ContextAnyoneConfig], *, plain: bool
    ) -> None:
        self._path, self._plain = path, plain
        self._source, network = open_transformer(path, plain=plain)
        self.config = change(network.config)
        self._as_stored = self.config == network.config
        if self.config.emphasize and not network.config.emphasize:
            raise InputError(
                f"part.emphasize is true, and init.from {path} has no Emphasize-Attention; contextanyone init adds it."
            )

    def network(self) -> ContextAnyoneTransformer:
        """The whole network: the file's parameters that it has, and zeros for condition channels that it adds."""
        network = load_transformer(self._path, dtype=torch.float32, plain=self._plain)
        if self._as_stored:
            return network
        other = ContextAnyoneTransformer(self.config)
        state = network.state_dict()
        other.load_state_dict({name: self._sized(name, state[name]) for name in other.state_dict()})
        return other

    def shared(self, shares: Shares) -> ContextAnyoneTransformer:
        """The same on the meta device; of each tensor this process's rows are read and kept."""
        network = self.empty()
        if not self._as_stored:  # `network` draws too: what is drawn after it is the same in any number of processes
            for _ in initial_tensors(network):
                pass
        for name, place in network.named_parameters():
            rows = shares.rows(place.shape[0])
            shares.keep_rows(place, self._checked(name, self._source.read_rows(name, rows, torch.float32)))
        return network

    def tensors(self) -> OnDemand:
        """The network's tensors, each read when it is asked for."""
        return OnDemand(
            self.empty().state_dict(), lambda name: self._checked(name, self._source.read(name, torch.float32))
        )

    def empty(self) -> ContextAnyoneTransformer:
        """The network on the meta device."""
        return ContextAnyoneTransformer(self.config, device="meta")

    def _checked(self, name: str, tensor: Tensor) -> Tensor:
        require_finite(self._path, {name: tensor})
        return self._sized(name, tensor)

    def _sized(self, name: str, tensor: Tensor) -> Tensor:
        return resized_patch_weight(tensor, self.config.patch_channels) if name == _PATCHES else tensor


def new_network(config: ContextAnyoneConfig, shares: Shares | None) -> ContextAnyoneTransformer:
    """A newly initialised network; with `shares` on the meta device, where this process's rows of the same are kept."""
    if shares is None:
        return ContextAnyoneTransformer(config)
    network = ContextAnyoneTransformer(config, device="meta")
    places = dict(network.named_parameters())
    for name, tensor in initial_tensors(network):
        shares.keep(places[name], tensor)
    return network
