"""What children a sweep makes, and which cannot be."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from jobs.config import JobConfig, from_mapping, load
from jobs.sweeps.search import NoSuggestion, Past, checked, choose, planned
from jobs.sweeps.space import Space
from textvae.config import without_service
from textvae.parsing import ConfigError


def config(sweep: dict[str, Any], **more: Any) -> JobConfig:
    return from_mapping({"name": "x", "sweep": sweep, **more})


def values(*given: Any) -> dict[str, Any]:
    return {"values": list(given)}


def test_a_grid_has_every_combination_once_in_order():
    space = checked(
        config(
            {
                "parameters": {
                    "training.epochs": values(1, 2),
                    "model.latent": {"min": 4, "max": 12, "step": 4},
                }
            }
        )
    )
    assert space.size == 6
    assert [tuple(child.values()) for child in planned(space)] == [
        (1, 4),
        (1, 8),
        (1, 12),
        (2, 4),
        (2, 8),
        (2, 12),
    ]
    last = space.child(planned(space)[-1])
    assert (last.training.epochs, last.model.latent, last.sweep, last.name) == (2, 12, None, "x")


def test_an_array_repeats_with_seeds_of_its_own():
    space = checked(config({"array": 3}, seed=5))
    assert [space.child(child).seed for child in planned(space)] == [5, 6, 7]
    both = checked(config({"array": 2, "parameters": {"training.epochs": values(1, 2)}}))
    assert planned(both) == [
        {"training.epochs": 1, "seed": 0},
        {"training.epochs": 1, "seed": 1},
        {"training.epochs": 2, "seed": 0},
        {"training.epochs": 2, "seed": 1},
    ]


def test_a_key_may_be_of_any_section_and_of_any_kind():
    space = checked(
        config(
            {
                "parameters": {
                    "data.train_size": values(None, 100),
                    "model.tied": values(True, False),
                    "resources.ranks": values(1, 2),
                    "time_limit": values("90m", 60),
                    "data.train": values(["a.csv"], ["a.csv", "b.csv"]),
                    "retry.on": values(["error"], []),
                }
            },
            data={"source": "files", "train": ["x.csv"]},
            model={"decoder_hidden": 128, "embedding": 128},
        )
    )
    last = space.child(planned(space)[-1])
    assert (last.data.train_size, last.model.tied, last.resources.ranks) == (100, False, 2)
    assert (last.time_limit, last.data.train, last.retry.on) == (60, ("a.csv", "b.csv"), ())


def test_an_objective_may_be_of_another_kind_in_each_child():
    """The keys of one kind are unknown to the other: what a child has are its own defaults."""
    base = {"model": {"decoder": "repeat"}, "vocabulary": {"kind": "words"}, "objective": "seed"}
    space = checked(
        config(
            {"parameters": {"objective": values("seed")} | {"training.epochs": values(1, 2)}},
            **base,
        )
    )
    assert [space.child(child).objective.kind for child in planned(space)] == ["seed", "seed"]
    with_weights = checked(config({"parameters": {"objective.kl_weight": values(0.1, 1)}}))
    kinds = [space.child(child).objective for space in (with_weights,) for child in planned(space)]
    assert [(o.kind, o.kl_weight) for o in kinds if o.kind == "elbo"] == [("elbo", 0.1), ("elbo", 1)]


RANDOM = {
    "search": "random",
    "trials": 40,
    "parameters": {
        "training.learning_rate": {"min": "1e-4", "max": "1e-2", "log": True},
        "model.latent": {"min": 8, "max": 64, "step": 8},
        "model.encoder_hidden": {"min": 10, "max": 20},
        "objective.kl_weight": {"min": 0, "max": 1},
    },
}


def test_random_draws_lie_in_their_ranges_and_follow_from_the_seed():
    space = checked(config(RANDOM))
    drawn = planned(space)
    assert len(drawn) == 40
    rates = [child["training.learning_rate"] for child in drawn]
    assert all(1e-4 <= rate <= 1e-2 for rate in rates)
    assert (
        10 <= sum(rate < 1e-3 for rate in rates) <= 30
    )  # as many below the middle of the logarithms as above
    assert {child["model.latent"] for child in drawn} == set(range(8, 65, 8))
    assert {child["model.encoder_hidden"] for child in drawn} <= set(range(10, 21))
    assert planned(Space(config(RANDOM))) == drawn
    assert planned(Space(config(RANDOM | {"seed": 1}))) != drawn
    assert [choose(space, n, []) for n in (7, 3)] == [drawn[6], drawn[2]]  # each by itself


@pytest.mark.parametrize(
    ("sweep", "words"),
    [
        ({"parameters": {"trainin.epochs": values(1)}}, "the nearest known one is training.epochs"),
        ({"parameters": {"kl_weight": values(1)}}, "the nearest known one is objective.kl_weight"),
        (
            {"search": "random", "trials": 2, "parameters": {"model.latent": {"min": 8, "max": math.inf}}},
            r"model\.latent\.max: input should be a finite number \(got inf\)",
        ),
        ({"parameters": {"sweep.seed": values(1)}}, "the nearest known one is seed"),
        ({"parameters": {"name": values("a")}}, "shared by all children"),
        ({"parameters": {"select.metric": values("loss")}}, "shared by all children"),
        ({"parameters": {"model": values({}), "model.latent": values(1)}}, "the section of model.latent"),
        ({"parameters": {"training.epochs": {"min": 1, "max": 2.5}}}, "takes integers, not 2.5"),
        ({"parameters": {"training.schedule": {"min": 1, "max": 2}}}, "takes no numbers: list its values"),
        ({"parameters": {"training.learning_rate": {"min": 1, "max": 2}}}, "a grid needs values, or a range"),
        ({"parameters": {"training.epochs": {"min": 3, "max": 2}}}, r"min \(3\) must be less than max \(2\)"),
        ({"parameters": {"training.epochs": {"min": 3}}}, "either values"),
        ({"parameters": {"training.epochs": {}}}, "either values"),
        ({"parameters": {"training.epochs": {"values": [1, 1]}}}, "lists a value twice"),
        ({"parameters": {"training.epochs": {"valeus": [1]}}}, r"one is sweep\.parameters\.NAME\.values"),
        ({"parameters": {"training.epochs": {"min": 1, "max": 2000}}}, "a grid of 2,000 children"),
        ({"search": "random", "parameters": {"training.epochs": values(1)}}, "random needs trials"),
        ({"trials": 3, "parameters": {"training.epochs": values(1)}}, "trials goes with search random"),
        ({"search": "optuna", "trials": 3, "array": 2}, "optuna needs parameters"),
        ({"array": 2, "parameters": {"seed": values(1)}}, "without a parameter seed"),
        ({}, "needs parameters, or an array"),
        ({"search": "gird", "array": 2}, "sweep.search"),
        ({"array": 2, "early_stoping": {}}, "the nearest known one is sweep.early_stopping"),
        ({"array": 2, "early_stopping": {"gracee": 2}}, r"known one is sweep\.early_stopping\.grace"),
    ],
)
def test_what_cannot_be_is_named_with_what_would_be_right(sweep: dict[str, Any], words: str):
    with pytest.raises(ConfigError, match=words):
        config(sweep)


def test_a_child_that_cannot_be_is_named_with_key_and_value_before_anything_is_submitted():
    wrong = config({"parameters": {"training.epochs": values(2, 0, 3)}})
    with pytest.raises(ConfigError, match=r"training\.epochs: .*got 0.*\(child 2: training\.epochs = 0\)"):
        checked(wrong)
    # Each value may be right by itself, and the whole not.
    together = config(
        {"parameters": {"training.epochs": values(2, 4), "objective.pretraining_epochs": values(0, 3)}},
        training={"epochs": 9},
    )
    told = (
        r"pretraining_epochs must be below .* \(child 2: training\.epochs = 2, objective\.pretraining_epochs"
    )
    with pytest.raises(ConfigError, match=told):
        checked(together)


def test_an_edge_of_what_optuna_may_choose_is_checked():
    sweep = {"search": "optuna", "trials": 3, "parameters": {"model.dropout": {"min": 0, "max": 1.5}}}
    with pytest.raises(ConfigError, match=r"model\.dropout: .*\(sweep\.parameters\.model\.dropout: 1\.5\)"):
        checked(config(sweep))


def optuna_space(**more: Any) -> Space:
    sweep = {
        "search": "optuna",
        "trials": 30,
        "startup": 4,
        "parameters": {
            "model.dropout": {"min": 0, "max": 0.9},
            "data.train": values(["a.csv"], ["b.csv"]),
            "training.batch_size": {"min": 8, "max": 64, "log": True},
            "model.latent": {"min": 4, "max": 10, "step": 4},
        },
    }
    return checked(config(sweep | more, data={"source": "files", "train": ["x.csv"]}))


def history(space: Space, children: int) -> list[Past]:
    """Children of which the best have little dropout."""
    past: list[Past] = []
    for number in range(1, children + 1):
        parameters = choose(space, number, past)
        value = 1 - parameters["model.dropout"]
        past.append(Past(number, parameters, "done", value, {1: value / 2, 2: value}))
    return past


def test_optuna_reaches_the_end_of_a_range_in_steps():
    """0.7 + 0.1 is a little less than 0.8."""
    steps = {"model.dropout": {"min": 0.7, "max": 0.8, "step": 0.1}}
    space = checked(config({"search": "optuna", "trials": 12, "startup": 4, "parameters": steps}))
    chosen = {child.parameters["model.dropout"] for child in history(space, 12)}
    assert chosen == {0.7, 0.8}


def test_optuna_suggests_the_same_to_whoever_asks_with_the_same_records():
    space = optuna_space()
    past = history(space, 6)
    assert history(optuna_space(), 6) == past  # another process, from the beginning
    assert choose(optuna_space(), 7, list(reversed(past))) == choose(space, 7, past)
    assert choose(optuna_space(seed=1), 7, past) != choose(space, 7, past)


def test_optuna_learns_from_what_the_children_came_to():
    past = history(optuna_space(), 24)
    early, late = past[:4], past[-8:]

    def mean(children: list[Past]) -> float:
        return sum(child.parameters["model.dropout"] for child in children) / len(children)

    assert mean(late) < 0.6 * mean(early)
    assert {child.parameters["model.latent"] for child in past} <= {4, 8}


def test_optuna_is_told_of_children_that_run_were_stopped_or_failed():
    space = optuna_space()
    past = history(space, 5)
    variants = []
    for outcome in ("open", "stopped", "failed"):
        last = Past(6, past[0].parameters, outcome, None, {1: 0.1} if outcome != "failed" else {})
        variants.append(choose(space, 7, [*past, last]))
    assert all(variant["data.train"] in (["a.csv"], ["b.csv"]) for variant in variants)


def test_optuna_is_asked_again_if_what_it_suggests_is_no_config():
    sweep = {
        "search": "optuna",
        "trials": 9,
        "parameters": {"training.epochs": values(1, 8), "objective.pretraining_epochs": values(0, 4)},
    }
    space = checked(config(sweep, training={"epochs": 9}))
    made = [choose(space, number, []) for number in range(1, 13)]
    assert {(m["training.epochs"], m["objective.pretraining_epochs"]) for m in made} == {
        (1, 0),
        (8, 0),
        (8, 4),
    }
    hopeless = config(
        sweep
        | {"parameters": {"training.epochs": values(1, 2), "objective.pretraining_epochs": values(4, 5)}},
        training={"epochs": 9},
    )
    with pytest.raises(NoSuggestion, match=r"100 suggestions in a row.*pretraining_epochs must be below"):
        choose(checked(hopeless), 1, [])


def test_the_preset_is_a_sweep_that_trains_without_the_service_too():
    preset = load("sweep")
    assert checked(preset).size == 6
    alone = without_service(preset.model_dump(mode="json"))
    assert alone == preset.training_config()


def test_parameters_can_be_overridden_by_their_dotted_names():
    given = load(
        "sweep",
        [
            "sweep.parameters.training.learning_rate.values=[0.1]",
            "sweep.parameters.model.latent={min: 8, max: 16, step: 8}",
        ],
    )
    assert given.sweep is not None
    assert given.sweep.parameters["training.learning_rate"].values == (0.1,)
    assert checked(given).size == 3 * 1 * 2
    with pytest.raises(ConfigError, match="sweep is a value, not a section"):
        load("sweep", ["sweep=3", "sweep.parameters.seed.values=[1]"])


def test_a_config_without_a_sweep_is_what_it_was(tmp_path: Path):
    (tmp_path / "plain.yaml").write_text("training: {epochs: 3}\n")
    assert load(tmp_path / "plain.yaml").sweep is None
