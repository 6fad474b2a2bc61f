"""Ablations: plans, variants, and a small one from nothing to its report."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from contextanyone_core.config import ContextAnyoneConfig
from contextanyone_core.errors import InputError
from contextanyone_core.generation.pipeline import MINIATURE
from contextanyone_core.model.references import ReferenceInputs
from contextanyone_core.model.transformer import ContextAnyoneTransformer
from contextanyone_core.runtime.processor import device_name
from evaluation import ablate
from evaluation.ablation import measure as measuring
from evaluation.ablation import runner
from evaluation.ablation.fingerprint import agree, fingerprint
from evaluation.ablation.measure import Tools, measure
from evaluation.ablation.part import AblationPart, Settings
from evaluation.ablation.plan import AblationPlan, Measuring, job_hash, load_plan
from evaluation.ablation.report import describe, table
from evaluation.ablation.variants import as_variant
from training.data.pool import Pool
from training.distributed import one_process
from training.evaluation.probe import load_probe
from training.parts.base import PartContext
from training.world import ACTIONS, ATTRIBUTES, LIGHTS, PLACES

ROOT = Path(__file__).resolve().parents[2]
PLAN, COMPARISON = (ROOT / "evaluation" / f"{name}.yaml" for name in ("ablations", "comparison"))
RESULTS = ROOT / "evaluation" / "results" / "ablations"
COMPARED = RESULTS.parent / "comparison"
CELLS = ("full", "joint_attention", "clip_frame", "aligned", "vace")


@pytest.fixture
def network() -> ContextAnyoneTransformer:
    torch.manual_seed(0)
    network = ContextAnyoneTransformer(ContextAnyoneConfig.tiny())
    for parameter in network.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape)
    return network.eval().requires_grad_(False)


def inputs(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, ReferenceInputs]:
    generator = torch.Generator().manual_seed(seed)
    config = ContextAnyoneConfig.tiny()

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    text = draw(2, config.text_len, config.text_dim)
    references = ReferenceInputs([draw(2, 16, 1, 4, 4)], text.flip(0), [draw(2, 5, config.image_dim or 1)])
    return draw(2, 16, 2, 4, 4), torch.tensor([700.0, 300.0]), text, references


def test_joint_attention_lets_the_video_change_the_references(network):
    joint = as_variant(network, "joint_attention")
    latents, times, text, references = inputs()
    for model, changes in ((network, False), (joint, True)):
        one = model(latents, times, text, references=references).reference_output[0]
        two = model(latents + 1, times, text, references=references).reference_output[0]
        assert (not torch.equal(one, two)) is changes


def test_joint_attention_without_references_is_the_model(network):
    latents, times, text, _ = inputs()
    joint = as_variant(network, "joint_attention")
    assert torch.equal(joint(latents, times, text).velocity, network(latents, times, text).velocity)


def test_joint_attention_by_its_cache_is_joint_attention(network):
    latents, times, text, references = inputs()
    joint = as_variant(network, "joint_attention")
    cached = joint(latents, times, text, cache=joint.encode_references(references)).velocity
    assert torch.equal(cached, joint(latents, times, text, references=references).velocity)
    assert not torch.allclose(cached, network(latents, times, text, references=references).velocity, atol=1e-4)


def test_clip_only_reads_nothing_of_the_reference_but_its_clip_tokens(network):
    latents, times, text, references = inputs()
    variant = as_variant(network, "clip_only")
    other = inputs(1)[3]
    one = variant(latents, times, text, references=references).velocity
    other_latents = ReferenceInputs(other.latents, references.text_embeds, references.image_embeds)
    other_tokens = ReferenceInputs(references.latents, references.text_embeds, other.image_embeds)
    assert torch.equal(one, variant(latents, times, text, references=other_latents).velocity)
    assert not torch.equal(one, variant(latents, times, text, references=other_tokens).velocity)


@pytest.mark.parametrize("variant", ["joint_attention", "clip_only"])
def test_a_variant_has_the_same_weights(network, variant):
    built = as_variant(network, variant)
    for name, tensor in network.state_dict().items():
        assert torch.equal(built.state_dict()[name], tensor)


def numbered(variant: str, weights: Path, pools: Path) -> AblationPart:
    """A part of forty pairs, each with its number as latents, 100 more as reference and 200 more as CLIP tokens."""
    small = {"num_frames": 5, "size": 32, "batch": 200, "pairs": 40, "drop_reference": 0.0, "drop_text": 0.0}
    settings = Settings(weights=weights, pools=pools, variant=variant, **small)
    part = AblationPart(settings, PartContext(5, torch.device("cpu"), weights / "transformer.safetensors"))
    rng, number = np.random.default_rng(0), torch.arange(40.0)
    values = [*ATTRIBUTES.values(), ACTIONS, PLACES, LIGHTS]
    latents = number.view(-1, 1, 1, 1, 1).expand(-1, 16, 2, 4, 4)
    labels = torch.from_numpy(np.stack([rng.integers(len(one), size=40) for one in values], 1))
    tokens = 200 + number.view(-1, 1, 1).expand(-1, 5, part.image_encoder.image_dim)
    part.__dict__["pool"] = Pool(latents, latents[:, :1], 100 + latents[:, :, :1], tokens, labels)
    part._frames = {"image_embeds": 300 + tokens - 200}
    return part


def test_each_cells_pairs_are_what_its_title_says(tiny_folder, tmp_path):
    parts = {
        name: numbered(name, tiny_folder, tmp_path)
        for name in ("none", "wrong_people", "clip_frame", "plain_captions", "text_only", "one_prompt")
    }
    own = parts["none"].batch(3)
    pair = own["latents"][:, 0, 0, 0, 0]
    shown = {name: part.batch(3)["reference_latents"][:, 0, 0, 0, 0] for name, part in parts.items()}
    tokens = {name: part.batch(3)["image_embeds"][:, 0, 0] for name, part in parts.items()}
    for name, part in parts.items():
        assert torch.equal(part.batch(3)["latents"][:, 0, 0, 0, 0], pair), name
        assert torch.equal(part.batch(3)["labels"], own["labels"]), name
        if name not in ("wrong_people", "clip_frame"):
            assert torch.equal(shown[name], 100 + pair), name
            assert torch.equal(tokens[name], 200 + pair), name
    swapped = shown["wrong_people"] != 100 + pair
    assert 0.04 < swapped.float().mean() < 0.18  # a tenth
    assert torch.equal(tokens["wrong_people"], shown["wrong_people"] + 100)  # both of the same other person
    assert torch.equal(shown["clip_frame"], pair)
    assert torch.equal(tokens["clip_frame"], 300 + pair)
    told = re.compile(r"hair|skin|shirt|trousers|pigtails|afro|wearing|accessor")
    for name, some in (("none", True), ("plain_captions", False)):
        captions = [*parts[name].batch(3)["first"], *parts[name].batch(3)["later"]]
        assert any(map(told.search, captions)) is some, name
    read: dict[str, list[list[str]]] = {}
    for name in ("none", "one_prompt", "text_only"):
        part, read[name] = parts[name], []
        part._encode = lambda texts, kept=read[name]: kept.append(texts)
        draws = part.draws(part.encoded(own), 3, torch.Generator().manual_seed(0))
        assert (draws.reference is None) is (name == "text_only")
        part.texts(own, draws)
    joined = [f"{first} {later}" for first, later in zip(own["first"], own["later"], strict=True)]
    assert read == {"none": [joined, own["first"]], "one_prompt": [own["later"]] * 2, "text_only": [joined]}


def test_renderings_are_measured_as_true_and_the_held_picture_as_a_copy(monkeypatch):
    """What a cell's numbers say of clips whose truth is known; measured on 96 pixels, as the cells are."""
    settings, shown = Settings(size=96, num_frames=5, weights=MINIATURE), {}
    shown["true"] = lambda batch: np.stack([subject.drawn.video for subject in batch])
    shown["held"] = lambda batch: np.stack([np.repeat(subject.drawn.reference[None], 5, axis=0) for subject in batch])
    monkeypatch.setattr(measuring, "_pipeline", lambda *rest: None)
    tools, found = Tools(None, None, None, load_probe(MINIATURE / "probe.safetensors")), {}
    for name, clips in shown.items():
        monkeypatch.setattr(measuring, "_clips", lambda *given, clips=clips: clips(given[-1]))
        found[name] = measure(Path("none"), settings, Measuring(count=5, batch_size=2), tools)
    true, held = found["true"], found["held"]
    assert np.mean(true["attributes"]) > 0.9
    assert np.mean(held["attributes"]) > 0.8  # the same person
    assert np.mean(true["copied"]) < 0.1 < 0.9 < np.mean(held["copied"])
    assert true["motion"] == pytest.approx([1] * 5)
    assert max(held["motion"]) < 0.001
    assert held["first"] == held["last"]
    assert true["scene"]["place"] > 0.9 > 0.1 > held["scene"]["place"]
    assert len(true["by_attribute"]) == len(ATTRIBUTES)


