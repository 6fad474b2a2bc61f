"""Tracks and clusters on boxes and vectors made by hand."""

import json

import numpy as np
from scipy.sparse.csgraph import connected_components

from data_pipeline.models.pictures import PictureModels
from data_pipeline.models.small import SmallKit
from data_pipeline.models.tracks import Found, cluster, overlap, tracked
from data_pipeline.rows import Row


def found(x, vector=None, y=0.2):
    return Found((x, y, x + 0.2, y + 0.6), 1.0, None if vector is None else np.array(vector, np.float32))


def names(frames):
    return [[one.track for one in people] for people in frames]


def test_overlap_is_intersection_over_union():
    assert overlap((0, 0, 1, 1), (0.5, 0, 1.5, 1)) == 1 / 3
    assert overlap((0, 0, 1, 1), (1, 0, 2, 1)) == 0
    assert overlap((0, 0, 0, 0), (0, 0, 0, 0)) == 0


def test_a_person_who_moves_slowly_keeps_the_track_and_one_who_passes_by_has_another():
    frames = [[found(0.1)], [found(0.14), found(0.7)], [found(0.68), found(0.18)]]
    assert names(tracked(frames, 0.6)) == [["person-0"], ["person-0", "person-1"], ["person-1", "person-0"]]


def test_who_comes_back_elsewhere_is_known_by_the_face():
    frames = [[found(0.1, [0, 0])], [], [found(0.7, [0.1, 0]), found(0.4, [5, 0])]]
    assert names(tracked(frames, 0.6)) == [["person-0"], [], ["person-0", "person-1"]]


def test_two_people_never_share_a_track_in_one_frame():
    frames = [[found(0.1, [0, 0])], [found(0.1, [0, 0]), found(0.12, [0.1, 0])]]
    tracks = names(tracked(frames, 0.6))[1]
    assert sorted(tracks) == ["person-0", "person-1"]


def test_a_face_that_is_turned_away_is_remembered():
    frames = [[found(0.1, [0, 0])], [found(0.12)], [found(0.8, [0.1, 0])]]
    assert names(tracked(frames, 0.6)) == [["person-0"]] * 3


def test_clusters_are_chains_of_near_vectors_and_who_cannot_be_told_is_alone():
    vectors = [np.array([x], np.float32) for x in (0.0, 5.0, 0.9, 0.5)]
    assert cluster([*vectors, None, None], 0.6, list("abcdef")) == ["a", "b", "a", "a", "e", "f"]
    assert cluster([], 0.6, []) == []
    assert cluster([None], 0.6, ["a"]) == ["a"]


def test_clusters_of_many_vectors_are_the_components_of_their_graph():
    vectors = np.random.default_rng(0).random((300, 2)).astype(np.float32)
    near = np.linalg.norm(vectors[:, None] - vectors, axis=-1) < 0.05
    count, components = connected_components(near)
    named = [int(name) for name in cluster(list(vectors), 0.05, [str(number) for number in range(300)])]
    assert 1 < count < 300
    assert named == [int(np.flatnonzero(components == components[number])[0]) for number in range(300)]


def test_a_frame_has_the_box_of_the_nearest_frame_where_the_person_is_seen(tmp_path):
    seen = {3, 4, 9, 20}
    people = [[{"box": [number, 0, 1, 1], "track": "a"}] if number in seen else [] for number in range(25)]
    (tmp_path / "people.json").write_text(json.dumps(people))
    row = Row(source="s", sha256="0" * 64, video="v", paths={"people": "people.json"})
    boxes = PictureModels(tmp_path, SmallKit(tmp_path))._boxes(row, "a")
    assert [box[0] for box in boxes] == [min(seen, key=lambda one: (abs(one - number), one)) for number in range(25)]
