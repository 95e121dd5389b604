"""Options of noise and loss: what is added to pictures, at which steps, and how the answer is judged."""

from __future__ import annotations

from typing import Annotated, Literal

from lib_trainer.options.declare import Section, given, one_of, option


class NoiseConfig(Section, frozen=True):
    """Noise"""

    offset: Annotated[
        float,
        option(
            "Noise offset",
            "Shifts the noise of each channel as a whole, so that very dark and very bright pictures can be "
            "learned. Set 0.05 to 0.1 where results come out grey; not for models with zero terminal SNR, which "
            "can draw them anyway.",
            low=0,
            high=1,
            step=0.01,
            advanced=True,
        ),
    ] = 0.0
    offset_random: Annotated[
        bool,
        option(
            "Random noise offset",
            "Draws the offset of each picture between 0 and that value. Turn it on where an offset makes "
            "everything darker or brighter.",
            when=given("noise.offset"),
            advanced=True,
        ),
    ] = False
    offset_adaptive: Annotated[
        float,
        option(
            "Adaptive noise offset",
            "Raises the offset by this share of how far a picture's channel lies from the middle. Set about the "
            "offset's own size where only the extreme pictures of a set come out wrong.",
            low=0,
            high=10,
            step=0.01,
            when=given("noise.offset"),
            advanced=True,
        ),
    ] = 0.0
    pyramid_iterations: Annotated[
        int,
        option(
            "Pyramid noise, levels",
            "Adds coarser and coarser noise, which moves large areas as well as details. Set 6 to 10 in place of an "
            "offset where light and composition are to be learned. 0: none.",
            low=0,
            high=16,
            step=1,
            advanced=True,
        ),
    ] = 0
    pyramid_discount: Annotated[
        float,
        option(
            "Pyramid noise, discount",
            "The factor by which each coarser level is weaker. Lower it towards 0.1 where colours get out of hand.",
            low=0,
            high=1,
            step=0.05,
            when=given("noise.pyramid_iterations"),
            advanced=True,
        ),
    ] = 0.3
    perturbation: Annotated[
        float,
        option(
            "Input perturbation",
            "Shows the UNet a little more noise than it is asked for, so that it copes with its own errors while "
            "sampling. Set 0.1 for long runs on many pictures.",
            low=0,
            high=1,
            step=0.01,
            advanced=True,
        ),
    ] = 0.0
    perturbation_random: Annotated[
        bool,
        option(
            "Random input perturbation",
            "Draws its strength for each picture between 0 and that value. Turn it on where details get lost.",
            when=given("noise.perturbation"),
            advanced=True,
        ),
    ] = False
    distribution: Annotated[
        Literal["uniform", "logit_normal", "sigmoid"],
        option(
            "Timesteps",
            "How often each noise level is trained. Logit-normal trains the middle more often, where most is learned; "
            "sigmoid leans to one side. Leave it unless a concept fails in its layout or in its details.",
            names={"logit_normal": "logit-normal"},
            advanced=True,
        ),
    ] = "uniform"
    location: Annotated[
        float,
        option(
            "Timesteps, location",
            "Where their middle lies: above 0 towards more noise (layout), below towards less (details).",
            low=-5,
            high=5,
            step=0.1,
            when=one_of("noise.distribution", "logit_normal", "sigmoid"),
            advanced=True,
        ),
    ] = 0.0
    spread: Annotated[
        float,
        option(
            "Timesteps, spread",
            "For logit-normal the width (1 is usual); for sigmoid the steepness (6 is strong, and below 0 it "
            "leans towards little noise).",
            low=-20,
            high=20,
            step=0.1,
            when=one_of("noise.distribution", "logit_normal", "sigmoid"),
            advanced=True,
        ),
    ] = 1.0
    shift: Annotated[
        float,
        option(
            "Timestep shift",
            "Moves all timesteps towards more noise. Raise it to 2 or 3 for large pictures, where the same noise hides "
            "less.",
            low=0.05,
            high=20,
            step=0.1,
            advanced=True,
        ),
    ] = 1.0
    min_timestep: Annotated[
        int,
        option(
            "First timestep",
            "Less noise than this is not trained. Raise it where a style's layout is wanted without its texture.",
            low=0,
            high=999,
            step=1,
            advanced=True,
        ),
    ] = 0
    max_timestep: Annotated[
        int,
        option(
            "Timesteps end before",
            "More noise than this is not trained. Lower it where details are wanted without changing the layout.",
            low=1,
            high=1000,
            step=1,
            advanced=True,
        ),
    ] = 1000


class LossConfig(Section, frozen=True):
    """Loss"""

    type: Annotated[
        Literal["l2", "l1", "huber", "smooth_l1"],
        option(
            "Loss",
            "How errors count: l2 squares them; l1, Huber and smooth L1 forgive large ones. Choose Huber where a few "
            "bad pictures in the set spoil the rest.",
            names={"l2": "L2", "l1": "L1", "huber": "Huber", "smooth_l1": "smooth L1"},
            advanced=True,
        ),
    ] = "l2"
    huber_c: Annotated[
        float,
        option(
            "Huber, threshold",
            "Errors above it count linearly instead of squared. Lower it to forgive more.",
            low=0.001,
            high=1,
            step=0.01,
            when=one_of("loss.type", "huber", "smooth_l1"),
            advanced=True,
        ),
    ] = 0.1
    huber_schedule: Annotated[
        Literal["snr", "exponential", "constant"],
        option(
            "Huber, schedule",
            "How the threshold falls with the noise: by signal to noise, evenly in powers, or not at all. Choose "
            "constant where details get soft.",
            names={"snr": "by signal to noise"},
            when=one_of("loss.type", "huber", "smooth_l1"),
            advanced=True,
        ),
    ] = "snr"
    huber_scale: Annotated[
        float,
        option(
            "Huber, scale",
            "A factor on the threshold at every step of any schedule. Raise it to come nearer to L2.",
            low=0.01,
            high=100,
            step=0.1,
            when=one_of("loss.type", "huber", "smooth_l1"),
            advanced=True,
        ),
    ] = 1.0
    weighting: Annotated[
        Literal["none", "min_snr", "debiased", "like_noise"],
        option(
            "Weight of noise levels",
            "Min-SNR keeps steps with little noise from dominating the others and learns faster; debiased gives "
            "more weight to those with much noise; the last makes a v model's loss that of a noise model. Try "
            "min-SNR first.",
            names={
                "min_snr": "min-SNR",
                "debiased": "debiased estimation",
                "like_noise": "v as if it were noise",
            },
            advanced=True,
        ),
    ] = "none"
    min_snr_gamma: Annotated[
        float,
        option(
            "Min-SNR, gamma",
            "Signal to noise above which steps count less. 5 is the paper's; 1 weakens the details more.",
            low=0.01,
            high=1000,
            step=0.5,
            when=one_of("loss.weighting", "min_snr"),
            advanced=True,
        ),
    ] = 5.0
    debiased_v: Annotated[
        Literal["inverse", "root"],
        option(
            "Debiased, v models",
            "Weights by 1/(SNR+1), as sd-scripts does, or by its root, as OneTrainer does; the root is milder. Noise "
            "models have one form.",
            names={"inverse": "1/(SNR+1)", "root": "1/√(SNR+1)"},
            when=one_of("loss.weighting", "debiased"),
            advanced=True,
        ),
    ] = "inverse"
    learned_weights: Annotated[
        bool,
        option(
            "Learned weights by noise level",
            "Divides each step's loss by what is usual at its noise level, so that all levels count alike. Try it"
            " where neither of the weights above fits.",
            advanced=True,
        ),
    ] = False
