"""A bundle's network on the CPU by other engines than PyTorch: seconds of a window, Dice, and what the start takes.

    pip install -c constraints.txt openvino nncf onnx onnxscript onnxruntime
    python benchmarks/engines.py [--bundle demo/bundles/Task04_Hippocampus/3d_fullres] [--fold 0] [--cases 20]
        [--repeats 5] [--large_repeats 1]

The first line of the table is the network as a bundle calls it today. An engine runs in a process of its own, with as
many threads as torch has, and takes turns with a process of the first line: its ratio is the median over the pairs. A
window is one pass of the network; "mirrored" is the bundle's inferer on one window in its eight mirrorings, two of
which it asks for at once. The start is all that is done once: the import of the engine, export, calibration,
compilation and the first window.

Dice is the foreground mean over the validation cases of the fold, without mirroring and postprocessing, where an image
that is smaller than the patch is padded to it: every window has one shape. The difference to the first line is paired,
with the bootstrap interval that autoplan's choice of a model has. int8 is calibrated on windows of the fold's training
cases. The large network is the one for patches of 128x128x128, with random weights; --large_repeats 0 leaves it out,
--cases 0 leaves out Dice, --cases None scores all. Rows appear as they are measured.
"""

import contextlib
import functools
import multiprocessing
import os
import shutil
import statistics
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, NamedTuple

import fire
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "templates"))

from augmentation import machine
from monai.bundle import ConfigParser
from scripts.evaluation import dice
from scripts.inferers import MirroredWindowInferer
from scripts.networks import cropped_to, padded_to, with_weights
from scripts.precision import default_amp, logits
from training_step import network_for

from autoplan.evaluation.choice import mean_intervals

BUNDLE = Path(__file__).resolve().parent.parent / "demo" / "bundles" / "Task04_Hippocampus" / "3d_fullres"
LARGE = (128, 128, 128)
CALIBRATION_CASES, CALIBRATION_WINDOWS = 30, 30
LARGE_CALIBRATION_WINDOWS = 1
"""Only the time of the large network counts, and its weights are random."""
PACKAGES = ("torch", "monai", "onnx", "onnxruntime", "openvino", "nncf")

Call = Callable[[torch.Tensor], torch.Tensor]


class UnavailableError(Exception):
    """This machine lacks something that an engine needs; the message says what."""


class Source(NamedTuple):
    """Where a network comes from: fold of a bundle; no bundle for the large network."""

    bundle: Path | None
    fold: int


class Model(NamedTuple):
    """A network, its patch, windows to calibrate with, and a folder for files."""

    network: torch.nn.Module
    patch: tuple[int, ...]
    windows: Callable[[], list[torch.Tensor]]
    folder: Path

    @property
    def example(self) -> torch.Tensor:
        """A window without content."""
        return torch.zeros(1, 1, *self.patch)

    @property
    def part(self) -> torch.Tensor:
        """A window of at most 64 voxels an axis, which is enough to follow the network's operations."""
        return torch.zeros(1, 1, *(min(n, 64) for n in self.patch))


# The engines: from a model to what computes logits. They import what not every machine has.


def eager(model: Model) -> Call:
    """What a bundle does."""
    return model.network


def channels_last(model: Model) -> Call:
    """The same in another layout."""
    network = model.network.to(memory_format=torch.channels_last_3d)
    return lambda window: network(window.contiguous(memory_format=torch.channels_last_3d))


def scripted(model: Model) -> Call:
    """Traced, frozen and optimized TorchScript."""
    return torch.jit.optimize_for_inference(torch.jit.freeze(torch.jit.trace(model.network, model.part)))


def compiled(model: Model) -> Call:
    """Inductor, with frozen weights; it gets no kernel from a run before."""
    if not any(map(shutil.which, (os.environ.get("CXX", "c++"), "g++", "clang++"))):
        raise UnavailableError("no C++ compiler")
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(model.folder / "inductor")
    return torch.compile(model.network, options={"freezing": True})


