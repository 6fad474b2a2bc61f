"""Reading keypoints: OpenPose's frames, POSE_KEYPOINT, COCO, a manifest's safetensors; several people; refusals."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from pose_cases import at, dances, figure, frame, person, read, sequence
from safetensors.numpy import load_file, save_file

from contextanyone_core.errors import InputError
from contextanyone_core.pose.openpose import frames_of, to_json
from contextanyone_core.pose.pose_file import pose_file_bytes
from contextanyone_core.pose.reading import PoseSource, is_keypoints, poses_of, read_poses
from contextanyone_core.pose.sequence import BODY_18

BODY_25 = (*BODY_18[:8], "mid_hip", *BODY_18[8:], *("left_big_toe", "left_small_toe", "left_heel"),
           *("right_big_toe", "right_small_toe", "right_heel"))  # fmt: skip
COCO = (
    *("nose", "left_eye", "right_eye", "left_ear", "right_ear", "left_shoulder", "right_shoulder", "left_elbow"),
    *("right_elbow", "left_wrist", "right_wrist", "left_hip", "right_hip", "left_knee", "right_knee", "left_ankle"),
    "right_ankle",
)


def test_openposes_own_frames_of_25_points_as_a_folder(tmp_path):
    """One file a frame without a canvas, in natural order; other files and hidden ones are no frames."""
    for number in (9, 10, 11):
        body = np.zeros((25, 3))
        for index, name in enumerate(BODY_25):
            body[index] = (number, index, 0.9) if name in BODY_18 else (500, 500, 1)
        content = {"version": 1.3, "people": [person(body, hand_left_keypoints_2d=[], face_keypoints_2d=[])]}
        (tmp_path / f"clip_{number}_keypoints.json").write_text(json.dumps(content))
    (tmp_path / "._clip_9_keypoints.json").write_text("junk")
    (tmp_path / "notes.txt").write_text("junk")
    assert is_keypoints(tmp_path)
    poses = read_poses(tmp_path, PoseSource(canvas=(480, 832), fps=30.0))
    assert (poses.height, poses.width, poses.fps) == (480, 832, 30)
    assert poses.body[:, 1, 0].tolist() == [9, 10, 11]
    assert poses.body[0, :, 1].tolist() == [BODY_25.index(name) for name in BODY_18]
    assert poses.hands is None
    with pytest.raises(InputError, match=r"contextanyone pose .* --canvas WIDTHxHEIGHT --out poses.json"):
        read_poses(tmp_path, PoseSource())


def test_pose_keypoint_in_pixels_and_in_shares_are_the_same(tmp_path):
    """controlnet_aux gives shares of the canvas, score 1, a missing joint as zeros, hands and face as None."""
    body = figure()
    body[4] = 0
    shares = body / (832, 480, 1)
    none = {"hand_left_keypoints_2d": None, "hand_right_keypoints_2d": None, "face_keypoints_2d": None}
    pixels = read(tmp_path, [frame(person(body))] * 2)
    shared = read(tmp_path, [frame(person(shares, **none))] * 2)
    np.testing.assert_allclose(shared.whole, pixels.whole, atol=1e-9)
    assert (shared.body[:, 4] == 0).all()
    assert shared.hands is None
    assert shared.num_frames == 2


def test_shares_without_a_canvas_lie_on_the_one_that_is_stated(tmp_path):
    """OpenPose writes shares with --keypoint_scale 3."""
    poses = read(tmp_path, {"people": [person(figure() / (832, 480, 1))]}, canvas=(480, 832))
    np.testing.assert_allclose(poses.body[0], figure(), atol=1e-9)


def test_shares_are_told_from_pixels_by_the_largest_value_of_the_whole_clip(tmp_path):
    near = figure() * 0
    near[0] = (0.5, 0.5, 1)  # half a pixel from the corner
    poses = read(tmp_path, [frame(person(near)), frame(person(figure()))])
    assert poses.body[0, 0].tolist() == [0.5, 0.5, 1]
    out = figure() / (832, 480, 1)
    out[4, 0] = 1.2  # a hand outside of the picture
    assert read(tmp_path, [frame(person(out))]).body[0, 4, 0] == pytest.approx(1.2 * 832)


def test_a_joint_at_zero_is_missing_whatever_its_score(tmp_path):
    body = figure()
    body[4] = (0, 0, 1)
    assert (read(tmp_path, [frame(person(body))]).body[0, 4] == 0).all()


def with_flat(change, **more):
    """Three frames of a person, of whose 18 points the second one's are changed by place in the flat list."""
    flat = figure().reshape(-1).tolist()
    for place, value in change.items():
        flat[place] = value
    return [frame(person(figure())), frame({"pose_keypoints_2d": flat, **more}), frame(person(figure()))]


