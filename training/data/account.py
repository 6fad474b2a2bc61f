"""The account of a checked manifest: what is kept and dropped, the buckets, how much of the clips is used."""

from __future__ import annotations

from contextanyone_core.config import ContextAnyoneConfig
from contextanyone_core.runtime.memory import CLIP_TOKENS
from training.data.buckets import BucketSettings, plan_buckets
from training.data.check import Checked, usage
from training.data.manifest import drop_table


def account(checked: Checked, settings: BucketSettings) -> str:
    """The account as text; only what is dropped, where no row can be used."""
    text = drop_table(len(checked.clips), checked.dropped)
    if not checked.clips:
        return text
    buckets = [clip.bucket for clip in checked.clips]
    plan = plan_buckets(buckets, ContextAnyoneConfig.wan_1_3b(), settings, clip_tokens=CLIP_TOKENS)
    lines = "".join(f"{line}\n" for line in usage(checked.clips))
    return f"{text}\nBuckets, by the FLOPs of the 1.3B model:\n{plan.table()}\n{lines}"
