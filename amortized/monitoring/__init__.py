"""Logs, warnings, stopping rules, traces, and the watchdog."""

from amortized.monitoring.config import MonitorConfig
from amortized.monitoring.monitor import RunFacts, StepMonitor, StepRecord, TrainingStopped
from amortized.monitoring.profiler import profile_steps
from amortized.monitoring.stopwatch import Stopwatch
from amortized.monitoring.watchdog import Watchdog

__all__ = [
    "MonitorConfig",
    "RunFacts",
    "StepMonitor",
    "StepRecord",
    "Stopwatch",
    "TrainingStopped",
    "Watchdog",
    "profile_steps",
]
