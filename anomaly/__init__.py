"""Detectors, thresholds and alerts: arrays in, arrays out."""

from anomaly.alerts import AlertEvent, AlertMachine, alert_id, describe
from anomaly.detector import Detector, Explain, state_from_bytes
from anomaly.detectors.ewz import EwzConfig, EwzDetector
from anomaly.errors import BadDetector, StateMismatch
from anomaly.registry import DETECTORS, build_detector
from anomaly.verdict import Verdict, judge

__all__ = [
    "DETECTORS",
    "AlertEvent",
    "AlertMachine",
    "BadDetector",
    "Detector",
    "EwzConfig",
    "EwzDetector",
    "Explain",
    "StateMismatch",
    "Verdict",
    "alert_id",
    "build_detector",
    "describe",
    "judge",
    "state_from_bytes",
]
