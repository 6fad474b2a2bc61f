"""FLOPs, buckets and the sampler: equal work, nothing left out, an order that depends on seed and epoch only."""

from collections import Counter
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from torch.utils.flop_counter import FlopCounterMode

from contextanyone_core.config import ContextAnyoneConfig
from contextanyone_core.model.condition import VideoCondition
from contextanyone_core.model.references import ReferenceInputs
from contextanyone_core.model.rope import _cached_table, forget_tables, reference_table, video_table
from contextanyone_core.model.transformer import ContextAnyoneTransformer
from training.data.buckets import (
    Bucket,
    BucketSettings,
    best_placement,
    bucket_flops,
    bucket_tokens,
    plan_buckets,
)
from training.data.sampler import BucketSampler
from training.data.video_windows import longest
from training.flops import forward_flops

TINY = ContextAnyoneConfig.tiny()
WAN = ContextAnyoneConfig.wan_1_3b()
LONG, SHORT, STILL = Bucket(17, 32, 32), Bucket(5, 32, 48), Bucket(1, 32, 32)


@pytest.mark.parametrize("references", [[], [(4, 6)], [(4, 6), (8, 4)]])
@pytest.mark.parametrize(
    "config", [TINY, replace(TINY, emphasize=False), replace(TINY, image_dim=None), replace(TINY, condition_dim=32)]
)
def test_flops_equal_torchs_own_count(config, references):
    with torch.device("meta"):
        model = ContextAnyoneTransformer(config)
        text = torch.zeros(1, config.text_len, config.text_dim)
        clip = [torch.zeros(1, 5, config.image_dim) for _ in references] if config.image_dim else []
        latents = [torch.zeros(1, 16, 1, *size) for size in references]
        inputs = ReferenceInputs(latents, text, clip) if references else None
        with FlopCounterMode(display=False) as counter:
            condition = VideoCondition(torch.zeros(1, 16, 3, 4, 6)) if config.condition_dim else None
            model(torch.zeros(1, 16, 3, 4, 6), torch.zeros(1), text, references=inputs, condition=condition)
    lengths = [height * width // 4 for height, width in references]
    assert forward_flops(config, 18, lengths, 5 * len(clip)) == counter.get_total_flops()


def test_flops_of_wan_1_3b_are_those_of_the_arithmetic():
    config = ContextAnyoneConfig.wan_1_3b()
    assert Bucket(81, 480, 832).token_count(config) == 32760
    assert forward_flops(config, 32760) / 1e12 == pytest.approx(283.0, abs=0.1)


def test_a_clip_goes_to_the_longest_length_and_the_size_that_shows_most():
    settings = BucketSettings()
    assert [longest(settings.frames, count) for count in (1, 32, 33, 80, 500)] == [1, 1, 33, 49, 81]
    assert longest((17,), 16) is None
    assert best_placement(settings, (0, 0, 1920, 1080)).size == (480, 832)
    assert best_placement(settings, (0, 0, 1080, 1920)).size == (832, 480)
    assert best_placement(settings, (0, 0, 700, 700)).size == (624, 624)
    assert best_placement(settings, (0, 0, 320, 180)) is None
    assert best_placement(BucketSettings(sizes=("416x240", "832x480")), (0, 0, 1664, 960)).size == (480, 832)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"sizes": ["832x481"]}, "multiple of 16"),
        ({"sizes": ["wide"]}, "such as 832x480"),
        ({"sizes": ["0x16"]}, "such as 832x480"),
        ({"frames": [80]}, "4k \\+ 1"),
        ({"frames": []}, "at least one"),
    ],
)
def test_impossible_buckets_are_refused(given, message):
    with pytest.raises(ValidationError, match=message):
        BucketSettings.model_validate(given)


@pytest.mark.parametrize("world", [1, 2, 3])
def test_batches_cost_what_the_budget_allows_and_divide_by_the_processes(world):
    flops = {bucket: bucket_flops(WAN, bucket, 257) for bucket in (LONG, SHORT, STILL)}
    plan = plan_buckets([LONG, SHORT, STILL, STILL], WAN, BucketSettings(budget=6.0), 257, world)
    assert plan.rows == {STILL: 2, SHORT: 1, LONG: 1}
    assert plan.batch[LONG] == 6
    for bucket, count in plan.batch.items():
        assert count % world == 0
        assert count * flops[bucket] <= 6.0 * flops[LONG] * (1 + 1e-9)
        assert (count + world) * flops[bucket] > 6.0 * flops[LONG]
    assert "32x32x17" in plan.table()


