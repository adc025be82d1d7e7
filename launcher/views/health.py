"""Says when a model does not learn, which neither loss nor speed shows at a glance."""

from typing import Any

# An AUC in this band ranks no better than a coin.
COIN_BAND = (0.49, 0.51)
# Windows in a row with a sign before it is said: the first windows of a run always have both.
PATIENCE_WINDOWS = 20


class LearningHealth:
    """Watches the records and gives each kind of warning once a run."""

    def __init__(self) -> None:
        self._in_a_row = {"coin": 0, "base rate": 0, "one class": 0}
        self._said: set[str] = set()

    def judge(self, record: dict[str, Any]) -> dict[str, Any] | None:
        """A record of kind `warning` when this one gives cause, else None.

        On held-out samples one record is enough; in training a sign must stay for `PATIENCE_WINDOWS`.
        """
        signs = {
            "coin": record.get("auc") is not None and COIN_BAND[0] <= record["auc"] <= COIN_BAND[1],
            "base rate": record.get("ne") is not None and record["ne"] >= 1,
            "one class": record.get("loss") is not None and record.get("auc") is None,
        }
        if record["kind"] == "window":
            self._in_a_row = {sign: self._in_a_row[sign] + 1 if is_so else 0 for sign, is_so in signs.items()}
            signs = {sign: length >= PATIENCE_WINDOWS for sign, length in self._in_a_row.items()}
        elif record["kind"] != "evaluation":
            return None
        for sign, is_so in signs.items():
            if is_so and sign not in self._said:
                self._said.add(sign)
                return {"kind": "warning", "step": record["step"], "message": _advice(sign, record)}
        return None


def _advice(sign: str, record: dict[str, Any]) -> str:
    where = "held-out samples" if record["kind"] == "evaluation" else f"the last {PATIENCE_WINDOWS} windows"
    if sign == "one class":
        return f"{where} have one class only: AUC and NE say nothing; check the label column"
    if sign == "coin":
        return f"AUC on {where} is {record['auc']:.3f}, that of a coin: nothing is learned; check labels and features"
    return (
        f"NE on {where} is {record['ne']:.3f}, not below 1: the model predicts no better than the base rate; "
        "check labels, learning rates and the number of steps"
    )