@pytest.mark.parametrize("nulls", [(12, 13, 14), (12, 13), (12,), (13,)])
def test_a_joint_of_nulls_is_missing(tmp_path, nulls):
    poses = read(tmp_path, with_flat(dict.fromkeys(nulls)))
    assert (poses.body[1, 4] == 0).all()
    assert (np.delete(poses.body[1], 4, axis=0) == np.delete(figure(), 4, axis=0)).all()


def test_numbers_that_are_not_finite_are_refused_with_frame_and_joint(tmp_path):
    for place, value in ((12, np.nan), (13, np.inf), (14, None), (14, np.nan)):
        with pytest.raises(InputError, match=r"not finite \(frame 1, right_wrist\); a missing joint is 0, 0, 0"):
            read(tmp_path, with_flat({place: value}))
    hand = [1.0] * 63
    hand[5 * 3] = np.nan
    with pytest.raises(InputError, match=r"hand_left_keypoints_2d .*not finite \(frame 1, point 5\)"):
        read(tmp_path, with_flat({}, hand_left_keypoints_2d=hand))
    entries = results([7, 8])
    entries[0]["keypoints"][3 * COCO.index("left_hip")] = np.nan
    with pytest.raises(InputError, match=r"not finite \(image 8, left_hip\)"):
        read(tmp_path, entries, canvas=(480, 832))
    entries[0]["keypoints"][3 * COCO.index("left_hip")] = None
    assert (read(tmp_path, entries, canvas=(480, 832)).body[1, BODY_18.index("left_hip")] == 0).all()
    body = np.ones((3, 18, 3), np.float32)
    body[2, 4, 1] = np.nan
    path = tmp_path / "pose.safetensors"
    save_file({"keypoints": body}, path, {"layout": "body18", "width": "64", "height": "64", "fps": "16"})
    with pytest.raises(InputError, match=r"not finite \(frame 2, right_wrist\)"):
        read_poses(path, PoseSource())


@pytest.mark.parametrize("form", ["openpose", "coco"])
def test_scores_in_percent_are_told_by_the_largest_one_of_the_clip(tmp_path, form):
    def scored(factor):
        if form == "coco":
            entries = results([1, 2, 3])
            for entry in entries:
                entry["keypoints"][2::3] = [0.8 * factor] * 17
            entries[0]["keypoints"][2] = 0.05 * factor
            return entries
        bodies = [figure() * (1, 1, 0.8 * factor) for _ in range(3)]
        bodies[1][0, 2] = 0.05 * factor
        return [frame(person(body)) for body in bodies]

    one, percent = (read(tmp_path, scored(factor), canvas=(480, 832)).body for factor in (1, 100))
    np.testing.assert_allclose(percent, one, atol=1e-9)
    assert sorted({round(score, 6) for score in one[..., 2].flat} - {0}) == [0.05, 0.8]
    assert read(tmp_path, scored(2), canvas=(480, 832)).body[..., 2].max() == 1
    with pytest.raises(InputError, match=r"largest score is 800; scores from 0 to 1, or from 0 to 100"):
        read(tmp_path, scored(1000), canvas=(480, 832))


def test_hands_and_face_are_read(tmp_path):
    hand = np.arange(63.0).reshape(21, 3) / 10 + 1
    hand[:, 2] = 0.8
    face = np.tile((100.9, 100.9, 0.9), (68, 1))
    more = {
        "hand_right_keypoints_2d": hand.reshape(-1).tolist(),
        "face_keypoints_2d": face.reshape(-1).tolist(),
        "foot_keypoints_2d": [1.0] * 18,
    }
    poses = read(tmp_path, [frame(person(figure(), **more))])
    np.testing.assert_allclose(poses.hands[0, 1], hand)
    assert (poses.hands[0, 0] == 0).all()
    np.testing.assert_allclose(poses.face[0, :68], face)
    assert (poses.face[0, 68:] == 0).all()


