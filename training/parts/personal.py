"""The section `part.personal` of a run: whose LoRA it trains, as its file's header states it."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from contextanyone_core.pose.body import body_of_lengths
from contextanyone_core.weights.personal_file import PersonalFile


class PersonalSettings(BaseModel):
    """A person: `contextanyone_core.weights.personal_file.PersonalFile` has the fields.

    Attributes:
        name: the identifier in the captions. class_name: what the person is; in YAML the key is `class`.
        caption: what the captions begin with.
        bones: bone lengths in pixels, null where one is not known; None if nothing is.
        preset: what was trained. strength: what of the trained LoRA the file, and the run's samples, have as 1.
        license, consent: as the user wrote them.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    name: str = Field(min_length=1)
    class_name: str = Field(min_length=1, alias="class")
    caption: str = Field(min_length=1)
    bones: tuple[float | None, ...] | None = None
    preset: str = "paper"
    strength: float = Field(1.0, gt=0, le=1)
    license: str = "unknown"
    consent: str = ""

    def described(self, base_hash: str) -> PersonalFile:
        """The person as a file states it.

        Args:
            base_hash: SHA-256 of the file that the LoRA is trained on.

        Raises:
            InputError: the bone lengths are none.
        """
        body = None if self.bones is None else body_of_lengths(list(self.bones))
        fields = ("name", "class_name", "caption", "preset", "strength", "license", "consent")
        return PersonalFile(**{field: getattr(self, field) for field in fields}, base_hash=base_hash, body=body)
