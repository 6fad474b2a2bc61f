"""The header of personal files: written, read back, and refused where it is not complete."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from contextanyone_core.errors import CheckpointError, InputError
from contextanyone_core.pose.body import PERSONAL_KEY, Body, read_personal_body
from contextanyone_core.weights.personal_file import PersonalFile, read_personal_file

LENGTHS = np.array([20.0, 20, 30, 25, 30, 25, 50, 40, 38, 50, 40, 38, 24, np.nan, np.nan, np.nan, np.nan])
ZUV = PersonalFile("zuv", "woman", "A zuv woman", "ab" * 32, Body(LENGTHS), "strong", 0.7, "CC0", "signed in June, Zoë")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "zuv.safetensors"


def write(path, metadata):
    save_file({"x": np.zeros(1, np.float32)}, path, metadata)


def test_what_is_written_is_read_back(path):
    write(path, ZUV.metadata())
    found = read_personal_file(path)
    texts = ("name", "class_name", "caption", "base_hash", "preset", "license", "consent", "trigger", "strength")
    assert [getattr(found, text) for text in texts] == [getattr(ZUV, text) for text in texts]
    assert found.trigger == "zuv woman"
    np.testing.assert_array_equal(found.body.lengths, LENGTHS)
    np.testing.assert_array_equal(read_personal_body(path).lengths, LENGTHS)


def test_the_header_is_the_published_form(path):
    stated = json.loads(ZUV.metadata()[PERSONAL_KEY])
    assert PERSONAL_KEY == "contextanyone.personal"
    assert set(stated) == {"name", "class", "caption", "base", "bones", "preset", "strength", "license", "consent"}
    assert (stated["class"], len(stated["bones"])) == ("woman", 17)


def test_a_body_may_be_unknown(path):
    write(path, PersonalFile("zuv", "man", "A zuv man", "").metadata())
    assert read_personal_file(path).body is None


def test_a_file_of_before_holds_what_was_trained(path):
    stated = json.loads(ZUV.metadata()[PERSONAL_KEY])
    del stated["strength"]
    write(path, {PERSONAL_KEY: json.dumps(stated)})
    assert read_personal_file(path).strength == 1.0


def test_other_headers_are_refused(path):
    whole = json.loads(ZUV.metadata()[PERSONAL_KEY])
    cases = [
        ({}, "is no personal file"),
        ({PERSONAL_KEY: "{"}, "not JSON"),
        ({PERSONAL_KEY: "[" * 100_000}, "not JSON"),
        ({PERSONAL_KEY: "[]"}, "lacks name, class, caption, base, preset, license, consent"),
        ({PERSONAL_KEY: json.dumps(whole | {"class": 3})}, "lacks class;"),
        ({PERSONAL_KEY: json.dumps(whole | {"name": " "})}, "lacks name;"),
        ({PERSONAL_KEY: json.dumps(whole | {"bones": [1]})}, "17 numbers above 0"),
        *(
            ({PERSONAL_KEY: json.dumps(whole | {"strength": wrong})}, "strength in .* is not above 0 and at most 1")
            for wrong in (0, 1.5, "0.7", True, None)
        ),
    ]
    for metadata, message in cases:
        write(path, metadata)
        with pytest.raises(InputError, match=message):
            read_personal_file(path)
    path.write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(CheckpointError, match="GGUF"):
        read_personal_file(path)
