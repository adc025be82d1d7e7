"""Adam of tables without a fused kernel: the formula, what stays, and the state that belongs to each shard."""

import copy

import numpy as np
import pytest
import torch
from fbgemm_gpu.split_embedding_configs import EmbOptimType
from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation
from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
    ComputeDevice,
    SplitTableBatchedEmbeddingBagsCodegen,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import nn
from torch.distributed._shard.sharded_tensor import ShardedTensor
from torchrec.distributed.composable.table_batched_embedding_slice import TableBatchedEmbeddingSlice

from dlrm.shards import local_shards
from dlrm.touched_rows_adam import TouchedRowsAdam
from planner.plan import ShardingPlan
from planner.sharding import ShardingType
from planner.topology import Topology
from planner.torchrec_bridge import module_name, table_name
from tests.dlrm.test_equivalence import (
    LOCAL_BATCH,
    TABLES,
    UNEVEN,
    make_plan,
    topology,
    train_reference,
    train_sharded,
)
from tests.ranks import run_ranks

RATE, BETAS, EPS = 0.05, (0.9, 0.99), 1e-3
ROWS, COLUMNS = 6, 4
Steps = list[NDArray[np.float32]]


def expected_after(start: NDArray[np.float32], grads: Steps) -> dict[str, NDArray[np.float64]]:
    """Weights and moments after gradients `[R, C]` a step, row by row, in double precision."""
    weight, first, second = start.astype(np.float64), np.zeros(start.shape), np.zeros(start.shape)
    for step, grad in enumerate(grads, start=1):
        for row, values in enumerate(grad.astype(np.float64)):
            if not values.any():
                continue
            first[row] = BETAS[0] * first[row] + (1 - BETAS[0]) * values
            second[row] = BETAS[1] * second[row] + (1 - BETAS[1]) * values**2
            unbiased = first[row] / (1 - BETAS[0] ** step), second[row] / (1 - BETAS[1] ** step)
            weight[row] -= RATE * unbiased[0] / (np.sqrt(unbiased[1]) + EPS)
    return {"weight": weight, "exp_avg": first, "exp_avg_sq": second}


def draw(seed: int, num_steps: int, share: float) -> tuple[NDArray[np.float32], Steps]:
    """First weights, and gradients of which a share of the rows is touched in each step."""
    rng = np.random.default_rng(seed)
    touched = rng.random((num_steps, ROWS, 1)) < share
    grads = rng.normal(size=(num_steps, ROWS, COLUMNS)) * touched
    return rng.normal(size=(ROWS, COLUMNS)).astype(np.float32), list(grads.astype(np.float32))


def train(parameter: nn.Parameter, grads: Steps, device: str = "cpu") -> TouchedRowsAdam:
    optimizer = TouchedRowsAdam([parameter], RATE, BETAS, EPS)
    for grad in grads:
        parameter.grad = torch.from_numpy(grad.copy()).to(device)
        optimizer.step()
    return optimizer


@settings(deadline=None, max_examples=50)
@given(seed=st.integers(0, 2**16), num_steps=st.integers(1, 12), share=st.sampled_from([0.0, 0.2, 0.7, 1.0]))
def test_the_formula_holds_for_any_rows_touched(seed: int, num_steps: int, share: float) -> None:
    start, grads = draw(seed, num_steps, share)
    parameter = nn.Parameter(torch.from_numpy(start.copy()))
    state = train(parameter, grads).state[parameter]
    expected = expected_after(start, grads)
    np.testing.assert_allclose(parameter.detach().numpy(), expected["weight"], rtol=0, atol=1e-5)
    for moment in ("exp_avg", "exp_avg_sq"):
        np.testing.assert_allclose(state[moment].numpy(), expected[moment], rtol=0, atol=1e-6)
    assert int(state["step"]) == num_steps