def test_fingerprints_tell_cells_apart_and_repeat():
    found = {
        "none": fingerprint(Settings()),
        "joint": fingerprint(Settings(variant="joint_attention")),
        "gap": fingerprint(Settings(network={"gap": 0.0})),
        "weight": fingerprint(Settings(reference_weight=0.0)),
        "no clip": fingerprint(Settings(network={"image_dim": None})),
        "phantom": fingerprint(Settings(reading="phantom")),
        "text": fingerprint(Settings(variant="text_only")),
    }
    assert agree(fingerprint(Settings()), found["none"])
    names = list(found)
    pairs = [(a, b) for i, a in enumerate(names) for b in names[:i]]
    assert [pair for pair in pairs if agree(found[pair[0]], found[pair[1]])] == []


def test_the_shipped_plan_is_what_the_paper_and_the_open_choices_ask_for():
    plan = load_plan(PLAN)
    assert {name for name, cell in plan.cells.items() if len(cell.seeds) == 3} >= {
        *("full", "no_emphasis", "gap_0", "gap_30", "joint_attention", "no_reconstruction", "clip_frame"),
        "plain_captions",
    }
    once = {"gap_1", "gap_5", "reconstruct_reference", "no_clip", "clip_only", "one_prompt", "phantom", "wrong_people"}
    assert plan.cells.keys() >= {*once, "aligned", "text_only"}
    configs = [job.config(plan, Path("x")) for job in plan.jobs()]
    assert {config.run.steps * config.part.batch for config in configs} == {40_000}
    assert {(config.part.num_frames, config.part.size, config.part.pairs) for config in configs} == {(9, 96, 4096)}
    assert {config.part.attribute_weight for config in configs} == {0}
    assert [job.seed for job in plan.jobs()[: len(plan.cells)]] == [0] * len(plan.cells)


