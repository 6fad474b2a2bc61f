"""The harness itself, on nodes of ComfyUI's own: a graph runs, is cached, is refused, fails, is stopped."""

import graph


def picture(red: int = 255) -> dict:
    return {
        "1": {"class_type": "EmptyImage", "inputs": {"width": 32, "height": 16, "batch_size": 1, "color": red << 16}},
        "2": {
            "class_type": "ImageScaleBy",
            "inputs": {"image": ["1", 0], "upscale_method": "area", "scale_by": 2.0},
        },
        "3": {"class_type": "PreviewImage", "inputs": {"images": ["2", 0]}},
    }


def check_graph_runs_and_gives_values():
    run = graph.Session().run(picture(), keep={"big": ("2", 0)})
    assert run.ok, run.problem
    assert run.values["big"].shape == (1, 32, 64, 3)
    assert run.executed == ["1", "2", "3"]
    assert run.ui["3"]["images"]


def check_second_run_is_cached():
    session = graph.Session()
    session.run(picture())
    assert session.run(picture()).executed == []
    changed = picture()
    changed["2"]["inputs"]["scale_by"] = 3.0
    again = session.run(changed, keep={"big": ("2", 0)})
    assert again.cached == ["1"]
    assert again.executed == ["2", "3"]
    assert again.values["big"].shape == (1, 48, 96, 3)


def check_bad_value_is_refused_before_the_run():
    prompt = picture()
    prompt["1"]["inputs"]["width"] = 0
    run = graph.Session().run(prompt)
    assert not run.ok
    assert "width" in run.problem
    assert run.executed == []


def check_error_in_a_node_is_told():
    prompt = picture()
    prompt["2"] = {"class_type": "ImageFromBatch", "inputs": {"image": ["1", 0], "batch_index": 0, "length": 1}}
    graph.Keep.keep, kept = failing, graph.Keep.keep
    try:
        run = graph.Session().run(prompt, keep={"x": ("2", 0)})
    finally:
        graph.Keep.keep = kept
    assert run.problem == "told so"


def failing(self, value, name):
    raise ValueError("told so")


def check_single_nodes_of_both_apis_are_called():
    (image,) = graph.call("EmptyImage", width=8, height=8, batch_size=2, color=0)
    assert image.shape == (2, 8, 8, 3)
    (first,) = graph.call("ImageFromBatch", image=image, batch_index=0, length=1)
    assert first.shape == (1, 8, 8, 3)
