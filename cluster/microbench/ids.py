"""Random ids of a fused lookup: skewed, scattered over the rows, in bags; and what they touch."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from cluster.microbench.recipes import LookupRecipe, ShardRecipe
from planner.lookups import NUM_REUSE_BINS, LookupShard

# Steps of the golden section spread consecutive numbers evenly. Source: Knuth, TAOCP volume 3, section 6.4.
GOLDEN = 0.6180339887498949


@dataclass(frozen=True, eq=False)
class Batch:
    """One batch for a fused kernel.

    Attributes:
        indices: int64 [ids], bag by bag, feature by feature.
        offsets: int64 [F x B + 1], where each bag starts.
        shards: What the batch asks of every shard.
    """

    indices: Tensor
    offsets: Tensor
    shards: tuple[LookupShard, ...]


def draw_batch(recipe: LookupRecipe, generator: torch.Generator) -> Batch:
    """One random batch on the generator's device."""
    lengths = [draw_lengths(shard, recipe.samples, generator) for shard in recipe.shards]
    ids = [draw_ids(shard, int(each.sum()), generator) for shard, each in zip(recipe.shards, lengths, strict=True)]
    described = [describe_ids(shard, each, recipe.samples) for shard, each in zip(recipe.shards, ids, strict=True)]
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64, device=generator.device), torch.cat(lengths).cumsum(0)])
    return Batch(torch.cat(ids), offsets, tuple(described))


def draw_lengths(shard: ShardRecipe, samples: int, generator: torch.Generator) -> Tensor:
    """Lengths int64 [F x B] of bags: Poisson, or the two whole numbers around the mean."""
    mean = shard.ids_per_sample / shard.num_features
    size = (shard.num_features * samples,)
    if shard.is_ragged:
        means = torch.full(size, mean, device=generator.device)
        return torch.poisson(means, generator=generator).to(torch.int64)
    dice = torch.rand(size, generator=generator, device=generator.device)
    return (dice < mean - math.floor(mean)).to(torch.int64) + math.floor(mean)


def draw_ids(shard: ShardRecipe, count: int, generator: torch.Generator) -> Tensor:
    """Ids int64 [count] by a Zipf law bounded to the rows, its ranks spread so that hot rows are not neighbours.

    The law's continuous form is inverted: rank = ((rows + 1)^(1 - skew) u + 1 - u)^(1 / (1 - skew)).
    """
    share = torch.rand(count, generator=generator, device=generator.device, dtype=torch.float32)
    exponent, most = 1.0 - shard.skew, math.log(shard.num_rows + 1)
    if abs(exponent) < 1e-3:
        ranks = torch.exp(share * most)
    else:
        ranks = torch.exp(torch.log1p(share * math.expm1(exponent * most)) / exponent)
    ranks = ranks.to(torch.int64).sub_(1).clamp_(0, shard.num_rows - 1)
    return ranks.mul_(_coprime_step(shard.num_rows)).remainder_(shard.num_rows)


def describe_ids(shard: ShardRecipe, ids: Tensor, samples: int) -> LookupShard:
    """What these ids ask of the shard: their mean number a sample, distinct rows and the reuse histogram."""
    counts = _count_uses(ids, shard.num_rows)
    # Bin i > 0 holds the counts in (2^(i-1), 2^i].
    bins = torch.log2(counts.to(torch.float64)).ceil().to(torch.int64).clamp_(max=NUM_REUSE_BINS - 1)
    reuse = torch.bincount(bins, minlength=NUM_REUSE_BINS).to(torch.float64) / max(1, len(counts))
    return LookupShard(
        num_rows=shard.num_rows,
        num_cols=shard.num_cols,
        ids_per_sample=len(ids) / samples,
        distinct_rows=float(len(counts)),
        reuse=tuple(reuse.tolist()),
        num_features=shard.num_features,
    )


def mean_shards(batches: list[Batch]) -> tuple[LookupShard, ...]:
    """The shards as the batches ask for them on average."""
    return tuple(_mean_shard(each) for each in zip(*(batch.shards for batch in batches), strict=True))


def _mean_shard(shards: tuple[LookupShard, ...]) -> LookupShard:
    count, distinct = len(shards), sum(shard.distinct_rows for shard in shards)
    reuse = [
        sum(shard.distinct_rows * shard.reuse[index] for shard in shards) / max(1.0, distinct)
        for index in range(NUM_REUSE_BINS)
    ]
    first = shards[0]
    return LookupShard(
        num_rows=first.num_rows,
        num_cols=first.num_cols,
        ids_per_sample=sum(shard.ids_per_sample for shard in shards) / count,
        distinct_rows=distinct / count,
        reuse=tuple(reuse),
        num_features=first.num_features,
    )


def _count_uses(ids: Tensor, num_rows: int) -> Tensor:
    """How often each row that occurs at all does; by a sort where a counter a row would be mostly zeros."""
    if num_rows > 8 * len(ids):
        return torch.unique(ids, return_counts=True)[1]
    counts = torch.bincount(ids, minlength=num_rows)
    return counts[counts > 0]


def _coprime_step(num_rows: int) -> int:
    """A step that visits every row once."""
    step = max(1, round(num_rows * GOLDEN))
    while math.gcd(step, num_rows) != 1:
        step += 1
    return step
