"""Score distillation on a Gaussian mixture, reimplemented in float64 numpy for one image at a time."""

from __future__ import annotations

import math

import numpy as np
import torch

from amortized.conditioning import ViewText
from amortized.guidance import GuidanceConfig, GuidanceDraws
from amortized.priors import GaussianMixturePrior
from amortized.random import normal
from amortized.types import TextCondition

SHAPE = (2, 3, 3)  # C, h, w
NUM_COMPONENTS = 4


def mixture(views_per_group: int = 1) -> GaussianMixturePrior:
    """Build a mixture whose components overlap, so that the text matters at every timestep."""
    generator = torch.Generator().manual_seed(0)
    means = 0.6 * torch.randn(NUM_COMPONENTS, *SHAPE, generator=generator, dtype=torch.float64)
    stds = torch.tensor([0.8, 0.9, 1.0, 1.2], dtype=torch.float64)
    return GaussianMixturePrior(means, stds, views_per_group=views_per_group)


def weights_of_text(num_rows: int, seed: int) -> TextCondition:
    generator = torch.Generator().manual_seed(seed)
    pooled = torch.rand(num_rows, NUM_COMPONENTS, generator=generator, dtype=torch.float64) ** 3
    return TextCondition(
        pooled=pooled, tokens=pooled[:, None].clone(), mask=torch.ones(num_rows, 1, dtype=torch.bool)
    )


def random_step(
    batch: int, *, perp_neg: bool = False, seed: int = 0
) -> tuple[torch.Tensor, ViewText, GuidanceDraws]:
    """Return latents, texts and draws of `batch` unrelated images."""
    generator = torch.Generator().manual_seed(100 + seed)
    text = ViewText(
        positive=weights_of_text(batch, seed + 1),
        unconditional=weights_of_text(batch, seed + 2),
        empty=weights_of_text(batch, seed + 5),
        negatives=(weights_of_text(batch, seed + 3), weights_of_text(batch, seed + 4)) if perp_neg else (),
        negative_weights=-torch.rand(2 if perp_neg else 0, batch, generator=generator, dtype=torch.float64),
    )
    draws = GuidanceDraws(
        u_timestep=torch.rand(batch, generator=generator),
        u_shift=torch.rand(batch, generator=generator),
        u_learned=torch.rand(batch, generator=generator),
        noise=torch.randn(batch, *SHAPE, generator=generator, dtype=torch.float64),
        keys=torch.arange(batch) + 1000 * seed,
        seeds=torch.arange(batch) % 2 + 50,
        prompts=torch.arange(batch) % 3,
    )
    return torch.randn(batch, *SHAPE, generator=generator, dtype=torch.float64), text, draws


def rows(value, index: slice):
    """Return the same rows of a tensor, text condition, view text or draws."""
    if isinstance(value, torch.Tensor):
        return value[index]
    if isinstance(value, ViewText):
        return ViewText(
            positive=rows(value.positive, index),
            unconditional=rows(value.unconditional, index),
            empty=rows(value.empty, index),
            negatives=tuple(rows(negative, index) for negative in value.negatives),
            negative_weights=value.negative_weights[:, index],
        )
    return type(value)(**{name: tensor[index] for name, tensor in vars(value).items()})


def noise_of(
    prior: GaussianMixturePrior, x: np.ndarray, t: int, weights: np.ndarray, shift: np.ndarray | float = 0.0
) -> np.ndarray:
    """Return E[noise | x_t = x], by Bayes' rule over the components, all moved by `shift`."""
    abar = float(prior.alphas_cumprod[t])
    log_posterior, means = [], []
    for k in range(NUM_COMPONENTS):
        mean, std = prior.means[k].numpy() + shift, float(prior.stds[k])
        total = abar * std**2 + 1 - abar
        distance = float(((x - math.sqrt(abar) * mean) ** 2).sum())
        log_posterior.append(math.log(weights[k]) - 0.5 * distance / total - 0.5 * x.size * math.log(total))
        # E[x0 | x_t, k], and the noise that remains.
        x0 = mean + math.sqrt(abar) * std**2 / total * (x - math.sqrt(abar) * mean)
        means.append((x - math.sqrt(abar) * x0) / math.sqrt(1 - abar))
    posterior = np.exp(np.array(log_posterior) - max(log_posterior))
    return sum(p * m for p, m in zip(posterior / posterior.sum(), means, strict=True))


class Image:
    """One image of a step: its latents, and the prior's predictions for it, in numpy."""

    def __init__(self, prior, latents, text, draws, learned) -> None:
        self.prior, self.text, self.draws, self.learned = prior, text, draws, learned
        self.z, self.eps = latents[0].numpy(), draws.noise[0].numpy()

    def abar(self, t: int) -> float:
        return float(self.prior.alphas_cumprod[t])

    def alpha(self, t: int) -> float:
        return math.sqrt(self.abar(t))

    def sigma(self, t: int) -> float:
        return math.sqrt(1 - self.abar(t))

    def at(self, t: int, eps: np.ndarray) -> np.ndarray:
        return self.alpha(t) * self.z + self.sigma(t) * eps

    def predict(self, x: np.ndarray, t: int, condition: TextCondition) -> np.ndarray:
        return noise_of(self.prior, x, t, condition.pooled[0].numpy())

    def null(self, x: np.ndarray, t: int) -> np.ndarray:
        return self.predict(x, t, self.text.unconditional)

    def of_reference(self, x: np.ndarray, t: int) -> np.ndarray:
        """The reference model's prediction: with other component weights, or with the means moved."""
        weights, shift = self.learned
        weights = self.text.positive.pooled[0].numpy() if weights is None else weights
        return noise_of(self.prior, x, t, weights, shift)

    def guided(self, x: np.ndarray, t: int, s: float, base: np.ndarray, negatives: bool = True) -> np.ndarray:
        positive = self.predict(x, t, self.text.positive) - base
        direction = positive.copy()
        for i, negative in enumerate(self.text.negatives if negatives else ()):
            away = self.predict(x, t, negative) - base
            away = away - (away * positive).sum() / max((positive**2).sum(), 1e-6) * positive
            direction += float(self.text.negative_weights[i, 0]) * away
        return base + s * direction

    def ddim(self, x: np.ndarray, eps: np.ndarray, a: int, b: int) -> np.ndarray:
        return self.alpha(b) * (x - self.sigma(a) * eps) / self.alpha(a) + self.sigma(b) * eps

    def draw(self, *key) -> np.ndarray:
        return normal(SHAPE, *key).double().numpy()


