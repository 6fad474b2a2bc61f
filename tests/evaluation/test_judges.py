"""Faces, the vision-language judge against a local server, OpenS2V's parts."""

import json
import shutil
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import numpy as np
import pytest
from PIL import Image

from contextanyone_core.errors import InputError, MissingDependencyError
from contextanyone_core.media.video_io import write_clip
from evaluation import leaderboard, run
from evaluation.metrics import faces, opens2v, vlm
from evaluation.metrics.arcface import ArcFacePack, decode
from evaluation.metrics.catalogue import ASPECTS
from evaluation.metrics.statistics import summarise, summarise_sum

FULL = dict.fromkeys(ASPECTS, 8)


def said(content: object) -> str:
    text = content if isinstance(content, str) else json.dumps(content)
    return json.dumps({"choices": [{"message": {"content": text}}]})


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "not JSON",
        "[]",
        '{"choices": []}',
        '{"choices": [{"message": {"content": null}}]}',
        said("I would give it eight."),
        said([8, 8, 8]),
        said({**FULL, "face": 11}),
        said({**FULL, "face": -1}),
        said({**FULL, "face": "8"}),
        said({**FULL, "face": True}),
        said({**FULL, "face": None}),
        said({**FULL, "face": [8]}),
        said(dict.fromkeys(ASPECTS[1:], 8)),
        said({**FULL, "total": 8}),
        said(json.dumps(FULL).replace("8", "NaN", 1)),
        said("[" * 100_000),
    ],
)
def test_an_answer_of_another_form_is_none(answer):
    assert vlm.parse(answer) is None


def test_an_answer_of_the_asked_form_is_taken_as_it_is():
    found = {**FULL, "face": 3.5, "hair": "not visible"}
    assert vlm.parse(said(found)) == {**FULL, "face": 3.5, "hair": None}
    assert vlm.parse(said(f"```json\n{json.dumps(found)}\n```")) == {**FULL, "face": 3.5, "hair": None}


def test_scores_by_hand():
    one = dict.fromkeys(ASPECTS, 8.0) | {"face": 4.0, "hair": None}
    other = dict.fromkeys(ASPECTS, 6.0) | {"body": None}
    found = vlm.judged_numbers([one, other])
    assert found["vlm_face"] == 5
    assert found["vlm_top"] == 7
    assert {"vlm_hair", "vlm_body"} & found.keys() == set()  # seen in one order only
    assert found["vlm_appearance"] == pytest.approx((5 + 7 + 7 + 7) / 4)
    assert found["vlm_order_gap"] == 2
    assert found["vlm_valid"] == 1
    assert vlm.judged_numbers([one, None]) == {"vlm_valid": 0.5}


@pytest.fixture
def server():
    """A local server with OpenAI's interface; `answers` are given in turn, the requests kept."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self.server.requests.append((self.path, body))
            status, text = self.server.answers[(len(self.server.requests) - 1) % len(self.server.answers)]
            self.send_response(status)
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *words):
            pass

    http = HTTPServer(("127.0.0.1", 0), Handler)
    http.requests, http.answers = [], [(200, said(FULL))]
    thread = threading.Thread(target=http.serve_forever, daemon=True)
    thread.start()
    yield http
    http.shutdown()
    http.server_close()
    thread.join()


@pytest.fixture
def line(tmp_path, server) -> list[str]:
    """The command's words for one system of two clips."""
    rows = []
    for index, shade in enumerate((60, 200)):
        name = f"{index}.mp4"
        Image.new("RGB", (32, 48), (shade, 0, 0)).save(tmp_path / f"{index}.png")
        (tmp_path / "ours").mkdir(exist_ok=True)
        frames = np.stack([np.full((32, 32, 3), shade + step, np.uint8) for step in range(9)])
        write_clip(tmp_path / "ours" / name, frames, {})
        row = {"id": f"i{index}", "reference": f"{index}.png", "later": "It walks.", "seed": 0, "file": name}
        rows.append(json.dumps(row))
    (tmp_path / "set.jsonl").write_text("\n".join(rows))
    address = f"http://127.0.0.1:{server.server_port}/v1"
    words = ["--set", str(tmp_path / "set.jsonl"), "--videos", f"ours={tmp_path / 'ours'}"]
    return [*words, "--out", str(tmp_path / "out"), "--vlm", address, "--vlm-model", "judge"]