def test_a_budget_below_the_number_of_processes_is_raised_to_it_and_said(caplog):
    """So no process does less work in a step on a cheaper bucket than in one on the costliest."""
    rows = [LONG, SHORT, STILL]
    assert plan_buckets(rows, WAN, BucketSettings(), 257, 4) == plan_buckets(
        rows, WAN, BucketSettings(budget=4), 257, 4
    )
    assert [record.message for record in caplog.records] == [
        "buckets.budget is 1, of 4 processes together, which take one clip each at least: a step takes 4 clips of the "
        "costliest bucket."
    ]


@pytest.mark.parametrize("world", [1, 2])
def test_a_process_has_no_more_tokens_than_are_allowed(world):
    """And one clip at least."""
    limit = 2 * bucket_tokens(WAN, STILL)
    plan = plan_buckets([LONG, STILL], WAN, BucketSettings(budget=60.0, max_tokens=limit), 257, world)
    assert plan.batch == {STILL: 2 * world, LONG: world}
    assert bucket_tokens(WAN, LONG) > limit


ROWS = st.lists(st.sampled_from([LONG, SHORT, STILL]), min_size=1, max_size=40)


@given(ROWS, st.integers(0, 5), st.integers(0, 3), st.sampled_from([1, 2, 4]))
def test_every_row_comes_in_every_epoch_and_a_batch_has_one_bucket(buckets, seed, epoch, world):
    batch = {LONG: 4, SHORT: 4, STILL: 8}
    alone = BucketSampler(buckets, batch, seed)
    ranks = [BucketSampler(buckets, batch, seed, rank, world) for rank in range(world)]
    seen = Counter()
    for step in range(epoch * alone.steps_per_epoch, (epoch + 1) * alone.steps_per_epoch):
        rows = alone.rows(step)
        parts = [rank.rows(step) for rank in ranks]
        assert sorted(row for part in parts for row in part) == sorted(rows)
        assert len({len(part) for part in parts}) == 1
        (bucket,) = {buckets[row] for row in rows}
        assert len(rows) == batch[bucket]
        seen.update(rows)
    assert set(seen) == set(range(len(buckets)))
    assert sum(seen.values()) - len(buckets) == sum(-count % batch[b] for b, count in Counter(buckets).items())


def test_the_order_is_a_function_of_seed_and_epoch():
    buckets = [LONG, SHORT, STILL] * 20
    batch = {LONG: 2, SHORT: 2, STILL: 2}

    def epoch(seed, number):
        sampler = BucketSampler(buckets, batch, seed)
        start = number * sampler.steps_per_epoch
        return [sampler.rows(step) for step in range(start, start + sampler.steps_per_epoch)]

    assert epoch(1, 0) == epoch(1, 0)
    assert epoch(1, 0) != epoch(1, 1)
    assert epoch(1, 0) != epoch(2, 0)
    sampler = BucketSampler(buckets, batch, 1)
    late = sampler.rows(95)  # asked for at once, as a resumed run does
    assert late == BucketSampler(buckets, batch, 1).rows(95)


def test_uneven_batches_and_empty_data_are_refused():
    with pytest.raises(ValueError, match="no multiple of 2"):
        BucketSampler([LONG], {LONG: 3}, 0, 0, 2)
    with pytest.raises(ValueError, match="no row"):
        BucketSampler([], {}, 0)


def test_the_rotary_tables_of_all_default_buckets_are_kept():
    forget_tables()
    settings = BucketSettings()
    shapes = [Bucket(frames, *size).latents(WAN) for size in settings.shapes() for frames in settings.frames]
    for _ in range(2):
        for frames, rows, columns in shapes:
            grid = (rows // 2, columns // 2)
            video_table(((frames, *grid),), 6, torch.device("meta"))
            reference_table(((1, *grid),), WAN.gap, 6, torch.device("meta"))
    assert _cached_table.cache_info().misses == 25
    forget_tables()
