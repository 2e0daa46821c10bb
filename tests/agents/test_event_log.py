"""Event files as TensorBoard itself reads them: scalars, text and the HPARAMS tab."""

import pytest
from tensorboard.backend.event_processing import data_provider, plugin_event_multiplexer
from tensorboard.context import RequestContext
from tensorboard.plugins import base_plugin
from tensorboard.plugins.hparams import api_pb2, backend_context, list_session_groups

from agents.training import train
from tests.events import events

RUNS = {
    "a": ["seed=0"],
    "b": ["seed=1"],
    "c": ["seed=0", "loss/value=mse"],
    "d": ["seed=0", "agent.discount=0.9", "agent/target_network=polyak"],
}


@pytest.fixture(scope="module")
def logs(tmp_path_factory):
    from agents.config import build
    from tests.conftest import small_config

    directory = tmp_path_factory.mktemp("logs")
    for name, overrides in RUNS.items():
        train([build(small_config(*overrides), directory / name)], compile=False)
    return directory


def _backend(logs):
    multiplexer = plugin_event_multiplexer.EventMultiplexer()
    multiplexer.AddRunsFromDirectory(str(logs))
    multiplexer.Reload()
    provider = data_provider.MultiplexerDataProvider(multiplexer, str(logs))
    context = backend_context.Context(base_plugin.TBContext(data_provider=provider, logdir=str(logs)))
    return multiplexer, context


def test_the_hparams_tab_has_all_keys_and_groups_seeds(logs):
    _, context = _backend(logs)
    request, experiment = RequestContext(), ""
    metadata = context.hparams_metadata(request, experiment)
    described = context.experiment_from_metadata(request, experiment, True, metadata, [])
    names = {info.name for info in described.hparam_infos}
    assert {"seed", "agent.discount", "loss.value", "loss.value.delta", "loss.value.matched_curvature", "agent.target_network.rate"} <= names
    assert not any("${" in name or "_target_" in name or name.startswith("agent.network") for name in names)
    assert "evaluation/return_mean" in {info.name.tag for info in described.metric_infos}
    asked = api_pb2.ListSessionGroupsRequest(start_index=0, slice_size=100, allowed_statuses=list(api_pb2.Status.values()))
    groups = list_session_groups.Handler(request, context, experiment, asked).run().session_groups
    sessions = sorted(sorted(session.name for session in group.sessions) for group in groups)
    assert sessions == [["a", "b"], ["c"], ["d"]]
    statuses = {session.status for group in groups for session in group.sessions}
    assert statuses == {api_pb2.STATUS_SUCCESS}
    values = {group.sessions[0].name: {key: value.number_value or value.string_value for key, value in group.hparams.items()} for group in groups}
    assert values["d"]["agent.discount"] == pytest.approx(0.9) and values["c"]["loss.value"] == "rlloss.MSE"


def test_scalars_and_the_config_are_there(logs):
    multiplexer, _ = _backend(logs)
    assert {"rollout/episode_return", "loss/value", "evaluation/return_mean"} <= set(multiplexer.GetAccumulator("a").Tags()["tensors"])
    text = multiplexer.Tensors("a", "config")[0].tensor_proto.string_val[0].decode()
    assert "    discount: 0.99" in text and "${" not in text


def test_many_values_share_one_event(logs):
    learning = [event for event in events(logs / "a") if any(value.tag == "loss/value" for value in event.summary.value)]
    assert len(learning) == 5 and all(len(event.summary.value) >= 15 for event in learning)