@given(dances(missing=True))
@settings(deadline=None, max_examples=25)
def test_json_and_safetensors_come_back_as_they_were(tmp_path_factory, poses):
    hands = np.random.default_rng(0).uniform(0.4, 0.9, (poses.num_frames, 2, 21, 3)) * (800, 400, 1)
    folder = tmp_path_factory.mktemp("poses")
    for given_poses in (poses, sequence(poses.body, hands=hands, face=np.ones((poses.num_frames, 70, 3)))):
        (folder / "a.json").write_text(json.dumps(to_json(given_poses)))
        (folder / "a.safetensors").write_bytes(pose_file_bytes(given_poses))
        if not (poses.body[..., 2] > 0).any():
            continue
        for name in ("a.json", "a.safetensors"):
            again = read_poses(folder / name, PoseSource())
            assert (again.width, again.height, again.fps) == (832, 480, 16)
            assert (again.hands is None, again.face is None) == (given_poses.hands is None, given_poses.face is None)
            shown = (given_poses.body[..., 2] > 0).any(axis=1)  # without a body there is nobody in a frame of JSON
            kept = shown if name == "a.json" else slice(None)
            np.testing.assert_allclose(again.whole[kept], given_poses.whole[kept], atol=1e-3)


def test_cocos_annotations_and_results(tmp_path):
    body = figure()
    points = np.array([body[BODY_18.index(name)] for name in COCO])
    points[:, 2] = 2
    points[COCO.index("left_wrist")] = (3, 3, 1)
    points[COCO.index("right_wrist")] = (9, 9, 0)
    entry = {"keypoints": points.reshape(-1).tolist(), "category_id": 1}
    images = [
        {"id": 7, "file_name": "f10.jpg", "height": 480, "width": 832},
        {"id": 9, "file_name": "f9.jpg", "height": 480, "width": 832},
    ]
    poses = read(tmp_path, {"images": images, "annotations": [entry | {"image_id": 9}]})
    assert poses.num_frames == 2
    assert poses.body[0, BODY_18.index("left_wrist")].tolist() == [3, 3, 1]
    assert (poses.body[0, BODY_18.index("right_wrist")] == 0).all()
    np.testing.assert_allclose(poses.body[0, 8], body[8])
    assert (poses.body[1] == 0).all()
    points[:, 2] = 0.8
    result = {"keypoints": points.reshape(-1).tolist(), "score": 0.7}
    poses = read(tmp_path, [result | {"image_id": 2}, result | {"image_id": 1}], canvas=(480, 832))
    assert poses.num_frames == 2
    assert poses.body[1, 0, 2] == 0.8


def results(ids):
    """COCO's results of figures whose neck is at ten times the place in the list, in an odd order."""
    entries = []
    for place, name in enumerate(ids):
        body = figure(neck=(100 + 10 * place, 140))
        points = np.array([body[BODY_18.index(part)] for part in COCO])
        entries.append({"image_id": name, "category_id": 1, "keypoints": points.reshape(-1).tolist(), "score": 0.9})
    return entries[1::2] + entries[::2]


def places(poses):
    """The place in the list of each frame's figure, -1 where nobody is seen."""
    return [round((body[1, 0] - 100) / 10) if body[1, 2] else -1 for body in poses.body]


def test_cocos_results_by_name_are_in_natural_order(tmp_path):
    poses = read(tmp_path, results([f"clip_1/{number}.jpg" for number in range(8, 12)]), canvas=(480, 832))
    assert places(poses) == [0, 1, 2, 3]
    poses = read(tmp_path, results(["a.jpg", "b2.jpg", "b10.jpg"]), canvas=(480, 832))
    assert places(poses) == [0, 1, 2]


