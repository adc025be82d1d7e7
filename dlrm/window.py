"""What one rank gathers between two exchanges: preallocated, so that a step only copies."""

import numpy as np
import torch

from dlrm.exchange import BAD_STEP, COMMAND_ID, OWN_COLUMNS, PEAK_BYTES, TIMINGS, Window, WindowExchange
from dlrm.memory import peak_bytes
from dlrm.metrics import BinaryMetrics
from dlrm.timing import STEP_COLUMNS, PhaseClock


class WindowLog:
    """Losses, logits and labels of up to `window_steps` steps; metrics are computed when the window closes.

    Attributes:
        steps_ms: float64 [steps, len(STEP_COLUMNS)], this rank's timings of every step of the latest closed window.
    """

    def __init__(self, window_steps: int, batch_size: int, device: torch.device, exchange: WindowExchange) -> None:
        self._losses = torch.zeros(window_steps, device=device)
        self._logits = torch.zeros(window_steps, batch_size, device=device)
        self._labels = torch.zeros(window_steps, batch_size, device=device)
        self._metrics = BinaryMetrics(device)
        self._exchange = exchange
        self._device = device
        self._steps = 0
        self.steps_ms = np.zeros((0, len(STEP_COLUMNS)))

    @property
    def is_empty(self) -> bool:
        """Whether no step has been added since the last exchange."""
        return self._steps == 0

    @property
    def is_full(self) -> bool:
        """Whether the window has all its steps."""
        return self._steps == len(self._losses)

    def add(self, loss: torch.Tensor, logits: torch.Tensor, labels: torch.Tensor) -> None:
        """Keep one step's loss `[]`, logits `[B]` and labels `[B]`."""
        self._losses[self._steps].copy_(loss)
        self._logits[self._steps].copy_(logits)
        self._labels[self._steps].copy_(labels)
        self._steps += 1

    def close(self, clock: PhaseClock, command_id: int, step: int) -> Window:
        """Exchange the window that ends with `step` and begin the next. Collective."""
        self._metrics.reset()
        self._metrics.update(self._logits[: self._steps].flatten(), self._labels[: self._steps].flatten())
        own = np.zeros(len(OWN_COLUMNS))
        own[COMMAND_ID] = command_id
        bad = torch.nonzero(~torch.isfinite(self._losses[: self._steps]))
        own[BAD_STEP] = step - self._steps + int(bad[0]) + 1 if bad.numel() else 0
        own[PEAK_BYTES] = peak_bytes(self._device)
        self.steps_ms = clock.read()
        own[TIMINGS] = self.steps_ms.mean(axis=0)
        self._steps = 0
        return self._exchange.share(own, self._metrics.state)
