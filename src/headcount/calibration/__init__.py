"""What is measured of a model once, on texts, and is needed to decide which units are off or what stands in their place."""

from headcount.calibration.calibration import RIDGE, Calibration
from headcount.calibration.facts import CalibrationFacts, CalibrationTexts
from headcount.calibration.layer import LayerCalibration

__all__ = ["RIDGE", "Calibration", "CalibrationFacts", "CalibrationTexts", "LayerCalibration"]