@pytest.mark.parametrize(
    ("ids", "wanted"),
    [
        ([3, 4, 5, 8, 9], [0, 1, 2, -1, -1, 3, 4]),
        ([0.0, 1.0, 2.0, 4.0], [0, 1, 2, -1, 3]),
        ([0, 2, 4, 8, 10], [0, 1, 2, -1, 3, 4]),  # every second frame
        (["v1_8.jpg", "v1_9.jpg", "v1_10.jpg", "v1_12.jpg"], [0, 1, 2, -1, 3]),
        (["000001", "000002", "000003", "000006"], [0, 1, 2, -1, -1, 3]),
        ([139, 285, 632, 724], [0, 1, 2, 3]),  # ids of a database
        ([397133, 397134, 397135, 10**12], [0, 1, 2, 3]),
        ([0, 2, 4, 5], [0, 1, 2, 3]),  # no multiple of the step
        ([0.5, 1.5, 2.5, 4.5], [0, 1, 2, 3]),
        (["v1_1.jpg", "v1_2.jpg", "v2_3.jpg", "v2_5.jpg"], [0, 1, 2, 3]),
        ([7], [0]),
    ],
)
def test_frames_that_cocos_results_leave_out_are_empty_where_the_ids_number_the_frames(tmp_path, ids, wanted):
    assert places(read(tmp_path, results(ids), canvas=(480, 832))) == wanted


def test_cocos_results_with_numbers_and_names_are_refused(tmp_path):
    with pytest.raises(InputError, match="image_id is a number in all entries, or a name in all"):
        read(tmp_path, results([1, "2.jpg"]), canvas=(480, 832))


def test_a_pose_file_states_its_layout_canvas_and_rate(tmp_path):
    path = tmp_path / "pose.safetensors"
    keypoints = np.ones((3, 14, 3), np.float32) * np.arange(14, dtype=np.float32)[None, :, None]
    whole = {"layout": "body14", "width": "128", "height": "96", "fps": "24"}
    save_file({"keypoints": keypoints}, path, whole)
    poses = read_poses(path, PoseSource())
    assert (poses.width, poses.height, poses.fps, poses.num_frames) == (128, 96, 24, 3)
    assert poses.body[0, :14, 0].tolist() == list(range(14))
    assert (poses.body[0, 14:] == 0).all()
    for key in whole:
        save_file({"keypoints": keypoints}, path, {name: value for name, value in whole.items() if name != key})
        with pytest.raises(InputError, match=f"lacks {key}"):
            read_poses(path, PoseSource())
    save_file({"keypoints": keypoints}, path)
    with pytest.raises(InputError, match="layout"):
        read_poses(path, PoseSource())
    save_file({"points": keypoints}, path, whole)
    with pytest.raises(InputError, match="tensor keypoints"):
        read_poses(path, PoseSource())
    for change in ({"layout": "body18"}, {"width": "wide"}, {"fps": "nan"}, {"height": "-5"}):
        save_file({"keypoints": keypoints}, path, whole | change)
        with pytest.raises(InputError, match=r"pose\.safetensors"):
            read_poses(path, PoseSource())
    save_file({"keypoints": np.full((3, 14, 3), np.nan, np.float32)}, path, whole)
    with pytest.raises(InputError, match="finite"):
        read_poses(path, PoseSource())
    save_file({"keypoints": keypoints}, path, whole)
    with pytest.raises(InputError, match="states 24 frames"):
        read_poses(path, PoseSource(fps=16.0))
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(InputError, match="cannot be read"):
        read_poses(path, PoseSource())


def test_what_we_write_is_the_manifests_form(tmp_path):
    path = tmp_path / "pose.safetensors"
    path.write_bytes(pose_file_bytes(sequence([figure()] * 2)))
    keypoints = load_file(path)["keypoints"]
    assert keypoints.shape == (2, 18, 3)
    assert keypoints.dtype == np.float32


def test_a_rate_that_is_not_stated_is_remarked(tmp_path):
    two = [frame(at(200))] * 2
    poses = read(tmp_path, two)
    assert poses.fps == 16
    (remark,) = poses.remarks
    assert remark.endswith("does not state its rate, and 16 frames a second are assumed: state it, such as --fps 30")
    assert read(tmp_path, two, fps=30.0).remarks == ()
    assert read(tmp_path, two[:1]).remarks == ()
    assert read(tmp_path, [one | {"fps": 16} for one in two]).remarks == ()


