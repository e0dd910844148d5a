"""What a collector writes of an episode: ids that stay what they were."""

from __future__ import annotations

import dataclasses
import json

from steca_gym.collectors import Collector, EpisodeRequest
from steca_gym.trajectory import from_json, to_json
from tests.fakes import FakeAgent, Turn, corridor


def test_a_line_of_json_is_that_of_asdict_with_sorted_keys():
    agent = FakeAgent(lambda r: Turn(text=f"Thought: über {r.turn}\nAction: right", token_ids=(r.turn, 4)))
    trajectory = Collector(corridor(), agent).run([EpisodeRequest(task_id="corridor-5", seed=1)])[0].trajectory
    assert to_json(trajectory) == json.dumps(dataclasses.asdict(trajectory), ensure_ascii=False, sort_keys=True)
    assert from_json(to_json(trajectory)) == trajectory
