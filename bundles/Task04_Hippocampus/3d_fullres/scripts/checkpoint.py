"""Saving a training and going on with it."""

from __future__ import annotations

import hashlib
import json
import logging
import pickle
import signal
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from ignite import distributed as idist
from ignite.engine import Engine, Events

from scripts.datalists import ALL
from scripts.files import continued, file_digest, link_atomically, write_atomically, write_text_atomically
from scripts.seen import Seen
from scripts.stopping import OtherRecipeError

logger = logging.getLogger(__name__)

FINISHED = "finished.json"
RECORD = "model.json"
"""File beside a model.pt: the digest of its network, and the settings that it was trained with."""
_UNREADABLE = (
    RuntimeError, EOFError, OSError, pickle.UnpicklingError, KeyError, ValueError, NotImplementedError, zlib.error,
    zipfile.BadZipFile,
)  # fmt: skip


def save_atomically(value: Any, path: Path) -> None:
    """`torch.save`, atomically."""

    def save(temporary: Path) -> None:
        with temporary.open("wb") as file:  # a name instead would become a part of the file
            torch.save(value, file)

    write_atomically(path, save)


def load_checked(path: Path) -> Any:
    """What `save_atomically` wrote, after a check of every byte: `torch.load` does not look at the checksums that
    `torch.save` writes.

    Raises:
        zipfile.BadZipFile, RuntimeError, ...: the file is damaged.
    """
    with zipfile.ZipFile(path) as archive:
        if damaged := archive.testzip():
            raise zipfile.BadZipFile(f"the checksum of {damaged} is wrong")
    state = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(state, dict) or not {"network", "objects", "random", "epoch", "batches"} <= state.keys():
        raise ValueError("it is no checkpoint of a training")
    return state


def model_file_of(bundle_root: str, ckpt_dir: str, fold: int | str) -> str | None:
    """Where a training leaves the network that the bundle's inference uses: models/model.pt for fold 0 in the bundle
    itself, and for fold "all" while fold 0 has no network; None for others."""
    is_used = fold == 0 or (fold == ALL and not Path(bundle_root, "models", "fold_0", "model.pt").is_file())
    return f"{bundle_root}/models/model.pt" if is_used and str(ckpt_dir).startswith(bundle_root) else None


def holds(network: torch.nn.Module, model_file: str | Path) -> bool:
    """Whether a network has the weights that a file holds."""
    if not Path(model_file).is_file():
        return False
    mine, other = network.state_dict(), torch.load(model_file, map_location="cpu", weights_only=True)
    return mine.keys() == other.keys() and all(torch.equal(value.cpu(), other[name]) for name, value in mine.items())


def was_mirrored(model_file: str | Path, mirror_prob: float = 0.5) -> bool:
    """Whether the network in a file was trained on mirrored patches, so that mirroring helps its predictions.

    Args:
        model_file: weights; the record lies beside them.
        mirror_prob: what tells it where there is no record.
    """
    settings = _trained_with(model_file)
    if settings is None:
        logger.warning("%s is of another network than %s; predictions are mirrored.", _record(model_file), model_file)
        return True
    try:
        return float(settings["mirror_prob"]) > 0
    except (KeyError, TypeError, ValueError):
        return float(mirror_prob) > 0


def check_features(model_file: str | Path, features: Sequence[int]) -> None:
    """Refuse a network of another width than that of the weights: a training for a short time may be of a narrow one.

    Args:
        model_file: weights; the record lies beside them.
        features: feature maps of each level.

    Raises:
        ValueError: they differ; with the features that fit.
    """
    trained = (_trained_with(model_file) or {}).get("features", list(features))
    if trained != list(features):
        raise ValueError(
            f"{model_file} has a network with features {trained}. Add to the command: --features '{trained}'"
        )


def _record(model_file: str | Path) -> Path:
    return Path(model_file).with_name(RECORD)


