"""TensorBoard event files: one a run, all values of a moment in one event, written without threads."""

import hashlib
import os
import struct
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import google_crc32c
from omegaconf import DictConfig, OmegaConf
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.compat.proto.types_pb2 import DT_STRING
from tensorboard.plugins.hparams import metadata as hparams_metadata
from tensorboard.plugins.hparams import summary_v2 as hparams
from tensorboard.plugins.hparams.api_pb2 import Status
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData, SessionEndInfo
from tensorboard.plugins.text import metadata as text_metadata

from agents.run_directory import EVENTS, RunDirectoryError, writing

FLUSH_SECONDS = 2.0


class EventLog:
    """The event file of one run. Nothing stays open: events gather in memory and are appended at `flush`.

    With `size`, the file is cut to that many bytes first: what was written after a checkpoint is
    written again by the run that continues from it.
    """

    def __init__(self, directory: Path, size: int | None = None) -> None:
        if size is None:
            self.path = directory / EVENTS.replace("*", f"{int(time.time())}.rlloss")
            self.path.touch()
        else:
            self.path = next(directory.glob(EVENTS), directory / EVENTS)
            if not self.path.exists() or self.path.stat().st_size < size:
                raise RunDirectoryError(f"{directory} has lost events that its checkpoint counts on; start the run again elsewhere")
            with self.path.open("r+b") as file:
                file.truncate(size)
        self.size = size or 0
        self._waiting: list[Event | tuple[float, int, Mapping[str, float]]] = []
        self._flushed = time.perf_counter()
        if size is None:
            self._write(Event(file_version="brain.Event:2"))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Write values by tag, at an environment step."""
        # Made into an event at `flush`, many in a row: that takes a quarter of the time, since the code stays in the processor's cache.
        self._waiting.append((time.time(), step, values))

    def config(self, config: Mapping[str, Any]) -> None:
        """Say what the run is: its resolved config as text, and its hyperparameters for the HPARAMS tab.

        Runs that differ in the seed alone are one session group there.
        """
        config = OmegaConf.create(dict(config))
        self.text("config", "".join(f"    {line}\n" for line in OmegaConf.to_yaml(config, resolve=True).splitlines()))
        hyperparameters = flat_hyperparameters(config)
        shared = sorted((key, value) for key, value in hyperparameters.items() if key != "seed")
        group = hashlib.sha256(repr(shared).encode()).hexdigest()[:16]
        self._write(Event(summary=hparams.hparams_pb(hyperparameters, trial_id=group)))

    def image(self, tag: str, png: bytes) -> None:
        """Write a picture; a PNG file names its width and height in its first chunk."""
        width, height = struct.unpack(">II", png[16:24])
        picture = Summary.Image(width=width, height=height, colorspace=4, encoded_image_string=png)
        self._write(Event(summary=Summary(value=[Summary.Value(tag=tag, image=picture)])))

    def text(self, tag: str, text: str) -> None:
        """Write a text, which TensorBoard shows as Markdown."""
        value = Summary.Value(tag=tag, metadata=text_metadata.create_summary_metadata(display_name=tag, description=""))
        value.tensor.dtype = DT_STRING
        value.tensor.string_val.append(text.encode())
        value.tensor.tensor_shape.dim.add(size=1)
        self._write(Event(summary=Summary(value=[value])))

    def end(self, *, failed: bool = False) -> None:
        """Say, for the HPARAMS tab, that the run is complete, or that it failed."""
        status = Status.STATUS_FAILURE if failed else Status.STATUS_SUCCESS
        content = HParamsPluginData(session_end_info=SessionEndInfo(status=status, end_time_secs=time.time()))
        value = Summary.Value(tag=hparams_metadata.SESSION_END_INFO_TAG, metadata=hparams_metadata.create_summary_metadata(content), tensor=hparams_metadata.NULL_TENSOR)
        self._write(Event(summary=Summary(value=[value])))

    def _write(self, event: Event) -> None:
        event.wall_time = time.time()
        self._waiting.append(event)

    def flush_sometimes(self) -> None:
        """Append what gathered to the file if the last time is a while ago."""
        if time.perf_counter() - self._flushed > FLUSH_SECONDS:
            self.flush()

    def flush(self, *, to_disk: bool = False) -> None:
        """Append what gathered to the file, and with `to_disk` make sure it is on the disk; `size` is then the file's size."""
        written = b"".join(_record((event if isinstance(event, Event) else _scalars(*event)).SerializeToString()) for event in self._waiting)
        self._waiting.clear()
        with writing(self.path.parent):
            try:
                with self.path.open("ab") as file:
                    file.write(written)
                    if to_disk:
                        file.flush()
                        os.fsync(file.fileno())
            except OSError:
                os.truncate(self.path, self.size)  # Half an event would spoil those that a continued run appends.
                raise
        self.size += len(written)
        self._flushed = time.perf_counter()


def _scalars(wall_time: float, step: int, values: Mapping[str, float]) -> Event:
    return Event(wall_time=wall_time, step=step, summary=Summary(value=[Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]))


def _record(event: bytes) -> bytes:
    """A serialised event as it stands in an event file, between its length and checksums (TensorFlow's TFRecord)."""
    length = struct.pack("<Q", len(event))
    return length + _checksum(length) + event + _checksum(event)


def _checksum(data: bytes) -> bytes:
    number = google_crc32c.value(data)
    return struct.pack("<I", ((number >> 15 | number << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def flat_hyperparameters(config: DictConfig) -> dict[str, float | str | bool]:
    """A config as dotted keys with one stable type each: bool, str, or float for every number.

    Parts that are references to other parts are left out, so that each number stands once.
    """
    flat: dict[str, float | str | bool] = {}
    for key, value in config.items_ex(resolve=True):
        if isinstance(value, DictConfig):
            if not OmegaConf.is_interpolation(config, key):
                flat |= {f"{key}.{rest}".removesuffix("._target_"): leaf for rest, leaf in flat_hyperparameters(value).items()}
        elif isinstance(value, (bool, str)):
            flat[key] = value
        elif isinstance(value, (int, float)):
            flat[key] = float(value)
        elif value is not None:
            flat[key] = str(value)
    return flat
