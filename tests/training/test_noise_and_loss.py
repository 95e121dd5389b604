"""Options of noise and loss against their formulas, papers and diffusers' training scripts, on a fixed batch."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from lib_trainer.config import LossConfig, NoiseConfig, from_values
from lib_trainer.families.prediction import Predicts
from lib_trainer.ports import NoiseSchedule
from lib_trainer.refusals import ConfigError, Sentence
from lib_trainer.training.checks import check_noise
from lib_trainer.training.loss_weights import LEVELS, LearnedWeights, huber_thresholds, level_weights
from lib_trainer.training.noise import coloured, draw_timesteps, perturbed
from lib_trainer.training.objective import Noised, Objective
from lib_trainer.training.prediction import check_prediction
from tests.support import scaled_linear
from tests.training.test_objective import KINDS, theirs

SHAPE = (4, 4, 16, 12)
CLOSE: dict[str, float] = {"rtol": 1e-4, "atol": 1e-6}
STEPS = torch.tensor([0, 17, 600, 998])
Kind = Literal["epsilon", "v"]


def seeded(seed: int = 3) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def schedule(prediction: Kind = "epsilon", zero_terminal: bool = False) -> NoiseSchedule:
    return NoiseSchedule(scaled_linear(), prediction, zero_terminal)


def ratios(prediction: str, zero_terminal: bool) -> np.ndarray[Any, Any]:
    """SNR by numpy alone, of the rescaled schedule where there is one."""
    root = np.sqrt(scaled_linear().numpy())
    if zero_terminal:
        root = (root - root[-1]) * root[0] / (root[0] - root[-1])
    return root**2 / (1 - root**2)


# ---------------------------------------------------------------------------------------------------------- weights


@pytest.mark.parametrize(("prediction", "zero_terminal"), KINDS)
@pytest.mark.parametrize("gamma", [1.0, 5.0])
def test_min_snr_is_that_of_diffusers_training_script(prediction: Kind, zero_terminal: bool, gamma: float) -> None:
    from diffusers.training_utils import compute_snr

    snr = compute_snr(theirs(prediction, zero_terminal), STEPS)
    weights = torch.stack([snr, gamma * torch.ones_like(snr)], dim=1).min(dim=1)[0]  # examples/text_to_image
    weights = weights / snr if prediction == "epsilon" else weights / (snr + 1)
    config = LossConfig(weighting="min_snr", min_snr_gamma=gamma)
    ours = level_weights(config, schedule(prediction, zero_terminal))
    assert ours is not None
    torch.testing.assert_close(ours[STEPS], weights, rtol=1e-3, atol=1e-6)  # their SNR is of fp32
    objective = Objective(schedule(prediction, zero_terminal), loss=config)
    said, target = torch.randn(SHAPE, generator=seeded()), torch.randn(SHAPE, generator=seeded(4))
    noised = Noised(said, STEPS, target, ours[STEPS])
    whole = (F.mse_loss(said, target, reduction="none").mean(dim=(1, 2, 3)) * weights).mean()
    torch.testing.assert_close(objective.loss(said, noised), whole, **CLOSE)


FORMULAS: dict[str, tuple[dict[str, Any], Kind, Callable[[Any], Any]]] = {
    "debiased": ({"weighting": "debiased"}, "epsilon", lambda snr: 1 / np.sqrt(np.minimum(snr, 1000))),
    "debiased, v": ({"weighting": "debiased"}, "v", lambda snr: 1 / (np.minimum(snr, 1000) + 1)),
    "debiased, v, root": (
        {"weighting": "debiased", "debiased_v": "root"}, "v", lambda snr: 1 / np.sqrt(np.minimum(snr, 1000) + 1),
    ),
    "like noise": (
        {"weighting": "like_noise"}, "v", lambda snr: np.minimum(snr, 1000) / (np.minimum(snr, 1000) + 1),
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "zero_terminal"),
    [*((name, False) for name in FORMULAS), ("debiased, v", True), ("debiased, v, root", True), ("like noise", True)],
)
def test_weights_are_their_formulas(name: str, zero_terminal: bool) -> None:
    options, prediction, formula = FORMULAS[name]
    ours = level_weights(LossConfig(**options), schedule(prediction, zero_terminal))
    assert ours is not None and bool(ours.isfinite().all())
    np.testing.assert_allclose(ours.numpy(), formula(ratios(prediction, zero_terminal)), rtol=1e-4)


@pytest.mark.parametrize("weighting", ["min_snr", "debiased", "like_noise"])
@pytest.mark.parametrize("prediction", ["epsilon", "v"])
def test_no_weight_is_infinite_where_nothing_is_left_of_a_picture(prediction: Kind, weighting: Any) -> None:
    """sd-scripts divides by zero there."""
    ours = level_weights(LossConfig(weighting=weighting), schedule(prediction, True))
    assert ours is not None and bool(ours.isfinite().all())


@pytest.mark.parametrize("zero_terminal", [False, True])
@pytest.mark.parametrize("how", ["snr", "exponential", "constant"])
@pytest.mark.parametrize("kind", ["huber", "smooth_l1"])
def test_huber_is_its_formula_with_a_scale_that_works(kind: Any, how: Any, zero_terminal: bool) -> None:
    c, scale = 0.1, 3.0
    sigma = 1 / np.sqrt(np.maximum(ratios("v", zero_terminal), 1e-300))
    wanted = {
        "snr": ((1 - c) / (1 + sigma) ** 2 + c) * scale,
        "exponential": np.exp(np.arange(1000) * math.log(c) / 1000) * scale,
        "constant": np.full(1000, c * scale),
    }[how]
    config = LossConfig(type=kind, huber_c=c, huber_scale=scale, huber_schedule=how)
    ours = huber_thresholds(config, schedule("v", zero_terminal))
    assert ours is not None
    np.testing.assert_allclose(ours.numpy(), wanted, rtol=1e-4)
    said, target = torch.randn(SHAPE, generator=seeded()), torch.randn(SHAPE, generator=seeded(4))
    d, at = (said - target).double().numpy(), wanted[STEPS.numpy()].reshape(-1, 1, 1, 1)
    whole = 2 * (np.sqrt(d**2 + at**2) - at) * (at if kind == "huber" else 1)
    objective = Objective(schedule("v", zero_terminal), loss=config)
    told = objective.loss(said, Noised(said, STEPS, target, thresholds=ours[STEPS]))
    assert float(told) == pytest.approx(float(whole.mean()), rel=1e-4)


def test_l1_is_the_mean_of_the_errors_sizes() -> None:
    said, target = torch.randn(SHAPE, generator=seeded()), torch.randn(SHAPE, generator=seeded(4))
    objective = Objective(schedule(), loss=LossConfig(type="l1"))
    torch.testing.assert_close(objective.loss(said, Noised(said, STEPS, target)), F.l1_loss(said, target))


def test_weights_of_pictures_and_of_levels_are_multiplied() -> None:
    objective = Objective(schedule(), loss=LossConfig(weighting="min_snr"))
    own = torch.tensor([1.0, 0.5, 0.0, 2.0])
    drawn = objective.noised(torch.randn(SHAPE, generator=seeded()), seeded(), own)
    table = level_weights(LossConfig(weighting="min_snr"), schedule())
    assert table is not None and drawn.weights is not None
    torch.testing.assert_close(drawn.weights, own * table[drawn.timesteps])


# ------------------------------------------------------------------------------------------------------------ noise


def test_an_offset_is_one_number_for_each_channel() -> None:
    latents = torch.zeros(2000, 4, 4, 4)
    plain = torch.randn(latents.shape, generator=seeded())
    moved = coloured(plain, latents, NoiseConfig(offset=0.2), seeded(5)) - plain
    torch.testing.assert_close(moved, moved[:, :, :1, :1].expand_as(moved), rtol=0, atol=1e-6)
    assert float(moved[:, :, 0, 0].std()) == pytest.approx(0.2, rel=0.05)
    same = torch.randn((2000, 4, 1, 1), generator=seeded(5)) * 0.2
    torch.testing.assert_close(moved[:, :, :1, :1], same, rtol=0, atol=1e-6)


def test_random_and_adaptive_offsets() -> None:
    latents = torch.zeros(4000, 4, 2, 2)
    plain = torch.zeros_like(latents)
    moved = coloured(plain, latents, NoiseConfig(offset=0.3, offset_random=True), seeded(5))[:, :, 0, 0]
    drawn = torch.randn((4000, 4, 1, 1), generator=seeded(5))[:, :, 0, 0]
    strength = moved / drawn
    torch.testing.assert_close(strength, strength[:, :1].expand_as(strength), rtol=1e-3, atol=1e-4)
    assert float(strength.min()) >= 0 and float(strength.max()) <= 0.3001
    assert float(strength.mean()) == pytest.approx(0.15, rel=0.05)
    bright = torch.ones_like(latents) * torch.tensor([0.0, -1.0, 2.0, 0.5]).view(1, 4, 1, 1)
    moved = coloured(plain, bright, NoiseConfig(offset=0.3, offset_adaptive=0.1), seeded(5))[:, :, 0, 0]
    torch.testing.assert_close(moved / drawn, torch.tensor([0.3, 0.4, 0.5, 0.35]).expand(4000, 4), rtol=1e-4, atol=1e-4)


def test_pyramid_noise_is_coarser_noise_at_a_deviation_of_one() -> None:
    config = NoiseConfig(pyramid_iterations=6, pyramid_discount=0.5)
    latents = torch.zeros(1, 4, 32, 48)
    plain = torch.randn(latents.shape, generator=seeded())
    ours = coloured(plain, latents, config, seeded(9))
    same, wanted = seeded(9), plain.clone()
    upsample = torch.nn.Upsample(size=(32, 48), mode="bilinear")
    for level in range(6):
        ratio = float(torch.rand((), generator=same, dtype=torch.float64)) * 2 + 2
        high, wide = max(1, int(32 / ratio**level)), max(1, int(48 / ratio**level))
        wanted += upsample(torch.randn(1, 4, high, wide, generator=same)) * 0.5**level
        if 1 in (high, wide):
            break
    torch.testing.assert_close(ours, wanted / wanted.std(), **CLOSE)
    batch = coloured(torch.randn(8, 4, 32, 48, generator=seeded()), torch.zeros(8, 4, 32, 48), config, seeded(9))
    torch.testing.assert_close(batch.flatten(1).std(1), torch.ones(8), rtol=1e-4, atol=0)
    assert float(F.avg_pool2d(batch, 8).std()) > 1.5 * float(F.avg_pool2d(plain, 8).std())


def test_perturbed_pictures_have_more_noise_than_they_are_asked_for() -> None:
    latents = torch.randn(SHAPE, generator=seeded())
    plain = Objective(schedule("v")).noised(latents, seeded(2))
    more = Objective(schedule("v"), NoiseConfig(perturbation=0.1)).noised(latents, seeded(2))
    assert torch.equal(plain.target, more.target) and torch.equal(plain.timesteps, more.timesteps)
    same = seeded(2)
    torch.randn(SHAPE, generator=same)
    torch.randint(1000, (4,), generator=same)
    fresh = torch.randn(SHAPE, generator=same)
    sigma = (1 - scaled_linear()[plain.timesteps]).sqrt().float().view(-1, 1, 1, 1)
    torch.testing.assert_close(more.latents, plain.latents + sigma * 0.1 * fresh, **CLOSE)
    drawn = perturbed(torch.zeros(4000, 1, 8, 8), NoiseConfig(perturbation=0.4, perturbation_random=True), seeded())
    deviations = drawn.flatten(1).std(1)
    assert float(deviations.mean()) == pytest.approx(0.2, rel=0.05) and float(deviations.max()) < 0.6


# -------------------------------------------------------------------------------------------------------- timesteps


def shares(count: int = 40000, **options: Any) -> np.ndarray[Any, Any]:
    drawn = draw_timesteps(NoiseConfig(**options), 1000, count, seeded()).double().numpy()
    return np.histogram(drawn / 1000, bins=20, range=(0, 1))[0] / count


def test_uniform_timesteps_keep_their_range() -> None:
    drawn = draw_timesteps(NoiseConfig(min_timestep=200, max_timestep=300), 1000, 5000, seeded())
    assert (int(drawn.min()), int(drawn.max())) == (200, 299) and drawn.dtype is torch.int64
    far = draw_timesteps(NoiseConfig(distribution="logit_normal", location=5, max_timestep=300), 1000, 5000, seeded())
    assert int(far.max()) == 299


def test_logit_normal_timesteps_rise_with_what_is_drawn() -> None:
    config = NoiseConfig(distribution="logit_normal", location=0.5, spread=0.8)
    normal = torch.randn(100, generator=seeded(), dtype=torch.float64).numpy()
    wanted = np.floor(1000 / (1 + np.exp(-(0.5 + 0.8 * normal))))
    assert np.abs(draw_timesteps(config, 1000, 100, seeded()).numpy() - wanted).max() <= 1


def test_logit_normal_timesteps_have_the_papers_density() -> None:
    at = np.linspace(0.0005, 0.9995, 1000)
    logit = np.log(at / (1 - at))
    density = np.exp(-((logit - 0.5) ** 2) / (2 * 0.8**2)) / (0.8 * math.sqrt(2 * math.pi) * at * (1 - at))
    wanted = density.reshape(20, 50).mean(1) / 20
    np.testing.assert_allclose(shares(distribution="logit_normal", location=0.5, spread=0.8), wanted, atol=0.006)


@pytest.mark.parametrize("spread", [6.0, -6.0, 0.05])
def test_sigmoid_timesteps_have_a_sigmoids_density(spread: float) -> None:
    at = np.linspace(0.0005, 0.9995, 1000)
    density = 1 / (1 + np.exp(-spread * (at - 0.5 - 0.1)))
    wanted = density.reshape(20, 50).sum(1) / density.sum()
    np.testing.assert_allclose(shares(distribution="sigmoid", location=0.1, spread=spread), wanted, atol=0.006)


def test_a_shift_moves_them_towards_more_noise() -> None:
    """With s, the share u of the way becomes s·u/(1+(s−1)·u): half of all lie above s/(1+s)."""
    drawn = draw_timesteps(NoiseConfig(shift=3.0), 1000, 40000, seeded()).double() / 1000
    assert float(drawn.median()) == pytest.approx(0.75, abs=0.01)
    assert float(draw_timesteps(NoiseConfig(shift=1.0), 1000, 40000, seeded()).double().median()) < 520


# -------------------------------------------------------------------------------------------------- learned weights


def test_learned_weights_make_all_levels_pull_alike() -> None:
    """Losses of 0.01 to 1 by noise level, with noise of their own, come to one size; the mean stays where it was."""
    learned, generator = LearnedWeights(1000), seeded()
    usual = torch.linspace(0, 1, 1000).pow(2) * 0.99 + 0.01
    for _ in range(2000):
        timesteps = torch.randint(1000, (4,), generator=generator)
        factors = learned.factors(timesteps)
        assert bool(factors.isfinite().all())
        learned.see(timesteps, usual[timesteps] * (0.5 + torch.rand(4, generator=generator)))
    timesteps = torch.arange(0, 1000, 1000 // LEVELS) + 12
    pull = learned.factors(timesteps) * usual[timesteps]
    assert float(pull.std() / pull.mean()) < 0.2 < float(usual[timesteps].std() / usual[timesteps].mean())
    assert float(pull.mean()) == pytest.approx(float(usual.mean()), rel=0.3)


def test_learned_weights_begin_as_ones_and_pass_by_what_is_no_number() -> None:
    learned, timesteps = LearnedWeights(1000), torch.tensor([5, 500, 999])
    assert torch.equal(learned.factors(timesteps), torch.ones(3))
    learned.see(timesteps, torch.tensor([0.1, float("nan"), float("inf")]))
    assert bool(learned.factors(timesteps).isfinite().all()) and float(learned.counts.sum()) == 1


def test_what_was_learned_goes_with_the_state() -> None:
    objective = Objective(schedule(), loss=LossConfig(learned_weights=True))
    said, target = torch.randn(SHAPE, generator=seeded()), torch.randn(SHAPE, generator=seeded(4))
    noised = Noised(said, STEPS, target)
    first = objective.loss(said, noised)
    kept = objective.state_dict()
    values = [objective.loss(said * factor, noised) for factor in (3, 1)]
    again = Objective(schedule(), loss=LossConfig(learned_weights=True))
    again.load_state_dict(kept)
    assert [again.loss(said * factor, noised) for factor in (3, 1)] == values
    assert torch.equal(first, F.mse_loss(said, target)) or float(first) == pytest.approx(
        float(F.mse_loss(said, target))
    )
    assert Objective(schedule()).state_dict() == {}


# --------------------------------------------------------------------------------------------------- contradictions


def test_contradictions_are_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"noise\.min_timestep = 500 is not below noise\.max_timestep = 500"):
        check_noise(from_values({"noise.min_timestep": 500, "noise.max_timestep": 500}))
    check_noise(from_values({"noise.min_timestep": 499, "noise.max_timestep": 500}))
    noise = Predicts("epsilon", False, Sentence("prediction.by_yaml"))
    job = {"loss.weighting": "like_noise"}
    with pytest.raises(ConfigError, match=r"loss\.weighting = 'like_noise' is for models that predict v"):
        check_prediction(from_values(job), noise)
    check_prediction(from_values({**job, "model.prediction": "v"}), noise)


def test_what_has_no_effect_changes_nothing() -> None:
    """Options that hang on another one that is off are not read: the form hides them."""
    latents = torch.randn(SHAPE, generator=seeded())
    plain = Objective(schedule()).noised(latents, seeded(2))
    hidden = NoiseConfig(offset_random=True, offset_adaptive=1.0, perturbation_random=True, location=3.0, spread=9.0)
    other = Objective(schedule(), hidden, LossConfig(huber_c=0.5, debiased_v="root")).noised(latents, seeded(2))
    assert torch.equal(plain.latents, other.latents) and torch.equal(plain.timesteps, other.timesteps)
    assert other.weights is None and other.thresholds is None
