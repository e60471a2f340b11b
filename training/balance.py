"""Detect a discriminator that dominates or has collapsed."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping

_ADVICE = {
    "wins": "teaches S and G little: lower SOLVER.OPTIMIZER.D.LR or SOLVER.DISCRIMINATOR_STEPS",
    "has collapsed": "teaches S and G nothing: raise SOLVER.OPTIMIZER.D.LR or SOLVER.DISCRIMINATOR_STEPS",
}


class DiscriminatorBalance:
    """Warns if D classifies nearly all volumes correctly, or none better than chance, for many log entries in a row.

    Args:
        heads: heads of D, over which its terms are summed.
        window: number of consecutive log entries for a verdict.
        sure: D wins if its probability of the correct class is higher, on healthy and on synthetic volumes.
        chance: D has collapsed if its probability of the correct class, over both, is lower; guessing has 0.5.
    """

    def __init__(self, heads: int = 1, window: int = 10, sure: float = 0.95, chance: float = 0.505) -> None:
        self.heads = heads
        self.sure = sure
        self.chance = chance
        self._verdicts: deque[str | None] = deque(maxlen=window)
        self._reported: str | None = None

    def add(self, entry: Mapping[str, float]) -> str | None:
        """Add a log entry.

        Args:
            entry: mean terms of the objectives by name; entries without a step of D are skipped. The geometric mean of
                D's probability of the correct class is exp(-BCE), BCE being the mean over its heads.

        Returns:
            A warning when the state begins and another when it ends, otherwise None.
        """
        if "discriminator/healthy" not in entry or "discriminator/synthetic" not in entry:
            return None
        healthy, synthetic = (
            math.exp(-entry[f"discriminator/{kind}"] / self.heads) for kind in ("healthy", "synthetic")
        )
        verdict = self._verdict(healthy, synthetic)
        self._verdicts.append(verdict)
        right = f"it is right with probability {healthy:.3f} on healthy and {synthetic:.3f} on synthetic volumes"
        if self._reported is not None and verdict != self._reported:
            ended, self._reported = self._reported, None
            return f"the discriminator {ended} no longer: {right}"
        window = self._verdicts.maxlen
        if self._reported is None and verdict is not None and self._verdicts.count(verdict) == window:
            self._reported = verdict
            return f"the discriminator {verdict}, for {window} log entries now: {right}, and {_ADVICE[verdict]}"
        return None

    def _verdict(self, healthy: float, synthetic: float) -> str | None:
        if min(healthy, synthetic) > self.sure:
            return "wins"
        return "has collapsed" if math.sqrt(healthy * synthetic) < self.chance else None
