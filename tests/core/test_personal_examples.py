"""The personal files that come with the pack: small, of the shipped base, of people who were drawn."""

from pathlib import Path

import pytest

from contextanyone_core.weights.checkpoint import load_transformer
from contextanyone_core.weights.file_hash import sha256_of
from contextanyone_core.weights.lora import load_lora
from contextanyone_core.weights.personal_file import read_personal_file

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = sorted((ROOT / "assets" / "personal").glob("*.safetensors"))
MINIATURE = ROOT / "contextanyone_core" / "miniature"


def test_there_are_two():
    assert len(EXAMPLES) == 2


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_says_that_its_person_is_drawn(path):
    person = read_personal_file(path)
    assert path.stat().st_size < 1_000_000
    assert (person.trigger, person.caption, person.preset) == ("zuv person", "A zuv person", "miniature")
    assert person.license == "Apache-2.0"
    assert "drawn" in person.consent
    assert "Not a real person" in person.consent
    assert person.body is not None


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_of_the_shipped_base(path):
    """A base that was trained anew needs its examples trained anew: docs/PERSONAL.md says how."""
    base = MINIATURE / "transformer.safetensors"
    assert read_personal_file(path).base_hash == sha256_of(base)
    lora = load_lora(path, load_transformer(base))
    assert {"text_embedding.0", "text_embedding.2", "blocks.0.cross_attn.q"} <= set(lora.updates)
    assert not lora.unknown
    assert read_personal_file(path).strength == 0.7
    assert {round(update.scale, 6) for update in lora.updates.values()} == {0.7}  # rank and alpha were 16


def test_all_shipped_weights_are_at_most_60_megabytes():
    weights = [*MINIATURE.glob("*.safetensors"), *EXAMPLES]
    assert sum(path.stat().st_size for path in weights) <= 60e6
