"""Exported graphs with what is needed to use them: loaded without Lightning, timm or the code that trained them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

import torch
from torch import Tensor, nn

from lightning_efficient._graph_archive import check_only_tensors
from lightning_efficient._graph_problems import quiet
from lightning_efficient._version import __version__
from lightning_efficient.errors import ConfigurationError, did_you_mean
from lightning_efficient.functional._checks import check_choice, check_count
from lightning_efficient.inference._calibrated import is_hash, is_number, short
from lightning_efficient.inference._onnx import OnnxGraph
from lightning_efficient.inference.routing_thresholds import CalibratedRouting

if TYPE_CHECKING:
    from lightning_efficient.inference.routed import RoutedPredictor

SCHEMA = 1
"""Version of ``metadata.json``; one of a newer version is refused."""
METADATA = "metadata.json"
FORMAT = "lightning-efficient export"
"""What ``format`` in ``metadata.json`` says, by which an export is known."""

ExportFormat: TypeAlias = Literal["torch", "onnx"]
FORMATS: tuple[ExportFormat, ...] = get_args(ExportFormat)

QUERY_SCORE = "query_score"


class ExportedPart:
    """One graph as a callable on a batch; it may be called from several threads.

    Args:
        name: Of the part.
        graph: From a batch to a tuple of tensors.
        shape: Of one sample.
        dtype: Of the samples.
    """

    def __init__(
        self, name: str, graph: Callable[[Tensor], tuple[Tensor, ...]], shape: tuple[int, ...], dtype: torch.dtype
    ) -> None:
        self.name, self.shape, self.dtype, self._graph = name, shape, dtype, graph

    def __call__(self, inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Return the output for a batch ``(N, *shape)`` with ``N >= 1``, or the tuple where there are several.

        Raises:
            ConfigurationError: another shape or dtype than was exported.
        """
        if tuple(inputs.shape[1:]) != self.shape or inputs.dtype != self.dtype or not len(inputs):
            given = f"{tuple(inputs.shape)}, {str(inputs.dtype).removeprefix('torch.')}"
            wanted = f"(N, {', '.join(map(str, self.shape))}), {str(self.dtype).removeprefix('torch.')}"
            raise ConfigurationError(f"part {self.name!r}: inputs are {given}; it was exported for {wanted}, N >= 1")
        with torch.inference_mode():
            outputs = self._graph(inputs)
        return outputs[0] if len(outputs) == 1 else outputs

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r}, shape={self.shape}, dtype={self.dtype})"


@dataclass(frozen=True)
class ExportedModel:
    """What :func:`load_export` returns.

    Attributes:
        parts: A callable on batches for each part, such as ``edge`` and ``global``, or ``model``.
        metadata: The content of ``metadata.json``.
        routing: The calibrated threshold with its promise; ``None`` where none was exported.
    """

    parts: Mapping[str, ExportedPart]
    metadata: Mapping[str, Any]
    routing: CalibratedRouting | None = None

    @property
    def threshold(self) -> float | None:
        """Largest query score that is kept at the edge; ``None`` without a calibrated threshold of two models."""
        known = self.routing is not None and len(self.routing.thresholds) == 1
        return self.routing.thresholds[0] if known and self.routing is not None else None

    def routed(
        self,
        threshold: float | CalibratedRouting | None = None,
        global_model: Callable[[Tensor], Tensor] | None = None,
        **options: Any,
    ) -> RoutedPredictor:
        """Return a predictor that asks the global model where the edge graph says so.

        Args:
            threshold: Largest query score that is kept; by default the one that was exported.
            global_model: From a batch to logits, such as an ``EdgeClient``; by default the exported part ``global``.
            options: Of :class:`~lightning_efficient.inference.routed.RoutedPredictor`, such as ``budget``.

        Raises:
            ConfigurationError: no graph with a query score, no global model, or no threshold.
        """
        from lightning_efficient.inference.routed import RoutedPredictor

        edge = next((name for name in self.parts if QUERY_SCORE in self.metadata["parts"][name]["outputs"]), None)
        if edge is None:
            raise ConfigurationError(
                f"parts {sorted(self.parts)}: none has the output {QUERY_SCORE!r}, so there is nothing to route by"
            )
        if global_model is None and "global" not in self.parts:
            message = f"global_model: this export has parts {sorted(self.parts)}, and no 'global'; give a global_model"
            raise ConfigurationError(message)
        chosen = threshold if threshold is not None else self.routing
        if chosen is None:
            raise ConfigurationError("threshold: none was exported; give one, or calibrate before the export")
        entry = self.metadata["parts"][edge]
        base = _ScoredBase(self.parts[edge], entry["outputs"].index(QUERY_SCORE), entry["classes"] or 1)
        return RoutedPredictor(base, _GivenScore(), global_model or self.parts["global"], chosen, **options)  # type: ignore[arg-type]


