"""The prompts of a personal run that are no captions of its clips: the person in other places, and their class."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from contextanyone_core.model.transfer import moved
from training.data.batches import CachedData
from training.data.named import NamedRows, named_rows
from training.data.settings import DataSettings
from training.parts.personal import PersonalSettings


class PersonPrompts:
    """The prompts' embeddings, how they are drawn, and which tokens of a prompt name the person.

    Args:
        data: the run's rows. settings: their section. text_len: of the network.
        person: None where nothing needs to know which tokens name them.
        elsewhere: share of the samples whose caption is replaced. prior: whether there are prompts of the class.

    Attributes:
        elsewhere: (N, text_len, D), the person in other places; None where no caption is replaced.
        prior: (M, text_len, D), the same places with anyone of the class, and then the captions without the name.
    """

    def __init__(
        self,
        data: CachedData,
        settings: DataSettings,
        text_len: int,
        person: PersonalSettings | None,
        *,
        elsewhere: float,
        prior: bool,
    ) -> None:
        self._settings, self._person, self._share = settings, person, elsewhere
        self.prior = data.prior_texts(text_len).float() if prior else None
        self.elsewhere = data.elsewhere_texts(text_len).float() if elsewhere else None

    @cached_property
    def named(self) -> NamedRows | None:
        """What names the person in the run's prompts."""
        return self.named_in(self._settings)

    def named_in(self, settings: DataSettings) -> NamedRows | None:
        """What names the person in the prompts of other rows."""
        return None if self._person is None else named_rows(settings, self._person.name, self._person.class_name)

    def in_other_places(self, batch: Any, generator: torch.Generator) -> Any:
        """The batch with the captions of some samples replaced by prompts of the person elsewhere.

        The loss is the person's alone where the background weighs nothing, so a place that the clip does not show costs
        nothing, and only the name is there in every prompt.
        """
        if self.elsewhere is None:
            return batch
        own = batch["video_text"].float()
        count, device = len(own), own.device
        elsewhere = torch.rand(count, generator=generator) < self._share
        if self.named is not None:  # what shows somebody else keeps its caption
            elsewhere &= torch.tensor([bool(rows) for rows in batch["named"]])
        chosen = torch.randint(len(self.elsewhere), (count,), generator=generator)
        drawn = moved(self.elsewhere[chosen], device)
        found = batch | {"places": torch.where(elsewhere, chosen, -1)}
        found |= {"video_text": torch.where(moved(elsewhere, device)[:, None, None], drawn, own)}
        if self.named is not None:
            rows = zip(elsewhere.tolist(), chosen.tolist(), batch["named"], strict=True)
            found["named"] = [self.named.elsewhere[place] if other else named for other, place, named in rows]
        return found

    def of_class(self, count: int, generator: torch.Generator) -> Tensor:
        """So many prompts of the class; where there are captions without the name, half of them are of these."""
        assert self.prior is not None
        texts, captions = self.prior, len(self._settings.prior_captions)
        chosen = torch.randint(len(texts) - captions, (count,), generator=generator)
        if captions:
            own = torch.randint(len(texts) - captions, len(texts), (count,), generator=generator)
            chosen = torch.where(torch.rand(count, generator=generator) < 0.5, own, chosen)
        return texts[chosen]

    def beside(self, batch: Any, count: int, generator: torch.Generator) -> Tensor:
        """Prompts of the class for the first samples, of the places that `in_other_places` chose for them."""
        assert self.prior is not None
        texts = self.of_class(count, generator)
        if "places" not in batch:
            return texts
        places = batch["places"][:count]
        return torch.where((places >= 0)[:, None, None], self.prior[places.clamp(min=0)], texts)
