"""The parameters of a rule: what they say of metrics and workloads, and which make no sense."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiopt.config import unstructure
from aiopt.errors import ConfigError
from aiopt.rules import COMPOSITE, RuleParams, params_from, vary

BASE: dict[str, Any] = {
    "metrics": {
        "cpu": {"role": "primary"},
        "rps": {"role": "primary", "direction": "higher"},
        "p99": {"role": "guard"},
        "answers": {"kind": "digest"},
    },
    "workloads": {"reads": {}, "mixed": {}, "writes": {"guard": True}},
}


def params(**changes: Any) -> RuleParams:
    return params_from({**BASE, **changes})


@pytest.mark.parametrize(
    ("changes", "path"),
    [
        ({"metrics": {"cpu": {}}}, "metrics"),
        ({"workloads": {"mixed": {"guard": True}}}, "workloads"),
        ({"pairs": 0}, "pairs"),
        ({"planned": 0}, "planned"),
        ({"cap": 7}, "cap"),
        ({"ncal": 9}, "ncal"),
        ({"ncal_guard": 5}, "ncal_guard"),
        ({"boot": 49}, "boot"),
        ({"warmup": -1}, "warmup"),
        ({"audit_every": 0}, "audit_every"),
        ({"audit_pairs": 5}, "audit_pairs"),
        ({"audit_pairs": 20, "audit_cap": 19}, "audit_cap"),
        ({"audit_precision": 0.0}, "audit_precision"),
        ({"ablation_pairs": -1}, "ablation_pairs"),
        ({"delta0": -0.001}, "mei"),
        ({"delta0": 0.03}, "mei"),
        ({"mei": math.nan}, "mei"),
        ({"layout": {"floor": 0.03}}, "mei"),
        ({"layout": {"rotate": 1}}, "layout.rotate"),
        ({"layout": {"rotate": -2}}, "layout.rotate"),
        ({"layout": {"pairs": 1}}, "layout.pairs"),
        ({"alpha": 0.0}, "alpha"),
        ({"alpha1": 1.0}, "alpha1"),
        ({"alpha2": -0.1}, "alpha2"),
        ({"power": 1.0}, "power"),
        ({"regression_alpha": 0.0}, "regression_alpha"),
        ({"guard_alpha": 1.5}, "guard_alpha"),
        ({"guard_first": 0.05}, "guard_first"),
        ({"pfer": 0.0}, "pfer"),
        ({"pfer_ext": 0.0}, "pfer_ext"),
        ({"weights": {"nothing": 1.0}}, "weights.nothing"),
        ({"weights": {"answers": 1.0}}, "weights.answers"),
        ({"weights": {"cpu": 0.0}}, "weights.cpu"),
        ({"weights": {"cpu": math.inf}}, "weights.cpu"),
        ({"bogus": 1}, ""),
    ],
)
def test_parameters_that_make_no_sense_are_refused(changes: dict[str, Any], path: str) -> None:
    with pytest.raises(ConfigError) as caught:
        params(**changes)
    assert [where for where, _ in caught.value.problems] == [path]


def test_all_problems_are_told_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        params(cap=1, alpha1=2.0, weights={"nothing": 1.0})
    assert len(caught.value.problems) == 3


def test_the_bounds_themselves_are_allowed() -> None:
    least = params(
        planned=1,
        cap=8,
        ncal=10,
        ncal_guard=6,
        boot=50,
        warmup=0,
        audit_every=1,
        audit_pairs=6,
        audit_cap=6,
        ablation_pairs=0,
        delta0=0.0,
        layout={"rotate": 2, "pairs": 2},
    )
    assert params_from(unstructure(least)) == least


def test_each_primary_under_each_main_workload_is_an_objective() -> None:
    assert [(o.key, o.weights) for o in params().objectives] == [
        (("cpu", "mixed"), {"cpu": 1.0}),
        (("rps", "mixed"), {"rps": 1.0}),
        (("cpu", "reads"), {"cpu": 1.0}),
        (("rps", "reads"), {"rps": 1.0}),
    ]
    assert params().guard_workloads == ("writes",)
    assert [params().direction_of(name) for name in ("cpu", "rps")] == ["lower", "higher"]


@given(
    st.dictionaries(
        st.sampled_from(["cpu", "rps", "p99"]), st.floats(0.01, 100).map(lambda w: -w), min_size=1
    )
)
def test_weights_make_one_objective_whose_parts_sum_to_one(weights: dict[str, float]) -> None:
    rule = params(weights=weights)
    assert [objective.key for objective in rule.objectives] == [
        (COMPOSITE, "mixed"),
        (COMPOSITE, "reads"),
    ]
    assert rule.direction_of(COMPOSITE) == "lower"
    for objective in rule.objectives:
        parts = objective.weights
        assert sum(map(abs, parts.values())) == pytest.approx(1.0)
        assert all(parts[name] * weight > 0 for name, weight in weights.items())


def test_the_order_of_tables_does_not_matter() -> None:
    """A log sorts keys, and the coin of a pair depends on the place of its workload."""
    turned = {name: dict(reversed(table.items())) for name, table in BASE.items()}
    assert list(params_from(turned).workloads) == list(params().workloads)
    assert list(params_from(turned).metrics) == list(params().metrics)


def test_a_change_leaves_the_rest() -> None:
    rule = params(mei=0.05, layout={"rotate": 3})
    other = vary(rule, delta0=0.01)
    assert (other.delta0, other.mei, other.layout) == (0.01, 0.05, rule.layout)
    with pytest.raises(ConfigError, match="mei"):
        vary(rule, delta0=0.06)