def load_export(
    folder: str | Path,
    runtime: ExportFormat = "torch",
    *,
    parts: Iterable[str] | None = None,
    threads: int | None = None,
    device: str | torch.device = "cpu",
) -> ExportedModel:
    """Load what ``export_graphs`` or ``lightning-efficient export`` has written.

    Every file is compared with its hash in ``metadata.json`` first, so a damaged file, or one of another export, never
    answers. That is no protection against someone who writes both; load only what you trust.

    Args:
        folder: The export; an edge device needs ``metadata.json`` and the files of its own part.
        runtime: ``torch`` for the ``.pt2`` files, ``onnx`` for ONNX Runtime, which needs the extra ``onnx``.
        parts: Names of the parts to load; by default all.
        threads: Threads of ONNX Runtime within an operator; torch has one number for the process,
            ``torch.set_num_threads``.
        device: Where the graphs run, such as ``cuda``; ONNX Runtime runs on the CPU.

    Raises:
        ConfigurationError: no export, a damaged one, one of a newer version, or options that do not fit it.
        MissingExtraError: ONNX Runtime is not installed.

    Example:
        >>> from tempfile import mkdtemp
        >>> from lightning_efficient.inference.export import export_graphs
        >>> folder = Path(mkdtemp()) / "export"
        >>> report = export_graphs({"model": nn.Linear(4, 3)}, torch.zeros(2, 4), folder, formats=("torch",))
        >>> tuple(load_export(folder).parts["model"](torch.zeros(5, 4)).shape)
        (5, 3)
    """
    check_choice("runtime", runtime, FORMATS)
    place = torch.device(device)
    if threads is not None:
        check_count("threads", threads)
    if runtime == "torch" and threads is not None:
        raise ConfigurationError(f"threads={threads!r} is of runtime='onnx'; use torch.set_num_threads for torch.")
    if runtime == "onnx" and place.type != "cpu":
        raise ConfigurationError(f"device={str(device)!r}: runtime='onnx' runs on the CPU; take runtime='torch'.")
    folder = Path(folder)
    metadata = read_metadata(folder)
    names = list(metadata["parts"]) if parts is None else list(parts)
    shape, dtype = tuple(metadata["input"]["shape"]), getattr(torch, metadata["input"]["dtype"])
    loaded = {}
    for name in names:
        if name not in metadata["parts"]:
            known = list(metadata["parts"])
            raise ConfigurationError(f"parts: {name!r} is not one of {known}.{did_you_mean(name, known)}")
        graph = _load(folder, name, metadata["parts"][name]["formats"], runtime, threads, place)
        loaded[name] = ExportedPart(name, graph, shape, dtype)
    routing = metadata["routing"]
    return ExportedModel(loaded, metadata, None if routing is None else CalibratedRouting.from_dict(routing))


def read_metadata(folder: str | Path) -> dict[str, Any]:
    """Return the content of an export's ``metadata.json``, checked entry by entry; loads no graph.

    Raises:
        ConfigurationError: no export, a damaged one, or one of a newer version.
    """
    path = Path(folder) / METADATA
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigurationError(f"{folder} is no export: it has no {METADATA}") from error
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise _damaged(path, "it is no JSON") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise _damaged(path, f"its format is not {FORMAT!r}")
    schema = content.get("schema")
    if isinstance(schema, int) and schema > SCHEMA:
        raise ConfigurationError(
            f"{path} is of version {short(content.get('version'))} of lightning-efficient, and this is {__version__}; "
            "export again, or install that version"
        )
    _check_entries(path, "", content, _ENTRIES)
    for name, part in content["parts"].items():
        _check_entries(path, f"part {name!r}: ", part, _PART)
    if content["routing"] is not None:
        try:
            CalibratedRouting.from_dict(content["routing"])
        except ConfigurationError as error:
            raise _damaged(path, str(error)) from error
        if content.get("routing_sha256") != hash_entry(content["routing"]):
            raise _damaged(path, "'routing' is not what was exported, by 'routing_sha256'")
    return content


