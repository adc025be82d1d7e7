"""Says when a model does not learn, which neither loss nor speed shows at a glance."""

from typing import Any

# An AUC in this band ranks no better than a coin.
COIN_BAND = (0.49, 0.51)
# Windows in a row within the band before it is said: the first ones are always there.
PATIENCE_WINDOWS = 20


class LearningHealth:
    """Watches the records and gives each warning once."""

    def __init__(self) -> None:
        self._windows_in_band = 0
        self._said: set[str] = set()

    def judge(self, record: dict[str, Any]) -> dict[str, Any] | None:
        """A record of kind `warning` when this one gives cause, else None."""
        text = self._held_out(record) if record["kind"] == "evaluation" else self._training(record)
        if text is None or text in self._said:
            return None
        self._said.add(text)
        return {"kind": "warning", "step": record["step"], "message": text}

    def _held_out(self, record: dict[str, Any]) -> str | None:
        ne = record.get("ne")
        if ne is not None and ne >= 1:
            return (
                f"NE on held-out batches is {ne:.3f}: not below 1, so the model predicts no better than the base "
                "rate; check labels, learning rates and the number of steps"
            )
        return None

    def _training(self, record: dict[str, Any]) -> str | None:
        auc = record.get("auc")
        if record["kind"] != "window" or auc is None:
            return None
        in_band = COIN_BAND[0] <= auc <= COIN_BAND[1]
        self._windows_in_band = self._windows_in_band + 1 if in_band else 0
        if self._windows_in_band == PATIENCE_WINDOWS:
            low, high = COIN_BAND
            return f"AUC has stayed within {low}-{high} for {PATIENCE_WINDOWS} windows: nothing is learned"
        return None