def test_a_plan_like_another_changes_what_it_names_and_its_report_says_so(tmp_path):
    path = tmp_path / "short.yaml"
    path.write_text(f"like: {PLAN}\nnote: a tenth\nbase: {{run: {{steps: 250}}}}\nmeasuring: {{count: 60}}\n")
    plan, short = load_plan(PLAN), load_plan(path)
    assert short.cells == plan.cells
    assert short.claims == plan.claims
    runs = [each.jobs()[0].config(each, Path("x")) for each in (plan, short)]
    assert (runs[0].run.steps, runs[1].run.steps) == (2500, 250)
    assert runs[0].run.save_every == runs[1].run.save_every
    assert runs[0].part.network == runs[1].part.network
    assert "a tenth" in table(describe(short, {}))


def test_plans_that_are_like_each_other_are_one_line(tmp_path, capsys):
    for name, like in (("itself", "itself"), ("one", "two"), ("two", "../plans/one")):
        (tmp_path / "plans").mkdir(exist_ok=True)
        (tmp_path / "plans" / f"{name}.yaml").write_text(f"like: {like}.yaml\n")
    for name, circle in (("itself", "itself.yaml -> itself.yaml"), ("one", "one.yaml -> two.yaml -> one.yaml")):
        assert ablate.main([str(tmp_path / "plans" / f"{name}.yaml"), "--out", str(tmp_path)]) == 2
        said = f"ablate.py: like goes in a circle ({circle}): one of these plans must do without the key.\n"
        assert capsys.readouterr().err == said


def test_the_comparison_has_three_ways_on_equal_samples():
    plan = load_plan(COMPARISON)
    configs = {job.name: job.config(plan, Path("x")) for job in plan.jobs()}
    assert configs.keys() == {"ours", "phantom", "vace"}
    assert len({(config.run.steps, config.part.batch, config.part.size) for config in configs.values()}) == 1
    assert configs["ours"].part.size == 128
    assert plan.measuring.count == 200
    assert {name: config.part.reading for name, config in configs.items()}["vace"] == "phantom"


