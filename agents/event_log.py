"""TensorBoard event files: one a run, all values of a moment in one event, written without threads."""

import io
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams import summary_v2 as hparams
from tensorboard.plugins.hparams.api_pb2 import Status
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData, SessionEndInfo
from tensorboard.plugins.hparams import metadata as hparams_metadata
from tensorboard.plugins.text import metadata as text_metadata
from tensorboard.summary.writer.record_writer import RecordWriter

FLUSH_SECONDS = 2.0


class EventLog:
    """The event file of one run. Nothing stays open: events gather in memory and are appended at `flush`.

    With `size`, the file is cut to that many bytes first: what was written after a checkpoint is
    written again by the run that continues from it.
    """

    def __init__(self, directory: Path, size: int | None = None) -> None:
        if size is None:
            self.path = directory / f"events.out.tfevents.{int(time.time())}.rlloss"
            self.path.touch()
        else:
            self.path = next(directory.glob("events.out.tfevents.*"))
            with self.path.open("r+b") as file:
                file.truncate(size)
        self.size = size or 0
        self._buffer = io.BytesIO()
        self._records = RecordWriter(self._buffer)
        self._flushed = time.perf_counter()
        if size is None:
            self._write(Event(file_version="brain.Event:2"))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Write values by tag, at an environment step."""
        self._write(Event(step=step, summary=Summary(value=[Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()])))

    def text(self, tag: str, text: str) -> None:
        """Write text, shown as Markdown."""
        value = Summary.Value(tag=tag, metadata=text_metadata.create_summary_metadata(display_name=tag, description=""))
        value.tensor.dtype = 7  # DT_STRING
        value.tensor.string_val.append(text.encode())
        value.tensor.tensor_shape.dim.add(size=1)
        self._write(Event(summary=Summary(value=[value])))

    def hyperparameters(self, values: Mapping[str, float | str | bool], group: str) -> None:
        """Say what the run is, for the HPARAMS tab; runs with the same group are seeds of one configuration."""
        self._write(Event(summary=hparams.hparams_pb(dict(values), trial_id=group)))

    def end(self) -> None:
        """Say, for the HPARAMS tab, that the run is complete."""
        content = HParamsPluginData(session_end_info=SessionEndInfo(status=Status.STATUS_SUCCESS, end_time_secs=time.time()))
        value = Summary.Value(tag=hparams_metadata.SESSION_END_INFO_TAG, metadata=hparams_metadata.create_summary_metadata(content), tensor=hparams_metadata.NULL_TENSOR)
        self._write(Event(summary=Summary(value=[value])))

    def _write(self, event: Event) -> None:
        event.wall_time = time.time()
        self._records.write(event.SerializeToString())

    def flush_sometimes(self) -> None:
        """Append what gathered to the file if the last time is a while ago."""
        if time.perf_counter() - self._flushed > FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Append what gathered to the file; `size` is then the file's size."""
        with self.path.open("ab") as file:
            file.write(self._buffer.getvalue())
        self.size += self._buffer.tell()
        self._buffer.seek(0)
        self._buffer.truncate()
        self._flushed = time.perf_counter()


def flat_hyperparameters(config: Mapping[str, Any]) -> dict[str, float | str | bool]:
    """A resolved config as dotted keys with one stable type each: bool, str, or float for every number."""
    flat: dict[str, float | str | bool] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat |= {f"{key}.{rest}".replace("._target_", ""): leaf for rest, leaf in flat_hyperparameters(value).items()}
        elif isinstance(value, bool) or isinstance(value, str):
            flat[key] = value
        elif isinstance(value, (int, float)):
            flat[key] = float(value)
        elif value is not None:
            flat[key] = str(value)
    return flat
