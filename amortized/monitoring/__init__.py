"""Logs, warnings, stopping rules, traces, and the watchdog."""

from amortized.monitoring.config import MonitorConfig
from amortized.monitoring.forecast import forecast
from amortized.monitoring.monitor import (
    WEIGHTS,
    RunFacts,
    StepMonitor,
    StepRecord,
    TrainingStopped,
    peak_memory_gib,
)
from amortized.monitoring.profiler import profile_steps
from amortized.monitoring.run_html import Facts as PageFacts
from amortized.monitoring.stopwatch import Stopwatch
from amortized.monitoring.watchdog import Watchdog

__all__ = [
    "WEIGHTS",
    "MonitorConfig",
    "PageFacts",
    "RunFacts",
    "StepMonitor",
    "StepRecord",
    "Stopwatch",
    "TrainingStopped",
    "Watchdog",
    "forecast",
    "peak_memory_gib",
    "profile_steps",
]
