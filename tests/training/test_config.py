"""Configurations: what is refused and how, overrides, what a resume may change."""

from pathlib import Path
from typing import Any

import linear_part
import pytest

from contextanyone_core.errors import InputError
from training.config import (
    TrainConfig,
    changed_keys,
    config_hash,
    data_settings,
    load_config,
    parse_config,
    save_config,
)
from training.settings import PRESETS as SHIPPED
from training.settings import presets

SMALL = {"run": {"name": "small", "steps": 6}, "part": {"name": "linear"}}


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_defaults_and_part_settings() -> None:
    config = parse_config(SMALL)
    assert config.run.folder == Path("runs/small")
    assert isinstance(config.part, linear_part.Settings)
    assert config.to_dict()["part"]["width"] == 8
    assert config.to_dict()["init"] == {"from": None}


def test_saved_config_reads_back_equal(tmp_path: Path) -> None:
    config = parse_config({**SMALL, "init": {"from": "weights.safetensors"}, "optim": {"betas": [0.8, 0.9]}})
    save_config(config, tmp_path / "config.yaml")
    assert load_config(tmp_path / "config.yaml") == config
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]


def test_shipped_files_are_found_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`contextanyone_core/...` is the package; config.yaml and its hash keep that form, the same on every machine."""
    monkeypatch.chdir(tmp_path)
    config = load_config(SHIPPED / "miniature" / "manifest.yaml")
    assert config.init.from_ is not None
    assert config.init.from_.is_file()
    assert (data_settings(SHIPPED / "miniature" / "manifest.yaml").encoders / "vae.safetensors").is_file()
    written = config.to_dict()
    assert written["init"]["from"] == "contextanyone_core/miniature/transformer.safetensors"
    assert written["part"]["data"]["encoders"] == "contextanyone_core/miniature"
    assert load_config(SHIPPED / "debug.yaml").to_dict()["part"]["weights"] == "contextanyone_core/miniature"
    save_config(config, tmp_path / "config.yaml")
    assert load_config(tmp_path / "config.yaml") == config


def test_other_relative_paths_start_at_the_working_folder() -> None:
    config = load_config(SHIPPED / "miniature" / "manifest.yaml", ["init.from=mine/contextanyone_core/x.safetensors"])
    assert config.init.from_ == Path("mine/contextanyone_core/x.safetensors")
    assert config.to_dict()["part"]["data"]["manifest"] == "runs/world/manifest.jsonl"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("run.stpes=3", "run.stpes is not a setting. Did you mean run.steps?"),
        ("optmi.lr=1", "optmi is not a setting. Did you mean optim?"),
        ("part.widht=3", "part.widht is not a setting. Did you mean part.width?"),
        ("init.zzzz=3", "init.zzzz is not a setting; known are from."),
        ("run.steps=0", "run.steps is 0: input should be greater than or equal to 1."),
        ("run.steps=many", "run.steps is 'many': input should be a valid integer"),
        ("optim.lr=nan", "optim.lr is 'nan'"),
        ("optim.lr=.nan", "optim.lr is nan"),
        ("optim.lr=.inf", "optim.lr is inf"),
        ("optim.betas=[0.9,1.5]", "optim.betas.1 is 1.5: input should be less than 1."),
        ("optim.betas=[-0.1,0.9]", "optim.betas.0 is -0.1: input should be greater than or equal to 0."),
        ("optim.schedule=cosin", "optim.schedule is 'cosin': input should be 'cosine', 'constant' or 'linear'."),
        ("run.name=../x", "run.name is '../x'"),
        ("part.name=lineer", "part.name is lineer; it must be one of"),
        ("part.name=lineer", "Did you mean linear"),
        ("part=3", "part.name is missing"),
        ("precision=fp8", "precision is 'fp8'"),
        ("run=5", "run is 5"),
        ("run.steps", "--set run.steps is not of the form a.b=value"),
        (".steps=1", "--set .steps=1 is not of the form a.b=value"),
        ("run.steps.x=1", "steps is 6 in the configuration, it holds no settings."),
        ("run.out={a", "the value is not YAML"),
    ],
)
def test_refused_with_the_key_and_a_hint(tmp_path: Path, override: str, message: str) -> None:
    path = write(tmp_path / "c.yaml", "run: {name: small, steps: 6}\npart: {name: linear}\n")
    with pytest.raises(InputError) as caught:
        load_config(path, [override])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_settings_are_named() -> None:
    with pytest.raises(InputError, match=r"run\.steps is missing\."):
        parse_config({"run": {"name": "x"}, "part": {"name": "linear"}})
    with pytest.raises(InputError, match=r"run is missing\."):
        parse_config({"part": {"name": "linear"}})


@pytest.mark.parametrize("text", ["", "- a", "a: [", "run: 3", "\x00"])
def test_files_that_are_no_configuration(tmp_path: Path, text: str) -> None:
    with pytest.raises(InputError):
        load_config(write(tmp_path / "c.yaml", text))


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        load_config(tmp_path / "none.yaml")
    with pytest.raises(InputError, match="cannot be read"):
        load_config(tmp_path)


def test_override_values_are_yaml(tmp_path: Path) -> None:
    path = write(tmp_path / "c.yaml", "run: {name: small, steps: 6}\npart: {name: linear}\n")
    config = load_config(path, ["optim.lr=1e-3", "optim.betas=[0.5, 0.6]", "run.out=a=b", "run.max_minutes=null"])
    assert config.optim.lr == 1e-3
    assert config.optim.betas == (0.5, 0.6)
    assert config.run.folder == Path("a=b")
    assert config.run.max_minutes is None


def test_what_a_resume_may_change() -> None:
    before = parse_config(SMALL)
    free = {"steps": 9, "save_every": 1, "sample_every": 1, "log_every": 1, "max_minutes": 1, "workers": 3, "out": "x"}
    assert changed_keys(before, parse_config({**SMALL, "run": {"name": "other", **free}})) == []
    world = {"run": {"name": "w", "steps": 6}, "part": {"name": "transformer"}}
    moved = {"run": {"name": "w", "steps": 6}, "part": {"name": "transformer", "pools": "elsewhere", "pairs": 9}}
    assert changed_keys(parse_config(world), parse_config(moved)) == []
    other = {
        "run": {"name": "small", "steps": 6, "seed": 1},
        "optim": {"lr": 1},
        "part": {"name": "linear", "width": 9},
    }
    assert changed_keys(before, parse_config(other)) == ["part.width", "run.seed"]


def test_places_may_change_on_a_resume_where_the_contents_are_known() -> None:
    run = {"run": {"name": "w", "steps": 6}}

    def manifest(where: str, count: int, **part: Any) -> TrainConfig:
        data = {"manifest": f"{where}/m.jsonl", "cache": f"{where}/cache", "encoders": f"{where}/encoders"}
        shown = {"sample_steps": count, "sample_clips": count, "validation_clips": count}
        init = {"from": f"{where}/start.safetensors"}
        return parse_config({**run, "init": init, "part": {"name": "manifest", "data": data, **shown, **part}})

    lora = {"train": {"lora": {"rank": 4}}}
    assert changed_keys(manifest("a", 1), manifest("b", 2)) == ["init.from"]
    assert changed_keys(manifest("a", 1, **lora), manifest("b", 2, **lora)) == []
    world = [{**run, "part": {"name": "transformer", "sample_steps": n, "validation_pairs": n}} for n in (1, 2)]
    assert changed_keys(*map(parse_config, world)) == []


def test_what_costs_memory_alone_may_change_on_a_resume_where_no_bit_does() -> None:
    def world(recompute: str, precision: str = "fp32", **part: Any) -> TrainConfig:
        part |= {"name": "transformer", "recompute": recompute}
        return parse_config({"run": {"name": "w", "steps": 6}, "precision": precision, "part": part})

    assert changed_keys(world("none"), world("full")) == []
    assert changed_keys(world("full", "bf16"), world("selective", "bf16")) == []
    assert changed_keys(world("none", "bf16"), world("full", "bf16")) == ["part.recompute"]
    assert changed_keys(world("full", compile=True), world("none", compile=True)) == ["part.recompute"]
    stored, away = (world("full", train={"lora": {"offload": offload}}) for offload in (False, True))
    assert changed_keys(stored, away) == []


@pytest.mark.parametrize(
    ("text", "key", "lines"),
    [
        ("run: {name: x}\nrun: {steps: 3}\n", "run", (1, 2)),
        ("run:\n  name: x\n  steps: 3\n  steps: 4\n", "steps", (3, 4)),
    ],
)
def test_a_key_that_stands_twice_is_refused(tmp_path: Path, text: str, key: str, lines: tuple[int, int]) -> None:
    path = write(tmp_path / "c.yaml", text)
    message = rf"c\.yaml: the key {key} is in line {lines[0]} and again in line {lines[1]}; leave one of them out\."
    with pytest.raises(InputError, match=message):
        load_config(path)


def test_a_mapping_may_overwrite_what_it_merges(tmp_path: Path) -> None:
    text = "part: &p {name: linear}\nrun: {<<: *p, name: small, steps: 6}\n"
    assert load_config(write(tmp_path / "c.yaml", text)).run.name == "small"


def test_hash_is_of_what_is_computed() -> None:
    base = config_hash(parse_config(SMALL))
    assert base == config_hash(parse_config({**SMALL, "run": {"name": "small", "steps": 6, "out": "elsewhere"}}))
    assert base != config_hash(parse_config({**SMALL, "run": {"name": "small", "steps": 7}}))
    assert base != config_hash(parse_config({**SMALL, "optim": {"lr": 1}}))
    world, more = ({**SMALL, "part": {"name": "transformer", "pairs": pairs}} for pairs in (8, 9))
    assert config_hash(parse_config(world)) != config_hash(parse_config(more))


@pytest.mark.parametrize("reading", ["phantom", "refalign", "bernini"])
def test_readings_in_one_stream_are_not_trained_on_a_manifest(reading: str) -> None:
    part = {"name": "manifest", "data": {"manifest": "none.jsonl"}, "reading": reading}
    with pytest.raises(
        InputError, match=rf"part\.reading is {reading}, which the part transformer trains; .* manifest"
    ):
        parse_config({"run": {"name": "w", "steps": 6}, "part": part})


@pytest.mark.parametrize("path", presets(), ids=lambda path: path.name)
def test_shipped_presets_are_valid(path: Path) -> None:
    load_config(path)
