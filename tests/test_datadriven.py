"""Fisher, RegMean and greedy soup against what they promise, through the engine."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ract.aggregate import datadriven
from ract.aggregate.loaded import load, loss_of, mean_loss, parameters
from ract.aggregate.run import aggregate
from ract.checkpoint.directory import open_model
from ract.errors import BadInput
from tests.pico import children, pico, save

METHODS = ["fisher", "regmean", "greedy_soup"]


def batches(count: int = 2, seed: int = 0) -> list[dict[str, torch.Tensor]]:
    tokens = torch.randint(3, 90, (count, 2, 12), generator=torch.Generator().manual_seed(seed))
    return [{"input_ids": t, "attention_mask": torch.ones_like(t), "labels": t} for t in tokens]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["GPT-2", "Qwen3", "Mixtral", "BERT, masked LM"])
def test_equal_children_give_the_child(tmp_path: Path, name: str, method: str) -> None:
    child = save(pico(name), tmp_path / "child")
    aggregate([child, child], tmp_path / "out", method=method, data=batches())
    expected = parameters(load(child))
    for key, tensor in parameters(load(tmp_path / "out")).items():
        torch.testing.assert_close(tensor, expected[key], rtol=1e-4, atol=1e-5, msg=lambda m, key=key: f"{key}: {m}")


@pytest.mark.parametrize("method", METHODS)
def test_one_hot_weights_give_that_child(tmp_path: Path, method: str) -> None:
    models = children(tmp_path, "GPT-2")
    aggregate(models, tmp_path / "out", method=method, weights="0,1", data=batches())
    expected = parameters(load(models[1]))
    for key, tensor in parameters(load(tmp_path / "out")).items():
        torch.testing.assert_close(tensor, expected[key], rtol=1e-4, atol=1e-5)


def test_fisher_is_the_formula(tmp_path: Path) -> None:
    models, data = children(tmp_path, "Qwen3"), batches(1)
    information = []
    for path in models:
        model = load(path)
        total = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
        for row in range(2):
            model.zero_grad()
            loss_of(model, {key: value[row : row + 1] for key, value in data[0].items()}).backward()
            for name, p in model.named_parameters():
                assert p.grad is not None
                total[name] += p.grad.square()
        whole = sum(float(t.sum()) for t in total.values())
        information.append({name: t / whole for name, t in total.items()})
    aggregate(models, tmp_path / "out", method="fisher", data=data)
    name = "model.layers.1.mlp.down_proj.weight"
    floor = 1e-3 * float(sum(f[name].mean() for f in information)) / 2
    first, second = (parameters(load(path))[name] for path in models)
    a, b = (f[name] + floor for f in information)
    torch.testing.assert_close(
        parameters(load(tmp_path / "out"))[name], (a * first + b * second) / (a + b), rtol=1e-4, atol=1e-6
    )


@pytest.mark.slow
def test_regmean_reproduces_outputs_better_than_the_average(tmp_path: Path) -> None:
    models, data = children(tmp_path, "GPT-2"), batches(8)
    inputs: list[list[torch.Tensor]] = []
    for path in models:
        model, seen = load(path), list[torch.Tensor]()
        hook = model.transformer.h[0].mlp.c_proj.register_forward_pre_hook(
            lambda _, given, seen=seen: seen.append(given[0].detach().flatten(0, 1))
        )
        for batch in data:
            loss_of(model, batch)
        hook.remove()
        inputs.append(seen)
    aggregate(models, tmp_path / "regmean", method="regmean", data=data, off_diagonal=1.0)
    aggregate(models, tmp_path / "average")
    name = "transformer.h.0.mlp.c_proj.weight"
    wanted = [parameters(load(path))[name] for path in models]
    error = {
        out: sum(
            float((torch.cat(x) @ parameters(load(tmp_path / out))[name] - torch.cat(x) @ w).square().sum())
            for x, w in zip(inputs, wanted, strict=True)
        )
        for out in ("regmean", "average")
    }
    assert error["regmean"] < 0.9 * error["average"]


@pytest.mark.slow
def test_the_soup_keeps_what_helps_and_says_so(tmp_path: Path) -> None:
    model, data = pico("Qwen3"), batches(2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    paths = [save(pico("Qwen3", seed=5), tmp_path / "stranger")]
    for step in range(20):
        optimizer.zero_grad()
        sum(model(**batch).loss for batch in data).backward()
        optimizer.step()
        if step in (14, 19):
            paths.append(save(model, tmp_path / f"step{step}"))
    recipe = datadriven.greedy_soup([open_model(path) for path in paths], [1 / 3] * 3, batches=data)
    assert isinstance(recipe.weights, list) and recipe.weights[0] == 0.0
    assert recipe.notes["ingredients"][0] == 2
    assert recipe.notes["loss"] <= min(recipe.notes["loss_children"])
    aggregate(paths, tmp_path / "out", method="greedy_soup", data=data * 3)
    assert mean_loss(load(tmp_path / "out"), data) == pytest.approx(recipe.notes["loss"], rel=1e-5)


def test_each_child_may_have_its_own_data(tmp_path: Path) -> None:
    models = [open_model(path) for path in children(tmp_path, "Qwen3")]
    own = [batches(1, seed=1), batches(1, seed=2)]
    shared = datadriven.fisher(models, [0.5, 0.5], batches=own[0])
    apart = datadriven.fisher(models, [0.5, 0.5], batches=own)
    terms = [torch.ones(16, 24), torch.zeros(16, 24)]
    name = "model.layers.0.mlp.down_proj.weight"
    first, second = (next(t for t in r.tensors if t.name == name).function for r in (shared, apart))
    assert first is not None and second is not None
    assert not torch.equal(first(terms), second(terms))


def test_refusals_say_why(tmp_path: Path) -> None:
    models = [open_model(path) for path in children(tmp_path, "Qwen3")]
    for method in (datadriven.fisher, datadriven.regmean, datadriven.greedy_soup):
        with pytest.raises(BadInput, match="needs held-out data"):
            method(models, [0.5, 0.5], batches=[])
    with pytest.raises(BadInput, match="off_diagonal is 2"):
        datadriven.regmean(models, [0.5, 0.5], batches=batches(), off_diagonal=2.0)
    with pytest.raises(BadInput, match="1 lists of batches were given for 2 models"):
        datadriven.fisher(models, [0.5, 0.5], batches=[batches()])
    with pytest.raises(BadInput, match="not weights by group"):
        datadriven.greedy_soup(models, {"model": [0.5, 0.5]}, batches=batches())