def difference(method: str, image: Image, t: int, later: int, s: float) -> np.ndarray:
    """Return target - reference by the formulas of each method's paper, without w(t)."""
    if method == "ism":
        x, now = image.at(0, image.eps), 0
        while now < later:  # `later` is the earlier time s here
            next_t = min(now + 200, later)
            x, now = image.ddim(x, image.predict(x, now, image.text.empty), now, next_t), next_t
        inverted = image.predict(x, later, image.text.empty)
        x = image.ddim(x, inverted, later, t)
        return image.guided(x, t, s, image.null(x, t)) - inverted
    if method == "sdi":
        x, now = image.at(0, image.eps), 0
        while now < t:
            next_t = min(now + 100, t)
            empty, positive = (
                image.predict(x, now, image.text.empty),
                image.predict(x, now, image.text.positive),
            )
            eps = empty - 7.5 * (positive - empty)
            a, b = image.abar(now), image.abar(next_t)
            std = 0.3 * math.sqrt((1 - a) / (1 - b) * (1 - b / a))
            x0 = (x - image.sigma(now) * eps) / image.alpha(now)
            fresh = image.draw(int(image.draws.keys), "inversion", -(-next_t // 100) * 100)
            x = math.sqrt(b) * x0 + math.sqrt(1 - b - std**2) * eps + std * fresh
            now = next_t
        inverted = (x - image.alpha(t) * image.z) / image.sigma(t)
        return image.guided(x, t, s, image.null(x, t)) - inverted
    if method == "dsd":
        x, now = image.draw(int(image.draws.seeds), "trajectory"), 999
        grid = [node for node in range(899, -101, -100) if node > later]
        for next_t in [*grid, later]:
            if next_t < now:
                x = image.ddim(x, image.guided(x, now, 7.5, image.null(x, now)), now, next_t)
                now = next_t
        eps = image.guided(x, later, 7.5, image.null(x, later))
        x, y = image.at(t, eps), image.at(later, eps)
        return image.guided(x, t, s, image.null(x, t)) - image.guided(y, later, 1.0, image.null(y, later))
    x = image.at(t, image.eps)
    if method.startswith("lods"):
        base = image.of_reference(x, t)
        return (image.guided(x, t, s, base) - image.eps) / s
    target = image.guided(x, t, s, image.null(x, t))
    if method == "asd":
        return target - image.predict(image.at(later, image.eps), later, image.text.positive)
    if method == "vsd":
        return target - image.of_reference(x, t)
    return target - {"sds": image.eps, "csd": image.null(x, t)}[method]


def gradient_of(
    prior: GaussianMixturePrior,
    method: str,
    config: GuidanceConfig,
    latents: torch.Tensor,
    text: ViewText,
    draws: GuidanceDraws,
    progress: float,
    batch: int,
    learned: tuple[np.ndarray | None, np.ndarray | float] | None = None,
) -> tuple[np.ndarray, int, int]:
    """Return (d loss / d latents, t, t') of the one image in the arguments, in a step of `batch` images."""
    run = math.sqrt(progress) if method == "dsd" else progress
    low, high = (math.floor(1000 * line(bound, run) + 1e-6) for bound in (config.t_min, config.t_max))
    t = low + math.floor(float(draws.u_timestep) * (high - low + 1))
    reference = t
    if method in ("asd", "dsd"):
        u = float(draws.u_shift) if config.shift_random else 1.0
        start = low if method == "asd" else 320
        reference = t + math.floor(max(min(config.shift_eta * (t - start), 999 - t), 0) * u)
    elif method == "ism":
        reference = max(t - math.floor(1000 * line(config.shift_span, progress) + 1e-6), 0)
    scale = line(config.guidance_scale, progress)
    image = Image(prior, latents, text, draws, learned)
    abar = image.abar(t)
    weight = {
        "one_minus_alphas_cumprod": 1 - abar,
        "uniform": 1.0,
        "sqrt": math.sqrt(abar) * (1 - abar),
        "sigma_over_alpha": math.sqrt(1 - abar) / math.sqrt(abar),
    }
    gradient = weight[config.weighting] * difference(method, image, t, reference, scale)
    norm = np.linalg.norm(gradient)
    if config.normalize == "per_sample":
        gradient, norm = gradient / norm, 1.0
    if config.max_norm is not None:
        gradient = gradient * min(1.0, config.max_norm / norm)
    return config.weight / batch * gradient, t, reference


def line(schedule, progress: float) -> float:
    """Evaluate a schedule with numpy: a number, [from, to], or [start, from, to, end, ...]."""
    if isinstance(schedule, (int, float)):
        return float(schedule)
    if len(schedule) == 2:
        return float(np.interp(progress, [0, 1], schedule))
    return float(np.interp(progress, [schedule[0], *schedule[3::2]], [schedule[1], *schedule[2::2]]))
