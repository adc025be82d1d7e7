"""What one rank gathers between two exchanges: preallocated, so that a step only copies."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist

from dlrm.exchange import Mail, WindowExchange
from dlrm.metrics import NUM_STATES, BinaryMetrics
from dlrm.shard_sample import SHARD_COLUMNS
from dlrm.step_meter import StepMeter


@dataclass(frozen=True)
class Span:
    """The steps of a window, and what was known when it closed.

    Attributes:
        step: The last step, counted from 1.
        num_steps: How many.
        epoch: Pass over the data.
        total_steps: Of the whole job, if that is known.
        seconds: How long the window took.
    """

    step: int
    num_steps: int
    epoch: int
    total_steps: int | None
    seconds: float


@dataclass(frozen=True, eq=False)
class Window:
    """What all ranks know alike of a window.

    Attributes:
        span: Its steps.
        metrics: The summed state of `BinaryMetrics`.
        steps: float64 [N, W, C], every rank's row of every step; none without telemetry.
        shards: float64 [S, len(SHARD_COLUMNS)], what each shard looked up in the last step; none without telemetry.
        first_bad_step: (step, rank) of the first loss that was not finite, if there was one.
    """

    span: Span
    metrics: torch.Tensor
    steps: np.ndarray
    shards: np.ndarray
    first_bad_step: tuple[int, int] | None


@dataclass(frozen=True, eq=False)
class Exchanged:
    """What an exchange brought: the command that all ranks hold (or 0), and the window whose figures have arrived."""

    agreed_command: int
    window: Window | None


class WindowLog:
    """Losses, logits and labels of up to `window_steps` steps; metrics are computed when the window closes.

    On a GPU the figures of a window arrive with the next one, or with `flush`: see `Mail`.

    Attributes:
        own_steps: float64 [N, C], this rank's rows of the latest window that arrived.
    """

    def __init__(
        self, window_steps: int, batch_size: int, device: torch.device, world_size: int, meter: StepMeter
    ) -> None:
        self._losses = torch.zeros(window_steps, device=device)
        self._logits = torch.zeros(window_steps, batch_size, device=device)
        self._labels = torch.zeros(window_steps, batch_size, device=device)
        self._metrics = BinaryMetrics(device)
        self._meter = meter
        self._exchange = WindowExchange(world_size, window_steps, meter.num_columns, meter.most_shards)
        self._mail = Mail(device)
        self._spans: list[Span] = []
        self._num_steps = 0
        self.own_steps = np.zeros((0, meter.num_columns))

    @property
    def num_steps(self) -> int:
        """Steps added since the last exchange."""
        return self._num_steps

    @property
    def is_full(self) -> bool:
        """Whether the window has all its steps."""
        return self._num_steps == len(self._losses)

    def add(self, loss: torch.Tensor, logits: torch.Tensor, labels: torch.Tensor) -> None:
        """Keep one step's loss `[]`, logits `[B]` and labels `[B]`."""
        self._losses[self._num_steps].copy_(loss)
        self._logits[self._num_steps].copy_(logits)
        self._labels[self._num_steps].copy_(labels)
        self._num_steps += 1

    def close(self, span: Span, command_id: int) -> Exchanged:
        """Exchange the window of the steps `span` and begin the next. Collective."""
        self._metrics.reset()
        self._metrics.update(self._logits[: self._num_steps].flatten(), self._labels[: self._num_steps].flatten())
        dist.all_reduce(self._metrics.state)
        is_bad = ~torch.isfinite(self._losses[: self._num_steps])
        # The first of the largest: a window without a bad step has 0 for all, and counts as none.
        bad_step = torch.where(is_bad.any(), span.step - span.num_steps + 1 + is_bad.int().argmax(), 0)
        shards = self._meter.count_shards()
        arrived = self._mail.swap(torch.cat([self._metrics.state, bad_step[None].double(), shards.flatten()]))
        self._spans.append(span)
        self._num_steps = 0
        return self._share(arrived, self._meter.clock.read(), command_id)

    def flush(self) -> Exchanged | None:
        """Exchange the window that has not arrived, if there is one. Collective."""
        arrived = self._mail.swap(None)
        return None if arrived is None else self._share(arrived, self._meter.clock.flush(), command_id=0)

    def _share(self, arrived: torch.Tensor | None, rows: np.ndarray, command_id: int) -> Exchanged:
        if arrived is None:
            nothing = np.zeros((0, len(SHARD_COLUMNS)))
            return Exchanged(self._exchange.share(command_id, 0, rows, nothing).agreed_command, None)
        state, bad_step, shards = arrived[:NUM_STATES], int(arrived[NUM_STATES]), arrived[NUM_STATES + 1 :]
        gathered = self._exchange.share(command_id, bad_step, rows, shards.numpy())
        self.own_steps = rows
        window = Window(
            span=self._spans.pop(0),
            metrics=state.clone(),
            steps=gathered.steps,
            shards=self._meter.join_shards(gathered.shards),
            first_bad_step=gathered.first_bad_step,
        )
        return Exchanged(gathered.agreed_command, window)