def test_a_hash_knows_what_counts_and_forgets_where_it_runs():
    plan = load_plan(PLAN)
    full, other = plan.jobs()[0], plan.jobs()[1]
    hashes = {job_hash(full, plan, "data"), job_hash(other, plan, "data"), job_hash(full, plan, "other data")}
    assert len(hashes) == 3
    data = yaml.safe_load(PLAN.read_text())
    data["base"]["run"]["threads"] = 1
    data["base"]["precision"] = "fp32"
    assert job_hash(full, AblationPlan.model_validate(data), "data") == job_hash(full, plan, "data")
    data["base"]["part"]["joint_weight"] = 0.0  # a setting that is younger than the committed results
    assert job_hash(full, AblationPlan.model_validate(data), "data") == job_hash(full, plan, "data")
    data["base"]["part"]["joint_weight"] = 0.1
    assert job_hash(full, AblationPlan.model_validate(data), "data") != job_hash(full, plan, "data")
    data["base"]["part"]["joint_weight"] = 0.0
    data["base"]["run"]["steps"] = 7
    assert job_hash(full, AblationPlan.model_validate(data), "data") != job_hash(full, plan, "data")


@pytest.mark.parametrize(("path", "results"), [(PLAN, RESULTS), (COMPARISON, COMPARED)])
def test_the_committed_results_are_of_this_plan_and_code(tmp_path, monkeypatch, path, results):
    """A result that other code computed is to be computed again, and the table made anew."""
    monkeypatch.chdir(ROOT)
    plan, files = load_plan(path), runner.Runner(load_plan(path), results, tmp_path)
    found: dict[str, list[dict[str, object]]] = {name: [] for name in plan.cells}
    for job in plan.jobs():
        if any(results.glob(f"{job.name}-{job.seed}-*.json")):
            kept = files._result(job)
            assert kept is not None, f"{job.name}-{job.seed} is not of this plan and code"
            assert not {"out", "pools", "weights"} & {*kept["config"]["run"], *kept["config"]["part"]}
            found[job.name].append(kept)
    assert sum(map(len, found.values())) == len([*results.glob("*-[0-9]-*.json")]) > 0
    assert (results / "table.md").read_text() == table(describe(plan, found))
    assert (results / "table.md").read_text() == table(json.loads((results / "ablations.json").read_text()))


def test_a_result_of_another_probe_is_computed_again(tmp_path, monkeypatch, caplog):
    """The hash of a cell knows the encoders, and nothing of the probe that reads its clips."""
    monkeypatch.chdir(ROOT)
    (committed,) = RESULTS.glob("full-0-*.json")
    kept = json.loads(committed.read_text())
    job, files = load_plan(PLAN).jobs()[0], runner.Runner(load_plan(PLAN), tmp_path, tmp_path)
    (tmp_path / committed.name).write_text(json.dumps(kept))
    assert files._result(job) == kept
    kept["weights"]["probe"] = "0" * 64
    (tmp_path / committed.name).write_text(json.dumps(kept))
    assert files._result(job) is None
    assert f"{committed.name} was computed with another probe.safetensors" in caplog.text


def small_plan(tmp_path: Path) -> Path:
    data = yaml.safe_load(PLAN.read_text())
    run = {"steps": 2, "save_every": 1, "sample_every": 100, "threads": 1, "workers": 0, "trackers": []}
    part = {"size": 32, "num_frames": 5, "batch": 2, "pairs": 4, "pools": str(tmp_path / "pools")}
    part["network"] = {"dim": 64, "ffn_dim": 64, "num_heads": 1, "num_layers": 2}
    data["base"] = {"run": run, "precision": "fp32", "part": part}
    data["measuring"] = {"count": 2, "steps": 1, "batch_size": 2}
    data["cells"] = {name: {**data["cells"][name], "seeds": [0]} for name in CELLS[:-1]}
    data["cells"]["vace"] = yaml.safe_load(COMPARISON.read_text())["cells"]["vace"]
    data["claims"] = [{"text": "a", "better": "full", "worse": "joint_attention"}]
    path = tmp_path / "plan.yaml"
    path.write_text(yaml.safe_dump(data))
    return path