def test_the_judge_is_asked_in_both_orders_and_raw_answers_are_kept(line, server, tmp_path):
    server.answers = [(200, said(FULL)), (200, said({**FULL, "face": 2}))]
    assert run.main(line) == 0
    numbers = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert numbers["vlm_face"]["ours"] == {"i0": 5, "i1": 5}
    assert numbers["vlm_order_gap"]["ours"]["i0"] == 1
    path, body = server.requests[0]
    assert path == "/v1/chat/completions"
    assert (body["model"], body["temperature"]) == ("judge", 0)
    shown = [[part["image_url"]["url"] for part in request["messages"][0]["content"] if "image_url" in part]
             for _, request in server.requests[:2]]  # fmt: skip
    assert shown[0][0] == shown[1][0]  # the reference comes first in both
    assert shown[0][1:] == shown[1][1:][::-1]
    assert len(shown[0]) == 1 + vlm.FRAMES
    kept = [json.loads(file.read_text()) for file in (tmp_path / "out" / "vlm").iterdir()]
    assert {record["answer"] for record in kept} == {text for _, text in server.answers}
    asked = len(server.requests)
    assert run.main(line) == 0
    assert len(server.requests) == asked


def test_malformed_answers_are_counted_and_never_replaced(line, server, tmp_path):
    server.answers = [(200, said(FULL)), (200, "<html>")]
    assert run.main(line) == 0
    numbers = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert numbers["vlm_valid"]["ours"] == {"i0": 0.5, "i1": 0.5}
    assert "vlm_appearance" not in numbers


def test_a_server_that_refuses_is_one_line_and_what_came_is_kept(line, server, tmp_path, capsys):
    server.answers = [(200, said(FULL)), (503, "busy")]
    assert run.main(line) == 2
    assert "503" in capsys.readouterr().err
    server.answers = [(404, '{"error": "there is no model\\n judge"}'), (503, "")]
    for words in ('404 Not Found: {"error": "there is no model', "503 Service Unavailable: nothing."):
        assert run.main(line) == 2
        assert words in capsys.readouterr().err
    server.answers = [(200, said(FULL))]
    assert run.main(line) == 0
    assert len(list((tmp_path / "out" / "vlm").iterdir())) == len(server.requests) - 3
    elsewhere = [*line[:-3], "http://127.0.0.1:9/v1", *line[-2:]]
    assert run.main([*elsewhere[:5], str(tmp_path / "new"), *elsewhere[6:]]) == 2
    assert "cannot be reached" in capsys.readouterr().err.splitlines()[-1]


def test_a_server_without_a_model_is_refused(line, capsys):
    assert run.main(line[:-2]) == 2
    assert "--vlm-model" in capsys.readouterr().err


def test_opens2vs_published_rules_and_their_faults():
    steady, flicker = [0.8] * 8, [0.8, *[None] * 7]
    assert opens2v.nexus_mean(steady) == pytest.approx(opens2v.nexus_mean(flicker)) == pytest.approx(0.8)
    assert opens2v.nexus_published(steady) == pytest.approx(0.1)
    assert opens2v.nexus_published(flicker) > opens2v.nexus_published(steady)  # the fault: flicker scores higher
    assert opens2v.nexus_mean([None]) == opens2v.nexus_published([None]) == 0
    assert opens2v.face_published([0.5, None, -0.2, 0.0]) == 0.5  # the fault: turning away costs nothing
    assert opens2v.face_published([None, -0.1]) == 0
    hidden = opens2v.Parts(face_frames=[None] * 8)
    assert opens2v.scores(hidden) == {"opens2v_face": 0.0}  # a clip without a face is one of the mean
    assert opens2v.scores(opens2v.Parts()) == {}


def test_opens2vs_total_is_the_leaderboards():
    """Phantom-1.3B's published row gives its published total."""
    row = {"aesthetics": 0.4667, "smoothness": 0.9330, "amplitude": 0.1429, "face": 0.4856, "gme": 0.6943}
    row |= {"nexus": 0.4248, "natural": 0.6250}
    columns = [(weight, {"i": row[part]}) for part, weight in opens2v.WEIGHTS.items()]
    assert summarise_sum(columns, {"i": "r"}).mean == pytest.approx(0.5489, abs=2e-4)
    assert sum(opens2v.WEIGHTS.values()) == pytest.approx(1)


def test_a_sum_of_means_by_hand_and_its_interval_over_references():
    one = {f"{index}": float(index) for index in range(12)}
    few = {"3": 5.0, "4": 7.0}
    found = summarise_sum([(0.5, one), (2.0, few)], {item: f"r{item}" for item in one})
    assert found.mean == pytest.approx(0.5 * 5.5 + 2 * 6)
    assert (found.items, found.references) == (2, 12)
    assert found.low < found.mean < found.high
    alone = summarise_sum([(1.0, one)], {item: f"r{item}" for item in one})
    assert alone == summarise(one, {item: f"r{item}" for item in one})


