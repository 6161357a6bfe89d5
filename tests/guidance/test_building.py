"""build_guidance: the reference model's text, size and seed; combinations of settings that raise."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from amortized.conditioning import ViewTextConfig
from amortized.guidance import Guidance, build_guidance, check_guidance, published
from amortized.guidance.learned import AdaptedPrior, PromptNulls
from amortized.priors import PriorConfig
from tests.guidance.closed_form import mixture, weights_of_text

PRIOR, VIEWS = PriorConfig(path="unused"), ViewTextConfig(perp_neg=False)


class Encoder:
    """Encodes a text by its length and records all texts."""

    def __init__(self) -> None:
        self.texts = []

    def __call__(self, texts):
        self.texts += texts
        assert len(texts) == 1
        return weights_of_text(1, len(texts[0]))


def build(method: str, *, seed: int = 0, negative_prompt: str = "", **settings) -> tuple[Guidance, Encoder]:
    encode = Encoder()
    guidance = build_guidance(
        published(method, **settings),
        mixture(),
        encode=encode,
        num_prompts=5,
        seed=seed,
        negative_prompt=negative_prompt,
    )
    return guidance, encode


def test_a_method_without_a_reference_model_encodes_nothing():
    guidance, encode = build("asd")
    assert guidance.learned is None and encode.texts == []
    assert (guidance.learning_rate, guidance.learns_every) == (0.0, 1)


def test_a_learned_null_starts_from_the_negative_prompt():
    guidance, encode = build("lods-embedding", negative_prompt="ugly", learned={"every": 3})
    assert torch.equal(guidance.learned.pooled, weights_of_text(1, len("ugly")).pooled)
    assert encode.texts == ["ugly"]
    assert (guidance.learning_rate, guidance.learns_every) == (1e-5, 3)


def test_there_is_a_null_for_each_training_prompt():
    guidance, _ = build("lods-embedding", learned={"kind": "prompt-nulls"})
    assert isinstance(guidance.learned, PromptNulls) and len(guidance.learned.pooled) == 5


def test_a_lora_is_queried_with_its_fixed_text():
    guidance, _ = build("lods-lora", learned={"text": "<new1>"})
    assert isinstance(guidance.learned, AdaptedPrior)
    assert torch.equal(guidance.learned.text.pooled, weights_of_text(1, len("<new1>")).pooled)
    assert build("vsd")[0].learned.text is None


def test_initial_weights_are_a_function_of_the_seed_alone():
    def initial(seed: int) -> torch.Tensor:
        guidance, _ = build("lods-embedding", seed=seed, learned={"kind": "adapter"})
        return guidance.learned.residual[0].weight.detach()

    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = initial(0)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert torch.equal(initial(0), first) and not torch.equal(initial(1), first)


def test_a_missing_reference_model_raises():
    with pytest.raises(ValueError, match="needs a reference model: build it with build_guidance"):
        Guidance(mixture(), published("vsd"))


def test_a_table_of_nulls_beyond_the_memory_limit_raises():
    with pytest.raises(ValueError, match=r"1000000000 prompts takes 119 GiB .*learned.kind=adapter"):
        PromptNulls(weights_of_text(1, 0), 1_000_000_000)


@pytest.mark.parametrize("views", [{"direction_step_deg": 20}, {"perp_neg": True}])
def test_a_trajectory_cache_with_many_view_texts_raises(views):
    cached, plain = published("dsd", trajectory={"cache": True}), published("dsd")
    with pytest.raises(ValueError, match="guidance.trajectory.cache .* set views.direction_step_deg=0"):
        check_guidance(cached, PRIOR, replace(VIEWS, **views))
    check_guidance(cached, PRIOR, VIEWS)
    check_guidance(plain, PRIOR, replace(VIEWS, **views))


def test_a_reference_model_with_an_offloaded_prior_raises():
    offloaded = replace(PRIOR, offload=True)
    with pytest.raises(ValueError, match="guidance.learned .* set prior.offload=false"):
        check_guidance(published("vsd"), offloaded, VIEWS)
    check_guidance(published("vsd"), PRIOR, VIEWS)
    check_guidance(published("asd"), offloaded, VIEWS)
