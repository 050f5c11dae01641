"""Logits that no token can be chosen from: found on the device, read by the host once a call."""

from torch import Tensor
from transformers import LogitsProcessor


class FiniteRows(LogitsProcessor):
    """Finds rows of logits that hold NaN or +inf, or no finite value.

    A single -inf is a ban and legitimate. A broken row is replaced by zeros, so that the loop goes
    on and sampling does not fail on the device; `check` raises at the end of the call. In between
    the host reads nothing from the device.

    One instance serves one call of `generate`.
    """

    def __init__(self):
        self.found: Tensor | None = None  # [] bool, whether a row was broken at any step

    def __call__(self, input_ids: Tensor | None, scores: Tensor) -> Tensor:
        """Logits or log-probabilities `[R, V]` -> the same, zeros in broken rows."""
        broken = ~scores.amax(dim=-1, keepdim=True).isfinite()  # NaN where the row has a NaN
        found = broken.any()
        self.found = found if self.found is None else self.found | found.to(self.found.device)
        return scores.masked_fill(broken, 0.0)

    def check(self) -> None:
        """Raises `ValueError` where a row was broken; the host waits for the device."""
        if self.found is not None and bool(self.found):
            raise ValueError(
                "the model's logits are not finite (NaN, +inf, or no finite value) in a row of the "
                "batch, so no token can be chosen from them: check the weights, and where they are "
                "sound load the model in a wider dtype (bfloat16 or float32 in place of float16)"
            )


def check_finite(logits: Tensor) -> None:
    """Raises `ValueError` for logits `[R, V]` of which `FiniteRows` finds a row broken."""
    finite = FiniteRows()
    finite(None, logits)
    finite.check()