def test_parts_of_a_file_reach_the_tables_and_the_total_is_of_their_means(line, tmp_path, capsys):
    words = line[:-4]
    part = {"nexus_frames": [0.5, None], "face_frames": [0.4, None]}
    (tmp_path / "parts.json").write_text(json.dumps({"ours": {"i0": part}}))
    assert run.main([*words, "--parts", str(tmp_path / "parts.json")]) == 0
    numbers = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert numbers["nexus_mean"] == {"ours": {"i0": 0.5}}
    missing = "No total of OpenS2V for ours: no item has aesthetics, smoothness, amplitude, gme, natural."
    assert missing in (tmp_path / "out" / "table.md").read_text()
    rest = {"aesthetics": 0.5, "smoothness": 0.9, "amplitude": 0.1, "gme": 0.7}
    half = {"natural": 0.6, "aesthetics": 0.7}  # no item has all parts
    (tmp_path / "parts.json").write_text(json.dumps({"ours": {"i0": part | rest, "i1": half}}))
    assert run.main([*words, "--parts", str(tmp_path / "parts.json")]) == 0
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    total = summary["metrics"]["opens2v_total"]["ours"]
    assert total["mean"] == pytest.approx(0.16 * 0.6 + 0.054 + 0.002 + 0.08 + 0.084 + 0.1 + 0.144)
    assert total["items"] == 1
    assert summary["metrics"]["opens2v_aesthetics"]["ours"]["items"] == 2
    assert any("aesthetics 2, smoothness 1" in note for note in summary["notes"])
    for wrong, reason in (("{", "cannot be read"), ('{"ours": {"i0": {"gme": 7}}}', "ours.i0.gme")):
        (tmp_path / "parts.json").write_text(wrong)
        assert run.main([*words, "--parts", str(tmp_path / "parts.json")]) == 2
        assert reason in capsys.readouterr().err
    for wrong, reason in (({"theirs": {}}, "theirs"), ({"ours": {"i9": {}}}, "i9")):
        (tmp_path / "parts.json").write_text(json.dumps(wrong))
        assert run.main([*words, "--parts", str(tmp_path / "parts.json")]) == 2
        assert reason in capsys.readouterr().err


def test_a_frozen_clip_gains_nothing_of_the_judge_or_of_opens2v_where_motion_is_matched(line, server, tmp_path):
    (tmp_path / "frozen").mkdir()
    for name in ("0.mp4", "1.mp4"):
        texture = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        moving = np.stack([np.roll(texture, 3 * step, axis=1) for step in range(9)])
        write_clip(tmp_path / "ours" / name, moving, {})
        write_clip(tmp_path / "frozen" / name, np.stack([texture] * 9), {})
    part = {"nexus_frames": [0.5], "face_frames": [0.4]}
    parts = {system: dict.fromkeys(("i0", "i1"), part) for system in ("ours", "frozen")}
    (tmp_path / "parts.json").write_text(json.dumps(parts))
    videos = [*line[:4], f"frozen={tmp_path / 'frozen'}", *line[4:]]
    assert run.main([*videos, "--base", "ours", "--parts", str(tmp_path / "parts.json")]) == 0
    found = json.loads((tmp_path / "out" / "metrics.json").read_text())
    for name, value in (("vlm_appearance", 8), ("nexus_mean", 0.5), ("opens2v_face", 0.4)):
        assert found[name]["frozen"] == {"i0": value, "i1": value}
        assert found[f"{name}_matched"]["frozen"] == {"i0": 0, "i1": 0}
        assert found[f"{name}_matched"]["ours"] == {"i0": value, "i1": value}
    assert "| vlm_appearance_matched |" in (tmp_path / "out" / "table.md").read_text()


def test_face_numbers_by_hand():
    found = faces.face_numbers("far", [1.0, 0.5, None, 0.0])
    assert found == pytest.approx({"face_far": 0.5, "face_far_found": 0.75, "face_far_all": 1.5 / 4})
    assert faces.face_numbers("far", [None]) == {"face_far_found": 0, "face_far_all": 0}


class OneShade:
    """Finds a face in pictures that are brighter than a shade, and counts the pictures that it is shown."""

    name, revision = "shade", "1"

    def __init__(self, shade: int) -> None:
        self.shade, self.shown = shade, []

    def describe(self, frame):
        self.shown.append(frame.shape)
        return np.ones(2, np.float32) if frame[..., 0].mean() > self.shade else None

    def similarity(self, one, other):
        return 1.0


