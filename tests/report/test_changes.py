from __future__ import annotations

from tests.report.factory import make_comparison
from trimtab.report.changes import Run
from trimtab.report.wording import kinds_in_order


def test_kinds_come_in_reading_order() -> None:
    kinds = ["lm_head", "other", "norm", "down_proj", "q_proj", "q_proj"]
    assert kinds_in_order(kinds) == ["q_proj", "down_proj", "norm", "lm_head", "other"]


def test_roll_ups_of_an_run_are_those_of_the_comparison() -> None:
    comparison = make_comparison(num_layers=3)
    run = Run("", comparison)
    assert run.total.num_changed == comparison.total.num_changed
    expected = {kind: group.num_changed for kind, group in comparison.by_kind().items()}
    assert {kind: group.num_changed for kind, group in run.by_kind.items()} == expected
    layers = {layer: group.num_elements for layer, group in comparison.by_layer().items()}
    assert {layer: group.num_elements for layer, group in run.by_layer.items()} == layers
    assert list(run.by_layer) == [0, 1, 2, None]
