"""What is done of a calibration, in a hidden folder beside its file until all of it is.

``.NAME.calibrating/`` holds ``layer-INDEX.safetensors``, each a calibration of one layer, and ``sensitivities.safetensors``. A
part that is of other texts, of another model or not whole is made again.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from torch import Tensor

from headcount.calibration import Calibration, CalibrationFacts, LayerCalibration
from headcount.errors import InputError, RunError
from headcount.files import cannot_write, kind
from headcount.store.files import leftovers
from headcount.store.lock import claimed
from headcount.tensor_files import TensorFile, write_tensors
from headcount.unfinished import sync_folder

_SENSITIVITIES = "sensitivities.safetensors"

#: By layer, the mean of ‖g‖² and, where it was asked for, of g gᵀ.
Sensitivities = Mapping[int, tuple[float, Tensor | None]]


class CalibrationParts:
    """The layers and sensitivities that are done; without a folder none are, and none are kept."""

    def __init__(self, folder: Path | None, facts: CalibrationFacts) -> None:
        self._folder, self._facts = folder, facts

    def layer(self, index: int, *, covariance: bool) -> LayerCalibration | None:
        """A layer that is done, with a covariance or without."""
        if self._folder is None:
            return None
        try:
            found = Calibration.load(self._layer_file(self._folder, index))
        except InputError:
            return None
        layer = found.layers.get(index)
        same = found.facts == self._facts and layer is not None and ("covariance" in layer.holds) == covariance
        return layer if same else None

    def keep_layer(self, index: int, layer: LayerCalibration) -> LayerCalibration:
        """The layer as it lies in its file, where there is a folder. Raises RunError if it cannot be written."""
        if self._folder is None:
            return layer
        file = self._layer_file(self._folder, index)
        Calibration(layers={index: layer}, facts=self._facts).save(file)
        return Calibration.load(file).layers[index]

    def sensitivities(self, *, gradients: bool) -> Sensitivities | None:
        """Those that are done, with g gᵀ or without."""
        if self._folder is None:
            return None
        try:
            file = TensorFile(self._folder / _SENSITIVITIES)
            said, tensors = file.facts, {name: file.read(name) for name in file.shapes}
        except (OSError, ValueError, RecursionError):
            return None
        squared = said.get("squared")
        layers = {str(layer.index) for layer in self._facts.layers}
        if said.get("facts") != self._facts.model_dump(mode="json") or not isinstance(squared, dict):
            return None
        if squared.keys() != layers or tensors.keys() != (layers if gradients else set()):
            return None
        return {int(index): (float(mean), tensors.get(index)) for index, mean in squared.items()}

    def keep_sensitivities(self, found: Sensitivities) -> None:
        """Raises RunError if it cannot be written."""
        if self._folder is not None:
            tensors = {str(index): outer for index, (_, outer) in found.items() if outer is not None}
            said = {
                "facts": self._facts.model_dump(mode="json"),
                "squared": {str(i): mean for i, (mean, _) in found.items()},
            }
            shapes = {name: tensor.shape for name, tensor in tensors.items()}
            write_tensors(self._folder / _SENSITIVITIES, said, shapes, tensors.__getitem__)

    def finish(self, calibration: Calibration, file: Path) -> None:
        """Write the whole to ``file``, by way of the folder, so that nothing half made is left elsewhere."""
        assert self._folder is not None
        whole = self._folder / file.name
        calibration.save(whole)
        try:
            whole.replace(file)
            sync_folder(file.parent)
        except OSError as error:
            raise cannot_write(file, error) from error

    def _layer_file(self, folder: Path, index: int) -> Path:
        return folder / f"layer-{index}.safetensors"


def parts_folder(file: Path) -> Path:
    """Where the parts of what is to be in ``file`` are kept."""
    return file.with_name(f".{file.name}.calibrating")


@contextmanager
def calibrating(file: Path | None, facts: CalibrationFacts, command: str) -> Iterator[CalibrationParts]:
    """The parts of what is to be in ``file``; they go when the block ends as it should, by which time it is there.

    Raises:
        RunError: it cannot be written there, or another process makes the same.
    """
    if file is None:
        yield CalibrationParts(None, facts)
        return
    folder = parts_folder(file)
    with claimed(folder, "calibration", lambda _: True, command):
        yield CalibrationParts(folder, facts)
        _clear(folder)
    _remove(folder)


def clear_parts(file: Path) -> None:
    """Remove the parts of what is in ``file`` already, which a process left that was killed just after it had written it."""
    folder = parts_folder(file)
    if kind(folder) == "folder":
        with suppress(RunError):  # another process makes it anew, or nothing can be written there
            with claimed(folder, "calibration", lambda _: True, ""):
                _clear(folder)
            _remove(folder)


def _clear(folder: Path) -> None:
    for path in [*folder.glob("layer-*.safetensors"), folder / _SENSITIVITIES, *leftovers(folder)]:
        if kind(path) == "file":
            path.unlink()


def _remove(folder: Path) -> None:
    with suppress(OSError):  # somebody put things of their own there
        (folder / ".lock").unlink(missing_ok=True)
        folder.rmdir()