def onnx_runtime(model: Model, int8: bool = False) -> Call:
    """ONNX Runtime; int8 for the convolutions, the rest in float32."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    path = model.folder / "model.onnx"
    torch.onnx.export(model.network, (model.example,), path, input_names=["window"], dynamo=True, verbose=False)
    if int8:
        path = _quantized_onnx(path, model.windows())
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda window: torch.from_numpy(session.run(None, {"window": window.numpy()})[0])


def _quantized_onnx(path: Path, windows: Sequence[torch.Tensor]) -> Path:
    from onnxruntime import quantization

    class Reader(quantization.CalibrationDataReader):
        """Gives the windows one by one, then None."""

        def __init__(self) -> None:
            self.rest = iter(windows)

        def get_next(self) -> dict[str, Any] | None:
            window = next(self.rest, None)
            return None if window is None else {"window": window.numpy()}

    found = path.with_name("int8.onnx")
    quantization.quantize_static(
        path, found, Reader(), op_types_to_quantize=["Conv"], per_channel=True,
        activation_type=quantization.QuantType.QUInt8, weight_type=quantization.QuantType.QInt8,
        # Without such instructions two products of 8 bits are added in 16, which may be too few.
        reduce_range="vnni" not in Path("/proc/cpuinfo").read_text(),
    )  # fmt: skip
    return found


def openvino(model: Model, precision: str = "float32") -> Call:
    """OpenVINO; int8 is what NNCF makes of the network."""
    import openvino

    core = openvino.Core()
    if precision == "bfloat16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise UnavailableError("not on this CPU")
    network = openvino.convert_model(model.network, example_input=model.part)
    if precision == "int8":
        import nncf

        windows = [window.numpy() for window in model.windows()]
        network = nncf.quantize(network, nncf.Dataset(windows), subset_size=len(windows))
    network.reshape(list(model.example.shape))
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "INFERENCE_PRECISION_HINT": "bf16" if precision == "bfloat16" else "f32",
    }
    program, own = core.compile_model(network, "CPU", settings), threading.local()

    def call(window: torch.Tensor) -> torch.Tensor:
        if not hasattr(own, "request"):
            own.request = program.create_infer_request()  # which serves one thread at a time
        return torch.from_numpy(own.request.infer([window.numpy()])[0])

    return call


EAGER = ("torch, eager", "bfloat16" if default_amp("cpu") else "float32")
ENGINES: dict[tuple[str, str], Callable[[Model], Call]] = {
    EAGER: eager,
    ("torch, eager, channels last", EAGER[1]): channels_last,
    ("torch.jit, frozen", "float32"): scripted,
    ("torch.compile", EAGER[1]): compiled,
    ("ONNX Runtime", "float32"): onnx_runtime,
    ("ONNX Runtime", "int8"): functools.partial(onnx_runtime, int8=True),
    ("OpenVINO", "float32"): openvino,
    ("OpenVINO", "bfloat16"): functools.partial(openvino, precision="bfloat16"),
    ("OpenVINO", "int8"): functools.partial(openvino, precision="int8"),
}
"""Name and precision -> what makes it. Those of torch compute as a bundle does on this CPU, the others as they say."""


# What the process of one engine does.


class Bench:
    """An engine for a network, and what is measured of it."""

    def __init__(self, source: Source, key: tuple[str, str], folder: Path, warm: bool) -> None:
        torch.manual_seed(0)
        self.parser = None if source.bundle is None else _parser(source.bundle, source.fold)
        if self.parser is None:
            self.patch, network = LARGE, network_for(LARGE)
        else:
            self.patch = tuple(self.parser["patch_size"])
            weights = f"{source.bundle}/models/fold_{source.fold}/model.pt"
            network = with_weights(self.parser.get_parsed_content("network_def"), weights)
        self.amp = key[1] == "bfloat16" and key[0].startswith("torch")
        self.image = torch.randn(1, 1, *self.patch)
        model = Model(network.eval(), self.patch, self._calibration, folder)
        start = time.perf_counter()
        try:
            self.call = ENGINES[key](model)
        except ModuleNotFoundError as error:
            raise UnavailableError(f"not installed: {error.name}") from None
        self.window()
        self.start = time.perf_counter() - start
        if warm:
            self.mirrored()

    def window(self) -> float:
        """Seconds of one pass."""
        start = time.perf_counter()
        with torch.no_grad():
            logits(self.call, self.image, self.amp)
        return time.perf_counter() - start

    def mirrored(self) -> float:
        """Seconds of one window in all mirrorings."""
        start = time.perf_counter()
        with torch.no_grad():
            self._inferer(mirror=True)(self.image, self.call)
        return time.perf_counter() - start

    def dice(self, num_cases: int | None) -> list[list[float | None]]:
        """Of each validation case and foreground class, on the grid that the network sees."""
        _, validation = self.parser.get_parsed_content("cases")
        preprocessing, rows = self.parser.get_parsed_content("preprocessing"), []
        for case in validation[:num_cases]:
            data = preprocessing({key: case[key] for key in ("image", "label")})
            label = data["label"][0].as_tensor()
            labels = self._segmentation(data["image"].as_tensor()[None], self.call)
            rows.append(dice(labels, label, range(1, len(self.parser["class_names"]))))
        return rows

    def _segmentation(self, image: torch.Tensor, call: Call) -> torch.Tensor:
        padded = padded_to(image, list(self.patch), [1] * len(self.patch))
        with torch.no_grad():
            probabilities = self._inferer(mirror=False)(padded, call)
        return cropped_to(probabilities, list(image.shape[2:]))[0].argmax(0)

    def _inferer(self, mirror: bool) -> MirroredWindowInferer:
        return MirroredWindowInferer(self.patch, mirror=mirror, amp=self.amp)

    def _calibration(self) -> list[torch.Tensor]:
        """Windows of training cases, as the network sees them in a prediction; any for the large network."""
        if self.parser is None:
            return [torch.randn(1, 1, *self.patch) for _ in range(LARGE_CALIBRATION_WINDOWS)]
        training, _ = self.parser.get_parsed_content("cases")
        preprocessing, windows = self.parser.get_parsed_content("preprocessing"), []

        def note(window: torch.Tensor) -> torch.Tensor:
            windows.append(window.clone())
            return window

        for case in training[:: max(1, len(training) // CALIBRATION_CASES)]:
            self._segmentation(preprocessing({"image": case["image"]})["image"].as_tensor()[None], note)
        return windows[:: max(1, len(windows) // CALIBRATION_WINDOWS)][:CALIBRATION_WINDOWS]


def _parser(bundle: Path, fold: int) -> ConfigParser:
    """The training config of a bundle."""
    parser = ConfigParser()
    parser.read_config(str(bundle / "configs" / "train.json"))
    parser.update({"bundle_root": str(bundle), "fold": fold, "device": "cpu"})
    return parser


_bench: Bench


def _begin(*arguments: Any) -> float:
    """Make the engine of this process, which says nothing on the screen; seconds of its start."""
    global _bench
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    warnings.simplefilter("ignore")
    _bench = Bench(*arguments)
    return _bench.start


def _ask(name: str, *arguments: Any) -> Any:
    return getattr(_bench, name)(*arguments)


# What the first process does.


class Engine:
    """An engine in a process of its own, and the seconds of its start."""

    def __init__(self, pool: ProcessPoolExecutor, *arguments: Any) -> None:
        self.pool = pool
        self.start: float = pool.submit(_begin, *arguments).result()

    def ask(self, name: str, *arguments: Any) -> Any:
        """What a method of its bench gives."""
        return self.pool.submit(_ask, name, *arguments).result()


@contextlib.contextmanager
def running(source: Source, key: tuple[str, str], repeats: dict[str, int]) -> Iterator[Engine]:
    """An engine, until its process ends."""
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder, ProcessPoolExecutor(1, context) as pool:
        yield Engine(pool, source, key, Path(folder), repeats.get("mirrored", 0) > 0)


class Found(NamedTuple):
    """Of one engine and network: seconds of the start, seconds of the first engine and of it in each pair, by what was
    measured, and Dice of each case."""

    start: float
    pairs: dict[str, list[tuple[float, float]]]
    dice: list[list[float | None]]


def measure(
    first: Engine, source: Source, key: tuple[str, str], repeats: dict[str, int], cases: int | None
) -> Found | str:
    """An engine in turn with the first one; in words where there is nothing to measure. The first engine takes turns
    with another process of its own kind: its ratio tells how steady the machine is."""
    try:
        with running(source, key, repeats) as engine:
            pairs = {what: [(first.ask(what), engine.ask(what)) for _ in range(n)] for what, n in repeats.items()}
            return Found(engine.start, pairs, [] if cases == 0 else engine.ask("dice", cases))
    except UnavailableError as error:
        return str(error)
    except BrokenProcessPool:
        return "its process was ended, perhaps for want of memory"
    except Exception as error:
        return f"fails: {type(error).__name__}: {str(error).strip().splitlines()[0]}"


def timing(found: Found | str, what: str, unit: float, form: str) -> list[str]:
    """Median of the times, and of their ratios to the first engine."""
    if isinstance(found, str):
        return [found if what == "window" else "", ""]
    pairs = found.pairs[what]
    if not pairs:
        return ["", ""]
    ratio = statistics.median(other / first for first, other in pairs)
    return [format(unit * statistics.median(other for _, other in pairs), form), f"{ratio:.2f}"]


def scores(found: Found | str, first: Found | str) -> list[str]:
    """Mean foreground Dice, and its difference to the first engine with an interval."""
    if isinstance(found, str) or isinstance(first, str) or not found.dice:
        return ["", ""]
    mean = _foreground(found.dice)
    if found is first:
        return [f"{mean:.4f}", ""]
    rows = [
        [None if a is None or b is None else a - b for a, b in zip(*case, strict=True)]
        for case in zip(found.dice, first.dice, strict=True)
    ]
    _, interval = mean_intervals(rows)
    shown = "" if interval is None else f" [{interval[0]:+.4f}, {interval[1]:+.4f}]"
    return [f"{mean:.4f}", f"{_foreground(rows):+.4f}{shown}"]


def _foreground(rows: Sequence[Sequence[float | None]]) -> float:
    """Mean over the classes of the mean over the cases."""
    classes = [[value for value in column if value is not None] for column in zip(*rows, strict=True)]
    return statistics.mean(statistics.mean(values) for values in classes if values)


HEADER = (
    "engine", "precision", "ms per window", "of eager", "ms, mirrored", "of eager", "Dice", "difference", "start, s",
    "s per window, 128³", "of eager", "start, s",
)  # fmt: skip


def main(
    bundle: str = str(BUNDLE),
    fold: int = 0,
    cases: int | None = 20,
    repeats: int = 5,
    large_repeats: int = 1,
    only: str = "",
) -> None:
    """Measure all and print the table.

    Args:
        bundle: folder of a 3D bundle of one channel.
        fold: which of its trained networks.
        cases: validation cases that are scored; None: all.
        repeats: pairs of windows, a fifth as many of them mirrored; 0 leaves the times out.
        large_repeats: pairs of windows of the large network; 0 leaves it out.
        only: a part of an engine's name, to measure this one alone.
    """
    began = time.perf_counter()
    keys = [key for key in ENGINES if key == EAGER or only in " ".join(key)]
    sources = Source(Path(bundle).resolve(), fold), Source(None, 0)
    counts = {"window": repeats, "mirrored": -(-repeats // 5)}, {"window": large_repeats}
    print(f"{machine(_installed())}, {torch.get_num_threads()} threads\n")
    print(f"| {' | '.join(HEADER)} |\n|{'--|' * len(HEADER)}", flush=True)
    reference: Found | str = ""
    with running(sources[0], EAGER, counts[0]) as first, contextlib.ExitStack() as stack:
        if large_repeats:
            large_first = stack.enter_context(running(sources[1], EAGER, counts[1]))
        for key in keys:
            found = measure(first, sources[0], key, counts[0], cases)
            reference = found if key == EAGER else reference
            cells = [*key, *timing(found, "window", 1000, ".0f"), *timing(found, "mirrored", 1000, ".0f")]
            cells += [*scores(found, reference), _start(found)]
            if large_repeats:
                found = measure(large_first, sources[1], key, counts[1], 0)
                cells += [*timing(found, "window", 1, ".2f"), _start(found)]
            print(f"| {' | '.join(cells)} |", flush=True)
    scored = 0 if isinstance(reference, str) else len(reference.dice)
    print(f"\n{scored} cases of fold {fold}; {time.perf_counter() - began:.0f} s in all.")


def _start(found: Found | str) -> str:
    return "" if isinstance(found, str) else f"{found.start:.1f}"


def _installed() -> list[str]:
    """The packages that are there."""
    from importlib.util import find_spec

    return [name for name in PACKAGES if find_spec(name)]


if __name__ == "__main__":
    fire.Fire(main)
