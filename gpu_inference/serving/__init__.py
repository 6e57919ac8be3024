"""Serving: micro-batches of frames on a pool of devices."""

from gpu_inference.serving.batcher import Batch, Counts, Dropped, Item, Limits, MicroBatcher, Policy, Reason
from gpu_inference.serving.board import Opened, PoolLimits
from gpu_inference.serving.cost_curve import CostCurve
from gpu_inference.serving.device import DeviceSpec
from gpu_inference.serving.energy import EnergyLedger, Usage
from gpu_inference.serving.health import Failure, HealthLimits, State
from gpu_inference.serving.order import SourceOrder
from gpu_inference.serving.pool import DevicePool
from gpu_inference.serving.power import PowerSensor, find_sensors, pci_address
from gpu_inference.serving.slot import Answer, DeviceStatus

__all__ = [
    "Answer",
    "Batch",
    "CostCurve",
    "Counts",
    "DevicePool",
    "DeviceSpec",
    "DeviceStatus",
    "Dropped",
    "EnergyLedger",
    "Failure",
    "HealthLimits",
    "Item",
    "Limits",
    "MicroBatcher",
    "Opened",
    "Policy",
    "PoolLimits",
    "PowerSensor",
    "Reason",
    "SourceOrder",
    "State",
    "Usage",
    "find_sensors",
    "pci_address",
]
