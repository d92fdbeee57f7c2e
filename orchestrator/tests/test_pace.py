"""Whether runs side by side are faster is measured, not assumed."""

from __future__ import annotations

from bitrank.pace import layers_per_second, measure_pace


def test_a_second_of_layers_is_counted() -> None:
    assert layers_per_second(1, 0.2) > 0


def test_the_choice_follows_the_faster_way(monkeypatch) -> None:
    monkeypatch.setattr("psutil.cpu_count", lambda logical: 2)
    for paces, choice in (({2: 10.0, 1: 8.0}, "--jobs 2"), ({2: 20.0, 1: 8.0}, "--jobs 1")):
        monkeypatch.setattr("bitrank.pace._paces", lambda threads, paces=paces: [paces[count] for count in threads])
        assert measure_pace()["faster"].startswith(choice)


def test_one_core_leaves_nothing_to_choose(monkeypatch) -> None:
    monkeypatch.setattr("psutil.cpu_count", lambda logical: 1)
    assert measure_pace() == {"choice": "one core: one run at a time"}
