"""Whether two text encoders are the same model: by weights, or by a probe text across precisions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from amortized.conditioning.shard_format import EncodingPlan

PROBE = "a photograph of a red cube on a wooden table"
# Largest relative distance of two probe vectors of one model: half precision stays below it, another model is
# far above.
PROBE_TOLERANCE = 0.03


def probe_vector(encoder: Any) -> tuple[float, ...]:
    """Return the encoder's pooled vector [D] of PROBE, rounded to six digits."""
    return tuple(round(value, 6) for value in encoder.encode([PROBE]).pooled[0].float().tolist())


def is_same_encoder(plan: EncodingPlan, fingerprint: str, probe: Sequence[float]) -> bool:
    """Return whether `plan` was made with the encoder that has this fingerprint and probe vector."""
    return _agree(plan.fingerprint, plan.probe, fingerprint, probe)


def are_same_encoder(one: Any, other: Any) -> bool:
    """Return whether two encoders are the same model."""
    return _agree(one.fingerprint(), probe_vector(one), other.fingerprint(), probe_vector(other))


def _agree(print_a: str, probe_a: Sequence[float], print_b: str, probe_b: Sequence[float]) -> bool:
    """Return whether fingerprints and probe vectors belong to one model.

    At equal precision the digests of weights and vocabulary must match; at different precision the probe
    vectors must agree to PROBE_TOLERANCE.
    """
    if print_a.partition(" ")[0] == print_b.partition(" ")[0]:
        return print_a == print_b
    if len(probe_a) != len(probe_b):
        return False
    a, b = np.asarray(probe_a), np.asarray(probe_b)
    return float(np.linalg.norm(a - b)) <= PROBE_TOLERANCE * float(np.linalg.norm(b))
