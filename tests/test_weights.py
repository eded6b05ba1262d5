"""α: what the user gives, and what is learned for every kind of model that has a loss."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from ract.aggregate.loaded import load, mean_loss, parameters
from ract.aggregate.run import aggregate
from ract.aggregate.weights import Mixture, given, learn, project_to_simplex, uniform
from ract.errors import BadInput
from tests.pico import children, inputs, pico, save


def lm_batches(count: int, seed: int = 0) -> list[dict[str, torch.Tensor]]:
    tokens = torch.randint(3, 90, (count, 2, 12), generator=torch.Generator().manual_seed(seed))
    return [{"input_ids": t, "labels": t} for t in tokens]


def test_given_reads_text_and_lists() -> None:
    assert given(".6,.4", 2) == [0.6, 0.4]
    assert given(" 0.25 0.75 ", 2) == [0.25, 0.75]
    assert given([1, 0], 2) == [1.0, 0.0]
    assert given("3,1", 2, normalize=True) == [0.75, 0.25]
    assert given([1.5, -0.5], 2, affine=True) == [1.5, -0.5]


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (".6,.4,0", "3 weights were given for 2 models"),
        (".6,.5", r"sum to 1.1, not 1\. Give --normalize"),
        ("0,0", "sum to zero"),
        ("1,nan", "not all finite"),
        ("1,inf", "not all finite"),
        ("half,half", "not numbers"),
        ("1.5,-.5", r"-0.5 is negative\. Give --affine"),
    ],
)
def test_given_refuses_with_the_remedy(weights: str, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        given(weights, 2)


def test_a_zero_sum_is_refused_even_when_normalizing() -> None:
    with pytest.raises(BadInput, match="sum to zero"):
        given([1.0, -1.0], 2, normalize=True, affine=True)


def test_projection_by_hand() -> None:
    points = torch.tensor([[0.5, 0.5], [2.0, 0.0], [0.8, 0.6], [-1.0, -1.0]])
    expected = torch.tensor([[0.5, 0.5], [1.0, 0.0], [0.6, 0.4], [0.5, 0.5]])
    torch.testing.assert_close(project_to_simplex(points), expected)
    torch.testing.assert_close(project_to_simplex(points, affine=True)[1], torch.tensor([1.5, -0.5]))


@pytest.mark.parametrize("per", ["model", "layer", "tensor"])
def test_the_gradient_is_that_of_finite_differences(tmp_path: Path, per: str) -> None:
    mixture = Mixture(children(tmp_path, "Qwen3"), per)  # type: ignore[arg-type]
    mixture.autocast = None
    batch, alpha, step = lm_batches(1)[0], mixture.uniform, 1e-2
    gradient = mixture.gradient(alpha, batch)
    for row in range(0, len(alpha), max(1, len(alpha) // 5)):
        shift = torch.zeros_like(alpha)
        shift[row] = torch.tensor([step, -step])
        slope = (mixture.loss(alpha + shift, [batch]) - mixture.loss(alpha - shift, [batch])) / (2 * step)
        assert float(gradient[row, 0] - gradient[row, 1]) == pytest.approx(slope, rel=0.02, abs=2e-4)


def test_learning_finds_the_child_that_knows_the_text(tmp_path: Path) -> None:
    model = pico("Qwen3", seed=1)
    stranger = save(model, tmp_path / "stranger")
    batches = lm_batches(2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(15):
        for batch in batches:
            optimizer.zero_grad()
            model(**batch).loss.backward()
            optimizer.step()
    taught = save(model, tmp_path / "taught")
    found = learn([stranger, taught], batches, lm_batches(2, seed=1), steps=30, lr=0.1)
    assert isinstance(found.weights, list) and found.weights[1] > 0.9
    assert found.loss < found.loss_uniform
    assert found.held_out_loss is not None and found.held_out_children is not None
    assert len(found.held_out_children) == 2


def test_of_three_an_average_of_those_that_help_is_a_candidate(tmp_path: Path) -> None:
    model, batches, paths = pico("Qwen3", seed=1), lm_batches(2), [save(pico("Qwen3", seed=9), tmp_path / "stranger")]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(15):
        optimizer.zero_grad()
        sum(model(**batch).loss for batch in batches).backward()
        optimizer.step()
    torch.manual_seed(0)
    steps = {name: 0.1 * torch.randn_like(p) for name, p in model.named_parameters()}
    for way in (1.0, -2.0):  # to both sides of the low point
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.add_(steps[name], alpha=way)
        paths.append(save(model, tmp_path / f"aside{way}"))
    mixture = Mixture(paths)
    losses = [mixture.loss(mixture.one_hot(i), batches) for i in range(3)]
    kept, loss = mixture.greedy_soup(losses, batches)
    assert sorted(kept) == [1, 2] and kept[0] == losses.index(min(losses)) and loss < min(losses)
    assert mixture.loss(mixture.average(kept), batches) == loss
    without_gradients = learn(paths, batches, steps=1, lr=0.0)
    assert (without_gradients.chosen, without_gradients.loss) == ("greedy soup", loss)
    assert without_gradients.weights == [0.0, 0.5, 0.5]


def test_a_soup_is_in_proportion_to_the_weights(tmp_path: Path) -> None:
    mixture = Mixture(children(tmp_path, "GPT-2", 3), "layer")
    assert mixture.average([2, 0], [0.25, 0.5, 0.75])[0].tolist() == [0.25, 0.0, 0.75]
    assert torch.equal(mixture.average([0, 1, 2]), mixture.uniform)
    kept, _ = mixture.greedy_soup([float("nan"), 2.0, float("inf")], lm_batches(1))
    assert kept == [1]


def test_the_same_seed_learns_the_same(tmp_path: Path) -> None:
    models, batches = children(tmp_path, "GPT-2"), lm_batches(3)
    assert learn(models, batches, steps=5, seed=3) == learn(models, batches, steps=5, seed=3)


def labelled(name: str, seed: int) -> dict[str, torch.Tensor]:
    model = pico(name)
    given_inputs = inputs(model)
    generator = torch.Generator().manual_seed(seed)
    if "classification" in name:
        return {**given_inputs, "labels": torch.randint(0, 3, (2,), generator=generator)}
    labels = torch.randint(3, 90, (2, 7), generator=generator)
    given_inputs.pop("decoder_input_ids", None)
    return {**given_inputs, "labels": labels}


@pytest.mark.parametrize("name", ["GPT-2", "BERT, masked LM", "BERT, classification", "T5", "Marian", "Mixtral"])
def test_the_written_model_has_the_loss_that_was_promised(tmp_path: Path, name: str) -> None:
    models = children(tmp_path, name)
    batches = [labelled(name, seed) for seed in range(2)]
    found = learn(models, batches, per="layer", steps=6, lr=0.2)
    aggregate(models, tmp_path / "merged", weights=found.weights)
    assert mean_loss(load(tmp_path / "merged"), batches) == pytest.approx(found.loss, rel=1e-5)


def test_weights_per_tensor_reach_every_tensor_of_the_file(tmp_path: Path) -> None:
    models = children(tmp_path, "Mixtral")  # its experts are one tensor in memory and many on disk
    batches = lm_batches(2)
    found = learn(models, batches, per="tensor", steps=6, lr=0.2)
    aggregate(models, tmp_path / "merged", weights=found.weights)
    assert mean_loss(load(tmp_path / "merged"), batches) == pytest.approx(found.loss, rel=1e-5)


def test_bf16_children_are_judged_as_they_are_stored(tmp_path: Path) -> None:
    models = [save(pico("Qwen3", seed).to(torch.bfloat16), tmp_path / str(seed)) for seed in range(2)]
    batches = lm_batches(2)
    found = learn(models, batches, steps=4)
    aggregate(models, tmp_path / "merged", weights=found.weights)
    merged = load(tmp_path / "merged")
    stored = {name: p.float() for name, p in parameters(merged).items()}
    assert all(p.dtype == torch.bfloat16 for p in parameters(merged).values())
    assert mean_loss(merged, batches, stored) == pytest.approx(found.loss, rel=1e-5)


def test_a_candidate_without_a_finite_loss_is_not_chosen(tmp_path: Path) -> None:
    broken = pico("Qwen3", seed=1)
    with torch.no_grad():
        broken.model.norm.weight.fill_(math.inf)
    models = [save(pico("Qwen3"), tmp_path / "sound"), save(broken, tmp_path / "broken")]
    found = learn(models, lm_batches(2), steps=3)
    assert found.chosen == "child 0" and found.weights == [1.0, 0.0]
    assert math.isfinite(found.loss)


def test_refusals_say_why(tmp_path: Path) -> None:
    first, second = children(tmp_path, "BERT")
    with pytest.raises(BadInput, match="no data to learn"):
        learn([first, second], [])
    with pytest.raises(BadInput, match="BertModel"):
        learn([first, second], lm_batches(1))
    longer = save(pico("BERT", hidden_size=32), tmp_path / "wide")
    with pytest.raises(BadInput, match=r"is .* in .*child0 and .* in .*wide"):
        learn([first, longer], lm_batches(1))


def test_uniform() -> None:
    assert uniform(4) == [0.25] * 4
