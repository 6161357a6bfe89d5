"""The fused epilogue against its formula, and volumes in bfloat16."""

import pytest
import torch
from torch.nn import functional

from amortized.types import TextCondition
from generators.conv3d import Conv3DConfig, Conv3DNet
from generators.epilogue import leaky_clamped
from tests.generators.helpers import TEXT_DIM, perturb, texts

SMALL = {"resolution": 16, "base_channels": 6, "num_features": 5, "z_dim": 4, "style_dim": 8, "hidden": (7,)}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])
def test_equals_formula(dtype: torch.dtype, layout: torch.memory_format):
    """Values and gradients against float64, also beyond the clamp."""
    torch.manual_seed(0)
    x = (150 * torch.randn(2, 3, 4, 4, 4)).to(dtype).contiguous(memory_format=layout).requires_grad_()
    shift, bias = torch.randn(2, 1, 4, 4, 4).requires_grad_(), torch.randn(3).requires_grad_()
    weight = torch.randn(2, 3, 4, 4, 4)
    if dtype == torch.float64:
        shift, bias, weight = (t.detach().double().requires_grad_() for t in (shift, bias, weight))
    actual = leaky_clamped(x * 1, shift, bias)
    assert actual.dtype == dtype
    exact = [t.detach().double().requires_grad_() for t in (x, shift, bias)]
    plain = exact[0] + exact[1] + exact[2][:, None, None, None]
    plain = functional.leaky_relu(plain, 0.2).clamp(-256, 256)
    assert (plain == 256).any() and (plain < 0).any()
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 0.02}[dtype]
    torch.testing.assert_close(actual.double(), plain, rtol=tolerance, atol=tolerance)
    grads = torch.autograd.grad((actual * weight).sum(), (x, shift, bias))
    wanted = torch.autograd.grad((plain * weight).sum(), exact)
    for grad, expected in zip(grads, wanted, strict=True):
        scale = expected.abs().max().item() if dtype == torch.bfloat16 else 1
        torch.testing.assert_close(grad.double(), expected, rtol=tolerance, atol=3 * scale * tolerance)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("num_prompts", [1, 2, 3])
def test_batch_equals_prompts_one_by_one(num_prompts: int, checkpointing: bool):
    """Scenes and summed gradients, with stages that run prompt by prompt and stages that run batched."""
    torch.manual_seed(0)
    batch, single = (
        Conv3DNet(Conv3DConfig(**SMALL, checkpointing=on), TEXT_DIM).double() for on in (checkpointing, False)
    )
    single.load_state_dict(perturb(batch).state_dict())
    assert {stage.by_prompt for stage in batch.stages} == {False, True}
    text = TextCondition(pooled=texts(num_prompts).pooled.double(), tokens=None, mask=None)
    z, points = torch.randn(num_prompts, 4).double(), torch.rand(num_prompts, 20, 3).double() - 0.5
    actual = batch(text, z).sdf(points)
    actual.square().sum().backward()
    for p in range(num_prompts):
        rows = slice(p, p + 1)
        one = TextCondition(pooled=text.pooled[rows], tokens=None, mask=None)
        expected = single(one, z[rows]).sdf(points[rows])
        torch.testing.assert_close(actual[rows], expected)
        expected.square().sum().backward()
    for ours, theirs in zip(batch.parameters(), single.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)


@pytest.mark.parametrize("num_prompts", [1, 2])
def test_volumes_between_convolutions_are_bfloat16(num_prompts: int):
    generator, dtypes = Conv3DNet(Conv3DConfig(**SMALL), TEXT_DIM), []
    for stage in generator.stages:
        for layer in [stage.grow, stage.keep, stage.project]:
            if layer is not None:
                layer.register_forward_hook(
                    lambda _, inputs, out: dtypes.append((inputs[0].dtype, out.dtype))
                )
    with torch.autocast("cpu", torch.bfloat16):
        generator(texts(num_prompts), torch.randn(num_prompts, 4))
    inner = dtypes[1:]  # the input of the first is the learned constant
    assert inner and all(kinds == (torch.bfloat16, torch.bfloat16) for kinds in inner), inner