@pytest.mark.parametrize(("shade", "without"), [(0, []), (130, ["i0"]), (255, ["i0", "i1"])])
def test_references_without_a_face_are_named_and_a_still_is_searched_once(line, tmp_path, monkeypatch, shade, without):
    model = OneShade(shade)
    monkeypatch.setattr(faces, "load_faces", lambda choice: model)
    assert run.main([*line[:-4], "--faces", "dlib"]) == 0
    found = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert {"i0", "i1"} - found.get("face_shade_all", {}).get("ours", {}).keys() == set(without)
    text = (tmp_path / "out" / "table.md").read_text()
    said = f"shade finds no face in the reference of {', '.join(without)}: of {len(without)} of 2 items"
    assert (said in text) is bool(without)
    assert ("no face" in text) is bool(without)
    assert model.shown.count((48, 32, 3)) == 2 + (2 - len(without))  # once as a reference, once as the still row


def test_scrfd_is_decoded_by_hand():
    outputs = []
    for kind in (1, 4, 10):
        outputs += [np.zeros((1, (640 // stride) ** 2 * 2, kind), np.float32) for stride in (8, 16, 32)]
    anchor = 2 * (40 * 3 + 5)  # of stride 16: row 3, column 5, at (80, 48)
    outputs[1][0, anchor] = 0.9
    outputs[4][0, anchor] = [1, 2, 3, 1]
    outputs[7][0, anchor] = [0, 1] * 5
    boxes, points = decode(outputs)
    assert boxes.tolist() == [[64, 16, 128, 64]]
    assert points.shape == (1, 5, 2)
    assert points[0, 0].tolist() == [80, 64]


def test_a_wrong_face_model_is_one_line(tmp_path):
    with pytest.raises(InputError, match="it is dlib"):
        faces.load_faces("facenet")
    with pytest.raises((InputError, MissingDependencyError), match=r"det_|onnxruntime"):
        ArcFacePack(tmp_path)


def test_dlib_tells_a_mirrored_face_from_another():
    pytest.importorskip("dlib", reason="needs dlib-bin")
    pytest.importorskip("face_recognition_models", reason="needs face-recognition-models")
    data = pytest.importorskip("skimage.data", reason="needs a photograph: scikit-image's astronaut")
    model = faces.DlibFaces()
    face = data.astronaut()
    found, mirrored = model.describe(face), model.describe(np.ascontiguousarray(face[:, ::-1]) // 2)
    assert model.similarity(found, found) == 1
    assert model.similarity(found, mirrored) > 0.6
    assert model.describe(np.full((200, 200, 3), 127, np.uint8)) is None


def test_a_leaderboard_row_needs_everything(line, tmp_path, capsys):
    record = {"weights_sha256": "0" * 64, "sampler": "euler", "steps": 30, "seeds": [0], "hardware": "one card"}
    words = ["--results", str(tmp_path / "out"), "--system", "ours", "--record", str(tmp_path / "record.json")]
    words += ["--out", str(tmp_path / "row.json")]
    (tmp_path / "record.json").write_text(json.dumps(record))
    assert leaderboard.main(words) == 2  # no results yet
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "summary.json").write_text('{"metrics": {}, "systems": []}')
    assert leaderboard.main(words) == 2
    assert "summary.json has no notes" in capsys.readouterr().err
    shutil.rmtree(tmp_path / "out")
    assert run.main(line[:-4]) == 0
    assert leaderboard.main(words) == 2
    assert "has no judge" in capsys.readouterr().err
    assert run.main(line) == 0
    for name in record:
        (tmp_path / "record.json").write_text(json.dumps({key: value for key, value in record.items() if key != name}))
        assert leaderboard.main(words) == 2
        assert name in capsys.readouterr().err
    (tmp_path / "record.json").write_text(json.dumps({**record, "weights_sha256": "abc"}))
    assert leaderboard.main(words) == 2
    assert not (tmp_path / "row.json").exists()
    (tmp_path / "record.json").write_text(json.dumps(record))
    assert leaderboard.main([*words[:3], "theirs", *words[4:]]) == 2
    for row_of_every_table in ("(still reference)", "(another person)", "truth"):
        assert leaderboard.main([*words[:3], row_of_every_table, *words[4:]]) == 2
        assert "a floor or ceiling" in capsys.readouterr().err
    path = tmp_path / "out" / "summary.json"
    judged = path.read_text()
    unjudged = json.loads(judged)
    del unjudged["metrics"]["vlm_appearance"]["ours"]
    path.write_text(json.dumps(unjudged))
    assert leaderboard.main(words) == 2
    assert "no clip of which has a valid score" in capsys.readouterr().err
    path.write_text(judged)
    assert leaderboard.main(words) == 0
    row = json.loads((tmp_path / "row.json").read_text())
    assert row["steps"] == 30
    assert row["notes"] == json.loads(judged)["notes"] != []
    assert row["measured_with"]["judge"].startswith("judge, prompt SHA-256")
    assert row["metrics"]["vlm_appearance"]["mean"] == 8
