"""EMA, learning rates and Adan against their formulas."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from amortized.parallel import Ema, LearnedGroup, OptimizerConfig, build_optimizer, set_learning_rate


def test_the_ema_follows_its_recursion():
    module = nn.Linear(1, 1, bias=False)
    nn.init.constant_(module.weight, 1.0)
    ema, expected = Ema(module, 0.5), 1.0
    for step, value in enumerate([2.0, -1.0, 4.0, 0.5, 3.0] * 4):
        nn.init.constant_(module.weight, value)
        ema.update(module, step)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * value
        assert ema.module.weight.item() == pytest.approx(expected, rel=1e-5)


def test_the_ema_is_in_eval_mode_and_copies_buffers():
    module = nn.BatchNorm1d(2)
    ema = Ema(module, 0.9)
    module(torch.randn(8, 2) + 3)
    ema.update(module, 0)
    assert not ema.module.training and module.training
    assert torch.equal(ema.module.running_mean, module.running_mean)
    assert ema.module.num_batches_tracked == 1


def test_learning_rates_warm_up_decay_and_differ_by_part():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.grid, self.head = nn.Linear(2, 2), nn.Linear(2, 2)
            self.surroundings = nn.ModuleDict({"grid": nn.Linear(2, 2)})

    config = OptimizerConfig(
        learning_rate=0.1,
        encoding_learning_rate=1.0,
        environment_learning_rate=0.5,
        warmup_steps=4,
        decay="cosine",
        min_lr_ratio=0.2,
    )
    model = Model()
    optimizer = build_optimizer(config, model)
    rates = {}
    parts = {id(parameter): name.split(".")[0] for name, parameter in model.named_parameters()}
    for step in (0, 3, 50, 100):
        set_learning_rate(optimizer.param_groups, config, step, 100)
        for group in optimizer.param_groups:
            (name,) = {parts[id(parameter)] for parameter in group["params"]}
            rates[name, step] = group["lr"]
    assert {name for name, _ in rates} == {"grid", "head", "surroundings"}
    for name, base in (("grid", 1.0), ("head", 0.1), ("surroundings", 0.5)):
        for step, warmup in ((0, 0.25), (3, 1.0), (50, 1.0), (100, 1.0)):
            decay = 0.2 + 0.8 * 0.5 * (1 + math.cos(math.pi * step / 100))
            assert rates[name, step] == pytest.approx(base * warmup * decay), (name, step)


def test_adan_follows_its_algorithm():
    """Against algorithm 1 of the paper (arXiv 2208.06677) in float64 numpy."""
    config = OptimizerConfig(
        name="adan", learning_rate=0.1, betas=(0.9, 0.8, 0.95), weight_decay=0.03, epsilon=1e-6
    )
    module = nn.Linear(3, 1, bias=False).double()
    optimizer, rng = build_optimizer(config, module), np.random.default_rng(0)
    weight, (m, v, n, previous) = module.weight.detach().numpy().copy(), [np.zeros((1, 3)) for _ in range(4)]
    for step in range(1, 6):
        gradient = rng.normal(size=(1, 3))
        module.weight.grad = torch.from_numpy(gradient.copy())
        optimizer.step()
        change = gradient - (previous if step > 1 else gradient)
        previous = gradient
        m = 0.9 * m + 0.1 * gradient
        v = 0.8 * v + 0.2 * change
        n = 0.95 * n + 0.05 * (gradient + 0.8 * change) ** 2
        update = m / (1 - 0.9**step) + 0.8 * v / (1 - 0.8**step)
        weight = (weight - 0.1 * update / (np.sqrt(n / (1 - 0.95**step)) + 1e-6)) / (1 + 0.03 * 0.1)
        np.testing.assert_allclose(module.weight.detach().numpy(), weight, rtol=1e-12)


def test_adan_needs_three_betas():
    with pytest.raises(ValueError, match="betas must be 3 numbers for name=adan, e.g. .0.98, 0.92, 0.99."):
        OptimizerConfig(name="adan")


def test_a_fused_optimizer_skips_the_update_if_found_inf_is_set():
    """The trainer relies on it: weights stay finite, and the host does not wait for the device."""
    module = nn.Linear(3, 2)
    optimizer = build_optimizer(OptimizerConfig(), module)
    before = [p.detach().clone() for p in module.parameters()]
    for p in module.parameters():
        p.grad = torch.full_like(p, math.nan)
    optimizer.found_inf = torch.tensor(1.0)
    optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(before, module.parameters(), strict=True))
    for p in module.parameters():
        p.grad = torch.ones_like(p)
    optimizer.found_inf = torch.tensor(0.0)
    optimizer.step()
    assert not any(torch.equal(a, b) for a, b in zip(before, module.parameters(), strict=True))


@pytest.mark.parametrize("environment", [None, 0.5])
@pytest.mark.parametrize("encoding", [None, 0.25])
def test_the_grid_of_the_environment_may_have_its_own_learning_rate(environment, encoding):
    model = nn.ModuleDict({"grid": nn.Linear(1, 1), "head": nn.Linear(1, 1)})
    model["surroundings"] = nn.ModuleDict({"grid": nn.Linear(1, 1), "head": nn.Linear(1, 1)})
    config = OptimizerConfig(
        learning_rate=0.1,
        encoding_learning_rate=1.0,
        environment_learning_rate=environment,
        environment_encoding_learning_rate=encoding,
    )
    groups = build_optimizer(config, model).param_groups
    set_learning_rate(groups, config, 0, 10)
    rates = {id(p): group["lr"] for group in groups for p in group["params"]}
    shared = environment or 0.1
    expected = {"head": 0.1, "grid": 1.0, "surroundings.head": shared}
    expected["surroundings.grid"] = encoding or shared
    for part, rate in expected.items():
        assert {rates[id(p)] for p in model.get_submodule(part).parameters()} == {rate}, part
    names = [group["name"] for group in groups]
    assert names == ["generator", *["surroundings.grid"] * (encoding is not None), "surroundings", "grid"]


@pytest.mark.parametrize("name", ["adam", "adamw", "adan"])
@pytest.mark.parametrize("decay", [0.0, 0.01, 0.3])
def test_the_reference_model_has_its_own_weight_decay(name, decay):
    """With zero gradients the weights shrink by their decay alone: AdamW by 1 - rate * decay a step."""
    if name == "adam" and decay:
        return  # refused by the config
    betas = (0.98, 0.92, 0.99) if name == "adan" else (0.9, 0.99)
    generator, learned = nn.Linear(2, 1, bias=False), nn.Linear(2, 1, bias=False)
    start = learned.weight.detach().clone()
    group = LearnedGroup(module=learned, rate=0.1, decay=decay)
    optimizer = build_optimizer(OptimizerConfig(name=name, betas=betas), generator, [group])
    for _ in range(3):
        for p in (*generator.parameters(), *learned.parameters()):
            p.grad = torch.zeros_like(p)
        optimizer.step()
    factor = 1 / (1 + 0.1 * decay) if name == "adan" else 1 - 0.1 * decay
    torch.testing.assert_close(learned.weight, factor**3 * start)