def test_it_is_torchs_adam_where_every_row_is_touched() -> None:
    start, grads = draw(seed=1, num_steps=10, share=1.0)
    ours, theirs = (nn.Parameter(torch.from_numpy(start.copy())) for _ in range(2))
    train(ours, grads)
    optimizer = torch.optim.Adam([theirs], RATE, BETAS, EPS)
    for grad in grads:
        theirs.grad = torch.from_numpy(grad.copy())
        optimizer.step()
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


def test_rows_that_no_step_touches_keep_weight_and_moments_to_the_bit() -> None:
    start, grads = draw(seed=2, num_steps=10, share=1.0)
    parameter = nn.Parameter(torch.from_numpy(start.copy()))
    optimizer = train(parameter, grads[:5])
    before = parameter.detach().clone(), copy.deepcopy(optimizer.state[parameter])
    quiet = torch.from_numpy(grads[5].copy())
    quiet[:3] = 0
    parameter.grad = quiet
    optimizer.step()
    assert torch.equal(parameter[:3], before[0][:3])
    assert (parameter[3:] != before[0][3:]).all()
    for moment in ("exp_avg", "exp_avg_sq"):
        assert torch.equal(optimizer.state[parameter][moment][:3], before[1][moment][:3])


def test_a_step_without_a_gradient_counts_all_the_same() -> None:
    parameter = nn.Parameter(torch.ones(ROWS, COLUMNS))
    optimizer = TouchedRowsAdam([parameter], RATE, BETAS, EPS)
    optimizer.step()
    assert torch.equal(parameter, torch.ones(ROWS, COLUMNS))
    assert int(optimizer.state[parameter]["step"]) == 1


def test_training_goes_on_from_a_saved_state() -> None:
    start, grads = draw(seed=3, num_steps=12, share=0.5)
    whole = nn.Parameter(torch.from_numpy(start.copy()))
    train(whole, grads)
    first = nn.Parameter(torch.from_numpy(start.copy()))
    saved = copy.deepcopy(train(first, grads[:6]).state[first])
    second = nn.Parameter(first.detach().clone())
    optimizer = TouchedRowsAdam([second], RATE, BETAS, EPS)
    for moment in ("exp_avg", "exp_avg_sq"):
        optimizer.state[second][moment].copy_(saved[moment])
    optimizer.set_optimizer_step(6)
    for grad in grads[6:]:
        second.grad = torch.from_numpy(grad.copy())
        optimizer.step()
    assert torch.equal(second, whole)


def test_a_slice_moves_its_own_rows_of_the_shared_memory() -> None:
    start, grads = draw(seed=4, num_steps=8, share=0.6)
    flat = nn.Parameter(torch.full((3 * start.size,), 7.0))
    piece = TableBatchedEmbeddingSlice(flat, start.size, 2 * start.size, ROWS, COLUMNS)
    with torch.no_grad():
        piece.copy_(torch.from_numpy(start))
    optimizer = TouchedRowsAdam([piece], RATE, BETAS, EPS)
    for grad in grads:
        flat.grad = torch.ones_like(flat)
        flat.grad[start.size : 2 * start.size] = torch.from_numpy(grad).view(-1)
        optimizer.step()
    before, own, after = flat.detach().split(start.size)
    np.testing.assert_allclose(own.view(ROWS, COLUMNS), expected_after(start, grads)["weight"], rtol=0, atol=1e-5)
    assert torch.equal(before, torch.full_like(before, 7.0))
    assert torch.equal(after, torch.full_like(after, 7.0))
    optimizer.zero_grad()
    assert flat.grad is None


def train_shards(rank: int, world_size: int, plans: dict[str, ShardingPlan], where: Topology) -> dict[str, dict]:
    return {name: _train_shards(rank, world_size, plan, where) for name, plan in plans.items()}