def test_nobody_is_refused_and_a_person_without_a_seen_point_is_nobody(tmp_path):
    faint = figure() * (1, 1, 0.2)
    for people in ((), (person(faint),), (person(figure() * 0),), ({},)):
        with pytest.raises(InputError, match="shows nobody"):
            read(tmp_path, [frame(*people)])
    assert read(tmp_path, [frame(person(faint), person(figure()))]).body[0, 1, 0] == 300


def test_a_frame_without_a_person_is_a_gap(tmp_path):
    poses = read(tmp_path, [frame(person(figure())), {**frame(), "people": None}, frame(person(figure()))])
    assert (poses.body[1] == 0).all()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty"),
        ("{", "no JSON"),
        ("[" * 100_000, "no JSON"),
        ("\ud800".encode("utf-8", "surrogatepass"), "no JSON"),
        ("[]", "no keypoints of a known form"),
        ("{}", "no keypoints of a known form"),
        ("3", "no keypoints of a known form"),
        ('"people"', "no keypoints of a known form"),
        ('[{"people": []}, {}]', "no keypoints of a known form"),
        (json.dumps(frame({"pose_keypoints_2d": [1, 2]})), "flat list"),
        (json.dumps(frame({"pose_keypoints_2d": [1, 2, 3]})), "17 \\(COCO\\) are known"),
        (json.dumps(frame({"pose_keypoints_2d": [float("nan")] * 54})), "not finite"),
        (json.dumps(frame({"pose_keypoints_2d": ["1"] * 54})), "no number"),
        (json.dumps(frame({"pose_keypoints_2d": [[1, 2, 3]] * 18})), "flat list"),
        (json.dumps(frame({"pose_keypoints_2d": 5})), "does not fit"),
        (json.dumps(frame(5)), "does not fit"),
        (json.dumps(frame({"face_keypoints_2d": [1.0] * 30})), "70 \\(OpenPose\\)"),
        (json.dumps(frame({"hand_left_keypoints_2d": [1.0] * 30})), "21 are needed"),
        (json.dumps([frame(person(figure())), frame(person(figure()), width=5)]), "different sizes"),
        (json.dumps(frame(person(figure()), width=-5)), "above 0"),
        (json.dumps(frame(person(figure()), width=8.5)), "above 0"),
        (json.dumps(frame(person(figure()), width="wide")), "does not fit"),
        (json.dumps(frame(person(figure()), width=10**400)), "does not fit"),
        (json.dumps({"images": [], "annotations": []}), "frames of one clip"),
        (json.dumps({"images": [{"id": 1}], "annotations": []}), "does not fit"),
        (json.dumps([{"image_id": 1, "keypoints": [1.0] * 54}]), "COCO's 17"),
    ],
)
def test_broken_files_are_refused_with_their_name(tmp_path, content, message):
    path = tmp_path / "broken.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=message) as refused:
        read_poses(path, PoseSource())
    assert "broken.json" in str(refused.value)


def test_a_canvas_that_disagrees_and_a_folder_without_frames_are_refused(tmp_path):
    with pytest.raises(InputError, match="832 x 480 pixels, asked for is 64 x 48"):
        read(tmp_path, frame(person(figure())), canvas=(48, 64))
    empty = tmp_path / "empty"
    empty.mkdir()
    assert not is_keypoints(empty)
    with pytest.raises(InputError, match="is a folder without"):
        read_poses(empty, PoseSource())
    (empty / "a.json").write_text("[]")
    with pytest.raises(InputError, match="no frame of OpenPose"):
        read_poses(empty, PoseSource())
    with pytest.raises(InputError, match="cannot be read"):
        read_poses(tmp_path / "nothing.json", PoseSource())


def test_a_pose_keypoint_of_comfyui_is_read_as_it_is():
    """What SDPose and controlnet_aux hand over is a list of frames in memory, no file."""
    poses = poses_of(frames_of([frame(person(figure()))], "POSE_KEYPOINT"), PoseSource(), "POSE_KEYPOINT")
    np.testing.assert_allclose(poses.body[0], figure())


def test_equal_poses_give_equal_files():
    assert len({pose_file_bytes(sequence([figure()])) for _ in range(20)}) == 1
