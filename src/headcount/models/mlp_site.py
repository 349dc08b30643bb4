"""An MLP's last map as a site: what its neurons, or all of them together, write into the residual stream."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from headcount.attention.inputs import Positions
from headcount.attention.measurements import TAKEN
from headcount.models.act import Needs
from headcount.models.decoder import entered_by
from headcount.models.mlp_measuring import Measuring, MeasuringMlps, MeasuringNeurons
from headcount.models.observe import mlps_of
from headcount.models.projection import Factors, factors_of
from headcount.models.state import own_settings
from headcount.outputs import Outputs
from headcount.units import KindId

#: From a layer's place and what its units put out, ``[…, neuron or hidden]``, to what goes on.
LayerFunction = Callable[[int, Tensor], Tensor]


class MlpSite:
    """The map into the residual stream of every decoder layer's MLP: measures, layer by layer."""

    def __init__(self, model: PreTrainedModel, kind: KindId) -> None:
        self._kind, self._mlps = kind, mlps_of(model)
        self._factors: Factors = factors_of(model)
        self._seen: dict[tuple[str, int], Tensor] = {}  # what was read, layer → [batch, token, width]
        self._at_zero: dict[int, Tensor] = {}  # what a map writes for no activation, where it has a bias

    def begin(self) -> None:
        """Before passes between which the model's weights may have become others."""
        self._factors.check()
        self._at_zero.clear()

    @contextmanager
    def watching(self, model: PreTrainedModel, needs: Needs, layer_function: LayerFunction) -> Iterator[None]:
        """Inside, ``layer_function`` stands where each MLP writes."""
        wanted = needs.of_rows | needs.of_tokens
        with ExitStack() as stack:
            stack.callback(self._seen.clear)
            for layer, mlp in self._mlps.items():
                if wanted & {"relative_square", "residual_norm", "residual_cosine", "residual"}:
                    stack.enter_context(entered_by(mlp.reader, self._keeping("residual", layer)))
                if "gate_norm" in wanted and mlp.gate is not None:
                    stack.callback(mlp.gate.register_forward_hook(self._gated(layer)).remove)
                through = self._reading(layer, layer_function) if self._kind == "neuron" else None
                if through:
                    stack.callback(mlp.down.register_forward_pre_hook(through).remove)
                else:
                    stack.callback(mlp.down.register_forward_hook(self._writing(layer, layer_function)).remove)
            yield

    def outputs(
        self,
        layer: int,
        values: Tensor,
        positions: Positions,
        needs: Needs = Needs(),  # noqa: B008  (frozen)
        *,
        past: int = 0,
        earlier: Mapping[str, Tensor] | None = None,
        rows: Callable[[Tensor], Tensor] = lambda hidden: hidden,
        starts: bool = True,
        **of_text: Any,
    ) -> Outputs:
        """What the units put out, with the measurements that ``needs`` names, ``uniform`` excepted.

        Args:
            layer: the place of the decoder layer.
            values: activations ``[row, token, neuron]``, or what the MLP writes ``[row, token, hidden]``.
            positions: which of the tokens are real.
            needs: what to measure.
            past: of attention alone.
            earlier: measurements of the tokens before these, each ``[row, unit]``, where the text began earlier.
            rows: lays what a layer read, as the model's modules hand it on, out in rows, ``[row, token, width]``.
            starts: whether the texts start here.
            of_text: ``tokens`` and ``places`` of ``Outputs``.
        """
        units = values.transpose(1, 2)[..., None] if self._kind == "neuron" else values[:, None]
        with own_settings(values.device.type):
            taking = self._measuring(layer, values, positions, rows)
            own = {name for name in needs.of_rows & TAKEN.keys() if starts or TAKEN[name].taken != "first"}
            first = {name for name in needs.of_tokens & TAKEN.keys() if TAKEN[name].taken == "first"}
            measured = taking.of_rows(own | (first if starts else set()))
            by_token = {name: taking.of_tokens(name) for name in needs.of_tokens & TAKEN.keys() - first}
        for name in first:
            known = measured[name] if starts or earlier is None else earlier[name]
            by_token[name] = known[:, :, None].expand(-1, -1, values.shape[1])
        raw = needs.of_rows | needs.of_tokens
        if raw & {"output", "residual", "real"}:
            whole = values.new_ones(values.shape[:2], dtype=torch.bool)
            measured |= {"real": whole if positions.real is None else positions.real}
            measured |= {"output": units} if "output" in raw else {}
            measured |= {"residual": rows(self._seen["residual", layer].detach())} if "residual" in raw else {}
        return Outputs(
            layer=layer, values=units, positions=positions, starts=starts, measured=measured, by_token=by_token, **of_text
        )  # fmt: skip

    def joined(self, units: Tensor) -> Tensor:
        """``[row, unit, token, width]``, as of ``outputs``, in the form of its ``values``."""
        return units[..., 0].transpose(1, 2) if self._kind == "neuron" else units[:, 0]

    def _measuring(
        self, layer: int, values: Tensor, positions: Positions, rows: Callable[[Tensor], Tensor]
    ) -> Measuring:
        def read(name: str) -> Tensor:
            if name == "gate" and self._mlps[layer].plain:
                return values
            return rows(self._seen[name, layer].detach())

        if self._kind == "mlp":
            return MeasuringMlps(values, positions, read)
        return MeasuringNeurons(values, positions, read, partial(self._norms, layer, values))

    def _norms(self, layer: int, like: Tensor) -> Tensor:
        """‖w‖ of each neuron's column of the map, float32 ``[neuron]``: as the factors of heads of one number each."""
        mlp = self._mlps[layer]
        factor = self._factors.of(mlp.down, ("mlp", layer), mlp.num_neurons, like=like.new_empty(1, 1, 1, 1))
        return factor[:, 0, 0].abs()

    def _keeping(self, name: str, layer: int) -> Callable[[Tensor], Tensor]:
        def keep(hidden: Tensor) -> Tensor:
            self._seen[name, layer] = hidden
            return hidden

        return keep

    def _gated(self, layer: int) -> Callable[[nn.Module, tuple[Any, ...], Tensor], None]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
            self._seen["gate", layer] = output

        return hook

    def _reading(self, layer: int, through: LayerFunction) -> Callable[[nn.Module, tuple[Any, ...]], tuple[Any, ...]]:
        return lambda module, args: (through(layer, args[0]), *args[1:])

    def _writing(self, layer: int, through: LayerFunction) -> Callable[[nn.Module, tuple[Any, ...], Tensor], Tensor]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
            if not any("bias" in name for name, _ in module.named_parameters()):
                return through(layer, output)
            if layer not in self._at_zero:
                self._at_zero[layer] = module.forward(torch.zeros_like(args[0][..., :1, :]))
            own = output - self._at_zero[layer]
            values = through(layer, own)
            return torch.where(
                values == own, output, values + self._at_zero[layer]
            )  # bit for bit, where nothing changed

        return hook