def _train_shards(rank: int, world_size: int, plan: ShardingPlan, where: Topology) -> dict:
    """The moments of this rank's shards, what the module says of its weights, and what a step at rate 0 moved."""
    model, optimizer = train_sharded(rank, world_size, plan, where, "adam")
    moments = {
        (
            table_name(key.split(".")[-2]),
            name.split(".")[-1],
            *shard.metadata.shard_offsets,
        ): shard.tensor.numpy().copy()
        for key, entry in optimizer.state_dict()["state"].items()
        for name, value in entry.items()
        if isinstance(value, ShardedTensor)
        for shard in value.local_shards()
    }
    shards = list(local_shards(model))
    before = [shard.weight.clone() for shard in shards]
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    optimizer.step()
    return {
        "moments": moments,
        "shapes": {(shard.table, shard.row_offset, shard.col_offset): tuple(shard.weight.shape) for shard in shards},
        "moved": max((shard.weight - old).abs().max().item() for shard, old in zip(shards, before, strict=True)),
    }


PLANS = {"uneven_columns": UNEVEN, "rows": (ShardingType.ROW_WISE,) * len(TABLES)}


@pytest.fixture(scope="module")
def sharded() -> list[dict[str, dict]]:
    where = topology(2, 2)
    return run_ranks(train_shards, 2, {name: make_plan(types, where) for name, types in PLANS.items()}, where)


@pytest.mark.distributed
@pytest.mark.parametrize("plan", PLANS)
def test_every_shard_has_the_moments_of_its_place(sharded: list[dict[str, dict]], plan: str) -> None:
    model, optimizer = train_reference(2 * LOCAL_BATCH, "adam")
    bags = model.model.sparse_arch.embedding_bag_collection.embedding_bags
    for rank in sharded:
        moments, shapes = rank[plan]["moments"], rank[plan]["shapes"]
        wanted = {(t, moment, row, col) for t, row, col in shapes for moment in ("momentum1", "exp_avg_sq")}
        assert set(moments) == wanted
        for (table, moment, row, col), values in moments.items():
            state = optimizer.state[bags[module_name(table)].weight]
            whole = state["exp_avg" if moment == "momentum1" else moment]
            num_rows, num_cols = shapes[table, row, col]
            expected = whole[row : row + num_rows, col : col + num_cols]
            assert expected.abs().max() > 0
            torch.testing.assert_close(torch.from_numpy(values), expected, rtol=1e-3, atol=1e-8)


@pytest.mark.distributed
@pytest.mark.parametrize("plan", PLANS)
def test_a_changed_learning_rate_holds_from_the_next_step(sharded: list[dict[str, dict]], plan: str) -> None:
    assert [rank[plan]["moved"] for rank in sharded] == [0.0, 0.0]


@pytest.mark.gpu
def test_it_is_fbgemms_fused_adam() -> None:
    """The kernel that trains on GPUs, fed with the same gradients."""
    start, grads = draw(seed=5, num_steps=12, share=0.5)
    kernel = SplitTableBatchedEmbeddingBagsCodegen(
        [(ROWS, COLUMNS, EmbeddingLocation.DEVICE, ComputeDevice.CUDA)],
        optimizer=EmbOptimType.ADAM,
        learning_rate=RATE,
        eps=EPS,
        beta1=BETAS[0],
        beta2=BETAS[1],
    )
    (weight,) = kernel.split_embedding_weights()
    weight.copy_(torch.from_numpy(start))
    parameter = nn.Parameter(torch.from_numpy(start.copy()).cuda())
    train(parameter, [grad for grad in grads if grad.any()], "cuda")
    for grad in filter(np.any, grads):
        rows = np.flatnonzero(grad.any(axis=1))
        ids, offsets = torch.from_numpy(rows).cuda(), torch.arange(len(rows) + 1).cuda()
        kernel(indices=ids, offsets=offsets).backward(torch.from_numpy(grad[rows]).cuda())
    torch.testing.assert_close(parameter.detach(), weight, rtol=0, atol=1e-5)
