"""One object that starts from another: a field fitted to a scene that cannot be copied."""

from amortized.starts.fitting import Agreement, Fit, agreement, check_inside, fit_field

__all__ = ["Agreement", "Fit", "agreement", "check_inside", "fit_field"]
