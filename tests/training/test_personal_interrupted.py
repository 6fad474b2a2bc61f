"""Ctrl-C of `personalize.py` outside of its training, which saves by itself: one says how to go on."""

import pytest

from training.personalize import main


@pytest.mark.parametrize(
    ("work", "said"), [(False, "Nothing is written yet; the same command begins again."), (True, "Saved in ")]
)
def test_ctrl_c_outside_of_the_training_says_how_to_go_on(tmp_path, monkeypatch, capsys, caplog, work, said):
    """While poses and masks are found, and while the sheet is drawn, there is no checkpoint to save."""

    def interrupted(*_):
        if work:
            (tmp_path / "me.work").mkdir()
        raise KeyboardInterrupt

    (tmp_path / "me.mp4").write_bytes(b"a clip")
    options = {"--clip": tmp_path / "me.mp4", "--class": "person", "--out": tmp_path / "me.safetensors"}
    caplog.set_level("INFO")
    monkeypatch.setattr("training.personal.command.prepare", interrupted)
    command = [str(word) for pair in options.items() for word in pair]
    assert main([*command, "--preset", "miniature"]) == 130
    assert said in caplog.text
    assert capsys.readouterr().err.splitlines()[-1] == "personalize.py: interrupted"
