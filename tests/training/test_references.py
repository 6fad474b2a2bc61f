"""Rows with several references: all are encoded, batched with their like, and read by the model."""

import hashlib
import json

import torch
from cached_world import build, change_rows, settings_for, write_small_world

from training.data.batches import CachedData
from training.data.cache import data_hash
from training.parts.base import PartContext
from training.parts.manifest import ManifestPart, Settings

OLD_KEYS = ("clip", "reference", "target", "first", "video")


def test_all_references_of_a_row_are_read(tmp_path, tiny_folder):
    manifest = write_small_world(tmp_path / "world", 5)

    def several(row):
        if row["id"] in ("00000010", "00000011"):
            own = {"picture": row.pop("reference"), "mask": row.pop("reference_mask")}
            other = {"picture": "00000008/reference.png", "role": "face", "prompt": "A face."}
            row |= {"reference": None, "reference_mask": None, "references": [own, other]}
        return row

    change_rows(manifest, several)
    settings = settings_for(manifest, tiny_folder)
    assert build(settings)
    init = tiny_folder / "transformer.safetensors"
    part = ManifestPart(Settings(data=settings, drop_reference=0.0), PartContext(3, torch.device("cpu"), init))
    rows = {row.id: number for number, row in enumerate(part.data.rows)}
    assert [part.data.rows[rows[name]].bucket.references for name in ("00000008", "00000010")] == [1, 2]
    batch = part.data.batch([rows["00000010"], rows["00000011"]], 64)
    alone = part.data.batch([rows["00000008"]], 64)
    assert batch["reference_latents"].shape == batch["target_latents"].shape == (2, 16, 2, 4, 6)
    assert batch["image_embeds"].shape == (2, 10, 24)
    assert torch.equal(batch["reference_latents"][0, :, 1:], alone["reference_latents"][0])
    assert torch.equal(batch["target_latents"][0, :, 1:], batch["reference_latents"][0, :, 1:])
    assert torch.equal(batch["target_latents"][:, :, :1], batch["latents"][:, :, :1])
    assert torch.equal(batch["image_embeds"][0, 5:], alone["image_embeds"][0])
    loss, metrics = part.loss(batch, 0, torch.Generator().manual_seed(1))
    other = batch | {"reference_latents": batch["reference_latents"].flip(2) * 0.5}
    assert loss.shape == metrics["reference"].shape == (2,)
    assert not torch.equal(loss, part.loss(other, 0, torch.Generator().manual_seed(1))[0])
    work, fewer = (part.work(found, with_reference=True) for found in (batch, alone))
    assert work.tokens == 2 * (fewer.tokens + 6)
    counts = {part.batch(step)["reference_latents"].shape[2] for step in range(part.sampler.steps_per_epoch)}
    assert counts == {1, 2}
    with torch.no_grad():
        part.data.rows.reverse()  # the last row first: one with two references
        part.sample(1, tmp_path)


def test_rows_with_one_reference_have_the_hash_that_they_had(tmp_path, tiny_folder):
    """So that a run goes on with a cache of an older version."""
    data = settings_for(write_small_world(tmp_path / "world", 2), tiny_folder)
    assert build(data)
    rows = [
        {"id": row.id, "bucket": list(row.bucket[:3]), "keys": {n: getattr(row.keys, n) for n in OLD_KEYS}}
        for row in CachedData(data).rows
    ]
    assert data_hash(CachedData(data).index) == hashlib.sha256(json.dumps(rows).encode()).hexdigest()
