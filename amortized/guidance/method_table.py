"""The published methods, one table: each a choice of five parts with its authors' schedule.

Every method's gradient with respect to the latents z is w(t) * (target - reference), with

    target     e_b + s * [ (e_y - e_b) + Perp-Neg ]     at (x_t, t): the CFG pair
    x_t        sqrt(abar_t) z + sqrt(1 - abar_t) noise  from a noise source
    reference  the prediction to subtract: the true noise, the null, a learned model of the renders, or the
               prior at another timestep t'

e_y is the prediction for the view's text, e_b that for the null of CFG. Keys are fields of `GuidanceConfig`;
times are fractions of the diffusion time, and in schedules fractions of the run.
"""

from __future__ import annotations

from collections.abc import Mapping

# If paper and public code disagree, the comment says which one the table follows.
METHODS: Mapping[str, Mapping[str, object]] = {
    # Score distillation sampling (DreamFusion, arXiv 2209.14988, eq. 3): e^s(x_t) - noise.
    "sds": {
        "noise": "gaussian",
        "reference": "noise",
        "guidance_scale": 100.0,
        "t_min": 0.02,
        "t_max": 0.98,
        "shift": "none",
    },
    # Classifier score distillation (CSD, arXiv 2310.19415): s (e_y - e_null), SDS without e_null - noise. The
    # annealed negative prompt of its code is the constant `views.negative_prompt` here.
    "csd": {
        "noise": "gaussian",
        "reference": "null",
        "guidance_scale": 7.5,
        "t_min": (0.5, 0.02),
        "t_max": (0.98, 0.5),
        "shift": "none",
    },
    # Variational score distillation (ProlificDreamer, arXiv 2305.16213): the reference is the same model,
    # fine-tuned with LoRA on the renders and their texts. View words in the text replace its camera
    # condition.
    "vsd": {
        "noise": "gaussian",
        "reference": "learned",
        "guidance_scale": 7.5,
        "t_min": 0.02,
        "t_max": (0.0, 0.98, 0.98, 0.2, 0.5, 0.2001),
        "shift": "none",
        "learned": {"kind": "lora", "text": None, "lora_scale": 1.0, "learning_rate": 1e-4},
    },
    # Asynchronous score distillation (ScaleDreamer, arXiv 2407.02040): the reference is the plain
    # conditional prediction at t' >= t under the same noise. A frozen model is more accurate at later
    # timesteps, so a later t' replaces VSD's fine-tuned reference.
    "asd": {
        "noise": "gaussian",
        "reference": "guided",
        "guidance_scale": 7.5,
        "reference_scale": 1.0,
        "reference_negatives": False,
        "t_min": (0.5, 0.02),
        "t_max": (0.98, 0.5),
        "shift": "later",
        "shift_eta": 0.1,
        "shift_random": True,
        "shift_start": None,
    },
    # Interval score matching (LucidDreamer, arXiv 2311.11284): noise from inverting z without text to an
    # earlier s = t - delta, and from there to t; the reference is the prediction at s. Follows the code's
    # weight, 0.1 sqrt((1 - abar) / abar), and its warm-up over 30 % of the run. The code draws one t for all
    # views (`time_per: prompt`); the table draws one per image, as for all methods.
    "ism": {
        "noise": "inversion",
        "reference": "inverted",
        "guidance_scale": 7.5,
        "t_min": 0.02,
        "t_max": (0.0, 0.98, 0.5, 0.3),
        "shift": "earlier",
        "shift_span": (0.0, 0.1, 0.08, 0.3),
        "inversion": {"stride": 0.2, "scale": 0.0, "eta": 0.0},
        "weighting": "sigma_over_alpha",
        "weight": 0.1,
    },
    # Learn to optimize denoising scores (LODS, arXiv 2312.04820): SDS with CFG scale s and a null learned
    # from the renders, divided by s. Follows the 3D code; for 2D, the learning rates of paper and code
    # differ.
    "lods-embedding": {
        "noise": "gaussian",
        "reference": "noise",
        "guidance_scale": 1000.0,
        "divide_by_scale": True,
        "null": "learned",
        "t_min": 0.02,
        "t_max": (0.0, 0.98, 0.98, 0.4, 0.5, 0.4001),
        "shift": "none",
        "learned": {"kind": "null", "learning_rate": 1e-5},
    },
    # LODS with a LoRA as the null, queried with one fixed text instead of the prompt.
    "lods-lora": {
        "noise": "gaussian",
        "reference": "noise",
        "guidance_scale": 1000.0,
        "divide_by_scale": True,
        "null": "learned",
        "t_min": 0.02,
        "t_max": (0.0, 0.98, 0.98, 0.4, 0.5, 0.4001),
        "shift": "none",
        "learned": {"kind": "lora", "text": "<new1>", "lora_scale": 0.5, "learning_rate": 5e-7},
    },
    # Score distillation via inversion (SDI, arXiv 2405.15891): noise from inverting z with a negative CFG
    # scale; that noise is also the reference. Follows the paper's jitter of 1/30 of the time. Inverts to
    # exactly t; the code stops up to 0.1 later and queries as if at t. The code's loss is a mean over Stable
    # Diffusion's latents: the weight is 1 / (4 * 64 * 64).
    "sdi": {
        "noise": "inversion",
        "reference": "noise",
        "guidance_scale": 7.5,
        "t_min": (0.95, 0.25),
        "t_max": (0.98, 0.283),
        "shift": "none",
        "inversion": {"stride": 0.1, "scale": -7.5, "eta": 0.3},
        "weighting": "sigma_over_alpha",
        "weight": 6.1e-5,
    },
    # Diverse score distillation (DSD, arXiv 2412.06780): noise from a deterministic trajectory that starts
    # at the asset's seed; the same noise at t and at a later t', at which the reference has CFG scale 1. CFG
    # is e_b + s (e_y - e_b), as for all methods; the code's branch without Perp-Neg uses s + 1.
    "dsd": {
        "noise": "seed",
        "reference": "guided",
        "guidance_scale": 7.5,
        "reference_scale": 1.0,
        "reference_negatives": True,
        "t_min": (0.98, 0.32),
        "t_max": (0.98, 0.32),
        "t_curve": "sqrt",
        "shift": "later",
        "shift_eta": 0.1,
        "shift_random": True,
        "shift_start": 0.32,
        "trajectory": {"num_steps": 10, "scale": 7.5},
    },
}
