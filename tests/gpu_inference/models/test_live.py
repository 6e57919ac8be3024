"""What is live: swaps without a gap, whatever order things happen in."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpu_inference.errors import ModelNotReady, RecordError, RegistryError, UnknownModel
from gpu_inference.models import records
from gpu_inference.models.live import Action, LiveModels, Route
from gpu_inference.models.records import AliasRecord, ModelRecord, Share

SHA = "ab" * 32


class Worker:
    """Does what it is told, at once or later, and reports it."""

    def __init__(self, broken: tuple[str, ...] = ()) -> None:
        self.state = LiveModels()
        self.broken = broken
        self.todo: list[Action] = []
        self.log: list[tuple[str, str, str]] = []
        self.memory: set[tuple[str, str]] = set()

    def apply(self, message: tuple[bytes, bytes | None]) -> None:
        self.todo += self.state.apply(*message)

    def do(self, action: Action) -> None:
        target = (action.model, action.version)
        self.log.append((action.kind, *target))
        match action.kind:
            case "load" if action.version in self.broken:
                self.todo += self.state.failed(*target, "no protobuf")
            case "load":
                assert target not in self.memory
                self.memory.add(target)
                self.todo += self.state.loaded(*target)
            case "warm":
                self.todo += self.state.warmed(*target)
            case "drain":
                self.todo += self.state.drained(*target)
            case "unload":
                self.memory.remove(target)
                self.todo += self.state.unloaded(*target)

    def finish(self) -> None:
        while self.todo:
            self.do(self.todo.pop(0))

    def add(self, model: str, *versions: str) -> None:
        for version in versions:
            self.apply(self.state.added(model, version, SHA))

    def promote(self, model: str, version: str, keep_previous: bool = False) -> None:
        self.apply(self.state.promote(model, version, keep_previous))
        self.finish()


@pytest.fixture
def worker() -> Worker:
    worker = Worker(broken=("bad",))
    worker.add("m", "1", "2", "3", "bad")
    worker.promote("m", "1")
    return worker


def versions_of(worker: Worker, name: str = "m", count: int = 300) -> Counter[str]:
    return Counter(worker.state.route(name, f"cam-{i}").version for i in range(count))


def test_a_version_is_loaded_and_warm_before_it_takes_traffic_and_the_old_one_drained_after(
    worker: Worker,
) -> None:
    assert worker.log == [("load", "m", "1"), ("warm", "m", "1"), ("switch", "m", "1")]
    worker.log.clear()
    worker.apply(worker.state.promote("m", "2"))
    seen = []
    while worker.todo:
        seen.append((worker.todo[0].kind, worker.state.route("m", "cam").version))
        worker.do(worker.todo.pop(0))
    assert seen == [("load", "1"), ("warm", "1"), ("switch", "2"), ("drain", "2"), ("unload", "2")]
    assert worker.log[-2:] == [("drain", "m", "1"), ("unload", "m", "1")]
    assert worker.memory == {("m", "2")}


def test_the_hash_that_must_be_loaded_is_told() -> None:
    state = LiveModels()
    state.apply(*state.added("m", "1", SHA))
    assert state.apply(*state.promote("m", "1")) == [Action("load", "m", "1", SHA)]
    with pytest.raises(RegistryError, match="is another file"):
        state.added("m", "1", "cd" * 32)


def test_a_roll_back_brings_the_version_before_and_a_second_one_takes_it_back(worker: Worker) -> None:
    worker.promote("m", "2")
    for wanted in ("1", "2"):
        worker.apply(worker.state.roll_back("m"))
        worker.finish()
        assert versions_of(worker) == {wanted: 300}
    with pytest.raises(RegistryError, match="no version before"):
        LiveModels().roll_back("m")


def test_a_kept_version_is_rolled_back_to_without_a_load(worker: Worker) -> None:
    worker.promote("m", "2", keep_previous=True)
    assert worker.memory == {("m", "1"), ("m", "2")}
    worker.log.clear()
    worker.apply(worker.state.roll_back("m"))
    assert [action.kind for action in worker.todo] == ["switch"]
    worker.finish()
    assert versions_of(worker) == {"1": 300}


def test_a_version_that_can_not_be_loaded_takes_nothing_over(worker: Worker) -> None:
    worker.promote("m", "bad")
    assert versions_of(worker) == {"1": 300}
    assert worker.state.reasons == {("m", "bad"): "no protobuf"}
    assert worker.memory == {("m", "1")}
    worker.broken = ()
    worker.promote("m", "bad")  # written again, it is tried again
    assert versions_of(worker) == {"bad": 300}


def test_a_model_that_never_was_ready_says_why() -> None:
    worker = Worker(broken=("bad",))
    worker.add("m", "bad")
    with pytest.raises(UnknownModel, match="no model or alias 'm' is live, only none"):
        worker.state.route("m", "cam")
    worker.promote("m", "bad")
    with pytest.raises(ModelNotReady, match=r"not ready \(m bad: no protobuf\)"):
        worker.state.route("m", "cam")
    with pytest.raises(RegistryError, match="no version '9' of 'm' was added, only bad"):
        worker.state.promote("m", "9")


def test_a_version_wanted_again_while_it_drains_goes_on_at_once(worker: Worker) -> None:
    worker.apply(worker.state.promote("m", "2"))
    while worker.todo[0].kind != "drain":
        worker.do(worker.todo.pop(0))
    worker.apply(worker.state.roll_back("m"))
    assert worker.state.route("m", "cam").version == "1"
    worker.finish()
    assert versions_of(worker) == {"1": 300}
    assert worker.memory == {("m", "1")}
    assert ("unload", "m", "1") not in worker.log


def test_a_version_that_is_no_longer_wanted_while_it_loads_is_given_back(worker: Worker) -> None:
    worker.apply(worker.state.promote("m", "2"))
    worker.apply(worker.state.promote("m", "3"))
    worker.finish()
    assert worker.memory == {("m", "3")}
    assert ("warm", "m", "2") not in worker.log


def test_an_unloaded_model_is_gone(worker: Worker) -> None:
    worker.apply(worker.state.unload("m"))
    with pytest.raises(UnknownModel):
        worker.state.route("m", "cam")
    worker.finish()
    assert worker.memory == set()
    assert worker.state.phases == {}


def test_a_canary_answers_for_its_part_of_the_sources_always_the_same(worker: Worker) -> None:
    worker.apply(worker.state.try_out("m", "2", part=0.1))
    assert versions_of(worker) == {"1": 300}  # not before it is ready
    worker.finish()
    small = {i for i in range(3000) if worker.state.route("m", f"cam-{i}").role == "canary"}
    assert 240 < len(small) < 360
    worker.apply(worker.state.try_out("m", "2", part=0.3))
    large = {i for i in range(3000) if worker.state.route("m", f"cam-{i}").version == "2"}
    assert small < large
    worker.apply(worker.state.roll_back("m"))
    worker.finish()
    assert versions_of(worker) == {"1": 300}
    assert worker.memory == {("m", "1")}


def test_a_shadow_sees_inputs_and_answers_none(worker: Worker) -> None:
    worker.apply(worker.state.try_out("m", "2"))
    assert worker.state.route("m", "cam") == Route("m", "1")
    worker.finish()
    assert worker.state.route("m", "cam") == Route("m", "1", (("m", "2"),))
    worker.promote("m", "2")
    assert worker.state.route("m", "cam") == Route("m", "2")


def alias(*shares: Share, shadows: tuple[Share, ...] = ()) -> tuple[bytes, bytes | None]:
    return records.encode(("alias", "front"), AliasRecord(traffic=shares, shadows=shadows))


def test_an_alias_splits_sources_by_weight_and_few_move_when_weights_change(worker: Worker) -> None:
    worker.add("n", "7")
    worker.promote("n", "7")
    worker.apply(alias(Share(model="m", weight=3), Share(model="n", version="7", weight=1)))
    before = {i: worker.state.route("front", f"cam-{i}").model for i in range(2000)}
    assert 1400 < list(before.values()).count("m") < 1600
    worker.apply(alias(Share(model="m", weight=3), Share(model="n", version="7", weight=1.5)))
    after = {i: worker.state.route("front", f"cam-{i}").model for i in range(2000)}
    assert {after[i] for i in before if before[i] != after[i]} == {"n"}
    assert worker.state.route("front", "cam-0").role in ("live", "pinned")


def test_the_share_of_a_model_that_is_not_ready_goes_to_the_others(worker: Worker) -> None:
    worker.apply(
        alias(Share(model="m", version="bad"), Share(model="m"), shadows=(Share(model="m", version="3"),))
    )
    worker.finish()
    assert versions_of(worker, "front") == {"1": 300}
    assert worker.state.route("front", "cam").shadows == (("m", "3"),)
    worker.apply((b"alias/front", None))
    worker.finish()
    assert worker.memory == {("m", "1")}


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        (None, b"{}", "is no key"),
        (b"\xff", b"{}", "is no key"),
        (b"model/a/b", b"{}", "is no key"),
        (b"model/../b", b"{}", "is no key"),
        (b"models/m", b"{}", "is no key"),
        (b"model/m", b"{", "the record model/m can't be used"),
        (b"model/m", b"{}", "missing required field `live`"),
        (b"model/m", b'{"live": "../2"}', "live"),
        (b"model/m", b'{"live": "2", "canary": {"version": "3", "part": 2}}', "canary.part"),
        (b"model/m", b'{"live": "2", "life": 3}', "life"),
        (b"alias/front", b'{"traffic": []}', "traffic"),
        (b"alias/front", b'{"traffic": [{"model": "m", "weight": 0}]}', "weight"),
        (b"version/m/1", b'{"sha256": "12"}', "sha256"),
    ],
)
def test_a_bad_record_says_why_and_changes_nothing(
    worker: Worker, key: bytes | None, value: bytes, reason: str
) -> None:
    with pytest.raises(RecordError, match=reason):
        worker.state.apply(key, value)
    assert versions_of(worker) == {"1": 300}


def test_nothing_grows_over_a_hundred_swaps(worker: Worker) -> None:
    for i in range(100):
        worker.promote("m", "23"[i % 2])
        assert len(worker.memory) == len(worker.state.phases) == 1
    assert worker.state.reasons == {}


def test_a_worker_that_starts_late_reads_the_same_from_the_compacted_topic(worker: Worker) -> None:
    topic = [worker.state.added("m", version, SHA) for version in ("1", "2", "3")]
    topic += [worker.state.try_out("m", "2", part=0.5), alias(Share(model="m"))]
    other = Worker()
    for message in topic:
        worker.apply(message)
        other.apply(message)
    worker.finish()
    other.finish()
    for i in range(50):
        assert worker.state.route("front", f"{i}") == other.state.route("front", f"{i}")


COMMANDS = st.lists(
    st.one_of(
        st.tuples(st.just("promote"), st.sampled_from(["1", "2", "3", "bad"])),
        st.tuples(st.just("try"), st.sampled_from(["1", "2", "bad"])),
        st.tuples(st.just("shadow"), st.sampled_from(["2", "3"])),
        st.tuples(st.just("alias"), st.sampled_from(["1", "3", "bad"])),
        st.tuples(st.just("back"), st.just("")),
        st.tuples(st.just("do"), st.integers(0, 5)),
    ),
    max_size=40,
)


@settings(max_examples=150, deadline=None)
@given(commands=COMMANDS)
def test_in_any_order_a_live_model_always_answers_with_a_ready_version(
    commands: list[tuple[str, str | int]],
) -> None:
    worker = Worker(broken=("bad",))
    worker.add("m", "1", "2", "3", "bad")
    worker.promote("m", "1")
    for command, argument in commands:
        match command:
            case "promote":
                worker.apply(worker.state.promote("m", str(argument)))
            case "try" | "shadow":
                worker.apply(worker.state.try_out("m", str(argument), 0.5 if command == "try" else 0.0))
            case "alias":
                worker.apply(alias(Share(model="m", version=str(argument)), Share(model="m")))
            case "back" if worker.state.models["m"].previous or worker.state.models["m"].canary:
                worker.apply(worker.state.roll_back("m"))
            case "do" if worker.todo:
                worker.do(worker.todo.pop(int(argument) % len(worker.todo)))
        for name in ("m", *worker.state.aliases):
            for source in "abc":
                route = worker.state.route(name, source)
                for target in ((route.model, route.version), *route.shadows):
                    assert worker.state.phases[target] == "ready"
                    assert target in worker.memory
    worker.finish()
    record = worker.state.models["m"]
    assert isinstance(record, ModelRecord)
    if record.live != "bad":
        assert worker.state.serving["m"] == record.live
    assert worker.memory == {t for t, phase in worker.state.phases.items() if phase == "ready"}