def _trained_with(model_file: str | Path) -> dict[str, Any] | None:
    """The settings that the record beside a file of weights has; none where it cannot be read, None where it is of
    another network."""
    try:
        found = json.loads(_record(model_file).read_text(encoding="utf-8"))
        return {**found["settings"]} if found["model"] == file_digest(model_file) else None
    except (OSError, ValueError, KeyError, TypeError):
        return {}


class Checkpoint:
    """Handler for a trainer: saves all that a training needs to go on, and goes on from it when the trainer starts.

    It must be the last of the handlers: at the end of an epoch it saves what the others have done. `last.pt` is written
    after every epoch; the one before stays as `previous.pt` and takes over, with a warning, when `last.pt` cannot be
    read. `model.pt` is the network's flat state dict, for inference. SIGTERM and Ctrl-C end the training after the
    iteration under way, with everything saved. `finished.json` is there while, and only while, the training in the
    folder has come to its end: by the stop rule or by its number of epochs. It holds "epochs", "stopped" (by the stop
    rule), "model", the digest of model.pt, the recipe: "max_epochs", whether the learning rate had a "schedule", and
    the other "settings"; and the "cases" that the network has seen. `model.json`, beside model.pt, has its digest, the
    settings and the cases. Only rank 0 writes.

    Where another program has put weights into the network (the server of a federation, MONAI Label), the training
    begins with these and not with a checkpoint. It leaves the fold alone: its files go to a folder beside that of the
    fold, and only the file of `model_file` is replaced.

    Args:
        ckpt_dir: folder of the fold.
        network: bare network, whose state dict is saved and, as model.pt, used for inference.
        objects: whatever else has `state_dict` and `load_state_dict`; one that writes files has their `output_dir`.
        model_file: tells, each time, where to leave a copy of model.pt, the network that the bundle's inference uses;
            None, or None in answer, for no copy.
        interval: epochs between two savings.
        settings: of the training, to be recorded in finished.json and beside every model.pt.
        seen: what the network has seen, recorded likewise; a training goes on only where it fits.
    """

    def __init__(
        self,
        ckpt_dir: str | Path,
        network: torch.nn.Module,
        objects: Mapping[str, Any],
        model_file: Callable[[], str | None] | None = None,
        interval: int = 1,
        settings: Mapping[str, Any] | None = None,
        seen: Seen | None = None,
    ) -> None:
        self.ckpt_dir, self.network, self.objects = Path(ckpt_dir), network, dict(objects)
        self.settings, self.seen = dict(settings or {}), seen
        self.model_file = model_file
        self.interval = int(interval)
        self.started = False
        self.digest = _digest(network)
        self.signal: int | None = None
        self._old_handlers: dict[int, Any] = {}

    def attach(self, engine: Engine) -> None:
        """Load on start, save after epochs and when a signal asks to stop."""
        engine.add_event_handler(Events.STARTED, self.start)
        engine.add_event_handler(Events.STARTED, self._listen)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._stop_on_signal)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._epoch_completed)
        engine.add_event_handler(Events.COMPLETED, self._finish)
        engine.add_event_handler(Events.EXCEPTION_RAISED, self._fail)

    def start(self, engine: Engine) -> None:
        """Go on from a checkpoint at the first start in this process, unless the network was given other weights since
        it was built; leave everything as it is at a later one."""
        first, self.started = not self.started, True
        # Rank 0 decides: the other ranks were given its weights.
        same = idist.get_rank() != 0 or _digest(self.network) == self.digest
        if idist.get_world_size() > 1:
            same = bool(idist.broadcast(float(same), src=0))
        if not same:
            self._leave_fold()
        elif first:
            self.load(engine)
            return
        self._unmark()

    def _leave_fold(self) -> None:
        """Write to a folder of its own from now on."""
        self.ckpt_dir = continued(self.ckpt_dir)
        for thing in (*self.objects.values(), *self._schedules()):
            if hasattr(thing, "output_dir"):
                thing.output_dir = self.ckpt_dir
        logger.info("The network was given its weights from outside; this training writes to %s.", self.ckpt_dir)

    def load(self, engine: Engine) -> None:
        """Go on from the newest checkpoint that can be read; end at once when the training it holds is finished.

        Raises:
            ValueError: it was started with another recipe; nothing is changed.
        """
        state = self._read()
        if state is None:
            self._unmark()
            return
        try:
            if self.seen is not None and "seen" in state:  # one of an older version has not recorded it
                self.seen.load_state_dict(state["seen"])
            for name, thing in self.objects.items():
                thing.load_state_dict(state["objects"][name])
        except OtherRecipeError as error:
            raise ValueError(f"{error} Continue with that one, or remove {self.ckpt_dir} to start anew.") from None
        self.network.load_state_dict(state["network"])
        if getattr(engine, "scaler", None) is not None and state["scaler"]:
            engine.scaler.load_state_dict(state["scaler"])
        _set_random_state(state["random"])
        length = engine.state.epoch_length
        same_length = state["epoch_length"] == length
        engine.state.epoch = state["epoch"]
        engine.state.iteration = state["epoch"] * length + (state["batches"] if same_length else 0)
        if self._stopped() or engine.state.epoch >= engine.state.max_epochs:
            engine.terminate()
            if self.seen is not None:  # it does not see the cases that were added since then
                self.seen.cases = dict(state.get("seen", {}).get("cases", {}))
            self._restore_model()
            logger.info(
                "The training in %s is finished: %d epochs. More are trained with --max_epochs, a new training "
                "starts with another --ckpt_dir.", self.ckpt_dir, engine.state.epoch,
            )  # fmt: skip
        else:
            self._unmark()
            logger.info("Going on from %s, after epoch %d.", self.ckpt_dir, engine.state.epoch)

    def _stopped(self) -> bool:
        return any(getattr(thing, "stopped", False) for thing in self.objects.values())

    def _schedules(self) -> list[Any]:
        found = (getattr(thing, "schedule", None) for thing in self.objects.values())
        return [schedule for schedule in found if schedule is not None]

    def _read(self) -> dict[str, Any] | None:
        there = [path for path in (self.ckpt_dir / name for name in ("last.pt", "previous.pt")) if path.is_file()]
        for path in there:
            try:
                return load_checked(path)
            except PermissionError:  # noqa: PERF203 (two files)
                raise  # it may be whole
            except _UNREADABLE as error:
                logger.warning("%s cannot be read (%s).", path, _first_line(error))
        if there:
            raise ValueError(
                f"No checkpoint of this training can be read: {', '.join(map(str, there))}. Bring one back from a "
                f"copy, or remove {self.ckpt_dir} to start anew."
            )
        return None

    def save(self, engine: Engine) -> None:
        """Write last.pt and the network's own file."""
        length = engine.state.epoch_length
        epoch, batches = divmod(engine.state.iteration, length)
        network = self.network.state_dict()
        state = {
            "network": network,
            "objects": {name: thing.state_dict() for name, thing in self.objects.items()},
            "scaler": engine.scaler.state_dict() if getattr(engine, "scaler", None) is not None else {},
            "random": _random_state(),
            "epoch": epoch,
            "batches": batches,
            "epoch_length": length,
        }
        if self.seen is not None:
            state["seen"] = self.seen.state_dict()
        if idist.get_rank() == 0:
            last = self.ckpt_dir / "last.pt"
            if last.is_file():
                # A second name for the same file, so that there is no moment without last.pt.
                link_atomically(last, self.ckpt_dir / "previous.pt")
            save_atomically(state, last)
            self._save_model(network)

    def _save_model(self, network: Mapping[str, Any]) -> None:
        model = self.ckpt_dir / "model.pt"
        save_atomically(network, model)
        record = json.dumps({"model": file_digest(model), "settings": self.settings, **self._cases()}) + "\n"
        write_text_atomically(self.ckpt_dir / RECORD, record)
        used = None if self.model_file is None else self.model_file()
        if used is not None:
            link_atomically(model, Path(used))
            write_text_atomically(Path(used).with_name(RECORD), record)

    def _cases(self) -> dict[str, Any]:
        return {} if self.seen is None else {"cases": self.seen.cases}

    def _restore_model(self) -> None:
        """Write the model.pt of a finished training where it is not the one that finished.json names: the process was
        killed between last.pt and it, or somebody took it away. One that no training has left here is kept."""
        if idist.get_rank() == 0:
            model = self.ckpt_dir / "model.pt"
            if not model.is_file() or self._marked().get("model") != file_digest(model):
                if model.is_file() and _trained_with(model) is None:
                    model.replace(kept := model.with_name("model.before.pt"))
                    logger.warning("%s was not the network of this training. It is kept as %s.", model, kept)
                self._save_model(self.network.state_dict())

    def _marked(self) -> dict[str, Any]:
        try:
            return json.loads((self.ckpt_dir / FINISHED).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}

    def _mark(self, engine: Engine) -> None:
        """Write finished.json, unless it says the same already or something else has ended the training."""
        if idist.get_rank() == 0 and (self._stopped() or engine.state.epoch >= engine.state.max_epochs):
            model = file_digest(self.ckpt_dir / "model.pt")
            found = {
                "epochs": engine.state.epoch,
                "stopped": self._stopped(),
                "model": model,
                "max_epochs": engine.state.max_epochs,
                "schedule": bool(self._schedules()),
                "settings": self.settings,
                **self._cases(),
            }
            # Another maximum changes nothing in a training that is finished.
            if {**self._marked(), "max_epochs": found["max_epochs"], "settings": self.settings} != found:
                write_text_atomically(self.ckpt_dir / FINISHED, json.dumps(found) + "\n")

    def _unmark(self) -> None:
        if idist.get_rank() == 0:
            (self.ckpt_dir / FINISHED).unlink(missing_ok=True)

    def _epoch_completed(self, engine: Engine) -> None:
        done = engine.state.epoch >= engine.state.max_epochs or engine.should_terminate
        if done or self.signal or engine.state.epoch % self.interval == 0:
            self.save(engine)
        if self.signal:
            engine.terminate()

    def _listen(self, _: Engine) -> None:
        try:
            for number in (signal.SIGTERM, signal.SIGINT):
                self._old_handlers[number] = signal.signal(number, self._receive)
        except ValueError:
            pass  # not in the main thread: whoever runs the training there decides about signals

    def _receive(self, number: int, _: Any) -> None:
        if self.signal is not None:
            raise KeyboardInterrupt
        self.signal = number
        logger.warning("%s: the training ends after this iteration.", signal.Signals(number).name)

    def _stop_on_signal(self, engine: Engine) -> None:
        # All ranks stop at the same iteration, or the others would wait for ever.
        asked = idist.all_reduce(float(self.signal or 0), op="MAX") if idist.get_world_size() > 1 else self.signal
        if asked:
            self.signal = int(asked)
            if engine.state.iteration % engine.state.epoch_length:
                self.save(engine)
                engine.terminate()

    def _finish(self, engine: Engine) -> None:
        self.digest = _digest(self.network)
        self._restore_signals()
        if self.signal is not None:
            logger.warning("Stopped. The same command goes on from here.")
            raise SystemExit(128 + self.signal)
        self._mark(engine)

    def _fail(self, engine: Engine, error: BaseException) -> None:
        # A signal to the whole job may have killed a worker in the middle of an iteration: what is on disk is whole.
        if self.signal is not None and isinstance(error, RuntimeError):
            self._finish(engine)
        self._restore_signals()
        raise error

    def _restore_signals(self) -> None:
        while self._old_handlers:
            signal.signal(*self._old_handlers.popitem())


def _digest(network: torch.nn.Module) -> str:
    """Tells the weights of a network from others."""
    found = hashlib.sha256()
    for value in network.state_dict().values():
        found.update(value.detach().cpu().contiguous().numpy())
    return found.hexdigest()


def _random_state() -> dict[str, Any]:
    return {"cpu": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []}


def _set_random_state(state: Mapping[str, Any]) -> None:
    torch.set_rng_state(state["cpu"])
    if len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