def test_the_cost_is_that_of_steps_of_the_trainer_on_its_device(tmp_path, monkeypatch, caplog):
    """A card trains many times faster than the processor beside it."""
    monkeypatch.chdir(ROOT)
    caplog.set_level("INFO")
    plan = load_plan(small_plan(tmp_path))
    built, seen = runner.build_trainer, []

    def noted(config, checkpoint, world):
        trainer = built(config, checkpoint, world)
        trainer.before_update = lambda: seen.append(world.device)
        return trainer

    monkeypatch.setattr(runner, "build_trainer", noted)
    cost = runner.Runner(plan, tmp_path, tmp_path)._cost(plan.jobs()[:1])
    assert seen == [one_process().device] * 4
    assert cost > 0
    assert "1 cells and seeds are missing. One trains for about" in caplog.text


@pytest.mark.slow
def test_a_small_ablation_from_nothing_to_its_report_and_nothing_twice(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(ROOT)
    caplog.set_level("INFO")
    words = [str(small_plan(tmp_path)), "--out", str(tmp_path / "out"), "--work", str(tmp_path / "work")]
    assert ablate.main([*words, "--cells", "full"]) == 3
    said = caplog.text
    assert said.index("1 cells and seeds are missing. One trains for") < said.index("full, seed 0: the model")
    assert ablate.main(words) == 0
    found = json.loads((tmp_path / "out" / "ablations.json").read_text())
    assert set(found["cells"]) == set(CELLS)
    for cell in found["cells"].values():
        for name in ("attributes", "drift", "copy", "motion"):
            assert cell[name].keys() == {"mean", "ci95", "seeds"}
        assert cell["runs"][0]["flops"] > 0
    assert found["claims"][0]["verdict"] == "open"
    assert list((tmp_path / "work").iterdir()) == []
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*-0-*.json")}
    assert len(files) == len(CELLS)
    for path in files:
        assert str(tmp_path) not in path.read_text()
        result = json.loads(path.read_text())
        assert not {"out", "pools", "weights"} & {*result["config"]["run"], *result["config"]["part"]}
        assert {len(digest) for digest in result["weights"].values()} == {64}
        assert (result["precision"], result["processor"]) == ("fp32", device_name(one_process().device))
    assert ablate.main(words) == 0
    assert {path: path.stat().st_mtime_ns for path in files} == files
    assert (tmp_path / "out" / "plot.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_a_cell_that_is_killed_while_it_is_measured_is_trained_once(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    trained = []

    def killed_at_first(path, *rest):
        log = (path.parents[1] / "log.jsonl").read_text().splitlines()
        trained.append([json.loads(line)["seconds"] for line in log])
        if len(trained) == 1:
            raise KeyboardInterrupt
        return measure(path, *rest)

    monkeypatch.setattr(runner, "measure", killed_at_first)
    words = [str(small_plan(tmp_path)), "--out", str(tmp_path / "out"), "--work", str(tmp_path / "work")]
    assert ablate.main([*words, "--cells", "full"]) == 130
    assert ablate.main([*words, "--cells", "full"]) == 3
    assert trained[0] == trained[1]
    (path,) = (tmp_path / "out").glob("full-0-*.json")
    assert json.loads(path.read_text())["seconds"] == pytest.approx(sum(trained[0]), abs=0.1)


def test_an_unknown_cell_and_a_claim_about_none_are_one_line(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    words = [str(small_plan(tmp_path)), "--out", str(tmp_path / "out"), "--work", str(tmp_path / "work")]
    assert ablate.main([*words, "--cells", "gap_7"]) == 2
    assert "gap_7" in capsys.readouterr().err
    data = yaml.safe_load(PLAN.read_text())
    for seeds, said in (([0, 0, 0], "are 0, 0, 0; each may occur once"), ([], "at least 1 item")):
        data["cells"]["full"]["seeds"] = seeds
        (tmp_path / "wrong.yaml").write_text(yaml.safe_dump(data))
        with pytest.raises(InputError, match=f"cells.full.seeds.*{said}"):
            load_plan(tmp_path / "wrong.yaml")
    data["cells"]["full"]["seeds"] = [0]
    data["claims"] = [{"text": "a", "better": "full", "worse": "nothing"}]
    (tmp_path / "wrong.yaml").write_text(yaml.safe_dump(data))
    with pytest.raises(InputError, match="nothing"):
        load_plan(tmp_path / "wrong.yaml")