def hash_entry(entry: Mapping[str, Any]) -> str:
    """Return the SHA-256 of an entry of ``metadata.json``, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(entry, sort_keys=True).encode()).hexdigest()


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _load(
    folder: Path,
    name: str,
    formats: Mapping[str, Any],
    runtime: ExportFormat,
    threads: int | None,
    device: torch.device,
) -> Callable[[Tensor], tuple[Tensor, ...]]:
    if runtime not in formats:
        raise ConfigurationError(f"runtime={runtime!r}: part {name!r} was exported for {sorted(formats)} only.")
    files = formats[runtime]
    for file in files:
        path = folder / file["name"]
        try:
            found = sha256_of(path)
        except FileNotFoundError as error:
            message = f"part {name!r}: {path} is missing; copy it, or name the parts that are here by parts=[...]"
            raise ConfigurationError(message) from error
        except OSError as error:
            raise ConfigurationError(f"part {name!r}: {path} cannot be read ({error.strerror})") from error
        if found != file["sha256"]:
            raise ConfigurationError(
                f"part {name!r}: {path} is not the file that was exported, by its hash in {METADATA}; export again"
            )
    path = folder / files[0]["name"]
    return OnnxGraph(path, threads) if runtime == "onnx" else _TorchGraph(path, device)


class _TorchGraph:
    """A ``.pt2`` file as a callable from a tensor to a tuple of tensors."""

    def __init__(self, path: Path, device: torch.device) -> None:
        try:
            with quiet():
                check_only_tensors(path)
                program = torch.export.load(path)
                if device.type != "cpu":
                    from torch.export.passes import move_to_device_pass

                    program = move_to_device_pass(program, device)
                self._module = program.module()
        except Exception as error:  # a file of another torch version fails in many ways
            line = (str(error).splitlines() or [type(error).__name__])[0]
            raise ConfigurationError(f"torch {torch.__version__} cannot load {path}: {line}") from error
        self._device = device

    def __call__(self, inputs: Tensor) -> tuple[Tensor, ...]:
        found = self._module(inputs.to(self._device))
        outputs = found if isinstance(found, tuple | list) else (found,)
        return tuple(output.to(inputs.device) for output in outputs)


class _ScoredBase:
    """An edge graph as ``(logits, query_score)``, the latter in the place of features."""

    def __init__(self, part: ExportedPart, place: int, classes: int) -> None:
        self._part, self._place, self._classes = part, place, classes

    def __call__(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        if not len(inputs) and inputs.shape[1:] == self._part.shape and inputs.dtype == self._part.dtype:
            # graphs want one input at least
            return torch.zeros(0, self._classes, device=inputs.device), torch.zeros(0, device=inputs.device)
        outputs = self._part(inputs)
        return outputs[0], outputs[self._place]


class _GivenScore(nn.Module):
    """A router that returns the score that the edge graph computed in the same call as the logits."""

    needs_features = True

    def forward(self, logits: Tensor, query_score: Tensor) -> Tensor:
        return query_score


def _check_entries(path: Path, where: str, content: Any, entries: Mapping[str, Callable[[Any], bool]]) -> None:
    if not isinstance(content, Mapping):
        raise _damaged(path, f"{where}it is {short(content)}")
    for name, fits in entries.items():
        if name not in content:
            raise _damaged(path, f"{where}it has no {name!r}")
        if not fits(content[name]):
            raise _damaged(path, f"{where}{name!r} is {short(content[name])}")


def _damaged(path: Path, reason: str) -> ConfigurationError:
    return ConfigurationError(f"{path} is damaged: {reason}; export again")


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and is_number(value, 1, 2**48)


def _is_file(value: Any) -> bool:
    return (
        isinstance(value, Mapping)
        and isinstance(name := value.get("name"), str)
        and name not in ("", ".", "..", METADATA)
        and not set(name) & set("/\\\0")
        and is_hash(value.get("sha256"))
        and _is_count(value.get("bytes"))
    )


def _are_formats(value: Any) -> bool:
    """Tell whether a value maps formats to files; a name with a folder could lead anywhere."""
    return (
        isinstance(value, Mapping)
        and len(value) > 0
        and set(value) <= set(FORMATS)
        and all(isinstance(files, list) and len(files) > 0 and all(map(_is_file, files)) for files in value.values())
    )


def _is_input(value: Any) -> bool:
    return (
        isinstance(value, Mapping)
        and isinstance(shape := value.get("shape"), list)
        and all(map(_is_count, shape))
        and value.get("dtype") in ("float32", "int64", "int32", "uint8", "bool")
    )


def _are_words(value: Any) -> bool:
    return isinstance(value, list) and len(value) > 0 and all(isinstance(each, str) and each for each in value)


def _is_mapping_or_none(value: Any) -> bool:
    return value is None or isinstance(value, Mapping)


_ENTRIES: dict[str, Callable[[Any], bool]] = {
    "schema": lambda value: value == SCHEMA and not isinstance(value, bool),
    "version": lambda value: isinstance(value, str),
    "created": lambda value: isinstance(value, str),
    "input": _is_input,
    "parts": lambda value: isinstance(value, Mapping) and len(value) > 0,
    "routing": _is_mapping_or_none,
    "normalization": _is_mapping_or_none,
    "precision": _is_mapping_or_none,
    "weights": _is_mapping_or_none,
}
"""What each entry of ``metadata.json`` must be."""

_PART: dict[str, Callable[[Any], bool]] = {
    "outputs": _are_words,
    "classes": lambda value: value is None or _is_count(value),
    "weights_sha256": is_hash,
    "formats": _are_formats,
}
