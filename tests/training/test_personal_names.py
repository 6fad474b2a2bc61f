"""Captions that name the person, and the same about anyone."""

import pytest

from contextanyone_core.errors import InputError
from training.personal.names import check_caption, check_class, without_name


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("A zuv woman.", "A woman."),
        ("An ape sees a zuv ape.", "An ape sees an ape."),
        ("The zuv ape", "The ape"),
        ("Zuv woman dances with A ZUV WOMAN", "Woman dances with A woman"),
    ],
)
def test_a_caption_without_the_name_is_about_anyone(caption, expected):
    class_name = expected.rstrip(".").split()[-1]
    assert without_name(caption, "zuv", class_name) == expected
    check_caption(caption, "zuv", class_name)


def test_a_class_is_a_noun_without_its_article():
    """Prompts begin with an article of their own: the trigger would be "zuv a woman"."""
    for name in ("a woman", "An old man", "the dancer"):
        with pytest.raises(InputError, match="begins with an article, and prompts add their own; give the noun alone"):
            check_class(name)
    for name in ("woman", "old man", "theatre director"):
        check_class(name)


@pytest.mark.parametrize("caption", ["A zuv woman; zuv smiles", "A zuv woman and Zuv's dog", "Zuv woman, a zuv"])
def test_a_caption_with_the_name_alone_is_refused(caption):
    with pytest.raises(InputError, match=r"has zuv without woman.*say 'zuv woman' each time"):
        check_caption(caption, "zuv", "woman")


@pytest.mark.parametrize("caption", ["A zuv womanly walk", "An azuv woman"])
def test_a_part_of_a_word_names_nobody(caption):
    with pytest.raises(InputError, match="does not name the person"):
        check_caption(caption, "zuv", "woman")
