"""Networks over sound in a build: a waveform in, at a sampling rate that the user says, because nothing shows it."""

import dataclasses
from collections.abc import Sequence

from flambeau.builder.shapes import InputForm
from flambeau.bundle.pipeline_config import AudioConfig
from flambeau.errors import BundleError, SourceError
from flambeau.items import FREE
from flambeau.pipelines import audio
from flambeau.settings.source import SourceOptions
from flambeau.types import TensorSpec


def taken(form: InputForm, options: SourceOptions, name: str) -> InputForm:
    """The same inputs, of sound if the user says so. Raises `SourceError` for what cannot be a waveform."""
    if options.pipeline != "audio":
        return form
    [spec, *others] = form.inputs
    if others or not _is_waveform(spec):
        listed = ", ".join(f"{each.name} {each}" for each in form.inputs)
        raise SourceError(
            f"{name} takes {listed}, and a waveform is float32 of shape samples or 1,samples: say --input-shape "
            "samples, or put the spectrogram into its forward()"
        )
    if options.sample_rate is None:
        raise SourceError(
            f"the sampling rate that {name} was trained with does not show in a file: say --sample-rate, "
            "such as --sample-rate 16000"
        )
    try:
        audio.require()
    except BundleError as error:
        raise SourceError(f"{error}; --pipeline tensor serves {name} over numbers") from None
    return dataclasses.replace(form, image=None, audio=_config([spec], options))


def _is_waveform(spec: TensorSpec) -> bool:
    return spec.dtype == "float32" and (len(spec.shape) == 1 or (len(spec.shape) == 2 and spec.shape[0] == 1))


def _config(specs: Sequence[TensorSpec], options: SourceOptions) -> AudioConfig:
    assert options.sample_rate is not None  # the caller checked
    config = AudioConfig(rate=options.sample_rate, threshold=options.threshold or 0.0)
    length = specs[0].shape[-1]
    if length != FREE:
        seconds = length / options.sample_rate
        if options.max_seconds not in (None, seconds):
            raise SourceError(
                f"--max-seconds {options.max_seconds:g}, but the network takes {length:,} samples, which are "
                f"{seconds:g} seconds: leave it out"
            )
        return AudioConfig(rate=config.rate, seconds=seconds, threshold=config.threshold)
    return AudioConfig(rate=config.rate, seconds=options.max_seconds or config.seconds, threshold=config.threshold)
